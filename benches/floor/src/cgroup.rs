//! The container's cgroup, in the v2 tree: made, entered by clone3, removed.

use std::ffi::{CStr, CString, c_int};

use crate::kernel;

/// The container's cgroup directory. The v2 tree is at /sys/fs/cgroup, or beside the v1 trees at "unified".
pub fn path(name: &CStr) -> CString {
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    kernel::must(unsafe { libc::statfs(c"/sys/fs/cgroup".as_ptr(), &mut answer) }, "statfs");
    let tree: &[u8] =
        if answer.f_type == libc::CGROUP2_SUPER_MAGIC { b"/sys/fs/cgroup/" } else { b"/sys/fs/cgroup/unified/" };
    let Ok(path) = CString::new([tree, name.to_bytes()].concat()) else { kernel::fail("cgroup name") };
    path
}

/// Makes the cgroup; a descriptor of it for clone3.
pub fn make(path: &CStr) -> c_int {
    kernel::mkdir(path, 0o755);
    open(path)
}

pub fn open(path: &CStr) -> c_int {
    kernel::open(path, libc::O_PATH | libc::O_DIRECTORY)
}

/// Removes the cgroup, waiting for "populated 0" should its last process still be on the way out.
pub fn remove(path: &CStr) {
    if unsafe { libc::rmdir(path.as_ptr()) } == 0 {
        return;
    }
    if kernel::errno() != libc::EBUSY {
        kernel::fail("rmdir of the cgroup");
    }
    let Ok(events) = CString::new([path.to_bytes(), b"/cgroup.events"].concat()) else { kernel::fail("cgroup name") };
    let events = kernel::open(&events, libc::O_RDONLY);
    let mut buffer = [0; 128];
    loop {
        kernel::must(unsafe { libc::lseek(events, 0, libc::SEEK_SET) }, "lseek");
        let length = kernel::read(events, &mut buffer);
        if buffer[..length].starts_with(b"populated 0") {
            break;
        }
        kernel::wait_readable(events, libc::POLLPRI);
    }
    kernel::must(unsafe { libc::rmdir(path.as_ptr()) }, "rmdir of the cgroup");
}
