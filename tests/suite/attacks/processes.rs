//! Attacks on what a process is given: its ids, capabilities and descriptors, and on the runtime while it joins.

use std::fs;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::super::case::Case;
use super::super::need::Need::{Ferry, Peer, Root};
use super::super::scenario::{Outcome, Scenario, scenario};
use super::super::security::filter;
use super::super::stage::is_long;
use super::hash;

pub const SCENARIOS: &[Scenario] = &[
    scenario("numeric_name_in_the_images_passwd", &[Root], numeric_name),
    scenario("exec_runs_as_exactly_the_user_asked_for", &[Root], exec_user),
    scenario("an_ordinary_user_has_no_ambient_capabilities", &[Root], ambient),
    scenario("capabilities_of_exec_are_not_inheritable", &[Root, PEER_INHERITABLE], inheritable),
    scenario("the_runtime_through_its_own_process", &[], own_executable),
    scenario("the_runtime_through_exec", &[Peer("crun", "cannot run a script")], exec_executable),
    scenario("processes_that_join_cannot_be_looked_into", &[Root], raided),
    scenario("processes_that_join_cannot_be_had_without_their_filter", &[], |case| traced(case, "getpgid")),
    // ferry's own last calls are among those that this one forbids.
    scenario("processes_that_join_cannot_be_had_without_a_strict_filter", &[], |case| traced(case, "execveat")),
    scenario("cwd_through_a_descriptor_of_the_host", &[], descriptor_cwd),
    scenario("exec_cwd_through_a_descriptor_of_the_host", &[], exec_descriptor_cwd),
    scenario("no_descriptor_of_the_host_is_left_open", &[], descriptors),
    scenario("annotations_that_name_properties_of_units", &[Ferry], unit_properties),
];

const PEER_INHERITABLE: super::super::need::Need = Peer("crun", "1.8.1 adds the capability to the inheritable set");

/// A container whose program attacks for as long as `exec` is called; answers what that program told.
pub(super) fn under_attack(
    case: &mut Case,
    deed: &[&str],
    mut exec: impl FnMut(&mut Case) -> Outcome,
) -> Result<Value, Failed> {
    let seconds = if is_long() { 60.0 } else { 2.5 };
    let seconds_text = seconds.to_string();
    let args: Vec<&str> = ["/probe"].iter().chain(deed).copied().chain([seconds_text.as_str()]).collect();
    let mut lines = case.args(&args).start()?;
    lines.until("ready")?;
    let end = Instant::now() + Duration::from_secs_f64(seconds - 0.5);
    let mut count = 0;
    while count < 200 || (is_long() && Instant::now() < end) {
        if Instant::now() > end {
            break;
        }
        exec(case)?;
        count += 1;
    }
    lines.set_limit(case.patience() + Duration::from_secs_f64(seconds));
    Ok(serde_json::from_str(&lines.until("{")?)?)
}

/// CVE-2016-3697: the bundle's passwd has a user named 1001 with uid 0.
fn numeric_name(case: &mut Case) -> Outcome {
    case.config["process"]["user"] = json!({"uid": 1001, "gid": 1001});
    assert_eq!(case.report()?["uid"]["effective"], 1001);
    case.config["process"]["user"] = json!({"uid": 0, "gid": 0});
    case.start_waiting()?;
    let report = case.exec(&["--user", "1001"], &["/probe"])?.success()?.json()?;
    assert_eq!(report["uid"], json!({"real": 1001, "effective": 1001, "saved": 1001, "filesystem": 1001}));
    Ok(())
}

/// CVE-2026-30892.
fn exec_user(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    for (flag, uid, gid) in [("0", 0, 0), ("1", 1, 0), ("1:", 1, 0), ("1:2", 1, 2), ("65534", 65534, 0), ("0:0", 0, 0)]
    {
        let end = case.exec(&["--user", flag], &["/probe"])?;
        if end.code != 0 {
            assert!(flag.ends_with(':'), "{flag}: {}", end.stderr);
            continue;
        }
        let report = end.json()?;
        let all = |id: i32| json!({"real": id, "effective": id, "saved": id, "filesystem": id});
        assert_eq!((&report["uid"], &report["gid"]), (&all(uid), &all(gid)), "{flag}");
    }
    Ok(())
}

/// CVE-2016-8867.
fn ambient(case: &mut Case) -> Outcome {
    case.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    case.config["process"]["noNewPrivileges"] = false.into();
    let none = "0000000000000000";
    let report = case.report()?;
    for set in ["ambient", "inheritable"] {
        assert_eq!(report["capabilities"][set], none, "{set}");
    }
    Ok(())
}

/// CVE-2022-29162, CVE-2022-27650, CVE-2022-24769, CVE-2025-27612.
fn inheritable(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    for user in ["0", "1000"] {
        let report = case.exec(&["--user", user, "--cap", "CAP_SYS_PTRACE"], &["/probe"])?.success()?.json()?;
        let sets = &report["capabilities"];
        assert_eq!(sets["inheritable"], "0000000000000000", "{user}");
        assert_eq!(sets["ambient"], "0000000000000000", "{user}");
    }
    assert_eq!(case.exec(&[], &["/probe"])?.json()?["capabilities"]["inheritable"], "0000000000000000");
    Ok(())
}

