//! Ends of processes and of the native shim itself, also of what has not begun yet, and what is written last.

use libtest_mimic::Failed;
use nix::fcntl::{FcntlArg, fcntl};

use super::case::Case;
use super::need::Need::{Ferry, Root};
use super::scenario::{Outcome, Scenario, scenario};
use super::shim::{Shim, all_of, exec, fifo};

/// By root, as for the rest of the shim.
pub const SCENARIOS: &[Scenario] =
    &[scenario("a_terminals_last_words_outlive_its_deletion", &[Ferry, Root], last_words)];

/// A shim whose container runs until it is killed.
fn running(case: &mut Case) -> Result<Shim, Failed> {
    case.args(&["/probe", "sleep", "forever"]);
    let mut shim = Shim::start(case)?;
    shim.create(|request| request)?;
    let this = shim.this();
    shim.client.done("Start", &this)?;
    Ok(shim)
}

/// Kills the container, and takes down what is left.
fn over(mut shim: Shim, case: &Case) -> Outcome {
    let this = shim.this();
    shim.client.done("Kill", &this.clone().number(3, 9))?;
    assert_eq!(shim.client.done("Wait", &this)?.number(1), 137);
    shim.end(case)
}

/// The client reads at the end alone, from a fifo that does not hold it all: the rest is in the shim and in the terminal.
fn last_words(case: &mut Case) -> Outcome {
    let mut shim = running(case)?;
    let this = shim.this();
    let (stdout, output) = fifo(case, "stdout")?;
    fcntl(&output, FcntlArg::F_SETPIPE_SZ(4096))?;
    let words = "word ".repeat(1600);
    let said = exec(&shim, "one", &["/probe", "say", &words], |request| request.number(3, 1).text(5, &stdout));
    shim.client.done("Exec", &said)?;
    let one = this.clone().text(2, "one");
    shim.client.done("Start", &one)?;
    assert_eq!(shim.client.done("Wait", &one)?.number(1), 0);
    let deletes = shim.client.begin("Delete", &one)?;
    // Answered in turn: the shim has heard of the deletion.
    let waits = shim.client.begin("State", &this)?;
    assert_eq!(shim.client.answer()?.0, waits, "it is deleted before it is read");
    assert_eq!(all_of(case, &stdout, output)?, format!("{words}\r\n"));
    assert_eq!(shim.client.answer()?.0, deletes);
    over(shim, case)
}
