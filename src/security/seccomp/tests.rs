//! The compiler against a direct reading of the profile: an interpreter runs the program, the reading looks at the
//! profile's text each time, and the two must agree on every number and on arguments around every value.

mod kernel;
mod reading;

use reading::{agree, arguments, call, run};

use super::*;
use crate::spec::seccomp::{ArgCondition, SyscallRule};

const DOCKER: &str = include_str!("../../../rootfs-fixtures/seccomp/docker-default.json");

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL: u32 = 0;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ARM: u32 = 0x4000_0028;
const AARCH64: u32 = 0xc000_00b7;

/// xorshift64: the same profiles in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

const NAMES: [&str; 22] = [
    "read",
    "write",
    "open",
    "close",
    "personality",
    "clone",
    "socket",
    "accept",
    "send",
    "shmat",
    "mseal",
    "ioctl",
    "execve",
    "_llseek",
    "fcntl64",
    "breakpoint",
    "openat",
    "kill",
    "semop",
    "no_such_call",
    "preadv2",
    "socketcall",
];

fn random_rule(random: &mut Random) -> SyscallRule {
    let actions =
        ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_TRAP", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"];
    let operators: Vec<&str> = operators().collect();
    let values = [0, 1, 5, 0x20, 0x60, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0005, u64::MAX];
    let action = random.pick(&actions).to_owned();
    let takes_data = matches!(action.as_str(), "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE");
    let errno_ret = if takes_data && random.below(2) == 0 { Some(random.below(40) as u32) } else { None };
    let names = (0..1 + random.below(4)).map(|_| random.pick(&NAMES).to_owned()).collect();
    let args = (0..random.below(4))
        .map(|_| ArgCondition {
            index: random.below(3) as u32,
            value: values[random.below(values.len())],
            value_two: values[random.below(values.len())],
            op: random.pick(&operators).to_owned(),
        })
        .collect();
    SyscallRule { names, action, errno_ret, args }
}

fn random_profile(random: &mut Random) -> Seccomp {
    let defaults = ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_ALLOW", "SCMP_ACT_LOG"];
    let known =
        ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64", "SCMP_ARCH_S390X"];
    Seccomp {
        default_action: random.pick(&defaults).to_owned(),
        architectures: (0..random.below(5)).map(|_| random.pick(&known).to_owned()).collect(),
        syscalls: (0..random.below(12)).map(|_| random_rule(random)).collect(),
        ..Seccomp::default()
    }
}

fn docker() -> Seccomp {
    serde_json::from_str(DOCKER).unwrap()
}

fn profile(json: &str) -> Seccomp {
    serde_json::from_str(json).unwrap()
}

fn compiled(json: &str) -> Program {
    compile_for(Abi::X86_64, &profile(json)).unwrap().unwrap()
}

fn refusal(json: &str) -> String {
    compile_for(Abi::X86_64, &profile(json)).unwrap_err().to_string()
}

fn ask(program: &Program, number: u32, args: [u64; 6]) -> u32 {
    run(&program.instructions, call(X86_64, number, args)).0
}

#[test]
fn dockers_profile_means_what_it_says() {
    agree(Abi::X86_64, &docker());
    agree(Abi::Aarch64, &Seccomp { architectures: vec!["SCMP_ARCH_ARM".to_owned()], ..docker() });
}

#[test]
fn random_profiles_mean_what_they_say() {
    let mut random = Random(0x5eed);
    let is_long = std::env::var_os("FERRY_LONG").is_some();
    let cases: usize = (0..if is_long { 2000 } else { 60 })
        .map(|_| {
            let profile = random_profile(&mut random);
            agree(Abi::X86_64, &profile) + agree(Abi::Aarch64, &profile)
        })
        .sum();
    if is_long {
        println!("{cases} calls were answered as the profiles say");
    }
    assert!(cases > 100_000, "{cases}");
}

/// Alternating answers and many conditions put jump targets beyond the 255 instructions a conditional jump reaches.
#[test]
fn far_jumps_arrive() {
    let mut syscalls = Vec::new();
    for (index, name) in ["read", "open", "clone", "ioctl", "openat", "kill", "mseal", "execve"].iter().enumerate() {
        for value in 0..40_u64 {
            syscalls.push(SyscallRule {
                names: vec![(*name).to_owned()],
                action: "SCMP_ACT_ERRNO".to_owned(),
                errno_ret: Some(u32::try_from(value).unwrap() + 2),
                args: vec![ArgCondition {
                    index: index as u32 % 6,
                    value: value << 31,
                    value_two: 0,
                    op: "SCMP_CMP_EQ".to_owned(),
                }],
            });
        }
    }
    let profile = Seccomp { default_action: "SCMP_ACT_ALLOW".to_owned(), syscalls, ..Seccomp::default() };
    let length = compile_for(Abi::X86_64, &profile).unwrap().unwrap().instructions.len();
    assert!(length > 1000, "{length} instructions need no far jump");
    agree(Abi::X86_64, &profile);
}

