//! The native shim as a server: how it begins, what it bears, and what it leaves when it goes.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use super::case::{Case, marked_processes, remove_cgroup};
use super::need::Need::{CgroupV2, Ferry, Root, Tool};
use super::scenario::{Outcome, Scenario, scenario};
use super::shim::{Shim, exec};
use super::shim_client::{Client, Daemon, Message, clean_up};

/// By root, as for the rest of the shim.
pub const SCENARIOS: &[Scenario] = &[
    scenario("a_process_that_is_no_object_is_refused", &[Ferry, Root], no_object),
    scenario("what_is_being_made_ends_with_a_killed_shim", &[Ferry, Root], half_made),
    scenario("the_shim_has_more_descriptors_than_its_containers", &[Ferry, Root], descriptors),
    scenario("more_clients_than_descriptors_wait_their_turn", &[Ferry, Root], too_many),
    scenario("a_shim_that_ends_is_in_nobodys_way", &[Ferry, Root], succeeded),
    scenario("a_daemon_that_is_back_is_told_however_much_is_asked", &[Ferry, Root], told),
    scenario("a_cgroup_for_the_shim_has_to_be_there", &[Ferry, Root, CgroupV2(&[])], own_cgroup),
    scenario("a_root_is_mounted_from_a_loop_device", &[Ferry, Root, Tool("mkfs.ext4")], looped),
];

/// For what no event tells of.
fn waits(case: &Case, otherwise: &str, is_so: impl Fn() -> Result<bool, Failed>) -> Outcome {
    let until = Instant::now() + case.patience();
    while !is_so()? {
        assert!(Instant::now() < until, "{otherwise}");
        std::thread::yield_now();
    }
    Ok(())
}

/// What the shim says of itself.
fn pid(shim: &mut Shim) -> Result<u32, Failed> {
    let this = shim.this();
    Ok(u32::try_from(shim.client.done("Connect", &this)?.number(1))?)
}

fn no_object(case: &mut Case) -> Outcome {
    let mut shim = Shim::start(case)?;
    shim.create(|request| request)?;
    for process in ["[]", "5", "\"x\"", "true", "null", "{", ""] {
        let spec = Message::default().text(1, "x").text(2, process);
        let request = shim.this().text(2, "one").message(7, &spec);
        assert_eq!(shim.client.refused("Exec", &request)?.0, 3, "{process}");
    }
    shim.end(case)
}

/// The creation waits for a reader of its output.
fn half_made(case: &mut Case) -> Outcome {
    let mut shim = Shim::start(case)?;
    let stdout = case.path("unread");
    mkfifo(stdout.as_str(), Mode::from_bits_truncate(0o700))?;
    let request = shim.creation().text(6, &stdout);
    shim.client.begin("Create", &request)?;
    // Answered in turn: the worker is there.
    let server = pid(&mut shim)?;
    let processes = marked_processes(&case.directory);
    assert!(processes.len() > 1, "{processes:?}");
    kill(Pid::from_raw(i32::try_from(server)?), Signal::SIGKILL)?;
    processes.into_iter().try_for_each(|pid| case.wait_for(pid))?;
    clean_up(case, &shim.bundle, &shim.id)?;
    assert_eq!(case.leftovers()?, [""; 0]);
    Ok(())
}

/// Soft and hard limit.
fn open_files(pid: u32) -> Result<(String, String), Failed> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let row = limits.lines().find_map(|line| line.strip_prefix("Max open files")).ok_or("no limit")?;
    let mut words = row.split_whitespace().map(str::to_owned);
    Ok((words.next().unwrap_or_default(), words.next().unwrap_or_default()))
}

fn descriptors(case: &mut Case) -> Outcome {
    case.args(&["/probe", "sleep", "forever"]);
    let daemon = Daemon::new(case)?;
    let mut shim = Shim::start_after(case, daemon, "ulimit -Sn 64; ulimit -Hn 128")?;
    let first = shim.create(|request| request)?;
    let this = shim.this();
    shim.client.done("Start", &this)?;
    let request = exec(&shim, "one", &["/probe", "sleep", "forever"], |request| request);
    shim.client.done("Exec", &request)?;
    let second = shim.client.done("Start", &this.clone().text(2, "one"))?.number(1);
    let limits =
        [shim.pid, first, u32::try_from(second)?].map(open_files).into_iter().collect::<Result<Vec<_>, _>>()?;
    let [more, callers] = [("128", "128"), ("64", "128")].map(|(soft, hard)| (soft.to_owned(), hard.to_owned()));
    assert_eq!(limits, [more, callers.clone(), callers]);
    shim.client.done("Kill", &this.clone().number(3, 9))?;
    shim.client.done("Wait", &this)?;
    shim.end(case)
}

