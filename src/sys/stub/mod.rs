//! The last program before the container's own: a few hundred bytes in a sealed memory file.
//!
//! While the kernel executes the container's program, `/proc/self/exe` of the calling process is what `args:
//! ["/proc/self/exe"]`, or a script that begins `#!/proc/self/exe`, names. Were that ferry, a container could get hold
//! of the host's binary and write to it once it is idle (CVE-2019-5736). So the child first executes this stub: from
//! then on `/proc/self/exe` is a sealed memory file, and no descriptor or mapping of ferry's binary is left. It costs
//! one exec of a program without a libc, against a whole second start of the runtime from a sealed copy.
//!
//! That of `create` waits in it for `start` ([`Gate`]): in the hands of whoever may attach to it, a neighbour in its pid namespace with
//! CAP_SYS_PTRACE, it is no more than the container's own program would be.
//!
//! The stub marks the report descriptor close-on-exec, writes the label that the next exec is to have (a security module's
//! transition takes place at the first exec after it, which must not be the stub's own), installs the seccomp filter that it carries (so that nothing but
//! `execve` is called under the filter), and executes `argv[0]` with the rest of its arguments. What fails is written to
//! the report descriptor as two native 32-bit words, the stage and the errno; a successful exec closes it.
//!
//! Executing twice changes nothing for capabilities: the rules of capabilities(7) are idempotent for a program without
//! file capabilities, and ambient ones survive it.

mod code;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::unistd::{fexecve, pipe2};
use rustix::fs::{MemfdFlags, Mode, SealFlags, fchmod, fcntl_add_seals, memfd_create};

use code::{MACHINE, code};

/// Where the stub failed: the first word of its report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// seccomp(2).
    Seccomp,
    /// execve(2).
    Exec,
    /// Writing the label of the next exec.
    Label,
}

/// The label that the program's exec is to have.
#[derive(Debug, Clone, Copy)]
pub struct Label<'a> {
    /// The root of a procfs; the stub closes it.
    pub procfs: RawFd,
    /// The file below it.
    pub file: &'a str,
    /// What is written.
    pub text: &'a str,
}

/// Where the stub reports.
#[derive(Debug, Clone, Copy)]
pub enum Report {
    /// A descriptor that is there.
    On(RawFd),
    /// The connection of whoever opens the gate, for which it waits.
    Gate(Gate),
}

/// What the stub waits at, with all signals blocked until then; it closes both.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// A listening socket.
    pub listener: RawFd,
    /// A signalfd that does not block: the stub ends by what it reads there, with the status of 128 and the signal.
    pub signals: RawFd,
}

/// What the stub calls at its gate.
pub const GATE_CALLS: &[i64] = &[
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_rt_sigprocmask,
    libc::SYS_exit_group,
];

/// Reads a report: the stage and the errno.
pub fn parse_report(bytes: &[u8]) -> Option<(Stage, Errno)> {
    let word = |at: usize| Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let stage = match (bytes.len(), word(0)?) {
        (8, 1) => Stage::Seccomp,
        (8, 2) => Stage::Exec,
        (8, 3) => Stage::Label,
        _ => return None,
    };
    Some((stage, Errno::from_raw(word(4)?)))
}

/// Writes the stub to a sealed memory file: it reports to `report` or waits at its gate first, asks for `label`, and installs `filter` (instructions of
/// 8 bytes each) with `filter_flags` unless it is empty.
///
/// # Errors
/// What memfd_create(2), write(2) and fcntl(2) answer; EACCES where `vm.memfd_noexec` is 2.
pub fn sealed(report: Report, label: Option<Label<'_>>, filter: &[u8], filter_flags: u32) -> Result<OwnedFd, Errno> {
    let errno = |answer: rustix::io::Errno| Errno::from_raw(answer.raw_os_error());
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Executable on purpose where the kernel asks for it to be said (6.3); older ones do not know the flag.
    let memory = memfd_create("ferry", flags | MemfdFlags::EXEC)
        .or_else(|answer| if answer == rustix::io::Errno::INVAL { memfd_create("ferry", flags) } else { Err(answer) })
        .map_err(errno)?;
    let mut file = File::from(memory);
    file.write_all(&image(report, label, filter, filter_flags))
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    // Executed by whoever may not read it, a program is one that nobody can attach to or look into (would_dump in
    // fs/exec.c): the filter that it is to install, and the private procfs in its hands, are out of the container's reach.
    fchmod(&file, Mode::from_raw_mode(0o111)).map_err(errno)?;
    fcntl_add_seals(file.as_fd(), SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)
        .map_err(errno)?;
    Ok(file.into())
}

