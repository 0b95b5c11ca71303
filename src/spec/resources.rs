//! `linux.resources` as types, also the body of `update --resources`.
//!
//! Source: runtime-spec 1.3.0, config-linux.md#control-groups. Which file each field becomes is the table in
//! `cgroup::resources`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::config::{is_default, nullable};

/// Limits of the container's cgroup.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Resources {
    /// Device access rules, in order; the first is usually a deny of everything.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceRule>,
    /// Memory.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub memory: Memory,
    /// CPU.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub cpu: Cpu,
    /// Number of tasks.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub pids: Pids,
    /// Block I/O.
    #[serde(rename = "blockIO", deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub block_io: BlockIo,
    /// Huge pages.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Network classes and priorities: cgroup v1 only.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub network: Network,
    /// RDMA handles and objects, by device.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub rdma: BTreeMap<String, Rdma>,
    /// Any file of cgroup v2, by name.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub unified: BTreeMap<String, String>,
}

/// One device access rule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// `a`, `b` or `c`; empty: all.
    #[serde(rename = "type", deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Absent or -1: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Absent or -1: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Letters of `r`, `w` and `m`; empty: all.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub access: String,
}

/// Memory limits in bytes; -1 is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Memory {
    /// Hard limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// Soft limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservation: Option<i64>,
    /// Memory plus swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<i64>,
    /// Kernel memory: obsolete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<i64>,
    /// Kernel TCP memory: cgroup v1 only.
    #[serde(rename = "kernelTCP", skip_serializing_if = "Option::is_none")]
    pub kernel_tcp: Option<i64>,
    /// Swappiness: cgroup v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swappiness: Option<u64>,
    /// Whether the OOM killer is off: cgroup v1 only.
    #[serde(rename = "disableOOMKiller", skip_serializing_if = "Option::is_none")]
    pub disable_oom_killer: Option<bool>,
    /// Hierarchical accounting: always on in cgroup v2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_hierarchy: Option<bool>,
    /// Whether an update below the present usage is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_before_update: Option<bool>,
}

/// CPU limits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Cpu {
    /// Relative weight as cgroup v1 counts it, 2 to 262144.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<u64>,
    /// Microseconds of CPU in a period; -1 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<i64>,
    /// Microseconds that may be saved up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// The period in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
    /// Real-time runtime: cgroup v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime_runtime: Option<i64>,
    /// Real-time period: cgroup v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime_period: Option<u64>,
    /// A list of CPUs.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub cpus: String,
    /// A list of memory nodes.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub mems: String,
    /// SCHED_IDLE for the whole cgroup: 0 or 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<i64>,
}

/// Number of tasks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// At most so many; 0 or less is no limit, absent is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
}

/// Block I/O weights and throttles.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BlockIo {
    /// Relative weight, 10 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Weight against child cgroups: cgroup v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf_weight: Option<u16>,
    /// Weights by device.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub weight_device: Vec<WeightDevice>,
    /// Bytes read in a second.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    /// Bytes written in a second.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    /// Reads in a second.
    #[serde(rename = "throttleReadIOPSDevice", deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    /// Writes in a second.
    #[serde(rename = "throttleWriteIOPSDevice", deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// A weight of one device. The numbers have to be there: 0:0 would be a device too.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WeightDevice {
    /// Device numbers.
    pub major: i64,
    /// Device numbers.
    pub minor: i64,
    /// Relative weight, 10 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Cgroup v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf_weight: Option<u16>,
}

/// A rate of one device. All of it has to be there: a rate of 0 would be no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ThrottleDevice {
    /// Device numbers.
    pub major: i64,
    /// Device numbers.
    pub minor: i64,
    /// Bytes or operations in a second.
    pub rate: u64,
}

/// A limit on one size of huge pages.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HugepageLimit {
    /// `2MB`, `1GB`, …; runc's users also write its name in small letters, which Go takes.
    #[serde(alias = "pagesize")]
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Network classes and priorities: cgroup v1 only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Network {
    /// Traffic class.
    #[serde(rename = "classID", skip_serializing_if = "Option::is_none")]
    pub class_id: Option<u32>,
    /// Priorities by interface.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub priorities: Vec<InterfacePriority>,
}

/// The priority of traffic on one interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InterfacePriority {
    /// Interface name.
    pub name: String,
    /// Priority.
    pub priority: u32,
}

/// RDMA limits of one device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rdma {
    /// Handles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hca_handles: Option<u32>,
    /// Objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hca_objects: Option<u32>,
}
