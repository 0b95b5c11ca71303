//! The stub's machine code, for each machine: no libc, and nothing but system calls.

/// The machine code between the two labels.
pub(super) fn code() -> &'static [u8] {
    let (start, end) = (&raw const ferry_stub_start, &raw const ferry_stub_end);
    // SAFETY: both labels are in one read-only section of this program, `end` behind `start`, with nothing but the
    // assembled bytes between them; the section is mapped for as long as the program runs.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

unsafe extern "C" {
    static ferry_stub_start: u8;
    static ferry_stub_end: u8;
}

/// `e_machine`. elf(5)
#[cfg(target_arch = "x86_64")]
pub(super) const MACHINE: u16 = 62;

// The parameters stand at ferry_stub_end, rounded up to 8 bytes from the start of the file; the code is aligned so that
// this is ferry_stub_end itself.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .rodata.ferry_stub, \"a\", @progbits",
    ".balign 8",
    ".global ferry_stub_start",
    ".global ferry_stub_end",
    "ferry_stub_start:",
    "mov rbx, rsp",                               // argc, argv…, 0, envp…
    "mov ebp, 2",                                 // the stage
    "mov r12d, dword ptr [rip + ferry_stub_end]", // the report
    "cmp dword ptr [rip + ferry_stub_end + 48], 0",
    "jl 5f",
    "sub rsp, 160",
    "6:", // ppoll({listener, signals} for POLLIN, 2, NULL, NULL)
    "mov eax, dword ptr [rip + ferry_stub_end + 48]",
    "mov dword ptr [rsp], eax",
    "mov dword ptr [rsp + 4], 1",
    "mov eax, dword ptr [rip + ferry_stub_end + 52]",
    "mov dword ptr [rsp + 8], eax",
    "mov dword ptr [rsp + 12], 1",
    "mov eax, 271",
    "mov rdi, rsp",
    "mov esi, 2",
    "xor edx, edx",
    "xor r10d, r10d",
    "syscall",
    "cmp rax, -4", // EINTR
    "je 6b",
    "test rax, rax",
    "js 3f",
    "xor eax, eax", // read(signals, &signalfd_siginfo, 128)
    "mov edi, dword ptr [rip + ferry_stub_end + 52]",
    "lea rsi, [rsp + 16]",
    "mov edx, 128",
    "syscall",
    "cmp rax, 128",
    "jne 7f",
    "mov edi, dword ptr [rsp + 16]", // exit_group(128 + ssi_signo)
    "sub edi, -128",
    "mov eax, 231",
    "syscall",
    "7:",
    "mov eax, 288", // accept4(listener, NULL, NULL, SOCK_CLOEXEC)
    "mov edi, dword ptr [rip + ferry_stub_end + 48]",
    "xor esi, esi",
    "xor edx, edx",
    "mov r10d, 0x80000",
    "syscall",
    "cmp rax, -4", // EINTR
    "je 6b",
    "test rax, rax",
    "js 3f",
    "mov r12d, eax",
    "mov eax, 3", // close(listener)
    "mov edi, dword ptr [rip + ferry_stub_end + 48]",
    "syscall",
    "mov eax, 3", // close(signals)
    "mov edi, dword ptr [rip + ferry_stub_end + 52]",
    "syscall",
    "mov qword ptr [rsp], 0", // rt_sigprocmask(SIG_SETMASK, &0, NULL, 8)
    "mov eax, 14",
    "mov edi, 2",
    "mov rsi, rsp",
    "xor edx, edx",
    "mov r10d, 8",
    "syscall",
    "test rax, rax",
    "js 3f",
    "mov rsp, rbx",
    "5:",
    "mov eax, 72", // fcntl(report, F_SETFD, FD_CLOEXEC): the program would have it
    "mov edi, r12d",
    "mov esi, 2",
    "mov edx, 1",
    "syscall",
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
    "mov edi, r12d",
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

/// `e_machine`. elf(5)
#[cfg(target_arch = "aarch64")]
pub(super) const MACHINE: u16 = 183;

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".pushsection .rodata.ferry_stub, \"a\", @progbits",
    ".balign 8",
    ".global ferry_stub_start",
    ".global ferry_stub_end",
    "ferry_stub_start:",
    "mov x19, sp", // argc, argv…, 0, envp…
    "adr x20, ferry_stub_end",
    "mov x21, #2",    // the stage
    "ldr w22, [x20]", // the report
    "ldr w3, [x20, #48]",
    "tbnz w3, #31, 5f",
    "sub sp, sp, #160",
    "6:", // ppoll({listener, signals} for POLLIN, 2, NULL, NULL)
    "mov w1, #1",
    "ldr w0, [x20, #48]",
    "stp w0, w1, [sp]",
    "ldr w0, [x20, #52]",
    "stp w0, w1, [sp, #8]",
    "mov x0, sp",
    "mov x1, #2",
    "mov x2, #0",
    "mov x3, #0",
    "mov x8, #73",
    "svc #0",
    "cmn x0, #4", // EINTR
    "b.eq 6b",
    "tbnz x0, #63, 3f",
    "ldr w0, [x20, #52]", // read(signals, &signalfd_siginfo, 128)
    "add x1, sp, #16",
    "mov x2, #128",
    "mov x8, #63",
    "svc #0",
    "cmp x0, #128",
    "b.ne 7f",
    "ldr w0, [sp, #16]", // exit_group(128 + ssi_signo)
    "add w0, w0, #128",
    "mov x8, #94",
    "svc #0",
    "7:",
    "ldr w0, [x20, #48]", // accept4(listener, NULL, NULL, SOCK_CLOEXEC)
    "mov x1, #0",
    "mov x2, #0",
    "mov x3, #0x80000",
    "mov x8, #242",
    "svc #0",
    "cmn x0, #4", // EINTR
    "b.eq 6b",
    "tbnz x0, #63, 3f",
    "mov w22, w0",
    "ldr w0, [x20, #48]", // close(listener)
    "mov x8, #57",
    "svc #0",
    "ldr w0, [x20, #52]", // close(signals)
    "mov x8, #57",
    "svc #0",
    "str xzr, [sp]", // rt_sigprocmask(SIG_SETMASK, &0, NULL, 8)
    "mov x0, #2",
    "mov x1, sp",
    "mov x2, #0",
    "mov x3, #8",
    "mov x8, #135",
    "svc #0",
    "tbnz x0, #63, 3f",
    "mov sp, x19",
    "5:",
    "mov w0, w22", // fcntl(report, F_SETFD, FD_CLOEXEC): the program would have it
    "mov x1, #2",
    "mov x2, #1",
    "mov x8, #25",
    "svc #0",
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
    "mov w0, w22", // write(report, &[stage, errno], 8)
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
