//! Device rules to BPF instructions.
//!
//! The kernel asks the program about one device and a set of accesses. For each access the last rule that names it
//! decides, so the program walks the rules from the last to the first and keeps the accesses that are still undecided.
//!
//! What loading costs is the kernel's verifier, which follows every branch: the usual list takes 130 µs compiled rule by
//! rule and 40 µs as here. So rules that a later one covers are dropped, rules of one verdict (whose order among
//! themselves does not matter) are sorted to share the tests of type and major number, and all verdicts share two exits.
//!
//! Source: include/uapi/linux/bpf.h (`struct bpf_cgroup_dev_ctx`), the kernel's Documentation/bpf/standardization.

use crate::error::{Error, Result};
use crate::spec::resources::DeviceRule;
use crate::sys::bpf::Instruction;

/// Bits of `access_type`'s upper half (`BPF_DEVCG_ACC_*`).
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

/// A rule as numbers; `None` is any. The order is that of the tests: rules that share the first ones lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Match {
    allow: bool,
    /// `BPF_DEVCG_DEV_*`: 1 is a block device, 2 a character device.
    kind: Option<i32>,
    major: Option<i32>,
    access: i32,
    minor: Option<i32>,
}

impl Match {
    fn is_about_everything(&self) -> bool {
        (self.kind, self.major, self.minor, self.access) == (None, None, None, ALL)
    }

    /// Whether there is nothing that `other` names and this one does not.
    fn covers(&self, other: &Self) -> bool {
        let any_or = |mine: Option<i32>, its| mine.is_none() || mine == its;
        any_or(self.kind, other.kind)
            && any_or(self.major, other.major)
            && any_or(self.minor, other.minor)
            && self.access & other.access == other.access
    }
}

fn parse(index: usize, rule: &DeviceRule) -> Result<Match> {
    let refuse = |what: &str| {
        let object = format!("linux.resources.devices[{index}]");
        Err(Error::said("apply", object, format!("{what} is not one a device rule can have")))
    };
    let kind = match rule.kind.as_str() {
        "" | "a" => None,
        "b" => Some(1),
        "c" => Some(2),
        other => return refuse(&format!("type {other:?}")),
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        // A number of 2^31 and more turns negative here and equals nothing, which is right: device numbers have 12 and
        // 20 bits, so there is no such device.
        Some(value) => u32::try_from(value).map(|value| Some(value as i32)).map_err(|_| value),
    };
    let (major, minor) = match (number(rule.major), number(rule.minor)) {
        (Ok(major), Ok(minor)) => (major, minor),
        (Err(value), _) | (_, Err(value)) => return refuse(&format!("device number {value}")),
    };
    let bit = |letter| match letter {
        'r' => READ,
        'w' => WRITE,
        'm' => MKNOD,
        // Configurations in the field have other letters, which other runtimes read over: they name no access.
        _ => 0,
    };
    let access = match rule.access.chars().fold(0, |access, letter| access | bit(letter)) {
        0 if rule.access.is_empty() => ALL,
        0 => return refuse(&format!("access {:?}", rule.access)),
        access => access,
    };
    Ok(Match { allow: rule.allow, kind, major, access, minor })
}

/// Compiles rules, of which the last that matches wins; what none matches is denied. `None`: they allow everything.
///
/// # Errors
///
/// A rule has a type or number that there is not, or access letters none of which there is, named by its place in the list;
/// or there are too many for one program.
pub fn compile(rules: &[DeviceRule]) -> Result<Option<Vec<Instruction>>> {
    let rules = rules.iter().enumerate().map(|(index, rule)| parse(index, rule)).collect::<Result<Vec<_>>>()?;
    let (runs, allow_rest) = simplify(&rules);
    if allow_rest && runs.is_empty() {
        return Ok(None);
    }
    let mut program = Program::new();
    for run in &runs {
        program.run(run);
    }
    program.finish(allow_rest).map(Some)
}

/// The rules that decide anything, last first, in runs of one verdict, each sorted; and the verdict on all the rest.
fn simplify(rules: &[Match]) -> (Vec<Vec<Match>>, bool) {
    let mut kept: Vec<Match> = Vec::new();
    let mut allow_rest = false;
    for rule in rules.iter().rev() {
        if kept.iter().any(|later| later.covers(rule)) {
            continue;
        }
        if rule.is_about_everything() {
            allow_rest = rule.allow;
            break;
        }
        // There are two types: what is said of either alike is said of both.
        let other = Match { kind: rule.kind.map(|kind| 3 - kind), ..*rule };
        let both = Match { kind: None, ..*rule };
        let run = kept.iter().rposition(|later| later.allow != rule.allow).map_or(0, |last| last + 1);
        match rule.kind.is_some().then(|| kept[run..].iter().position(|later| *later == other)).flatten() {
            None => kept.push(*rule),
            Some(at) => {
                kept.remove(run + at);
                if both.is_about_everything() {
                    allow_rest = rule.allow;
                    break;
                }
                kept.push(both);
            }
        }
    }
    // The earliest of them say nothing if they say what is said of all the rest.
    while kept.pop_if(|earliest| earliest.allow == allow_rest).is_some() {}
    let sorted = |run: &[Match]| {
        let mut run = run.to_vec();
        run.sort_unstable();
        run
    };
    (kept.chunk_by(|a, b| a.allow == b.allow).map(sorted).collect(), allow_rest)
}

