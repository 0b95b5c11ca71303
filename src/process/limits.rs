//! Resource limits of the process: one table of names. getrlimit(2)

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Serialize, Serializer};

use crate::error::{Context, Error, Result};
use crate::spec::config::Rlimit;

/// Every limit Linux has. config.md#posix-process
const TABLE: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::RLIMIT_AS),
    ("RLIMIT_CORE", Resource::RLIMIT_CORE),
    ("RLIMIT_CPU", Resource::RLIMIT_CPU),
    ("RLIMIT_DATA", Resource::RLIMIT_DATA),
    ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
    ("RLIMIT_LOCKS", Resource::RLIMIT_LOCKS),
    ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
    ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", Resource::RLIMIT_NICE),
    ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
    ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
    ("RLIMIT_RSS", Resource::RLIMIT_RSS),
    ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
    ("RLIMIT_RTTIME", Resource::RLIMIT_RTTIME),
    ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
    ("RLIMIT_STACK", Resource::RLIMIT_STACK),
];

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Which.
    #[serde(serialize_with = "by_name")]
    pub resource: Resource,
    /// What is in force.
    pub soft: u64,
    /// The ceiling.
    pub hard: u64,
}

fn by_name<S: Serializer>(resource: &Resource, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(name(*resource))
}

fn name(resource: Resource) -> &'static str {
    TABLE.iter().find(|row| row.1 == resource).map_or("RLIMIT", |row| row.0)
}

/// Plans the limits; `at` is the JSON path of the list.
///
/// # Errors
/// An unknown name.
pub fn plan(configured: &[Rlimit], at: &str) -> Result<Vec<Limit>> {
    let limit = |(index, rlimit): (usize, &Rlimit)| {
        let row = TABLE.iter().find(|row| row.0 == rlimit.kind);
        let row = row.ok_or_else(|| {
            let why = format!("unknown resource limit {:?}", rlimit.kind);
            Error::config(format!("{at}[{index}].type"), why)
        })?;
        Ok(Limit { resource: row.1, soft: rlimit.soft, hard: rlimit.hard })
    };
    configured.iter().enumerate().map(limit).collect()
}

/// Raises ferry's own ceilings to those planned above them, so that the child inherits them: inside a user namespace it
/// could not raise them itself.
///
/// # Errors
/// EPERM without CAP_SYS_RESOURCE.
pub fn raise_own(limits: &[Limit]) -> Result<()> {
    for limit in limits {
        let (soft, hard) = getrlimit(limit.resource).or_cannot("read limit", name(limit.resource))?;
        if limit.hard > hard {
            setrlimit(limit.resource, soft, limit.hard).or_cannot("raise", name(limit.resource)).map_err(|error| {
                error.hint(format!("the ceiling here is {hard}, and raising it needs CAP_SYS_RESOURCE"))
            })?;
        }
    }
    Ok(())
}

/// Sets the limits of this process.
///
/// # Errors
/// EPERM above the present ceiling.
pub fn apply(limits: &[Limit]) -> Result<()> {
    limits
        .iter()
        .try_for_each(|limit| setrlimit(limit.resource, limit.soft, limit.hard).or_cannot("set", name(limit.resource)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let rlimit = |kind: &str| Rlimit { kind: kind.into(), soft: 1, hard: 2 };
        let planned = plan(&[rlimit("RLIMIT_NOFILE")], "process.rlimits").unwrap();
        assert_eq!(planned, [Limit { resource: Resource::RLIMIT_NOFILE, soft: 1, hard: 2 }]);
        let error = plan(&[rlimit("RLIMIT_NOFILES")], "process.rlimits").unwrap_err().to_string();
        assert_eq!(error, "process.rlimits[0].type: unknown resource limit \"RLIMIT_NOFILES\"");
    }
}
