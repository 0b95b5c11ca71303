//! Ranges to instructions.
//!
//! BPF jumps go forward only, so the program is written from its end: a jump's target then exists when the jump is
//! written, and one pass suffices. Conditional jumps reach 255 instructions; a target further away is first brought near,
//! a `ret` by a copy of it and anything else by a `ja`.
//!
//! Source: Documentation/networking/filter.rst, include/uapi/linux/seccomp.h (`struct seccomp_data`).

use super::rules::{Alternative, Condition, Range, Section, Test, Verdict};
use super::vocabulary::Action;
use crate::error::{Error, Result};
use crate::sys::seccomp::{Instruction, MAX_INSTRUCTIONS};

// Class | size or operation | mode or source. include/uapi/linux/bpf_common.h
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER: u16 = 0x25;
pub(super) const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
pub(super) const JUMP_ANY_BIT: u16 = 0x45;
pub(super) const RETURN: u16 = 0x06;

// Offsets in struct seccomp_data; the arguments follow the instruction pointer.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Where a jump goes.
#[derive(Debug, Clone, Copy)]
enum Target {
    /// An instruction, counted from the program's end.
    At(usize),
    Return(Action),
}

/// The program for `sections`, the first of which is tried first; what is in none of them is killed.
///
/// # Errors
///
/// The program is longer than the kernel takes.
pub(super) fn program(default: Action, sections: &[Section]) -> Result<Vec<Instruction>> {
    let mut writer = Writer::new(default);
    let mut next = Target::Return(Action::BAD_ARCH);
    for section in sections.iter().rev() {
        let root = writer.search(&leaves(&section.ranges));
        let number = match root {
            Target::At(_) => writer.load_before(NUMBER, root),
            Target::Return(_) => root,
        };
        next = writer.branch(JUMP_EQUAL, section.audit, number, next);
    }
    writer.push(LOAD, ARCHITECTURE);
    let length = writer.reversed.len();
    if length > MAX_INSTRUCTIONS {
        let why = format!("the filter would have {length} instructions, the kernel takes {MAX_INSTRUCTIONS}");
        let error = Error::said("compile the filter:", "linux.seccomp", why);
        return Err(error.hint("use fewer conditions on arguments, or fewer architectures"));
    }
    if writer.astray {
        return Err(Error::said("compile the filter:", "linux.seccomp", "a jump is out of reach: a defect of ferry"));
    }
    writer.reversed.reverse();
    Ok(writer.reversed)
}

/// What one end of the binary search decides.
struct Leaf<'a> {
    first: u32,
    verdict: &'a Verdict,
    /// One number inside that gets another answer.
    exception: Option<(u32, &'a Verdict)>,
}

/// Folds a single number between two ranges of one answer into these: one comparison instead of two.
fn leaves(ranges: &[Range]) -> Vec<Leaf<'_>> {
    let mut leaves = Vec::with_capacity(ranges.len());
    let mut rest = ranges;
    while let [range, tail @ ..] = rest {
        let Range { first, verdict } = range;
        let folds = matches!(tail, [single, after, ..]
            if after.first == single.first + 1 && after.verdict == *verdict && matches!(verdict, Verdict::Return(_)));
        let exception = if folds { Some((tail[0].first, &tail[0].verdict)) } else { None };
        leaves.push(Leaf { first: *first, verdict, exception });
        rest = if folds { &tail[2..] } else { tail };
    }
    leaves
}

struct Writer {
    /// The program, last instruction first.
    reversed: Vec<Instruction>,
    /// The latest `ret` of each action.
    returns: Vec<(Action, usize)>,
    default: Action,
    /// A jump does not reach its target. It cannot happen, and a filter must not be wrong if it does.
    astray: bool,
}

impl Writer {
    fn new(default: Action) -> Self {
        Self { reversed: Vec::with_capacity(512), returns: Vec::new(), default, astray: false }
    }

    fn push(&mut self, code: u16, k: u32) -> usize {
        self.reversed.push(Instruction { code, jt: 0, jf: 0, k });
        self.reversed.len() - 1
    }

    /// How many instructions a jump written next skips to reach `at`.
    fn distance(&self, at: usize) -> usize {
        self.reversed.len() - at - 1
    }

    /// Makes `target` reachable by a jump written next, or after `room` further instructions.
    fn near(&mut self, target: Target, room: usize) -> usize {
        let reach = usize::from(u8::MAX) - room;
        let at = match target {
            Target::At(at) => at,
            Target::Return(action) => match self.returns.iter().find(|(known, _)| *known == action) {
                Some((_, at)) if self.distance(*at) <= reach => *at,
                _ => return self.write_return(action),
            },
        };
        let distance = self.distance(at);
        if distance <= reach { at } else { self.push(JUMP, u32::try_from(distance).unwrap_or(u32::MAX)) }
    }