/// Has `command`, which is spawned next, executed by way of the stub, as `program` with `args` and `env`: it is one of the image's, and
/// a script that begins `#!/proc/self/exe` would name ferry otherwise. Answers where the stub reports.
///
/// # Errors
/// As [`sealed`].
pub fn lead(command: &mut Command, program: &CStr, args: &[CString], env: &[CString]) -> Result<File, Errno> {
    let (told, report) = pipe2(OFlag::O_CLOEXEC)?;
    let stub = sealed(Report::On(report.as_raw_fd()), None, &[], 0)?;
    let args: Vec<CString> = std::iter::once(program.to_owned()).chain(args.iter().cloned()).collect();
    let env = env.to_vec();
    let execute = move || -> std::io::Result<()> {
        fcntl(&report, FcntlArg::F_SETFD(FdFlag::empty()))?;
        match fexecve(&stub, &args, &env) {
            Ok(never) => match never {},
            Err(answer) => Err(answer.into()),
        }
    };
    // SAFETY: between fork and exec only fcntl(2) and execveat(2) are called, and an array of pointers is allocated by a process that
    // has one thread: nobody else can hold the allocator's lock.
    unsafe { command.pre_exec(execute) };
    Ok(told.into())
}

/// Where the image is loaded. No relocation is needed at a fixed address.
const BASE: u64 = 0x40_0000;
const EHDR: usize = 64;
const PHDR: usize = 56;
const CODE: usize = EHDR + 2 * PHDR;

/// What the code reads, right behind it. The assembly in [`code`](mod@code) knows these offsets.
#[repr(C)]
struct Parameters {
    report: i32,
    filter_flags: u32,
    /// `struct sock_fprog`: count, then the address.
    filter_count: u64,
    filter_address: u64,
    procfs: i32,
    /// 0: no label.
    label_length: u32,
    /// The file's path, with a NUL byte.
    label_file_address: u64,
    label_address: u64,
    /// -1: no gate.
    listener: i32,
    signals: i32,
}

/// The whole ELF file: header, one segment to run, one that says the stack is not, code, parameters, filter, label.
fn image(report: Report, label: Option<Label<'_>>, filter: &[u8], filter_flags: u32) -> Vec<u8> {
    let code = code();
    let parameters_at = (CODE + code.len()).next_multiple_of(8);
    let filter_at = parameters_at + size_of::<Parameters>();
    let (report, gate) = match report {
        Report::On(fd) => (fd, Gate { listener: -1, signals: -1 }),
        Report::Gate(gate) => (-1, gate),
    };
    let (procfs, file, text) = label.map_or((-1, "", ""), |label| (label.procfs, label.file, label.text));
    let file_at = filter_at + filter.len();
    let text_at = file_at + file.len() + 1;
    let total = text_at + text.len();
    let mut image = Vec::with_capacity(total);
    push_elf_header(&mut image);
    push_segment(&mut image, libc::PT_LOAD, libc::PF_R | libc::PF_X, total);
    push_segment(&mut image, libc::PT_GNU_STACK, libc::PF_R | libc::PF_W, 0);
    image.extend_from_slice(code);
    image.resize(parameters_at, 0);
    image.extend_from_slice(&report.to_ne_bytes());
    image.extend_from_slice(&filter_flags.to_ne_bytes());
    image.extend_from_slice(&((filter.len() / 8) as u64).to_ne_bytes());
    image.extend_from_slice(&(BASE + filter_at as u64).to_ne_bytes());
    image.extend_from_slice(&procfs.to_ne_bytes());
    image.extend_from_slice(&(text.len() as u32).to_ne_bytes());
    image.extend_from_slice(&(BASE + file_at as u64).to_ne_bytes());
    image.extend_from_slice(&(BASE + text_at as u64).to_ne_bytes());
    image.extend_from_slice(&gate.listener.to_ne_bytes());
    image.extend_from_slice(&gate.signals.to_ne_bytes());
    image.extend_from_slice(filter);
    image.extend_from_slice(file.as_bytes());
    image.push(0);
    image.extend_from_slice(text.as_bytes());
    image
}

