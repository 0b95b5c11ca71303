//! The device program: what `linux.resources.devices` of `runc spec` ("deny all") costs on cgroup v2, where it is BPF.
//!
//! One load and one attachment, allowing what the runtime-spec's default devices need.

use std::ffi::c_int;
use std::mem::size_of;

use crate::kernel;

/// One BPF instruction, as the kernel lays it out (struct bpf_insn).
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The head of union bpf_attr for BPF_PROG_LOAD, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 3],
    flags: u32,
    name: [u8; 16],
}

/// union bpf_attr for BPF_PROG_ATTACH, as far as it is used.
#[repr(C)]
struct Attach {
    cgroup: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

const BPF_PROG_LOAD: c_int = 5;
const BPF_PROG_ATTACH: c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

/// Major and minor of the character devices the container may use: null, zero, full, random, urandom, tty, ptmx.
const ALLOWED: [(i32, i32); 7] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];

/// Loads the program and attaches it to the cgroup.
pub fn restrict(cgroup: c_int) {
    let program = program();
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        ..Load::default()
    };
    let program = bpf(BPF_PROG_LOAD, &load, "load of the device program");
    let attach = Attach { cgroup: cgroup as u32, program: program as u32, kind: BPF_CGROUP_DEVICE, flags: 0 };
    bpf(BPF_PROG_ATTACH, &attach, "attachment of the device program");
    kernel::close(program);
}

fn bpf<T>(command: c_int, attributes: &T, what: &str) -> c_int {
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    kernel::must(answer, what) as c_int
}

/// r2 = kind and access, r3 = major, r4 = minor; mknod of anything, use of `ALLOWED` and of ptys (136:*).
fn program() -> Vec<Instruction> {
    let load = |register: u8, offset| instruction(0x61, register | 0x10, offset, 0);
    let mut program = vec![load(2, 0), load(3, 4), load(4, 8)];
    // access (the upper half) is mknod alone: allow.
    program.push(instruction(0xbf, 0x25, 0, 0));
    program.push(instruction(0x77, 5, 0, 16));
    program.push(instruction(0x55, 5, 2, 1));
    program.extend(verdict(1));
    program.push(instruction(0x57, 2, 0, 0xffff));
    // anything but a character device: deny.
    program.push(instruction(0x15, 2, 2, 2));
    program.extend(verdict(0));
    program.push(instruction(0x55, 3, 2, 136));
    program.extend(verdict(1));
    for (major, minor) in ALLOWED {
        program.push(instruction(0x55, 3, 3, major));
        program.push(instruction(0x55, 4, 2, minor));
        program.extend(verdict(1));
    }
    program.extend(verdict(0));
    program
}

/// r0 = allow; exit.
fn verdict(allow: i32) -> [Instruction; 2] {
    [instruction(0xb7, 0, 0, allow), instruction(0x95, 0, 0, 0)]
}

fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}
