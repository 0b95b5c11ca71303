//! What a container's network interfaces may carry, measured by what gets through. The host is a network namespace of the
//! test's own.

use std::process::{Command, Stdio};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::{Case, MARK};
use super::limits::alone;
use super::need::Need::{Ferry, Policing, Root, Tool};
use super::net_devices::{Network, ip};
use super::output::Lines;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config::{join_namespace, without_namespace};

const NEEDS: &[super::need::Need] = &[Ferry, Root, Tool("ip"), Tool("nsenter")];

pub const SCENARIOS: &[Scenario] = &[
    scenario("what_is_sent_takes_the_time_it_may", NEEDS, sent),
    scenario(
        "what_is_received_takes_the_time_it_may",
        &[Ferry, Root, Tool("ip"), Tool("nsenter"), Policing(true)],
        received,
    ),
    scenario("a_kernel_that_cannot_is_told", &[Ferry, Root, Tool("ip"), Tool("nsenter"), Policing(false)], cannot),
    scenario("a_shared_namespace_has_the_rate_asked_for_last", NEEDS, asked_again),
    scenario("an_interface_that_a_hook_brings_is_limited_too", NEEDS, by_hook),
    scenario("without_an_interface_is_refused", NEEDS, no_interface),
    scenario("on_the_hosts_network_is_refused", NEEDS, hosts_network),
    scenario("a_shaper_of_somebody_elses_stays", NEEDS, somebody_elses),
    scenario("nonsense_is_refused", &[Ferry], nonsense),
];

const EGRESS: &str = "dev.ferry.network.egress";
const INGRESS: &str = "dev.ferry.network.ingress";
/// In bits each second: slow enough for an emulated host to keep up with.
const RATE: u64 = 4_000_000;
/// Two seconds' worth.
const KILOBYTES: u64 = 1000;

/// A pair of interfaces, `near` for the container and `far` on the host, both with an address.
fn connected(case: &mut Case) -> Result<Network, Failed> {
    let network = Network::with_pair(case)?;
    for words in ["address add 10.7.0.1/24 dev far", "address add 10.7.0.2/24 dev near", "link set far up"] {
        ip(&network.path(), words)?;
    }
    case.config["linux"]["netDevices"] = json!({"near": {}});
    Ok(network)
}

fn annotate(case: &mut Case, key: &str, value: &str) {
    case.config["annotations"][key] = json!(value);
}

/// Asserts that what was received took as long as the rate says, give or take what a shaper lets through at once and what a
/// slow host loses.
fn took_its_time(told: &str) -> Outcome {
    let told: Value = serde_json::from_str(told)?;
    assert_eq!(told["bytes"], json!(KILOBYTES << 10), "{told}");
    let seconds = told["seconds"].as_f64().ok_or("no time was told")?;
    let expected = (KILOBYTES << 13) as f64 / RATE as f64;
    assert!(
        (expected * 0.75..=expected * 2.0).contains(&seconds),
        "it took {seconds:.2} s, and {expected:.2} s is right"
    );
    Ok(())
}

fn sent(case: &mut Case) -> Outcome {
    let _alone = alone();
    let network = connected(case)?;
    annotate(case, EGRESS, &RATE.to_string());
    network.start(case)?;
    let (mut lines, pipe) = Lines::pipe(case.patience())?;
    let mut receive = Command::new(&case.stage.probe);
    receive.args(["receive", "10.7.0.1:7000"]).env(MARK, &case.directory);
    let mut receiver = network.enter(&receive).stdout(pipe).spawn()?;
    lines.until("ready")?;
    case.exec(&[], &["/probe", "transmit", "10.7.0.1:7000", &KILOBYTES.to_string()])?.success()?;
    let told = lines.until("seconds")?;
    receiver.wait()?;
    took_its_time(&told)
}

