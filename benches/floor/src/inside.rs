//! What the container's first process does between clone3 and execve: `runc spec`'s default config, applied literally.
//!
//! The order is the usual one: mounts while the host is still in sight, pivot_root, then what must be hidden or
//! read-only, privileges last because the mounts need them.

use std::ffi::{CStr, c_char, c_int, c_ulong};

use crate::kernel;

const NOSUID: c_ulong = libc::MS_NOSUID;
const NOEXEC: c_ulong = libc::MS_NOEXEC;
const NODEV: c_ulong = libc::MS_NODEV;
const RDONLY: c_ulong = libc::MS_RDONLY;

/// CAP_AUDIT_WRITE, CAP_KILL, CAP_NET_BIND_SERVICE.
const CAPABILITIES: u64 = 1 << 29 | 1 << 5 | 1 << 10;
/// The capabilities that Linux 5.9 and later have: 0 to CAP_CHECKPOINT_RESTORE.
const CAPABILITY_COUNT: c_ulong = 41;

const MASKED: [&CStr; 10] = [
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/proc/sched_debug",
    c"/sys/firmware",
    c"/proc/scsi",
];
const READ_ONLY: [&CStr; 5] = [c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];

/// Name, major and minor of the runtime-spec's default devices.
const DEVICES: [(&CStr, u32, u32); 6] = [
    (c"dev/null", 1, 3),
    (c"dev/zero", 1, 5),
    (c"dev/full", 1, 7),
    (c"dev/random", 1, 8),
    (c"dev/urandom", 1, 9),
    (c"dev/tty", 5, 0),
];

/// Everything before the gate: the container's view of the world.
pub fn build(rootfs: &CStr) {
    // By unshare, not by clone3: the new namespace's root must be the container's cgroup, which is entered only once
    // clone3 has made the namespaces.
    kernel::must(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }, "unshare");
    kernel::must(unsafe { libc::setsid() }, "setsid");
    loopback_up();
    kernel::mount(c"", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, c"");
    kernel::mount(rootfs, rootfs, c"", libc::MS_BIND | libc::MS_REC, c"");
    kernel::chdir(rootfs);
    mounts();
    devices();
    kernel::pivot_here();
    protect();
    kernel::must(unsafe { libc::sethostname(c"bench".as_ptr(), 5) }, "sethostname");
}

fn mounts() {
    kernel::mount(c"proc", c"proc", c"proc", 0, c"");
    kernel::mount(c"tmpfs", c"dev", c"tmpfs", NOSUID | libc::MS_STRICTATIME, c"mode=755,size=65536k");
    for directory in [c"dev/pts", c"dev/shm", c"dev/mqueue"] {
        kernel::mkdir(directory, 0o755);
    }
    let options = c"newinstance,ptmxmode=0666,mode=0620,gid=5";
    kernel::mount(c"devpts", c"dev/pts", c"devpts", NOSUID | NOEXEC, options);
    kernel::mount(c"shm", c"dev/shm", c"tmpfs", NOSUID | NOEXEC | NODEV, c"mode=1777,size=65536k");
    kernel::mount(c"mqueue", c"dev/mqueue", c"mqueue", NOSUID | NOEXEC | NODEV, c"");
    kernel::mount(c"sysfs", c"sys", c"sysfs", NOSUID | NOEXEC | NODEV | RDONLY, c"");
    let flags = NOSUID | NOEXEC | NODEV | RDONLY | libc::MS_RELATIME;
    kernel::mount(c"cgroup", c"sys/fs/cgroup", c"cgroup2", flags, c"");
}

fn devices() {
    unsafe { libc::umask(0) };
    for (path, major, minor) in DEVICES {
        let device = libc::makedev(major, minor);
        kernel::must(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, device) }, "mknod");
    }
    unsafe { libc::umask(0o022) };
    kernel::symlink(c"/proc/self/fd", c"dev/fd");
    kernel::symlink(c"/proc/self/fd/0", c"dev/stdin");
    kernel::symlink(c"/proc/self/fd/1", c"dev/stdout");
    kernel::symlink(c"/proc/self/fd/2", c"dev/stderr");
    kernel::symlink(c"pts/ptmx", c"dev/ptmx");
}

/// Masked paths, read-only paths, the read-only root.
fn protect() {
    for path in MASKED {
        // Asked first: a mount that fails has made and torn down a mount, and the tearing down waits for RCU.
        match kernel::is_directory(path) {
            None => {}
            Some(false) => kernel::mount(c"/dev/null", path, c"", libc::MS_BIND, c""),
            Some(true) => kernel::mount(c"tmpfs", path, c"tmpfs", RDONLY, c""),
        }
    }
    for path in READ_ONLY {
        if kernel::is_directory(path).is_some() {
            kernel::mount(path, path, c"", libc::MS_BIND | libc::MS_REC, c"");
            kernel::read_only(path, libc::AT_RECURSIVE);
        }
    }
    kernel::read_only(c"/", 0);
}

/// Brings `lo` up: a new network namespace has it down.
fn loopback_up() {
    let socket =
        kernel::must(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }, "socket");
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    kernel::must(unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &request) }, "lo up");
    kernel::close(socket);
}

/// Limits, identity and capabilities, then the program.
pub fn become_program(argv: *const *const c_char) -> ! {
    let limit = libc::rlimit { rlim_cur: 1024, rlim_max: 1024 };
    kernel::must(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, "setrlimit");
    for capability in (0..CAPABILITY_COUNT).filter(|capability| CAPABILITIES & 1 << capability == 0) {
        kernel::prctl(libc::PR_CAPBSET_DROP, capability, 0, "bounding set");
    }
    identity();
    capabilities();
    kernel::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, "no_new_privs");
    let (first, last, flags) = (3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    kernel::must(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }, "close_range");
    kernel::execute(argv)
}

/// uid 0, gid 0, no further groups. Raw calls: there is one thread, and the C library's wrappers look for others.
fn identity() {
    kernel::must(unsafe { libc::syscall(libc::SYS_setgroups, 0, 0) }, "setgroups");
    kernel::must(unsafe { libc::syscall(libc::SYS_setgid, 0) }, "setgid");
    kernel::must(unsafe { libc::syscall(libc::SYS_setuid, 0) }, "setuid");
}

/// The sets of the config: effective and permitted; none are inheritable, so none can be ambient.
fn capabilities() {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let [low, high] = [CAPABILITIES as u32, (CAPABILITIES >> 32) as u32];
    let sets: [u32; 6] = [low, low, 0, high, high, 0];
    kernel::must(unsafe { libc::syscall(libc::SYS_capset, &header, &sets) }, "capset");
}

/// Waits for a byte at the gate.
pub fn wait_at(gate: c_int) {
    kernel::read(gate, &mut [0]);
}
