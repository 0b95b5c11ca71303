//! One deed a run, and how it went: as JSON on standard output where there is something to tell, else as exit code.
//!
//! Whatever waits says `ready` first, so that a test need not guess when to go on.

#![allow(clippy::disallowed_methods, reason = "sleeping, and ending from anywhere, are deeds that tests ask for")]

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{agent, attacks, kernel, living, load, records, report, say};

/// Does the deed; the answer is the exit code.
pub fn perform(deed: &str, args: &[String]) -> Result<u8> {
    match deed {
        "exit" => return parse(args, 0),
        "say" => say(&args.join(" "))?,
        "echo" => drop(std::io::copy(&mut std::io::stdin().lock(), &mut std::io::stdout().lock())?),
        "answer" => answer()?,
        "complain" => eprintln!("{}", args.join(" ")),
        "read" => say(&outcome(fs::read_to_string(word(args, 0)?).map(|text| json!(text))))?,
        "write" => say(&outcome(write(word(args, 0)?, &args[1..].join(" "))))?,
        "open" => say(&outcome(open(word(args, 0)?, word(args, 1)?)))?,
        "remove" => say(&outcome(fs::remove_file(word(args, 0)?).map(|()| Value::Null)))?,
        "rename" => say(&outcome(fs::rename(word(args, 0)?, word(args, 1)?).map(|()| Value::Null)))?,
        "mkdir" => say(&outcome(fs::create_dir(word(args, 0)?).map(|()| Value::Null)))?,
        "mknod" => {
            say(&outcome(kernel::mknod(word(args, 0)?, parse(args, 1)?, parse(args, 2)?).map(|()| Value::Null)))?
        }
        "list" => say(&outcome(list(word(args, 0)?)))?,
        "stat" => say(&outcome(stat(word(args, 0)?)))?,
        "syscall" => say(&outcome(call(args)))?,
        "keyring-label" => say(&outcome(kernel::session_keyring_label().map(|label| json!(label))))?,
        "kill-self" => drop(kernel::syscall(libc::SYS_kill, &[std::process::id().into(), parse(args, 0)?])?),
        "sleep" => sleep(word(args, 0)?)?,
        "signal-wait" => signal_wait()?,
        "interrupt-wait" => interrupt_wait()?,
        "window-wait" => window_wait((parse(args, 0)?, parse(args, 1)?))?,
        "count" => {
            living::count(parse(args, 0)?)?;
            return parse(args, 1);
        }
        "scribble" => living::scribble(parse(args, 0)?, parse(args, 1)?)?,
        "grow-beside" => living::grow_beside(parse(args, 0)?)?,
        "record" => records::record(word(args, 0)?.as_ref(), parse(args, 1)?, parse(args, 2)?)?,
        "end-elsewhere" => living::end_elsewhere()?,
        "threads" => living::threads(parse(args, 0)?)?,
        "ring" => living::ring()?,
        "beside-nameless" => living::beside_nameless()?,
        "dialogue" => living::dialogue()?,
        "serve" => living::serve()?,
        "lock" => living::lock(word(args, 0)?)?,
        "try-lock" => say(&outcome(try_lock(word(args, 0)?)))?,
        "renamed" => living::renamed(word(args, 0)?)?,
        "notify" => living::notify(parse(args, 0)?)?,
        "send" => living::send(word(args, 0)?)?,
        "ignore" => living::ignore()?,
        "fill" => fill(parse(args, 0)?)?,
        "fork" => fork(parse(args, 0)?)?,
        "burn" => load::burn()?,
        "calls" => load::calls(parse(args, 0)?)?,
        "work" => load::work(parse(args, 0)?)?,
        "hold" => load::hold(parse(args, 0)?)?,
        "hold-same" => load::hold_same(parse(args, 0)?)?,
        "cache" => load::cache(word(args, 0)?, parse(args, 1)?, parse(args, 2)?)?,
        "direct" => load::direct(word(args, 0)?, word(args, 1)?, parse(args, 2)?)?,
        "transmit" => load::transmit(word(args, 0)?, parse(args, 1)?)?,
        "receive" => load::receive(word(args, 0)?)?,
        "bomb" => load::bomb()?,
        "relay" => load::relay()?,
        "agent" => agent::serve(word(args, 0)?, parse(args, 1)?)?,
        "orphan" => orphan()?,
        "leave" => leave(word(args, 0)?, word(args, 1)?)?,
        "ended-orphans" => ended_orphans(parse(args, 0)?)?,
        "say-raw" => {
            kernel::make_raw(1)?;
            say(&args.join(" "))?;
        }
        "close-and-open" => close_and_open(word(args, 0)?)?,
        "write-on" => write_on()?,
        "remount" => say(&outcome(kernel::remount_writable(word(args, 0)?).map(|()| Value::Null)))?,
        "hook" => hook(word(args, 0)?, word(args, 1)?)?,
        "overwrite-executables" => attacks::overwrite_executables(parse(args, 0)?)?,
        "exchange" => attacks::exchange(word(args, 0)?, word(args, 1)?, parse(args, 2)?)?,
        "raid" => attacks::raid(word(args, 0)?, parse(args, 1)?)?,
        "trace-newcomers" => attacks::trace_newcomers(parse(args, 0)?)?,
        "set-window" => kernel::set_window(0, parse(args, 0)?, parse(args, 1)?)?,
        "ignoring" => {
            kernel::ignore_signals();
            return Err(Command::new(word(args, 0)?).args(&args[1..]).exec());
        }
        "session" => {
            kernel::own_session()?;
            return Err(Command::new(word(args, 0)?).args(&args[1..]).exec());
        }
        _ => return Err(Error::new(ErrorKind::InvalidInput, format!("no such deed: {deed}"))),
    }
    Ok(0)
}

