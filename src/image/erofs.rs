//! Layers made EROFS images, by `mkfs.erofs`: its files in chunks of a page each, so that holes stay holes.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::digest::Digest;
use super::store::erofs::{Erofs, IMAGE};
use super::store::session::Session;
use super::store::{self, layers};
use crate::error::{Context, Error, Result};
use crate::host::{self, program};

/// Makes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker(PathBuf);

impl Maker {
    /// Finds what it takes.
    ///
    /// # Errors
    /// mkfs.erofs is not installed; the caller is not the host's root, whose alone it is to mount them and to read overlay's marks.
    pub fn find() -> Result<Self> {
        if !host::probe().privileged || host::in_user_namespace() {
            return Err(Error::plain("only root can use EROFS images: the kernel lets nobody else mount them")
                .hint("without --erofs layers are directories, which everybody can use"));
        }
        program("mkfs.erofs").map(Self).ok_or_else(|| {
            Error::said("find", "mkfs.erofs", "EROFS images are made by it, and it is not installed")
                .hint("install the package erofs-utils, 1.3 or newer")
        })
    }

    /// Makes the EROFS images that these layers lack, as many at once as there are processors; answers how many it made.
    ///
    /// # Errors
    /// What mkfs.erofs says; then none is made.
    pub fn make(&self, session: &Session, chain: &[Digest]) -> Result<usize> {
        let store = session.store();
        let mut missing = Vec::new();
        for chain_id in chain {
            if store.erofs(chain_id)?.is_none() {
                missing.push(chain_id);
            }
        }
        let at_once = std::thread::available_parallelism().map_or(2, usize::from);
        let mut made = Vec::new();
        for some in missing.chunks(at_once) {
            let begun: Vec<_> = some.iter().map(|chain_id| self.begin(session, chain_id)).collect();
            // All are waited for, whatever became of the first.
            let ended: Vec<_> = begun.into_iter().map(|one| one.and_then(One::end)).collect();
            for (chain_id, one) in some.iter().zip(ended) {
                let (name, record) = one?;
                made.push((name, (*chain_id).clone(), record));
            }
        }
        let count = made.len();
        session.place_erofs(made).map_err(store::full)?;
        Ok(count)
    }

    fn begin(&self, session: &Session, chain_id: &Digest) -> Result<One> {
        let name = session.erofs()?;
        let image = session.store().path(session.place(&name)).join(IMAGE);
        let layer = session.store().path(layers::directory(chain_id)).join("diff");
        let child = Command::new(&self.0)
            .args(["--quiet", "--chunksize=4096"])
            .args([&image, &layer])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .or_cannot("run", self.0.display())?;
        Ok(One { child, name, image, layer })
    }
}

/// One that is being made.
struct One {
    child: Child,
    name: String,
    image: PathBuf,
    layer: PathBuf,
}

impl One {
    fn end(self) -> Result<(String, Erofs)> {
        let Self { child, name, image, layer } = self;
        let output = child.wait_with_output().or_cannot("wait for", "mkfs.erofs")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let why = if said.is_empty() { output.status.to_string() } else { said };
            return Err(Error::said("make an EROFS image of", layer.display().to_string(), why));
        }
        let file = File::open(&image).or_cannot("open", image.display())?;
        let (digest, size) = Digest::of_stream(file).or_cannot("read", image.display())?;
        Ok((name, Erofs::new(digest, size)))
    }
}
