//! What each flag of checkpoint and restore lets through that is refused without it, and where it puts things.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::Failed;
use serde_json::json;

use super::case::{Case, MARK};
use super::checkpoint::{CRIU, checkpoint, images, pre_dump, restore};
use super::need::Need::{CgroupV2, Criu, CriuTcp, Ferry, Root, Tool};
use super::output::{self, Lines};
use super::pseudo_terminal::Terminal;
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("file_locks_are_kept_where_it_is_asked_for", CRIU, file_locks),
    scenario("a_file_that_lost_its_name_is_kept_where_it_is_asked_for", CRIU, link_remap),
    scenario("a_socket_that_leads_out_is_connected_again_where_it_is_asked_for", CRIU, ext_unix_sk),
    scenario("a_terminal_from_outside_is_saved_where_it_is_asked_for", CRIU, shell_job),
    scenario("flags_that_find_nothing_to_do_hinder_nothing", CRIU, engines_flags),
    scenario("connections_are_closed_where_it_is_asked_for", &[Ferry, Root, Criu, CriuTcp], tcp_close),
    scenario("a_connection_being_made_is_left_out_where_it_is_asked_for", &[Ferry, Root, Criu, CriuTcp], in_flight),
    scenario("connections_are_kept_still_by_nftables", &[Ferry, Root, Criu, Tool("nft"), CriuTcp], network_lock),
    scenario("memory_stays_behind_until_it_is_asked_for", CRIU, lazy_pages),
    scenario("memory_goes_to_a_page_server", CRIU, page_server),
    scenario("logs_go_to_the_work_directory", CRIU, work_path),
    scenario("debug_has_criu_tell_all_that_it_does", CRIU, debug),
    scenario("cgroups_are_restored_as_asked", &[Ferry, Root, Criu, CgroupV2(&[])], cgroups_mode),
    scenario("cgroups_of_a_restore_that_fails_go", &[Ferry, Root, Criu, CgroupV2(&[])], cgroups_undone),
    scenario("images_are_freed_as_they_are_read", CRIU, dedup_by_restore),
    scenario("pages_of_the_parent_are_freed", CRIU, dedup_by_dump),
    scenario("the_network_is_left_alone", CRIU, empty_ns),
    scenario("a_label_this_kernel_has_not_is_refused", CRIU, lsm),
    scenario("who_may_not_save_is_told_before_anything_is_made", &[Ferry, Root, Criu, Tool("setpriv")], not_allowed),
];

/// A counter with the deed `deed`, up to so many lines.
fn begin(case: &mut Case, deed: &[&str]) -> Result<Row, Failed> {
    let mut row = Row::of(case.args(&[&["/probe"], deed].concat()).start()?);
    row.go_on(5)?;
    Ok(row)
}

/// A checkpoint without `flag` is refused, says so, and the container goes on; with it, it goes there and back.
fn only_with(case: &mut Case, row: &mut Row, flag: &str, also_back: bool) -> Outcome {
    let (images, id) = (images(case), case.id.clone());
    let said = case.call(&["checkpoint", "--image-path", &images, &id])?.failure()?.stderr;
    assert!(said.contains(flag), "{said}");
    assert_eq!(case.state()?["status"], "running");
    row.go_on(3)?;
    checkpoint(case, &[flag])?;
    let back: &[&str] = if also_back { &[flag] } else { &[] };
    let lines = restore(case, back)?;
    row.continued(lines)
}

fn file_locks(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["lock", "/home/lock"])?;
    only_with(case, &mut row, "--file-locks", true)?;
    let locked = case.exec(&[], &["/probe", "try-lock", "/home/lock"])?.success()?.json()?;
    assert_eq!(locked["ok"], false);
    Ok(())
}

fn link_remap(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["renamed", "/home/name"])?;
    only_with(case, &mut row, "--link-remap", false)?;
    let names = case.exec(&[], &["/probe", "list", "/home"])?.success()?.json()?.to_string();
    assert!(names.contains("name.other") && !names.contains("link_remap"), "{names}");
    Ok(())
}

