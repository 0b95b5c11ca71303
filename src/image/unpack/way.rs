//! The way to an entry through symbolic links of its own layer. What is noted of a path for [`super::complete`] is looked up there
//! without following any, since a link in the place of a directory means that something else took that place.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, PathBuf};

use nix::errno::Errno;
use rustix::fs::readlinkat;
use rustix::io::Errno as Answer;

use super::complete::moved;
use super::header::Header;
use super::{Layer, as_path, parted};
use crate::path::{Links, MAX_LINKS, errno};

impl Layer {
    /// Calls an entry, and what it is a hard link to, as they are called without links on the way.
    pub(super) fn settle(&self, header: &mut Header) -> Result<(), Errno> {
        header.path = self.real(&header.path)?;
        if header.kind.is_hard_link() {
            header.target = self.real(&header.target)?;
        }
        Ok(())
    }

    /// The same of a path. A directory that is not there yet keeps its name.
    fn real(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let (above, _) = parted(path);
        let is_known = self.parent.as_ref().is_some_and(|(known, ..)| known == above);
        if is_known || self.root.resolve(as_path(above), Links::Refuse).err() != Some(Errno::ELOOP) {
            return Ok(path.to_vec());
        }
        let (mut real, mut rest, mut followed) = (PathBuf::new(), as_path(above).to_owned(), 0);
        loop {
            let mut parts = rest.components();
            let Some(part) = parts.next() else { break };
            let mut behind = parts.as_path().to_owned();
            match part {
                Component::Normal(name) => match readlinkat(self.root.dir(), real.join(name), Vec::new()) {
                    Ok(_) if followed == MAX_LINKS => return Err(Errno::ELOOP),
                    Ok(target) => {
                        followed += 1;
                        behind = as_path(target.as_bytes()).join(behind);
                    }
                    Err(Answer::INVAL | Answer::NOENT | Answer::NOTDIR) => real.push(name),
                    Err(answer) => return Err(errno(answer)),
                },
                // The layer's root: there is nothing above it.
                Component::RootDir => real.clear(),
                Component::ParentDir => drop(real.pop()),
                Component::CurDir | Component::Prefix(_) => (),
            }
            rest = behind;
        }
        Ok(moved(path, above, real.as_os_str().as_bytes()))
    }
}
