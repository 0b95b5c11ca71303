//! `ferry checkpoint`.

use std::path::PathBuf;

use clap::ArgMatches;

use self::progress::{PROGRESS, Shown};
use super::globals::Globals;
use super::image::delegate;
use super::verb::{Arguments, CommandLine, Flag, Value, Verb};
use super::{given, output, size};
use crate::checkpoint::dump::{Choice, DumpChoice};
use crate::checkpoint::progress::Progress;
use crate::checkpoint::rpc::{CGROUPS_MODES, NETWORK_LOCKS};
use crate::checkpoint::saved::{self, Saved};
use crate::error::{Error, Result};
use crate::lifecycle;

pub mod progress;

/// `--recipient`, of an export.
pub const RECIPIENT: Flag = Flag {
    long: "recipient",
    value: Value::Text("KEY|FILE"),
    many: true,
    help: "Encrypt the archive to this age key, age1..., or to those in this file",
    ..Flag::SWITCH
};
/// `--identity`, of whatever reads an archive.
pub const IDENTITY: Flag = Flag {
    long: "identity",
    value: Value::Path("FILE"),
    many: true,
    help: "Decrypt the archive with a key in this file, as age-keygen makes them",
    ..Flag::SWITCH
};
/// `--image-path`, which `checkpoint` and `restore` share, as all below.
pub const IMAGE_PATH: Flag = Flag {
    long: "image-path",
    value: Value::Path("DIR"),
    help: "The directory of the images (default: checkpoint in the working directory)",
    ..Flag::SWITCH
};
/// `--work-path`.
pub const WORK_PATH: Flag = Flag {
    long: "work-path",
    value: Value::Path("DIR"),
    help: "The directory of logs and of what is there only meanwhile (default: that of the images)",
    ..Flag::SWITCH
};
/// `--tcp-established`.
pub const TCP_ESTABLISHED: Flag =
    Flag { long: "tcp-established", help: "Keep established TCP connections", ..Flag::SWITCH };
/// `--tcp-close`.
pub const TCP_CLOSE: Flag =
    Flag { long: "tcp-close", help: "Close TCP connections that were established", ..Flag::SWITCH };
/// `--ext-unix-sk`.
pub const EXT_UNIX_SK: Flag =
    Flag { long: "ext-unix-sk", help: "Allow UNIX sockets that lead out of the container", ..Flag::SWITCH };
/// `--shell-job`.
pub const SHELL_JOB: Flag =
    Flag { long: "shell-job", help: "Allow processes on a terminal from outside", ..Flag::SWITCH };
/// `--file-locks`.
pub const FILE_LOCKS: Flag = Flag { long: "file-locks", help: "Keep file locks", ..Flag::SWITCH };
/// `--auto-dedup`.
pub const AUTO_DEDUP: Flag =
    Flag { long: "auto-dedup", help: "Free pages in the images that later ones have again", ..Flag::SWITCH };
/// `--lazy-pages`.
pub const LAZY_PAGES: Flag =
    Flag { long: "lazy-pages", help: "Leave memory where it is until it is asked for", ..Flag::SWITCH };
/// `--status-fd`.
pub const STATUS_FD: Flag = Flag {
    long: "status-fd",
    value: Value::Text("N"),
    help: "Write a NUL to this descriptor when pages can be asked for",
    ..Flag::SWITCH
};
/// `--manage-cgroups-mode`.
pub const MANAGE_CGROUPS_MODE: Flag = Flag {
    long: "manage-cgroups-mode",
    value: Value::Words("soft|full|strict|ignore"),
    help: "How much of the container's own cgroups is restored (default: soft)",
    ..Flag::SWITCH
};
/// `--empty-ns`.
pub const EMPTY_NS: Flag = Flag {
    long: "empty-ns",
    value: Value::Words("network"),
    many: true,
    help: "Leave the content of this namespace alone; that of network always is",
    ..Flag::SWITCH
};
/// `--network-lock`.
pub const NETWORK_LOCK: Flag = Flag {
    long: "network-lock",
    value: Value::Words("iptables|nftables|skip"),
    help: "How connections are kept still meanwhile (default: iptables where it is installed)",
    ..Flag::SWITCH
};

