//! Doing something inside a user namespace in which the caller is root: an ordinary user's files of many owners can be made and
//! removed only there.
//!
//! A child is cloned into it, waits until its maps are written, does the deed and sends the answer back; only the caller
//! prints. user_namespaces(7)

use std::fs::File;
use std::io::{Read, Write};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::pipe2;

use super::id_map;
use crate::error::{Context, Error, Result, Wire};
use crate::host::Host;
use crate::spec::config::IdMapping;
use crate::sys::clone::{Cloned, Parent, clone3, exit_now};

/// Runs `deed` as root of a new user namespace with these maps, and of a mount namespace in it; answers what it answers. The
/// caller must be the only thread of its process.
///
/// # Errors
/// What stands in the way of the namespace; what `deed` answers.
pub fn run(host: &Host, uids: &[IdMapping], gids: &[IdMapping], deed: impl FnOnce() -> Result<u8>) -> Result<u8> {
    let (wait, go) = pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
    let (answer, told) = pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
    let flags = (CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).bits() as u64;
    let cloned = clone3(flags, None, Parent::Caller).or_cannot("make", "a user namespace").map_err(|error| {
        error.hint(
            "an ordinary user needs user namespaces: see kernel.unprivileged_userns_clone and user.max_user_namespaces",
        )
    })?;
    match cloned {
        Cloned::Child => {
            drop((go, answer));
            // Whoever ends the caller means this process too. A caller that is gone already wrote no byte.
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).ok();
            let mut start = [0];
            // Without a byte the parent has gone, or could not write the maps: there is nobody to do anything for.
            let done = match File::from(wait).read(&mut start) {
                Ok(1) => deed(),
                _ => exit_now(1),
            };
            let text = serde_json::to_vec(&done.map_err(|error| error.to_wire())).unwrap_or_default();
            exit_now(i32::from(File::from(told).write_all(&text).is_err()))
        }
        Cloned::Parent { pid, .. } => {
            drop((wait, told));
            let mapped = id_map::write(host, pid, uids, gids);
            if mapped.is_ok() {
                File::from(go).write_all(b"g").or_cannot("start", "the process in a user namespace")?;
            } else {
                drop(go);
            }
            let mut text = Vec::new();
            let heard = File::from(answer).read_to_end(&mut text);
            reap(pid)?;
            mapped?;
            heard.or_cannot("hear of", "the process in a user namespace")?;
            match serde_json::from_slice::<std::result::Result<u8, Wire>>(&text) {
                Ok(Ok(code)) => Ok(code),
                Ok(Err(error)) => Err(Error::from_wire(error)),
                Err(_) => Err(Error::plain("the process in a user namespace ended without an answer")),
            }
        }
    }
}

fn reap(pid: nix::unistd::Pid) -> Result<()> {
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => (),
            answer => return answer.map(drop).or_cannot("wait for", "the process in a user namespace"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deed_is_roots_and_its_answer_comes_back() {
        let host = crate::host::probe();
        let own = |host_id| [IdMapping { container_id: 0, host_id, size: 1 }];
        let (uids, gids) = (own(host.uid), own(host.gid));
        let answer = run(&host, &uids, &gids, || Ok(u8::from(nix::unistd::geteuid().is_root()) + 6));
        if answer.as_ref().is_err_and(|error| error.to_string().starts_with("cannot make a user namespace")) {
            return;
        }
        assert_eq!(answer, Ok(7));
        let refused = run(&host, &uids, &gids, || Err(Error::plain("no").exit(9))).unwrap_err();
        assert_eq!((refused.to_string().as_str(), refused.exit_code()), ("no", 9));
    }
}