fn ext_unix_sk(case: &mut Case) -> Outcome {
    let outside = case.host_directory("outside")?;
    let socket = UnixDatagram::bind(outside.join("socket"))?;
    socket.set_read_timeout(Some(case.patience()))?;
    // CRIU finds the other end by the network namespace, and again by the name that it bound.
    let inside = outside.display().to_string();
    config::add(&mut case.config, "/mounts", config::bind(&outside, &inside, &["bind"]));
    config::without_namespace(&mut case.config, "network");
    // What nobody takes from there would hold the sender up.
    let taken = std::thread::spawn(move || -> std::io::Result<()> {
        let mut bytes = [0; 32];
        for number in 0_u64.. {
            let length = socket.recv(&mut bytes)?;
            match &bytes[..length] {
                b"end" => break,
                got if *got == *number.to_string().as_bytes() => (),
                got => return Err(std::io::Error::other(format!("instead of {number} came {got:?}"))),
            }
        }
        Ok(())
    });
    let mut row = begin(case, &["send", &format!("{inside}/socket")])?;
    only_with(case, &mut row, "--ext-unix-sk", true)?;
    case.kill_and_wait("KILL")?;
    UnixDatagram::unbound()?.send_to(b"end", outside.join("socket"))?;
    Ok(taken.join().map_err(|_| "the reader panicked")??)
}

fn shell_job(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.args(&["/probe", "dialogue"]).write_config()?, case.id.clone());
    let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
    let mut screen = terminal.lines(case.patience())?;
    let mut child = terminal.spawn(&case.command(&["run", "--bundle", &bundle, &id]))?;
    screen.until("ready")?;
    terminal.type_in("ahoy\n")?;
    screen.until("1: ahoy")?;
    let directory = images(case);
    let said = case.call(&["checkpoint", "--image-path", &directory, &id])?.failure()?.stderr;
    assert!(said.contains("--shell-job"), "{said}");
    assert!(!fs::exists(&directory)?, "it was begun");
    terminal.type_in("still\n")?;
    screen.until("2: still")?;
    checkpoint(case, &["--shell-job"])?;
    output::wait(&mut child, case.patience())?;
    let other = Terminal::open(&case.stage.probe, 24, 80)?;
    let mut screen = other.lines(case.patience())?;
    let restore = ["restore", "--shell-job", "--image-path", &directory, "--bundle", &bundle, &id];
    let mut child = other.spawn(&case.command(&restore))?;
    other.type_in("back\n")?;
    screen.until("3: back")?;
    case.kill_and_wait("KILL")?;
    output::wait(&mut child, case.patience())?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// What engines send, of a container that has no such thing.
fn engines_flags(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["count", "1000000", "0"])?;
    checkpoint(case, &["--shell-job"])?;
    let lines = restore(case, &["-no-subreaper", "--no-pivot", "--shell-job"])?;
    row.continued(lines)
}

/// A server in the host's network, and a client's connection to it.
fn served(case: &mut Case, deed: &str) -> Result<(Lines, TcpStream), Failed> {
    config::without_namespace(&mut case.config, "network");
    let mut lines = case.args(&["/probe", deed]).start()?;
    let port = lines.until("port")?.trim_start_matches("port ").parse::<u16>()?;
    let client = TcpStream::connect(("127.0.0.1", port))?;
    client.set_read_timeout(Some(case.patience()))?;
    Ok((lines, client))
}

fn echoed(client: &mut TcpStream, expected: &str) -> Outcome {
    client.write_all(b"ahoy\n")?;
    let mut answer = vec![0; expected.len()];
    client.read_exact(&mut answer)?;
    assert_eq!(String::from_utf8_lossy(&answer), expected);
    Ok(())
}

