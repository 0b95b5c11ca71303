//! The machine: a private view of it in which every runtime finds the same, and what must be said about it beside the
//! figures.
//!
//! The runtimes choose between cgroup v1 and v2 by what is mounted on /sys/fs/cgroup. Where that is a hybrid, a mount
//! namespace of our own gets the v2 tree there; the machine's own mounts stay as they are.

use std::ffi::{CStr, CString, c_ulong};
use std::io::Error;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::null;

const CGROUP: &CStr = c"/sys/fs/cgroup";

/// A tmpfs of our own for bundles and state, seen by nobody else and gone with `leave`.
pub struct Workspace(PathBuf);

/// Enters the private view. The answer is the workspace.
pub fn enter() -> Result<Workspace, String> {
    called(unsafe { libc::unshare(libc::CLONE_NEWNS) }, "make a mount namespace (root is needed)")?;
    mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE)?;
    pure_cgroup_v2()?;
    // What a `create` leaves behind must be ours to reap: pid 1 may take its time, and a zombie keeps its cgroup busy.
    called(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }, "become a subreaper")?;
    let path = std::env::temp_dir().join(format!("ferry-compare-{}", std::process::id()));
    std::fs::create_dir(&path).map_err(|why| format!("cannot make {}: {why}", path.display()))?;
    mount(c"tmpfs", &c_path(&path)?, c"tmpfs", 0)?;
    Ok(Workspace(path))
}

impl Workspace {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Unmounts and removes the directory.
    pub fn leave(self) -> Result<(), String> {
        let path = c_path(&self.0)?;
        called(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }, "unmount the workspace")?;
        called(unsafe { libc::rmdir(path.as_ptr()) }, "remove the workspace")
    }
}

/// Puts this process, and what it starts, before all ordinary ones.
pub fn realtime() -> Result<(), String> {
    let lowest = libc::sched_param { sched_priority: 1 };
    called(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &lowest) }, "be scheduled as SCHED_FIFO")
}

fn pure_cgroup_v2() -> Result<(), String> {
    if is_cgroup_v2(CGROUP)? {
        return Ok(());
    }
    // A copy of the mount, where there is one: mounting the tree anew would reset its options for the whole machine.
    let unified = c"/sys/fs/cgroup/unified";
    let there = Path::new("/sys/fs/cgroup/unified").exists() && is_cgroup_v2(unified)?;
    let copy = there.then(|| unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, unified.as_ptr(), libc::OPEN_TREE_CLONE) as i32
    });
    called(unsafe { libc::umount2(CGROUP.as_ptr(), libc::MNT_DETACH) }, "unmount the cgroup trees in our view")?;
    let Some(copy) = copy else {
        return mount(c"cgroup2", CGROUP, c"cgroup2", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC);
    };
    called(copy, "copy the cgroup v2 mount")?;
    const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
    let (here, nothing) = (libc::AT_FDCWD, c"".as_ptr());
    let flags = MOVE_MOUNT_F_EMPTY_PATH;
    let moved = unsafe { libc::syscall(libc::SYS_move_mount, copy, nothing, here, CGROUP.as_ptr(), flags) as i32 };
    called(moved, "put the cgroup v2 tree on /sys/fs/cgroup")?;
    called(unsafe { libc::close(copy) }, "close the copied mount")
}

fn is_cgroup_v2(path: &CStr) -> Result<bool, String> {
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    called(unsafe { libc::statfs(path.as_ptr(), &mut answer) }, "statfs the cgroup tree")?;
    Ok(answer.f_type == libc::CGROUP2_SUPER_MAGIC)
}

fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: c_ulong) -> Result<(), String> {
    let answer = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, null()) };
    called(answer, &format!("mount {} in our view", target.to_string_lossy()))
}

fn called(answer: i32, deed: &str) -> Result<(), String> {
    if answer < 0 { Err(format!("cannot {deed}: {}", Error::last_os_error())) } else { Ok(()) }
}

/// A path for the kernel.
pub fn c_path(path: &Path) -> Result<CString, String> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| format!("{} holds a zero byte", path.display()))
}

/// What a reader must know about the machine.
pub struct Facts {
    /// The kernel's release.
    pub kernel: String,
    /// Processors online.
    pub processors: usize,
    /// The load average over the last minute, when the comparison began.
    pub load: f64,
}

impl Facts {
    /// Reads them now.
    pub fn read() -> Facts {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let load = text("/proc/loadavg");
        Facts {
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            processors: std::thread::available_parallelism().map_or(1, Into::into),
            load: load.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN),
        }
    }

    /// Whether something else is likely to be at work. Not knowing counts as that.
    pub fn busy(&self) -> bool {
        self.load.is_nan() || self.load >= 0.25 * self.processors as f64
    }
}
