//! `ferry update`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use clap::ArgMatches;

use super::globals::Globals;
use super::verb::{Arguments, Flag, Value, Verb};
use super::{given, size};
use crate::error::{Context, Result};
use crate::lifecycle;
use crate::lifecycle::update::Schemata;
use crate::log::Log;
use crate::spec::Document;
use crate::spec::resources::{BlockIo, Cpu, Memory, Pids, Resources};

const fn text(long: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { long, value: Value::Text(value), help, ..Flag::SWITCH }
}

/// The row of `update`.
pub const VERB: Verb = Verb {
    name: "update",
    about: "Change the limits of a container",
    arguments: Arguments::ID,
    flags: &[
        Flag {
            long: "resources",
            short: Some('r'),
            value: Value::Path("FILE"),
            help: "Read the limits from FILE, or from standard input for -, in the form of config.json's \
                   linux.resources (its devices are passed over: the rules stay); the other limits' flags are then ignored",
            ..Flag::SWITCH
        },
        text("blkio-weight", "N", "Relative weight of block I/O, 10 to 1000"),
        text("cpu-period", "MICROSECONDS", "The period --cpu-quota counts in"),
        text("cpu-quota", "MICROSECONDS", "CPU time in a period; -1 for no limit"),
        text("cpu-burst", "MICROSECONDS", "CPU time that may be saved up for later periods"),
        text("cpu-share", "N", "Relative weight of CPU time, 2 to 262144"),
        text("cpu-rt-period", "MICROSECONDS", "The period --cpu-rt-runtime counts in; cgroup v1 only"),
        text("cpu-rt-runtime", "MICROSECONDS", "Real-time CPU time in a period; cgroup v1 only"),
        Flag {
            value: Value::Words("0|1"),
            ..text("cpu-idle", "", "1 runs the container only when nothing else wants the CPU")
        },
        text("cpuset-cpus", "LIST", "The CPUs it may run on, such as 0-3,7"),
        text("cpuset-mems", "LIST", "The memory nodes it may use, such as 0-1"),
        Flag { hidden: true, ..text("kernel-memory", "SIZE", "Ignored: the kernel has no such limit any more") },
        Flag { hidden: true, ..text("kernel-memory-tcp", "SIZE", "Ignored: the kernel has no such limit any more") },
        text("memory", "SIZE", "At most so much memory, such as 64m; -1 for no limit"),
        text("memory-reservation", "SIZE", "Memory that is taken from it last when the host runs short"),
        text("memory-swap", "SIZE", "At most so much memory and swap together; -1 for no limit"),
        text(
            "memory-high",
            "SIZE",
            "Slow it down and take memory back above so much, and kill nothing; -1 for no limit",
        ),
        text("memory-min", "SIZE", "Memory that is never taken from it, even if others are killed for want of it"),
        text("memory-reclaim", "SIZE", "Take so much memory back now, once the limits are in force"),
        text("pids-limit", "N", "At most so many tasks; -1 for no limit"),
        text("l3-cache-schema", "SCHEMA", "Intel RDT: the share of the L3 cache, such as L3:0=ff;1=f"),
        text("mem-bw-schema", "SCHEMA", "Intel RDT: the share of memory bandwidth, such as MB:0=50"),
    ],
    details: &[
        (
            "DESCRIPTION",
            "Changes limits of a container that is created, running or paused. What no flag names stays as it is. A limit \
             that cannot be enforced on this host is an error that names it, and then none is changed.\n\n--memory-reclaim \
             is a deed and no limit: the kernel takes the container's coldest memory back, page cache first, the rest as \
             far as there is swap. Less than was asked for is an error that says how much it was.",
        ),
        ("EXIT STATUS", "0 when the limits are in force and the memory was taken back, 1 otherwise."),
        (
            "EXAMPLES",
            "    ferry update --memory 512m --pids-limit 200 web\n    \
             echo '{\"cpu\": {\"quota\": 20000, \"period\": 100000}}' | ferry update --resources - web",
        ),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let id = given::id(matches)?;
    let mut resources = match given::path(matches, "resources") {
        Some(path) => read(path)?,
        None => from_flags(matches)?,
    };
    pass_over_kernel_memory(&mut resources, &globals.setting.log);
    let schemata = schemata(matches)?;
    let reclaimed = reclaimed(matches)?;
    // First, because most hosts refuse it: nothing is changed then.
    if schemata != Schemata::default() {
        lifecycle::update::foresee(&globals.setting, &id, &resources)?;
        lifecycle::update::schemata(&globals.setting, &id, &schemata)?;
    }
    lifecycle::update::update(&globals.setting, &id, &resources)?;
    if let Some(bytes) = reclaimed {
        lifecycle::update::reclaim(&globals.setting, &id, bytes)?;
    }
    Ok(0)
}

/// How much memory to take back.
fn reclaimed(matches: &ArgMatches) -> Result<Option<u64>> {
    let flag = "memory-reclaim";
    let bytes = |text| size::bytes(text).and_then(|bytes| u64::try_from(bytes).map_err(|why| why.to_string()));
    given::text(matches, flag).map(|text| bytes(text).map_err(|why| given::invalid(flag, text, why))).transpose()
}

/// The limits of a file, or of standard input for `-`.
fn read(path: &std::ffi::OsStr) -> Result<Resources> {
    let document = match path == "-" {
        true => {
            let mut json = Vec::new();
            io::stdin().lock().read_to_end(&mut json).or_cannot("read", "standard input")?;
            Document::new(Path::new("standard input"), json)
        }
        false => Document::read(Path::new(path))?,
    };
    document.parse()
}

/// The limits the flags give. Zero for --blkio-weight is "leave it", as with runc.
fn from_flags(matches: &ArgMatches) -> Result<Resources> {
    let mut resources = Resources {
        memory: memory(matches)?,
        cpu: cpu(matches)?,
        pids: Pids { limit: whole(matches, "pids-limit")? },
        block_io: BlockIo {
            weight: whole(matches, "blkio-weight")?.filter(|&weight| weight != 0),
            ..BlockIo::default()
        },
        unified: unified(matches)?,
        ..Resources::default()
    };
    // runc's callers may lower a limit below what is in use, unless the file says otherwise.
    resources.memory.check_before_update = Some(false);
    Ok(resources)
}

/// Limits that the specification has no fields for.
fn unified(matches: &ArgMatches) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for (flag, file) in [("memory-high", "memory.high"), ("memory-min", "memory.min")] {
        if let Some(bytes) = limit(matches, flag)? {
            files.insert(file.to_owned(), if bytes == -1 { "max".to_owned() } else { bytes.to_string() });
        }
    }
    Ok(files)
}

