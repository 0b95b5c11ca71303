//! The plan for a person: numbered parts, in the order in which they come about.

use super::steps;
use crate::cgroup::{Limits, Place};
use crate::launch::plan::{Plan, ProcessPlan};
use crate::namespaces::{TABLE, User};
use crate::network::bandwidth::Bandwidth;
use crate::process::limits::Limit;
use crate::rootfs::options::propagation_name;
use crate::rootfs::plan::{Base, Mount, MountedIn, Rootfs, What};
use crate::security::capabilities::{self, Capabilities};
use crate::spec::Config;
use crate::spec::config::{Hook, IdMapping};
use crate::spec::resources::DeviceRule;

/// The plan as lines; `config` is what it was made from, whose words are shown where the plan has numbers.
pub(super) fn of(plan: &Plan, config: &Config) -> String {
    let mut text = format!("container {} (until it gets an id), OCI {}\n", plan.id, plan.oci_version);
    text += &format!("bundle {}\n", plan.bundle.display());
    plan.warnings.iter().for_each(|warning| text += &format!("warning: {warning}\n"));
    let parts = [
        ("namespaces", namespaces(plan)),
        ("id maps", id_maps(&plan.namespaces.user)),
        ("cgroup", cgroup(plan)),
        ("root filesystem", root(&plan.rootfs)),
        ("network", network(plan)),
        ("mounts", plan.rootfs.mounts.iter().map(mount).collect()),
        ("devices", devices(&plan.rootfs)),
        ("masked paths", plan.rootfs.masked.iter().map(|path| path.display().to_string()).collect()),
        ("read-only paths", plan.rootfs.readonly.iter().map(|path| path.display().to_string()).collect()),
        ("kernel parameters", plan.sysctl.iter().map(|sysctl| format!("{} = {}", sysctl.file, sysctl.value)).collect()),
        ("hooks", plan.hooks.named().iter().flat_map(|(name, list)| list.iter().map(|hook| run(name, hook))).collect()),
        ("process", plan.process.as_ref().map_or_else(nothing_to_run, |process| self::process(process, config))),
        ("steps of the first process", steps().chunks(7).map(|steps| steps.join(", ")).collect()),
    ];
    let told = parts.iter().filter(|(_, lines)| !lines.is_empty());
    for (number, (title, lines)) in told.enumerate() {
        text += &format!("\n{}. {title}\n", number + 1);
        lines.iter().for_each(|line| text += &format!("   {line}\n"));
    }
    text
}

fn nothing_to_run() -> Vec<String> {
    vec!["none: it can be created, and not started".into()]
}

fn namespaces(plan: &Plan) -> Vec<String> {
    let namespaces = &plan.namespaces;
    let made: Vec<&str> = namespaces.make.iter().map(|kind| kind.row().name).collect();
    let joined = namespaces.join.iter().map(|join| format!("{} joined: {}", join.kind.row().name, join.path.display()));
    let user = match &namespaces.user {
        User::Join(path) => Some(format!("user joined: {}", path.display())),
        User::Inherit | User::Make { .. } => None,
    };
    let shared: Vec<&str> = TABLE.iter().filter(|row| !namespaces.has(row.kind)).map(|row| row.name).collect();
    let mut lines = vec![format!("new: {}", or_none(&made))];
    lines.extend(joined.chain(user));
    lines.push(format!("shared with the host: {}", or_none(&shared)));
    lines.extend(namespaces.time_offsets.iter().map(|offset| format!("clock offset: {offset}")));
    let names = [("host name", &plan.hostname), ("domain name", &plan.domainname)];
    let given = names.iter().filter(|(_, name)| !name.is_empty());
    lines.extend(given.map(|(title, name)| format!("{title}: {name}")));
    lines.extend(plan.keyring.as_ref().map(|name| format!("session keyring: {name}")));
    lines
}

fn network(plan: &Plan) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    lines.extend(plan.loopback.then(|| "the loopback interface is brought up".to_owned()));
    lines.extend(plan.net_devices.iter().map(|device| format!("{} is moved in as {}", device.name, device.inside)));
    let rates = plan.bandwidth.map_or([None, None], |Bandwidth { egress, ingress }| [egress, ingress]);
    let told = |(rate, what): (Option<u64>, &str)| Some(format!("{what} each interface: {} bits each second", rate?));
    lines.extend(rates.into_iter().zip(["out by", "in by"]).filter_map(told));
    lines
}

