//! What systemd calls a limit: properties of a unit for the files of a cgroup, and those that annotations ask for.
//!
//! systemd owns a scope's files. What it has a property for it is told as one, so that it does not put its own idea back;
//! the rest is written to the files, as the scope is delegated.
//!
//! An annotation `org.systemd.property.NAME` sets a property of the container's scope. Only what bounds resources, and how
//! the scope ends, can be set: a bundle must not be able to order units about, or run a program as the service manager.
//!
//! Source: org.freedesktop.systemd1(5), systemd.resource-control(5), systemd.scope(5); values as GVariant's text form, which
//! is how runc and crun read them.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

use super::dbus::{Property, Value};
use super::resources::Limits;

/// Properties of a scope beyond its limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties(pub(super) Vec<Property>);

/// Files that are a property with the same number.
const SAME: &[(&str, &str)] = &[
    ("pids.max", "TasksMax"),
    ("memory.max", "MemoryMax"),
    ("memory.low", "MemoryLow"),
    ("memory.high", "MemoryHigh"),
    ("memory.min", "MemoryMin"),
    ("memory.swap.max", "MemorySwapMax"),
    ("memory.zswap.max", "MemoryZSwapMax"),
    ("cpu.weight", "CPUWeight"),
];

/// What systemd takes at least. The file says it as it was asked for, and for memory that is no difference: it is counted in pages.
fn least(property: &str) -> u64 {
    u64::from(matches!(property, "TasksMax" | "MemoryMax" | "MemoryHigh"))
}

/// Files that are a property with the same list, as a set of bits.
const SETS: &[(&str, &str)] = &[("cpuset.cpus", "AllowedCPUs"), ("cpuset.mems", "AllowedMemoryNodes")];

