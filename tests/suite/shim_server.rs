//! The native shim as a server: how it begins, what it bears, and what it leaves when it goes.

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use super::case::{Case, marked_processes};
use super::need::Need::{Ferry, Root};
use super::scenario::{Outcome, Scenario, scenario};
use super::shim::Shim;
use super::shim_client::{Message, clean_up};

/// By root, as for the rest of the shim.
pub const SCENARIOS: &[Scenario] = &[
    scenario("a_process_that_is_no_object_is_refused", &[Ferry, Root], no_object),
    scenario("what_is_being_made_ends_with_a_killed_shim", &[Ferry, Root], half_made),
];

/// What the shim says of itself.
fn pid(shim: &mut Shim) -> Result<u32, Failed> {
    let this = shim.this();
    Ok(u32::try_from(shim.client.done("Connect", &this)?.number(1))?)
}

fn no_object(case: &mut Case) -> Outcome {
    let mut shim = Shim::start(case)?;
    shim.create(|request| request)?;
    for process in ["[]", "5", "\"x\"", "true", "null", "{", ""] {
        let spec = Message::default().text(1, "x").text(2, process);
        let request = shim.this().text(2, "one").message(7, &spec);
        assert_eq!(shim.client.refused("Exec", &request)?.0, 3, "{process}");
    }
    shim.end(case)
}

/// The creation waits for a reader of its output.
fn half_made(case: &mut Case) -> Outcome {
    let mut shim = Shim::start(case)?;
    let stdout = case.path("unread");
    mkfifo(stdout.as_str(), Mode::from_bits_truncate(0o700))?;
    let request = shim.creation().text(6, &stdout);
    shim.client.begin("Create", &request)?;
    // Answered in turn: the worker is there.
    let server = pid(&mut shim)?;
    let processes = marked_processes(&case.directory);
    assert!(processes.len() > 1, "{processes:?}");
    kill(Pid::from_raw(i32::try_from(server)?), Signal::SIGKILL)?;
    processes.into_iter().try_for_each(|pid| case.wait_for(pid))?;
    clean_up(case, &shim.bundle, &shim.id)?;
    assert_eq!(case.leftovers()?, [""; 0]);
    Ok(())
}
