//! What a scenario needs of the machine, the user and the runtime, and the reason given where it is not there.

use super::stage::Stage;

/// One need. A scenario without any runs everywhere.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// To be root.
    Root,
    /// Not to be root.
    OrdinaryUser,
    /// A cgroup v2 tree with these controllers; with none, the tree alone.
    CgroupV2(&'static [&'static str]),
    /// These controllers where a container of this user is put: for an ordinary user, below a cgroup of its own.
    Delegated(&'static [&'static str]),
    /// A cgroup v2 tree without this controller, or none.
    NoController(&'static str),
    /// A systemd that makes cgroups for this user.
    Systemd,
    /// A kernel that merges memory for a process and what it executes.
    Ksm,
    /// A machine that is merging memory: it is not a test's to have all of it begin.
    KsmRuns,
    /// A kernel that can drop what comes in beyond a rate, or one that cannot.
    Policing(bool),
    /// A kernel with AppArmor in force.
    AppArmor,
    /// A kernel with SELinux in force, whose policy knows these contexts.
    SeLinux(&'static [&'static str]),
    /// A block device that a test may write over, named by `FERRY_TEST_DISK`.
    Disk,
    /// ferry itself: no other runtime has this.
    Ferry,
    /// A kernel of this version at least, and what it is needed for.
    Kernel(u32, u32, &'static str),
    /// A kernel that mounts EROFS images.
    Erofs,
    /// A program on this machine.
    Tool(&'static str),
    /// A CRIU that knows this machine's kernel.
    Criu,
    /// A kernel that tells which pages of memory were written to.
    SoftDirty,
    /// A kernel whose TCP sockets answer what every CRIU before 4.2 asks of them.
    CriuTcp,
    /// A runtime (the first word) known to differ here, and how. It is tried all the same: if it fails, that is counted
    /// as skipped.
    Peer(&'static str, &'static str),
}

impl Need {
    /// Why this cannot be had, or none.
    pub fn missing(&self, stage: &Stage) -> Option<String> {
        let root = nix::unistd::geteuid().is_root();
        match *self {
            Self::Root => (!root).then(|| "needs root".into()),
            Self::OrdinaryUser => root.then(|| "needs an ordinary user".into()),
            Self::CgroupV2(wanted) => missing_controllers(stage, wanted),
            Self::Delegated(wanted) => missing_controllers(stage, wanted).or_else(|| not_delegated(stage, wanted)),
            Self::NoController(name) => missing_controllers(stage, &[name])
                .is_none()
                .then(|| format!("needs a host without the controller {name}")),
            Self::Systemd => no_systemd(root),
            Self::Ksm => no_ksm(),
            Self::KsmRuns => {
                let runs = std::fs::read_to_string("/sys/kernel/mm/ksm/run").is_ok_and(|state| state.trim() == "1");
                (!runs).then(|| "needs KSM to run".into())
            }
            Self::Policing(there) => policing(there),
            Self::AppArmor => {
                let on = std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with(b"Y"));
                (!on).then(|| "needs a kernel with AppArmor".into())
            }
            Self::SeLinux(contexts) => no_selinux(contexts),
            Self::Disk => disk().is_none().then(|| "needs a scratch block device (FERRY_TEST_DISK)".into()),
            Self::Ferry => (stage.runtime.name != "ferry").then(|| format!("{} has no such verb", stage.runtime.name)),
            Self::Kernel(major, minor, what) => {
                (kernel() < vec![major, minor]).then(|| format!("needs Linux {major}.{minor}: {what}"))
            }
            Self::Erofs => no_erofs(),
            Self::Tool(name) => (!on_path(name)).then(|| format!("needs the program {name}")),
            Self::Criu => no_criu(),
            Self::SoftDirty => (!is_soft_dirty().unwrap_or(false)).then(|| "needs CONFIG_MEM_SOFT_DIRTY".into()),
            Self::CriuTcp => (!answers_passcred()).then(|| "needs a CRIU that knows this kernel's sockets".into()),
            Self::Peer(..) => None,
        }
    }

    /// How this runtime is known to differ.
    pub fn known_difference(&self, stage: &Stage) -> Option<String> {
        match *self {
            Self::Peer(name, how) if stage.runtime.name == name => Some(format!("{name}: {how}")),
            _ => None,
        }
    }
}

