//! The smallest static program a container can run. With one argument it stays until it is killed; else it ends at once,
//! its exit code the number of its arguments. It has no C library, so that a measurement holds the runtime's time and not
//! the program's.

#![cfg_attr(not(test), no_std, no_main)]

#[cfg(not(test))]
use core::arch::naked_asm;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// argc is on top of the stack: pause() for ever when it is 2, exit(argc - 1) otherwise.
#[cfg(all(target_arch = "x86_64", not(test)))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "mov rdi, [rsp]",
        "dec rdi",
        "cmp rdi, 1",
        "je 2f",
        "mov eax, {exit}",
        "syscall",
        "2: mov eax, {pause}",
        "syscall",
        "jmp 2b",
        exit = const libc::SYS_exit_group,
        pause = const libc::SYS_pause,
    )
}

/// argc is on top of the stack: ppoll(NULL, 0, NULL, NULL, 0) for ever when it is 2, exit(argc - 1) otherwise.
#[cfg(all(target_arch = "aarch64", not(test)))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "ldr x0, [sp]",
        "sub x0, x0, 1",
        "cmp x0, 1",
        "b.eq 2f",
        "mov x8, {exit}",
        "svc 0",
        "2: mov x8, {ppoll}",
        "mov x0, 0",
        "mov x1, 0",
        "mov x2, 0",
        "mov x3, 0",
        "mov x4, 0",
        "svc 0",
        "b 2b",
        exit = const libc::SYS_exit_group,
        ppoll = const libc::SYS_ppoll,
    )
}
