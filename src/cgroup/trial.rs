//! A cgroup of a test's own in this host's v2 tree, removed when the test ends, however it ends.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use super::fs::{self, Cgroup};
use super::life;
use super::location::{self, Location};
use super::resources::Limits;

/// Longer than any event here takes, shorter than a test run's patience.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Says that this host lacks what the rest of a test needs. Not by way of the harness, which keeps what a test prints to itself unless it
/// fails: tests/run takes these lines from those that passed, by the test's name, which its thread has.
pub(crate) fn skip(why: &str) {
    use std::io::Write;
    let thread = std::thread::current();
    let line = format!("\nskipped: {}: {why}\n", thread.name().unwrap_or("a test"));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// A trial's directory and the processes in it.
pub(crate) struct Trial {
    pub location: Location,
    children: Vec<Child>,
}

impl Trial {
    /// `None`, with the reason told, where a test cannot make cgroups.
    pub fn new(test: &str) -> Option<Self> {
        let skip = |why: &str| {
            skip(why);
            None
        };
        if !nix::unistd::geteuid().is_root() {
            return skip("not root");
        }
        let Some(tree) = location::find_tree().unwrap() else { return skip("no cgroup v2 tree on this host") };
        let path = PathBuf::from(format!("ferry-test-{}-{test}", std::process::id()));
        let location = Location { mount: tree.mount, path, explicit: true };
        match std::fs::create_dir(location.dir()) {
            Ok(()) => Some(Self { location, children: Vec::new() }),
            Err(error) => skip(&format!("{}: {error}", location.dir().display())),
        }
    }

    /// A place below the trial.
    pub fn below(&self, path: &str) -> Location {
        Location { path: self.location.path.join(path), ..self.location.clone() }
    }

    /// Makes a cgroup below the trial.
    pub fn create(&self, path: &str) -> Cgroup {
        let cgroup = fs::create(&self.below(path), &Limits::default()).unwrap().unwrap();
        cgroup.unlock().unwrap();
        cgroup
    }

    /// Starts a process that waits for its end, in a cgroup.
    pub fn start(&mut self, cgroup: &Cgroup) -> nix::unistd::Pid {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        self.children.push(child);
        fs::attach(cgroup, pid).unwrap();
        pid
    }

    /// Waits for the end of every process started, and tells which signals ended them.
    pub fn signals(&mut self) -> Vec<Option<i32>> {
        use std::os::unix::process::ExitStatusExt;
        self.children.drain(..).map(|mut child| child.wait().unwrap().signal()).collect()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let mut ended = true;
        for child in &mut self.children {
            ended &= child.kill().and_then(|()| child.wait()).is_ok();
        }
        let removed = fs::open(&self.location.dir()).and_then(|cgroup| life::remove(&cgroup, PATIENCE));
        println!("trial over: processes ended: {ended}, cgroup removed: {removed:?}");
    }
}
