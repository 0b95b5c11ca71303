//! The systemd driver: the container's cgroup as a transient scope, so that systemd knows of it and counts it.
//!
//! systemd takes a scope only with a process in it. So here, unlike with ferry's own cgroups, the container's process is
//! cloned first, waits at its gate, and is moved by systemd. The limits are told to systemd too, because it owns the
//! scope's files and writes its own idea of them at every reload; what it has no property for is written to the files
//! afterwards, as the scope is delegated.
//!
//! Source: org.freedesktop.systemd1(5), systemd.resource-control(5), "Control Group APIs and Delegation".

use std::path::PathBuf;

use nix::unistd::Pid;

use crate::error::{Context, Error, Result};
use crate::host::outer_uid;
use crate::procfs;

use super::dbus::{Body, Bus, Call, Property, Value};
use super::location::Unit;
use super::properties::{self, Properties};
use super::resources::Limits;

/// systemd's manager, on the system's bus or the user's own.
pub struct Manager {
    bus: Bus,
    /// The bus's own name for systemd: signals of others are not believed.
    systemd: String,
}

const NAME: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";

/// Is there where systemd runs the host. sd_booted(3)
const RUNS: &str = "/run/systemd/system";

impl Manager {
    /// Connects to the system's systemd as root, to the user's own otherwise.
    ///
    /// # Errors
    ///
    /// No bus, or no systemd on it.
    pub fn connect() -> Result<Self> {
        let mut bus = Bus::connect(&bus_address()?)?;
        let systemd = find(&mut bus)?;
        let rule = format!("type='signal',sender='{NAME}',interface='{NAME}.Manager',member='JobRemoved'");
        bus.call_bus("AddMatch", "s", Body::default().text(&rule))?;
        let mut manager = Self { bus, systemd };
        manager.call("Subscribe", "", Body::default())?;
        Ok(manager)
    }

    /// Starts the scope `unit` with `pid` in it and waits until the process has been moved. Answers the cgroup's path
    /// from the v2 mount's root. A unit of that name that has failed and was left over is forgotten first.
    ///
    /// # Errors
    ///
    /// The unit exists and is in use, the process is gone, or systemd refuses a limit.
    pub fn start(&mut self, unit: &Unit, pid: Pid, limits: &Limits, more: &Properties) -> Result<PathBuf> {
        let name = scope_name(unit)?;
        let mut properties = scope(unit, pid);
        properties.extend(self.properties(limits)?);
        properties.extend(more.0.iter().cloned());
        let body = || Body::default().text(&name).text("fail").properties(&properties).nothing();
        let start = |manager: &mut Self| manager.job("StartTransientUnit", "ssa(sv)a(sa(sv))", body(), &name);
        match start(self) {
            Err(error) if error.to_string().contains("UnitExists") => {
                // Only a unit that has failed is forgotten by this: one in use stays, and then the name is taken.
                self.forget_failure(&name)?;
                start(self).map_err(|again| again.hint(format!("`systemctl status {name}` shows what uses that name")))
            }
            answer => answer,
        }?;
        let path = format!("/proc/{pid}/cgroup");
        let table = procfs::text(&path).or_cannot("read", &path)?;
        let place = table.lines().find_map(|line| line.strip_prefix("0::"));
        match place {
            Some(place) if place.ends_with(&format!("/{name}")) => Ok(PathBuf::from(place.trim_start_matches('/'))),
            _ => Err(Error::said("have systemd place the container in", name, "its process is somewhere else")),
        }
    }

    /// Tells systemd of changed limits, for the life of the scope.
    ///
    /// # Errors
    ///
    /// The unit is gone, or systemd refuses a limit.
    pub fn update(&mut self, unit: &Unit, limits: &Limits) -> Result<()> {
        let name = scope_name(unit)?;
        let body = Body::default().text(&name).flag(true).properties(&self.properties(limits)?);
        self.call("SetUnitProperties", "sba(sv)", body).map(drop)
    }

    /// Stops the scope, which kills what is left in it, and has systemd forget a failure of it. A scope that is gone is as
    /// good as stopped.
    ///
    /// # Errors
    ///
    /// systemd refuses.
    pub fn stop(&mut self, unit: &Unit) -> Result<()> {
        let name = scope_name(unit)?;
        let stopped = self.job("StopUnit", "ss", Body::default().text(&name).text("replace"), &name);
        stopped.or_else(if_gone)?;
        self.forget_failure(&name)
    }

    fn forget_failure(&mut self, name: &str) -> Result<()> {
        self.call("ResetFailedUnit", "s", Body::default().text(name)).map(drop).or_else(if_gone)
    }

    /// Calls a method that answers with a job, and waits for the job's end.
    fn job(&mut self, member: &str, signature: &str, body: Body, unit: &str) -> Result<()> {
        let job = self.call(member, signature, body)?.into_iter().next().ok_or_else(|| unexpected(member))?;
        // JobRemoved(id, job, unit, result)
        let is_ours = |texts: &[String]| match texts {
            [path, _, result] if *path == job => Some(result.clone()),
            _ => None,
        };
        match self.bus.wait_for(&self.systemd, "JobRemoved", is_ours)?.as_str() {
            "done" => Ok(()),
            result => {
                Err(Error::said("have systemd finish", format!("{member} of {unit}"), format!("result: {result}")))
            }
        }
    }

    /// The limits that this systemd knows.
    fn properties(&mut self, limits: &Limits) -> Result<Vec<Property>> {
        properties::known(properties::of_limits(limits), || {
            let body = Body::default().text(MANAGER).text("Version");
            let version = self.ask("org.freedesktop.DBus.Properties", "Get", "ss", body)?;
            version.into_iter().next().ok_or_else(|| unexpected("Get"))
        })
    }