fn missing_controllers(stage: &Stage, wanted: &[&str]) -> Option<String> {
    let Some(tree) = &stage.cgroup_v2 else { return Some("needs a cgroup v2 tree".into()) };
    let there = std::fs::read_to_string(tree.join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<_> = wanted.iter().filter(|name| !there.split_whitespace().any(|word| word == **name)).collect();
    (!missing.is_empty()).then(|| format!("needs cgroup v2 controllers: {missing:?}"))
}

/// Root may enable what there is; anybody else has what the cgroup around their own gives.
fn not_delegated(stage: &Stage, wanted: &[&str]) -> Option<String> {
    if nix::unistd::geteuid().is_root() {
        return None;
    }
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let around = stage.cgroup_v2.as_ref()?.join(path).parent()?.to_owned();
    let is_ours = nix::unistd::access(&around, nix::unistd::AccessFlags::W_OK).is_ok();
    let there = std::fs::read_to_string(around.join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<_> = wanted.iter().filter(|name| !there.split_whitespace().any(|word| word == **name)).collect();
    (!is_ours || !missing.is_empty()).then(|| format!("needs {wanted:?} delegated in {}", around.display()))
}

fn no_systemd(root: bool) -> Option<String> {
    let runs = std::path::Path::new("/run/systemd/system").exists();
    let has_bus = root || std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some();
    (!runs || !has_bus).then(|| "needs systemd, and a bus to it".into())
}

fn no_selinux(contexts: &[&str]) -> Option<String> {
    let enforces = std::fs::read("/sys/fs/selinux/enforce").is_ok_and(|answer| answer.starts_with(b"1"));
    let is_unknown = |context: &&&str| std::fs::write("/sys/fs/selinux/context", context).is_err();
    match contexts.iter().find(is_unknown) {
        _ if !enforces => Some("needs a kernel with SELinux in force".into()),
        unknown => unknown.map(|context| format!("needs a policy of SELinux that knows {context}")),
    }
}

fn no_erofs() -> Option<String> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    // A module is loaded by the first mount.
    let modules = nix::sys::utsname::uname()
        .ok()
        .map(|name| format!("/lib/modules/{}/kernel/fs/erofs", name.release().to_string_lossy()));
    let is_module = modules.is_some_and(|path| std::path::Path::new(&path).exists());
    (!is_module && !known.split_whitespace().any(|word| word == "erofs")).then(|| "needs a kernel with EROFS".into())
}

/// Since Linux 6.16 the vDSO is made of more pages than an older CRIU looks for.
fn no_criu() -> Option<String> {
    static MISSING: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let look = || {
        if !on_path("criu") {
            return Some("needs the program criu".into());
        }
        let answer = std::process::Command::new("criu").arg("--version").output().ok()?;
        let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
        let version = answer.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap_or_default();
        let fits = kernel() < vec![6, 16] || numbers(version) >= vec![4, 1];
        (!fits).then(|| format!("needs a CRIU that knows this kernel, not {version:?}"))
    };
    MISSING.get_or_init(look).clone()
}

/// The kernel's version, part by part.
fn kernel() -> Vec<u32> {
    numbers(&std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default())
}

fn numbers(version: &str) -> Vec<u32> {
    version.split(['.', '-']).map_while(|digits| digits.trim().parse().ok()).collect()
}

fn no_ksm() -> Option<String> {
    let there = std::path::Path::new("/sys/kernel/mm/ksm/run").exists() && kernel() >= vec![6, 7];
    (!there).then(|| "needs Linux 6.7 with KSM".into())
}

/// Tried out in a network namespace that ends with the trial.
fn policing(wanted: bool) -> Option<String> {
    let trial =
        "tc qdisc add dev lo clsact && tc filter add dev lo ingress matchall action police rate 1mbit burst 100k";
    let there = std::process::Command::new("unshare").args(["--net", "sh", "-c", trial]).output();
    let there = there.is_ok_and(|there| there.status.success());
    (there != wanted)
        .then(|| format!("needs a kernel {} cls_matchall and act_police", if wanted { "with" } else { "without" }))
}

/// The scratch block device.
pub fn disk() -> Option<std::path::PathBuf> {
    std::env::var_os("FERRY_TEST_DISK").map(Into::into)
}

/// Since Linux 6.16 only UNIX sockets know this option.
fn answers_passcred() -> bool {
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0));
    socket.is_ok_and(|socket| nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PassCred).is_ok())
}

/// Bit 55 of a page's row. pagemap(5), Documentation/admin-guide/mm/soft-dirty.rst
fn is_soft_dirty() -> std::io::Result<bool> {
    use std::os::unix::fs::FileExt;
    const PAGE: usize = 4096;
    let memory = vec![1_u8; 2 * PAGE];
    let page = (memory.as_ptr() as usize).div_ceil(PAGE);
    let mut row = [0; 8];
    std::fs::File::open("/proc/self/pagemap")?.read_exact_at(&mut row, 8 * page as u64)?;
    Ok(u64::from_le_bytes(row) >> 55 & 1 == 1)
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}
