//! What runs out: descriptors, memory, processes, room and inodes for the state, leave to write it. Each time the verb succeeds
//! or says what it could not do, and `delete --force` leaves nothing; whoever else runs goes on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use libtest_mimic::Failed;
use serde_json::json;

use super::case::Case;
use super::need::Need::{Ferry, OrdinaryUser, Root, Tool};
use super::output::Output;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config::add;

pub const SCENARIOS: &[Scenario] = &[
    scenario("too_few_descriptors", &[Ferry, Tool("prlimit")], descriptors),
    scenario("too_little_memory", &[Ferry, Tool("prlimit")], memory),
    scenario("no_process_more", &[Ferry, OrdinaryUser, Tool("prlimit")], processes),
    scenario("no_room_for_the_state", &[Ferry, Root], room),
    scenario("no_inode_for_the_state", &[Ferry, Root], inodes),
    scenario("a_state_directory_that_cannot_be_written", &[Ferry], read_only),
];

/// How often each of a shortage's degrees ended how.
#[derive(Debug, Default)]
struct Tally {
    successes: u32,
    errors: Vec<String>,
}

impl Tally {
    /// Counts an end; one without a word about it is a failure of the test.
    fn count(&mut self, degree: &str, end: Output) -> Outcome {
        if end.code == 0 {
            self.successes += 1;
            return Ok(());
        }
        // The library's own word where not even an error can be made.
        let told = ["ferry: ", "memory allocation of "].iter().any(|word| end.stderr.contains(word));
        assert!(told && !end.stderr.contains("panicked"), "{degree}: {}, {:?}", end.code, end.stderr);
        self.errors.push(end.stderr);
        Ok(())
    }

    /// The shortage was one, and ended: some degrees fail, with these words among what is said, and the last ones succeed.
    fn tells(&self, words: &[&str]) {
        assert!(self.successes > 0 && !self.errors.is_empty(), "{self:?}");
        let told = |word: &&str| self.errors.iter().any(|error| error.contains(*word));
        assert!(words.iter().any(told), "{words:?}: {self:?}");
    }
}

/// Tries `run` and `create` under each of the limits, while another container runs.
fn under(case: &mut Case, limits: &[String], words: &[&str]) -> Outcome {
    let other = case.args(&["/probe", "sleep", "forever"]).start_other()?;
    let bundle = case.args(&["/probe", "exit", "0"]).write_config()?;
    let id = case.id.clone();
    for verb in ["run", "create"] {
        let mut tally = Tally::default();
        for limit in limits {
            let plain = case.command(&[verb, "--bundle", &bundle, &id]);
            let mut limited = Command::new("prlimit");
            limited.arg(limit).arg("--").arg(plain.get_program()).args(plain.get_args()).stdin(Stdio::null());
            limited.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
            let end = case.finish(&mut limited)?;
            tally.count(&format!("{verb} with {limit}"), end)?;
            cleaned(case, &other)?;
        }
        tally.tells(words);
    }
    assert_eq!(case.call(&["state", &other])?.success()?.json()?["status"], "running");
    case.call(&["delete", "--force", &other])?.success().map(drop)
}

/// Deletes what may be there; nothing is left of it then but the other container.
fn cleaned(case: &mut Case, other: &str) -> Outcome {
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    assert!(!case.state_root().join(&id).exists());
    // Its cgroup has the case's name and more.
    let left: Vec<PathBuf> =
        case.cgroups().into_iter().filter(|path| other.is_empty() || !path.ends_with(other)).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    assert!(other.is_empty() || case.state_root().join(other).exists());
    Ok(())
}

fn descriptors(case: &mut Case) -> Outcome {
    let limits: Vec<String> = (3..=24).chain([64]).map(|count| format!("--nofile={count}:{count}")).collect();
    under(case, &limits, &["Too many open files"])
}