fn or_none(words: &[&str]) -> String {
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

fn id_maps(user: &User) -> Vec<String> {
    let User::Make { uids, gids } = user else { return Vec::new() };
    let line = |what: &'static str| {
        move |IdMapping { container_id, host_id, size }: &IdMapping| {
            format!("{what} {container_id} inside is {host_id} outside, {size} of them")
        }
    };
    uids.iter().map(line("user")).chain(gids.iter().map(line("group"))).collect()
}

fn cgroup(plan: &Plan) -> Vec<String> {
    let mut lines = match &plan.cgroup.place {
        Place::Directory(location) => vec![format!("made by ferry: {}", location.dir().display())],
        Place::Scope(unit) => {
            let slice = if unit.slice.is_empty() { "systemd's usual slice" } else { &unit.slice };
            vec![format!("made by systemd: systemd scope {} in {slice}", unit.full_name())]
        }
        Place::Nowhere => vec!["none: the container stays in the cgroup of its starter".into()],
    };
    let Limits { writes, devices, needs, .. } = &plan.cgroup.limits;
    if !needs.is_empty() {
        lines.push(format!("controllers: {}", needs.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(", ")));
    }
    let write = |write: &crate::cgroup::resources::Write| {
        format!("{} = {}   (linux.resources.{})", write.file, write.value, write.field)
    };
    lines.extend(writes.iter().map(write));
    if let (Some(rules), false) = (devices, plan.cgroup.place == Place::Nowhere) {
        lines.push("device rules, of which the last that fits decides; what none fits is denied:".into());
        lines.extend(rules.iter().map(|rule| format!("  {}", device_rule(rule))));
    }
    lines
}

fn device_rule(rule: &DeviceRule) -> String {
    let number = |number: Option<i64>| match number {
        None | Some(..0) => "*".to_owned(),
        Some(number) => number.to_string(),
    };
    let (major, minor) = (number(rule.major), number(rule.minor));
    let what = match (rule.kind.as_str(), &*major, &*minor) {
        ("" | "a", "*", "*") => "everything".to_owned(),
        (kind, ..) => format!("{} {major}:{minor}", if kind.is_empty() { "a" } else { kind }),
    };
    let access = if rule.access.is_empty() { "rwm" } else { &rule.access };
    format!("{} {what}: {access}", if rule.allow { "allow" } else { "deny" })
}

fn root(rootfs: &Rootfs) -> Vec<String> {
    let base = match &rootfs.base {
        Base::Directory(path) => path.display().to_string(),
        Base::CopyOnWrite { lower, .. } => {
            format!("{}, beneath an overlay in memory that ends with the container", lower.display())
        }
        Base::Layers(stack) => format!("{} layers of an image, beneath one of the container's own", stack.lowers.len()),
    };
    let how = match (rootfs.mounted_in, rootfs.pivot) {
        (MountedIn::Own, true) => "entered by pivot_root",
        (MountedIn::Own, false) => "entered by moving it over the root and chroot",
        (MountedIn::Host, _) => "entered by chroot, and mounted on the host until the container is deleted",
        (MountedIn::Nowhere, _) => "entered by chroot, without a mount namespace of its own",
    };
    let access = if rootfs.read_only_root { "read-only" } else { "writable" };
    let propagation = propagation_name(rootfs.propagation).unwrap_or("as it is");
    vec![format!("{base}, {access}"), format!("{how}; mounts propagate: {propagation}")]
}

fn mount(mount: &Mount) -> String {
    let place = mount.destination.display();
    let what = match &mount.what {
        What::Filesystem { kind, source } if source.is_empty() || source == kind => format!("{kind} on {place}"),
        What::Filesystem { kind, source } => format!("{kind} ({source}) on {place}"),
        What::Bind(source) => format!("{} on {place}", source.display()),
        What::Inside(source) => format!("{} (of the container) on {place}", source.display()),
        What::Remount => format!("the mount on {place} anew"),
        What::Cgroup => format!("the container's cgroup on {place}"),
    };
    let options = mount.options.words();
    if options.is_empty() { what } else { format!("{what}: {}", options.join(", ")) }
}

fn devices(rootfs: &Rootfs) -> Vec<String> {
    let node = |node: &crate::rootfs::devices::Node| {
        let (uid, gid) = node.owner;
        let kind = format!("{:?}", node.kind).to_lowercase();
        format!("{} {kind} {}:{} mode {:04o} of {uid}:{gid}", node.path.display(), node.major, node.minor, node.mode)
    };
    rootfs.devices.iter().map(node).collect()
}

fn run(name: &str, hook: &Hook) -> String {
    let limit = hook.timeout.map(|seconds| format!(" (at most {seconds} s)")).unwrap_or_default();
    let args: String = hook.args.iter().skip(1).map(|arg| format!(" {}", quoted(arg))).collect();
    format!("{name}: {}{args}{limit}", hook.path.display())
}

