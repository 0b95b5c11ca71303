//! The last program before the container's own: a few hundred bytes in a sealed memory file.
//!
//! While the kernel executes the container's program, `/proc/self/exe` of the calling process is what `args:
//! ["/proc/self/exe"]`, or a script that begins `#!/proc/self/exe`, names. Were that ferry, a container could get hold
//! of the host's binary and write to it once it is idle (CVE-2019-5736). So the child first executes this stub: from
//! then on `/proc/self/exe` is a sealed memory file, and no descriptor or mapping of ferry's binary is left. It costs
//! one exec of a program without a libc, against a whole second start of the runtime from a sealed copy.
//!
//! The stub marks the report descriptor close-on-exec, writes the label that the next exec is to have (a security module's
//! transition takes place at the first exec after it, which must not be the stub's own), installs the seccomp filter that it carries (so that nothing but
//! `execve` is called under the filter), and executes `argv[0]` with the rest of its arguments. What fails is written to
//! the report descriptor as two native 32-bit words, the stage and the errno; a successful exec closes it.
//!
//! Executing twice changes nothing for capabilities: the rules of capabilities(7) are idempotent for a program without
//! file capabilities, and ambient ones survive it.

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

/// Writes the stub to a sealed memory file: it reports to `report`, asks for `label`, and installs `filter` (instructions of
/// 8 bytes each) with `filter_flags` unless it is empty.
///
/// # Errors
/// What memfd_create(2), write(2) and fcntl(2) answer; EACCES where `vm.memfd_noexec` is 2.
pub fn sealed(report: RawFd, label: Option<Label<'_>>, filter: &[u8], filter_flags: u32) -> Result<OwnedFd, Errno> {
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
    let stub = sealed(report.as_raw_fd(), None, &[], 0)?;
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

/// What the code reads, right behind it. The assembly below knows these offsets.
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
}

