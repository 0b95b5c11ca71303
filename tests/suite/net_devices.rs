//! Network interfaces of the host that a container is given. The host is a network namespace of the test's own, in which the
//! runtime is called.

use std::process::{Child, Command, Stdio};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::{Case, MARK};
use super::need::Need::{Peer, Root, Tool};
use super::output::{self, Lines, Output};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config::join_namespace;

/// An interface moves, what is permanent about it stays, and ip(8) makes and shows it.
const NEEDS: &[super::need::Need] =
    &[Root, Tool("ip"), Tool("nsenter"), Peer("runc", "1.1.5 has none"), Peer("crun", "1.8.1 has none")];

pub const SCENARIOS: &[Scenario] = &[
    scenario("is_moved_with_its_addresses_and_brought_up", NEEDS, moved),
    scenario("gets_its_name_inside", NEEDS, renamed),
    scenario("gets_a_name_by_template", NEEDS, template),
    scenario("that_is_missing_is_refused", NEEDS, missing),
    scenario("whose_name_is_taken_inside_is_refused", NEEDS, taken),
    scenario("without_a_network_namespace_is_refused", NEEDS, no_namespace),
    scenario("is_given_back_by_a_container_that_fails", NEEDS, given_back),
    scenario("is_left_alone_once_it_is_there", NEEDS, left_alone),
    scenario("is_not_moved_out_at_delete", NEEDS, not_returned),
];

/// A network namespace that lasts as long as this.
pub struct Network {
    holder: Child,
}

impl Network {
    fn new(case: &Case) -> Result<Self, Failed> {
        let (mut lines, pipe) = Lines::pipe(case.patience())?;
        let mut command = Command::new("unshare");
        command.arg("--net").arg(&case.stage.probe).args(["sleep", "forever"]);
        command.env(MARK, &case.directory).stdin(Stdio::null()).stdout(pipe);
        let holder = command.spawn()?;
        drop(command);
        let network = Self { holder };
        lines.until("ready")?;
        Ok(network)
    }

    /// What nsenter(1) takes.
    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// A veth pair `near` and `far`: the kind that every kernel with containers has.
    pub fn with_pair(case: &Case) -> Result<Self, Failed> {
        let network = Self::new(case)?;
        ip(&network.path(), "link add near type veth peer name far")?;
        Ok(network)
    }

    /// The runtime, called in here.
    pub fn call(&self, case: &mut Case, args: &[&str]) -> Result<Output, Failed> {
        let mut command = self.enter(&case.command(args));
        case.finish(&mut command)
    }

    /// `inner`, run in here.
    pub fn enter(&self, inner: &Command) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(inner.get_program()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
        command
    }

    /// A container that waits, and the path of its network namespace.
    pub fn start(&self, case: &mut Case) -> Result<String, Failed> {
        let bundle = case.args(&["/probe", "sleep", "forever"]).write_config()?;
        let (id, pid_file) = (case.id.clone(), case.path("pid"));
        self.call(case, &["run", "--detach", "--pid-file", &pid_file, "--bundle", &bundle, &id])?.success()?;
        Ok(format!("/proc/{}/ns/net", std::fs::read_to_string(&pid_file)?))
    }

    /// `run` is refused, leaves nothing, and leaves the interface where it was.
    pub fn refuses(&self, case: &mut Case) -> Result<Output, Failed> {
        let (bundle, id) = (case.write_config()?, case.id.clone());
        let end = self.call(case, &["run", "--bundle", &bundle, &id])?.failure()?;
        assert!(names(&self.path())?.contains(&"near".to_owned()));
        let left = case.leftovers()?;
        let held = format!("process {}", self.holder.id());
        assert_eq!(left.into_iter().filter(|what| *what != held).collect::<Vec<_>>(), Vec::<String>::new());
        Ok(end)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The namespace ends with its last process; what is in it goes with it.
        self.holder.kill().and_then(|()| self.holder.wait()).ok();
    }
}

/// ip(8) in the network namespace at `path`.
pub fn ip(path: &str, words: &str) -> Result<String, Failed> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={path}")).arg("ip").args(words.split(' ')).stdin(Stdio::null());
    Ok(output::run(&mut command, std::time::Duration::from_secs(60))?.success()?.stdout)
}

/// The interfaces of a network namespace, as `ip -json` tells them.
fn links(path: &str) -> Result<Vec<Value>, Failed> {
    Ok(serde_json::from_str(&ip(path, "-json address show")?)?)
}

fn names(path: &str) -> Result<Vec<String>, Failed> {
    Ok(links(path)?.iter().filter_map(|link| link["ifname"].as_str().map(str::to_owned)).collect())
}

fn link(path: &str, name: &str) -> Result<Value, Failed> {
    let found = links(path)?.into_iter().find(|link| link["ifname"] == name);
    found.ok_or_else(|| format!("there is no {name} in {path}").into())
}

fn give(case: &mut Case, name: &str) {
    case.config["linux"]["netDevices"] = json!({"near": {"name": name}});
}

fn moved(case: &mut Case) -> Outcome {
    let network = Network::with_pair(case)?;
    let host = network.path();
    ip(&host, "address add 10.7.0.2/24 dev near")?;
    ip(&host, "address add fd07::2/64 dev near nodad")?;
    ip(&host, "address add 10.7.0.3/24 dev near valid_lft 900 preferred_lft 900")?;
    case.config["linux"]["netDevices"] = json!({"near": {}});
    let inside = network.start(case)?;
    assert_eq!(names(&host)?, ["lo", "far"]);
    let near = link(&inside, "near")?;
    assert!(near["flags"].as_array().is_some_and(|flags| flags.contains(&"UP".into())), "{near}");
    let addresses: Vec<(&str, &Value)> = near["addr_info"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|address| address["scope"] == "global")
        .filter_map(|address| Some((address["local"].as_str()?, &address["prefixlen"])))
        .collect();
    // The one with a lifetime is whoever gave it to give again.
    assert_eq!(addresses, [("10.7.0.2", &json!(24)), ("fd07::2", &json!(64))]);
    Ok(())
}

