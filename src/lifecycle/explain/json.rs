//! The plan for a program: as it serializes, with names in the place of bits, and with the parts that the plan keeps in
//! forms of the kernel's.

use serde_json::{Map, Value, json};

use super::steps;
use crate::cgroup::Place;
use crate::error::{Error, Result};
use crate::launch::plan::{CgroupPlan, Plan, ProcessPlan};
use crate::namespaces::TABLE;
use crate::rootfs::options::propagation_name;
use crate::rootfs::plan::{Mount, What};
use crate::security::capabilities::{self, Capabilities};

/// The plan as JSON.
pub(super) fn of(plan: &Plan) -> Result<Value> {
    let mut json = value(plan)?;
    json["namespaces"]["clone"] = json!(clone_flags(plan.namespaces.clone_flags()));
    json["rootfs"]["propagation"] = json!(propagation_name(plan.rootfs.propagation));
    json["rootfs"]["mounts"] = plan.rootfs.mounts.iter().map(mount).collect();
    merge(&mut json["cgroup"], cgroup(&plan.cgroup)?);
    json["hooks"] = value(&plan.hooks)?;
    if let Some(process) = &plan.process {
        json["process"]["identity"]["capabilities"] = sets(&process.identity.capabilities);
        merge(&mut json["process"], beside(process));
    }
    json["steps"] = json!(steps());
    Ok(json)
}

fn value(part: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(part).map_err(|why| Error::said("write the plan as", "JSON", why.to_string()))
}

fn merge(into: &mut Value, more: Map<String, Value>) {
    if let Value::Object(object) = into {
        object.extend(more);
    }
}

/// The names of the bits that are given to clone3(2).
fn clone_flags(bits: u64) -> Vec<&'static str> {
    TABLE.iter().filter(|row| bits & row.flag as u64 != 0).map(|row| row.name).collect()
}

fn mount(mount: &Mount) -> Value {
    let (kind, source) = match &mount.what {
        What::Filesystem { kind, source } => (kind.as_str(), json!(source)),
        What::Bind(source) | What::Inside(source) => ("bind", json!(source)),
        What::Remount => ("remount", Value::Null),
        What::Cgroup => ("cgroup", Value::Null),
    };
    json!({ "destination": mount.destination, "type": kind, "source": source, "options": mount.options.words() })
}

fn cgroup(cgroup: &CgroupPlan) -> Result<Map<String, Value>> {
    let mut json = Map::new();
    match &cgroup.place {
        Place::Directory(location) => drop(json.insert("path".into(), json!(location.dir()))),
        Place::Scope(unit) => {
            json.insert("unit".into(), json!(unit.full_name()));
            json.insert("slice".into(), json!(unit.slice));
        }
        Place::Nowhere => (),
    }
    let limits = &cgroup.limits;
    let write = |write: &crate::cgroup::resources::Write| {
        let field = format!("linux.resources.{}", write.field);
        json!({ "file": write.file, "value": write.value, "field": field, "controller": write.controller })
    };
    json.insert("writes".into(), limits.writes.iter().map(write).collect());
    json.insert("controllers".into(), json!(limits.needs));
    json.insert("devices".into(), value(&limits.devices)?);
    Ok(json)
}

fn sets(sets: &Capabilities) -> Value {
    json!({
        "bounding": capabilities::names(sets.bounding),
        "effective": capabilities::names(sets.effective),
        "inheritable": capabilities::names(sets.inheritable),
        "permitted": capabilities::names(sets.permitted),
        "ambient": capabilities::names(sets.ambient),
    })
}

/// What the plan of a process does not serialize itself.
fn beside(process: &ProcessPlan) -> Map<String, Value> {
    let mut json = Map::new();
    if let Some(size) = process.console_size {
        json.insert("consoleSize".into(), json!({ "height": size.height, "width": size.width }));
    }
    if let Some(scheduler) = &process.scheduling.scheduler {
        let attr = json!({
            "policy": scheduler.policy, "flags": scheduler.flags, "nice": scheduler.nice,
            "priority": scheduler.priority, "runtime": scheduler.runtime, "deadline": scheduler.deadline,
            "period": scheduler.period,
        });
        json.insert("scheduler".into(), attr);
    }
    let seccomp = process.seccomp.as_ref().map(|program| {
        let listener = program.notify.as_ref().map(|notify| notify.listener_path.clone());
        json!({ "instructions": program.instructions.len(), "flags": program.flags, "listener": listener })
    });
    json.insert("seccomp".into(), json!(seccomp));
    json
}
