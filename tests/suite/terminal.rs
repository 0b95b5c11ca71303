//! Terminals: the one in the foreground, and the one a container manager is given.

use std::fs::File;
use std::io::{PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Ferry, Peer, Root, Tool};
use super::output::{self, Lines};
use super::pseudo_terminal::{ConsoleSocket, Terminal, resize};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("foreground_is_a_terminal", &[], foreground),
    scenario("foreground_gives_the_exit_code", &[], exit_code),
    scenario("foreground_has_the_windows_size_and_follows_it", &[], window),
    scenario("the_windows_size_is_there_from_the_first", &[Peer("runc", LATE), Peer("crun", LATE)], window_at_first),
    scenario(
        "execs_window_has_its_size_from_the_first",
        &[Peer("runc", LATE), Peer("crun", LATE)],
        exec_window_at_first,
    ),
    scenario("a_window_of_no_size_changes_none", &[Root, Ferry, Tool("stty")], no_window),
    scenario("control_c_reaches_the_program", &[], control_c),
    scenario("typing_reaches_the_program", &[], typing),
    scenario("the_callers_terminal_is_as_before", &[], restored),
    scenario("lines_begin_at_the_left", &[], lines_at_the_left),
    scenario("lines_of_exec_begin_at_the_left", &[Peer("runc", "1.1.5: two carriage returns")], exec_lines_at_the_left),
    scenario("a_program_that_wants_its_terminal_raw_has_it_raw", &[Peer("runc", "adds carriage returns")], raw),
    scenario("a_terminal_keeps_its_carriage_returns_where_another_is_written_to", &[], half),
    scenario("a_program_may_close_its_terminal_and_open_it_again", &[Peer("runc", NO_TTY)], closed_and_opened),
    scenario("standard_output_need_not_be_waited_for", &[Peer("runc", NO_TTY)], nonblocking),
    scenario("signals_reach_a_program_whose_output_nobody_reads", &[Root, Peer("runc", NO_TTY)], unread),
    scenario("output_that_nobody_reads_can_be_given_up", &[Ferry], given_up),
    scenario("what_writes_on_does_not_keep_the_end_from_being_told", &[Ferry], writes_on),
    scenario("a_job_in_the_background_leaves_the_terminal_alone", &[Ferry, Tool("bash")], background),
    scenario("console_socket_receives_the_terminal", &[], console_socket),
    scenario("console_socket_of_a_created_container", &[], console_socket_create),
    scenario("console_size_is_set", &[], console_size),
    scenario("a_terminal_without_a_console_socket_is_refused_detached", &[], no_socket),
    scenario("a_console_socket_without_a_terminal_is_refused", &[Peer("crun", "ignores it")], no_terminal),
    scenario("a_console_socket_that_is_missing_is_refused", &[], missing_socket),
    scenario("a_console_socket_with_a_long_path", &[Ferry], long_path),
];

const NO_TTY: &str = "wants a terminal of its own";
const LATE: &str = "sets the size while the program runs";

/// `run` in the foreground of a terminal.
fn run(case: &mut Case, terminal: &Terminal, args: &[&str]) -> Result<std::process::Child, libtest_mimic::Failed> {
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(args).write_config()?, case.id.clone());
    terminal.spawn(&case.command(&["run", "--bundle", &bundle, &id]))
}

fn foreground(case: &mut Case) -> Outcome {
    let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
    let mut child = run(case, &terminal, &["/probe"])?;
    let report: Value = serde_json::from_str(&terminal.lines(case.patience())?.until("is_terminal")?)?;
    assert!(output::wait(&mut child, case.patience())?.success());
    assert_eq!(report["terminal"]["is_terminal"], json!([true, true, true]));
    assert_eq!(report["terminal"]["controlling"], true);
    let name = report["terminal"]["name"].as_str().unwrap_or_default();
    assert!(name.starts_with("/dev/pts/") || name == "/dev/console", "{name}");
    assert_eq!((&report["sid"], &report["pgid"]), (&json!(1), &json!(1)));
    let numbers: Vec<&String> = report["descriptors"].as_object().into_iter().flat_map(|table| table.keys()).collect();
    assert_eq!(numbers, ["0", "1", "2"]);
    Ok(())
}