fn received(case: &mut Case) -> Outcome {
    let _alone = alone();
    let network = connected(case)?;
    annotate(case, INGRESS, &RATE.to_string());
    case.args(&["/probe", "receive", "10.7.0.2:7000"]);
    let bundle = case.write_config()?;
    let (mut lines, pipe) = Lines::pipe(case.patience())?;
    let id = case.id.clone();
    let mut container =
        network.enter(&case.command(&["run", "--bundle", &bundle, &id])).stdin(Stdio::null()).stdout(pipe).spawn()?;
    lines.until("ready")?;
    let mut send = Command::new(&case.stage.probe);
    send.args(["transmit", "10.7.0.2:7000", &KILOBYTES.to_string()]).env(MARK, &case.directory);
    case.finish(&mut network.enter(&send))?.success()?;
    let told = lines.until("seconds")?;
    assert!(container.wait()?.success());
    took_its_time(&told)
}

fn cannot(case: &mut Case) -> Outcome {
    let network = connected(case)?;
    annotate(case, INGRESS, "1M");
    let bundle = case.write_config()?;
    let id = case.id.clone();
    let end = network.call(case, &["run", "--bundle", &bundle, &id])?.failure()?;
    assert!(end.stderr.contains("near") && end.stderr.contains("CONFIG_NET_ACT_POLICE"), "{}", end.stderr);
    Ok(())
}

/// The root queueing disciplines of `near`, as iproute2 tells them beside the link.
fn discipline(namespace: &str) -> Result<String, Failed> {
    ip(namespace, "link show near")
}

fn asked_again(case: &mut Case) -> Outcome {
    let network = connected(case)?;
    join_namespace(&mut case.config, "network", &network.path());
    case.config["linux"].as_object_mut().map(|linux| linux.remove("netDevices"));
    for rate in ["1M", "2M"] {
        annotate(case, EGRESS, rate);
        case.start_waiting()?;
        assert!(discipline(&network.path())?.contains("qdisc tbf"), "{rate}");
        let id = case.id.clone();
        case.call(&["delete", "--force", &id])?.success()?;
    }
    Ok(())
}

fn by_hook(case: &mut Case) -> Outcome {
    let network = Network::with_pair(case)?;
    annotate(case, EGRESS, "1M");
    let hook = r#"ip link set near netns "$(sed 's/.*"pid": *\([0-9]*\).*/\1/')""#;
    case.config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", hook],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}]});
    let inside = network.start(case)?;
    assert!(discipline(&inside)?.contains("qdisc tbf"));
    Ok(())
}

fn no_interface(case: &mut Case) -> Outcome {
    let network = Network::with_pair(case)?;
    annotate(case, EGRESS, "1M");
    let end = network.refuses(case)?;
    assert!(end.stderr.contains("no network interface but the loopback"), "{}", end.stderr);
    Ok(())
}

fn hosts_network(case: &mut Case) -> Outcome {
    let network = Network::with_pair(case)?;
    annotate(case, INGRESS, "1M");
    without_namespace(&mut case.config, "network");
    let without = case.config.clone();
    for path in ["", &network.path()] {
        case.config = without.clone();
        if !path.is_empty() {
            join_namespace(&mut case.config, "network", path);
        }
        let end = network.refuses(case)?;
        assert!(end.stderr.contains(INGRESS) && end.stderr.contains("host's network"), "{path:?}: {}", end.stderr);
    }
    Ok(())
}

fn somebody_elses(case: &mut Case) -> Outcome {
    let network = Network::with_pair(case)?;
    let mut shaped = Command::new("nsenter");
    shaped.arg(format!("--net={}", network.path()));
    shaped.args("tc qdisc add dev near root handle 1: tbf rate 1mbit burst 10kb latency 50ms".split(' '));
    case.finish(&mut shaped)?.success()?;
    join_namespace(&mut case.config, "network", &network.path());
    annotate(case, EGRESS, "2M");
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("near") && end.stderr.contains("tc qdisc show"), "{}", end.stderr);
    Ok(())
}

fn nonsense(case: &mut Case) -> Outcome {
    for (key, value) in [(EGRESS, "fast"), (INGRESS, "10"), ("dev.ferry.network.sideways", "1M")] {
        case.config["annotations"] = json!({key: value});
        let end = case.run()?.failure()?;
        assert!(end.stderr.contains(key), "{}", end.stderr);
    }
    Ok(())
}
