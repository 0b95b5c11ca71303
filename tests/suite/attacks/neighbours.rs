//! Attacks by processes that the runtime's own stands beside for a moment: those of a container whose namespaces another one joins, and
//! hooks that are programs of the image. What they want is the runtime itself: its file, its memory, the host behind it.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use serde_json::json;

use super::super::case::{Case, MARK};
use super::super::need::Need::{Ferry, Peer, Root, Tool};
use super::super::scenario::{Outcome, Scenario, scenario};
use super::hash;
use super::processes::under_attack;
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("the_runtime_through_a_shared_pid_namespace", &[Root], executable),
    scenario("newcomers_of_a_shared_pid_namespace_cannot_be_looked_into", &[Root], newcomers),
    scenario(
        "newcomers_of_a_shared_user_namespace_cannot_be_looked_into",
        &[Root, Peer("runc", "1.1.5: no access to the root directory")],
        newcomers_of_user,
    ),
    scenario("who_waits_for_start_has_the_programs_rights_and_no_file_of_the_runtimes", &[], waiting),
    scenario("who_joins_a_user_namespace_cannot_be_looked_into", &[], joining),
    scenario(
        "groups_of_the_caller_stay_outside_of_a_user_namespace",
        &[Root, Tool("unshare"), Tool("setpriv")],
        groups,
    ),
    scenario("the_runtime_through_a_script_as_a_hook", &[Ferry], hook_script),
    scenario("the_runtime_through_a_hook_of_the_image", &[Ferry], hook),
];

/// Another container comes into the namespaces of the case's own, and ends at once.
fn visited(case: &mut Case, kinds: &[&str]) -> Outcome {
    let pid = case.pid()?;
    let mine = case.config.clone();
    for kind in kinds {
        config::join_namespace(&mut case.config, kind, &format!("/proc/{pid}/ns/{kind}"));
    }
    if kinds.contains(&"user") {
        for maps in ["uidMappings", "gidMappings"] {
            case.config["linux"][maps].take();
        }
    }
    let bundle = case.args(&["/probe", "exit", "0"]).write_config()?;
    case.config = mine;
    let id = format!("{}-visitor", case.id);
    case.call(&["run", "--bundle", &bundle, &id]).map(drop)
}

/// As CVE-2019-5736, with no more than a container has by itself.
fn executable(case: &mut Case) -> Outcome {
    let runtime = case.stage.runtime.path.clone();
    let before = hash(&runtime)?;
    let told = under_attack(case, &["overwrite-executables"], |case| visited(case, &["pid"]))?;
    assert_eq!((&told["held"], hash(&runtime)?), (&json!(0), before), "{told}");
    Ok(())
}

fn looked_into(case: &mut Case, kinds: &[&str]) -> Outcome {
    let mark = format!("{}=", super::super::case::MARK);
    let told = under_attack(case, &["raid", &mark], |case| visited(case, kinds))?;
    assert!(told["seen"].as_u64() > Some(0), "nobody was met: {told}");
    assert_eq!(told["loot"], json!({}));
    Ok(())
}

/// As CVE-2016-9962, and the one that comes has not even joined what is there already.
fn newcomers(case: &mut Case) -> Outcome {
    looked_into(case, &["pid"])
}

/// Everybody who comes is attached to: in a user namespace there is every right over whoever is in it.
fn attached(case: &mut Case, deed: fn(&mut Case) -> Outcome) -> Outcome {
    config::capabilities(&mut case.config, &["CAP_SYS_PTRACE"]);
    let told = under_attack(case, &["trace-newcomers"], deed)?;
    // What has executed the program's memory file, or ended meanwhile, has nothing of the runtime any more.
    let is_past = |exe: &String| ["", "/probe"].contains(&exe.as_str()) || exe.starts_with("/memfd:");
    assert!(
        told["seen"].as_object().is_some_and(|seen| seen.contains_key("/probe") && seen.keys().all(is_past)),
        "{told}"
    );
    Ok(())
}

/// One that was stopped in the middle may end as it likes.
fn newcomers_of_user(case: &mut Case) -> Outcome {
    super::super::namespaces::mapped(case, 100_000)?;
    attached(case, |case| visited(case, &["user", "pid"]))
}

