//! The parent of whatever containers leave behind.
//!
//! A process that outlives its parent is given to the machine's first process, or to the nearest ancestor that asks for
//! such. Until it is waited for it is a zombie; a pid namespace cannot end, nor a cgroup be removed, before that, and the
//! first process of a test machine may take its time. So the tests run in a child, and this process waits for all.

use std::env;
use std::error::Error;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

/// Says to the child that it is the one with the tests.
const REAPED: &str = "FERRY_TEST_REAPED";

/// Runs this program again as a child and waits for it and for all it leaves; none where this is that child.
pub fn run() -> Result<Option<ExitCode>, Box<dyn Error>> {
    if env::var_os(REAPED).is_some() {
        return Ok(None);
    }
    nix::sys::prctl::set_child_subreaper(true)?;
    let child = Command::new(env::current_exe()?).args(env::args_os().skip(1)).env(REAPED, "yes").spawn()?;
    let tests = Pid::from_raw(i32::try_from(child.id())?);
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == tests => return Ok(Some(ExitCode::from(u8::try_from(code)?))),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == tests => return Err(format!("ended by {signal}").into()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