fn tcp_close(case: &mut Case) -> Outcome {
    let (_lines, mut client) = served(case, "serve")?;
    echoed(&mut client, "1: ahoy\n")?;
    checkpoint(case, &["--tcp-close"])?;
    let (directory, id, bundle) = (images(case), case.id.clone(), case.bundle.path().display().to_string());
    let errors = fs::File::options().write(true).open(case.directory.join("errors"))?;
    let mut command = case.command(&["restore", "--tcp-close", "--image-path", &directory, "--bundle", &bundle, &id]);
    // The server finds its connection closed, and ends.
    let mut child = command.stdout(Stdio::piped()).stderr(errors).spawn()?;
    output::wait(&mut child, case.patience())?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn in_flight(case: &mut Case) -> Outcome {
    let (lines, _client) = served(case, "ignore")?;
    let mut row = Row::of(lines);
    row.go_on(5)?;
    only_with(case, &mut row, "--tcp-skip-in-flight", false)
}

fn network_lock(case: &mut Case) -> Outcome {
    let tables = || -> Result<String, Failed> {
        let list = Command::new("nft").args(["list", "tables"]).output()?;
        Ok(String::from_utf8_lossy(&list.stdout).into_owned())
    };
    let (_lines, mut client) = served(case, "serve")?;
    echoed(&mut client, "1: ahoy\n")?;
    let locked = ["--tcp-established", "--network-lock", "nftables"];
    checkpoint(case, &locked)?;
    assert!(tables()?.contains("CRIU"), "{}", tables()?);
    let _lines = restore(case, &locked)?;
    echoed(&mut client, "2: ahoy\n")?;
    assert!(!tables()?.contains("CRIU"), "{}", tables()?);
    Ok(())
}

/// A port that nobody listens on.
fn free_port() -> Result<u16, Failed> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// CRIU itself, told to write to its descriptor 3 once it is ready; returns when it has.
fn criu(case: &Case, args: &[&str]) -> Result<std::process::Child, Failed> {
    let ready = case.path("ready");
    nix::unistd::mkfifo(ready.as_str(), nix::sys::stat::Mode::S_IRWXU)?;
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 3>\"$0\"; exec criu \"$@\" --status-fd 3 >/dev/null 2>&1", &ready]).args(args);
    let child = shell.env(MARK, &case.directory).stdin(Stdio::null()).spawn()?;
    let mut byte = [1];
    fs::File::open(&ready)?.read_exact(&mut byte)?;
    assert_eq!(byte, [0]);
    Ok(child)
}

/// Whether this user may have a pipe as large as CRIU's largest.
fn has_large_pipes() -> Result<bool, Failed> {
    let (read, _write) = std::io::pipe()?;
    let size = nix::fcntl::FcntlArg::F_SETPIPE_SZ(4 << 20);
    Ok(nix::fcntl::fcntl(&read, size).is_ok())
}

fn lazy_pages(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["count", "1000000", "0"])?;
    if !has_large_pipes()? {
        let (directory, id) = (images(case), case.id.clone());
        let said = case.call(&["checkpoint", "--lazy-pages", "--image-path", &directory, &id])?.failure()?.stderr;
        assert!(said.contains("fs.pipe-max-size"), "{said}");
        return row.go_on(5);
    }
    let (directory, work, port) = (images(case), case.path("work"), free_port()?.to_string());
    let (id, other, bundle) = (case.id.clone(), case.other_id(), case.bundle.path().display().to_string());
    let address = format!("127.0.0.1:{port}");
    let status = case.path("status");
    nix::unistd::mkfifo(status.as_str(), nix::sys::stat::Mode::S_IRWXU)?;
    let dump = case.command(&[
        "checkpoint",
        "--lazy-pages",
        "--page-server",
        &address,
        "--status-fd",
        "3",
        "--image-path",
        &directory,
        &id,
    ]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 3>\"$0\"; exec \"$@\"", &status]).arg(dump.get_program()).args(dump.get_args());
    let mut source = shell.env(MARK, &case.directory).stdin(Stdio::null()).spawn()?;
    let mut byte = [1];
    fs::File::open(&status)?.read_exact(&mut byte)?;
    assert_eq!(byte, [0]);
    fs::create_dir(&work)?;
    let daemon =
        ["lazy-pages", "--page-server", "--address", "127.0.0.1", "--port", &port, "-D", &directory, "-W", &work];
    let mut daemon = criu(case, &daemon)?;
    let args = ["restore", "--detach", "--lazy-pages", "--image-path", &directory, "--work-path", &work];
    let lines = case.begin(&[&args[..], &["--bundle", &bundle, &other]].concat())?;
    row.continued(lines)?;
    assert!(output::wait(&mut source, case.patience())?.success());
    assert!(output::wait(&mut daemon, case.patience())?.success());
    Ok(())
}

