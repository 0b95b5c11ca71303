//! What a container may not do: system calls, hidden and read-only paths. What was once done all the same is in `attacks`.

use std::fs;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("seccomp_errno", &[], seccomp_errno),
    scenario("seccomp_errno_of_the_rules_choice", &[], seccomp_enosys),
    scenario("seccomp_by_argument", &[], seccomp_argument),
    scenario("seccomp_with_masked_argument", &[], seccomp_masked),
    scenario("seccomp_kill", &[], seccomp_kill),
    scenario("seccomp_default_errno_with_allowed_calls", &[], seccomp_allow_list),
    scenario("seccomp_unknown_names_are_ignored", &[], seccomp_unknown),
    scenario("seccomp_without_no_new_privileges", &[], seccomp_privileged),
    scenario("seccomp_other_architectures", &[], seccomp_architectures),
    scenario("no_seccomp_is_no_filter", &[], no_seccomp),
    scenario("masked_file_is_empty", &[], masked_file),
    scenario("masked_directory_is_empty", &[], masked_directory),
    scenario("masked_path_that_is_missing", &[], masked_missing),
    scenario("read_only_path_cannot_be_written", &[], read_only_path),
    scenario("read_only_path_that_is_missing", &[], read_only_missing),
    scenario("proc_sys_is_read_only_by_the_base_configuration", &[], proc_sys),
    scenario("the_host_is_not_among_the_processes", &[], host_processes),
    scenario("devices_cannot_be_made_without_the_capability", &[], no_mknod),
];

/// A profile that allows all but `name`, which gets `action` and `errno`.
pub fn filter(name: &str, action: &str, errno: Value) -> Value {
    profile(json!({"names": [name], "action": action, "errnoRet": errno}))
}

pub(super) fn profile(rule: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]})
}