// Registers: the context comes in R1, the answer goes out in R0.
pub(super) const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// Operation codes, from linux/bpf_common.h and linux/bpf.h: class | operation | source.
pub(super) const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
pub(super) const MOVE: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
pub(super) const MOVE_REGISTER: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
pub(super) const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
pub(super) const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
pub(super) const JUMP_EQUAL: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(super) const JUMP_UNEQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
pub(super) const JUMP_ANY_BIT: u8 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
pub(super) const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

pub(super) const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | (from << 4), offset, immediate }
}

/// Sets the answer and ends the program.
pub(super) const fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE, ANSWER, 0, 0, allow as i32), instruction(EXIT, 0, 0, 0, 0)]
}

/// Where a jump goes: a place that is known only later.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Allow,
    Deny,
    Place(usize),
}

/// Instructions whose jumps are not yet resolved.
struct Program {
    instructions: Vec<Instruction>,
    /// Each jump's own place, and where it goes.
    jumps: Vec<(usize, Label)>,
    /// The places of labels, by number; 0 until placed.
    places: Vec<usize>,
}

impl Program {
    /// Reads `struct bpf_cgroup_dev_ctx { access_type, major, minor }` into registers.
    fn new() -> Self {
        let instructions = vec![
            instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
            instruction(MOVE_REGISTER, UNDECIDED, KIND, 0, 0),
            instruction(AND, KIND, 0, 0, 0xffff),
            instruction(SHIFT_RIGHT, UNDECIDED, 0, 0, 16),
            instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
            instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        ];
        Self { instructions, jumps: Vec::new(), places: Vec::new() }
    }

    fn jump(&mut self, code: u8, register: u8, value: i32, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.instructions.push(instruction(code, register, 0, 0, value));
    }

    /// Emits `body`, which is skipped unless `register` has `value`; always runs without one.
    fn only_if(&mut self, register: u8, value: Option<i32>, body: impl FnOnce(&mut Self)) {
        let label = self.places.len();
        if let Some(value) = value {
            self.places.push(0);
            self.jump(JUMP_UNEQUAL, register, value, Label::Place(label));
        }
        body(self);
        if value.is_some() {
            self.places[label] = self.instructions.len();
        }
    }

    /// Rules of one verdict, sorted: one test of the type, below it one of each major number.
    fn run(&mut self, run: &[Match]) {
        for kinds in run.chunk_by(|a, b| a.kind == b.kind) {
            let [Match { major: None, minor: None, access: ALL, .. }] = kinds else {
                self.only_if(KIND, kinds[0].kind, |program| {
                    kinds.chunk_by(|a, b| a.major == b.major).for_each(|majors| program.majors(majors));
                });
                continue;
            };
            self.decide(&kinds[0], kinds[0].kind.map(|kind| (KIND, kind)));
        }
    }

    fn majors(&mut self, rules: &[Match]) {
        if let [rule @ Match { major: Some(major), minor: None, access: ALL, .. }] = rules {
            return self.decide(rule, Some((MAJOR, *major)));
        }
        self.only_if(MAJOR, rules[0].major, |program| {
            for rule in rules {
                program.decide(rule, rule.minor.map(|minor| (MINOR, minor)));
            }
        });
    }

    /// One rule with its last test: a denial of anything asked for ends the walk, an allowance of all that is undecided.
    fn decide(&mut self, rule: &Match, last: Option<(u8, i32)>) {
        let verdict = if rule.allow { Label::Allow } else { Label::Deny };
        if let (ALL, Some((register, value))) = (rule.access, last) {
            return self.jump(JUMP_EQUAL, register, value, verdict);
        }
        let (register, value) = last.map_or((MINOR, None), |(register, value)| (register, Some(value)));
        self.only_if(register, value, |program| {
            if rule.allow {
                program.instructions.push(instruction(AND, UNDECIDED, 0, 0, ALL & !rule.access));
                program.jump(JUMP_EQUAL, UNDECIDED, 0, verdict);
            } else {
                program.jump(JUMP_ANY_BIT, UNDECIDED, rule.access, verdict);
            }
        });
    }

    /// Appends the exits that are used and resolves the jumps.
    fn finish(mut self, allow_rest: bool) -> Result<Vec<Instruction>> {
        let rest = self.instructions.len();
        self.instructions.extend(answer(allow_rest));
        let other = self.instructions.len();
        let same = if allow_rest { Label::Allow } else { Label::Deny };
        // An exit that nothing jumps to would be unreachable code, which the verifier refuses.
        if self.jumps.iter().any(|(_, to)| !matches!(to, Label::Place(_)) && *to != same) {
            self.instructions.extend(answer(!allow_rest));
        }
        for (at, to) in &self.jumps {
            let place = match to {
                Label::Place(label) => self.places[*label],
                verdict if *verdict == same => rest,
                _ => other,
            };
            self.instructions[*at].offset = i16::try_from(place - at - 1).map_err(|_| {
                Error::said("apply", "linux.resources.devices", "there are too many rules for one program")
            })?;
        }
        Ok(self.instructions)
    }
}
