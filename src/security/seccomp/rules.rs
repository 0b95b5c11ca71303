//! A profile's rules, resolved for each architecture into sorted ranges of system call numbers.
//!
//! Ranges rather than a map: the profile's few hundred names fall into some sixty runs of neighbours with one answer,
//! and a sorted list of these is what the binary search is made from.

use std::cmp::Reverse;

use super::syscalls::{self, Numbers, X32_BIT};
use super::vocabulary::{self, Abi, Action, Operator};
use super::{refused, unknown, with_data};
use crate::error::Result;
use crate::spec::seccomp::{ArgCondition, Seccomp, SyscallRule};

/// One comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// Which argument, 0 to 5.
    pub(super) index: u32,
    pub(super) test: Test,
    /// What the test must come out as.
    pub(super) holds: bool,
    /// Whether the upper half of the argument counts.
    pub(super) wide: bool,
}

/// The comparisons BPF has; the others are these, negated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    /// `argument & mask == value`; `value` has no bit outside the mask.
    Equal {
        mask: u64,
        value: u64,
    },
    Greater(u64),
    GreaterOrEqual(u64),
}

/// Conditions that must all hold, and the answer if they do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alternative {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

/// What a call gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Return(Action),
    /// The first alternative that holds, else the default. Sorted by precedence.
    Decide(Vec<Alternative>),
}

/// The numbers from `first` up to the next range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u32,
    pub(super) verdict: Verdict,
}

/// What the kernel calls one architecture, and the answer to every number of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) audit: u32,
    /// Sorted, covering every number from 0 up.
    pub(super) ranges: Vec<Range>,
}

/// A profile with every name resolved.
pub(super) struct Policy {
    pub(super) default: Action,
    /// The conventions covered, the native one first.
    abis: Vec<Abi>,
    rules: Vec<Rule>,
    calls: Vec<Call>,
}

/// What the names of one rule share.
struct Rule {
    action: Action,
    /// Each is a list of conditions that must all hold; none at all: the rule is unconditional.
    alternatives: Vec<Vec<Condition>>,
}

/// One name of one rule.
struct Call {
    numbers: &'static Numbers,
    /// For 32-bit x86: the multiplexer and the value of its first argument.
    multiplexed: Option<(u32, u64)>,
    rule: usize,
}

/// Resolves every name of `profile`; `unknown` gets the JSON path of each that no architecture has.
pub(super) fn read(
    native: Abi,
    profile: &Seccomp,
    warnings: &mut Vec<String>,
    unknown: &mut Vec<String>,
) -> Result<Policy> {
    let default = action(&profile.default_action, "defaultAction")?;
    let default = with_data(default, profile.default_errno_ret, || "defaultErrnoRet".to_owned())?;
    if default == Action::NOTIFY {
        // Installing the filter and handing over the listener take system calls that nobody could answer yet.
        return Err(refused("defaultAction", "SCMP_ACT_NOTIFY cannot be the default"));
    }
    let abis = abis(native, &profile.architectures)?;
    let mut rules = Vec::with_capacity(profile.syscalls.len());
    let mut calls = Vec::with_capacity(profile.syscalls.iter().map(|rule| rule.names.len()).sum());
    let multiplexes = abis.contains(&Abi::X86);
    for (index, rule) in profile.syscalls.iter().enumerate() {
        rules.push(read_rule(index, rule)?);
        if rule.names.is_empty() {
            return Err(refused(format!("syscalls[{index}].names"), "a rule names at least one system call"));
        }
        for (position, name) in rule.names.iter().enumerate() {
            check_name(name, &rule.action, || format!("syscalls[{index}].names[{position}]"))?;
            let Some(numbers) = syscalls::lookup(name) else {
                // Where the rule would let it through, or the default does not, there is nothing less safe without it, and
                // profiles of engines name calls of kernels to come and of other processors. podman shows its user whatever a
                // runtime says.
                if default.permits() && !["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"].contains(&rule.action.as_str()) {
                    warnings.push(format!("linux.seccomp.syscalls[{index}]: unknown system call {name} skipped"));
                }
                unknown.push(format!("syscalls[{index}].names[{position}]"));
                continue;
            };
            let multiplexed = if multiplexes { syscalls::multiplexed(name) } else { None };
            calls.push(Call { numbers, multiplexed, rule: index });
        }
    }
    Ok(Policy { default, abis, rules, calls })
}

fn action(name: &str, path: impl std::fmt::Display) -> Result<Action> {
    vocabulary::action(name).ok_or_else(|| unknown(path, "action", name, vocabulary::actions()))
}

/// `write` may not notify: with it the listener is handed over, before anybody listens.
fn check_name(name: &str, action: &str, path: impl Fn() -> String) -> Result<()> {
    if name.is_empty() {
        return Err(refused(path(), "the name of a system call is empty"));
    }
    if name == "write" && action == "SCMP_ACT_NOTIFY" {
        return Err(refused(path(), "SCMP_ACT_NOTIFY cannot be used for the write syscall"));
    }
    Ok(())
}

