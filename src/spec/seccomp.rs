//! `linux.seccomp` as types. The compiler in `security::seccomp` owns every name in here.
//!
//! Source: runtime-spec 1.3.0, config-linux.md#seccomp.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::config::nullable;

/// A system call filter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Seccomp {
    /// `SCMP_ACT_…` for what no rule matches.
    pub default_action: String,
    /// The errno of a default `SCMP_ACT_ERRNO` (or the message of `SCMP_ACT_TRACE`); absent: EPERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// `SCMP_ARCH_…`; empty: the native one.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_…`; absent is not empty: runtimes have defaults of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<Vec<String>>,
    /// The agent's socket for `SCMP_ACT_NOTIFY`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "super::config::is_default")]
    pub listener_path: PathBuf,
    /// Opaque data passed to the agent.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub listener_metadata: String,
    /// The rules, in order.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub syscalls: Vec<SyscallRule>,
}

impl Seccomp {
    /// Whether a rule has an agent decide.
    pub fn notifies(&self) -> bool {
        self.syscalls.iter().any(|rule| rule.action == "SCMP_ACT_NOTIFY" && !rule.names.is_empty())
    }
}

/// One rule: these calls, under these conditions, get this action.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SyscallRule {
    /// Names of system calls; unknown ones are skipped.
    #[serde(deserialize_with = "nullable")]
    pub names: Vec<String>,
    /// `SCMP_ACT_…`.
    pub action: String,
    /// The errno of `SCMP_ACT_ERRNO` (or the message of `SCMP_ACT_TRACE`); absent: EPERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// Conditions on arguments; all must hold, except that conditions on the same index are alternatives.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<ArgCondition>,
}

/// A comparison of one argument.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ArgCondition {
    /// Which argument, 0 to 5.
    pub index: u32,
    /// What it is compared with; the mask for `SCMP_CMP_MASKED_EQ`.
    pub value: u64,
    /// The value a masked argument must equal.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "super::config::is_default")]
    pub value_two: u64,
    /// `SCMP_CMP_…`.
    pub op: String,
}
