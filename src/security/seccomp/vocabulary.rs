//! The names a profile is written in, one table each: actions, operators, architectures and flags. Parsing and
//! `ferry features` read the same tables.
//!
//! Source: runtime-spec 1.3.0, config-linux.md#seccomp; seccomp.h of libseccomp 2.6 for what the names mean.

use libc::{
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD, SECCOMP_RET_LOG,
    SECCOMP_RET_TRACE, SECCOMP_RET_TRAP, SECCOMP_RET_USER_NOTIF,
};

use crate::sys::seccomp::flags_available;

/// What a filter answers: `SECCOMP_RET_…` in the upper half, its data (errno, tracer's message) in the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Action(pub(super) u32);

impl Action {
    /// The answer for what cannot run here: libseccomp's bad-architecture action.
    pub(super) const BAD_ARCH: Self = Self(SECCOMP_RET_KILL_THREAD);
    /// The answer for calls newer than the profile.
    pub(super) const ENOSYS: Self = Self(SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    /// A call is handed to a supervisor.
    pub(super) const NOTIFY: Self = Self(SECCOMP_RET_USER_NOTIF);

    /// Whether the action has room for an errno or a message.
    pub(super) fn takes_data(self) -> bool {
        matches!(self.0, SECCOMP_RET_ERRNO | SECCOMP_RET_TRACE)
    }

    /// Whether the call is let through, seen or unseen: a tracer is taken to know what it does.
    pub(super) fn permits(self) -> bool {
        matches!(self.0 & libc::SECCOMP_RET_ACTION_FULL, SECCOMP_RET_ALLOW | SECCOMP_RET_LOG | SECCOMP_RET_TRACE)
    }
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    MaskedEqual,
}

/// A system call convention with numbers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abi {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

impl Abi {
    /// What this build runs on; nothing where ferry has no table.
    pub(super) const NATIVE: Option<Self> = if cfg!(target_arch = "x86_64") {
        Some(Self::X86_64)
    } else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
        Some(Self::Aarch64)
    } else {
        None
    };

    /// `AUDIT_ARCH_…` as the kernel reports it; x32 calls itself x86_64. include/uapi/linux/audit.h
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether only the lower half of an argument is looked at, as libseccomp does.
    pub(super) fn is_32_bit(self) -> bool {
        matches!(self, Self::X86 | Self::X32 | Self::Arm)
    }

    /// Whether a kernel of `native` runs calls of this convention.
    pub(super) fn runs_on(self, native: Self) -> bool {
        match native {
            Self::X86_64 => matches!(self, Self::X86_64 | Self::X86 | Self::X32),
            Self::Aarch64 => matches!(self, Self::Aarch64 | Self::Arm),
            Self::X86 | Self::X32 | Self::Arm => self == native,
        }
    }
}

const ACTIONS: [(&str, u32); 9] = [
    ("SCMP_ACT_ALLOW", SECCOMP_RET_ALLOW),
    ("SCMP_ACT_ERRNO", SECCOMP_RET_ERRNO),
    ("SCMP_ACT_KILL", SECCOMP_RET_KILL_THREAD),
    ("SCMP_ACT_KILL_PROCESS", SECCOMP_RET_KILL_PROCESS),
    ("SCMP_ACT_KILL_THREAD", SECCOMP_RET_KILL_THREAD),
    ("SCMP_ACT_LOG", SECCOMP_RET_LOG),
    ("SCMP_ACT_NOTIFY", SECCOMP_RET_USER_NOTIF),
    ("SCMP_ACT_TRACE", SECCOMP_RET_TRACE),
    ("SCMP_ACT_TRAP", SECCOMP_RET_TRAP),
];

const OPERATORS: [(&str, Operator); 7] = [
    ("SCMP_CMP_EQ", Operator::Equal),
    ("SCMP_CMP_GE", Operator::GreaterOrEqual),
    ("SCMP_CMP_GT", Operator::Greater),
    ("SCMP_CMP_LE", Operator::LessOrEqual),
    ("SCMP_CMP_LT", Operator::Less),
    ("SCMP_CMP_MASKED_EQ", Operator::MaskedEqual),
    ("SCMP_CMP_NE", Operator::NotEqual),
];

/// Those without a table never run where ferry does.
const ARCHITECTURES: [(&str, Option<Abi>); 23] = [
    ("SCMP_ARCH_AARCH64", Some(Abi::Aarch64)),
    ("SCMP_ARCH_ARM", Some(Abi::Arm)),
    ("SCMP_ARCH_LOONGARCH64", None),
    ("SCMP_ARCH_M68K", None),
    ("SCMP_ARCH_MIPS", None),
    ("SCMP_ARCH_MIPS64", None),
    ("SCMP_ARCH_MIPS64N32", None),
    ("SCMP_ARCH_MIPSEL", None),
    ("SCMP_ARCH_MIPSEL64", None),
    ("SCMP_ARCH_MIPSEL64N32", None),
    ("SCMP_ARCH_PARISC", None),
    ("SCMP_ARCH_PARISC64", None),
    ("SCMP_ARCH_PPC", None),
    ("SCMP_ARCH_PPC64", None),
    ("SCMP_ARCH_PPC64LE", None),
    ("SCMP_ARCH_RISCV64", None),
    ("SCMP_ARCH_S390", None),
    ("SCMP_ARCH_S390X", None),
    ("SCMP_ARCH_SH", None),
    ("SCMP_ARCH_SHEB", None),
    ("SCMP_ARCH_X32", Some(Abi::X32)),
    ("SCMP_ARCH_X86", Some(Abi::X86)),
    ("SCMP_ARCH_X86_64", Some(Abi::X86_64)),
];

/// TSYNC is no bit: the filter is installed by a process of one thread, and the kernel refuses it beside a listener.
const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", libc::SECCOMP_FILTER_FLAG_LOG as u32),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32),
    ("SECCOMP_FILTER_FLAG_TSYNC", 0),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32),
];

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, meaning)| *meaning)
}

/// The action called `name`, its data still zero.
pub(super) fn action(name: &str) -> Option<Action> {
    find(&ACTIONS, name).map(Action)
}

/// The operator called `name`.
pub(super) fn operator(name: &str) -> Option<Operator> {
    find(&OPERATORS, name)
}

/// The architecture called `name`; known ones without a table are `Some(None)`.
pub(super) fn architecture(name: &str) -> Option<Option<Abi>> {
    find(&ARCHITECTURES, name)
}

/// The bits of the flag called `name`.
pub(super) fn flag(name: &str) -> Option<u32> {
    find(&FLAGS, name)
}

/// Every action a profile may name, sorted.
pub fn actions() -> impl Iterator<Item = &'static str> {
    ACTIONS.iter().map(|(name, _)| *name)
}

/// Every operator a profile may name, sorted.
pub fn operators() -> impl Iterator<Item = &'static str> {
    OPERATORS.iter().map(|(name, _)| *name)
}

/// Every architecture a profile may name, sorted.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name)
}

/// Every flag a profile may name, sorted.
pub fn flags() -> impl Iterator<Item = &'static str> {
    FLAGS.iter().map(|(name, _)| *name)
}

/// Every flag of [`flags`] that this kernel takes too. Waiting killably goes with a listener only.
pub fn supported_flags() -> impl Iterator<Item = &'static str> {
    let wait = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32;
    let beside = move |flag| if flag == wait { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 } else { 0 };
    FLAGS.iter().filter(move |(_, flag)| flags_available(flag | beside(*flag))).map(|(name, _)| *name)
}