/// The row of `checkpoint`.
pub const VERB: Verb = Verb {
    name: "checkpoint",
    about: "Save a running container's state to files",
    arguments: Arguments { usage: "ID | inspect FILE", min: 1, max: 2, command: CommandLine::None },
    flags: &[
        Flag {
            long: "export",
            value: Value::Path("FILE"),
            help: "Save it in one file, an archive; - is standard output",
            ..Flag::SWITCH
        },
        RECIPIENT,
        Flag { help: "For inspect: decrypt the archive with a key in this file", ..IDENTITY },
        Flag {
            long: "format",
            value: Value::Words("text|json"),
            help: "Print, as text or json, how much was saved; for inspect: how to print (default: text)",
            ..Flag::SWITCH
        },
        IMAGE_PATH,
        WORK_PATH,
        Flag {
            long: "parent-path",
            value: Value::Path("DIR"),
            help: "Images of a pre-dump that these build on, relative to --image-path",
            ..Flag::SWITCH
        },
        Flag { long: "leave-running", help: "Let the container go on afterwards", ..Flag::SWITCH },
        Flag {
            long: "pre-dump",
            help: "Save the memory only, so that the dump after it has less to do; the container goes on",
            ..Flag::SWITCH
        },
        TCP_ESTABLISHED,
        Flag {
            long: "tcp-skip-in-flight",
            help: "Leave out TCP connections that are still being made",
            ..Flag::SWITCH
        },
        TCP_CLOSE,
        EXT_UNIX_SK,
        SHELL_JOB,
        FILE_LOCKS,
        Flag { long: "link-remap", help: "Give open files without a name one for the time", ..Flag::SWITCH },
        LAZY_PAGES,
        STATUS_FD,
        Flag {
            long: "page-server",
            value: Value::Text("ADDRESS:PORT"),
            help: "Send the memory to a page server; with --lazy-pages: be one there",
            ..Flag::SWITCH
        },
        MANAGE_CGROUPS_MODE,
        EMPTY_NS,
        AUTO_DEDUP,
        NETWORK_LOCK,
        PROGRESS,
    ],
    details: &[
        (
            "DESCRIPTION",
            "Saves everything a running or paused container is, by way of CRIU: its processes with their memory, files, \
             sockets, terminals, timers and so on. Unless it is told to go on, the container is gone afterwards, and \
             `ferry restore` brings it back from the images and the same bundle. Processes that `ferry exec` brought in are not \
             saved; a warning names them. The root filesystem is not part of the \
             images: what the container wrote there must be there again. A container of `ferry run --image` or `--rootfs` has a \
             root of its own, and what it changed there is saved too, beside the images as rootfs-diff.tar; so are its \
             configuration, and what is below: the image's layers by digest, or the directory.\n\nImages are CRIU's own, so that runc restores \
             what ferry saves and the other way round. Options for CRIU itself are read from the file that the \
             annotation org.criu.config names, else from /etc/criu/ferry.conf or /etc/criu/runc.conf.\n\nAn archive is one \
             file with all of them, each with its digest, and with what is to be known of this host; it comes into being \
             whole or not at all. `ferry restore --import` restores from it, here or on another host. If a container has been \
             saved and its archive cannot be written, its images stay where the error says. `ferry checkpoint inspect` \
             verifies an archive, and shows its processes, mounts and sockets. Memory has secrets in it: with --recipient, once or \
             often, an archive can be read by those alone who have one of the keys, by way of --identity. The format is that of \
             age, which encrypts and decrypts archives as well as ferry; it does not tell who made one.\n\nWhen a checkpoint fails or is interrupted, \
             the container goes on as before.\n\nOf pre-dumps in a row, each with the one before it as --parent-path, --format tells how \
             fast the container writes to its memory, and how long it would stand still for the dump after them.\n\nOn a terminal a line tells how far \
             it is. With --progress json each line on standard error is an event: a step (freeze, dump, saved, digest, pack), the bytes done in \
             it, and done.",
        ),
        ("EXIT STATUS", "0 when everything is saved, 1 otherwise."),
        (
            "EXAMPLES",
            "    ferry checkpoint --image-path /srv/save web\n    ferry checkpoint --leave-running --image-path /srv/save \
             web\n    ferry checkpoint --pre-dump --image-path /srv/save/1 web\n    ferry checkpoint --parent-path ../1 \
             --image-path /srv/save/2 web\n    ferry checkpoint --export web.ferry web\n    ferry checkpoint inspect web.ferry\n    \
             ferry checkpoint --export web.ferry --recipient keys.txt web",
        ),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    if inspected(matches)?.is_some() || given::path(matches, "export").is_some() {
        return delegate::run(globals, matches);
    }
    for flag in [RECIPIENT.long, IDENTITY.long] {
        if matches.contains_id(flag) {
            return Err(Error::plain(format!("--{flag} is for archives: see --export and inspect")));
        }
    }
    let setting = &globals.setting;
    // What is not understood is said before a container is looked for.
    options(matches, false)?;
    Shown::new(given::text(matches, PROGRESS.long))?;
    if !given::switch(matches, "pre-dump") && lifecycle::checkpoint::has_own_root(setting, &given::id(matches)?)? {
        return delegate::run(globals, matches);
    }
    save(globals, matches, &|id, choice, progress| lifecycle::checkpoint::checkpoint(setting, id, choice, progress))
}

/// What saves a container.
pub type Deed<'a> = dyn Fn(&str, &DumpChoice, &dyn Progress) -> Result<()> + 'a;

/// Does something while its progress is shown.
///
/// # Errors
/// A value that is none; as `deed`.
pub fn shown<T>(matches: &ArgMatches, deed: impl FnOnce(&dyn Progress) -> Result<T>) -> Result<T> {
    let shown = Shown::new(given::text(matches, PROGRESS.long))?;
    let done = deed(&shown);
    shown.finish(done.is_ok());
    done
}

/// Saves a container by `deed`, and says how much was saved.
///
/// # Errors
/// A value that is none; as `deed`.
pub fn save(globals: &Globals, matches: &ArgMatches, deed: &Deed<'_>) -> Result<u8> {
    let choice = options(matches, globals.setting.log.debugs())?;
    // Before anything is done.
    let is_json = given::text(matches, "format").map(|format| output::is_json(Some(format), "text")).transpose()?;
    shown(matches, |progress| deed(&given::id(matches)?, &choice, progress))?;
    match is_json {
        Some(true) => output::print_line(&saved::read(&choice)?)?,
        Some(false) => output::print(&text(&saved::read(&choice)?))?,
        None => (),
    }
    Ok(0)
}

fn text(saved: &Saved) -> String {
    let mut lines = vec![
        format!("saved        {}", size::text(saved.bytes)),
        format!("stood still  {:.1} ms", saved.frozen_milliseconds),
    ];
    if let (Some(rate), Some(estimate)) = (saved.dirty_rate, saved.estimated_milliseconds) {
        lines.insert(1, format!("unchanged    {}", size::text(saved.unchanged_bytes)));
        lines.push(format!("written to   {} a second", size::text(rate as u64)));
        lines.push(format!("last dump    about {estimate:.1} ms of standstill"));
    }
    lines.join("\n") + "\n"
}

/// The archive to be looked at, where that is what is asked for.
///
/// # Errors
/// Two arguments of which the first is no `inspect`.
pub fn inspected(matches: &ArgMatches) -> Result<Option<PathBuf>> {
    match &given::arguments(matches)?[..] {
        [inspect, file] if inspect == "inspect" => Ok(Some(PathBuf::from(file))),
        [_, _] => Err(Error::plain("\"checkpoint\" requires exactly 1 argument(s)")),
        _ => Ok(None),
    }
}

/// What the flags choose; `verbose` is `--debug`.
///
/// # Errors
/// A value that is none.
pub fn options(matches: &ArgMatches, verbose: bool) -> Result<DumpChoice> {
    Ok(DumpChoice {
        choice: choice(matches, verbose)?,
        parent: given::path(matches, "parent-path").map(PathBuf::from),
        leave_running: given::switch(matches, "leave-running"),
        pre_dump: given::switch(matches, "pre-dump"),
        track: false,
        tcp_skip_in_flight: given::switch(matches, "tcp-skip-in-flight"),
        link_remap: given::switch(matches, "link-remap"),
        page_server: given::text(matches, "page-server").map(page_server).transpose()?,
    })
}

/// What `checkpoint` and `restore` have in common.
pub fn choice(matches: &ArgMatches, verbose: bool) -> Result<Choice> {
    let images = match given::absolute(matches, "image-path")? {
        Some(images) => images,
        None => lifecycle::restore::default_images()?,
    };
    if let Some(other) = given::strings(matches, "empty-ns").iter().find(|kind| *kind != "network") {
        return Err(given::invalid("empty-ns", other, "only network can be left alone"));
    }
    Ok(Choice {
        images,
        work: given::absolute(matches, "work-path")?,
        verbose,
        tcp_established: given::switch(matches, "tcp-established"),
        tcp_close: given::switch(matches, "tcp-close"),
        ext_unix_sk: given::switch(matches, "ext-unix-sk"),
        shell_job: given::switch(matches, "shell-job"),
        file_locks: given::switch(matches, "file-locks"),
        auto_dedup: given::switch(matches, "auto-dedup"),
        lazy_pages: given::switch(matches, "lazy-pages"),
        cgroups_mode: word(matches, "manage-cgroups-mode", &CGROUPS_MODES)?,
        network_lock: word(matches, "network-lock", &NETWORK_LOCKS)?,
        // -1 is runc's way to say none.
        status_fd: given::number::<i32>(matches, "status-fd")?.filter(|number| *number != -1),
    })
}

/// A flag's word, by the table of its words.
fn word<T: Copy>(matches: &ArgMatches, flag: &str, words: &[(&str, T)]) -> Result<Option<T>> {
    let Some(text) = given::text(matches, flag) else { return Ok(None) };
    match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(Some(*value)),
        None => {
            let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            Err(given::invalid(flag, text, format_args!("it is one of {}", all.join(", "))))
        }
    }
}

