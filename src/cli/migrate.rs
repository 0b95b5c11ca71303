//! `ferry migrate`: the row is `ferry`'s, what it does is linked into `ferry-image` alone.

mod plot;
mod progress;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, remove_file};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use clap::ArgMatches;

use super::checkpoint::{EXT_UNIX_SK, FILE_LOCKS, TCP_CLOSE, TCP_ESTABLISHED};
use super::globals::Globals;
use super::image::delegate;
use super::verb::{Arguments, CommandLine, Flag, Value, Verb};
use super::{duration, given, output, size};
use crate::error::{Context, Error, Result};
use crate::lifecycle::migrate::{self, MODES, ON_NO_CONVERGENCE, Options};
use crate::migrate::message::Choices;
use crate::migrate::report::Report;
use crate::migrate::rounds::Wishes;
use crate::migrate::source::NoConvergence;
use crate::migrate::tls;
use crate::migrate::transport::{Destination, Reach};
use progress::Shown;

/// `--timeout`, which `receive` has too.
pub const TIMEOUT: Flag = Flag {
    long: "timeout",
    value: Value::Text("TIME"),
    help: "Give up when the far end is silent for so long (default: 60s)",
    ..Flag::SWITCH
};

/// The row of `migrate`.
pub const VERB: Verb = Verb {
    name: "migrate",
    about: "Carry a running container to another machine",
    arguments: Arguments { usage: "ID DEST | plot REPORT", min: 1, max: 2, command: CommandLine::None },
    flags: &[
        Flag {
            long: "as",
            value: Value::Text("ID"),
            help: "Give the container this id at the destination (default: the one it has)",
            ..Flag::SWITCH
        },
        Flag {
            long: "bundle",
            value: Value::Path("DIR"),
            help: "Where its bundle is at the destination (default: where it is here)",
            ..Flag::SWITCH
        },
        Flag {
            long: "mode",
            value: Value::Words("pre-copy|stop-and-copy|post-copy|hybrid"),
            help: "When memory is sent: pre-copy (in rounds while the container runs, and the rest while it stands still; the \
                   default where the kernel can), stop-and-copy (all of it while it stands still), post-copy (after it has \
                   gone on there, when it is touched and in the background), hybrid (in rounds, and the rest after it has \
                   gone on)",
            ..Flag::SWITCH
        },
        Flag {
            long: "max-downtime",
            value: Value::Text("TIME"),
            help: "Stop the container when what is left takes no longer than this (default: 300ms)",
            ..Flag::SWITCH
        },
        Flag {
            long: "max-rounds",
            value: Value::Text("N"),
            help: "Stop it after so many rounds at the latest (default: 10)",
            ..Flag::SWITCH
        },
        Flag {
            long: "on-no-convergence",
            value: Value::Text("DEED"),
            help: "When the container writes faster than can be sent: stop it all the same (stop, the default), send the rest \
                   after it has gone on there (post-copy), or give up (abort)",
            ..Flag::SWITCH
        },
        Flag {
            long: "bandwidth",
            value: Value::Text("SIZE"),
            help: "Send at most this many bytes a second, such as 50M",
            ..Flag::SWITCH
        },
        Flag {
            long: "compress-level",
            value: Value::Text("N"),
            help: "Compress with this level of zstd, 1 to 19; 0 does not (default: 1 to 9, as the link is fast or slow)",
            ..Flag::SWITCH
        },
        TCP_ESTABLISHED,
        TCP_CLOSE,
        EXT_UNIX_SK,
        FILE_LOCKS,
        Flag {
            long: "remote",
            value: Value::Text("COMMAND"),
            help: "What calls ferry at the far end of ssh (default: ferry)",
            ..Flag::SWITCH
        },
        Flag {
            long: "tls",
            value: Value::Path("DIR"),
            help: "Where ca.pem, cert.pem and key.pem are, for tls:// (default: /etc/ferry/tls as root, ~/.config/ferry/tls else)",
            ..Flag::SWITCH
        },
        TIMEOUT,
        Flag { long: "dry-run", help: "Only ask the destination whether it could take the container", ..Flag::SWITCH },
        Flag {
            long: "recover",
            help: "Settle a migration of this container that was cut off, at either end",
            ..Flag::SWITCH
        },
        Flag {
            long: "discard",
            help: "With --recover: forget at this end a migration that only the other end could settle, which is gone for good",
            ..Flag::SWITCH
        },
        Flag {
            long: "progress",
            value: Value::Words("auto|json|none"),
            help: "Show progress on a terminal (auto, the default), as lines of json on standard output, or not (none)",
            ..Flag::SWITCH
        },
        Flag {
            long: "report",
            value: Value::Path("FILE"),
            help: "Write the final report there as JSON",
            ..Flag::SWITCH
        },
        Flag {
            long: "output",
            short: Some('o'),
            value: Value::Path("FILE"),
            help: "Where plot writes its picture, an SVG (default: standard output)",
            ..Flag::SWITCH
        },
    ],
    details: &[
        (
            "DESCRIPTION",
            "Moves a running container with its memory to another machine. DEST is one of\n\n    \
             ssh://[USER@]HOST[:PORT]   ssh calls `ferry receive --stdio` there; its keys decide who may\n    \
             exec:COMMAND               a command whose standard streams lead to `ferry receive --stdio`\n    \
             tls://HOST:PORT            a `ferry receive --listen --tls`, each end with a certificate the other believes\n    \
             tcp://127.0.0.1:PORT       a `ferry receive --listen` on this machine\n\n\
             In five steps. Reserve: the destination looks whether it could take the container, names everything that is in \
             the way, and holds the place. Pre-copy: memory is sent in rounds while the container runs, and what a \
             container of `ferry run --image` changes in its files. Stop and copy: it stands still, what differs by then is sent, and the \
             destination restores it and holds it. Commit: the source gives it up, \
             in a journal on its disk. Activate: it goes on at the destination, and what was here of it is removed.\n\n\
             Whatever fails before the commit, the container goes on here as if nothing had happened. After it, the \
             container is the destination's; here it stands still until the destination says that it runs there. Where that \
             was cut off, `ferry migrate --recover ID` settles it: at the source for both ends, at the destination as far \
             as it can be said there. At no moment do two run.\n\n\
             Where the other end is gone for good, or has forgotten the migration, --recover --discard at this one forgets what waits \
             for its word: at the source a migration that was undone and of which the destination could not be told, at the \
             destination a container that came and was not given up as far as is known, with its images. Discard there only what is \
             known to have stayed at the source: one that was given up meanwhile would stand still at the source, and nothing could \
             let it go on. A container that was given up is never let go on at the source without the destination's word.\n\n\
             With --mode post-copy and hybrid the container goes on at the destination before all of its memory is there: it \
             stands still for a short time however much that is, and then waits for each page that it touches and that has not \
             come. Until everything is there it needs both machines and what is between them. WHERE THAT IS CUT OFF IN THE \
             MEANTIME, THE CONTAINER IS LOST: it is ended at the destination, and never run again from what had come. At the source \
             it then still stands as it was when it went, paused, and is not run by itself: `ferry resume ID` lets it go on from \
             there, without what it has done since; `ferry delete --force ID` removes it. The destination takes a kernel with \
             userfaultfd. What may not come later, such as memory that processes share, goes while it stands still.\n\n\
             The destination has the same bundle: a config.json that is the same, and a root filesystem with the same \
             files, which are not sent. Standard streams that led to pipes or files here lead to files there: see \
             ferry-receive(1). The network is the bundle's: connections go along with --tcp-established where the address \
             does too, and are closed with --tcp-close.\n\n\
             `ferry migrate plot REPORT` draws the rounds of a report.",
        ),
        (
            "EXIT STATUS",
            "0 when the container runs at the destination, or was settled. 1 otherwise; it then runs here, unless the \
                         error says otherwise.",
        ),
        (
            "FILES",
            "/var/lib/ferry/migrations: journals and images, while a migration goes on and until it is settled; --store \
             before the verb names another place.",
        ),
        (
            "EXAMPLES",
            "    ferry migrate web ssh://root@b.example\n    ferry migrate --dry-run web ssh://root@b.example\n    \
             ferry migrate --max-downtime 100ms --bandwidth 100M --report web.json web ssh://b\n    \
             ferry migrate web tls://b.example:7000\n    ferry migrate plot web.json -o web.svg\n    ferry migrate --recover web",
        ),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// As [`migrate::migrate`].
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let (id, rest) = given::id_and_rest(matches)?;
    let destination = rest.into_iter().next();
    if id == "plot" && destination.as_deref().is_some_and(|word| !Destination::is_one(word)) {
        return plot::run(destination.unwrap_or_default().as_ref(), given::path(matches, "output"));
    }
    let reach = reach(matches)?;
    if given::switch(matches, "recover") {
        let discard = given::switch(matches, "discard");
        let told = migrate::recover(&globals.setting, &id, destination.as_deref(), &reach, discard)?;
        return output::print(&format!("{told}\n")).map(|()| 0);
    }
    if given::switch(matches, "discard") {
        return Err(Error::plain("--discard goes with --recover").hint("`ferry migrate --help` shows what it forgets"));
    }
    let Some(destination) = destination else {
        return Err(Error::plain("the destination is missing").hint("`ferry migrate --help` shows what it may be"));
    };
    let options = options(matches, id, destination, reach)?;
    let shown = given::text(matches, "progress");
    let mut progress = Shown::new(shown)?;
    // Before anything is sent: afterwards it is too late to stay.
    let kept = given::path(matches, "report").map(Kept::open).transpose()?;
    let migrated = migrate::migrate(&globals.setting, &options, &mut progress);
    let shown_all = progress.finish();
    let report = match (migrated, kept.as_ref()) {
        (Err(error), Some(kept)) => return Err(error.and_then(kept.undo())),
        (migrated, _) => migrated?,
    };
    let written = kept.map_or(Ok(()), |kept| kept.write(&report));
    let printed = match (shown, options.dry_run) {
        (Some("json"), _) => output::print_line(&report),
        (_, true) => output::print(&could(&report)),
        _ => output::print(&report.text()),
    };
    for error in [shown_all, written, printed].into_iter().filter_map(Result::err) {
        // The container runs there, whoever has heard of it.
        if !report.migrated {
            return Err(error);
        }
        globals.setting.log.warning(error);
    }
    Ok(0)
}

/// Where the report goes, open before there is one.
struct Kept<'a> {
    path: &'a Path,
    file: File,
    is_new: bool,
}