/// The limits that systemd knows.
pub(super) fn of_limits(limits: &Limits) -> Vec<Property> {
    let mut properties = Vec::new();
    let named = |table: &[(&str, &'static str)], file: &str| {
        table.iter().find(|(name, _)| *name == file).map(|(_, property)| *property)
    };
    for write in &limits.writes {
        if let Some(property) = named(SAME, &write.file) {
            properties
                .extend(number(&write.value).map(|number| (property, Value::Number(number.max(least(property))))));
        } else if let Some(property) = named(SETS, &write.file) {
            properties.extend(bits(&write.value).map(|bits| (property, Value::Bytes(bits))));
        } else if write.file == "cpu.max" {
            properties.extend(cpu_quota(&write.value));
        } else if write.file == "cpu.idle" {
            match write.value.as_str() {
                "1" => properties.push(IDLE),
                // systemd takes it for idle until it is told of a weight.
                _ if limits.writes.iter().any(|other| other.file == "cpu.weight") => (),
                _ => properties.push(("CPUWeight", Value::Number(u64::MAX))),
            }
        }
    }
    properties
}

/// An idle cgroup.
const IDLE: Property = ("CPUWeight", Value::Number(0));

/// The first version of systemd that takes a property so; those before it refuse the whole call.
fn since(property: &Property) -> u32 {
    match property {
        property if *property == IDLE => 252,
        ("MemoryZSwapMax", _) => 253,
        _ => 0,
    }
}

/// Leaves out what the running systemd does not know, which is written to the files alone. Its version is asked for only
/// where it matters.
pub(super) fn known(mut properties: Vec<Property>, version: impl FnOnce() -> Result<String>) -> Result<Vec<Property>> {
    if properties.iter().any(|property| since(property) > 0) {
        let version = number_of(&version()?);
        properties.retain(|property| since(property) <= version);
    }
    Ok(properties)
}

/// The number in systemd's word for its version, such as `249.11-0ubuntu3.12` or `v245`; 0 where there is none.
fn number_of(version: &str) -> u32 {
    let version = version.trim_start_matches('v');
    let end = version.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(version.len());
    version[..end].parse().unwrap_or(0)
}

/// `max` is systemd's infinity. Files of memory take multiples too: memparse() in lib/cmdline.c.
fn number(value: &str) -> Option<u64> {
    let value = value.trim();
    if value == "max" {
        return Some(u64::MAX);
    }
    let end = value.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(value.len());
    let shift = match value[end..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    value[..end].parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `0-3,7` as a set of bits, the first in the lowest bit of the first byte. `None`: the kernel will refuse it, in better
/// words than systemd's.
fn bits(list: &str) -> Option<Vec<u8>> {
    /// More than any kernel counts CPUs or nodes.
    const MOST: usize = 8192;
    let mut bits = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        if bits.len() <= last / 8 {
            bits.resize(last / 8 + 1, 0u8);
        }
        (first..=last).for_each(|bit| bits[bit / 8] |= 1 << (bit % 8));
    }
    Some(bits)
}

/// systemd counts the quota by the second, and in steps of 10 ms: it is rounded up, so that never less is given than was
/// asked for; the exact figure is written to the file afterwards.
fn cpu_quota(value: &str) -> Vec<Property> {
    let mut words = value.split(' ');
    let quota = words.next().and_then(number);
    let period = words.next().and_then(number);
    let per_second = match quota {
        None => return Vec::new(),
        Some(u64::MAX) => u64::MAX,
        Some(quota) => {
            let per_second = quota.saturating_mul(1_000_000) / period.unwrap_or(100_000).max(1);
            per_second.checked_next_multiple_of(10_000).unwrap_or(u64::MAX)
        }
    };
    let mut properties = vec![("CPUQuotaPerSecUSec", Value::Number(per_second))];
    properties.extend(period.map(|period| ("CPUQuotaPeriodUSec", Value::Number(period))));
    properties
}

/// What a property's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flag,
    /// `t`
    Number,
    /// `u`
    Small,
    /// `i`: a signal's number.
    Signal,
    Text,
    /// A list of numbers, as bits.
    Set,
}

/// Every property that an annotation may set.
const SETTABLE: &[(&str, Kind)] = &[
    ("AllowedCPUs", Kind::Set),
    ("AllowedMemoryNodes", Kind::Set),
    ("CPUQuotaPerSecUSec", Kind::Number),
    ("CPUQuotaPeriodUSec", Kind::Number),
    ("CPUWeight", Kind::Number),
    ("CollectMode", Kind::Text),
    ("IOWeight", Kind::Number),
    ("KillSignal", Kind::Signal),
    ("ManagedOOMMemoryPressure", Kind::Text),
    ("ManagedOOMMemoryPressureLimit", Kind::Small),
    ("ManagedOOMPreference", Kind::Text),
    ("ManagedOOMSwap", Kind::Text),
    ("MemoryHigh", Kind::Number),
    ("MemoryLow", Kind::Number),
    ("MemoryMax", Kind::Number),
    ("MemoryMin", Kind::Number),
    ("MemorySwapMax", Kind::Number),
    ("MemoryZSwapMax", Kind::Number),
    ("MemoryZSwapWriteback", Kind::Flag),
    ("OOMPolicy", Kind::Text),
    ("RuntimeMaxUSec", Kind::Number),
    ("SendSIGHUP", Kind::Flag),
    ("SendSIGKILL", Kind::Flag),
    ("StartupCPUWeight", Kind::Number),
    ("StartupIOWeight", Kind::Number),
    ("TasksMax", Kind::Number),
    ("TimeoutStopUSec", Kind::Number),
];

/// What the annotations begin with.
pub const PREFIX: &str = "org.systemd.property.";

/// The properties that a container's annotations ask for.
///
/// # Errors
///
/// A property is not one that can be set, or its value is none.
pub fn of_annotations(annotations: &BTreeMap<String, String>) -> Result<Properties> {
    let asked = annotations.iter().filter_map(|(key, value)| Some((key, key.strip_prefix(PREFIX)?, value)));
    let properties = asked.map(|(key, name, value)| {
        let refuse = |why: &str| Error::said("set", format!("annotation {key} to {value:?}"), why.to_owned());
        // Times may be given in seconds, under the name that unit files have for them.
        let (name, scale) = match name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')) {
            Some(stem) => (format!("{stem}USec"), 1e6),
            None => (name.to_owned(), 1.0),
        };
        let known = SETTABLE.iter().find(|(property, _)| *property == name);
        let &(property, kind) = known.ok_or_else(|| {
            let names: Vec<&str> = SETTABLE.iter().map(|(name, _)| *name).collect();
            refuse("ferry lets no annotation set that property").hint(format!("it is one of {}", names.join(", ")))
        })?;
        Ok((property, typed(kind, value.trim(), scale).map_err(|why| refuse(&why))?))
    });
    properties.collect::<Result<_>>().map(Properties)
}

