//! Loop devices: a file as a block device, for filesystems that this kernel mounts from nothing else. loop(4),
//! include/uapi/linux/loop.h

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::errno::Errno;

use super::answer;

const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A as libc::Ioctl;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82 as libc::Ioctl;
const READ_ONLY: u32 = 1;
/// It goes with the last who has it open or mounted.
const AUTOCLEAR: u32 = 4;
/// How often another process may be first to take the device that was free.
const TRIES: usize = 64;

/// The kernel's `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// The kernel's `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// Makes a loop device of `file`, to read or also to write; answers it open, and its path. It is gone once nobody has it open
/// or mounted.
///
/// # Errors
/// ENOENT without loop devices, EACCES and EPERM without the right to them, EINVAL before Linux 5.8.
pub fn attach(file: BorrowedFd<'_>, read_only: bool) -> Result<(File, PathBuf), Errno> {
    let of = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").map_err(of)?;
    let flags = if read_only { READ_ONLY | AUTOCLEAR } else { AUTOCLEAR };
    // SAFETY: integers and arrays of them, for all of which zero is a value.
    let mut config: Config = unsafe { std::mem::zeroed() };
    config.fd = u32::try_from(file.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    config.info.flags = flags;
    let mut left = TRIES;
    loop {
        // SAFETY: the request takes no argument and touches no memory.
        let number = answer(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) }.into())?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        // One that is open to read alone is made read-only.
        let mut options = OpenOptions::new();
        let device = options.read(true).write(!read_only).custom_flags(libc::O_CLOEXEC).open(&path).map_err(of)?;
        // SAFETY: `config` has the kernel's layout and outlives the call, which only reads it.
        let configured =
            answer(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, std::ptr::from_ref(&config)) }.into());
        left -= 1;
        match configured {
            Ok(_) => return Ok((device, path)),
            Err(Errno::EBUSY) if left > 0 => (),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!((size_of::<Info>(), size_of::<Config>()), (232, 304));
        assert_eq!(std::mem::offset_of!(Info, file_name), 56);
    }
}
