//! What a process sees of itself and of its surroundings, as one JSON object.
//!
//! Everything is best effort: what cannot be read (a container need not have `/proc`) is null, and the test that cares
//! says so.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Map, Value, json};

use crate::kernel;

const NAMESPACES: &[&str] = &["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

const RLIMITS: &[(&str, u32)] = &[
    ("RLIMIT_AS", libc::RLIMIT_AS),
    ("RLIMIT_CORE", libc::RLIMIT_CORE),
    ("RLIMIT_CPU", libc::RLIMIT_CPU),
    ("RLIMIT_DATA", libc::RLIMIT_DATA),
    ("RLIMIT_FSIZE", libc::RLIMIT_FSIZE),
    ("RLIMIT_LOCKS", libc::RLIMIT_LOCKS),
    ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK),
    ("RLIMIT_MSGQUEUE", libc::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", libc::RLIMIT_NICE),
    ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE),
    ("RLIMIT_NPROC", libc::RLIMIT_NPROC),
    ("RLIMIT_RSS", libc::RLIMIT_RSS),
    ("RLIMIT_RTPRIO", libc::RLIMIT_RTPRIO),
    ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME),
    ("RLIMIT_SIGPENDING", libc::RLIMIT_SIGPENDING),
    ("RLIMIT_STACK", libc::RLIMIT_STACK),
];

/// The whole report. `descriptors` is given, since it has to be taken before anything else is opened.
pub fn report(descriptors: Value) -> Value {
    let status = status();
    json!({
        "uid": ids(&status, "Uid"),
        "gid": ids(&status, "Gid"),
        "groups": numbers(&status, "Groups"),
        "umask": status.get("Umask"),
        "capabilities": capabilities(&status),
        "no_new_privs": status.get("NoNewPrivs").map(|flag| flag == "1"),
        "seccomp": status.get("Seccomp"),
        "seccomp_filters": status.get("Seccomp_filters"),
        "signals": json!({"blocked": status.get("SigBlk"), "ignored": status.get("SigIgn")}),
        "dumpable_owner": owner("/proc/self/stat"),
        "cwd": std::env::current_dir().ok(),
        "hostname": word("/proc/sys/kernel/hostname"),
        "domainname": word("/proc/sys/kernel/domainname"),
        "args": std::env::args().collect::<Vec<_>>(),
        "env": std::env::vars().collect::<BTreeMap<_, _>>(),
        "rlimits": rlimits(),
        "namespaces": namespaces(),
        "uid_map": id_map("/proc/self/uid_map"),
        "gid_map": id_map("/proc/self/gid_map"),
        "setgroups": word("/proc/self/setgroups"),
        "mounts": mounts(),
        "descriptors": descriptors,
        "oom_score_adj": number("/proc/self/oom_score_adj"),
        "personality": kernel::syscall(libc::SYS_personality, &[0xffff_ffff]).ok(),
        "scheduler": kernel::syscall(libc::SYS_sched_getscheduler, &[0]).ok(),
        "sched_attr": kernel::sched_attr().ok().map(|attr| json!({
            "policy": attr.policy, "flags": attr.flags, "nice": attr.nice, "priority": attr.priority,
            "runtime": attr.runtime, "deadline": attr.deadline, "period": attr.period,
        })),
        // The raw call answers 20 - nice, so that it is never negative.
        "nice": kernel::syscall(libc::SYS_getpriority, &[0, 0]).ok().map(|answer| 20 - answer),
        "cpus": status.get("Cpus_allowed_list"),
        "io_priority": kernel::syscall(libc::SYS_ioprio_get, &[1, 0]).ok(),
        "exe": link("/proc/self/exe"),
        "comm": word("/proc/self/comm"),
        "cgroup": fs::read_to_string("/proc/self/cgroup").ok().map(|text| lines(&text)),
        "lsm": word("/proc/self/attr/current"),
        "time_offsets": fs::read_to_string("/proc/self/timens_offsets").ok().map(|text| lines(&text)),
        "session_keyring": kernel::session_keyring().ok(),
        "terminal": terminal(),
        "processes": processes(),
        "pid": std::process::id(),
        "ppid": numbers(&status, "PPid").first(),
        "sid": kernel::syscall(libc::SYS_getsid, &[0]).ok(),
        "pgid": kernel::syscall(libc::SYS_getpgid, &[0]).ok(),
    })
}