/// `{"ok": VALUE}` or `{"error": NUMBER, "words": TEXT}`.
fn outcome(result: Result<Value>) -> Value {
    match result {
        Ok(value) => json!({ "ok": value }),
        Err(error) => json!({"error": error.raw_os_error(), "words": error.to_string()}),
    }
}

fn word(args: &[String], at: usize) -> Result<&str> {
    args.get(at).map(String::as_str).ok_or_else(|| Error::new(ErrorKind::InvalidInput, "an argument is missing"))
}

fn parse<T: std::str::FromStr>(args: &[String], at: usize) -> Result<T> {
    word(args, at)?.parse().map_err(|_| Error::new(ErrorKind::InvalidInput, "an argument is not a number"))
}

fn write(path: &str, text: &str) -> Result<Value> {
    OpenOptions::new().write(true).create(true).truncate(true).open(path)?.write_all(text.as_bytes())?;
    Ok(Value::Null)
}

fn open(path: &str, how: &str) -> Result<Value> {
    let file =
        OpenOptions::new().read(how.contains('r')).write(how.contains('w')).custom_flags(libc::O_NOCTTY).open(path);
    file.map(|_| Value::Null)
}

fn list(path: &str) -> Result<Value> {
    let mut names: Vec<_> =
        fs::read_dir(path)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(json!(names))
}