fn page_server(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["count", "1000000", "0"])?;
    let (directory, port) = (images(case), free_port()?.to_string());
    fs::create_dir(&directory)?;
    let args = ["page-server", "--address", "127.0.0.1", "--port", &port, "-D", &directory];
    let mut server = criu(case, &args)?;
    checkpoint(case, &["--page-server", &format!("127.0.0.1:{port}")])?;
    assert!(output::wait(&mut server, case.patience())?.success());
    let lines = restore(case, &[])?;
    row.continued(lines)
}

fn work_path(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["count", "1000000", "0"])?;
    let (work, directory) = (case.path("work"), images(case));
    checkpoint(case, &["--work-path", &work])?;
    let lines = restore(case, &["--work-path", &work])?;
    row.continued(lines)?;
    for log in ["dump.log", "restore.log"] {
        assert!(fs::exists(Path::new(&work).join(log))?, "{log}");
        assert!(!fs::exists(Path::new(&directory).join(log))?, "{log}");
    }
    Ok(())
}

/// While the processes stand still every line costs: without it the log has what went wrong, or might have.
fn debug(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["count", "1000000", "0"])?;
    let (work, directory, id) = (case.path("work"), images(case), case.id.clone());
    let mut log = |before: &[&str]| -> Result<String, libtest_mimic::Failed> {
        let words = ["checkpoint", "--leave-running", "--image-path", &directory, "--work-path", &work, &id];
        case.call(&[before, &words].concat())?.success()?;
        Ok(fs::read_to_string(Path::new(&work).join("dump.log"))?)
    };
    let (short, whole) = (log(&[])?, log(&["--debug"])?);
    assert!(short.lines().all(|line| line.contains("Error (") || line.contains("Warn ")), "{short}");
    assert!(whole.lines().count() > 100 + short.lines().count(), "{whole}");
    row.go_on(3)
}

fn cgroups_mode(case: &mut Case) -> Outcome {
    for (mode, inside) in [("soft", true), ("ignore", false)] {
        let mut row = begin(case, &["count", "1000000", "0"])?;
        let [cgroup] = &case.cgroups()[..] else { return Err("it should have one cgroup".into()) };
        let inner = cgroup.join("inner");
        fs::create_dir(&inner)?;
        fs::write(inner.join("cgroup.procs"), case.pid()?.to_string())?;
        checkpoint(case, &["--manage-cgroups-mode", mode])?;
        let lines = restore(case, &["--manage-cgroups-mode", mode])?;
        row.continued(lines)?;
        let place = fs::read_to_string(format!("/proc/{}/cgroup", case.pid()?))?;
        let place = place.lines().find(|line| line.starts_with("0::")).unwrap_or_default();
        assert_eq!(place.ends_with("/inner"), inside, "{mode}: {place}");
        let id = case.id.clone();
        case.call(&["delete", "--force", &id])?.success()?;
        assert_eq!(case.leftovers()?, Vec::<String>::new(), "{mode}");
    }
    Ok(())
}

