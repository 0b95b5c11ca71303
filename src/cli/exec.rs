//! `ferry exec`.

use clap::ArgMatches;

use super::create::{CONSOLE_SOCKET, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS};
use super::globals::Globals;
use super::verb::{Arguments, CommandLine, Flag, Value, Verb};
use super::{given, user};
use crate::error::{EXIT_FAILURE, Error, Result};
use crate::lifecycle;
use crate::lifecycle::exec::Options;

/// What runc answers when the command could not be run, so that it is not taken for the command's own 1.
const NOT_EXECUTED: u8 = 255;

/// The row of `exec`.
pub const VERB: Verb = Verb {
    name: "exec",
    about: "Run a command in a container",
    arguments: Arguments { usage: "ID [--] COMMAND [ARG...]", min: 1, max: usize::MAX, command: CommandLine::AfterId },
    flags: &[
        CONSOLE_SOCKET,
        PIDFD_SOCKET,
        Flag {
            long: "cwd",
            value: Value::Path("DIR"),
            help: "Working directory, inside the container",
            ..Flag::SWITCH
        },
        Flag {
            long: "env",
            short: Some('e'),
            value: Value::Text("NAME=VALUE"),
            many: true,
            help: "Set an environment variable; may be given many times",
            ..Flag::SWITCH
        },
        Flag { long: "tty", short: Some('t'), help: "Give the command a terminal", ..Flag::SWITCH },
        Flag {
            long: "user",
            short: Some('u'),
            value: Value::Text("UID[:GID]"),
            help: "Run as this user and group, by number",
            ..Flag::SWITCH
        },
        Flag {
            long: "additional-gids",
            short: Some('g'),
            value: Value::Text("GID"),
            many: true,
            help: "Add a supplementary group; may be given many times",
            ..Flag::SWITCH
        },
        Flag {
            long: "process",
            short: Some('p'),
            value: Value::Path("FILE"),
            help: "Take the whole process from FILE, in the form of config.json's process, instead of from COMMAND",
            ..Flag::SWITCH
        },
        Flag { long: "detach", short: Some('d'), help: "Do not wait for the command", ..Flag::SWITCH },
        PID_FILE,
        Flag { long: "process-label", value: Value::Text("LABEL"), help: "SELinux label", ..Flag::SWITCH },
        Flag { long: "apparmor", value: Value::Text("PROFILE"), help: "AppArmor profile", ..Flag::SWITCH },
        Flag {
            long: "no-new-privs",
            help: "Keep the command from gaining privileges; =false lets it, whatever config.json says",
            ..Flag::SWITCH
        },
        Flag {
            long: "cap",
            short: Some('c'),
            value: Value::Text("CAP"),
            many: true,
            help: "Add a capability; may be given many times",
            ..Flag::SWITCH
        },
        PRESERVE_FDS,
        Flag {
            long: "cgroup",
            value: Value::Text("PATH"),
            many: true,
            help: "Put the command into this cgroup below the container's; / is the container's own and no other",
            ..Flag::SWITCH
        },
        Flag {
            long: "ignore-paused",
            help: "Go into a paused container; the command waits until it is resumed",
            ..Flag::SWITCH
        },
    ],
    details: &[
        (
            "DESCRIPTION",
            "Runs a command in the namespaces and the cgroup of a container that is created or running, as the user, in \
             the directory and with the environment, capabilities and limits of its config.json. Flags for ferry stand \
             before ID; everything behind ID is the command's own.",
        ),
        (
            "EXIT STATUS",
            "The command's own, or 128 and the number of the signal that ended it. 255 when the command could not be run. \
             With --detach 0 once it runs.",
        ),
        (
            "EXAMPLES",
            "    ferry exec web ls -l /srv\n    ferry exec -t --user 1000:1000 --env TERM=$TERM web sh\n    \
             ferry exec --process process.json --detach --pid-file job.pid web",
        ),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let done = options(matches).and_then(|options| lifecycle::exec::exec(&globals.setting, &options));
    done.map_err(|error| if error.exit_code() == EXIT_FAILURE { error.exit(NOT_EXECUTED) } else { error })
}

fn options(matches: &ArgMatches) -> Result<Options> {
    let (id, args) = given::id_and_rest(matches)?;
    let process = given::absolute(matches, "process")?;
    if args.is_empty() && process.is_none() {
        return Err(Error::plain("exec args cannot be empty").hint("give a command behind the id, or --process FILE"));
    }
    Ok(Options {
        id,
        process,
        args,
        user: given::text(matches, "user").map(user::ids).transpose()?,
        additional_gids: groups(matches)?,
        cwd: given::path(matches, "cwd").map(Into::into),
        env: given::strings(matches, "env"),
        caps: given::strings(matches, "cap"),
        tty: given::switch(matches, "tty"),
        detach: given::switch(matches, "detach"),
        pid_file: given::absolute(matches, "pid-file")?,
        pidfd_socket: given::absolute(matches, "pidfd-socket")?,
        console_socket: given::absolute(matches, "console-socket")?,
        preserve_fds: given::number(matches, "preserve-fds")?.unwrap_or(0),
        no_new_privs: given::chosen(matches, "no-new-privs"),
        apparmor: given::string(matches, "apparmor"),
        process_label: given::string(matches, "process-label"),
        cgroup: cgroup(matches)?,
        ignore_paused: given::switch(matches, "ignore-paused"),
    })
}

fn groups(matches: &ArgMatches) -> Result<Vec<u32>> {
    let flag = "additional-gids";
    let group = |text: &String| text.parse().map_err(|why| given::invalid(flag, text, why));
    given::strings(matches, flag).iter().map(group).collect()
}

/// Several cgroups, each of other controllers, are cgroup v1's alone.
fn cgroup(matches: &ArgMatches) -> Result<Option<String>> {
    let mut paths = given::strings(matches, "cgroup");
    match paths.len() {
        0 | 1 => Ok(paths.pop().filter(|path| !path.is_empty())),
        _ => Err(Error::plain("--cgroup is given more than once").hint("a process is in one cgroup")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;

    fn parsed(line: &str) -> Result<Options> {
        options(&matches(&VERB, line)?)
    }

    fn plain(id: &str, args: &[&str]) -> Options {
        Options { id: id.to_owned(), args: args.iter().map(|&arg| arg.to_owned()).collect(), ..Options::default() }
    }

    #[test]
    fn the_commands_flags_are_its_own() {
        assert_eq!(parsed("c ls -l --tty").unwrap(), plain("c", &["ls", "-l", "--tty"]));
        assert_eq!(parsed("c -- ls -l").unwrap(), plain("c", &["ls", "-l"]));
    }

    #[test]
    fn every_flag_becomes_an_option() {
        let line = "-t -d -u 1:2 -g 3 -g 4 --cwd /w -e A=1 --env B=a,b -c CAP_KILL --cap CAP_CHOWN --pid-file /p \
                    --pidfd-socket /f --console-socket /s --preserve-fds 2 --no-new-privs --apparmor prof \
                    --process-label lab --cgroup sub --ignore-paused c sh";
        let expected = Options {
            user: Some((1, Some(2))),
            additional_gids: vec![3, 4],
            cwd: Some("/w".into()),
            env: vec!["A=1".to_owned(), "B=a,b".to_owned()],
            caps: vec!["CAP_KILL".to_owned(), "CAP_CHOWN".to_owned()],
            tty: true,
            detach: true,
            pid_file: Some("/p".into()),
            pidfd_socket: Some("/f".into()),
            console_socket: Some("/s".into()),
            preserve_fds: 2,
            no_new_privs: Some(true),
            apparmor: Some("prof".to_owned()),
            process_label: Some("lab".to_owned()),
            cgroup: Some("sub".to_owned()),
            ignore_paused: true,
            ..plain("c", &["sh"])
        };
        assert_eq!(parsed(line).unwrap(), expected);
    }

    #[test]
    fn privileges_are_the_containers_unless_the_flag_says_otherwise() {
        let chosen = |line: &str| parsed(line).unwrap().no_new_privs;
        assert_eq!(chosen("c sh"), None);
        assert_eq!(chosen("--no-new-privs c sh"), Some(true));
        assert_eq!(chosen("--no-new-privs=false c sh"), Some(false));
    }

    #[test]
    fn a_process_file_stands_for_the_command() {
        let expected = Options { process: Some("/p.json".into()), ..plain("c", &[]) };
        assert_eq!(parsed("--process /p.json c").unwrap(), expected);
        assert!(parsed("c").unwrap_err().to_string().starts_with("exec args cannot be empty"));
    }

    #[test]
    fn ids_are_numbers_and_a_process_is_in_one_cgroup() {
        assert!(parsed("-u root c sh").unwrap_err().to_string().starts_with("\"root\" is not a user id"));
        assert!(
            parsed("-g -1 c sh").unwrap_err().to_string().starts_with("invalid value \"-1\" for --additional-gids")
        );
        assert!(parsed("--cgroup a --cgroup b c sh").unwrap_err().to_string().starts_with("--cgroup is given more"));
    }

    #[test]
    fn what_could_not_be_run_answers_255() {
        let matches = matches(&VERB, "-u root c sh").unwrap();
        assert_eq!(run(&Globals::default(), &matches).unwrap_err().exit_code(), 255);
    }
}
