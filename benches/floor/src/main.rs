//! The bare kernel calls of a container's life: what no runtime can be faster than.
//!
//! No parsing, no planning, no error handling, no record beyond a pid: the calls that `runc spec`'s default config asks
//! of the kernel and nothing else. A runtime's time divided by this program's is its own overhead.
//!
//! ```text
//! floor [--devices] run ROOTFS PROGRAM [ARG...]            one process, from cgroup to exit code
//! floor [--devices] create STATE ROOTFS PROGRAM [ARG...]   leaves the child waiting at STATE/gate
//! floor start STATE                                        opens the gate
//! floor delete STATE                                       kills, waits, removes
//! floor exec STATE PROGRAM [ARG...]                        joins the namespaces and the cgroup
//! ```
//!
//! `--devices` also attaches a device program to the cgroup, which that config asks for and BPF makes dear.

#![no_main]

mod cgroup;
mod devices;
mod inside;
mod kernel;

use std::ffi::{CStr, CString, c_char, c_int};

const NAMESPACES: c_int =
    libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;

/// The process's arguments, and the null-ended vector behind them.
struct Arguments {
    argc: usize,
    argv: *const *const c_char,
}

impl Arguments {
    fn at(&self, index: usize) -> &CStr {
        if index >= self.argc {
            kernel::fail("too few arguments");
        }
        unsafe { CStr::from_ptr(*self.argv.add(index)) }
    }

    /// The vector from `index` on.
    fn program(&self, index: usize) -> *const *const c_char {
        self.at(index);
        unsafe { self.argv.add(index) }
    }
}

#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let all = Arguments { argc: argc as usize, argv };
    let restricted = all.at(1) == c"--devices";
    let skipped = usize::from(restricted);
    let arguments = Arguments { argc: all.argc - skipped, argv: unsafe { argv.add(skipped) } };
    match arguments.at(1).to_bytes() {
        b"run" => run(&arguments, restricted),
        b"create" => create(&arguments, restricted),
        b"start" => start(&arguments),
        b"delete" => delete(&arguments),
        b"exec" => exec(&arguments),
        _ => kernel::fail("unknown mode"),
    }
}

fn run(arguments: &Arguments, restricted: bool) -> c_int {
    let path = cgroup::path(&named(unsafe { libc::getpid() }));
    let directory = make_cgroup(&path, restricted);
    let pid = kernel::clone_into(NAMESPACES, directory);
    if pid == 0 {
        inside::build(arguments.at(2));
        inside::become_program(arguments.program(3));
    }
    let code = kernel::wait(pid);
    cgroup::remove(&path);
    code
}

fn make_cgroup(path: &CStr, restricted: bool) -> c_int {
    let directory = cgroup::make(path);
    if restricted {
        // bpf(2) wants a descriptor that was truly opened, clone3 takes any.
        let readable = kernel::open(path, libc::O_RDONLY | libc::O_DIRECTORY);
        devices::restrict(readable);
        kernel::close(readable);
    }
    directory
}

fn named(pid: c_int) -> CString {
    joined(b"floor-", pid.to_string().as_bytes())
}

fn create(arguments: &Arguments, restricted: bool) -> c_int {
    let state = arguments.at(2);
    kernel::mkdir(state, 0o700);
    let gate_path = joined(state.to_bytes(), b"/gate");
    kernel::must(unsafe { libc::mkfifo(gate_path.as_ptr(), 0o600) }, "mkfifo");
    let directory = make_cgroup(&cgroup_of(state), restricted);
    let mut ready = [0; 2];
    kernel::must(unsafe { libc::pipe2(ready.as_mut_ptr(), libc::O_CLOEXEC) }, "pipe2");
    let pid = kernel::clone_into(NAMESPACES, directory);
    if pid == 0 {
        // Both ways, so that neither opening nor reading sees an end of file before somebody opens the gate.
        let gate = kernel::open(&gate_path, libc::O_RDWR);
        inside::build(arguments.at(3));
        kernel::write(ready[1], &[1]);
        inside::wait_at(gate);
        inside::become_program(arguments.program(4));
    }
    kernel::close(ready[1]);
    if kernel::read(ready[0], &mut [0]) == 0 {
        return 1;
    }
    let record = kernel::open(&joined(state.to_bytes(), b"/pid"), libc::O_WRONLY | libc::O_CREAT);
    kernel::write(record, &pid.to_ne_bytes());
    0
}

fn start(arguments: &Arguments) -> c_int {
    let gate = kernel::open(&joined(arguments.at(2).to_bytes(), b"/gate"), libc::O_WRONLY | libc::O_NONBLOCK);
    kernel::write(gate, &[1]);
    0
}

fn delete(arguments: &Arguments) -> c_int {
    let state = arguments.at(2);
    if let Some(pidfd) = kernel::pidfd_open(pid_of(state)) {
        kernel::kill_and_wait(pidfd);
    }
    cgroup::remove(&cgroup_of(state));
    for file in [b"/gate".as_slice(), b"/pid"] {
        kernel::must(unsafe { libc::unlink(joined(state.to_bytes(), file).as_ptr()) }, "unlink");
    }
    kernel::must(unsafe { libc::rmdir(state.as_ptr()) }, "rmdir");
    0
}

fn exec(arguments: &Arguments) -> c_int {
    let state = arguments.at(2);
    let directory = cgroup::open(&cgroup_of(state));
    let Some(pidfd) = kernel::pidfd_open(pid_of(state)) else { kernel::fail("pidfd_open") };
    kernel::must(unsafe { libc::setns(pidfd, NAMESPACES | libc::CLONE_NEWCGROUP) }, "setns");
    let pid = kernel::clone_into(0, directory);
    if pid == 0 {
        kernel::must(unsafe { libc::setsid() }, "setsid");
        inside::become_program(arguments.program(3));
    }
    kernel::wait(pid)
}

fn pid_of(state: &CStr) -> c_int {
    let mut pid = [0; size_of::<c_int>()];
    kernel::read(kernel::open(&joined(state.to_bytes(), b"/pid"), libc::O_RDONLY), &mut pid);
    c_int::from_ne_bytes(pid)
}

/// The cgroup of a container with a state directory is named after it.
fn cgroup_of(state: &CStr) -> CString {
    let bytes = state.to_bytes();
    let name = bytes.rsplit(|byte| *byte == b'/').next().unwrap_or(bytes);
    cgroup::path(&joined(b"floor-", name))
}

fn joined(head: &[u8], tail: &[u8]) -> CString {
    let Ok(text) = CString::new([head, tail].concat()) else { kernel::fail("a zero byte in a path") };
    text
}
