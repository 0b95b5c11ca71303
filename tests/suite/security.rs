//! What a container may not do: system calls, hidden and read-only paths, and the host's own programs.

use std::fs;
use std::io::Read;
use std::path::Path;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Peer, Root};
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
    scenario(
        "masked_with_a_null_device_that_is_a_link",
        &[Root, Peer("runc", "1.1.5: loses the output")],
        masked_null_link,
    ),
    scenario("read_only_path_cannot_be_written", &[], read_only_path),
    scenario("read_only_path_that_is_missing", &[], read_only_missing),
    scenario("proc_sys_is_read_only_by_the_base_configuration", &[], proc_sys),
    scenario("the_runtime_is_not_overwritten_through_its_own_process", &[], own_executable),
    scenario("the_runtime_is_not_overwritten_through_exec", &[Peer("crun", "cannot run a script")], exec_executable),
    scenario("cwd_through_a_descriptor_of_the_host_is_refused", &[], descriptor_cwd),
    scenario("exec_cwd_through_a_descriptor_of_the_host_is_refused", &[], exec_descriptor_cwd),
    scenario("proc_that_is_a_link_in_the_image_is_refused", &[], proc_link),
    scenario("mount_over_proc_that_is_not_proc_is_refused", &[Peer("crun", "1.8.1 allows it")], fake_proc),
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

/// CVE-2025-31133. Without a tmpfs on /dev the image's own /dev/null would be what a masked file is covered with.
fn masked_null_link(case: &mut Case) -> Outcome {
    for destination in ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev"] {
        config::without_mount(&mut case.config, destination);
    }
    case.bundle.file("home/target", "the link's target")?;
    case.bundle.file("home/secret", "treasure")?;
    case.bundle.link("dev/null", "/home/target")?;
    config::add(&mut case.config, "/linux/maskedPaths", json!("/home/secret"));
    let end = case.args(&["/probe", "read", "/home/secret"]).run()?;
    assert!(end.code != 0 || end.json()? == json!({"ok": ""}), "{}", end.stdout);
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

/// A sum over a file's bytes that a change of any of them alters (FNV-1a).
fn hash(path: &Path) -> Result<u64, Failed> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// CVE-2019-5736. The program is the runtime itself, seen through the descriptor the kernel keeps of it; whatever becomes
/// of that container, a second one then writes to what it can reach.
fn own_executable(case: &mut Case) -> Outcome {
    let runtime = case.stage.runtime.path.clone();
    let before = hash(&runtime)?;
    let end = case.args(&["/proc/self/exe", "--version"]).run()?;
    assert_eq!(hash(&runtime)?, before);
    drop(end);
    Ok(())
}

fn exec_executable(case: &mut Case) -> Outcome {
    let runtime = case.stage.runtime.path.clone();
    let before = hash(&runtime)?;
    case.bundle.program("home/script", "#!/proc/self/exe\n")?;
    let mut lines = case.args(&["/probe", "overwrite-executables", "1.5"]).start()?;
    lines.until("ready")?;
    for _ in 0..20 {
        // It may fail or print a usage text: all that counts is the file.
        case.exec(&[], &["/home/script"])?;
        case.exec(&[], &["/probe", "exit", "0"])?;
    }
    let told: Value = serde_json::from_str(&lines.until("written")?)?;
    assert_eq!((&told["written"], hash(&runtime)?), (&json!(0), before), "{told}");
    Ok(())
}

/// CVE-2024-21626. A number that leads to a directory of the container itself does no harm; one of the host's does.
fn descriptor_cwd(case: &mut Case) -> Outcome {
    for number in 3..24 {
        case.config["process"]["cwd"] = format!("/proc/self/fd/{number}").into();
        let end = case.args(&["/probe", "list", "../../../../../.."]).run()?;
        assert!(!end.stdout.contains("ok") || !end.stdout.contains("\"home\""), "{number}: {}", end.stdout);
        assert!(end.code != 0, "{number}: {}", end.stdout);
    }
    Ok(())
}

fn exec_descriptor_cwd(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    for number in 3..24 {
        let end = case.exec(&["--cwd", &format!("/proc/self/fd/{number}")], &["/probe", "list", "."])?;
        assert!(end.code != 0, "{number}: {}", end.stdout);
    }
    Ok(())
}

/// CVE-2019-19921.
fn proc_link(case: &mut Case) -> Outcome {
    fs::remove_dir(case.bundle.inside("proc"))?;
    case.bundle.directory("home/elsewhere")?;
    case.bundle.link("proc", "/home/elsewhere")?;
    case.run()?.failure()?;
    assert_eq!(fs::read_dir(case.bundle.inside("home/elsewhere"))?.count(), 0);
    Ok(())
}

/// CVE-2019-16884.
fn fake_proc(case: &mut Case) -> Outcome {
    let fake = case.host_directory("fake")?;
    config::without_mount(&mut case.config, "/proc");
    config::add(&mut case.config, "/mounts", config::bind(&fake, "/proc", &["bind"]));
    case.run()?.failure().map(drop)
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
