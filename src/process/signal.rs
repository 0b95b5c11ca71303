//! Signals by name and by number: the one table that `kill`, logs and records read.
//!
//! Source: signal(7). Numbers differ between architectures, so they are the C library's constants.

use crate::error::{Error, Result};

/// The standard signals; where two names share a number, the one to print stands first.
const SIGNALS: &[(&str, i32)] = &[
    ("SIGHUP", libc::SIGHUP),
    ("SIGINT", libc::SIGINT),
    ("SIGQUIT", libc::SIGQUIT),
    ("SIGILL", libc::SIGILL),
    ("SIGTRAP", libc::SIGTRAP),
    ("SIGABRT", libc::SIGABRT),
    ("SIGIOT", libc::SIGIOT),
    ("SIGBUS", libc::SIGBUS),
    ("SIGFPE", libc::SIGFPE),
    ("SIGKILL", libc::SIGKILL),
    ("SIGUSR1", libc::SIGUSR1),
    ("SIGSEGV", libc::SIGSEGV),
    ("SIGUSR2", libc::SIGUSR2),
    ("SIGPIPE", libc::SIGPIPE),
    ("SIGALRM", libc::SIGALRM),
    ("SIGTERM", libc::SIGTERM),
    ("SIGSTKFLT", libc::SIGSTKFLT),
    ("SIGCHLD", libc::SIGCHLD),
    ("SIGCLD", libc::SIGCHLD),
    ("SIGCONT", libc::SIGCONT),
    ("SIGSTOP", libc::SIGSTOP),
    ("SIGTSTP", libc::SIGTSTP),
    ("SIGTTIN", libc::SIGTTIN),
    ("SIGTTOU", libc::SIGTTOU),
    ("SIGURG", libc::SIGURG),
    ("SIGXCPU", libc::SIGXCPU),
    ("SIGXFSZ", libc::SIGXFSZ),
    ("SIGVTALRM", libc::SIGVTALRM),
    ("SIGPROF", libc::SIGPROF),
    ("SIGWINCH", libc::SIGWINCH),
    ("SIGIO", libc::SIGIO),
    ("SIGPOLL", libc::SIGPOLL),
    ("SIGPWR", libc::SIGPWR),
    ("SIGSYS", libc::SIGSYS),
];

/// The first real-time signal a program may use: the C library keeps 32 and 33 for its threads.
const RTMIN: i32 = 34;
/// The last real-time signal.
const RTMAX: i32 = 64;

/// The number of a signal given as `TERM`, `SIGTERM`, `sigterm`, `15`, `SIGRTMIN+3` or `RTMAX-1`. 0 is allowed: it is
/// kill(2)'s question whether the process is there.
///
/// # Errors
/// No such name, or a number outside 0 to 64.
pub fn number(given: &str) -> Result<i32> {
    let unknown = || Error::plain(format!("unknown signal {given:?}")).hint("`kill -l` lists the signals");
    if let Ok(number) = given.parse::<i32>() {
        return if (0..=RTMAX).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = given.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let standard = SIGNALS.iter().find(|(name, _)| name.strip_prefix("SIG") == Some(short));
    standard.map(|(_, number)| *number).or_else(|| real_time(short)).ok_or_else(unknown)
}

/// `RTMIN`, `RTMIN+n`, `RTMAX`, `RTMAX-n`.
fn real_time(short: &str) -> Option<i32> {
    let number = match (short.strip_prefix("RTMIN"), short.strip_prefix("RTMAX")) {
        (Some(""), _) => RTMIN,
        (_, Some("")) => RTMAX,
        (Some(rest), _) => RTMIN.checked_add(digits(rest.strip_prefix('+')?)?)?,
        (_, Some(rest)) => RTMAX.checked_sub(digits(rest.strip_prefix('-')?)?)?,
        (None, None) => return None,
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// A count without a sign of its own: `RTMIN+-1` is not a signal.
fn digits(text: &str) -> Option<i32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// The name of a signal, `SIGTERM`; a number without one is `signal 33`.
pub fn name(number: i32) -> String {
    match SIGNALS.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => (*name).to_owned(),
        None if number == RTMIN => "SIGRTMIN".to_owned(),
        None if (RTMIN..=RTMAX).contains(&number) => format!("SIGRTMIN+{}", number - RTMIN),
        None => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_sig_in_any_case_and_numbers() {
        for given in ["TERM", "SIGTERM", "sigterm", "term", "15"] {
            assert_eq!(number(given).unwrap(), libc::SIGTERM, "{given}");
        }
        assert_eq!(number("0").unwrap(), 0);
        assert_eq!(number("SIGCLD").unwrap(), libc::SIGCHLD);
    }

    #[test]
    fn real_time_signals_count_from_both_ends() {
        assert_eq!(number("SIGRTMIN").unwrap(), 34);
        assert_eq!(number("rtmin+3").unwrap(), 37);
        assert_eq!(number("SIGRTMAX-1").unwrap(), 63);
        assert_eq!(number("RTMAX").unwrap(), 64);
        for wrong in ["RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMIN+", "RTMIN+-1", "RTMAX-40", "RTMIN+99999999999"] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_signal_is_refused_with_a_way_out() {
        for wrong in ["", "SIG", "NOPE", "SIGSIGTERM", "65", "-9", "9.0"] {
            let error = number(wrong).unwrap_err().to_string();
            assert_eq!(error, format!("unknown signal {wrong:?} (hint: `kill -l` lists the signals)"));
        }
    }

    #[test]
    fn every_number_up_to_the_last_can_be_read_back_from_its_name() {
        for signal in (1..=RTMAX).filter(|signal| !(32..RTMIN).contains(signal)) {
            assert_eq!(number(&name(signal)).unwrap(), signal);
        }
        assert_eq!(name(libc::SIGABRT), "SIGABRT");
        assert_eq!(name(33), "signal 33");
    }
}
