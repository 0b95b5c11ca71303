//! What all tests share: the runtime under test, the probe, a temporary directory, and the list of what was skipped.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libtest_mimic::Completion;

/// How long a run of the runtime may take before it is killed and the test fails. Nothing here is long; a machine that is
/// emulated may need a multiple, `FERRY_TEST_PATIENCE` seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether what is repeated is to be repeated as often as it should: `FERRY_LONG`.
pub fn is_long() -> bool {
    std::env::var_os("FERRY_LONG").is_some()
}

/// The runtime under test.
#[derive(Debug, Default)]
pub struct Runtime {
    /// The program.
    pub path: PathBuf,
    /// Its name: the first word of `--version`.
    pub name: String,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Stage {
    /// The runtime under test.
    pub runtime: Runtime,
    /// A directory of this run's own. Every case has one below.
    pub directory: PathBuf,
    /// The probe inside that directory, to be linked into root file systems.
    pub probe: PathBuf,
    /// Where cgroup v2 is mounted on this machine.
    pub cgroup_v2: Option<PathBuf>,
    /// The time limit of each wait.
    pub patience: Duration,
    skipped: Mutex<BTreeMap<String, Vec<String>>>,
    cases: AtomicU32,
}

impl Stage {
    /// A stage to list tests on, and not to run any.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Finds the runtime and the probe.
    pub fn prepare() -> Result<Self, Box<dyn Error>> {
        let directory = std::env::temp_dir().join(format!("ferry-test-{}", std::process::id()));
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        let probe = directory.join("probe");
        fs::copy(find_probe()?, &probe)?;
        fs::set_permissions(&probe, fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            runtime: find_runtime()?,
            directory,
            probe,
            cgroup_v2: find_cgroup_v2()?,
            patience: std::env::var("FERRY_TEST_PATIENCE")
                .map_or(Ok(PATIENCE), |seconds| seconds.parse().map(Duration::from_secs))?,
            ..Self::default()
        })
    }

    /// A number that no other case of this run has.
    pub fn next_case(&self) -> u32 {
        self.cases.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes that `test` did not run.
    pub fn skip(&self, test: &str, why: String) -> Completion {
        if let Ok(mut skipped) = self.skipped.lock() {
            skipped.entry(why.clone()).or_default().push(test.to_owned());
        }
        Completion::ignored_with(why)
    }

    /// `skipped: N`, and a line for every reason.
    pub fn print_skipped(&self) {
        let Ok(skipped) = self.skipped.lock() else { return };
        println!("skipped: {}", skipped.values().map(Vec::len).sum::<usize>());
        for (why, tests) in &*skipped {
            println!("  {} x {why}: {}", tests.len(), tests.join(" "));
        }
    }

    /// Removes the directory; the cases have removed theirs, so that a failure here is a leak worth failing for.
    pub fn leave(&self) -> Result<(), Box<dyn Error>> {
        fs::remove_file(&self.probe)?;
        fs::remove_dir(&self.directory).map_err(|error| format!("{} is left: {error}", self.directory.display()).into())
    }
}

fn find_runtime() -> Result<Runtime, Box<dyn Error>> {
    let given = std::env::var_os("FERRY_RUNTIME").map(PathBuf::from);
    let path = given.unwrap_or_else(|| env!("CARGO_BIN_EXE_ferry").into());
    let version = Command::new(&path).arg("--version").output().map_err(|e| format!("{}: {e}", path.display()))?;
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    let name = text.split_whitespace().next().unwrap_or("ferry").to_owned();
    Ok(Runtime { path, name })
}

/// `FERRY_PROBE`, or beside this binary's directory what cargo makes of it.
fn find_probe() -> Result<PathBuf, Box<dyn Error>> {
    if let Some(path) = std::env::var_os("FERRY_PROBE") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let profile = own.parent().and_then(Path::parent).ok_or("this program has no directory")?;
    if let Some(cargo) = std::env::var_os("CARGO") {
        build_probe(&cargo, profile)?;
    }
    Ok(profile.join("probe"))
}

/// The probe is another package of the workspace, which cargo does not build for this one's tests.
fn build_probe(cargo: &std::ffi::OsStr, profile: &Path) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "probe"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        command.arg("--release");
    }
    if command.status()?.success() { Ok(()) } else { Err("the probe does not build".into()) }
}

fn find_cgroup_v2() -> Result<Option<PathBuf>, Box<dyn Error>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().rfind(|line| line.contains(" - cgroup2 "));
    Ok(line.and_then(|line| line.split(' ').nth(4)).map(PathBuf::from))
}