fn exit_code(case: &mut Case) -> Outcome {
    let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
    let mut child = run(case, &terminal, &["/probe", "exit", "9"])?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 9);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn window(case: &mut Case) -> Outcome {
    let terminal = Terminal::open(&case.stage.probe, 33, 99)?;
    let mut child = run(case, &terminal, &["/probe", "window-wait", "44", "88"])?;
    let mut lines = terminal.lines(case.patience())?;
    lines.until("window 33 99")?;
    terminal.resize(44, 88)?;
    lines.until("window 44 88")?;
    assert!(output::wait(&mut child, case.patience())?.success());
    Ok(())
}

/// The runtime has not come to its own end of the terminal before its hook has ended, and that waits for the program.
fn window_at_first(case: &mut Case) -> Outcome {
    let wait = "pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p'); until grep -q zombie /proc/$pid/status; do :; done";
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", wait], "env": ["PATH=/usr/bin:/bin"], "timeout": 5});
    case.config["hooks"] = json!({"poststart": [hook]});
    let terminal = Terminal::open(&case.stage.probe, 33, 99)?;
    let mut child = run(case, &terminal, &["/probe", "window-wait", "33", "99"])?;
    terminal.lines(case.patience())?.until("window 33 99")?;
    assert!(output::wait(&mut child, case.patience())?.success());
    Ok(())
}

/// Here there is no hook to wait for: it is tried often enough.
fn exec_window_at_first(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    for _ in 0..20 {
        let (id, terminal) = (case.id.clone(), Terminal::open(&case.stage.probe, 33, 99)?);
        let mut child = terminal.spawn(&case.command(&["exec", "-t", &id, "/probe", "window-wait", "33", "99"]))?;
        let shown = terminal.lines(case.patience())?.until("window")?;
        assert!(output::wait(&mut child, case.patience())?.success());
        assert_eq!(shown, "window 33 99");
    }
    Ok(())
}

fn no_window(case: &mut Case) -> Outcome {
    case.config["process"]["consoleSize"] = json!({"height": 37, "width": 73});
    let terminal = Terminal::open(&case.stage.probe, 0, 0)?;
    let mut child = run(case, &terminal, &["/probe", "answer"])?;
    let mut lines = terminal.lines(case.patience())?;
    lines.until("ready")?;
    let inside = format!("/proc/{}/fd/0", case.pid()?);
    let size = Command::new("stty").args(["-F", &inside, "size"]).output()?;
    assert_eq!(String::from_utf8_lossy(&size.stdout).trim_end(), "37 73");
    terminal.type_in("x\n")?;
    lines.until("answer: x")?;
    assert!(output::wait(&mut child, case.patience())?.success());
    Ok(())
}

fn control_c(case: &mut Case) -> Outcome {
    let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
    let mut child = run(case, &terminal, &["/probe", "interrupt-wait"])?;
    let mut lines = terminal.lines(case.patience())?;
    lines.until("ready")?;
    terminal.type_in("\x03")?;
    lines.until("interrupted")?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 42);
    Ok(())
}

fn typing(case: &mut Case) -> Outcome {
    let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
    let mut child = run(case, &terminal, &["/probe", "answer"])?;
    let mut lines = terminal.lines(case.patience())?;
    lines.until("ready")?;
    terminal.type_in("hard to port\n")?;
    lines.until("answer: hard to port")?;
    assert!(output::wait(&mut child, case.patience())?.success());
    Ok(())
}

fn restored(case: &mut Case) -> Outcome {
    let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
    let before = terminal.modes()?;
    let mut child = run(case, &terminal, &["/probe", "say", "done"])?;
    // The screen is read as a person's terminal does, so that nothing waits for it.
    terminal.lines(case.patience())?.until("done")?;
    output::wait(&mut child, case.patience())?;
    assert_eq!(terminal.modes()?, before);
    Ok(())
}

/// What a program that says three lines shows, to the last letter.
fn shows(case: &Case, terminal: &Terminal, mut child: std::process::Child, wanted: &str) -> Outcome {
    assert_eq!(terminal.lines(case.patience())?.up_to("three")?, wanted);
    assert!(output::wait(&mut child, case.patience())?.success());
    Ok(())
}