/// Bytes of a flag; -1 is no limit.
fn limit(matches: &ArgMatches, flag: &str) -> Result<Option<i64>> {
    let text = given::text(matches, flag);
    text.map(|text| size::limit(text).map_err(|why| given::invalid(flag, text, why))).transpose()
}

/// The lines for the container's resctrl group.
fn schemata(matches: &ArgMatches) -> Result<Schemata> {
    let line = |flag, known: &str| {
        let text = given::string(matches, flag).filter(|text| text.contains('\n') || !text.starts_with(known));
        match text {
            Some(text) => Err(given::invalid(flag, &text, format!("it is one line that begins with {known}"))),
            None => Ok(given::string(matches, flag)),
        }
    };
    Ok(Schemata { l3_cache: line("l3-cache-schema", "L3")?, bandwidth: line("mem-bw-schema", "MB:")? })
}

fn memory(matches: &ArgMatches) -> Result<Memory> {
    let limit = |flag| limit(matches, flag);
    Ok(Memory {
        limit: limit("memory")?,
        reservation: limit("memory-reservation")?,
        swap: limit("memory-swap")?,
        kernel: limit("kernel-memory")?,
        kernel_tcp: limit("kernel-memory-tcp")?,
        ..Memory::default()
    })
}

fn cpu(matches: &ArgMatches) -> Result<Cpu> {
    Ok(Cpu {
        shares: whole(matches, "cpu-share")?,
        quota: whole(matches, "cpu-quota")?,
        burst: whole(matches, "cpu-burst")?,
        period: whole(matches, "cpu-period")?,
        realtime_runtime: whole(matches, "cpu-rt-runtime")?,
        realtime_period: whole(matches, "cpu-rt-period")?,
        cpus: given::string(matches, "cpuset-cpus").unwrap_or_default(),
        mems: given::string(matches, "cpuset-mems").unwrap_or_default(),
        idle: whole(matches, "cpu-idle")?,
    })
}

fn whole<T: FromStr<Err: Display>>(matches: &ArgMatches, flag: &str) -> Result<Option<T>> {
    given::number(matches, flag)
}