fn too_many(case: &mut Case) -> Outcome {
    let daemon = Daemon::new(case)?;
    let mut shim = Shim::start_after(case, daemon, "ulimit -n 32")?;
    let address = fs::read_to_string(shim.bundle.join("address"))?;
    let mut clients: Vec<_> = (0..40).map(|_| Client::connect(case, &address)).collect::<Result<_, _>>()?;
    let mut last = clients.pop().ok_or("no client")?;
    let this = shim.this();
    last.begin("State", &this)?;
    // Those who have come before are served, and between them it rests.
    let server = pid(&mut shim)?;
    waits(case, "it does not rest", || Ok(fs::read_to_string(format!("/proc/{server}/stat"))?.contains(") S ")))?;
    drop(clients);
    assert!(last.answer()?.1.is_err_and(|(code, _)| code == 5));
    shim.shut_down(case)
}

/// A daemon that confirms nothing keeps a shim for a while.
fn succeeded(case: &mut Case) -> Outcome {
    let daemon = Daemon::away(case);
    let _mute = UnixListener::bind(case.path("events"))?;
    let mut shim = Shim::start_after(case, daemon, "")?;
    shim.create(|request| request)?;
    let (first, this, request) = (shim.pid, shim.this(), shim.creation());
    shim.client.done("Delete", &this)?;
    let calls = [shim.client.begin("Shutdown", &this)?, shim.client.begin("Create", &request)?];
    let [(shutdown, over), (create, created)] = [shim.client.answer()?, shim.client.answer()?];
    assert_eq!(([shutdown, create], over.is_ok()), (calls, true));
    assert!(created.is_err_and(|(code, _)| code == 14));
    // At the same address, whether that one has ended or not.
    let address = shim.daemon.start(case, &shim.bundle, &shim.id)?;
    shim.client = Client::connect(case, &address)?;
    assert_ne!(pid(&mut shim)?, first);
    shim.create(|request| request)?;
    case.wait_for(first)?;
    shim.client = Client::connect(case, &address)?;
    shim.end(case)
}

fn told(case: &mut Case) -> Outcome {
    let daemon = Daemon::away(case);
    let mut shim = Shim::start_after(case, daemon, "")?;
    shim.create(|request| request)?;
    let (daemon, this, until) = (Daemon::new(case)?, shim.this(), Instant::now() + case.patience());
    while !daemon.hears(Duration::from_millis(100)) {
        shim.client.done("State", &this)?;
        assert!(Instant::now() < until, "it is told nothing");
    }
    shim.end(case)
}

fn own_cgroup(case: &mut Case) -> Outcome {
    let (bundle, id, daemon) = (PathBuf::from(case.write_config()?), case.id.clone(), Daemon::new(case)?);
    let options = |cgroup: &str| {
        let options = Message::default().text(3, cgroup);
        Message::default().text(1, "containerd.runc.v1.Options").message(2, &options)
    };
    let refused = daemon.start_after(case, &bundle, &id, "", &options("/no/such/cgroup"));
    let words = refused.err().and_then(|failed| failed.message().map(str::to_owned)).unwrap_or_default();
    assert!(words.contains("/no/such/cgroup") && words.contains("No such file"), "{words:?}");
    let socket = fs::read_to_string(bundle.join("address"))?.replace("unix://", "");
    assert!(!fs::exists(&socket)?, "its socket is left");

    let cgroup = case.stage.cgroup_v2.clone().ok_or("no cgroups")?.join(&id);
    fs::create_dir(&cgroup)?;
    let address = daemon.start_after(case, &bundle, &id, "", &options(&format!("/{id}")))?;
    let this = Message::default().text(1, &id);
    let mut client = Client::connect(case, &address)?;
    let server = client.done("Connect", &this)?.number(1);
    assert_eq!(fs::read_to_string(cgroup.join("cgroup.procs"))?, format!("{server}\n"));
    client.done("Shutdown", &this)?;
    case.wait_for(u32::try_from(server)?)?;
    remove_cgroup(&cgroup, case.patience())
}

/// As snapshots that are block devices in files are handed over.
fn looped(case: &mut Case) -> Outcome {
    case.args(&["/probe", "exit", "0"]);
    let (root, image) = (case.bundle.rootfs(), case.path("image"));
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-d"]).arg(&root).args([&image, "64M"]);
    case.finish(&mut mkfs)?.success()?;
    fs::remove_file(root.join("probe"))?;
    let mut shim = Shim::start(case)?;
    for (mode, read_only) in [("ro", "1"), ("rw", "0")] {
        let mount = Message::default().text(1, "ext4").text(2, &image).text(4, mode).text(4, "loop");
        shim.create(|request| request.message(3, &mount))?;
        let table = fs::read_to_string("/proc/self/mounts")?;
        let place = shim.bundle.join("rootfs").display().to_string();
        let row = table.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|row| row[1] == place);
        let row = row.ok_or("nothing is mounted")?;
        assert_eq!((row[2], row[3].split(',').next()), ("ext4", Some(mode)));
        let device = PathBuf::from(row[0].replace("/dev/", "/sys/block/"));
        assert_eq!(fs::read_to_string(device.join("ro"))?.trim(), read_only);
        assert_eq!(shim.run()?, 0);
        let this = shim.this();
        shim.client.done("Delete", &this)?;
        // It goes with the mount; another may have its number.
        let is_there = || fs::read_to_string(device.join("loop/backing_file")).is_ok_and(|file| file.trim() == image);
        waits(case, "the device is left", || Ok(!is_there()))?;
    }
    shim.shut_down(case)
}