fn lines_at_the_left(case: &mut Case) -> Outcome {
    let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
    let child = run(case, &terminal, &["/probe", "say", "one\ntwo\nthree"])?;
    shows(case, &terminal, child, "one\r\ntwo\r\nthree")
}

fn exec_lines_at_the_left(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (id, terminal) = (case.id.clone(), Terminal::open(&case.stage.probe, 24, 80)?);
    let child = terminal.spawn(&case.command(&["exec", "--tty", &id, "/probe", "say", "one\ntwo\nthree"]))?;
    shows(case, &terminal, child, "one\r\ntwo\r\nthree")
}

/// An editor moves down by a newline, and stays in its column.
fn raw(case: &mut Case) -> Outcome {
    let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
    let child = run(case, &terminal, &["/probe", "say-raw", "one\ntwo\nthree"])?;
    shows(case, &terminal, child, "one\ntwo\nthree")
}

/// Somebody else, say a pager, writes to the terminal that is typed at, and the file has no carriage returns.
fn half(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(&["/probe", "answer"]).write_config()?, case.id.clone());
    let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
    let (mut lines, pipe) = Lines::pipe(case.patience())?;
    let mut command = case.command(&["run", "--bundle", &bundle, &id]);
    let mut child = command.stdin(terminal.slave()?).stdout(pipe).spawn()?;
    drop(command);
    assert_eq!(lines.up_to("\n")?, "ready\n");
    assert_eq!(terminal.modes()?.output_flags, Terminal::open(&case.stage.probe, 24, 80)?.modes()?.output_flags);
    terminal.type_in("x\n")?;
    assert!(output::wait(&mut child, case.patience())?.success());
    Ok(())
}

/// What the runtime has used of the processor, in hundredths of a second. proc_pid_stat(5)
fn ticks(pid: u32) -> Result<u64, libtest_mimic::Failed> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

fn closed_and_opened(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(&["/probe", "close-and-open", "/dev/console"]).write_config()?, case.id.clone());
    let (mut child, mut lines) = case.spawn(&["run", "--bundle", &bundle, &id])?;
    lines.until("closing")?;
    let before = ticks(child.id())?;
    lines.until("back")?;
    let used = ticks(child.id())? - before;
    assert!(used < 5, "{used} ticks of the second that nobody had the terminal open");
    case.kill_and_wait("KILL")?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 137);
    Ok(())
}

/// Waits until a pipe takes no more.
fn filled(case: &Case, write: &PipeWriter) -> Outcome {
    let end = Instant::now() + case.patience();
    while poll(&mut [PollFd::new(write.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO)? > 0 {
        assert!(Instant::now() < end, "nothing fills the pipe");
        std::thread::yield_now();
    }
    Ok(())
}

/// Without a pid namespace a signal ends the program that is not made for it.
fn unread(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "pid");
    case.config["process"]["terminal"] = true.into();
    let text = "x".repeat(100_000);
    let (bundle, id) = (case.args(&["/probe", "say", &text, &text, &text]).write_config()?, case.id.clone());
    let (mut read, write) = std::io::pipe()?;
    let mut command = case.command(&["run", "--bundle", &bundle, &id]);
    let mut child = command.stdout(write.try_clone()?).spawn()?;
    drop(command);
    filled(case, &write)?;
    drop(write);
    let pid = case.pid()?;
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
    case.wait_for(pid)?;
    read.read_to_end(&mut Vec::new())?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 128 + libc::SIGTERM);
    Ok(())
}

fn nonblocking(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    let text = "x".repeat(100_000);
    let (bundle, id) = (case.args(&["/probe", "say", &text, &text, &text]).write_config()?, case.id.clone());
    let (mut read, write) = std::io::pipe()?;
    rustix::io::ioctl_fionbio(&write, true)?;
    let mut command = case.command(&["run", "--bundle", &bundle, &id]);
    let mut child = command.stdout(write.try_clone()?).spawn()?;
    drop(command);
    // It is full before the first of it is read.
    filled(case, &write)?;
    drop(write);
    let mut all = Vec::new();
    read.read_to_end(&mut all)?;
    assert_eq!((all.len(), output::code(output::wait(&mut child, case.patience())?)), (300_003, 0));
    Ok(())
}