/// With the cgroups below the container's own that CRIU has made again.
fn cgroups_undone(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["count", "1000000", "0"])?;
    let [cgroup] = &case.cgroups()[..] else { return Err("it should have one cgroup".into()) };
    fs::create_dir_all(cgroup.join("inner/deep"))?;
    fs::write(cgroup.join("inner/deep/cgroup.procs"), case.pid()?.to_string())?;
    checkpoint(case, &[])?;
    case.config["hooks"] = json!({"poststart": [{"path": "/bin/false"}]});
    case.write_config()?;
    let Err(said) = restore(case, &[]) else { return Err("its hook did not fail".into()) };
    assert!(said.message().unwrap_or_default().contains("poststart"), "{said:?}");
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    case.config["hooks"] = json!({});
    case.write_config()?;
    let lines = restore(case, &[])?;
    row.continued(lines)
}

/// Blocks on disk of the pages in a directory of images.
fn blocks(directory: &str) -> Result<u64, Failed> {
    let mut total = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("pages-") {
            total += entry.metadata()?.blocks();
        }
    }
    Ok(total)
}

fn dedup_by_restore(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["count", "1000000", "0"])?;
    checkpoint(case, &[])?;
    let before = blocks(&images(case))?;
    let lines = restore(case, &["--auto-dedup"])?;
    row.continued(lines)?;
    assert!(blocks(&images(case))? < before, "of {before} blocks none was freed");
    Ok(())
}

fn dedup_by_dump(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["count", "1000000", "0"])?;
    let first = case.path("1");
    if !pre_dump(case, &first, &[])? {
        return row.go_on(5);
    }
    let before = blocks(&first)?;
    checkpoint(case, &["--parent-path", "../1", "--auto-dedup"])?;
    assert!(blocks(&first)? < before, "of {before} blocks none was freed");
    let lines = restore(case, &[])?;
    row.continued(lines)
}

fn empty_ns(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["count", "1000000", "0"])?;
    checkpoint(case, &["--empty-ns", "network"])?;
    let lines = restore(case, &["--empty-ns", "network"])?;
    row.continued(lines)?;
    let said = case.call(&["checkpoint", "--empty-ns", "ipc", "web"])?.failure()?.stderr;
    assert!(said.contains("only network can be left alone"), "{said}");
    Ok(())
}

fn lsm(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["count", "1000000", "0"])?;
    checkpoint(case, &[])?;
    let Err(said) = restore(case, &["--lsm-profile", "selinux:a:b:c:d"]) else { return Err("it was taken".into()) };
    let said = said.message().unwrap_or_default().to_owned();
    assert!(said.contains("selinux LSM specified"), "{said}");
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    // For a kernel without SELinux mounts have no context.
    let lines = restore(case, &["--lsm-mount-context", "system_u:object_r:container_file_t:s0"])?;
    row.continued(lines)
}

/// With the rights of an ordinary user, who has none.
fn not_allowed(case: &mut Case) -> Outcome {
    let mut row = begin(case, &["count", "1000000", "0"])?;
    let (images, id) = (images(case), case.id.clone());
    let without = |case: &mut Case, args: &[&str]| {
        let ferry = case.command(args);
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(ferry.get_program()).args(ferry.get_args());
        case.finish(command.env(MARK, &case.directory).stdin(Stdio::null()))
    };
    for flags in [&[][..], &["--pre-dump"], &["--leave-running"]] {
        let said =
            without(case, &[&["checkpoint", "--image-path", &images], flags, &[&id]].concat())?.failure()?.stderr;
        assert!(said.contains("CAP_CHECKPOINT_RESTORE, and this user has neither"), "{flags:?}: {said}");
        assert!(!Path::new(&images).exists(), "{flags:?}");
    }
    let found = without(case, &["doctor"])?.stdout;
    assert!(found.contains("of no use to this user"), "{found}");
    row.go_on(5)
}