/// Type, mode, device number and owner of a path; a symbolic link itself, with its target.
/// Whether a lock on the file can be had.
fn try_lock(path: &str) -> Result<Value> {
    match File::options().write(true).open(path)?.try_lock() {
        Ok(()) => Ok(true.into()),
        Err(TryLockError::WouldBlock) => Ok(false.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn stat(path: &str) -> Result<Value> {
    let data = fs::symlink_metadata(path)?;
    let kind = data.file_type();
    let name = match () {
        () if kind.is_char_device() => "char",
        () if kind.is_block_device() => "block",
        () if kind.is_dir() => "dir",
        () if kind.is_symlink() => "link",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () => "file",
    };
    Ok(json!({
        "type": name, "mode": format!("{:04o}", data.mode() & 0o7777), "uid": data.uid(), "gid": data.gid(),
        "major": libc::major(data.rdev()), "minor": libc::minor(data.rdev()), "size": data.size(),
        "target": fs::read_link(path).ok(),
    }))
}

fn call(args: &[String]) -> Result<Value> {
    let number = parse(args, 0)?;
    let args = args[1..].iter().map(|text| text.parse().map_err(|_| ErrorKind::InvalidInput.into()));
    Ok(json!(kernel::syscall(number, &args.collect::<Result<Vec<u64>>>()?)?))
}

fn sleep(how_long: &str) -> Result<()> {
    say(&"ready")?;
    match how_long.parse() {
        Ok(seconds) => std::thread::sleep(Duration::from_secs_f64(seconds)),
        Err(_) => loop {
            std::thread::park();
        },
    }
    Ok(())
}

/// Repeats one line of standard input.
fn answer() -> Result<()> {
    say(&"ready")?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    say(&format!("answer: {}", line.trim_end()))
}

fn signal_wait() -> Result<()> {
    kernel::block_signals()?;
    say(&"ready")?;
    say(&json!({"signal": kernel::next_signal()?}))
}

/// Waits to be interrupted from the keyboard, and ends with 42 if that is what came.
fn interrupt_wait() -> Result<()> {
    kernel::block_signals()?;
    say(&"ready")?;
    loop {
        let signal = kernel::next_signal()?;
        if signal == libc::SIGINT {
            say(&"interrupted")?;
            std::process::exit(42);
        }
    }
}

/// Tells the window's size, at first and whenever it has changed, until it is the one that is waited for.
fn window_wait(wanted: (u16, u16)) -> Result<()> {
    kernel::block_signals()?;
    let mut last = None;
    loop {
        let now = kernel::window(0)?;
        if last != Some(now) {
            say(&format!("window {} {}", now.0, now.1))?;
        }
        if now == wanted {
            return Ok(());
        }
        last = Some(now);
        kernel::next_signal()?;
    }
}

/// Takes so many megabytes of memory, and writes to every page of them.
fn fill(megabytes: usize) -> Result<()> {
    let mut bytes = vec![0u8; megabytes << 20];
    for page in bytes.chunks_mut(4096) {
        page[0] = 1;
    }
    say(&std::hint::black_box(&bytes).len())
}

/// A grandchild whose parent has ended; its pid, then a wait for being killed. The grandchild waits as well.
fn orphan() -> Result<()> {
    let (mut end, tell) = std::io::pipe()?;
    let child = kernel::fork()?;
    if child == 0 {
        match kernel::fork()? {
            0 => loop {
                std::thread::park();
            },
            pid => writeln!(&tell, "{pid}")?,
        }
        std::process::exit(0);
    }
    drop(tell);
    kernel::syscall(libc::SYS_wait4, &[u64::from(child.unsigned_abs()), 0, 0, 0])?;
    let mut pid = String::new();
    // The grandchild holds the other end too, so there is no end of file to wait for.
    while !pid.ends_with('\n') {
        let mut byte = [0];
        end.read_exact(&mut byte)?;
        pid.push(char::from(byte[0]));
    }
    say(&json!({"orphan": pid.trim().parse::<u32>().map_err(|_| ErrorKind::InvalidData)?}))?;
    loop {
        std::thread::park();
    }
}

/// Leaves a child in a session of its own, which has the same streams, and ends. Then the child says something, too, and waits.
fn leave(first: &str, last: &str) -> Result<()> {
    let ((mut is_apart, apart), (mut is_over, over)) = (std::io::pipe()?, std::io::pipe()?);
    if kernel::fork()? == 0 {
        kernel::syscall(libc::SYS_setsid, &[])?;
        drop((apart, over));
        is_over.read_to_end(&mut Vec::new())?;
        // A terminal may have gone by now.
        say(&last).ok();
        loop {
            std::thread::park();
        }
    }
    drop(apart);
    is_apart.read_to_end(&mut Vec::new())?;
    // Until the process itself is over.
    std::mem::forget(over);
    say(&first)
}

/// Grandchildren that end after their parents; their pids, once all have, and then a wait for being killed.
fn ended_orphans(count: u32) -> Result<()> {
    let (mut pids, tell) = std::io::pipe()?;
    for _ in 0..count {
        let child = kernel::fork()?;
        if child == 0 {
            let parent = std::process::id();
            if kernel::fork()? == 0 {
                while kernel::syscall(libc::SYS_getppid, &[])? == i64::from(parent) {
                    std::thread::yield_now();
                }
                write!(&tell, "{} ", std::process::id())?;
            }
            std::process::exit(0);
        }
        kernel::syscall(libc::SYS_wait4, &[u64::from(child.unsigned_abs()), 0, 0, 0])?;
    }
    drop(tell);
    let mut all = String::new();
    pids.read_to_string(&mut all)?;
    say(&format_args!("ended {all}"))?;
    loop {
        std::thread::park();
    }
}

/// Closes its three streams for a second, and then opens `path` to say that it is back.
fn close_and_open(path: &str) -> Result<()> {
    say(&"closing")?;
    for stream in 0..3 {
        kernel::syscall(libc::SYS_close, &[stream])?;
    }
    std::thread::sleep(Duration::from_secs(1));
    writeln!(OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY).open(path)?, "back")?;
    loop {
        std::thread::park();
    }
}

/// Gives up its terminal, which would be hung up with it, has a child write there for ever, and waits for being killed.
fn write_on() -> Result<()> {
    kernel::ignore_signals();
    kernel::syscall(libc::SYS_ioctl, &[0, libc::TIOCNOTTY, 0])?;
    let line = "x".repeat(1 << 16);
    if kernel::fork()? == 0 {
        loop {
            say(&line)?;
        }
    }
    loop {
        std::thread::park();
    }
}

/// `count` children that wait until they are killed, and this process with them.
fn fork(count: u32) -> Result<()> {
    for _ in 0..count {
        if kernel::fork()? == 0 {
            loop {
                std::thread::park();
            }
        }
    }
    sleep("forever")
}

/// As a hook: appends what it was given and where it runs to `log`, one JSON object a line.
fn hook(name: &str, log: &str) -> Result<()> {
    let mut state = String::new();
    std::io::stdin().read_to_string(&mut state)?;
    let state: Value = serde_json::from_str(&state).unwrap_or(Value::String(state));
    // What the container's process is executing by now, where this hook sees it.
    let program = fs::read_link(format!("/proc/{}/exe", state["pid"])).ok();
    let line = json!({"hook": name, "state": state, "program": program, "seen": report::report(Value::Null)});
    // One write call, so that lines of hooks never mix.
    OpenOptions::new().append(true).create(true).open(log)?.write_all(format!("{line}\n").as_bytes())
}