fn call(case: &mut Case, number: i64, args: &[u64]) -> Result<Value, Failed> {
    let mut words = vec!["syscall".to_owned(), number.to_string()];
    words.extend(args.iter().map(u64::to_string));
    case.deed(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn seccomp_errno(case: &mut Case) -> Outcome {
    case.config["linux"]["seccomp"] = profile(json!({"names": ["getpgid"], "action": "SCMP_ACT_ERRNO"}));
    assert_eq!(call(case, libc::SYS_getpgid, &[0])?["error"], libc::EPERM);
    assert!(call(case, libc::SYS_getpid, &[])?["ok"].is_i64());
    Ok(())
}

fn seccomp_enosys(case: &mut Case) -> Outcome {
    case.config["linux"]["seccomp"] = filter("getpgid", "SCMP_ACT_ERRNO", json!(libc::ENOSYS));
    assert_eq!(call(case, libc::SYS_getpgid, &[0])?["error"], libc::ENOSYS);
    assert_eq!(case.args(&["/probe"]).report()?["seccomp"], "2");
    Ok(())
}

fn seccomp_argument(case: &mut Case) -> Outcome {
    let argument = json!([{"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}]);
    case.config["linux"]["seccomp"] =
        profile(json!({"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77, "args": argument}));
    assert_eq!(call(case, libc::SYS_getpriority, &[7, 0])?["error"], 77);
    assert!(call(case, libc::SYS_getpriority, &[0, 0])?["ok"].is_i64());
    // Only the low half is 7.
    assert_eq!(call(case, libc::SYS_getpriority, &[7 | 1 << 40, 0])?["error"], libc::EINVAL);
    Ok(())
}

fn seccomp_masked(case: &mut Case) -> Outcome {
    let argument = json!([{"index": 1, "value": 0xff00, "valueTwo": 0x1200, "op": "SCMP_CMP_MASKED_EQ"}]);
    case.config["linux"]["seccomp"] =
        profile(json!({"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77, "args": argument}));
    assert_eq!(call(case, libc::SYS_getpriority, &[0, 0x1234])?["error"], 77);
    assert_eq!(call(case, libc::SYS_getpriority, &[0, 0x3412])?["error"], libc::ESRCH);
    Ok(())
}

fn seccomp_kill(case: &mut Case) -> Outcome {
    case.config["linux"]["seccomp"] = profile(json!({"names": ["getpgid"], "action": "SCMP_ACT_KILL_PROCESS"}));
    let number = libc::SYS_getpgid.to_string();
    let end = case.args(&["/probe", "syscall", &number, "0"]).run()?;
    assert_eq!(end.code, 128 + libc::SIGSYS, "{}", end.stdout);
    Ok(())
}

/// What the runtime needs after its filter is in place, and the probe to start.
const ALLOWED: &str = "read write open openat close fstat newfstatat statx mmap mprotect munmap brk execve execveat arch_prctl \
    set_tid_address set_robust_list rseq prlimit64 getrandom poll rt_sigaction rt_sigprocmask rt_sigreturn \
    sigaltstack exit_group exit readlink readlinkat getdents64 ioctl fcntl gettid getpid futex sched_getaffinity \
    getcwd madvise mremap prctl capset setuid setgid setgroups chdir fchdir umask close_range tgkill kill \
    sched_yield nanosleep epoll_pwait getppid uname lseek pread64 dup dup2 dup3 getuid access faccessat faccessat2 \
    stat lstat fstatfs statfs capget getgid geteuid getegid epoll_ctl pipe2 recvmsg sendmsg recvfrom sendto \
    setresuid setresgid keyctl writev seccomp clone clone3 wait4 openat2 setsid fchmodat fchown";

fn seccomp_allow_list(case: &mut Case) -> Outcome {
    let allowed: Vec<&str> = ALLOWED.split_whitespace().collect();
    case.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 88, "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": allowed, "action": "SCMP_ACT_ALLOW"}],
    });
    assert_eq!(call(case, libc::SYS_getpgid, &[0])?["error"], 88);
    assert_eq!(call(case, libc::SYS_mount, &[])?["error"], 88);
    assert!(call(case, libc::SYS_getppid, &[])?["ok"].is_i64());
    Ok(())
}

fn seccomp_unknown(case: &mut Case) -> Outcome {
    let names = json!(["no_such_call", "getpgid", "nor_this"]);
    case.config["linux"]["seccomp"] = profile(json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 77}));
    assert_eq!(call(case, libc::SYS_getpgid, &[0])?["error"], 77);
    Ok(())
}

fn seccomp_privileged(case: &mut Case) -> Outcome {
    case.config["process"]["noNewPrivileges"] = false.into();
    case.config["linux"]["seccomp"] = filter("getpgid", "SCMP_ACT_ERRNO", json!(77));
    assert_eq!(call(case, libc::SYS_getpgid, &[0])?["error"], 77);
    let report = case.args(&["/probe"]).report()?;
    assert_eq!((&report["no_new_privs"], &report["seccomp"]), (&json!(false), &json!("2")));
    Ok(())
}

fn seccomp_architectures(case: &mut Case) -> Outcome {
    let mut seccomp = filter("getpgid", "SCMP_ACT_ERRNO", json!(77));
    seccomp["architectures"] = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    case.config["linux"]["seccomp"] = seccomp;
    assert_eq!(call(case, libc::SYS_getpgid, &[0])?["error"], 77);
    Ok(())
}

fn no_seccomp(case: &mut Case) -> Outcome {
    let own = fs::read_to_string("/proc/self/status")?;
    let outside = own.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(str::trim);
    assert_eq!(case.report()?["seccomp"].as_str(), outside);
    Ok(())
}

fn masked_file(case: &mut Case) -> Outcome {
    case.bundle.file("home/secret", "treasure")?;
    config::add(&mut case.config, "/linux/maskedPaths", json!("/home/secret"));
    assert_eq!(case.deed(&["read", "/home/secret"])?, json!({"ok": ""}));
    assert_eq!(case.deed(&["stat", "/home/secret"])?["ok"]["type"], "char");
    case.deed(&["write", "/home/secret", "overwritten"])?;
    assert_eq!(fs::read_to_string(case.bundle.inside("home/secret"))?, "treasure");
    Ok(())
}

fn masked_directory(case: &mut Case) -> Outcome {
    case.bundle.directory("home/hold")?;
    case.bundle.file("home/hold/secret", "treasure")?;
    config::add(&mut case.config, "/linux/maskedPaths", json!("/home/hold"));
    assert_eq!(case.deed(&["list", "/home/hold"])?, json!({"ok": []}));
    assert_eq!(case.deed(&["write", "/home/hold/new", "x"])?["error"], libc::EROFS);
    Ok(())
}

fn masked_missing(case: &mut Case) -> Outcome {
    config::add(&mut case.config, "/linux/maskedPaths", json!("/no/such/path"));
    assert_eq!(case.deed(&["stat", "/no/such/path"])?["error"], libc::ENOENT);
    Ok(())
}

fn read_only_path(case: &mut Case) -> Outcome {
    case.bundle.file("home/chart", "coast")?;
    case.bundle.directory("home/hold")?;
    config::add(&mut case.config, "/linux/readonlyPaths", json!("/home/chart"));
    config::add(&mut case.config, "/linux/readonlyPaths", json!("/home/hold"));
    assert_eq!(case.deed(&["write", "/home/chart", "x"])?["error"], libc::EROFS);
    assert_eq!(case.deed(&["write", "/home/hold/x", "x"])?["error"], libc::EROFS);
    assert_eq!(case.deed(&["read", "/home/chart"])?["ok"], "coast");
    assert!(case.deed(&["write", "/home/free", "x"])?["error"].is_null());
    Ok(())
}

fn read_only_missing(case: &mut Case) -> Outcome {
    config::add(&mut case.config, "/linux/readonlyPaths", json!("/no/such/path"));
    case.report().map(drop)
}

fn proc_sys(case: &mut Case) -> Outcome {
    assert_eq!(case.deed(&["write", "/proc/sys/kernel/domainname", "x"])?["error"], libc::EROFS);
    assert_eq!(case.deed(&["read", "/proc/keys"])?["ok"], "");
    Ok(())
}

fn host_processes(case: &mut Case) -> Outcome {
    let report = case.report()?;
    assert_eq!((&report["processes"], &report["pid"]), (&json!([1]), &json!(1)));
    Ok(())
}

fn no_mknod(case: &mut Case) -> Outcome {
    assert_eq!(case.deed(&["mknod", "/home/node", "1", "3"])?["error"], libc::EPERM);
    assert!(!case.bundle.inside("home/node").exists());
    Ok(())
}