    fn write_return(&mut self, action: Action) -> usize {
        let at = self.push(RETURN, action.0);
        self.returns.retain(|(known, _)| *known != action);
        self.returns.push((action, at));
        at
    }

    /// A conditional jump. Bringing the second target near may write one instruction: the first keeps room for it.
    fn branch(&mut self, code: u16, k: u32, yes: Target, no: Target) -> Target {
        let yes = self.near(yes, 1);
        let no = self.near(no, 0);
        let (jt, jf) = (u8::try_from(self.distance(yes)), u8::try_from(self.distance(no)));
        self.astray |= jt.is_err() || jf.is_err();
        self.reversed.push(Instruction { code, jt: jt.unwrap_or(0), jf: jf.unwrap_or(0), k });
        Target::At(self.reversed.len() - 1)
    }

    /// A load that goes on with `then`: with the instruction written last, or by way of one more.
    fn load_before(&mut self, offset: u32, then: Target) -> Target {
        match then {
            Target::At(at) if at + 1 == self.reversed.len() => {}
            Target::At(at) => {
                self.push(JUMP, u32::try_from(self.distance(at)).unwrap_or(u32::MAX));
            }
            Target::Return(action) => {
                self.write_return(action);
            }
        }
        Target::At(self.push(LOAD, offset))
    }