/// For what a program allocates, of which a large environment takes much. Counted from what this build needs to begin at all.
fn memory(case: &mut Case) -> Outcome {
    const STEP: u64 = 16 << 10;
    let begins = |bytes: &u64| {
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--data={bytes}")).arg(&case.stage.runtime.path).arg("--version");
        limited.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let least = (1..4096).map(|steps| steps * STEP).find(begins).ok_or("no limit is enough")?;
    (0..400)
        .for_each(|number| add(&mut case.config, "/process/env", json!(format!("FILL{number}={}", "x".repeat(1000)))));
    let sizes = (0..24).map(|step| least + step * 4 * STEP).chain([64 << 20]);
    let limits: Vec<String> = sizes.map(|bytes| format!("--data={bytes}")).collect();
    under(case, &limits, &["memory allocation of", "Cannot allocate memory"])
}

fn processes(case: &mut Case) -> Outcome {
    under(case, &["--nproc=1".into(), "--nproc=1024".into()], &["a limit on processes is reached"])
}

/// A filesystem of its own for the state, for as long as this is there.
struct Disk(PathBuf);

impl Disk {
    fn mount(case: &Case, options: &str) -> Result<Self, Failed> {
        let root = case.state_root();
        fs::create_dir_all(&root)?;
        let options = format!("mode=755,{options}");
        nix::mount::mount(Some("state"), &root, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self(root))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let gone = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        assert!(gone.is_ok() || std::thread::panicking(), "{gone:?}");
    }
}

/// `create` and `delete` on each of the disks; what is deleted there needs no room.
fn on_disks(case: &mut Case, options: &[String]) -> Outcome {
    let bundle = case.args(&["/probe", "exit", "0"]).write_config()?;
    let id = case.id.clone();
    let mut tally = Tally::default();
    for options in options {
        let disk = Disk::mount(case, options)?;
        let end = case.call(&["create", "--bundle", &bundle, &id])?;
        let made = end.code == 0;
        tally.count(options, end)?;
        assert_eq!(made, disk.0.join(&id).exists(), "{options}: a failure leaves nothing");
        cleaned(case, "")?;
        drop(disk);
        assert_eq!(case.leftovers()?, Vec::<String>::new());
    }
    tally.tells(&["No space left on device"]);
    Ok(())
}

fn room(case: &mut Case) -> Outcome {
    on_disks(case, &[1, 2, 3, 64].map(|pages| format!("size={}", pages * 4096)))
}

fn inodes(case: &mut Case) -> Outcome {
    on_disks(case, &[1, 2, 3, 4, 5, 64].map(|count| format!("nr_inodes={count}")))
}

fn read_only(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (id, root) = (case.id.clone(), case.state_root());
    let bundle = case.write_config()?;
    let closed = match nix::unistd::geteuid().is_root() {
        // Root may write whatever its mode says.
        true => {
            nix::mount::mount(Some(&root), &root, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)?;
            let flags = nix::mount::MsFlags::MS_BIND | nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_RDONLY;
            let disk = Disk(root.clone());
            nix::mount::mount(None::<&str>, &root, None::<&str>, flags, None::<&str>)?;
            Some(disk)
        }
        false => {
            fs::set_permissions(root.join(&id), fs::Permissions::from_mode(0o511))?;
            fs::set_permissions(&root, fs::Permissions::from_mode(0o555))?;
            None
        }
    };
    for verb in ["create", "run"] {
        let end = case.call(&[verb, "--bundle", &bundle, "another"])?.failure()?;
        let named = root.display().to_string();
        assert!(end.stderr.contains(&named), "{verb}: {}", end.stderr);
    }
    // Who is there can be looked at, and entered.
    assert_eq!(case.call(&["state", &id])?.success()?.json()?["status"], "running");
    assert!(case.call(&["list"])?.success()?.stdout.contains(&id));
    case.exec(&[], &["/probe", "exit", "0"])?.success()?;
    drop(closed);
    if !nix::unistd::geteuid().is_root() {
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
        fs::set_permissions(root.join(&id), fs::Permissions::from_mode(0o711))?;
    }
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}
