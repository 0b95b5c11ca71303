//! ferry's own jail: what a thread may still do that takes a stranger's bytes apart.
//!
//! An image's layers, checkpoints' archives and what a migration sends are decompressed and unpacked by code that is as right as it
//! can be made, zstd in C among it, and with the rights of whoever calls ferry, often root's. What their author gains by a mistake in
//! that code shall be little. So each thread that does such work gives up what it does not take before it sees the first byte:
//!
//! | thread | system calls | file system |
//! |---|---|---|
//! | verifies and decompresses a layer; looks into an archive | memory, reading, writing | nothing may be made, changed or executed by path |
//! | unpacks a layer or an archive | those, and what makes files | nothing may be opened or made but in the one directory |
//! | speaks TLS for a migration, or brings memory that follows a container: a process | memory, reading, writing, waiting for a descriptor | nothing may be opened |
//! | unpacks what a migration has brought | as for an archive | the same, and the directory with files' content that has come before |
//! | takes the rounds of a migration | those, waiting for a descriptor, and for the disk | the same |
//!
//! The first wall stays what it was: paths are walked by descriptor and never out of the directory (`openat2`). This is the second.
//! seccomp(2) and landlock(7) hold for a thread and what it starts, and cannot be taken off again; a thread is made for each layer,
//! archive or migration, and is gone before anything else is done with what it made.
//!
//! `ferry` never comes here: it is linked into `ferry-image` alone.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::thread::{Builder, ScopedJoinHandle};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::error::{Context, Error, Result};

/// The oldest Landlock that lets a file be linked from one directory to another, which every second layer does. Linux 5.19.
const OLDEST: ABI = ABI::V2;

/// The newest that is asked for, where the kernel has it. Linux 6.12.
const NEWEST: ABI = ABI::V6;

/// Memory, threads and time: what any code of the standard library's may do. A thread may end its process.
const ALWAYS: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
];

