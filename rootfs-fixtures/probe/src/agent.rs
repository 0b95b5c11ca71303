//! A seccomp agent: takes the listener of each filter that comes over its socket, says what came with it, and answers every
//! call that the filter asks about with one error. seccomp_unotify(2)

use std::io::{ErrorKind, Read, Result};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use serde_json::{Value, json};

use crate::{kernel, say};

/// Serves one container after the other, until it is killed.
pub fn serve(path: &str, error: i32) -> Result<()> {
    let socket = UnixListener::bind(path)?;
    say(&"ready")?;
    loop {
        let (connection, _) = socket.accept()?;
        if let Some(listener) = meet(connection)? {
            answer(&listener, error)?;
        }
    }
}

/// Tells what the first message was and what followed it, up to the end of the connection.
fn meet(mut connection: UnixStream) -> Result<Option<OwnedFd>> {
    let (bytes, descriptors, first) = kernel::receive(&connection)?;
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let state: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    let kind = first
        .as_ref()
        .and_then(|fd| std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd))).ok());
    say(&json!({"met": state, "descriptors": descriptors, "first": kind, "after": rest.len()}))?;
    Ok(first)
}

/// Answers until nobody is left under the filter.
fn answer(listener: &OwnedFd, error: i32) -> Result<()> {
    loop {
        match kernel::next_notification(listener) {
            Ok(asked) => {
                say(&json!({"asked": asked.data.nr, "by": asked.pid}))?;
                match kernel::answer_notification(listener, asked.id, error) {
                    // Whoever asked has been killed meanwhile.
                    Err(gone) if gone.kind() == ErrorKind::NotFound => (),
                    answer => answer?,
                }
            }
            Err(gone) if gone.kind() == ErrorKind::NotFound => return Ok(()),
            Err(interrupted) if interrupted.kind() == ErrorKind::Interrupted => (),
            Err(other) => return Err(other),
        }
    }
}
