//! Filters bind the thread that installs them, so each of these gets a thread of its own. What that thread still needs
//! to end is allowed.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::super::compile;
use super::{DOCKER, profile};
use crate::sys::seccomp::install;

fn confined<T: Send + 'static>(json: &'static str, act: fn(Option<OwnedFd>) -> T) -> T {
    let confine = move || {
        let program = compile(&profile(json)).unwrap().unwrap();
        nix::sys::prctl::set_no_new_privs().unwrap();
        act(install(program.flags, &program.instructions).unwrap())
    };
    std::thread::spawn(confine).join().unwrap()
}

fn openat2() -> Result<(), rustix::io::Errno> {
    rustix::fs::openat2(CWD, "/", OFlags::PATH, Mode::empty(), ResolveFlags::empty()).map(drop)
}

#[test]
fn allowed_denied_and_newer_calls_get_their_answers() {
    assert!(openat2().is_ok() && nix::unistd::getcwd().is_ok());
    let (allowed, denied, newer) = confined(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": [
            "brk", "close", "exit", "exit_group", "futex", "getuid", "madvise", "mmap", "mprotect", "munmap",
            "openat", "read", "rt_sigprocmask", "rt_sigreturn", "sched_yield", "sigaltstack", "write"]}]}"#,
        |_| (nix::unistd::getuid(), nix::unistd::getcwd(), openat2()),
    );
    assert_eq!(allowed, nix::unistd::getuid());
    assert_eq!(denied, Err(Errno::EPERM));
    assert_eq!(newer, Err(rustix::io::Errno::NOSYS));
}

#[test]
fn dockers_profile_is_taken_and_keeps_mounting_out() {
    let answer = confined(DOCKER, |_| rustix::mount::fsopen("tmpfs", rustix::mount::FsOpenFlags::empty()).map(drop));
    assert_eq!(answer, Err(rustix::io::Errno::PERM));
}

#[test]
fn conditions_look_at_both_halves_of_an_argument() {
    let answers = confined(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO", "errnoRet": 7,
            "names": ["lseek"], "args": [{"index": 1, "value": 21474836480, "op": "SCMP_CMP_GE"}]}]}"#,
        |_| {
            let file = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            [(4 << 32) | 0xffff_ffff, 5 << 32, 6 << 32]
                .map(|offset| rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(offset)).err())
        },
    );
    let refused = Some(rustix::io::Errno::TOOBIG);
    assert_eq!(answers, [None, refused, refused]);
}

#[test]
fn a_notifying_filter_answers_its_listener() {
    let listener = confined(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent",
            "syscalls": [{"names": ["chroot"], "action": "SCMP_ACT_NOTIFY"}]}"#,
        |listener| listener,
    );
    let flags = rustix::io::fcntl_getfd(listener.unwrap()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}