/// Engines still send them; a configuration that has them is refused, for there somebody may rely on them.
fn pass_over_kernel_memory(resources: &mut Resources, log: &Log) {
    let Memory { kernel, kernel_tcp, .. } = &mut resources.memory;
    if kernel.take().is_some() | kernel_tcp.take().is_some() {
        log.warning("kernel memory limits are ignored: the kernel has none any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;

    fn parsed(line: &str) -> Result<Resources> {
        from_flags(&matches(&VERB, line)?)
    }

    fn unchanged() -> Resources {
        let memory = Memory { check_before_update: Some(false), ..Memory::default() };
        Resources { memory, ..Resources::default() }
    }

    #[test]
    fn nothing_given_changes_nothing() {
        assert_eq!(parsed("c").unwrap(), unchanged());
        assert_eq!(parsed("--memory= --blkio-weight 0 c").unwrap(), unchanged());
    }

    #[test]
    fn every_flag_sets_its_field() {
        let line = "--blkio-weight 500 --cpu-period 100000 --cpu-quota 50000 --cpu-burst 10 --cpu-share 512 \
                    --cpu-rt-period 7 --cpu-rt-runtime 6 --cpu-idle 1 --cpuset-cpus 0-1 --cpuset-mems 0 --memory 64m \
                    --memory-reservation 32m --memory-swap -1 --pids-limit -1 --kernel-memory 1 c";
        let expected = Resources {
            memory: Memory {
                limit: Some(64 << 20),
                reservation: Some(32 << 20),
                swap: Some(-1),
                kernel: Some(1),
                ..unchanged().memory
            },
            cpu: Cpu {
                shares: Some(512),
                quota: Some(50_000),
                burst: Some(10),
                period: Some(100_000),
                realtime_runtime: Some(6),
                realtime_period: Some(7),
                cpus: "0-1".to_owned(),
                mems: "0".to_owned(),
                idle: Some(1),
            },
            pids: Pids { limit: Some(-1) },
            block_io: BlockIo { weight: Some(500), ..BlockIo::default() },
            ..Resources::default()
        };
        assert_eq!(parsed(line).unwrap(), expected);
    }

    #[test]
    fn what_the_specification_has_no_field_for_is_a_file() {
        let files = parsed("--memory-high 64m --memory-min -1 c").unwrap().unified;
        assert_eq!(
            files,
            [("memory.high".to_owned(), "67108864".to_owned()), ("memory.min".to_owned(), "max".to_owned())].into()
        );
        let reclaim = |line| reclaimed(&matches(&VERB, line).unwrap());
        assert_eq!((reclaim("c").unwrap(), reclaim("--memory-reclaim 1m c").unwrap()), (None, Some(1 << 20)));
        assert!(reclaim("--memory-reclaim -1 c").unwrap_err().to_string().contains("for --memory-reclaim"));
    }

    #[test]
    fn wrong_values_are_refused_by_the_flags_name() {
        for (line, flag) in [
            ("--memory 1x c", "memory"),
            ("--cpu-share -1 c", "cpu-share"),
            ("--blkio-weight 70000 c", "blkio-weight"),
            ("--pids-limit many c", "pids-limit"),
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.starts_with("invalid value ") && error.contains(&format!("for --{flag}: ")), "{error}");
        }
    }

    #[test]
    fn shares_of_the_cache_and_of_bandwidth_are_lines_of_schemata() {
        let parsed = |line| schemata(&matches(&VERB, line).unwrap());
        assert_eq!(parsed("c").unwrap(), Schemata::default());
        let both = Schemata { l3_cache: Some("L3:0=f;1=f0".to_owned()), bandwidth: Some("MB:0=50".to_owned()) };
        assert_eq!(parsed("--l3-cache-schema L3:0=f;1=f0 --mem-bw-schema MB:0=50 c").unwrap(), both);
        let error = parsed("--mem-bw-schema L3:0=f c").unwrap_err().to_string();
        assert_eq!(error, "invalid value \"L3:0=f\" for --mem-bw-schema: it is one line that begins with MB:");
    }

    #[test]
    fn a_file_holds_what_config_json_does() {
        let json = br#"{"memory": {"limit": 1024, "checkBeforeUpdate": true}, "cpu": {"quota": -1}, "pids": null,
                        "blockIO": {"weight": 20}, "unified": {"memory.high": "max"}}"#;
        let expected = Resources {
            memory: Memory { limit: Some(1024), check_before_update: Some(true), ..Memory::default() },
            cpu: Cpu { quota: Some(-1), ..Cpu::default() },
            block_io: BlockIo { weight: Some(20), ..BlockIo::default() },
            unified: [("memory.high".to_owned(), "max".to_owned())].into(),
            ..Resources::default()
        };
        let parsed = |json: &[u8]| Document::new(Path::new("limits"), json.to_vec()).parse::<Resources>();
        assert_eq!(parsed(json).unwrap(), expected);
        let error = parsed(br#"{"memory": {"limit": "64m"}}"#).unwrap_err().to_string();
        assert!(error.starts_with("limits:1: memory.limit: invalid type: string"), "{error}");
    }
}