    fn call(&mut self, member: &str, signature: &str, body: Body) -> Result<Vec<String>> {
        self.ask(MANAGER, member, signature, body)
    }

    fn ask(&mut self, interface: &str, member: &str, signature: &str, body: Body) -> Result<Vec<String>> {
        let path = "/org/freedesktop/systemd1";
        self.bus.call(&Call { destination: NAME, path, interface, member, signature, body })?.texts()
    }
}

/// The bus's own name for systemd. One that is only just coming up (a session's first seconds) is waited for.
fn find(bus: &mut Bus) -> Result<String> {
    let error = match ask_for_owner(bus) {
        Err(error) if error.to_string().contains("NameHasNoOwner") && std::fs::exists(RUNS).unwrap_or(false) => error,
        answer => return answer,
    };
    let rule = format!("type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{NAME}'");
    bus.call_bus("AddMatch", "s", Body::default().text(&rule))?;
    // Asked again, now that no change is missed any more.
    if let Ok(owner) = ask_for_owner(bus) {
        return Ok(owner);
    }
    // NameOwnerChanged(name, old owner, new owner)
    let is_ours = |texts: &[String]| match texts {
        [name, _, owner] if name == NAME && !owner.is_empty() => Some(owner.clone()),
        _ => None,
    };
    bus.wait_for(BUS, "NameOwnerChanged", is_ours).map_err(|_| error)
}

fn ask_for_owner(bus: &mut Bus) -> Result<String> {
    let owner = bus.call_bus("GetNameOwner", "s", Body::default().text(NAME))?.texts()?;
    owner.into_iter().next().ok_or_else(|| unexpected("GetNameOwner"))
}

fn if_gone(error: Error) -> Result<()> {
    if error.to_string().contains("org.freedesktop.systemd1.NoSuchUnit") { Ok(()) } else { Err(error) }
}

fn unexpected(member: &str) -> Error {
    Error::said("understand systemd's answer to", member, "it has another form than documented")
}

fn bus_address() -> Result<String> {
    if outer_uid() == 0 {
        return Ok("unix:path=/run/dbus/system_bus_socket".into());
    }
    let var = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    var("DBUS_SESSION_BUS_ADDRESS")
        .or_else(|| var("XDG_RUNTIME_DIR").map(|dir| format!("unix:path={dir}/bus")))
        .ok_or_else(|| {
            Error::said("find", "the user's bus", "neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set")
                .hint("loginctl enable-linger, and log in anew")
        })
}

fn scope_name(unit: &Unit) -> Result<String> {
    let name = unit.full_name();
    match name.ends_with(".scope") {
        true => Ok(name),
        false => Err(Error::said("have systemd make", name, "a container is a scope, not a slice")),
    }
}

/// The properties of a new scope, but for its limits.
fn scope(unit: &Unit, pid: Pid) -> Vec<Property> {
    let slice = match (unit.slice.as_str(), outer_uid() == 0) {
        ("", true) => "system.slice",
        ("", false) => "user.slice",
        (slice, _) => slice,
    };
    let on = |name| (name, Value::Flag(true));
    vec![
        ("Description", Value::Text(format!("ferry container {}", unit.name))),
        ("Slice", Value::Text(slice.into())),
        ("PIDs", Value::Ids(vec![pid.as_raw().unsigned_abs()])),
        // The container may divide its cgroup, and ferry may write what systemd has no property for.
        on("Delegate"),
        // Accounting is what makes systemd enable the controllers on the way.
        on("CPUAccounting"),
        on("MemoryAccounting"),
        on("IOAccounting"),
        on("TasksAccounting"),
        // Else systemd would order the container into its own boot and shutdown.
        ("DefaultDependencies", Value::Flag(false)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::location::parse_unit;
    use crate::cgroup::resources::plan_update;
    use crate::cgroup::trial::skip;

    fn limits(json: &str) -> Limits {
        plan_update(&serde_json::from_str(json).unwrap()).unwrap()
    }

    #[test]
    fn a_slice_is_not_a_container() {
        let error = scope_name(&parse_unit(":x:pod.slice", "id").unwrap()).unwrap_err().to_string();
        assert!(error.contains("a container is a scope"), "{error}");
    }

    #[test]
    fn a_scope_lives_and_ends_with_real_systemd() {
        if !std::path::Path::new("/run/systemd/system").exists() {
            return skip("systemd does not run this host");
        }
        let mut manager = match Manager::connect() {
            Ok(manager) => manager,
            Err(error) => return skip(&error.to_string()),
        };
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let unit = parse_unit("", &format!("test-{pid}")).unwrap();
        let asked = limits(r#"{"pids": {"limit": 20}, "memory": {"limit": 33554432}}"#);
        let place = manager.start(&unit, pid, &asked, &Properties::default());
        let again = manager.start(&unit, pid, &asked, &Properties::default());
        let updated = manager.update(&unit, &limits(r#"{"pids": {"limit": 30}}"#));
        let dir = crate::cgroup::location::find_tree().unwrap().unwrap().mount.join(place.as_ref().unwrap());
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        let (pids, memory) = (read("pids.max"), read("memory.max"));
        let stopped = manager.stop(&unit);
        let stopped_again = manager.stop(&unit);
        let gone = !dir.exists();
        drop(child.kill());
        child.wait().unwrap();
        assert_eq!((pids.trim(), memory.trim()), ("30", "33554432"));
        let error = again.unwrap_err().to_string();
        assert!(error.contains("UnitExists"), "{error}");
        for answer in [updated, stopped, stopped_again] {
            answer.unwrap();
        }
        assert!(gone, "{}", dir.display());
    }
}
