//! The standard streams of a container that comes from another machine. They led to somewhere there, which is not here.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::checkpoint::streams::Streams;
use crate::error::{Context, Result};
use crate::migrate::message::{Last, Stream};
use crate::sys::fd;

/// What nothing comes from and everything may go to.
///
/// # Errors
/// The kernel's answer.
pub fn null() -> Result<File> {
    File::options().read(true).write(true).open("/dev/null").or_cannot("open", "/dev/null")
}

/// Standard streams as the container is to find them, in the place of ferry's own until this goes.
pub struct Lent {
    own: [OwnedFd; 3],
}

/// What each standard stream is called.
const STREAMS: [&str; 3] = ["stdin", "stdout", "stderr"];

impl Lent {
    /// What led to a pipe or a file on the other machine leads to a file here. CRIU wants one in the place of a file to be as long
    /// and to have its permissions: what was written there stays there, and is a hole here.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn new(directory: &Path, id: &str, streams: &Streams, last: &Last) -> Result<Self> {
        let copy = |stream| fd::copy_above(stream, 3).or_cannot("keep", "the standard streams");
        let (input, output, errors) = (rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr());
        let own = [copy(input)?, copy(output)?, copy(errors)?];
        let mut files: Vec<(String, File)> = Vec::new();
        for (number, stream) in STREAMS.iter().enumerate() {
            let name = streams.names.get(number).cloned().unwrap_or_default();
            let like = last.streams[number].filter(|_| name.starts_with("file["));
            let is_output = number > 0 && name.starts_with("pipe:[");
            let known = files.iter().find(|(known, _)| !name.is_empty() && *known == name);
            let file = match known {
                Some((_, file)) => file.try_clone().or_cannot("open", *stream)?,
                None if like.is_some() || is_output => open(directory, &format!("{id}.{stream}"), like)?,
                None => null()?,
            };
            files.push((name, file));
        }
        let lent = Self { own };
        if let [(_, input), (_, output), (_, errors)] = &files[..] {
            put(input, output, errors).or_cannot("lend", "the standard streams")?;
        }
        Ok(lent)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // They were open where they come from, and so are they again.
        let [input, output, errors] = &self.own;
        put(input, output, errors).ok();
    }
}

fn put(input: impl AsFd, output: impl AsFd, errors: impl AsFd) -> nix::Result<()> {
    dup2_stdin(input)?;
    dup2_stdout(output)?;
    dup2_stderr(errors)
}

fn open(directory: &Path, name: &str, like: Option<Stream>) -> Result<File> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .or_cannot("make directory", directory.display())?;
    let path = directory.join(name);
    let mut options = File::options();
    options.read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&path).or_cannot("open", path.display())?;
    if let Some(Stream { length, mode }) = like {
        let permissions = std::fs::Permissions::from_mode(mode & 0o777);
        let alike = file.set_len(length).and_then(|()| file.set_permissions(permissions));
        alike.or_cannot("prepare", path.display())?;
    }
    Ok(file)
}