fn abis(native: Abi, names: &[String]) -> Result<Vec<Abi>> {
    let mut abis = vec![native];
    for (index, name) in names.iter().enumerate() {
        let abi = vocabulary::architecture(name).ok_or_else(|| {
            unknown(format!("architectures[{index}]"), "architecture", name, vocabulary::architectures())
        })?;
        if let Some(abi) = abi
            && abi.runs_on(native)
            && !abis.contains(&abi)
        {
            abis.push(abi);
        }
    }
    Ok(abis)
}

fn read_rule(index: usize, rule: &SyscallRule) -> Result<Rule> {
    let action = action(&rule.action, format!("syscalls[{index}].action"))?;
    let action = with_data(action, rule.errno_ret, || format!("syscalls[{index}].errnoRet"))?;
    let mut conditions = Vec::with_capacity(rule.args.len());
    let mut seen = 0_u32;
    let mut repeated = false;
    for (position, arg) in rule.args.iter().enumerate() {
        conditions.push(read_condition(arg, || format!("syscalls[{index}].args[{position}]"))?);
        repeated |= seen & (1 << arg.index) != 0;
        seen |= 1 << arg.index;
    }
    let alternatives = match (conditions.is_empty(), repeated) {
        (true, _) => Vec::new(),
        (false, true) => conditions.into_iter().map(|condition| vec![condition]).collect(),
        (false, false) => vec![conditions],
    };
    Ok(Rule { action, alternatives })
}

fn read_condition(arg: &ArgCondition, path: impl Fn() -> String) -> Result<Condition> {
    if arg.index > 5 {
        return Err(refused(format!("{}.index", path()), format!("{}: a system call has arguments 0 to 5", arg.index)));
    }
    let operator = vocabulary::operator(&arg.op)
        .ok_or_else(|| unknown(format!("{}.op", path()), "operator", &arg.op, vocabulary::operators()))?;
    let equal = Test::Equal { mask: u64::MAX, value: arg.value };
    let (test, holds) = match operator {
        Operator::Equal => (equal, true),
        Operator::NotEqual => (equal, false),
        Operator::Greater => (Test::Greater(arg.value), true),
        Operator::LessOrEqual => (Test::Greater(arg.value), false),
        Operator::GreaterOrEqual => (Test::GreaterOrEqual(arg.value), true),
        Operator::Less => (Test::GreaterOrEqual(arg.value), false),
        Operator::MaskedEqual => (Test::Equal { mask: arg.value, value: arg.value_two & arg.value }, true),
    };
    Ok(Condition { index: arg.index, test, holds, wide: true })
}

/// The answers for each architecture the kernel tells apart, the native one first.
pub(super) fn sections(policy: &Policy) -> Vec<Section> {
    let mut sections = Vec::with_capacity(policy.abis.len());
    for abi in policy.abis.iter().copied().filter(|abi| *abi != Abi::X32) {
        let mut ranges = Vec::new();
        let beyond = number_ranges(policy, abi, 0, &mut ranges);
        if abi == Abi::X86_64 {
            x32_ranges(policy, beyond, &mut ranges);
        }
        sections.push(Section { audit: abi.audit(), ranges });
    }
    sections
}

/// Appends what lies above x86_64's own numbers. Bit 30 marks x32, so the numbers from bit 31 up are x86_64's until
/// bit 30 is set again: too new, or wrong, but never a call.
fn x32_ranges(policy: &Policy, beyond: Action, ranges: &mut Vec<Range>) {
    const BIT_31: u32 = 2 * X32_BIT;
    if policy.abis.contains(&Abi::X32) {
        let beyond_x32 = number_ranges(policy, Abi::X32, X32_BIT, ranges);
        push(ranges, BIT_31, Verdict::Return(beyond));
        push(ranges, BIT_31 | X32_BIT, Verdict::Return(beyond_x32));
        return;
    }
    let unmarked = if beyond == policy.default { Action::BAD_ARCH } else { beyond };
    push(ranges, X32_BIT, Verdict::Return(Action::BAD_ARCH));
    push(ranges, BIT_31, Verdict::Return(unmarked));
    push(ranges, BIT_31 | X32_BIT, Verdict::Return(Action::BAD_ARCH));
    push(ranges, u32::MAX, Verdict::Return(policy.default));
}

/// Appends the ranges of one convention from its number `base` up. Answers what numbers above the profile's last get.
fn number_ranges(policy: &Policy, abi: Abi, base: u32, ranges: &mut Vec<Range>) -> Action {
    let (entries, last) = entries(policy, abi);
    push(ranges, base, Verdict::Return(policy.default));
    for group in entries.chunk_by(|a, b| a.number == b.number) {
        let number = group[0].number;
        push(ranges, number, verdict(group));
        push(ranges, number + 1, Verdict::Return(policy.default));
    }
    match last {
        // A profile that names only call 0 says nothing about what is new. (runc; x32's call 0 is not 0 with its bit.)
        Some(last) if last > 0 && !policy.default.permits() => {
            push(ranges, last + 1, Verdict::Return(Action::ENOSYS));
            Action::ENOSYS
        }
        _ => policy.default,
    }
}