fn renamed(case: &mut Case) -> Outcome {
    let network = Network::with_pair(case)?;
    give(case, "eth7");
    let inside = network.start(case)?;
    assert!(names(&inside)?.contains(&"eth7".to_owned()) && !names(&inside)?.contains(&"near".to_owned()));
    assert_eq!(names(&network.path())?, ["lo", "far"]);
    Ok(())
}

fn template(case: &mut Case) -> Outcome {
    let network = Network::with_pair(case)?;
    case.config["linux"]["netDevices"] = json!({"near": {"name": "ship%d"}, "far": {"name": "ship%d"}});
    let inside = network.start(case)?;
    let mut found = names(&inside)?;
    found.sort();
    assert_eq!(found, ["lo", "ship0", "ship1"]);
    Ok(())
}

fn missing(case: &mut Case) -> Outcome {
    let network = Network::with_pair(case)?;
    case.config["linux"]["netDevices"] = json!({"near": {}, "raft0": {}});
    let end = network.refuses(case)?;
    assert!(end.stderr.contains("raft0"), "{}", end.stderr);
    Ok(())
}

fn taken(case: &mut Case) -> Outcome {
    let network = Network::with_pair(case)?;
    give(case, "lo");
    let end = network.refuses(case)?;
    assert!(end.stderr.contains("lo"), "{}", end.stderr);
    Ok(())
}

fn no_namespace(case: &mut Case) -> Outcome {
    let network = Network::with_pair(case)?;
    crate::rootfs_fixtures::config::without_namespace(&mut case.config, "network");
    let without = case.config.clone();
    // By its path it is the host's all the same, whatever would be changed in it.
    for path in ["", &network.path(), "/proc/self/ns/net"] {
        for (field, what) in
            [("netDevices", json!({"near": {"name": "eth0"}})), ("sysctl", json!({"net.ipv4.ip_forward": "1"}))]
        {
            case.config = without.clone();
            if !path.is_empty() {
                join_namespace(&mut case.config, "network", path);
            }
            case.config["linux"][field] = what;
            let end = network.refuses(case)?;
            assert!(end.stderr.contains(&format!("linux.{field}")), "{path:?}: {}", end.stderr);
        }
    }
    Ok(())
}

/// The host has it again as it was, whether the namespace it was moved to ends or stays.
fn given_back(case: &mut Case) -> Outcome {
    let (network, joined) = (Network::with_pair(case)?, Network::new(case)?);
    let host = network.path();
    for words in ["address add 10.7.0.2/24 dev near", "link set near up", "address add 10.8.0.2/24 dev far"] {
        ip(&host, words)?;
    }
    let was = |name| -> Result<Value, Failed> {
        let link = link(&host, name)?;
        let addresses = link["addr_info"].as_array().into_iter().flatten().filter(|one| one["scope"] == "global");
        let addresses: Vec<Value> = addresses.map(|one| one["local"].clone()).collect();
        let is_up = link["flags"].as_array().is_some_and(|flags| flags.contains(&"UP".into()));
        Ok(json!([addresses, is_up]))
    };
    let before = (was("near")?, was("far")?);
    case.config["linux"]["netDevices"] = json!({"near": {"name": "eth0"}, "far": {"name": "ship%d"}});
    let own = case.config.clone();
    let bundle = case.path("bundle");
    for verb in ["run", "create"] {
        for joins in [false, true] {
            case.config = own.clone();
            if joins {
                join_namespace(&mut case.config, "network", &joined.path());
            }
            // Found by the child, once it has them.
            case.args(&["/no/such/program"]).write_config()?;
            let id = case.id.clone();
            let said = network.call(case, &[verb, "--bundle", &bundle, &id])?.failure()?.stderr;
            assert!(said.contains("/no/such/program"), "{said}");
            assert_eq!((was("near")?, was("far")?), before, "{verb}, joined: {joins}");
            assert_eq!(names(&joined.path())?, ["lo"]);
        }
    }
    Ok(())
}

/// What the container does with it is its own business from then on.
fn left_alone(case: &mut Case) -> Outcome {
    let network = Network::with_pair(case)?;
    ip(&network.path(), "address add 10.7.0.2/24 dev near")?;
    give(case, "eth0");
    let inside = network.start(case)?;
    for words in ["link set eth0 down", "address flush dev eth0", "link set eth0 name mine"] {
        ip(&inside, words)?;
    }
    case.exec(&[], &["/probe", "exit", "0"])?.success()?;
    case.state()?;
    let mine = link(&inside, "mine")?;
    assert!(mine["flags"].as_array().is_some_and(|flags| !flags.contains(&"UP".into())), "{mine}");
    assert_eq!(mine["addr_info"], json!([]));
    Ok(())
}

/// A namespace that outlives the container shows where the interface is then.
fn not_returned(case: &mut Case) -> Outcome {
    let (network, joined) = (Network::with_pair(case)?, Network::new(case)?);
    give(case, "eth0");
    join_namespace(&mut case.config, "network", &joined.path());
    network.start(case)?;
    let id = case.id.clone();
    network.call(case, &["delete", "--force", &id])?.success()?;
    assert_eq!(names(&network.path())?, ["lo", "far"]);
    assert_eq!(names(&joined.path())?, ["lo", "eth0"]);
    Ok(())
}