/// What is done with descriptors, and with files by descriptor or below one.
const FILES: &[libc::c_long] = &[
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What makes and changes files.
const MAKING: &[libc::c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_ftruncate,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lsetxattr,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// Waiting for the other end of a connection, and for the disk.
const WAITING: &[libc::c_long] = &[
    libc::SYS_fsync,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
];

/// The end of one direction of a connection.
const ENDING: &[libc::c_long] = &[libc::SYS_shutdown];

/// Of these, those that ask for memory with code in it are refused: there is no code but what is there already.
const MAPPING: [libc::c_long; 2] = [libc::SYS_mmap, libc::SYS_mprotect];

/// Which argument of theirs says what the memory is for.
const PROTECTION: u8 = 2;

/// Confines the calling thread to reading: it keeps the descriptors it has, and finds nothing by path that it could write to.
///
/// # Errors
/// The kernel knows such rules and refuses these.
pub fn read_only() -> Result<()> {
    let changing = AccessFs::from_write(NEWEST) | AccessFs::Execute;
    landlock(changing, &[])?;
    filter(&[ALWAYS, FILES])
}

/// Confines the calling thread to `directory` and what is below.
///
/// # Errors
/// The kernel knows such rules and refuses these.
pub fn only_below(directory: BorrowedFd<'_>) -> Result<()> {
    only_below_either(&[directory])
}

fn only_below_either(directories: &[BorrowedFd<'_>]) -> Result<()> {
    landlock(AccessFs::from_all(NEWEST), directories)?;
    filter(&[ALWAYS, FILES, MAKING])
}

/// Confines the calling thread to the descriptors it has, as ends of connections.
///
/// # Errors
/// The kernel knows such rules and refuses these.
pub fn two_ends() -> Result<()> {
    landlock(AccessFs::from_all(NEWEST), &[])?;
    filter(&[ALWAYS, FILES, WAITING, ENDING])
}

/// Work that takes a stranger's bytes apart.
#[derive(Debug, Clone, Copy)]
pub enum Work<'a> {
    /// Reads from what is open already.
    Reads,
    /// Reads that, and makes files below the directory.
    Unpacks(BorrowedFd<'a>),
    /// The same, with files that are below the second one.
    Places(BorrowedFd<'a>, BorrowedFd<'a>),
    /// The same, from the other end of a connection, which is answered; what was made is to be on disk.
    Receives(BorrowedFd<'a>),
}

/// Does work in a thread that can do nothing else, and answers what it answers.
///
/// # Errors
/// The work's own; there is no thread to be had, or it cannot be confined.
pub fn confined<T: Send>(work: Work<'_>, deed: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let deed = move || {
        match work {
            Work::Reads => read_only()?,
            Work::Unpacks(directory) => only_below(directory)?,
            Work::Places(directory, bodies) => only_below_either(&[directory, bodies])?,
            Work::Receives(directory) => {
                landlock(AccessFs::from_all(NEWEST), &[directory])?;
                filter(&[ALWAYS, FILES, MAKING, WAITING])?;
            }
        }
        deed()
    };
    std::thread::scope(|scope| joined(Builder::new().spawn_scoped(scope, deed)))
}

/// What a thread answered in the end.
///
/// # Errors
/// Its own; it could not be started.
pub fn joined<T>(thread: io::Result<ScopedJoinHandle<'_, Result<T>>>) -> Result<T> {
    let thread = thread.or_cannot("start", "a thread")?;
    thread.join().unwrap_or_else(|_| Err(Error::plain("a thread ended without an answer")))
}

/// Forbids `access` but below `except`, as far as the kernel has it.
fn landlock(access: BitFlags<AccessFs>, except: &[BorrowedFd<'_>]) -> Result<()> {
    let oldest = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(access & AccessFs::from_all(OLDEST));
    // Not in this kernel, or too old there: the descriptors have to do.
    let Ok(ruleset) = oldest else { return Ok(()) };
    restrict(ruleset, access, except).map_err(|why| Error::said("confine a thread to", "its files", why.to_string()))
}

fn restrict(
    ruleset: Ruleset,
    access: BitFlags<AccessFs>,
    except: &[BorrowedFd<'_>],
) -> std::result::Result<(), RulesetError> {
    let ruleset = ruleset.set_compatibility(CompatLevel::BestEffort).handle_access(access)?;
    let mut rules = ruleset.scope(Scope::from_all(NEWEST))?.create()?;
    for directory in except {
        rules = rules.add_rule(PathBeneath::new(directory, access))?;
    }
    rules.restrict_self().map(drop)
}

/// Answers EPERM to every other system call.
fn filter(allowed: &[&[libc::c_long]]) -> Result<()> {
    let program = compiled(allowed).map_err(|why| Error::said("make", "a filter", why.to_string()))?;
    match program.map(|program| seccompiler::apply_filter(&program)) {
        // No machine that the library knows: none that anybody runs containers on.
        None | Some(Ok(())) => Ok(()),
        Some(Err(why)) => Err(Error::said("confine a thread by", "a system call filter", why.to_string())
            .hint("the kernel lacks CONFIG_SECCOMP_FILTER, or whoever started ferry forbids it")),
    }
}

fn compiled(allowed: &[&[libc::c_long]]) -> std::result::Result<Option<BpfProgram>, seccompiler::BackendError> {
    let Ok(arch) = std::env::consts::ARCH.try_into() else { return Ok(None) };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        allowed.iter().flat_map(|group| group.iter()).map(|number| (*number, Vec::new())).collect();
    for number in MAPPING {
        let none = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        let condition = SeccompCondition::new(PROTECTION, SeccompCmpArgLen::Qword, none, 0)?;
        rules.insert(number, vec![SeccompRule::new(vec![condition])?]);
    }
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?.try_into().map(Some)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::*;

    /// What `deeds` answer in a thread that was confined by `jail`; the others of the test go on as they were.
    fn confined<T: Send>(jail: impl FnOnce() -> Result<()> + Send, deeds: impl FnOnce() -> T + Send) -> T {
        let thread = move || {
            jail().unwrap();
            deeds()
        };
        std::thread::scope(|scope| scope.spawn(thread).join().unwrap())
    }

    /// A directory with one in it, and a file beside that; gone with its test.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ferry-jail-{}-{name}", std::process::id()));
            fs::create_dir_all(path.join("inside")).unwrap();
            fs::write(path.join("beside"), "kept").unwrap();
            Self(path)
        }

        fn join(&self, name: &str) -> std::path::PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            ["open", "beside"].into_iter().for_each(|name| drop(fs::remove_file(self.join(name))));
            ["inside/made", "inside", ""].into_iter().for_each(|name| drop(fs::remove_dir(self.join(name))));
        }
    }

    #[test]
    fn who_reads_writes_only_where_it_did_before() {
        let path = Scratch::new("reads");
        let mut open = fs::File::create(path.join("open")).unwrap();
        let (beside, new) = (path.join("beside"), path.join("new"));
        let answers = confined(read_only, || {
            open.write_all(b"written").unwrap();
            let mut text = String::new();
            fs::File::open(&beside).unwrap().read_to_string(&mut text).unwrap();
            let made = fs::write(&new, "x").is_ok() || fs::create_dir(&new).is_ok() || fs::remove_file(&beside).is_ok();
            (text, made, std::process::Command::new("/bin/true").status().is_ok())
        });
        assert_eq!(answers, ("kept".to_owned(), false, false));
        assert_eq!(fs::read_to_string(path.join("open")).unwrap(), "written");
    }

    #[test]
    fn who_unpacks_does_so_in_one_directory() {
        let path = Scratch::new("unpacks");
        let inside = fs::File::open(path.join("inside")).unwrap();
        let (beside, new) = (path.join("beside"), path.join("new"));
        let answers = confined(
            || only_below(inside.as_fd()),
            || {
                let make = |name: &str| rustix::fs::mkdirat(inside.as_fd(), name, rustix::fs::Mode::RWXU);
                make("made").unwrap();
                let out = [
                    make("../out").is_ok(),
                    fs::write(&new, "x").is_ok(),
                    fs::remove_file(&beside).is_ok(),
                    std::net::TcpStream::connect("127.0.0.1:1")
                        .is_err_and(|why| why.raw_os_error() != Some(libc::EPERM)),
                    std::process::Command::new("/bin/true").status().is_ok(),
                ];
                (out, fs::read(&beside).is_ok())
            },
        );
        let read = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(OLDEST))
            .is_err();
        assert_eq!(answers.1, read, "where there is Landlock, nothing beside can even be read");
        if !read {
            assert_eq!(answers.0, [false; 5]);
        }
        assert!(path.join("inside/made").is_dir());
    }
}