/// The program has ended: what it said fills the pipe, and the rest of it the terminal.
fn given_up(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(&["/probe", "say", &"x".repeat(12_000)]).write_config()?, case.id.clone());
    let pid_file = case.path("pid");
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
        let before = terminal.modes()?;
        let (_read, write) = std::io::pipe()?;
        fcntl(&write, FcntlArg::F_SETPIPE_SZ(1))?;
        let mut command = case.command(&["run", "--pid-file", &pid_file, "--bundle", &bundle, &id]);
        let mut child = command.stdin(terminal.slave()?).stdout(write.try_clone()?).spawn()?;
        drop(command);
        filled(case, &write)?;
        case.wait_for(std::fs::read_to_string(&pid_file)?.parse()?)?;
        // Not every signal asks for the end.
        let runtime = Pid::from_raw(i32::try_from(child.id())?);
        kill(runtime, Signal::SIGUSR1)?;
        kill(runtime, signal)?;
        assert_eq!(output::code(output::wait(&mut child, case.patience())?), 0, "{signal}");
        assert_eq!(terminal.modes()?, before);
        assert_eq!(case.leftovers()?, Vec::<String>::new());
    }
    Ok(())
}

/// Waits until a process waits itself, or has ended. proc_pid_stat(5)
fn at_rest(case: &Case, pid: &str) -> Outcome {
    let end = Instant::now() + case.patience();
    while std::fs::read_to_string(format!("/proc/{pid}/stat"))?.contains(") R ") {
        assert!(Instant::now() < end, "{pid} does not come to rest");
        std::thread::yield_now();
    }
    Ok(())
}

/// A child of the program that is killed has the terminal still, and has filled it whenever the next page is read.
fn writes_on(case: &mut Case) -> Outcome {
    const PAGES: usize = 64;
    case.start_waiting()?;
    let (id, pid_file) = (case.id.clone(), case.path("pid"));
    let (mut read, write) = std::io::pipe()?;
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(1))?;
    let mut command = case.command(&["exec", "--tty", "--pid-file", &pid_file, &id, "/probe", "write-on"]);
    let mut child = command.stdout(write.try_clone()?).spawn()?;
    drop(command);
    filled(case, &write)?;
    let pid = std::fs::read_to_string(&pid_file)?;
    let writer = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
    for _ in 0..PAGES {
        at_rest(case, writer.trim())?;
        if output::wait_for_pid(child.id(), Duration::ZERO)? {
            break;
        }
        // However much of it that is, it makes room.
        read.read(&mut [0; 4096]).map(drop)?;
        while poll(&mut [PollFd::new(write.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO)? > 0
            && !output::wait_for_pid(child.id(), Duration::ZERO)?
        {
            std::thread::yield_now();
        }
    }
    assert!(output::wait_for_pid(child.id(), Duration::ZERO)?, "more than {PAGES} pages are shown");
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 137);
    Ok(())
}

/// A shell that has the runtime as its job: stopped in the background, and once more after it was stopped by somebody and has
/// gone on there. It is brought to the foreground at each line of the file that is its name.
const SHELL: &str = r#"set -m
stopped() { until [ -n "$(jobs -s)" ]; do :; done; }
"$@" &
stopped; echo "stopped $!"
read -r _ <"$0"; fg
bg; echo background
read -r _ <"$0"; kill -STOP %1; stopped; fg"#;

