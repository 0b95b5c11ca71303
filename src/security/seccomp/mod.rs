//! `linux.seccomp` compiled to a classic BPF program for seccomp(2), before the container's process exists.
//!
//! An own compiler, because an OCI profile needs several actions, several architectures, notification and per-rule
//! errnos at once, and because the filter runs at every system call of the container: numbers become sorted ranges and
//! a binary search finds the range, so that a call costs about ten instructions instead of hundreds.
//!
//! ```text
//! profile -> vocabulary  names to values, with the JSON path of what is not known
//!         -> rules       per architecture: sorted ranges of numbers, each with an answer or a list of alternatives
//!         -> emit        ranges to instructions
//! ```
//!
//! # What a profile means
//!
//! The specification leaves open what happens when rules meet. Users have learned it from runc with libseccomp, so that
//! is what is done here:
//!
//! - A rule whose action is the default action (errno included) is skipped.
//! - Among rules for one call, an unconditional one wins over every conditional one wherever it stands, and the first
//!   unconditional one wins over later ones.
//! - Conditional rules are alternatives. Where several hold with different actions, their order is that of libseccomp's
//!   tree: by the condition on the rule's lowest argument, rules about a higher argument first; then equality (EQ, NE,
//!   MASKED_EQ), upper bounds (LT, LE) with the smallest value first, lower bounds (GT, GE) with the largest value
//!   first; at last as in the profile. (Tried with libseccomp 2.5.4 on random overlapping rules: the order is its own;
//!   about one program in ten answers there as no order of its rules could, and a few rules are refused with EEXIST.
//!   Neither is imitated.)
//! - In one rule all conditions must hold, but when any two are about the same argument each becomes a rule of its own.
//! - Names that no architecture has are skipped, with a warning where they were not to be let through; names an
//!   architecture lacks are skipped there.
//! - Calls with a number above all that the profile names (also in skipped rules) answer ENOSYS, so that programs
//!   fall back as on an old kernel; not where the default action lets calls through, nor where nothing is named.
//! - The native architecture is always covered. An architecture that is not covered is killed (the thread), and so are
//!   x32 calls (number from 0x40000000) without `SCMP_ARCH_X32`; number -1 alone passes to the default, since a tracer
//!   writes it to skip a call.
//! - 32-bit conventions, x32 among them, compare only the lower half of argument and value.
//! - `SCMP_CMP_MASKED_EQ` ignores the bits of `valueTwo` outside the mask.
//!
//! Differences, on purpose: on 32-bit x86 a call such as `socket` is also reached through `socketcall`, where the
//! arguments lie behind a pointer that no filter can follow. libseccomp carries a conditional rule over with its
//! condition lost. Here a conditional rule is carried over only if it restricts (then it holds for every such call): a
//! conditional permission must not become an unconditional one. And `errnoRet` beside an action without an errno is an
//! error, as the specification and crun have it.
//!
//! Paths that look at the number alone load nothing else: the kernel then recognizes calls that are always allowed and
//! skips the program for them (kernel/seccomp.c, `seccomp_is_const_allow`).

mod emit;
pub mod raw;
mod rules;
mod syscalls;
#[cfg(test)]
mod tests;
mod verdict;
mod vocabulary;

use std::path::PathBuf;

pub use vocabulary::{actions, architectures, flags, operators, supported_flags};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::spec::seccomp::Seccomp;
use crate::sys::seccomp::Instruction;
use vocabulary::{Abi, Action};