/// On average over the calls of x86_64 with arguments of zero; at most over every argument worth asking about.
#[test]
fn dockers_profile_stays_small_and_quick() {
    let native = Seccomp { architectures: Vec::new(), ..docker() };
    for (profile, most) in [(native, 80), (docker(), 270)] {
        let program = compile_for(Abi::X86_64, &profile).unwrap().unwrap();
        let length = program.instructions.len();
        let executed = |number, args| run(&program.instructions, call(X86_64, number, args)).1;
        let average = (0..463).map(|number| executed(number, [0; 6])).sum::<usize>() as f64 / 463.0;
        let arguments = arguments(&profile);
        let with_each = |number| arguments.iter().map(move |args| (number, *args));
        let longest = (0..463).flat_map(with_each).map(|(number, args)| executed(number, args)).max().unwrap();
        println!("{length} instructions, {average:.2} executed on average, {longest} at most");
        assert!(length <= most && average < 12.0 && longest <= 20, "{length}, {average:.2}, {longest}");
    }
}

#[test]
fn numbers_without_conditions_are_decided_without_arguments() {
    let program = compile_for(Abi::X86_64, &docker()).unwrap().unwrap();
    for number in (0..600).filter(|number| ![41, 56, 135].contains(number)) {
        let (.., read) = run(&program.instructions, call(X86_64, number, [0; 6]));
        assert!(!read, "call {number} reads an argument");
    }
}

#[test]
fn dockers_profile_allows_denies_and_does_not_know() {
    let program = compile_for(Abi::X86_64, &docker()).unwrap().unwrap();
    assert_eq!(ask(&program, 0, [0; 6]), ALLOW, "read");
    assert_eq!(ask(&program, 165, [0; 6]), EPERM, "mount");
    assert_eq!(ask(&program, 435, [0; 6]), ENOSYS, "clone3 by its rule");
    assert_eq!(ask(&program, 462, [0; 6]), ENOSYS, "mseal is newer than the profile");
    assert_eq!(ask(&program, 56, [0x0002_0000, 0, 0, 0, 0, 0]), EPERM, "clone(CLONE_NEWNS)");
    assert_eq!(ask(&program, 56, [0x11, 0, 0, 0, 0, 0]), ALLOW, "clone(SIGCHLD)");
    assert_eq!(ask(&program, 41, [40, 0, 0, 0, 0, 0]), EPERM, "socket(AF_VSOCK)");
    assert_eq!(ask(&program, 135, [0xffff_ffff, 0, 0, 0, 0, 0]), ALLOW, "personality(query)");
}

#[test]
fn an_unconditional_rule_wins_wherever_it_stands_and_the_first_one_stays() {
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_KILL", "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["read"], "action": "SCMP_ACT_ERRNO"}]}"#,
    );
    assert_eq!(ask(&program, 0, [1, 0, 0, 0, 0, 0]), ALLOW);
}

#[test]
fn overlapping_conditions_are_ordered_as_by_libseccomp() {
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_KILL", "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_GE"}]},
            {"names": ["read"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 9, "op": "SCMP_CMP_LE"}]},
            {"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]},
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}]}]}"#,
    );
    let read = |first, second| ask(&program, 0, [first, second, 0, 0, 0, 0]);
    assert_eq!([read(5, 5), read(5, 0), read(7, 0), read(10, 0)], [ALLOW, EPERM, 0x7ffc_0000, 0x0003_0000]);
}

#[test]
fn a_conditional_permission_does_not_open_socketcall() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"], "syscalls": [
        {"names": ["bind"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]}]}"#;
    let program = compiled(json);
    let socketcall = |which| run(&program.instructions, call(I386, 102, [which, 0, 0, 0, 0, 0])).0;
    assert_eq!(socketcall(2), ALLOW, "bind");
    assert_eq!(socketcall(1), EPERM, "socket");
    assert_eq!(run(&program.instructions, call(I386, 359, [2, 0, 0, 0, 0, 0])).0, ALLOW, "socket itself");
}