fn background(case: &mut Case) -> Outcome {
    let word = case.directory.join("word");
    nix::unistd::mkfifo(&word, Mode::S_IRWXU)?;
    let mut word_to_shell = File::options().read(true).write(true).open(&word)?;
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(&["/probe", "dialogue"]).write_config()?, case.id.clone());
    let command = case.command(&["run", "--bundle", &bundle, &id]);
    let mut shell = Command::new("bash");
    shell.args(["-c", SHELL]).arg(&word).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
    let (before, mut lines) = (terminal.modes()?, terminal.lines(case.patience())?);
    let mut child = terminal.spawn(&shell)?;
    let stopped = lines.until("stopped ")?;
    assert_eq!(terminal.modes()?, before);
    word_to_shell.write_all(b"\n")?;
    lines.until("ready")?;
    terminal.type_in("one\n")?;
    lines.until("1: one")?;
    kill(Pid::from_raw(stopped.trim_start_matches("stopped ").parse()?), Signal::SIGSTOP)?;
    lines.until("background")?;
    // By the time the second is shown, the first was looked at, and nobody may read it yet.
    terminal.type_in("two\n")?;
    case.exec(&[], &["/probe", "write", "/dev/console", "still here\n"])?.success()?;
    lines.until("still here")?;
    word_to_shell.write_all(b"\n")?;
    lines.until("2: two")?;
    case.kill_and_wait("KILL")?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 137);
    assert_eq!(terminal.modes()?, before);
    Ok(())
}

fn console_socket(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(&["/probe", "window-wait", "50", "60"]).write_config()?, case.id.clone());
    let path = case.directory.join("console");
    let socket = ConsoleSocket::bind(&path)?;
    let path = path.display().to_string();
    case.call(&["run", "--detach", "--console-socket", &path, "--bundle", &bundle, &id])?.success()?;
    let master = socket.receive(case.patience())?;
    resize(&case.stage.probe, &master, 50, 60)?;
    Lines::new(master, case.patience()).until("window 50 60").map(drop)
}

fn console_socket_create(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(&["/probe", "answer"]).write_config()?, case.id.clone());
    let path = case.directory.join("console");
    let socket = ConsoleSocket::bind(&path)?;
    let path = path.display().to_string();
    case.call(&["create", "--console-socket", &path, "--bundle", &bundle, &id])?.success()?;
    let master = socket.receive(case.patience())?;
    let mut keyboard = File::from(master.try_clone()?);
    let mut lines = Lines::new(master, case.patience());
    case.call(&["start", &id])?.success()?;
    lines.until("ready")?;
    keyboard.write_all(b"ahoy\n")?;
    lines.until("answer: ahoy").map(drop)
}

fn console_size(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    case.config["process"]["consoleSize"] = json!({"height": 37, "width": 73});
    let (bundle, id) = (case.args(&["/probe", "window-wait", "37", "73"]).write_config()?, case.id.clone());
    let path = case.directory.join("console");
    let socket = ConsoleSocket::bind(&path)?;
    let path = path.display().to_string();
    case.call(&["run", "--detach", "--console-socket", &path, "--bundle", &bundle, &id])?.success()?;
    Lines::new(socket.receive(case.patience())?, case.patience()).until("window 37 73").map(drop)
}

fn no_socket(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.write_config()?, case.id.clone());
    case.call(&["create", "--bundle", &bundle, &id])?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn no_terminal(case: &mut Case) -> Outcome {
    let (bundle, id, path) = (case.write_config()?, case.id.clone(), case.directory.join("console"));
    let _socket = ConsoleSocket::bind(&path)?;
    let path = path.display().to_string();
    case.call(&["create", "--console-socket", &path, "--bundle", &bundle, &id])?.failure().map(drop)
}

fn missing_socket(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    let (bundle, id, path) = (case.write_config()?, case.id.clone(), case.path("nobody-listens"));
    case.call(&["create", "--console-socket", &path, "--bundle", &bundle, &id])?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// A socket's address holds 108 bytes; a manager's path may be longer.
fn long_path(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(&["/probe", "say", "ahoy"]).write_config()?, case.id.clone());
    let short = case.directory.join("console");
    let socket = ConsoleSocket::bind(&short)?;
    let deep = case.directory.join("d".repeat(120));
    std::fs::create_dir(&deep)?;
    let path = deep.join("console");
    std::fs::rename(&short, &path)?;
    let path = path.display().to_string();
    case.call(&["run", "--detach", "--console-socket", &path, "--bundle", &bundle, &id])?.success()?;
    Lines::new(socket.receive(case.patience())?, case.patience()).until("ahoy").map(drop)
}