/// Open descriptors by number, each with what it leads to. The one used for looking is left out.
pub fn descriptors() -> Value {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return Value::Null };
    let mut table = Map::new();
    for entry in entries.flatten() {
        let target = fs::read_link(entry.path()).map(|path| path.to_string_lossy().into_owned());
        let own = format!("/proc/{}/fd", std::process::id());
        if !target.as_ref().is_ok_and(|target| *target == own) {
            table.insert(entry.file_name().to_string_lossy().into_owned(), json!(target.ok()));
        }
    }
    Value::Object(table)
}

/// `/proc/self/status` as a map from field to text.
fn status() -> BTreeMap<String, String> {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect()
}

/// Real, effective, saved and filesystem id.
fn ids(status: &BTreeMap<String, String>, field: &str) -> Value {
    let ids = numbers(status, field);
    let at = |i: usize| ids.get(i).copied();
    json!({"real": at(0), "effective": at(1), "saved": at(2), "filesystem": at(3)})
}

fn numbers(status: &BTreeMap<String, String>, field: &str) -> Vec<u64> {
    let text = status.get(field).map(String::as_str).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The five sets, each as the kernel's sixteen hexadecimal digits.
fn capabilities(status: &BTreeMap<String, String>) -> Value {
    json!({
        "inheritable": status.get("CapInh"),
        "permitted": status.get("CapPrm"),
        "effective": status.get("CapEff"),
        "bounding": status.get("CapBnd"),
        "ambient": status.get("CapAmb"),
    })
}

fn rlimits() -> Value {
    let row = |(name, number): &(&str, u32)| {
        let (soft, hard) = kernel::rlimit(*number).ok()?;
        Some(((*name).to_owned(), json!({"soft": soft, "hard": hard})))
    };
    Value::Object(RLIMITS.iter().filter_map(row).collect())
}

fn namespaces() -> Value {
    let row = |name: &&str| Some(((*name).to_owned(), json!(link(&format!("/proc/self/ns/{name}"))?)));
    Value::Object(NAMESPACES.iter().filter_map(row).collect())
}

/// Rows of `inside outside size`.
fn id_map(path: &str) -> Value {
    let Ok(text) = fs::read_to_string(path) else { return Value::Null };
    let row = |line: &str| line.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u64>>();
    json!(text.lines().map(row).collect::<Vec<_>>())
}

/// The mount table, in the kernel's order; see proc_pid_mountinfo(5).
fn mounts() -> Value {
    let Ok(text) = fs::read_to_string("/proc/self/mountinfo") else { return Value::Null };
    Value::Array(text.lines().filter_map(mount).collect())
}

fn mount(line: &str) -> Option<Value> {
    let (head, tail) = line.split_once(" - ")?;
    let head: Vec<&str> = head.split(' ').collect();
    let tail: Vec<&str> = tail.split(' ').collect();
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    Some(json!({
        "id": head.first()?, "parent": head.get(1)?, "device": head.get(2)?,
        "root": unescape(head.get(3)?), "point": unescape(head.get(4)?),
        "options": list(head.get(5)?), "propagation": head.get(6..)?,
        "type": tail.first()?, "source": unescape(tail.get(1)?), "super": list(tail.get(2)?),
    }))
}

/// The kernel writes blanks and backslashes in a path as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

fn terminal() -> Value {
    let window = kernel::window(0).ok();
    json!({
        "is_terminal": [kernel::is_terminal(0), kernel::is_terminal(1), kernel::is_terminal(2)],
        "rows": window.map(|(rows, _)| rows), "columns": window.map(|(_, columns)| columns),
        "name": link("/proc/self/fd/0"),
        // Opening /dev/tty succeeds only with a controlling terminal.
        "controlling": fs::File::open("/dev/tty").is_ok(),
    })
}

/// The pids that `/proc` shows.
fn processes() -> Value {
    let Ok(entries) = fs::read_dir("/proc") else { return Value::Null };
    let mut pids: Vec<u32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    json!(pids)
}

/// Uid of a file's owner; of a /proc file, 0 where the process is not dumpable.
fn owner(path: &str) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|metadata| metadata.uid())
}

fn link(path: &str) -> Option<String> {
    Some(fs::read_link(path).ok()?.to_string_lossy().into_owned())
}

fn word(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim_end_matches(['\n', '\0']).to_owned())
}

fn number(path: &str) -> Option<i64> {
    word(path)?.parse().ok()
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}