impl<'a> Kept<'a> {
    fn open(path: &'a OsStr) -> Result<Self> {
        let path = Path::new(path);
        let opened = OpenOptions::new().write(true).create_new(true).open(path);
        let is_new = opened.is_ok();
        // What is there already stays until there is something to take its place.
        let file = opened.or_else(|_| OpenOptions::new().write(true).create(true).truncate(false).open(path));
        Ok(Self { path, file: file.or_cannot("write", path.display())?, is_new })
    }

    fn write(mut self, report: &Report) -> Result<()> {
        let text = serde_json::to_string_pretty(report).unwrap_or_default();
        let is_file = self.file.metadata().is_ok_and(|found| found.is_file());
        let emptied = if is_file { self.file.set_len(0) } else { Ok(()) };
        emptied.and_then(|()| self.file.write_all(text.as_bytes())).or_cannot("write", self.path.display())
    }

    fn undo(&self) -> Result<()> {
        if self.is_new { remove_file(self.path).or_cannot("remove", self.path.display()) } else { Ok(()) }
    }
}

fn could(report: &Report) -> String {
    let notes: String = report.notes.iter().map(|note| format!("{note}\n")).collect();
    format!("{} could take {}: nothing was sent\n{notes}", report.host, report.id)
}

fn reach(matches: &ArgMatches) -> Result<Reach> {
    Ok(Reach {
        remote: given::string(matches, "remote").unwrap_or_else(|| "ferry".to_owned()),
        patience: time(matches, "timeout", Duration::from_secs(60))?,
        tls: given::absolute(matches, "tls")?.unwrap_or_else(tls::default_directory),
    })
}

