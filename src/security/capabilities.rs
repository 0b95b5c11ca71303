//! The five capability sets: names to masks when planning, masks to the kernel in the child.
//!
//! Names come from the caps crate's vocabulary; an unknown one, or one this kernel lacks, is a warning and not an error
//! (config.md#linux-process). capabilities(7)

use std::str::FromStr;

use caps::Capability;
use nix::errno::Errno;
use serde::Serialize;

use crate::spec::config;
use crate::sys::capability::{self, Sets};

/// The sets as masks, one bit a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Capabilities {
    /// What can ever be gained.
    pub bounding: u64,
    /// What is in force.
    pub effective: u64,
    /// What a file may pass on.
    pub inheritable: u64,
    /// What may be put in force.
    pub permitted: u64,
    /// What survives an exec without file capabilities.
    pub ambient: u64,
}

/// Plans the sets; what is not known goes to `warnings`.
pub fn plan(configured: &config::Capabilities, warnings: &mut Vec<String>) -> Capabilities {
    let mut mask = |names: &[String]| {
        names.iter().fold(0, |mask, name| match number(name) {
            Some(number) => mask | 1 << number,
            None => {
                let warning = format!("unknown capability {name:?} ignored");
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
                mask
            }
        })
    };
    let planned = Capabilities {
        bounding: mask(&configured.bounding),
        effective: mask(&configured.effective),
        inheritable: mask(&configured.inheritable),
        permitted: mask(&configured.permitted),
        ambient: mask(&configured.ambient),
    };
    for name in names(planned.effective & !planned.permitted) {
        warnings.push(format!("can't put capability {name} into effect: it must be permitted too"));
    }
    for name in names(planned.ambient & !(planned.inheritable & planned.permitted)) {
        warnings.push(format!("can't raise ambient capability {name}: it must be permitted and inheritable too"));
    }
    planned
}

/// A warning for each capability that is to be had and that ferry, which holds `held`, cannot give.
pub fn withheld(planned: &Capabilities, held: u64) -> impl Iterator<Item = String> {
    let wanted = planned.permitted | planned.effective | planned.inheritable | planned.ambient;
    let warning = |name| format!("capability {name} cannot be granted: ferry itself does not hold it");
    names(wanted & !held).into_iter().map(warning)
}

/// The number of a capability by name (`CAP_CHOWN`, in any case).
pub fn number(name: &str) -> Option<u8> {
    Capability::from_str(&name.to_ascii_uppercase()).ok().map(|capability| capability.index())
}

/// The names of a mask, lowest number first.
pub fn names(mask: u64) -> Vec<String> {
    let mut all: Vec<Capability> = caps::all().into_iter().collect();
    all.sort_by_key(Capability::index);
    all.iter().filter(|capability| mask & 1 << capability.index() != 0).map(ToString::to_string).collect()
}

/// Drops from the bounding set what is not planned: while CAP_SETPCAP is still in force.
///
/// # Errors
/// EPERM without CAP_SETPCAP, where anything must be dropped.
pub fn bound(planned: &Capabilities) -> Result<(), Errno> {
    for number in (0..64).filter(|number| planned.bounding & 1 << number == 0) {
        match capability::drop_bounding(number) {
            Ok(()) => (),
            // The first number that this kernel does not have is behind the last that it has.
            Err(Errno::EINVAL) => return Ok(()),
            Err(Errno::EPERM) if !capability::bounding_has(number) => (),
            Err(answer) => return Err(answer),
        }
    }
    Ok(())
}

/// CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: with them a file without any read permission can be read all the same.
const READ_ANYTHING: u64 = 1 << 1 | 1 << 2;

/// Sets the remaining four, after the change of user. Capabilities that this kernel lacks, or that ferry itself does not
/// hold, cannot be given and are left out, as the kernel would refuse the whole set.
///
/// With `hidden`, those that read anything are not in force until the next exec, which does not ask what is in force: a
/// program that may not be read by who executes it cannot be looked into by others (see `sys::stub`).
///
/// # Errors
/// What capset(2) and prctl(2) answer.
pub fn apply(planned: &Capabilities, hidden: bool) -> Result<(), Errno> {
    let held = capability::capget()?.permitted;
    let permitted = planned.permitted & held;
    let effective = planned.effective & permitted & if hidden { !READ_ANYTHING } else { u64::MAX };
    let inheritable = planned.inheritable & held;
    capability::capset(&Sets { effective, permitted, inheritable })?;
    // After an earlier exec the ambient set may hold something; the planned one starts from nothing.
    capability::clear_ambient()?;
    let ambient = planned.ambient & permitted & inheritable;
    (0..64).filter(|number| ambient & 1 << number != 0).try_for_each(capability::raise_ambient)
}

/// Takes what reads anything out of force until the next exec.
///
/// # Errors
/// What capget(2) and capset(2) answer.
pub fn hide() -> Result<(), Errno> {
    let sets = capability::capget()?;
    capability::capset(&Sets { effective: sets.effective & !READ_ANYTHING, ..sets })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_warned_about_once() {
        let configured = config::Capabilities {
            bounding: vec!["CAP_CHOWN".into(), "CAP_FLY".into()],
            permitted: vec!["CAP_FLY".into(), "cap_kill".into()],
            ..config::Capabilities::default()
        };
        let mut warnings = Vec::new();
        let planned = plan(&configured, &mut warnings);
        assert_eq!(planned, Capabilities { bounding: 1, permitted: 1 << 5, ..Capabilities::default() });
        assert_eq!(warnings, ["unknown capability \"CAP_FLY\" ignored"]);
        assert_eq!(names(planned.permitted), ["CAP_KILL"]);
    }

    #[test]
    fn what_ferry_does_not_hold_is_warned_about() {
        let planned = Capabilities { bounding: 0b1000, permitted: 0b11, ambient: 0b110, ..Capabilities::default() };
        let warned: Vec<_> = withheld(&planned, 0b10).collect();
        assert_eq!(warned.len(), 2);
        assert!(warned[0].starts_with("capability CAP_CHOWN cannot be granted"), "{warned:?}");
        assert!(warned[1].starts_with("capability CAP_DAC_READ_SEARCH cannot be granted"), "{warned:?}");
        assert_eq!(withheld(&planned, u64::MAX).count(), 0);
    }

    #[test]
    fn effective_needs_permitted() {
        let configured = config::Capabilities {
            bounding: vec!["CAP_CHOWN".into(), "CAP_KILL".into()],
            effective: vec!["CAP_CHOWN".into(), "CAP_KILL".into()],
            permitted: vec!["CAP_KILL".into()],
            ..config::Capabilities::default()
        };
        let mut warnings = Vec::new();
        plan(&configured, &mut warnings);
        assert_eq!(warnings, ["can't put capability CAP_CHOWN into effect: it must be permitted too"]);
    }

    #[test]
    fn ambient_needs_permitted_and_inheritable() {
        let kill = || vec!["CAP_KILL".to_owned()];
        let both = || vec!["CAP_KILL".to_owned(), "CAP_CHOWN".to_owned()];
        let configured = config::Capabilities {
            permitted: both(),
            inheritable: kill(),
            ambient: both(),
            ..config::Capabilities::default()
        };
        let mut warnings = Vec::new();
        plan(&configured, &mut warnings);
        let why = "can't raise ambient capability CAP_CHOWN: it must be permitted and inheritable too";
        assert_eq!(warnings, [why]);
    }
}