fn page_server(text: &str) -> Result<(String, u16)> {
    let wrong = || Error::plain(format!("invalid value {text:?} for --page-server: it is ADDRESS:PORT"));
    let (address, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    // An IPv6 address stands in brackets.
    let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    match port.parse() {
        Ok(port) if port > 0 && !address.is_empty() => Ok((address.to_owned(), port)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::rpc::{CgroupsMode, NetworkLock};
    use crate::cli::matches;

    fn parsed(line: &str) -> Result<DumpChoice> {
        options(&matches(&VERB, line)?, true)
    }

    fn refused(line: &str) -> String {
        parsed(line).unwrap_err().to_string()
    }

    #[test]
    fn what_engines_send_becomes_a_choice() {
        let line = "--image-path /i --work-path /w --parent-path ../p --leave-running --pre-dump --tcp-established \
                    --tcp-skip-in-flight --ext-unix-sk --shell-job --file-locks --link-remap --lazy-pages --status-fd 5 \
                    --page-server [::1]:27 --manage-cgroups-mode ignore --empty-ns network --auto-dedup --network-lock skip \
                    --tcp-close web";
        let expected = DumpChoice {
            choice: Choice {
                images: "/i".into(),
                work: Some("/w".into()),
                verbose: true,
                tcp_established: true,
                tcp_close: true,
                ext_unix_sk: true,
                shell_job: true,
                file_locks: true,
                auto_dedup: true,
                lazy_pages: true,
                cgroups_mode: Some(CgroupsMode::Ignore),
                network_lock: Some(NetworkLock::Skip),
                status_fd: Some(5),
            },
            parent: Some("../p".into()),
            leave_running: true,
            pre_dump: true,
            track: false,
            tcp_skip_in_flight: true,
            link_remap: true,
            page_server: Some(("::1".into(), 27)),
        };
        assert_eq!(parsed(line).unwrap(), expected);
    }

    #[test]
    fn nothing_given_is_runcs_directory_and_nothing_else() {
        let images = std::env::current_dir().unwrap().join("checkpoint");
        let choice = Choice { images, verbose: true, ..Choice::default() };
        assert_eq!(parsed("--status-fd -1 web").unwrap(), DumpChoice { choice, ..DumpChoice::default() });
    }

    #[test]
    fn what_was_saved_in_words() {
        let mut saved = Saved {
            bytes: 1 << 20,
            unchanged_bytes: 2 << 20,
            frozen_milliseconds: 12.34,
            write_milliseconds: 1.0,
            dirty_rate: None,
            estimated_milliseconds: None,
        };
        assert_eq!(text(&saved), "saved        1.0M\nstood still  12.3 ms\n");
        (saved.dirty_rate, saved.estimated_milliseconds) = (Some(3.0 * f64::from(1 << 20)), Some(13.0));
        let lines = text(&saved);
        assert!(lines.contains("unchanged    2.0M\n") && lines.contains("written to   3.0M a second\n"), "{lines}");
        assert!(lines.ends_with("last dump    about 13.0 ms of standstill\n"), "{lines}");
    }

    #[test]
    fn words_outside_a_vocabulary_are_refused_by_the_flags_name() {
        for (line, said) in [
            ("--manage-cgroups-mode x web", "invalid value \"x\" for --manage-cgroups-mode: it is one of soft, full"),
            ("--network-lock x web", "invalid value \"x\" for --network-lock: it is one of iptables, nftables, skip"),
            ("--empty-ns ipc web", "invalid value \"ipc\" for --empty-ns: only network can be left alone"),
            ("--page-server 1.2.3.4 web", "invalid value \"1.2.3.4\" for --page-server: it is ADDRESS:PORT"),
            ("--page-server :80 web", "invalid value \":80\" for --page-server"),
            ("--page-server a:0 web", "invalid value \"a:0\" for --page-server"),
        ] {
            assert!(refused(line).starts_with(said), "{line}: {}", refused(line));
        }
    }
}
