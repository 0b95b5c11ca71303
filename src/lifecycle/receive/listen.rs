//! `receive --listen`: one migration after the other.
//!
//! What is restored are children of whoever restores it, and a program that listens for months would have to wait for the end of each
//! first process. So a process of its own serves each connection, and leaves them to init when it ends, as one that `--stdio` began.

use nix::sys::wait::waitpid;

use super::{Machine, Options, journals};
use crate::error::{Context, Result};
use crate::migrate::destination::{self, Served};
use crate::migrate::link::Link;
use crate::migrate::tls::Identity;
use crate::migrate::transport::Listener;
use crate::sys::clone::{Cloned, Parent, clone_either_way, exit_now};

/// Listens at the address. As [`super::receive`].
///
/// # Errors
/// It cannot listen; after one migration, why it did not come.
pub(super) fn listen(
    machine: &mut Machine<'_>,
    address: &str,
    options: &Options,
    told: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<bool> {
    let setting = machine.setting;
    let log = &setting.log;
    let warn_of = |done: Result<()>| done.err().into_iter().for_each(|error| log.warning(error));
    let mut listener = Listener::bind(address, options.tls.as_deref().map(Identity::read).transpose()?)?;
    told(&format!("listening at {}", listener.address))?;
    loop {
        let mut connection = listener.accept(options.patience, &mut |error| log.warning(error))?;
        if options.once {
            let served = serve(machine, &mut connection.link);
            warn_of(connection.close());
            warn_of(machine.rest());
            return tell(machine, served?, told);
        }
        match clone_either_way(0, Parent::Caller) {
            Ok(Cloned::Child) => {
                let served = serve(machine, &mut connection.link);
                drop(connection.link);
                warn_of(machine.rest());
                warn_of(served.and_then(|served| tell(machine, served, told)).map(drop));
                exit_now(0)
            }
            Ok(Cloned::Parent { pid, .. }) => {
                warn_of(waitpid(pid, None).map(drop).or_cannot("wait for", "a connection"))
            }
            Err(answer) => warn_of(Err(answer).or_cannot("start", "a process for a connection")),
        }
        warn_of(connection.close());
    }
}

fn serve(machine: &mut Machine<'_>, link: &mut Link) -> Result<Served> {
    destination::serve(link, &journals(machine.setting)?, machine)
}

/// Says what came of a link. Answers whether the container has come.
fn tell(machine: &Machine<'_>, served: Served, told: &mut dyn FnMut(&str) -> Result<()>) -> Result<bool> {
    let came = matches!(served, Served::Taken(_) | Served::Nothing);
    match served {
        Served::Taken(id) => told(&format!("{id} runs here"))?,
        Served::Refused(reasons) => machine.setting.log.warning(format!("refused: {}", reasons.join("; "))),
        Served::Failed(error) => machine.setting.log.warning(error),
        Served::Nothing => (),
    }
    Ok(came)
}
