//! The compiled program against a direct reading of the rules, and the kernel's own answer.

use super::*;
use crate::cgroup::device_program::*;
use crate::cgroup::fs::Cgroup;
use crate::cgroup::trial::Trial;

/// Runs the subset of BPF that `compile` emits, as the kernel would.
fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
    let context = [kind | (access << 16), major, minor];
    let mut registers = [0u32; 11];
    let mut at = 0;
    loop {
        let Instruction { code, registers: pair, offset, immediate } = program[at];
        let (to, from, immediate) = (usize::from(pair & 15), usize::from(pair >> 4), immediate as u32);
        at += 1;
        match code {
            LOAD_WORD => registers[to] = context[offset as usize / 4],
            MOVE => registers[to] = immediate,
            MOVE_REGISTER => registers[to] = registers[from],
            AND => registers[to] &= immediate,
            SHIFT_RIGHT => registers[to] >>= immediate,
            JUMP_EQUAL if registers[to] == immediate => at += offset as usize,
            JUMP_UNEQUAL if registers[to] != immediate => at += offset as usize,
            JUMP_ANY_BIT if registers[to] & immediate != 0 => at += offset as usize,
            JUMP_EQUAL | JUMP_UNEQUAL | JUMP_ANY_BIT => {}
            EXIT => return registers[0] == 1,
            other => panic!("operation {other:#x}"),
        }
    }
}

/// The rules read directly: for each access, in order, the last rule that names it.
fn allowed(rules: &[DeviceRule], kind: &str, access: &str, major: u32, minor: u32) -> bool {
    access.chars().all(|letter| {
        let names = |rule: &&DeviceRule| {
            let number = |value: Option<i64>, actual: u32| value.is_none_or(|v| v == -1 || v == i64::from(actual));
            (["", "a", kind].contains(&rule.kind.as_str()))
                && number(rule.major, major)
                && number(rule.minor, minor)
                && (rule.access.is_empty() || rule.access.contains(letter))
        };
        rules.iter().rfind(names).is_some_and(|rule| rule.allow)
    })
}

fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> DeviceRule {
    DeviceRule { allow, kind: kind.into(), major: Some(major), minor: Some(minor), access: access.into() }
}

/// Asks for every device and access that the rules could tell apart.
fn assert_same(rules: &[DeviceRule]) {
    let program = compile(rules).unwrap();
    for (kind, kind_bits) in [("b", 1), ("c", 2)] {
        for (major, minor) in (0..5).flat_map(|major| (0..5).map(move |minor| (major, minor))) {
            for (access, bits) in [("r", 2), ("w", 4), ("m", 1), ("rw", 6), ("rm", 3), ("wm", 5), ("rwm", 7)] {
                let expected = allowed(rules, kind, access, major, minor);
                let got = program.as_ref().is_none_or(|program| run(program, kind_bits, bits, major, minor));
                assert_eq!(got, expected, "{kind} {major}:{minor} {access} under {rules:?}");
            }
        }
    }
}

/// Lists of up to eight rules that overlap a lot: a fixed linear congruence, the same lists every time.
fn lists(count: usize) -> Vec<Vec<DeviceRule>> {
    let mut state = 1u64;
    let mut pick = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut list = |_| {
        let rules = 0..pick(9);
        let one = |_| {
            let kind = ["", "a", "b", "c", "c"][pick(5) as usize];
            let access = ["", "r", "w", "m", "rw", "rm", "rwm"][pick(7) as usize];
            rule(pick(2) == 0, kind, pick(6) as i64 - 1, pick(6) as i64 - 1, access)
        };
        rules.map(one).collect()
    };
    (0..count).map(&mut list).collect()
}

#[test]
fn compiled_rules_answer_as_they_read() {
    for list in lists(2000) {
        assert_same(&list);
        assert_same(&in_force(&list));
    }
}

#[test]
fn the_verifier_takes_every_list() {
    let Some(_trial) = Trial::new("devices-lists") else { return };
    for list in lists(300) {
        for rules in [in_force(&list), list] {
            let Some(program) = compile(&rules).unwrap() else { continue };
            let loaded = load(&program);
            assert!(loaded.as_ref().is_ok_and(Option::is_some), "{loaded:?}: {rules:?}");
        }
    }
}

#[test]
fn accesses_allowed_one_by_one_may_be_used_together() {
    let rules = [rule(true, "c", 1, 1, "r"), rule(true, "c", 1, 1, "w")];
    assert!(run(&compile(&rules).unwrap().unwrap(), 2, 6, 1, 1));
    let rules = [rule(true, "c", 1, 1, "rw"), rule(false, "c", 1, 1, "w")];
    let program = compile(&rules).unwrap().unwrap();
    assert!(run(&program, 2, 2, 1, 1) && !run(&program, 2, 6, 1, 1));
}

#[test]
fn letters_that_name_no_access_add_nothing() {
    let program = compile(&[rule(true, "c", 1, 11, "rwa")]).unwrap().unwrap();
    assert!(run(&program, 2, 6, 1, 11) && !run(&program, 2, 1, 1, 11));
}

#[test]
fn everything_allowed_needs_no_program() {
    let deny_all = DeviceRule { access: "rwm".into(), ..Default::default() };
    let allow_all = DeviceRule { allow: true, ..Default::default() };
    assert_eq!(compile(&in_force(&[deny_all.clone(), allow_all.clone()])).unwrap(), None);
    assert!(compile(&in_force(&[allow_all.clone(), deny_all])).unwrap().is_some());
    assert!(compile(&[allow_all, rule(false, "b", 8, 0, "w")]).unwrap().is_some());
    let either = [rule(true, "b", -1, -1, "rwm"), rule(true, "c", -1, -1, "rwm")];
    assert_eq!(compile(&in_force(&either)).unwrap(), None);
    assert!(compile(&in_force(&[])).unwrap().is_some());
}