fn process(process: &ProcessPlan, config: &Config) -> Vec<String> {
    let identity = &process.identity;
    let args: Vec<String> = process.command.args.iter().map(|arg| quoted(arg)).collect();
    let mut lines = vec![format!("{}   in {}", args.join(" "), process.command.cwd.display())];
    let groups: String = identity.groups.iter().map(|gid| format!(", {gid}")).collect();
    let groups = if identity.keeps_groups { " and the caller's".to_owned() } else { groups };
    lines.push(format!("user {}, groups {}{groups}, umask {:04o}", identity.uid, identity.gid, identity.umask));
    lines.extend(capability_sets(&identity.capabilities));
    lines.extend(identity.no_new_privileges.then(|| "no exec gains privileges".to_owned()));
    lines.extend(process.limits.iter().map(limit));
    lines.extend(scheduling(config));
    lines.extend(process.oom_score_adj.map(|score| format!("OOM score adjusted by {score}")));
    lines.extend(process.terminal.then(|| "a terminal of its own".to_owned()));
    lines.push(match &process.seccomp {
        None => "system call filter: none".to_owned(),
        Some(program) => {
            let listener = program.notify.as_ref().map(|notify| notify.listener_path.display().to_string());
            let listener = listener.map(|path| format!(", listened to at {path}")).unwrap_or_default();
            format!("system call filter: {} instructions{listener}", program.instructions.len())
        }
    });
    lines.extend((process.preserve_fds > 0).then(|| format!("{} descriptors from 3 on", process.preserve_fds)));
    lines.push("environment:".to_owned());
    lines.extend(process.command.env.iter().map(|variable| format!("  {variable}")));
    lines
}

/// In the configuration's own words; the plan holds the kernel's numbers.
fn scheduling(config: &Config) -> Vec<String> {
    let process = config.process.as_ref();
    let scheduler = process.and_then(|process| process.scheduler.as_ref());
    let io = process.and_then(|process| process.io_priority.as_ref());
    let domain = config.linux.personality.as_ref();
    let memory = config.linux.memory_policy.as_ref();
    [
        scheduler.map(|s| format!("scheduler {}, priority {}, nice {}", s.policy, s.priority, s.nice)),
        io.map(|io| format!("I/O priority {} of {}", io.priority, io.class)),
        domain.map(|personality| format!("execution domain {}", personality.domain)),
        memory.map(|memory| format!("memory policy {} on nodes {}", memory.mode, memory.nodes)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn limit(limit: &Limit) -> String {
    let number = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
    format!("{:?} {}, at most {}", limit.resource, number(limit.soft), number(limit.hard))
}

/// Sets that are alike share a line.
fn capability_sets(sets: &Capabilities) -> Vec<String> {
    let mut lines: Vec<(u64, Vec<&str>)> = Vec::new();
    for (name, mask) in [
        ("bounding", sets.bounding),
        ("effective", sets.effective),
        ("permitted", sets.permitted),
        ("inheritable", sets.inheritable),
        ("ambient", sets.ambient),
    ] {
        match lines.iter_mut().find(|(known, _)| *known == mask) {
            Some((_, names)) => names.push(name),
            None => lines.push((mask, vec![name])),
        }
    }
    let line = |(mask, names): &(u64, Vec<&str>)| {
        let held = capabilities::names(*mask);
        let held = if held.is_empty() { "none".to_owned() } else { held.join(" ") };
        format!("capabilities, {}: {held}", names.join(", "))
    };
    lines.iter().map(line).collect()
}

/// An argument as a shell would take it.
fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) { arg.to_owned() } else { format!("'{}'", arg.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_can_be_pasted_into_a_shell() {
        assert_eq!(quoted("sh"), "sh");
        assert_eq!(quoted("it's a $HOME"), r"'it'\''s a $HOME'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn device_rules_in_words() {
        let rule = |json: &str| device_rule(&serde_json::from_str(json).unwrap());
        assert_eq!(rule(r#"{"allow": false}"#), "deny everything: rwm");
        assert_eq!(rule(r#"{"allow": true, "type": "c", "major": 1, "access": "r"}"#), "allow c 1:*: r");
    }

    #[test]
    fn alike_sets_share_a_line() {
        let sets = Capabilities { bounding: 1, effective: 1, ..Capabilities::default() };
        assert_eq!(
            capability_sets(&sets),
            ["capabilities, bounding, effective: CAP_CHOWN", "capabilities, permitted, inheritable, ambient: none"]
        );
    }
}