/// A filter ready to be installed with [`crate::sys::seccomp::install`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The instructions, 1 to 4096.
    pub instructions: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_…` for seccomp(2).
    pub flags: u32,
    /// The agent that is to get the listener, where a rule notifies; `flags` then ask for a listener.
    pub notify: Option<Notify>,
    /// What was skipped, in words, for the log.
    pub warnings: Vec<String>,
    /// The JSON paths below `linux.seccomp` of system calls that no architecture has, and that were skipped.
    pub unknown: Vec<String>,
}

/// Where the listener's descriptor goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// The agent's `AF_UNIX` stream socket.
    pub listener_path: PathBuf,
    /// Opaque data for the agent, in the container process state.
    pub metadata: String,
}

impl Notify {
    /// What the agent gets with the listener: the container process state, as JSON. config-linux.md#containerprocessstate
    pub fn message(&self, pid: i32, state: &impl Serialize) -> Vec<u8> {
        let message = serde_json::json!({
            "ociVersion": crate::spec::VERSION,
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": self.metadata,
            "state": state,
        });
        message.to_string().into_bytes()
    }
}

impl Program {
    /// The instructions as the kernel reads them: eight bytes each, in this machine's byte order.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.instructions.iter().flat_map(|instruction| instruction.to_ne_bytes()).collect()
    }
}

/// Compiles a profile for the machine ferry was built for. `None`: neither a default action nor a rule is given, which
/// runc takes as no filter at all.
///
/// # Errors
///
/// A name that is not in the vocabulary, a value out of range or a combination that cannot work, each with its JSON
/// path; a program longer than the kernel takes.
pub fn compile(profile: &Seccomp) -> Result<Option<Program>> {
    let native = Abi::NATIVE.ok_or_else(|| {
        Error::plain("linux.seccomp: ferry has no system call table for this architecture")
            .hint("leave linux.seccomp out")
    })?;
    compile_for(native, profile)
}

fn compile_for(native: Abi, profile: &Seccomp) -> Result<Option<Program>> {
    if profile.default_action.is_empty() && profile.syscalls.is_empty() {
        return Ok(None);
    }
    let (mut warnings, mut unknown) = (Vec::new(), Vec::new());
    let policy = rules::read(native, profile, &mut warnings, &mut unknown)?;
    let notifies = profile.notifies();
    let notify = notify(profile, notifies, &mut warnings)?;
    let flags = filter_flags(profile, notifies)?;
    let instructions = emit::program(policy.default, &rules::sections(&policy))?;
    Ok(Some(Program { instructions, flags, notify, warnings, unknown }))
}

/// A listener that nobody collects would hang the first call it catches, so a path is required with it.
fn notify(profile: &Seccomp, notifies: bool, warnings: &mut Vec<String>) -> Result<Option<Notify>> {
    if profile.listener_path.as_os_str().is_empty() && !profile.listener_metadata.is_empty() {
        return Err(refused("listenerMetadata", "is for the agent at listenerPath, which is missing"));
    }
    if !notifies {
        if !profile.listener_path.as_os_str().is_empty() {
            warnings.push("linux.seccomp.listenerPath: ignored: no rule has SCMP_ACT_NOTIFY".to_owned());
        }
        return Ok(None);
    }
    if profile.listener_path.as_os_str().is_empty() {
        return Err(refused("listenerPath", "SCMP_ACT_NOTIFY needs the path of the agent's socket"));
    }
    let (listener_path, metadata) = (profile.listener_path.clone(), profile.listener_metadata.clone());
    Ok(Some(Notify { listener_path, metadata }))
}

/// Absent flags mean SPEC_ALLOW as with runc: leaving speculation alone is what a container without a filter gets too.
fn filter_flags(profile: &Seccomp, notifies: bool) -> Result<u32> {
    let listener = if notifies { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 } else { 0 };
    let Some(names) = &profile.flags else {
        return Ok(listener | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32);
    };
    let mut bits = listener;
    for (index, name) in names.iter().enumerate() {
        let flag = vocabulary::flag(name)
            .ok_or_else(|| unknown(format!("flags[{index}]"), "flag", name, vocabulary::flags()))?;
        if flag == libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32 && !notifies {
            return Err(refused(format!("flags[{index}]"), format!("{name} needs a rule with SCMP_ACT_NOTIFY")));
        }
        bits |= flag;
    }
    Ok(bits)
}

/// An error about the field at `path` below `linux.seccomp`.
fn refused(path: impl std::fmt::Display, why: impl Into<String>) -> Error {
    Error::said("compile the filter:", format!("linux.seccomp.{path}"), why)
}

/// An error about a name outside its vocabulary, which is named.
fn unknown(path: impl std::fmt::Display, what: &str, name: &str, known: impl Iterator<Item = &'static str>) -> Error {
    refused(path, format!("{name:?} is not a known {what}")).hint(known.collect::<Vec<_>>().join(", "))
}

/// The errno or message an action may carry: present only where there is room, within what the kernel passes on.
fn with_data(action: Action, data: Option<u32>, path: impl Fn() -> String) -> Result<Action> {
    let Some(data) = data else {
        return Ok(if action.takes_data() { Action(action.0 | libc::EPERM as u32) } else { action });
    };
    if !action.takes_data() {
        return Err(refused(path(), "only SCMP_ACT_ERRNO and SCMP_ACT_TRACE take a value"));
    }
    // MAX_ERRNO, include/linux/err.h: the kernel cuts off what is larger. A tracer's message has 16 bits.
    let most = if action.0 == libc::SECCOMP_RET_ERRNO { 4095 } else { libc::SECCOMP_RET_DATA };
    if data > most {
        return Err(refused(path(), format!("{data} is above {most}")));
    }
    Ok(Action(action.0 | data))
}