#[test]
fn absent_flags_are_spec_allow_and_empty_ones_are_none() {
    assert_eq!(compiled(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).flags, 4);
    assert_eq!(compiled(r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": null}"#).flags, 4);
    assert_eq!(compiled(r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": []}"#).flags, 0);
    let flags =
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"]}"#;
    assert_eq!(compiled(flags).flags, 2);
}

#[test]
fn notification_asks_for_a_listener_and_its_path() {
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "listenerPath": "/run/agent", "listenerMetadata": "m",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}"#,
    );
    assert_eq!(program.flags, 8 | 32);
    assert_eq!(program.notify, Some(Notify { listener_path: "/run/agent".into(), metadata: "m".to_owned() }));
    assert_eq!(ask(&program, 83, [0; 6]), 0x7fc0_0000);
    let idle = compiled(r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent"}"#);
    assert_eq!((idle.notify, idle.warnings.len()), (None, 1));
}

#[test]
fn what_cannot_work_is_refused_with_its_path() {
    let rule = |rule: &str| refusal(&format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#));
    let cases = [
        (refusal(r#"{"defaultAction": "ALLOW"}"#), "linux.seccomp.defaultAction"),
        (refusal(r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#), "linux.seccomp.defaultAction"),
        (refusal(r#"{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}"#), "linux.seccomp.defaultErrnoRet"),
        (
            refusal(r#"{"defaultAction": "SCMP_ACT_KILL", "architectures": ["SCMP_ARCH_X86", "VAX"]}"#),
            "architectures[1]",
        ),
        (refusal(r#"{"defaultAction": "SCMP_ACT_KILL", "flags": ["NEW"]}"#), "linux.seccomp.flags[0]"),
        (
            refusal(r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#),
            "needs a rule with SCMP_ACT_NOTIFY",
        ),
        (rule(r#"{"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"}"#), "syscalls[0].names[1]"),
        (rule(r#"{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}"#), "linux.seccomp.listenerPath"),
        (rule(r#"{"names": [""], "action": "SCMP_ACT_KILL"}"#), "syscalls[0].names[0]"),
        (rule(r#"{"names": [], "action": "SCMP_ACT_KILL"}"#), "linux.seccomp.syscalls[0].names"),
        (rule(r#"{"action": "SCMP_ACT_KILL"}"#), "linux.seccomp.syscalls[0].names"),
        (
            rule(r#"{"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1}"#),
            "linux.seccomp.syscalls[0].errnoRet",
        ),
        (
            rule(r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1}"#),
            "linux.seccomp.syscalls[0].errnoRet",
        ),
        (refusal(r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "m"}"#), "linux.seccomp.listenerMetadata"),
        (rule(r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096}"#), "4096 is above 4095"),
        (
            rule(
                r#"{"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}"#,
            ),
            "linux.seccomp.syscalls[0].args[0].index",
        ),
        (
            rule(r#"{"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 0, "value": 0, "op": "=="}]}"#),
            "linux.seccomp.syscalls[0].args[0].op",
        ),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }
}

#[test]
fn a_filter_the_kernel_would_not_take_is_refused() {
    let rule = |value: u64| SyscallRule {
        names: vec!["read".to_owned()],
        action: "SCMP_ACT_ALLOW".to_owned(),
        errno_ret: None,
        args: vec![ArgCondition { index: 0, value: value << 32, value_two: 0, op: "SCMP_CMP_EQ".to_owned() }],
    };
    let default_action = "SCMP_ACT_KILL".to_owned();
    let profile = Seccomp { default_action, syscalls: (0..2000).map(rule).collect(), ..Seccomp::default() };
    let message = compile_for(Abi::X86_64, &profile).unwrap_err().to_string();
    assert!(message.contains("the kernel takes 4096"), "{message}");
}

#[test]
fn nothing_asked_for_is_no_filter_and_unknown_names_are_warnings() {
    assert_eq!(compile(&Seccomp::default()), Ok(None));
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"],
            "syscalls": [{"names": ["teleport"], "action": "SCMP_ACT_KILL"}]}"#,
    );
    assert_eq!(program.warnings, ["linux.seccomp.syscalls[0]: unknown system call teleport skipped"]);
    assert_eq!(program.to_bytes().len(), 8 * program.instructions.len());
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["teleport", "read"], "action": "SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!((program.warnings.len(), program.unknown.len()), (0, 1));
    // What is denied one way or the other.
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["swapcontext", "reboot"], "action": "SCMP_ACT_ERRNO"}]}"#,
    );
    assert_eq!((program.warnings.len(), program.unknown.len()), (0, 1));
}

#[test]
fn every_vocabulary_is_sorted_for_features() {
    for names in [actions().collect::<Vec<_>>(), operators().collect(), architectures().collect(), flags().collect()] {
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    }
}
