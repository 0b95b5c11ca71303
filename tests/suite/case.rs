//! What one test has for itself: a bundle, its config.json as a value to edit, a private state directory, and the
//! containers it starts, which are gone when it ends, however it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::output::{self, Lines, Output};
use super::stage::Stage;
use crate::rootfs_fixtures::bundle::Bundle;
use crate::rootfs_fixtures::config;

/// The environment variable that marks every process of a case, by its directory.
pub const MARK: &str = "FERRY_TEST_CASE";

/// See the module.
#[derive(Debug)]
pub struct Case {
    /// What all cases share.
    pub stage: Arc<Stage>,
    /// A directory that is removed at the end.
    pub directory: PathBuf,
    /// The bundle. Its config.json is written from `config` whenever the runtime is to read it.
    pub bundle: Bundle,
    /// To be edited.
    pub config: Value,
    /// The container's id.
    pub id: String,
    /// Who makes the cgroup; empty: whoever the runtime takes by itself.
    pub driver: &'static str,
    others: Vec<String>,
    transcript: String,
}

impl Case {
    /// A fresh bundle with the base configuration for whoever runs this.
    pub fn new(stage: Arc<Stage>) -> Result<Self, Failed> {
        let number = stage.next_case();
        let directory = stage.directory.join(number.to_string());
        let bundle = Bundle::make(&directory.join("bundle"), &stage.probe)?;
        for path in [&directory, bundle.path(), &bundle.rootfs()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        let config = config::base(nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let id = format!("ferry-test-{}-{number}", std::process::id());
        Ok(Self { stage, directory, bundle, config, id, driver: "", others: Vec::new(), transcript: String::new() })
    }

    /// The time limit of a wait.
    pub fn patience(&self) -> Duration {
        self.stage.patience
    }

    /// The runtime's private state directory.
    pub fn state_root(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// What the runtime was asked, and its answers: printed when the test fails.
    pub fn transcript(&self) -> &str {
        &self.transcript
    }

    /// Begins the transcript anew, where there is no end to what is asked.
    pub fn forget_transcript(&mut self) {
        self.transcript.clear();
    }

    /// The command line `RUNTIME --root STATE ARGS…`, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.stage.runtime.path);
        let driver = (!self.driver.is_empty()).then(|| format!("--cgroup-manager={}", self.driver));
        command
            .arg("--root")
            .arg(self.state_root())
            .args(driver)
            .args(args)
            .env(MARK, &self.directory)
            .stdin(Stdio::null());
        command
    }

    /// The same command, by a caller that ignores what can be ignored: the real-time signals, too.
    pub fn ignoring(&self, command: &Command) -> Command {
        let mut ignoring = Command::new(&self.stage.probe);
        ignoring.arg("ignoring").arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        ignoring.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        ignoring
    }

    /// Runs the runtime to its end.
    pub fn call(&mut self, args: &[&str]) -> Result<Output, Failed> {
        let mut command = self.command(args);
        self.finish(&mut command)
    }

    /// Runs a command to its end.
    pub fn finish(&mut self, command: &mut Command) -> Result<Output, Failed> {
        let answer = output::run(command, self.patience());
        let words = command.get_args().skip(2).map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let told = match &answer {
            Ok(end) => format!("exit {} {:.400}{:.1000}", end.code, end.stdout.trim(), end.stderr.trim()),
            Err(why) => why.message().unwrap_or_default().to_owned(),
        };
        self.transcript += &format!("  $ {words}\n    {told}\n");
        answer
    }

    /// Writes config.json as it now stands.
    pub fn write_config(&self) -> Result<String, Failed> {
        self.bundle.write_config(&self.config)?;
        Ok(self.bundle.path().display().to_string())
    }

    /// Sets the program and its arguments.
    pub fn args(&mut self, args: &[&str]) -> &mut Self {
        self.config["process"]["args"] = json!(args);
        self
    }

    /// `run` in the foreground.
    pub fn run(&mut self) -> Result<Output, Failed> {
        let (bundle, id) = (self.write_config()?, self.id.clone());
        self.call(&["run", "--bundle", &bundle, &id])
    }

    /// Runs the probe and reads its report.
    pub fn report(&mut self) -> Result<Value, Failed> {
        self.run()?.success()?.json()
    }

    /// Runs one deed of the probe and reads what it says.
    pub fn deed(&mut self, deed: &[&str]) -> Result<Value, Failed> {
        self.args(&[&["/probe"], deed].concat()).run()?.success()?.json()
    }

    /// `create`, with the container's output as lines.
    pub fn create(&mut self) -> Result<Lines, Failed> {
        let (bundle, id) = (self.write_config()?, self.id.clone());
        self.begin(&["create", "--bundle", &bundle, &id])
    }

    /// Runs a verb that returns and leaves a process behind; that one's output comes as lines.
    pub fn begin(&mut self, args: &[&str]) -> Result<Lines, Failed> {
        let (lines, pipe) = Lines::pipe(self.patience())?;
        let errors = self.directory.join("errors");
        let mut command = self.command(args);
        let mut child = command.stdout(pipe).stderr(fs::File::create(&errors)?).spawn()?;
        drop(command);
        let status = output::wait(&mut child, self.patience())?;
        let told = fs::read_to_string(&errors)?;
        self.transcript += &format!("  $ {}\n    {status} {told}\n", args.join(" "));
        if status.success() { Ok(lines) } else { Err(format!("{}: {status}, {told}", args.join(" ")).into()) }
    }

    /// `create` and `start`.
    pub fn start(&mut self) -> Result<Lines, Failed> {
        let lines = self.create()?;
        let id = self.id.clone();
        self.call(&["start", &id])?.success()?;
        Ok(lines)
    }

    /// A container whose program waits until it is killed; returned once that program runs.
    pub fn start_waiting(&mut self) -> Result<(), Failed> {
        self.args(&["/probe", "sleep", "forever"]).start()?.until("ready").map(drop)
    }

    /// A second container, of the configuration as it now stands; its id, once the program in it says `ready`.
    pub fn start_other(&mut self) -> Result<String, Failed> {
        self.start_other_lines().map(|(id, _)| id)
    }

    /// As [`Case::start_other`], with its output from `ready` on.
    pub fn start_other_lines(&mut self) -> Result<(String, Lines), Failed> {
        let (bundle, id) = (self.write_config()?, self.other_id());
        let mut lines = self.begin(&["run", "--detach", "--bundle", &bundle, &id])?;
        lines.until("ready")?;
        Ok((id, lines))
    }

    /// Starts the runtime and does not wait; its output comes as lines.
    pub fn spawn(&mut self, args: &[&str]) -> Result<(Child, Lines), Failed> {
        let (lines, pipe) = Lines::pipe(self.patience())?;
        let child = self.command(args).stdout(pipe).spawn()?;
        Ok((child, lines))
    }

    /// `exec` in the container, with flags before the id.
    pub fn exec(&mut self, flags: &[&str], args: &[&str]) -> Result<Output, Failed> {
        let id = self.id.clone();
        self.call(&[&["exec"], flags, &[&id], args].concat())
    }

    /// `state`, parsed.
    pub fn state(&mut self) -> Result<Value, Failed> {
        let id = self.id.clone();
        self.call(&["state", &id])?.success()?.json()
    }

    /// The container's first process, as the host numbers it.
    pub fn pid(&mut self) -> Result<u32, Failed> {
        let state = self.state()?;
        state["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).ok_or_else(|| "the state has no pid".into())
    }

    /// `kill` and then a wait for the end of the container's first process.
    pub fn kill_and_wait(&mut self, signal: &str) -> Result<(), Failed> {
        let (pid, id) = (self.pid()?, self.id.clone());
        self.call(&["kill", &id, signal])?.success()?;
        self.wait_for(pid)
    }

    /// Waits for a process's end.
    pub fn wait_for(&self, pid: u32) -> Result<(), Failed> {
        if output::wait_for_pid(pid, self.patience())? {
            return Ok(());
        }
        Err(format!("{pid} still runs: {}", shown(pid)).into())
    }

    /// The case's processes, for a message.
    pub fn processes(&self) -> String {
        marked_processes(&self.directory).into_iter().map(shown).collect::<Vec<_>>().join("; ")
    }

    /// Another container's id, cleaned up like the case's own.
    pub fn other_id(&mut self) -> String {
        let id = format!("{}-{}", self.id, self.others.len() + 2);
        self.others.push(id.clone());
        id
    }

    /// A path in the case's directory, as text.
    pub fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// A new directory on the host, beside the bundle.
    pub fn host_directory(&self, name: &str) -> Result<PathBuf, Failed> {
        let path = self.directory.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// What is left of the case's containers on the host: processes, mounts and state, in words.
    pub fn leftovers(&self) -> Result<Vec<String>, Failed> {
        let processes = marked_processes(&self.directory).into_iter().map(|pid| format!("process {pid}"));
        let mounts = [mounts_below(&self.directory)?, mounts_from(&self.directory)?].concat();
        let mounts = mounts.into_iter().map(|mount| format!("mount {mount}"));
        let state = names_in(&self.state_root()).into_iter().map(|name| format!("state {name}"));
        let cgroups = self.cgroups().into_iter().map(|path| format!("cgroup {}", path.display()));
        Ok(processes.chain(mounts).chain(state).chain(cgroups).collect())
    }

    /// cgroup directories named after the case's container and those below, anywhere in the trees; parents come first.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        find_named(Path::new("/sys/fs/cgroup"), &self.id, &mut found);
        found
    }

    fn clean_up(&mut self) -> Result<(), Failed> {
        let ids = [vec![self.id.clone()], std::mem::take(&mut self.others)].concat();
        let state = self.state_root();
        let mut outcome = Ok(());
        for id in ids.iter().filter(|id| state.join(id).exists()) {
            outcome = outcome.and(self.call(&["delete", "--force", id]).and_then(Output::success).map(drop));
        }
        // All of it is done, whatever came before; the first error is told.
        outcome.and(self.clear()).and(remove_tree(&self.directory))
    }

    /// Ends and removes by hand what `delete --force` should have; an error where mounts are left.
    pub fn clear(&self) -> Result<(), Failed> {
        for pid in marked_processes(&self.directory) {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
            // It may have ended since.
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
        }
        marked_processes(&self.directory).into_iter().try_for_each(|pid| self.wait_for(pid))?;
        self.cgroups().iter().rev().try_for_each(|path| remove_cgroup(path, self.patience()))?;
        for name in names_in(&self.state_root()) {
            remove_tree(&self.state_root().join(name))?;
        }
        let mounts = [mounts_below(&self.directory)?, mounts_from(&self.directory)?].concat();
        if mounts.is_empty() { Ok(()) } else { Err(format!("mounts are left: {mounts:?}").into()) }
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if let Err(why) = self.clean_up() {
            println!("{}: not cleaned up: {}", self.id, why.message().unwrap_or_default());
        }
    }
}

/// Removes a cgroup, if it is there still. A process that was killed is in it until somebody has waited for it.
pub(super) fn remove_cgroup(path: &Path, limit: Duration) -> Result<(), Failed> {
    let end = Instant::now() + limit;
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => std::thread::yield_now(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            answer => return Ok(answer?),
        }
    }
}

/// Removes a directory and what is in it.
#[allow(clippy::disallowed_methods, reason = "a directory of the test's own, and no mounts are below it")]
pub fn remove_tree(path: &Path) -> Result<(), Failed> {
    Ok(fs::remove_dir_all(path)?)
}

/// Processes that have the case's mark in their environment or its directory among what they have mounted, by pid. Where it
/// is mounted does not count: a mount of the test's own on the host is for a moment in every new mount namespace. Neither does
/// what is mounted on the host itself: every process there has that.
pub fn marked_processes(directory: &Path) -> Vec<u32> {
    let mark = format!("{MARK}={}\0", directory.display());
    // As the file system counts that it is on, whose root need not be the host's: by its last two names.
    let names: Vec<_> = directory.components().rev().take(2).map(|name| name.as_os_str().to_string_lossy()).collect();
    let root = format!("/{}/{}/", names[1], names[0]);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let host: Vec<&str> = table.lines().filter(|line| line.contains(&root)).filter_map(mounted_root).collect();
    let marked = |pid: &u32| {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let mounted = |table: &[u8]| {
            let table = String::from_utf8_lossy(table);
            let is_own =
                |line: &&str| line.contains(&root) && mounted_root(line).is_none_or(|root| !host.contains(&root));
            table
                .lines()
                .filter(is_own)
                .any(|line| line.split(' ').enumerate().any(|(index, field)| index != 4 && field.contains(&root)))
        };
        memory_contains(&read("environ"), mark.as_bytes()) || mounted(&read("mountinfo"))
    };
    names_in(Path::new("/proc")).iter().filter_map(|name| name.parse().ok()).filter(marked).collect()
}

/// A process' name, state and parent, who traces it and where it waits: what tells why it does not end.
fn shown(pid: u32) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let stat: Vec<_> = read("stat").split(' ').take(4).map(str::to_owned).collect();
    let tracer = read("status").lines().find(|line| line.starts_with("TracerPid")).map(str::to_owned);
    format!("{} {} {}", stat.join(" "), tracer.unwrap_or_default(), read("wchan"))
}

/// By way of the standard library's search, which is quick in a debug build too: this is asked of every process of the host.
fn memory_contains(bytes: &[u8], text: &[u8]) -> bool {
    String::from_utf8_lossy(bytes).contains(&*String::from_utf8_lossy(text))
}

pub(super) fn mounts_below(directory: &Path) -> Result<Vec<String>, Failed> {
    let prefix = format!("{}/", directory.display());
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.filter(|point| point.starts_with(&prefix)).map(str::to_owned).collect())
}

/// Places where something of the directory is mounted. proc_pid_mountinfo(5)
fn mounts_from(directory: &Path) -> Result<Vec<String>, Failed> {
    let prefix = format!("{}/", directory.display());
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let rows = table.lines().filter(|line| mounted_root(line).is_some_and(|root| root.starts_with(&prefix)));
    Ok(rows
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| !point.starts_with(&prefix))
        .map(str::to_owned)
        .collect())
}

/// What of its filesystem is mounted, in a line of the table.
fn mounted_root(line: &str) -> Option<&str> {
    line.split(' ').nth(3)
}

/// Names in a directory; none if it is not there.
pub fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

pub(super) fn find_named(directory: &Path, name: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.path().to_string_lossy().contains(name) {
                found.push(entry.path());
            }
            find_named(&entry.path(), name, found);
        }
    }
}