/// `Elf64_Ehdr` of a fixed-address program of this machine. elf(5)
fn push_elf_header(image: &mut Vec<u8>) {
    image.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    image.extend_from_slice(&2u16.to_ne_bytes()); // ET_EXEC
    image.extend_from_slice(&MACHINE.to_ne_bytes());
    image.extend_from_slice(&1u32.to_ne_bytes()); // version
    image.extend_from_slice(&(BASE + CODE as u64).to_ne_bytes()); // entry
    image.extend_from_slice(&(EHDR as u64).to_ne_bytes()); // program headers
    image.extend_from_slice(&0u64.to_ne_bytes()); // no sections
    image.extend_from_slice(&0u32.to_ne_bytes()); // flags
    for half in [EHDR as u16, PHDR as u16, 2, 0, 0, 0] {
        image.extend_from_slice(&half.to_ne_bytes());
    }
}

/// `Elf64_Phdr` over the file's first `size` bytes.
fn push_segment(image: &mut Vec<u8>, kind: u32, flags: u32, size: usize) {
    let address = if size == 0 { 0 } else { BASE };
    image.extend_from_slice(&kind.to_ne_bytes());
    image.extend_from_slice(&flags.to_ne_bytes());
    for word in [0, address, address, size as u64, size as u64, 0x1000] {
        image.extend_from_slice(&word.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Output};

    /// Runs `cat FILE` by way of a stub that writes a "label" first and reports on standard error.
    fn cat(file: &str, label: Option<(&str, &str)>) -> Output {
        let procfs = File::open("/proc").unwrap();
        rustix::io::fcntl_setfd(&procfs, rustix::io::FdFlags::empty()).unwrap();
        let label = label.map(|(file, text)| Label { procfs: procfs.as_raw_fd(), file, text });
        let stub = sealed(Report::On(2), label, &[], 0).unwrap();
        let mut command = Command::new(format!("/proc/self/fd/{}", stub.as_raw_fd()));
        command.arg0("/bin/cat").args(["cat", file]).output().unwrap()
    }

    #[test]
    fn a_label_is_written_before_the_program_is_executed() {
        // Not a label, but a file that the process keeps over an exec and may write, as labels, though it cannot be looked into.
        let labelled = cat("/proc/self/timerslack_ns", Some(("self/timerslack_ns", "77777")));
        assert_eq!(String::from_utf8_lossy(&labelled.stdout), "77777\n");
        assert_ne!(String::from_utf8_lossy(&cat("/proc/self/timerslack_ns", None).stdout), "77777\n");
    }

    /// A stub that waits, with every signal blocked, and what opens its gate.
    fn waiting(name: &str) -> (std::process::Child, std::path::PathBuf) {
        use std::os::unix::net::UnixListener;
        let path = std::env::temp_dir().join(format!("ferry-stub-{name}-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let signals = nix::sys::signalfd::SignalFd::with_flags(
            &[nix::sys::signal::Signal::SIGTERM].into_iter().collect(),
            nix::sys::signalfd::SfdFlags::SFD_NONBLOCK,
        );
        let signals = signals.unwrap();
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
        let gate = Gate { listener: listener.as_raw_fd(), signals: signals.as_fd().as_raw_fd() };
        let stub = sealed(Report::Gate(gate), None, &[], 0).unwrap();
        let mut command = Command::new(format!("/proc/self/fd/{}", stub.as_raw_fd()));
        command.arg0("/bin/cat").args(["cat", "/proc/self/status"]).stdout(std::process::Stdio::piped());
        // SAFETY: one system call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::sys::signal::SigSet::all().thread_block()?;
                Ok(())
            });
        }
        (command.spawn().unwrap(), path)
    }

    #[test]
    fn the_program_is_executed_once_the_gate_is_opened_with_no_signal_blocked() {
        let (child, path) = waiting("opened");
        let connected = std::os::unix::net::UnixStream::connect(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        let mut told = Vec::new();
        std::io::Read::read_to_end(&mut &connected, &mut told).unwrap();
        assert_eq!(parse_report(&told), None, "the stream ends with the exec");
        let said = child.wait_with_output().unwrap();
        assert!(String::from_utf8_lossy(&said.stdout).contains("SigBlk:\t0000000000000000"), "{said:?}");
    }

    #[test]
    fn a_signal_ends_it_at_the_gate() {
        let (mut child, path) = waiting("ended");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn failures_name_their_stage() {
        let report = |file, label| parse_report(&cat(file, label).stderr);
        let missing = report("/dev/null", Some(("thread-self/attr/none", "x")));
        assert_eq!(missing, Some((Stage::Label, Errno::ENOENT)));
        let refused = report("/dev/null", Some(("self/timerslack_ns", "x")));
        assert_eq!(refused, Some((Stage::Label, Errno::EINVAL)));
        assert_eq!(report("/dev/null", None), None);
    }
}
