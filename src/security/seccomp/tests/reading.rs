//! What the tests compare: a program's answer, by an interpreter, and the profile's, read from its text each time. The
//! reading shares nothing with the compiler but the table of numbers.

use super::super::*;
use super::{AARCH64, ALLOW, ARM, ENOSYS, I386, KILL, Random, X86_64};
use crate::spec::seccomp::{ArgCondition, SyscallRule};

/// What the kernel hands to a filter: `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    audit: u32,
    number: u32,
    args: [u64; 6],
}

pub(super) fn call(audit: u32, number: u32, args: [u64; 6]) -> Call {
    Call { audit, number, args }
}

/// Runs a program as the kernel would: its answer, how many instructions that took, and whether an argument was read.
pub(super) fn run(program: &[Instruction], call: Call) -> (u32, usize, bool) {
    let (mut pc, mut a, mut read_argument) = (0, 0_u32, false);
    for executed in 1..=program.len() {
        let Instruction { code, jt, jf, k } = program[pc];
        pc += 1;
        let jump = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            0x20 => {
                read_argument |= k >= 16;
                a = match k {
                    0 => call.number,
                    4 => call.audit,
                    16..64 if k % 4 == 0 => {
                        let arg = call.args[(k as usize - 16) / 8];
                        if k % 8 == 0 { arg as u32 } else { (arg >> 32) as u32 }
                    }
                    _ => panic!("load from {k}"),
                };
            }
            0x54 => a &= k,
            0x05 => pc += k as usize,
            0x15 => pc += jump(a == k),
            0x25 => pc += jump(a > k),
            0x35 => pc += jump(a >= k),
            0x45 => pc += jump(a & k != 0),
            0x06 => return (k, executed, read_argument),
            _ => panic!("unknown instruction {code:#x}"),
        }
    }
    panic!("the program does not end");
}

fn base(action: &str) -> u32 {
    match action {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL,
        "SCMP_ACT_KILL_PROCESS" => 0x8000_0000,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_ERRNO" => 0x0005_0000,
        "SCMP_ACT_NOTIFY" => 0x7fc0_0000,
        "SCMP_ACT_TRACE" => 0x7ff0_0000,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_ALLOW" => ALLOW,
        other => panic!("{other}"),
    }
}

fn answer(action: &str, data: Option<u32>) -> u32 {
    match action {
        "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE" => base(action) | data.unwrap_or(1),
        _ => base(action),
    }
}

fn holds(arg: &ArgCondition, args: [u64; 6], mask: u64) -> bool {
    let (left, right, second) = (args[arg.index as usize] & mask, arg.value & mask, arg.value_two & mask);
    match arg.op.as_str() {
        "SCMP_CMP_EQ" => left == right,
        "SCMP_CMP_NE" => left != right,
        "SCMP_CMP_LT" => left < right,
        "SCMP_CMP_LE" => left <= right,
        "SCMP_CMP_GT" => left > right,
        "SCMP_CMP_GE" => left >= right,
        "SCMP_CMP_MASKED_EQ" => left & right == second & right,
        other => panic!("{other}"),
    }
}

fn is_constant(arg: &ArgCondition, mask: u64) -> bool {
    arg.op == "SCMP_CMP_MASKED_EQ" && arg.value & mask == 0
}

/// Whether a rule, or one of its alternatives, says nothing about arguments.
fn is_unconditional(rule: &SyscallRule, mask: u64) -> bool {
    let repeated = (0..6).any(|index| rule.args.iter().filter(|arg| arg.index == index).count() > 1);
    let mut constant = rule.args.iter().map(|arg| is_constant(arg, mask));
    if repeated { constant.any(|constant| constant) } else { constant.all(|constant| constant) }
}

/// A rule's or a lone condition's place among several that match: the smallest wins.
fn place<'a>(args: impl Iterator<Item = &'a ArgCondition>, mask: u64) -> (u32, u32, u64) {
    let lowest = args.filter(|arg| !is_constant(arg, mask)).min_by_key(|arg| arg.index).unwrap();
    let value = lowest.value & mask;
    let (class, value) = match lowest.op.as_str() {
        "SCMP_CMP_MASKED_EQ" => (1, u64::MAX - (lowest.value_two & value)),
        "SCMP_CMP_EQ" | "SCMP_CMP_NE" => (1, u64::MAX - value),
        "SCMP_CMP_LT" | "SCMP_CMP_LE" => (2, value),
        _ => (3, u64::MAX - value),
    };
    (6 - lowest.index, class, value)
}

/// The best place among a rule's alternatives that match; nothing if none does.
fn best_place(rule: &SyscallRule, args: [u64; 6], mask: u64) -> Option<(u32, u32, u64)> {
    let repeated = (0..6).any(|index| rule.args.iter().filter(|arg| arg.index == index).count() > 1);
    if repeated {
        let matching = rule.args.iter().filter(|arg| holds(arg, args, mask));
        return matching.map(|arg| place(std::iter::once(arg), mask)).min();
    }
    rule.args.iter().all(|arg| holds(arg, args, mask)).then(|| place(rule.args.iter(), mask))
}

