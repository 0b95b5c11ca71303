//! Session keyrings: a container must not hold the keys of whoever started it. keyctl(2), session-keyring(7)

use std::ffi::CStr;

use nix::errno::Errno;

use super::answer;

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
const KEYCTL_SETPERM: libc::c_long = 5;
const KEYCTL_DESCRIBE: libc::c_long = 6;

/// Makes or joins the session keyring `name`; answers its serial number.
///
/// # Errors
/// ENOSYS without CONFIG_KEYS, EDQUOT at the owner's limit of keys.
pub fn join_session(name: &CStr) -> Result<i32, Errno> {
    // SAFETY: `name` is NUL-terminated and outlives the call, which only reads it.
    answer(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
        .map(|serial| serial as i32)
}

/// The permissions of a key.
///
/// # Errors
/// ENOKEY, EACCES.
pub fn permissions(serial: i32) -> Result<u32, Errno> {
    let mut text = [0u8; 256];
    // SAFETY: the kernel writes at most `text.len()` bytes to `text`.
    let length =
        answer(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_DESCRIBE, serial, text.as_mut_ptr(), text.len()) })?;
    // "type;uid;gid;permissions;description"
    let text = std::str::from_utf8(&text[..text.len().min(length as usize)]).map_err(|_| Errno::EINVAL)?;
    let field = text.split(';').nth(3).ok_or(Errno::EINVAL)?;
    u32::from_str_radix(field, 16).map_err(|_| Errno::EINVAL)
}

/// Sets the permissions of a key.
///
/// # Errors
/// ENOKEY, EACCES.
pub fn set_permissions(serial: i32, permissions: u32) -> Result<(), Errno> {
    // SAFETY: plain integers.
    answer(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, serial, permissions) }).map(drop)
}
