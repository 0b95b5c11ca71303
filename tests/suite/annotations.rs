//! Annotations that change what is done, and the label of mounts that one of them is about.

use std::fs;
use std::path::Path;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Ferry, Peer, Root, Tool};
use super::pseudo_terminal::ConsoleSocket;
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("what_hooks_print_goes_to_files", &[Peer("runc", "no such annotation")], hook_output),
    scenario("a_file_for_hooks_that_cannot_be_opened_is_named", &[Ferry], hook_output_missing),
    scenario(
        "the_callers_groups_are_kept",
        &[Root, Tool("setpriv"), Peer("runc", "no such annotation")],
        original_groups,
    ),
    scenario(
        "the_callers_groups_are_kept_in_a_user_namespace",
        &[Root, Tool("setpriv"), Peer("runc", "no such annotation")],
        original_groups_mapped,
    ),
    scenario("an_unknown_system_call_is_refused", &[Peer("runc", "no such annotation")], unknown_call),
    scenario("a_filter_in_base64", &[Peer("runc", "no such annotation")], raw_filter),
    scenario("a_filter_in_base64_that_is_none_is_refused", &[Ferry], no_filter),
    scenario("the_seccomp_agent_gets_the_listener", &[Peer("runc", "no such annotation")], seccomp_receiver),
    scenario("a_pidfd_is_sent", &[Peer("runc", "no such annotation")], pidfd_receiver),
    scenario("values_are_checked", &[Ferry], values),
    scenario("what_is_not_carried_out_is_warned_about", &[Ferry], unheeded),
    scenario("a_mount_label_is_applied_or_refused", &[Ferry], mount_label),
];

fn annotate(case: &mut Case, name: &str, value: &str) {
    case.config["annotations"][name] = json!(value);
}

/// Hooks of the host side run its shell, those inside the probe.
fn hook_output(case: &mut Case) -> Outcome {
    let (out, err) = (case.path("hooks.out"), case.path("hooks.err"));
    annotate(case, "run.oci.hooks.stdout", &out);
    annotate(case, "run.oci.hooks.stderr", &err);
    fs::write(&out, "before\n")?;
    let shell = |words: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", words]}]);
    case.config["hooks"] = json!({
        "createRuntime": shell("echo made; echo oh >&2"),
        "startContainer": [{"path": "/probe", "args": ["probe", "say", "inside"]}],
        "poststart": shell("echo started"),
        "poststop": shell("echo stopped; echo dear >&2"),
    });
    case.start_waiting()?;
    case.kill_and_wait("KILL")?;
    let id = case.id.clone();
    case.call(&["delete", &id])?.success()?;
    assert_eq!(fs::read_to_string(&out)?, "before\nmade\ninside\nstarted\nstopped\n");
    assert_eq!(fs::read_to_string(&err)?, "oh\ndear\n");
    Ok(())
}