/// A value in GVariant's text form: a number may say its type first, text stands in quotes.
fn typed(kind: Kind, text: &str, scale: f64) -> std::result::Result<Value, String> {
    let bare = ["uint64 ", "int64 ", "uint32 ", "int32 ", "uint16 ", "int16 ", "byte ", "boolean ", "string "]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(text)
        .trim();
    let quoted = || {
        let quote = bare.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        bare[1..]
            .strip_suffix(quote)
            .filter(|inner| !inner.contains([quote, '\\']) && !inner.contains(char::is_control))
    };
    let whole = || match bare {
        "infinity" => Some(u64::MAX),
        _ if scale == 1.0 => bare.parse().ok(),
        _ => bare.parse().ok().filter(|seconds: &f64| (0.0..1e12).contains(seconds)).map(|s: f64| (s * scale) as u64),
    };
    let value = match kind {
        Kind::Flag => bare.parse().ok().map(Value::Flag),
        Kind::Number => whole().map(Value::Number),
        Kind::Small => bare.parse().ok().map(Value::Small),
        Kind::Signal => bare.parse().ok().filter(|signal| (1..=64).contains(signal)).map(Value::Signed),
        Kind::Text => quoted().map(|text| Value::Text(text.to_owned())),
        Kind::Set => quoted().and_then(bits).map(Value::Bytes),
    };
    value.ok_or_else(|| match kind {
        Kind::Flag => "it is neither true nor false".to_owned(),
        Kind::Number | Kind::Small => "it is no whole number, such as uint64 5000000".to_owned(),
        Kind::Signal => "it is no signal's number, such as 15".to_owned(),
        Kind::Text => "text stands in quotes, such as 'inactive-or-failed'".to_owned(),
        Kind::Set => "it is no list in quotes, such as '0-3,7'".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::resources::plan_update;

    #[test]
    fn limits_as_properties() {
        let json = r#"{"pids": {"limit": 9}, "memory": {"limit": 100, "swap": 300, "reservation": 50},
            "cpu": {"shares": 1024, "quota": 12345, "period": 50000, "cpus": "0,9-10"}, "unified": {"memory.high": "max"}}"#;
        let numbers = |pairs: &[(&'static str, u64)]| -> Vec<Property> {
            pairs.iter().map(|(name, number)| (*name, Value::Number(*number))).collect()
        };
        let mut expected = numbers(&[
            ("TasksMax", 9),
            ("MemorySwapMax", 200),
            ("MemoryMax", 100),
            ("MemoryLow", 50),
            ("CPUWeight", 100),
            ("CPUQuotaPerSecUSec", 250_000),
            ("CPUQuotaPeriodUSec", 50_000),
        ]);
        expected.push(("AllowedCPUs", Value::Bytes(vec![1, 6])));
        expected.extend(numbers(&[("MemoryHigh", u64::MAX)]));
        assert_eq!(of_limits(&plan_update(&serde_json::from_str(json).unwrap()).unwrap()), expected);
        assert_eq!(cpu_quota("max"), [("CPUQuotaPerSecUSec", Value::Number(u64::MAX))]);
    }

    #[test]
    fn an_old_systemd_is_not_told_of_an_idle_cgroup() {
        let told = |json| of_limits(&plan_update(&serde_json::from_str(json).unwrap()).unwrap());
        let idle = told(r#"{"cpu": {"shares": 1024, "idle": 1}, "pids": {"limit": 9}}"#);
        let tasks = ("TasksMax", Value::Number(9));
        // The kernel takes no weight for one that is idle.
        assert_eq!(idle, [tasks.clone(), IDLE]);
        let zswap = told(r#"{"unified": {"memory.zswap.max": "1G"}}"#);
        assert_eq!(zswap, [("MemoryZSwapMax", Value::Number(1 << 30))]);
        for (version, knows, knows_zswap) in [
            ("249.11-0ubuntu3.12", false, false),
            ("v245", false, false),
            ("251", false, false),
            ("", false, false),
            ("252.39-1~deb12u1", true, false),
            ("257", true, true),
            ("v1000~rc1", true, true),
        ] {
            let left = |properties: &[Property]| known(properties.to_vec(), || Ok(version.to_owned())).unwrap();
            assert_eq!(left(&idle).len(), 1 + usize::from(knows), "{version}");
            assert_eq!(left(&zswap).len(), usize::from(knows_zswap), "{version}");
        }
        let unasked = || -> Result<String> { panic!("a limit of tasks is known to every version") };
        assert_eq!(known(vec![tasks.clone()], unasked).unwrap(), [tasks]);
    }

    #[test]
    fn an_idle_cgroup_is_told_of_its_weight_again() {
        let told = |json| of_limits(&plan_update(&serde_json::from_str(json).unwrap()).unwrap());
        let weight = |number| [("CPUWeight", Value::Number(number))];
        assert_eq!(told(r#"{"cpu": {"idle": 0, "shares": 1024}}"#), weight(100));
        assert_eq!(told(r#"{"cpu": {"idle": 0}}"#), weight(u64::MAX));
    }

    #[test]
    fn what_systemd_would_refuse_is_not_told() {
        let told = |file: &str, value: &str| {
            let json = serde_json::json!({"unified": {file: value}});
            of_limits(&plan_update(&serde_json::from_value(json).unwrap()).unwrap())
        };
        assert_eq!(told("pids.max", "0"), [("TasksMax", Value::Number(1))]);
        assert_eq!(told("memory.max", "0"), [("MemoryMax", Value::Number(1))]);
        assert_eq!(told("memory.low", "0"), [("MemoryLow", Value::Number(0))]);
        assert_eq!(told("memory.high", "512M"), [("MemoryHigh", Value::Number(512 << 20))]);
        assert_eq!(told("memory.high", "64k"), [("MemoryHigh", Value::Number(64 << 10))]);
        for none in ["M", "1X", "-1", "99999999999999T", ""] {
            assert_eq!(told("memory.high", none), [], "{none}");
        }
    }

    #[test]
    fn sets_of_numbers() {
        assert_eq!(bits("0-3,7"), Some(vec![0b1000_1111]));
        assert_eq!(bits("8"), Some(vec![0, 1]));
        assert_eq!(bits(""), Some(Vec::new()));
        for wrong in ["x", "3-1", "0-99999", "-1"] {
            assert_eq!(bits(wrong), None, "{wrong}");
        }
    }

    fn asked(name: &str, value: &str) -> Result<Properties> {
        of_annotations(&[(format!("{PREFIX}{name}"), value.to_owned())].into())
    }

    #[test]
    fn annotations_are_typed() {
        for (name, value, property) in [
            ("TimeoutStopUSec", "uint64 5000000", ("TimeoutStopUSec", Value::Number(5_000_000))),
            ("TimeoutStopSec", "1.5", ("TimeoutStopUSec", Value::Number(1_500_000))),
            ("CollectMode", "'inactive-or-failed'", ("CollectMode", Value::Text("inactive-or-failed".into()))),
            ("MemoryZSwapWriteback", "false", ("MemoryZSwapWriteback", Value::Flag(false))),
            ("ManagedOOMMemoryPressureLimit", "uint32 7", ("ManagedOOMMemoryPressureLimit", Value::Small(7))),
            ("KillSignal", "15", ("KillSignal", Value::Signed(15))),
            ("AllowedCPUs", "\"0-1\"", ("AllowedCPUs", Value::Bytes(vec![3]))),
        ] {
            assert_eq!(asked(name, value).unwrap(), Properties(vec![property]), "{name} {value}");
        }
        assert_eq!(of_annotations(&[("org.other".into(), "x".into())].into()).unwrap(), Properties::default());
    }

    #[test]
    fn annotations_that_would_do_more_or_mean_nothing_are_refused() {
        for (name, value, why) in [
            ("ExecStart", "'/bin/sh'", "lets no annotation set that property"),
            ("Slice", "'system.slice'", "lets no annotation set that property"),
            ("", "1", "lets no annotation set that property"),
            ("TasksMax", "many", "no whole number"),
            ("TasksMax", "-5", "no whole number"),
            ("TimeoutStopSec", "-1", "no whole number"),
            ("KillSignal", "0", "no signal's number"),
            ("KillSignal", "'TERM'", "no signal's number"),
            ("CollectMode", "inactive", "in quotes"),
            ("CollectMode", "'", "in quotes"),
            ("CollectMode", "'a'b'", "in quotes"),
            ("MemoryZSwapWriteback", "maybe", "neither true nor false"),
            ("AllowedCPUs", "'x'", "no list"),
        ] {
            let error = asked(name, value).unwrap_err().to_string();
            assert!(error.contains(why), "{name} {value}: {error}");
        }
    }
}