/// The whole ELF file: header, one segment to run, one that says the stack is not, code, parameters, filter, label.
fn image(report: RawFd, label: Option<Label<'_>>, filter: &[u8], filter_flags: u32) -> Vec<u8> {
    let code = code();
    let parameters_at = (CODE + code.len()).next_multiple_of(8);
    let filter_at = parameters_at + size_of::<Parameters>();
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

/// The machine code between the two labels.
fn code() -> &'static [u8] {
    let (start, end) = (&raw const ferry_stub_start, &raw const ferry_stub_end);
    // SAFETY: both labels are in one read-only section of this program, `end` behind `start`, with nothing but the
    // assembled bytes between them; the section is mapped for as long as the program runs.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

unsafe extern "C" {
    static ferry_stub_start: u8;
    static ferry_stub_end: u8;
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;

// The parameters stand at ferry_stub_end, rounded up to 8 bytes from the start of the file; the code is aligned so that
// this is ferry_stub_end itself.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .rodata.ferry_stub, \"a\", @progbits",
    ".balign 8",
    ".global ferry_stub_start",
    ".global ferry_stub_end",
    "ferry_stub_start:",
    "mov rbx, rsp", // argc, argv…, 0, envp…
    "mov eax, 72",  // fcntl(report, F_SETFD, FD_CLOEXEC)
    "mov edi, dword ptr [rip + ferry_stub_end]",
    "mov esi, 2",
    "mov edx, 1",
    "syscall",
    "mov ebp, 2", // the stage: the program would have the report
    "test rax, rax",
    "js 3f",
    "cmp dword ptr [rip + ferry_stub_end + 28], 0",
    "je 4f",
    "mov ebp, 3",   // the stage
    "mov eax, 257", // openat(procfs, file, O_WRONLY | O_CLOEXEC)
    "mov edi, dword ptr [rip + ferry_stub_end + 24]",
    "mov rsi, qword ptr [rip + ferry_stub_end + 32]",
    "mov edx, 0x80001",
    "syscall",
    "test rax, rax",
    "js 3f",
    "mov edi, eax", // write(file, label, length)
    "mov eax, 1",
    "mov rsi, qword ptr [rip + ferry_stub_end + 40]",
    "mov edx, dword ptr [rip + ferry_stub_end + 28]",
    "syscall",
    "test rax, rax",
    "js 3f",
    "mov eax, 3", // close(procfs)
    "mov edi, dword ptr [rip + ferry_stub_end + 24]",
    "syscall",
    "4:",
    "mov ebp, 1",
    "cmp qword ptr [rip + ferry_stub_end + 8], 0",
    "je 2f",
    "mov eax, 317", // seccomp(SECCOMP_SET_MODE_FILTER, flags, &fprog)
    "mov edi, 1",
    "mov esi, dword ptr [rip + ferry_stub_end + 4]",
    "lea rdx, [rip + ferry_stub_end + 8]",
    "syscall",
    "test rax, rax",
    "jnz 3f",
    "2:",
    "mov ebp, 2",
    "mov rdi, qword ptr [rbx + 8]", // execve(argv[0], argv + 1, envp)
    "lea rsi, [rbx + 16]",
    "mov rcx, qword ptr [rbx]",
    "lea rdx, [rbx + rcx*8 + 16]",
    "mov eax, 59",
    "syscall",
    "3:",
    "neg eax",
    "shl rax, 32",
    "or rax, rbp",
    "push rax",
    "mov eax, 1", // write(report, &[stage, errno], 8)
    "mov edi, dword ptr [rip + ferry_stub_end]",
    "mov rsi, rsp",
    "mov edx, 8",
    "syscall",
    "mov eax, 231", // exit_group(1)
    "mov edi, 1",
    "syscall",
    ".balign 8",
    "ferry_stub_end:",
    ".byte 0",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".pushsection .rodata.ferry_stub, \"a\", @progbits",
    ".balign 8",
    ".global ferry_stub_start",
    ".global ferry_stub_end",
    "ferry_stub_start:",
    "mov x19, sp", // argc, argv…, 0, envp…
    "adr x20, ferry_stub_end",
    "ldr w0, [x20]", // fcntl(report, F_SETFD, FD_CLOEXEC)
    "mov x1, #2",
    "mov x2, #1",
    "mov x8, #25",
    "svc #0",
    "mov x21, #2", // the stage: the program would have the report
    "tbnz x0, #63, 3f",
    "ldr w3, [x20, #28]",
    "cbz w3, 4f",
    "mov x21, #3",        // the stage
    "ldr w0, [x20, #24]", // openat(procfs, file, O_WRONLY | O_CLOEXEC)
    "ldr x1, [x20, #32]",
    "movz w2, #1",
    "movk w2, #8, lsl #16",
    "mov x8, #56",
    "svc #0",
    "tbnz x0, #63, 3f",
    "ldr x1, [x20, #40]", // write(file, label, length)
    "ldr w2, [x20, #28]",
    "mov x8, #64",
    "svc #0",
    "tbnz x0, #63, 3f",
    "ldr w0, [x20, #24]", // close(procfs)
    "mov x8, #57",
    "svc #0",
    "4:",
    "mov x21, #1",
    "ldr x3, [x20, #8]",
    "cbz x3, 2f",
    "mov x0, #1", // seccomp(SECCOMP_SET_MODE_FILTER, flags, &fprog)
    "ldr w1, [x20, #4]",
    "add x2, x20, #8",
    "mov x8, #277",
    "svc #0",
    "cbnz x0, 3f",
    "2:",
    "mov x21, #2",
    "ldr x0, [x19, #8]", // execve(argv[0], argv + 1, envp)
    "add x1, x19, #16",
    "ldr x3, [x19]",
    "add x2, x19, x3, lsl #3",
    "add x2, x2, #16",
    "mov x8, #221",
    "svc #0",
    "3:",
    "neg x0, x0",
    "orr x0, x21, x0, lsl #32",
    "str x0, [sp, #-16]!",
    "ldr w0, [x20]", // write(report, &[stage, errno], 8)
    "mov x1, sp",
    "mov x2, #8",
    "mov x8, #64",
    "svc #0",
    "mov x0, #1", // exit_group(1)
    "mov x8, #94",
    "svc #0",
    ".balign 8",
    "ferry_stub_end:",
    ".byte 0",
    ".popsection",
);

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
        let stub = sealed(2, label, &[], 0).unwrap();
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