/// Appends a range, unless it only goes on with the one before. A range of no numbers gives way.
fn push(ranges: &mut Vec<Range>, first: u32, verdict: Verdict) {
    if ranges.last().is_some_and(|range| range.first == first) {
        ranges.pop();
    }
    let goes_on = matches!(verdict, Verdict::Return(_)) && ranges.last().is_some_and(|range| range.verdict == verdict);
    if !goes_on {
        ranges.push(Range { first, verdict });
    }
}

/// One rule for one number.
struct Entry {
    number: u32,
    action: Action,
    /// None: unconditional.
    alternatives: Vec<Vec<Condition>>,
}

/// The rules that matter, sorted by number and then as in the profile; and the highest number named.
fn entries(policy: &Policy, abi: Abi) -> (Vec<Entry>, Option<u32>) {
    let mut entries = Vec::with_capacity(policy.calls.len());
    let mut last = None;
    for call in &policy.calls {
        let rule = &policy.rules[call.rule];
        let direct = syscalls::number(call.numbers, abi);
        let multiplexed = call.multiplexed.filter(|_| abi == Abi::X86);
        last = last.max(direct).max(multiplexed.map(|(number, _)| number));
        if rule.action == policy.default {
            continue;
        }
        if let Some(number) = direct {
            entries.push(Entry { number, action: rule.action, alternatives: narrowed(rule, abi) });
        }
        if let Some((number, value)) = multiplexed
            && (rule.alternatives.is_empty() || !rule.action.permits())
        {
            let test = Test::Equal { mask: u64::from(u32::MAX), value };
            let condition = Condition { index: 0, test, holds: true, wide: false };
            entries.push(Entry { number, action: rule.action, alternatives: vec![vec![condition]] });
        }
    }
    entries.sort_by_key(|entry| entry.number);
    (entries, last)
}

/// A rule's alternatives as one convention sees them. Conditions that always hold are dropped; an alternative with none
/// left makes the rule unconditional.
fn narrowed(rule: &Rule, abi: Abi) -> Vec<Vec<Condition>> {
    let narrow = |condition: &Condition| if abi.is_32_bit() { lower_half(*condition) } else { *condition };
    let mut alternatives = Vec::with_capacity(rule.alternatives.len());
    for conditions in &rule.alternatives {
        let kept: Vec<Condition> = conditions.iter().map(narrow).filter(|condition| !always_holds(condition)).collect();
        if kept.is_empty() {
            return Vec::new();
        }
        alternatives.push(kept);
    }
    alternatives
}

fn lower_half(condition: Condition) -> Condition {
    const LOWER: u64 = u32::MAX as u64;
    let test = match condition.test {
        Test::Equal { mask, value } => Test::Equal { mask: mask & LOWER, value: value & LOWER },
        Test::Greater(value) => Test::Greater(value & LOWER),
        Test::GreaterOrEqual(value) => Test::GreaterOrEqual(value & LOWER),
    };
    Condition { test, wide: false, ..condition }
}

fn always_holds(condition: &Condition) -> bool {
    condition.holds && matches!(condition.test, Test::Equal { mask: 0, .. })
}

/// What several rules for one number come to: see the module's "What a profile means".
fn verdict(group: &[Entry]) -> Verdict {
    if let Some(entry) = group.iter().find(|entry| entry.alternatives.is_empty()) {
        return Verdict::Return(entry.action);
    }
    let mut alternatives = Vec::new();
    for entry in group {
        let with_action =
            |conditions: &Vec<Condition>| Alternative { conditions: conditions.clone(), action: entry.action };
        alternatives.extend(entry.alternatives.iter().map(with_action));
    }
    alternatives.sort_by_key(precedence);
    Verdict::Decide(alternatives)
}

/// Where libseccomp's tree puts an alternative, by its condition on the lowest argument: higher arguments come first,
/// then equality before upper bounds before lower bounds, then the nearest bound and the larger value.
fn precedence(alternative: &Alternative) -> (Reverse<u32>, u8, u64) {
    let Some(condition) = alternative.conditions.iter().min_by_key(|condition| condition.index) else {
        return (Reverse(0), 0, 0);
    };
    let (class, order) = match (condition.test, condition.holds) {
        (Test::Equal { value, .. }, _) => (0, !value),
        (Test::Greater(value) | Test::GreaterOrEqual(value), false) => (1, value),
        (Test::Greater(value) | Test::GreaterOrEqual(value), true) => (2, !value),
    };
    (Reverse(condition.index), class, order)
}