    fn search(&mut self, leaves: &[Leaf<'_>]) -> Target {
        match leaves {
            [] => Target::Return(self.default),
            [leaf] => self.leaf(leaf),
            _ => {
                let (left, right) = leaves.split_at(leaves.len() / 2);
                let high = self.search(right);
                let low = self.search(left);
                self.branch(JUMP_GREATER_OR_EQUAL, right[0].first, high, low)
            }
        }
    }

    fn leaf(&mut self, leaf: &Leaf<'_>) -> Target {
        let usual = self.verdict(leaf.verdict);
        let Some((number, verdict)) = leaf.exception else { return usual };
        let other = self.verdict(verdict);
        self.branch(JUMP_EQUAL, number, other, usual)
    }

    fn verdict(&mut self, verdict: &Verdict) -> Target {
        match verdict {
            Verdict::Return(action) => Target::Return(*action),
            Verdict::Decide(alternatives) => {
                let groups: Vec<&[Alternative]> = alternatives.chunk_by(one_of_a_list).collect();
                let default = Target::Return(self.default);
                groups.iter().rev().fold(default, |otherwise, group| self.alternative(group, otherwise))
            }
        }
    }

    /// Alternatives that differ only in the value one argument must have, or a single alternative.
    fn alternative(&mut self, group: &[Alternative], otherwise: Target) -> Target {
        let [Alternative { conditions, action }, ..] = group else { return otherwise };
        let mut then = Target::Return(*action);
        if let ([condition], [_, _, ..]) = (conditions.as_slice(), group)
            && let Test::Equal { mask, .. } = condition.test
        {
            let values: Vec<u64> = group.iter().filter_map(listed_value).collect();
            return self.equal(condition.index, mask, &values, then, otherwise);
        }
        for condition in conditions.iter().rev() {
            then = self.condition(condition, then, otherwise);
        }
        then
    }

    fn condition(&mut self, condition: &Condition, then: Target, otherwise: Target) -> Target {
        let (yes, no) = if condition.holds { (then, otherwise) } else { (otherwise, then) };
        let index = condition.index;
        match condition.test {
            Test::Equal { mask, value } => self.equal(index, mask, &[value], yes, no),
            Test::Greater(value) => self.above(index, JUMP_GREATER, value, condition.wide, yes, no),
            Test::GreaterOrEqual(value) => self.above(index, JUMP_GREATER_OR_EQUAL, value, condition.wide, yes, no),
        }
    }

    /// Whether the masked argument is one of `values`, whose upper halves are the same.
    fn equal(&mut self, index: u32, mask: u64, values: &[u64], yes: Target, no: Target) -> Target {
        let lower: Vec<u32> = values.iter().map(|value| low(*value)).collect();
        let then = self.half(low_offset(index), low(mask), &lower, yes, no);
        let upper: Vec<u32> = values.iter().take(1).map(|value| high(*value)).collect();
        self.half(high_offset(index), high(mask), &upper, then, no)
    }

    /// Whether half an argument, masked, is one of `values`. Without a mask there is nothing to ask.
    fn half(&mut self, offset: u32, mask: u32, values: &[u32], yes: Target, no: Target) -> Target {
        if mask == 0 {
            return yes;
        }
        let mut test = no;
        match values {
            // One load and one test instead of load, mask and test: no bit of the mask, or its only bit, is set.
            [0] if mask != u32::MAX => test = self.branch(JUMP_ANY_BIT, mask, no, yes),
            [value] if *value == mask && mask.is_power_of_two() => test = self.branch(JUMP_ANY_BIT, mask, yes, no),
            _ => {
                for value in values.iter().rev() {
                    test = self.branch(JUMP_EQUAL, *value, yes, test);
                }
                if mask != u32::MAX {
                    test = Target::At(self.push(AND, mask));
                }
            }
        }
        self.load_before(offset, test)
    }

    /// Whether an argument is above `value` by `code`: its upper half decides, unless it is equal.
    fn above(&mut self, index: u32, code: u16, value: u64, wide: bool, yes: Target, no: Target) -> Target {
        let lower = self.branch(code, low(value), yes, no);
        let lower = self.load_before(low_offset(index), lower);
        if !wide {
            return lower;
        }
        // Nothing is below zero: what is not equal to it is above it.
        let upper = if high(value) == 0 {
            self.branch(JUMP_EQUAL, 0, lower, yes)
        } else {
            let equal = self.branch(JUMP_EQUAL, high(value), lower, no);
            self.branch(JUMP_GREATER, high(value), yes, equal)
        };
        self.load_before(high_offset(index), upper)
    }
}

/// Whether two alternatives can share their loads: the same masked argument, the same upper half, the same answer.
fn one_of_a_list(a: &Alternative, b: &Alternative) -> bool {
    let ([first], [second]) = (a.conditions.as_slice(), b.conditions.as_slice()) else { return false };
    let (Test::Equal { mask, value }, Test::Equal { mask: other_mask, value: other }) = (first.test, second.test)
    else {
        return false;
    };
    let same_argument = first.index == second.index && mask == other_mask && high(value) == high(other);
    a.action == b.action && first.holds && second.holds && same_argument && low(mask) != 0
}

fn listed_value(alternative: &Alternative) -> Option<u64> {
    match alternative.conditions.first()?.test {
        Test::Equal { value, .. } => Some(value),
        Test::Greater(_) | Test::GreaterOrEqual(_) => None,
    }
}

fn low(value: u64) -> u32 {
    (value & u64::from(u32::MAX)) as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

// Every machine with a table is little-endian: the lower half comes first.
fn low_offset(index: u32) -> u32 {
    ARGUMENTS + 8 * index
}

fn high_offset(index: u32) -> u32 {
    low_offset(index) + 4
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Action = Action(0x0005_0001);
    const SECOND: Action = Action(0x0005_0002);

    /// Where both ways of a jump end, with `padding` instructions between it and the returns.
    fn ways(padding: usize, written: &[Action]) -> (u32, u32) {
        let mut writer = Writer::new(FIRST);
        for action in written {
            writer.write_return(*action);
        }
        for _ in 0..padding {
            writer.push(AND, 0);
        }
        writer.branch(JUMP_EQUAL, 7, Target::Return(FIRST), Target::Return(SECOND));
        assert!(!writer.astray);
        writer.reversed.reverse();
        let jump = writer.reversed[0];
        let end = |offset: u8| writer.reversed[1 + usize::from(offset)];
        assert_eq!((end(jump.jt).code, end(jump.jf).code), (RETURN, RETURN), "padding {padding}");
        (end(jump.jt).k, end(jump.jf).k)
    }

    #[test]
    fn both_ways_of_a_jump_arrive_around_the_border_of_its_reach() {
        for padding in 245..265 {
            for written in [&[FIRST][..], &[SECOND], &[FIRST, SECOND], &[SECOND, FIRST], &[]] {
                assert_eq!(ways(padding, written), (FIRST.0, SECOND.0), "padding {padding}, {written:?}");
            }
        }
    }

    #[test]
    fn a_far_instruction_is_reached_by_a_jump() {
        let mut writer = Writer::new(FIRST);
        let target = writer.push(LOAD, 99);
        for _ in 0..400 {
            writer.push(AND, 0);
        }
        writer.branch(JUMP_EQUAL, 7, Target::At(target), Target::Return(SECOND));
        assert!(!writer.astray);
        writer.reversed.reverse();
        let at = 1 + usize::from(writer.reversed[0].jt);
        let Instruction { code, k, .. } = writer.reversed[at];
        assert_eq!(code, JUMP);
        assert_eq!(writer.reversed[at + 1 + k as usize], Instruction { code: LOAD, jt: 0, jf: 0, k: 99 });
    }
}
