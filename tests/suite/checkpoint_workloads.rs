//! Checkpoint and restore of programs that people run: a database under load, a shell. Nothing that was acknowledged may be
//! missing afterwards.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use libtest_mimic::Failed;

use super::case::Case;
use super::checkpoint::{CRIU, checkpoint, restore, rounds};
use super::need::Need::{Criu, CriuTcp, Ferry, Root, Tool};
use super::output::Lines;
use super::pseudo_terminal::ConsoleSocket;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_database_under_load_loses_nothing", &[Ferry, Root, Criu, CriuTcp, Tool("redis-server")], database),
    scenario("a_shell_on_a_terminal_goes_on", CRIU, shell),
];

/// The host's programs with their libraries.
fn with_programs(case: &mut Case) -> Outcome {
    case.bundle.directory("usr")?;
    for name in ["bin", "lib", "lib64"] {
        case.bundle.link(name, &format!("usr/{name}"))?;
    }
    config::add(&mut case.config, "/mounts", config::bind("/usr".as_ref(), "/usr", &["rbind", "ro"]));
    Ok(())
}

/// MiB in the database.
fn size() -> u32 {
    if std::env::var_os("FERRY_LONG").is_some() { 200 } else { 48 }
}

/// A connection that asks one thing at a time.
struct Client {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Client {
    fn connect(case: &Case, port: u16) -> Result<Self, Failed> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(case.patience()))?;
        Ok(Self { answers: BufReader::new(stream.try_clone()?), stream })
    }

    /// The answer's first line, or what is behind it where that is only a length.
    fn ask(&mut self, command: &str) -> Result<String, Failed> {
        self.stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.starts_with('$') {
            line.clear();
            self.answers.read_line(&mut line)?;
        }
        Ok(line.trim_end().to_owned())
    }
}

/// Writes one number after the other until it is told to stop; answers how many were acknowledged.
fn writer(mut client: Client, stop: Arc<AtomicBool>) -> JoinHandle<Result<u64, String>> {
    std::thread::spawn(move || {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            match client.ask(&format!("SET key:{count} value:{count}")) {
                Ok(answer) if answer == "+OK" => count += 1,
                Ok(answer) => return Err(format!("{count} was answered by {answer:?}")),
                Err(why) => return Err(format!("{count}: {why:?}")),
            }
        }
        Ok(count)
    })
}

fn database(case: &mut Case) -> Outcome {
    with_programs(case)?;
    config::without_namespace(&mut case.config, "network");
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let number = port.to_string();
    let args = ["/usr/bin/redis-server", "--port", &number, "--bind", "127.0.0.1", "--save", "", "--dir", "/tmp"];
    let mut log = case.args(&args).start()?;
    log.until("Ready to accept connections")?;
    let mut client = Client::connect(case, port)?;
    for number in 0..size() {
        assert_eq!(client.ask(&format!("SETRANGE large:{number} 1048575 x"))?, ":1048576");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..2).map(|_| Ok(writer(Client::connect(case, port)?, Arc::clone(&stop)))).collect::<Result<_, Failed>>()?;
    let mut lives = vec![log];
    for round in 0..rounds() {
        assert_eq!(client.ask(&format!("SET round {round}"))?, "+OK");
        checkpoint(case, &["--tcp-established"])?;
        lives.push(restore(case, &["--tcp-established"])?);
        assert_eq!(client.ask("GET round")?, round.to_string());
        fs::write(case.directory.join("round"), round.to_string())?;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        let count = writer.join().map_err(|_| "a writer panicked")??;
        assert!(count > 0, "nothing was written");
        for number in (0..count).rev().take(1000).chain(0..count.min(1000)) {
            assert_eq!(client.ask(&format!("GET key:{number}"))?, format!("value:{number}"));
        }
    }
    for number in 0..size() {
        assert_eq!(client.ask(&format!("STRLEN large:{number}"))?, ":1048576");
    }
    Ok(())
}

fn shell(case: &mut Case) -> Outcome {
    with_programs(case)?;
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(&["/bin/sh", "-i"]).write_config()?, case.id.clone());
    let path = case.path("console");
    let socket = ConsoleSocket::bind(path.as_ref())?;
    case.call(&["run", "--detach", "--console-socket", &path, "--bundle", &bundle, &id])?.success()?;
    let mut master = socket.receive(case.patience())?;
    let type_in = |master: &std::os::fd::OwnedFd, line: &str| -> Outcome {
        Ok(fs::File::from(master.try_clone()?).write_all(format!("{line}\n").as_bytes())?)
    };
    type_in(&master, "count=0; cd /home")?;
    for round in 1..=rounds() {
        // What is typed is echoed; the answer is not what was typed.
        type_in(&master, "count=$((count + 1)); sleep 1000 & echo \"answer-$count-$(pwd)\"")?;
        Lines::new(master.try_clone()?, case.patience()).until(&format!("answer-{round}-/home"))?;
        checkpoint(case, &[])?;
        restore(case, &["--console-socket", &path])?;
        master = socket.receive(case.patience())?;
        type_in(&master, "echo \"back-$count-$(jobs | wc -l)\"")?;
        Lines::new(master.try_clone()?, case.patience()).until(&format!("back-{round}-"))?;
    }
    Ok(())
}