/// What the profile says about one call, read from its text (and from the module's "What a profile means").
pub(super) fn reading(native: Abi, profile: &Seccomp, call: Call) -> u32 {
    let default = answer(&profile.default_action, profile.default_errno_ret);
    let listed = |name: &str| profile.architectures.iter().any(|arch| arch == name);
    let marked = call.number & syscalls::X32_BIT != 0;
    let permissive = matches!(profile.default_action.as_str(), "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" | "SCMP_ACT_TRACE");
    let (abi, mask) = match (native, call.audit) {
        (Abi::X86_64, X86_64) if marked && listed("SCMP_ARCH_X32") => (Abi::X32, u64::from(u32::MAX)),
        (Abi::X86_64, X86_64) if call.number == u32::MAX => return default,
        (Abi::X86_64, X86_64) if marked => return KILL,
        (Abi::X86_64, X86_64) => (Abi::X86_64, u64::MAX),
        (Abi::X86_64, I386) if listed("SCMP_ARCH_X86") => (Abi::X86, u64::from(u32::MAX)),
        (Abi::Aarch64, AARCH64) => (Abi::Aarch64, u64::MAX),
        (Abi::Aarch64, ARM) if listed("SCMP_ARCH_ARM") => (Abi::Arm, u64::from(u32::MAX)),
        _ => return KILL,
    };
    let (mut highest, mut unconditional, mut conditional) = (0, None, Vec::new());
    for rule in &profile.syscalls {
        let action = answer(&rule.action, rule.errno_ret);
        for name in &rule.names {
            let number = syscalls::lookup(name).and_then(|row| syscalls::number(row, abi));
            let multiplexed = syscalls::multiplexed(name).filter(|_| abi == Abi::X86);
            highest = highest.max(number.unwrap_or(0)).max(multiplexed.map_or(0, |(number, _)| number));
            if action == default {
                continue;
            }
            if number == Some(call.number) {
                if is_unconditional(rule, mask) {
                    unconditional = unconditional.or(Some(action));
                } else if let Some(place) = best_place(rule, call.args, mask) {
                    conditional.push((place, action));
                }
            }
            let restricts = !matches!(rule.action.as_str(), "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" | "SCMP_ACT_TRACE");
            if let Some((number, value)) = multiplexed
                && number == call.number
                && value == call.args[0] & mask
                && (restricts || rule.args.is_empty())
            {
                conditional.push(((6, 1, u64::MAX - value), action));
            }
        }
    }
    let too_new = highest > 0 && call.number > highest && !permissive;
    let beyond =
        if abi == Abi::X86_64 && call.number >= syscalls::X32_BIT && !listed("SCMP_ARCH_X32") { KILL } else { default };
    // The first of the smallest: min_by_key keeps the profile's order.
    let conditional = conditional.into_iter().min_by_key(|(place, _)| *place).map(|(_, action)| action);
    if too_new { ENOSYS } else { unconditional.or(conditional).unwrap_or(beyond) }
}

/// Numbers worth asking about: all that exist, x32's, and both sides of every border.
pub(super) fn numbers() -> impl Iterator<Item = u32> {
    let x32 = 0x4000_0000..0x4000_0000 + 600;
    let borders = [1 << 31, 0xbfff_ffff, 0xc000_0000, u32::MAX - 1, u32::MAX, 0x3fff_ffff, 0x0f_0001, 0x0f_0006];
    (0..600).chain(x32).chain(borders)
}

/// Arguments at, below and above every value the profile compares with, in each half.
pub(super) fn arguments(profile: &Seccomp) -> Vec<[u64; 6]> {
    let mut values = vec![0, u64::MAX];
    for arg in profile.syscalls.iter().flat_map(|rule| &rule.args) {
        for value in [arg.value, arg.value_two] {
            values.extend([value, value.wrapping_add(1), value.wrapping_sub(1), value ^ (1 << 32), value | (1 << 40)]);
        }
    }
    values.sort_unstable();
    values.dedup();
    let mut random = Random(7);
    let mut all: Vec<[u64; 6]> = values.iter().map(|value| [*value; 6]).collect();
    for _ in 0..8 {
        all.push(std::array::from_fn(|_| values[random.below(values.len())]));
    }
    all
}

/// Compares the two, and answers on how many calls.
pub(super) fn agree(native: Abi, profile: &Seccomp) -> usize {
    let mut calls = 0;
    let program = compile_for(native, profile).unwrap().unwrap();
    let arguments = arguments(profile);
    for audit in [X86_64, I386, AARCH64, ARM, 0x1234] {
        for number in numbers() {
            let mut reads = false;
            for args in &arguments {
                let call = call(audit, number, *args);
                let (got, _, read) = run(&program.instructions, call);
                assert_eq!(got, reading(native, profile, call), "{call:x?}\n{profile:#?}");
                reads |= read;
                calls += 1;
                if !reads {
                    break; // No argument was looked at: other ones change nothing.
                }
            }
        }
    }
    calls
}