#[test]
fn rules_before_one_that_decides_everything_cost_nothing() {
    let deny_all = rule(false, "a", -1, -1, "rwm");
    let many: Vec<_> = (0..50).map(|n| rule(true, "c", n, n, "rw")).chain([deny_all.clone()]).collect();
    assert_eq!(compile(&many).unwrap(), compile(&[deny_all]).unwrap());
}

#[test]
fn the_usual_list_is_short() {
    let deny_all = rule(false, "a", -1, -1, "rwm");
    let usual = compile(&in_force(std::slice::from_ref(&deny_all))).unwrap().unwrap();
    assert!(usual.len() <= 26, "{} instructions: {usual:?}", usual.len());
    // An engine repeats the usual devices in its own list: that changes nothing.
    let repeated: Vec<_> = [deny_all].into_iter().chain(in_force(&[])).collect();
    assert_eq!(compile(&in_force(&repeated)).unwrap().unwrap(), usual);
}

#[test]
fn malformed_rules_are_named_by_their_place() {
    let good = rule(true, "c", 1, 3, "rwm");
    for (bad, word) in [
        (rule(true, "x", 1, 3, "r"), "type \"x\""),
        (rule(true, "c", -2, 3, "r"), "device number -2"),
        (rule(true, "c", 1, 1 << 32, "r"), "device number 4294967296"),
        (rule(true, "c", 1, 3, "x"), "access \"x\""),
    ] {
        let error = compile(&[good.clone(), bad]).unwrap_err().to_string();
        assert!(error.contains("devices[1]") && error.contains(word), "{error}");
    }
}

/// What the kernel answers a process in `cgroup` that opens or makes nodes: the errors of each try.
fn tries(cgroup: &Cgroup, dir: &std::path::Path) -> Vec<String> {
    let script = r#"echo $$ > "$1/cgroup.procs" || exit 9
        try() { if "$@" 2>/dev/null; then echo yes; else echo no; fi; }
        try head -c1 /dev/zero; try sh -c ': > /dev/null'; try head -c1 /dev/ferry-no-such
        try mknod "$2/mem" c 1 1; try head -c1 "$2/mem"; try sh -c ": > '$2/mem'""#;
    let output =
        std::process::Command::new("sh").args(["-c", script, "sh"]).args([&cgroup.path, dir]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap().replace('\0', "");
    std::fs::remove_file(dir.join("mem")).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_kernel_enforces_the_filter() {
    let Some(trial) = Trial::new("devices") else { return };
    let cgroup = trial.create("box");
    // Nodes work only on a filesystem that is not mounted nodev.
    let dir = std::path::PathBuf::from(format!("/dev/shm/ferry-test-{}", std::process::id()));
    let dir = if mounted_nodev("/dev/shm") { std::env::temp_dir().join(dir.file_name().unwrap()) } else { dir };
    std::fs::create_dir(&dir).unwrap();
    let outcome = std::panic::catch_unwind(|| enforce(&cgroup, &dir));
    std::fs::remove_dir(&dir).unwrap();
    outcome.unwrap();
}

fn mounted_nodev(path: &str) -> bool {
    rustix::fs::statvfs(path).unwrap().f_flag.contains(rustix::fs::StatVfsMountFlags::NODEV)
}

fn enforce(cgroup: &Cgroup, dir: &std::path::Path) {
    // zero, null, no such node, mknod mem, read mem, write mem
    let unfiltered = tries(cgroup, dir);
    assert_eq!(unfiltered[..2], ["yes", "yes"]);
    assert_eq!(unfiltered[2..4], ["no", "yes"]);
    // Nothing asked for: the usual devices, any node may be made, none other opened.
    assert_eq!(install(cgroup.as_fd(), &in_force(&[])).unwrap(), Installed::Filter);
    assert_eq!(tries(cgroup, dir), ["yes", "yes", "no", "yes", "no", "no"]);
    assert_eq!(bpf::attached(cgroup.as_fd()).unwrap().len(), 1);

    // Everything allowed takes no program.
    let allow_all = [DeviceRule { allow: true, ..Default::default() }];
    assert_eq!(install(cgroup.as_fd(), &in_force(&allow_all)).unwrap(), Installed::Everything);
    assert_eq!(bpf::attached(cgroup.as_fd()).unwrap().len(), 1);
}

#[test]
fn a_long_list_loads() {
    let Some(trial) = Trial::new("devices-long") else { return };
    let cgroup = trial.create("box");
    let list: Vec<_> = (0..300)
        .map(|n| rule(n % 3 != 0, ["b", "c"][n as usize % 2], n % 40, n, ["r", "rw", "rwm", "m"][n as usize % 4]))
        .collect();
    assert_eq!(install(cgroup.as_fd(), &in_force(&list)).unwrap(), Installed::Filter);
}

#[test]
fn a_refused_program_is_told_in_the_verifiers_words() {
    let Some(_trial) = Trial::new("devices-bad") else { return };
    let error = load(&[instruction(MOVE, ANSWER, 0, 0, 1)]).unwrap_err().to_string();
    assert!(error.contains("the kernel says:"), "{error}");
}

#[test]
fn an_ordinary_user_is_told_that_there_is_no_filter() {
    let Some(trial) = Trial::new("devices-user") else { return };
    let cgroup = trial.create("box");
    let nobody = rustix::fs::Uid::from_raw(65534);
    let installed = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            install(cgroup.as_fd(), &in_force(&[]))
        });
        thread.join().unwrap()
    });
    assert_eq!(installed.unwrap(), Installed::NotPermitted);
    assert!(bpf::attached(cgroup.as_fd()).unwrap().is_empty());
}
