//! The native shim as a server: how it begins, what it bears, and what it leaves when it goes.

use super::case::Case;
use super::need::Need::{Ferry, Root};
use super::scenario::{Outcome, Scenario, scenario};
use super::shim::Shim;
use super::shim_client::Message;

/// By root, as for the rest of the shim.
pub const SCENARIOS: &[Scenario] = &[scenario("a_process_that_is_no_object_is_refused", &[Ferry, Root], no_object)];

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
