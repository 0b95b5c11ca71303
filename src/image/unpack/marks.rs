//! What a layer says of those below it: that something is removed there, and that a directory hides what they have in it.
//! OCI image-spec, layer.md#whiteouts

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use rustix::fs::{AtFlags, FileType, Mode, mkdirat, statat, unlinkat};

use super::header::Header;
use super::{Layer, WHITEOUT, c_name, parted};
use crate::image::merged::OPAQUE;
use crate::image::{whiteout, xattr};
use crate::path::errno;

/// This name removes everything that the layers below have in its directory.
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Names that begin so are aufs' own affair.
const AUFS: &[u8] = b".wh..wh.";

/// Marks a directory as one that hides what the layers below have there; `user` tells whether marks are those of a user namespace.
pub fn hide_below(dir: BorrowedFd<'_>, user: bool) -> Result<(), Errno> {
    let name = CString::new(OPAQUE[usize::from(user)]).unwrap_or_default();
    xattr::set(dir, &name, b"y")
}

impl Layer {
    pub(super) fn whiteout(&mut self, header: &Header) -> Result<(), Errno> {
        let (above, name) = parted(&header.path);
        if name == OPAQUE_WHITEOUT {
            self.parent(&header.path)?;
            self.rest.links.empty(above);
            return self.hide_below(above);
        }
        let removed = &name[WHITEOUT.len()..];
        if name.starts_with(AUFS) || matches!(removed, b"" | b"." | b"..") {
            return if name.starts_with(AUFS) { Ok(()) } else { Err(Errno::EINVAL) };
        }
        let removed_path = if above.is_empty() { removed.to_vec() } else { [above, b"/", removed].concat() };
        let (dir, _) = match self.parent(&header.path) {
            // This layer has no directory there, which already hides what was in it: umoci lists that all the same.
            Err(Errno::ENOTDIR) => return Ok(()),
            answer => answer?,
        };
        self.rest.links.remove(&removed_path);
        let name = c_name(removed)?;
        match whiteout::make(dir.as_fd(), &name, self.how.user_namespace) {
            Ok(()) => Ok(()),
            // It removes what is below, not what this layer brings itself.
            Err(Errno::EEXIST) => {
                let stat = statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => self.renew(&removed_path),
                    _ => Ok(()),
                }
            }
            Err(answer) => Err(answer),
        }
    }

    /// Removed from the layers below, and then there again: a directory that hides them.
    pub(super) fn reopen_whiteout(&mut self, path: &[u8]) -> Result<(), Errno> {
        let (above, name) = parted(path);
        let (dir, name) = (self.open_dir(above)?, c_name(name)?);
        if !whiteout::is_one(&dir, &name, &statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?) {
            return Err(Errno::ENOTDIR);
        }
        unlinkat(&dir, &name, AtFlags::empty()).map_err(errno)?;
        mkdirat(&dir, &name, Mode::from_raw_mode(0o755)).map_err(errno)?;
        self.plain(path)?;
        self.renew(path)
    }

    /// Makes a directory one that has nothing to do with what the layers below have of that name: it need not even be a directory.
    pub(super) fn renew(&mut self, path: &[u8]) -> Result<(), Errno> {
        self.rest.implied.remove(path);
        self.hide_below(path)
    }

    fn hide_below(&mut self, path: &[u8]) -> Result<(), Errno> {
        hide_below(self.open_dir(path)?.as_fd(), self.how.user_namespace)
    }
}