fn one_of<T>(words: &[(&str, T)]) -> String {
    let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    format!("it is one of {}", words.join(", "))
}

/// A flag's time.
pub fn time(matches: &ArgMatches, flag: &str, otherwise: Duration) -> Result<Duration> {
    match given::text(matches, flag) {
        None => Ok(otherwise),
        Some(text) => duration::interval(text).map_err(|why| given::invalid(flag, text, why)),
    }
}

fn options(matches: &ArgMatches, id: String, destination: String, reach: Reach) -> Result<Options> {
    let mode = match given::text(matches, "mode") {
        None => None,
        Some(word) => match MODES.iter().find(|(known, _)| *known == word) {
            Some((_, mode)) => Some(*mode),
            None => return Err(given::invalid("mode", word, one_of(&MODES))),
        },
    };
    let on_no_convergence = match given::text(matches, "on-no-convergence") {
        None => NoConvergence::default(),
        Some(word) => match ON_NO_CONVERGENCE.iter().find(|(known, _)| *known == word) {
            Some((_, deed)) => *deed,
            None => return Err(given::invalid("on-no-convergence", word, one_of(&ON_NO_CONVERGENCE))),
        },
    };
    let max_rounds = given::number::<u32>(matches, "max-rounds")?.unwrap_or(10);
    if !(1..=1000).contains(&max_rounds) {
        return Err(given::invalid("max-rounds", &max_rounds.to_string(), "it is 1 to 1000"));
    }
    let level = given::number::<i32>(matches, "compress-level")?;
    if let Some(level) = level.filter(|level| !(0..=19).contains(level)) {
        return Err(given::invalid("compress-level", &level.to_string(), "it is 0 to 19"));
    }
    let bandwidth = given::text(matches, "bandwidth").map(|text| {
        let rate = size::bytes(text).map_err(|why| given::invalid("bandwidth", text, why))?.unsigned_abs();
        if rate == 0 { Err(given::invalid("bandwidth", text, "it must be greater than 0")) } else { Ok(rate) }
    });
    Ok(Options {
        id,
        destination,
        id_there: given::string(matches, "as"),
        bundle: given::absolute(matches, "bundle")?,
        mode,
        wishes: Wishes { max_downtime: time(matches, "max-downtime", Duration::from_millis(300))?, max_rounds },
        on_no_convergence,
        bandwidth: bandwidth.transpose()?,
        level,
        dry_run: given::switch(matches, "dry-run"),
        choices: Choices {
            tcp_established: given::switch(matches, "tcp-established"),
            tcp_close: given::switch(matches, "tcp-close"),
            ext_unix_sk: given::switch(matches, "ext-unix-sk"),
            file_locks: given::switch(matches, "file-locks"),
        },
        reach,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;
    use crate::lifecycle::migrate::Mode;

    fn parsed(line: &str) -> Result<Options> {
        let matches = matches(&VERB, line)?;
        options(&matches, "web".into(), "ssh://b".into(), reach(&matches)?)
    }

    #[test]
    fn flags_become_options() {
        let line = "--as other --bundle /b --mode stop-and-copy --max-downtime 50ms --max-rounds 3 --on-no-convergence abort \
                    --bandwidth 10M --compress-level 0 --tcp-established --tcp-close --ext-unix-sk --file-locks --dry-run \
                    --remote sudo_ferry --tls /t --timeout 5s web ssh://b";
        let expected = Options {
            id: "web".into(),
            destination: "ssh://b".into(),
            id_there: Some("other".into()),
            bundle: Some("/b".into()),
            mode: Some(Mode::StopAndCopy),
            wishes: Wishes { max_downtime: Duration::from_millis(50), max_rounds: 3 },
            on_no_convergence: NoConvergence::Abort,
            bandwidth: Some(10 << 20),
            level: Some(0),
            dry_run: true,
            choices: Choices { tcp_established: true, tcp_close: true, ext_unix_sk: true, file_locks: true },
            reach: Reach { remote: "sudo_ferry".into(), patience: Duration::from_secs(5), tls: "/t".into() },
        };
        assert_eq!(parsed(line).unwrap(), expected);
        let hybrid = parsed("--mode hybrid --on-no-convergence post-copy web ssh://b").unwrap();
        assert_eq!((hybrid.mode, hybrid.on_no_convergence), (Some(Mode::Hybrid), NoConvergence::PostCopy));
        let otherwise = parsed("web ssh://b").unwrap();
        assert_eq!((otherwise.mode, otherwise.level, otherwise.bandwidth), (None, None, None));
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_by_the_flags_name() {
        for (line, said) in [
            ("--mode x", "invalid value \"x\" for --mode: it is one of pre-copy, post-copy, hybrid, stop-and-copy"),
            ("--on-no-convergence x", "invalid value \"x\" for --on-no-convergence"),
            ("--max-rounds 0", "invalid value \"0\" for --max-rounds: it is 1 to 1000"),
            ("--compress-level 20", "invalid value \"20\" for --compress-level"),
            ("--bandwidth 0", "invalid value \"0\" for --bandwidth"),
            ("--max-downtime 0s", "invalid value \"0s\" for --max-downtime"),
        ] {
            let error = parsed(&format!("{line} web ssh://b")).unwrap_err().to_string();
            assert!(error.starts_with(said), "{line}: {error}");
        }
    }
}