/// CVE-2019-5736. The program is the runtime itself, seen through the descriptor the kernel keeps of it.
fn own_executable(case: &mut Case) -> Outcome {
    let runtime = case.stage.runtime.path.clone();
    let before = hash(&runtime)?;
    for path in ["/proc/self/exe", "/proc/1/exe", "/proc/thread-self/exe"] {
        // It may fail or print a usage text: all that counts is the file.
        case.args(&[path, "--version"]).run()?;
        assert_eq!(hash(&runtime)?, before, "{path}");
    }
    Ok(())
}

fn exec_executable(case: &mut Case) -> Outcome {
    let runtime = case.stage.runtime.path.clone();
    let before = hash(&runtime)?;
    case.bundle.program("home/script", "#!/proc/self/exe\n")?;
    let told = under_attack(case, &["overwrite-executables"], |case| {
        case.exec(&[], &["/home/script"])?;
        case.exec(&[], &["/probe", "exit", "0"]).map(drop)
    })?;
    assert_eq!((&told["written"], hash(&runtime)?), (&json!(0), before), "{told}");
    Ok(())
}

/// CVE-2016-9962. The mark of the test's own environment is in every process of the host's side.
fn raided(case: &mut Case) -> Outcome {
    let mark = format!("{}=", super::super::case::MARK);
    let told =
        under_attack(case, &["raid", &mark], |case| case.exec(&[], &["/probe", "exit", "0"])?.success().map(drop))?;
    assert!(told["seen"].as_u64() > Some(0), "nobody was met: {told}");
    assert_eq!(told["loot"], json!({}));
    Ok(())
}

/// As 2016-9962, for what the process of the container itself would be without: a process that is attached to before its
/// filter is installed never gets one.
fn traced(case: &mut Case, forbidden: &str) -> Outcome {
    case.config["linux"]["seccomp"] = filter(forbidden, "SCMP_ACT_ERRNO", json!(1));
    // What lets its holder read any file must not open the way.
    let names = ["CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"];
    case.config["process"]["capabilities"] = json!({"bounding": names, "effective": names, "permitted": names});
    // One that was stopped in the middle may end as it likes.
    let told = under_attack(case, &["trace-newcomers"], |case| case.exec(&[], &["/probe", "sleep", "0.01"]).map(drop))?;
    assert!(told["filtered"].as_u64() > Some(0) || told["unfiltered"].as_u64() > Some(0), "nobody was met: {told}");
    assert_eq!(told["unfiltered"], 0, "{told}");
    assert!(!told["seen"].to_string().contains("/memfd:"), "the runtime's own program was had: {told}");
    Ok(())
}

/// CVE-2024-21626. A number that leads to a directory of the container itself does no harm; one of the host's does.
fn descriptor_cwd(case: &mut Case) -> Outcome {
    for number in 3..65 {
        case.config["process"]["cwd"] = format!("/proc/self/fd/{number}").into();
        let end = case.args(&["/probe", "list", "../../../../../.."]).run()?;
        assert!(end.code != 0, "{number}: {}", end.stdout);
    }
    Ok(())
}

fn exec_descriptor_cwd(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    for number in 3..65 {
        let end = case.exec(&["--cwd", &format!("/proc/self/fd/{number}")], &["/probe", "list", "."])?;
        assert!(end.code != 0, "{number}: {}", end.stdout);
    }
    Ok(())
}

/// CVE-2024-21626, the other half: what the caller left open is not the container's.
fn descriptors(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let command = case.command(&["run", "--bundle", &bundle, &id]);
    let mut leaky = super::super::output::inheriting(&command, &case.directory, 3..9)?;
    let report = case.finish(&mut leaky)?.success()?.json()?;
    let numbers: Vec<&String> = report["descriptors"].as_object().into_iter().flat_map(|table| table.keys()).collect();
    assert_eq!(numbers, ["0", "1", "2"]);
    Ok(())
}

/// CVE-2024-3154: annotations of the image's or the user's choice are no properties of a unit of the host's.
fn unit_properties(case: &mut Case) -> Outcome {
    let marker = case.directory.join("executed");
    let command = format!("[('/bin/touch', ['touch', '{}'], false)]", marker.display());
    case.config["annotations"] =
        json!({"org.systemd.property.ExecStopPost": command, "org.systemd.property.TimeoutStopUSec": "uint64 1"});
    let (bundle, id) = (case.write_config()?, case.id.clone());
    for manager in ["cgroupfs", "systemd"] {
        // Where there is no systemd, that is an error.
        case.call(&["--cgroup-manager", manager, "run", "--bundle", &bundle, &id])?;
        assert!(!fs::exists(&marker)?, "{manager}");
    }
    Ok(())
}