fn hook_output_missing(case: &mut Case) -> Outcome {
    annotate(case, "run.oci.hooks.stdout", "/no/such/file");
    case.run()?.success()?;
    case.config["hooks"] = json!({"createRuntime": [{"path": "/bin/true"}]});
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("/no/such/file: ENOENT"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// The report of a container that is run by a caller with the groups 7 and 8.
fn report_with_groups(case: &mut Case) -> Result<Value, Failed> {
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let command = case.command(&["run", "--bundle", &bundle, &id]);
    let mut caller = std::process::Command::new("setpriv");
    caller.args(["--groups", "7,8", "--"]).arg(command.get_program()).args(command.get_args());
    case.finish(&mut caller)?.success()?.json()
}

fn original_groups(case: &mut Case) -> Outcome {
    case.config["process"]["user"]["additionalGids"] = json!([20]);
    assert_eq!(report_with_groups(case)?["groups"], json!([20]));
    annotate(case, "run.oci.keep_original_groups", "0");
    assert_eq!(report_with_groups(case)?["groups"], json!([20]));
    annotate(case, "run.oci.keep_original_groups", "1");
    assert_eq!(report_with_groups(case)?["groups"], json!([7, 8]));
    Ok(())
}

fn original_groups_mapped(case: &mut Case) -> Outcome {
    crate::rootfs_fixtures::config::user_namespace(&mut case.config, (100_000, 100_000), 65536);
    case.bundle.give_to(100_000)?;
    assert_eq!(report_with_groups(case)?["groups"], json!([]));
    annotate(case, "run.oci.keep_original_groups", "1");
    // They have no number inside, and are shown as the kernel shows all such groups.
    assert_eq!(report_with_groups(case)?["groups"], json!([65534, 65534]));
    Ok(())
}

fn unknown_call(case: &mut Case) -> Outcome {
    let rule = json!({"names": ["teleport"], "action": "SCMP_ACT_ERRNO"});
    case.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    case.run()?.success()?;
    annotate(case, "run.oci.seccomp_fail_unknown_syscall", "1");
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("teleport") || end.stderr.contains("syscalls[0].names[0]"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// One instruction of a filter as bytes.
fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Vec<u8> {
    [&code.to_ne_bytes()[..], &[jt, jf], &k.to_ne_bytes()].concat()
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let held = three.iter().fold(0u32, |held, byte| held << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let six = (held >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= three.len() { char::from(LETTERS[six]) } else { '=' });
        }
    }
    text
}

/// `getpriority` fails with E2BIG, which it never does by itself.
fn raw_filter(case: &mut Case) -> Outcome {
    let number = u32::try_from(libc::SYS_getpriority)?;
    let filter = [
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, number),
        instruction(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | libc::E2BIG.unsigned_abs()),
        instruction(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let call = number.to_string();
    // The profile is not looked at.
    case.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_KILL_PROCESS"});
    annotate(case, "run.oci.seccomp_bpf_data", &base64(&filter.concat()));
    assert_eq!(case.deed(&["syscall", &call, "0", "0"])?["error"], libc::E2BIG);
    Ok(())
}

fn no_filter(case: &mut Case) -> Outcome {
    annotate(case, "run.oci.seccomp_bpf_data", "!");
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("annotations.run.oci.seccomp_bpf_data: is not base64"), "{}", end.stderr);
    Ok(())
}

fn seccomp_receiver(case: &mut Case) -> Outcome {
    let path = case.directory.join("agent");
    let agent = ConsoleSocket::bind(&path)?;
    annotate(case, "run.oci.seccomp.receiver", &path.display().to_string());
    let rule = json!({"names": ["getpriority"], "action": "SCMP_ACT_NOTIFY"});
    case.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    case.start_waiting()?;
    assert_eq!(kind(&agent.receive(case.patience())?)?, "anon_inode:seccomp notify");
    Ok(())
}

/// What a descriptor is of.
fn kind(descriptor: &std::os::fd::OwnedFd) -> Result<String, Failed> {
    use std::os::fd::AsRawFd;
    Ok(fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))?.display().to_string())
}

fn pidfd_receiver(case: &mut Case) -> Outcome {
    let path = case.directory.join("watch");
    let watch = ConsoleSocket::bind(&path)?;
    annotate(case, "run.oci.pidfd_receiver", &path.display().to_string());
    case.start_waiting()?;
    let pidfd = watch.receive(case.patience())?;
    assert_eq!(super::flags::pid_of(&pidfd)?, case.pid()?);
    Ok(())
}

fn values(case: &mut Case) -> Outcome {
    for (name, value, said) in [
        ("run.oci.hooks.stdout", "log", "\"log\" is not an absolute path"),
        ("run.oci.seccomp.receiver", "", "\"\" is not an absolute path"),
        ("run.oci.mount_context_type", "label", "\"label\" is not one of context, fscontext, defcontext, rootcontext"),
    ] {
        case.config["annotations"] = json!({ name: value });
        let end = case.run()?.failure()?;
        assert!(end.stderr.contains(&format!("annotations.{name}: {said}")), "{}", end.stderr);
    }
    Ok(())
}

fn unheeded(case: &mut Case) -> Outcome {
    annotate(case, "run.oci.handler", "krun");
    annotate(case, "run.oci.systemd.subgroup", "");
    annotate(case, "run.oci.of_tomorrow", "1");
    let end = case.run()?.success()?;
    let warnings: Vec<&str> = end.stderr.lines().collect();
    assert!(warnings.len() == 1 && warnings[0].contains("run.oci.handler: ignored"), "{}", end.stderr);
    Ok(())
}

/// Where SELinux is in force the filesystems of the container have the label, and where it is not nobody is told that they
/// had.
fn mount_label(case: &mut Case) -> Outcome {
    let label = "system_u:object_r:container_file_t:s0:c1,c2";
    case.config["linux"]["mountLabel"] = json!(label);
    // Without a policy everything is labelled `kernel`, and no label means anything.
    let unlabelled =
        std::fs::read_to_string("/proc/self/attr/current").is_ok_and(|own| own.trim_end_matches('\0') == "kernel");
    if unlabelled || !Path::new("/sys/fs/selinux/enforce").exists() {
        let end = case.run()?.failure()?;
        assert!(
            end.stderr.contains("linux.mountLabel: ") && end.stderr.contains("does not run SELinux"),
            "{}",
            end.stderr
        );
        assert_eq!(case.leftovers()?, Vec::<String>::new());
        return Ok(());
    }
    let mounts = case.deed(&["read", "/proc/self/mountinfo"])?["ok"].as_str().unwrap_or_default().to_owned();
    let labelled = |place: &str| mounts.lines().any(|line| line.contains(place) && line.contains(label));
    assert!(labelled(" /dev ") && labelled(" /dev/shm ") && !labelled(" /proc "), "{mounts}");
    Ok(())
}