/// Whoever may attach to it, a neighbour in its pid namespace with CAP_SYS_PTRACE, is to gain nothing by that.
fn waiting(case: &mut Case) -> Outcome {
    let by_root = nix::unistd::geteuid().is_root();
    config::capabilities(&mut case.config, &["CAP_KILL"]);
    if by_root {
        case.config["process"]["user"] = json!({"uid": 4711, "gid": 4712});
    }
    case.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
    ]});
    // Without them it takes a right to install the filter, which is to be gone by then.
    case.config["process"]["noNewPrivileges"] = false.into();
    let mut lines = case.args(&["/probe"]).create()?;
    let pid = case.pid()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let row = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned();
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        let has = u64::from_str_radix(&row(set), 16)?;
        assert_eq!(has & !(1 << 5), 0, "{set} {has:x}");
    }
    assert_eq!(row("Seccomp:"), "2");
    if by_root {
        assert_eq!((row("Uid:").as_str(), row("Gid:").as_str()), ("4711\t4711\t4711\t4711", "4712\t4712\t4712\t4712"));
        let executed = std::fs::metadata(format!("/proc/{pid}/exe"))?;
        let runtime = std::fs::metadata(&case.stage.runtime.path)?;
        assert_ne!((executed.dev(), executed.ino()), (runtime.dev(), runtime.ino()));
    }
    let id = case.id.clone();
    case.call(&["start", &id])?.success()?;
    let told: serde_json::Value = serde_json::from_str(&lines.until("capabilities")?)?;
    // What waited with all signals blocked does not leave them so.
    assert_eq!(told["signals"]["blocked"], "0000000000000000", "{told}");
    Ok(())
}

/// An ordinary user's containers have a user namespace, and his runtime has no more rights than they.
fn joining(case: &mut Case) -> Outcome {
    if nix::unistd::geteuid().is_root() {
        super::super::namespaces::mapped(case, 100_000)?;
    }
    attached(case, |case| case.exec(&[], &["/probe", "exit", "0"]).map(drop))
}

/// As CVE-2019-5736: the hook is a script, and what runs it the runtime.
fn hook_script(case: &mut Case) -> Outcome {
    case.bundle.program("home/script", "#!/proc/self/exe\n")?;
    case.config["hooks"] = json!({"startContainer": [{"path": "/home/script", "args": ["script", "--version"]}]});
    let said = case.run()?.failure()?.stderr;
    // What a hook says is told with its failure, and this would be the runtime.
    assert!(!said.contains("unknown command"), "{said}");
    Ok(())
}

/// A user namespace may deny that groups are given up inside.
fn groups(case: &mut Case) -> Outcome {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--setgroups", "deny", "sh", "-c", "echo ready; exec sleep 60"]);
    let mut holder = command.env(MARK, &case.directory).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    BufReader::new(holder.stdout.take().ok_or("no output")?).read_line(&mut String::new())?;
    config::join_namespace(&mut case.config, "user", &format!("/proc/{}/ns/user", holder.id()));
    let (bundle, id) = (case.args(&["/probe", "report"]).write_config()?, case.id.clone());
    let runtime = case.command(&["run", "--bundle", &bundle, &id]);
    let mut command = Command::new("setpriv");
    command.args(["--groups", "4,4242"]).arg(runtime.get_program()).args(runtime.get_args()).stdin(Stdio::null());
    let report = case.finish(&mut command)?.success()?.json()?;
    holder.kill()?;
    holder.wait()?;
    assert_eq!(report["groups"], json!([]));
    Ok(())
}

/// A hook's parent is the runtime, which has no more rights than the hook by then.
fn hook(case: &mut Case) -> Outcome {
    let said = case.path("hook.out");
    std::fs::write(&said, "")?;
    case.config["annotations"]["run.oci.hooks.stdout"] = said.as_str().into();
    let args = ["probe", "overwrite-executables", "0.2"];
    case.config["hooks"] = json!({"startContainer": [{"path": "/probe", "args": args}]});
    case.args(&["/probe", "exit", "0"]).run()?.success()?;
    let said = std::fs::read_to_string(&said)?;
    assert!(said.contains("\"held\":0"), "{said}");
    Ok(())
}
