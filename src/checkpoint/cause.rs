//! Why CRIU failed: the lines of its log that say so, and what can be done about it.
//!
//! CRIU's answer over the socket is a bare no; the reason stands in its log, of which the first error is nearly always the
//! cause and the others its consequences. The log is of a fixed form: `(seconds) pid: Error (file:line): text`.

use std::path::Path;

use crate::error::Error;

/// The most of a log that is read, from its end. Bytes.
const LONGEST: u64 = 1 << 20;

/// How many causes are shown.
const SHOWN: usize = 3;

/// Errors that end nothing.
const HARMLESS: [&str; 2] = ["rlimit: Can't setup", "cgroupd: recv req error"];

/// Errors that only say that something failed before, unless they are the first.
const CONSEQUENCES: [&str; 6] =
    ["FAILED", "failed with -1", "Unable to open fd=", "RPC client reported", "killed by signal 9", "exited, status="];

/// What is said, and the way out. The first row that fits is taken.
const WAYS_OUT: [(&str, &str); 27] = [
    (
        "opt: Operation not supported",
        "this CRIU does not know the sockets of this kernel: install a newer one, 4.2 or later",
    ),
    ("Connected TCP socket", "--tcp-established keeps established connections, at both ends of the way"),
    ("In-flight connection", "--tcp-skip-in-flight leaves out connections that are still being made"),
    ("--ext-unix-sk", "a UNIX socket leads out of the container: --ext-unix-sk allows it"),
    ("without peer", "a UNIX socket leads out of the container's network namespace, where CRIU does not find its peer"),
    ("External socket is used", "a UNIX socket leads out of the container: --ext-unix-sk allows it"),
    ("--shell-job", "a terminal is from outside: give --shell-job, or run the container with process.terminal"),
    ("dangling tty", "a terminal is from outside: give --shell-job, or run the container with process.terminal"),
    ("file locks", "--file-locks keeps file locks, at both ends of the way"),
    ("link-remap", "an open file has no name any more: --link-remap gives it one for the time"),
    ("io_uring", "CRIU cannot dump io_uring: have the program use another way of input and output"),
    ("userfaultfd", "CRIU cannot dump userfaultfd"),
    ("perf_event", "CRIU cannot dump performance counters"),
    ("Can't lookup mount", "a file is open that is on none of the container's mounts"),
    ("iptables", "install iptables, or choose --network-lock nftables or skip"),
    ("nftables", "install nftables, or choose --network-lock iptables or skip"),
    ("has unreachable sharing", "make the mount a slave of none: option rprivate"),
    ("No mapping for", "the bundle's config.json must have the same mounts as when the container was dumped"),
    (
        "has bad size",
        "a file is not as it was in the dump: the root filesystem, or where a standard stream leads (append to it)",
    ),
    ("has bad mode", "the root filesystem is not the one the container was dumped with"),
    ("Can't open file", "the root filesystem is not the one the container was dumped with"),
    ("do not match expected", "its process ids are taken here: give the container a pid namespace"),
    ("Address already in use", "an address of the container's is taken here"),
    ("Can't bind inet socket back", "the network must have the addresses it had when the container was dumped"),
    ("soft-dirty", "this kernel does not track memory: checkpoint without --pre-dump and --parent-path"),
    ("Can't get rlimit", "CRIU needs CAP_SYS_RESOURCE to save processes of other users than its own"),
    ("Nested", "CRIU cannot dump a container in a container"),
];

/// The error of a dump or restore that CRIU could not do; `log` is its log, `errno` what it answered.
pub fn error(deed: &'static str, object: &str, log: &Path, errno: Option<i32>) -> Error {
    let text = tail(log);
    let causes = causes(&text);
    let why = match (causes.is_empty(), errno.filter(|errno| *errno != 0)) {
        (false, _) => format!("CRIU: {}", causes.join("; ")),
        (true, Some(errno)) => format!("CRIU answers {:?}", nix::errno::Errno::from_raw(errno)),
        (true, None) => "CRIU gives no reason".to_owned(),
    };
    let whole = format!("its log is {}, and has all that it did with --debug before the verb", log.display());
    let hint = match way_out(&text) {
        Some(way) => format!("{way}; {whole}"),
        None => whole,
    };
    Error::said(deed, object.to_owned(), why).hint(hint)
}

fn tail(log: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LONGEST)))?;
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // No log is no reason, which is what is then said.
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The texts of errors, each once, first things first.
fn causes(log: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for said in log.lines().filter_map(said) {
        let is_none = HARMLESS.iter().any(|word| said.contains(word))
            || !found.is_empty() && CONSEQUENCES.iter().any(|word| said.contains(word));
        if !is_none && !found.contains(&said) && found.len() < SHOWN {
            found.push(said);
        }
    }
    found
}

/// What an error says, with the process it says it of.
fn said(line: &str) -> Option<String> {
    let (before, after) = line.split_once("Error (")?;
    let (_, text) = after.split_once("): ")?;
    let text: String = text.trim().chars().filter(|letter| !letter.is_control()).take(300).collect();
    let pid = before.rsplit_once(')').map_or(before, |(_, pid)| pid).trim().trim_end_matches(':');
    Some(if pid.is_empty() { text } else { format!("process {pid}: {text}") })
}

fn way_out(log: &str) -> Option<&'static str> {
    let mut errors = log.lines().filter(|line| line.contains("Error ("));
    errors.find_map(|line| WAYS_OUT.iter().find(|(word, _)| line.contains(word))).map(|(_, way)| *way)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
(00.012001) Dumping path for 3 fd via self 8 [/x]
(00.012345)     23: Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established option.
(00.012346)     23: Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established option.
(00.012400) Error (criu/cr-dump.c:1669): Dump files (pid: 23) failed with -1
(00.013000) Error (criu/cr-dump.c:2128): Dumping FAILED.
";

    #[test]
    fn the_first_error_is_the_cause() {
        let found = causes(LOG);
        assert_eq!(found, ["process 23: inet: Connected TCP socket, consider using --tcp-established option."]);
        assert!(way_out(LOG).unwrap().starts_with("--tcp-established"));
    }

    #[test]
    fn consequences_are_better_than_nothing_and_nothing_is_said_so() {
        assert_eq!(causes("(00.1) Error (criu/cr-dump.c:1): Dumping FAILED.\n"), ["Dumping FAILED."]);
        let harmless = "(00.1) Error (criu/util.c:1): rlimit: Can't setup RLIMIT_NOFILE for self: no\n";
        assert_eq!(causes(harmless), Vec::<String>::new());
        let error = error("checkpoint container", "\"web\"", Path::new("/none/dump.log"), Some(2)).to_string();
        assert_eq!(
            error,
            "cannot checkpoint container \"web\": CRIU answers ENOENT (hint: its log is /none/dump.log, and has all that it did with --debug before the verb)"
        );
    }

    /// Names of files are the container's own choice, and stand in the log.
    #[test]
    fn a_log_cannot_speak_to_the_terminal() {
        let line = "(00.1) Error (criu/x.c:1): Can't lookup mount=4 for fd=1 path=/\u{1b}[2J\u{7}evil";
        assert_eq!(said(line).unwrap(), "Can't lookup mount=4 for fd=1 path=/[2Jevil");
        assert!(said("(00.1) Error (criu/x.c:1)").is_none());
    }
}
