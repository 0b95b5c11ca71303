//! SCMP_ACT_NOTIFY with a real agent: what it is handed, and that its answers are what the container gets.

use std::process::{Child, Command, Stdio};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::checkpoint::{CRIU, images};
use super::need::Need::{Ferry, Peer, Root};
use super::output::Lines;
use super::scenario::{Outcome, Scenario, scenario};
use super::security::profile;

pub const SCENARIOS: &[Scenario] = &[
    scenario("answers_a_call_of_run", &[Peer("crun", "1.8.1 sends another state")], of_run),
    scenario("answers_a_call_after_start", &[Peer("crun", "1.8.1 sends another state")], of_start),
    scenario("is_told_of_a_process_that_joins", &[Ferry], of_exec),
    scenario("answers_without_no_new_privileges", &[Peer("crun", "1.8.1 sends another state")], privileged),
    scenario(
        "is_asked_about_sending_by_run",
        &[Root, Peer("crun", "1.8.1 sends another state"), Peer("runc", "1.1.5 hangs")],
        |case| {
            asking_about(case, SENDING);
            met_in_run(case)
        },
    ),
    scenario("is_asked_about_sending_after_start", &[Root, Peer("crun", "1.8.1 sends another state")], |case| {
        asking_about(case, SENDING);
        met_after_start(case)
    }),
    scenario("is_asked_about_sending_by_exec", &[Root, Ferry], |case| {
        asking_about(case, SENDING);
        met_in_exec(case)
    }),
    scenario("that_is_missing_keeps_run_from_running", &[], missing_at_run),
    scenario("that_is_missing_keeps_start_from_starting", &[Ferry], missing_at_start),
    scenario("is_in_the_way_of_a_checkpoint", CRIU, not_saved),
    scenario("of_another_socket_type_is_refused", &[], datagrams),
    scenario("is_not_asked_for_by_a_profile_that_does_not_notify", &[], unused),
    scenario(
        "metadata_without_an_agent_is_refused",
        &[Peer("crun", "no check"), Peer("runc", "no check")],
        metadata_alone,
    ),
];

/// What the agent answers.
const ERRNO: i32 = 77;

/// What agents that translate addresses are asked about, among it the call that descriptors are handed over with.
const SENDING: &[&str] = &["getpgid", "connect", "sendmsg", "sendto", "setsockopt", "recvmsg", "recvfrom"];

/// An agent of the host; killed when dropped.
struct Agent {
    child: Child,
    lines: Lines,
}

impl Agent {
    fn start(case: &Case) -> Result<Self, Failed> {
        let (mut lines, pipe) = Lines::pipe(case.patience())?;
        let mut command = Command::new(&case.stage.probe);
        command.args(["agent", &case.path("agent"), &ERRNO.to_string()]).stdin(Stdio::null()).stdout(pipe);
        let child = command.spawn()?;
        drop(command);
        lines.until("ready")?;
        Ok(Self { child, lines })
    }

    /// What it was handed over its next connection.
    fn met(&mut self) -> Result<Value, Failed> {
        Ok(serde_json::from_str(&self.lines.until("met")?)?)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has seen by then.
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

/// A profile that asks the agent about getpgid, which nothing but the test calls.
fn asking(case: &mut Case) {
    asking_about(case, &["getpgid"]);
}

fn asking_about(case: &mut Case, names: &[&str]) {
    let mut seccomp = profile(json!({"names": names, "action": "SCMP_ACT_NOTIFY"}));
    seccomp["listenerPath"] = case.path("agent").into();
    seccomp["listenerMetadata"] = "berth 7".into();
    case.config["linux"]["seccomp"] = seccomp;
    case.config["annotations"] = json!({"org.example.port": "Kiel"});
    case.args(&["/probe", "syscall", &libc::SYS_getpgid.to_string(), "0"]);
}

/// One message with one descriptor, the filter's, and then the end of the connection; the message is the container process
/// state. Answers the process id in it.
fn is_process_state(case: &Case, met: &Value) -> Result<u64, Failed> {
    assert_eq!((&met["descriptors"], &met["after"]), (&json!(1), &json!(0)), "{met}");
    assert_eq!(met["first"], "anon_inode:seccomp notify", "{met}");
    let told = &met["met"];
    assert!(told["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.")), "{told}");
    assert_eq!((&told["fds"], &told["metadata"]), (&json!(["seccompFd"]), &json!("berth 7")), "{told}");
    let state = &told["state"];
    assert_eq!((&state["id"], &state["bundle"]), (&json!(case.id), &json!(case.bundle.path())), "{told}");
    assert_eq!(state["annotations"], json!({"org.example.port": "Kiel"}), "{told}");
    assert!(state["ociVersion"].is_string() && state["status"].is_string(), "{told}");
    told["pid"].as_u64().filter(|pid| *pid > 0).ok_or_else(|| format!("no pid in {told}").into())
}

fn of_run(case: &mut Case) -> Outcome {
    asking(case);
    met_in_run(case)
}

fn met_in_run(case: &mut Case) -> Outcome {
    let mut agent = Agent::start(case)?;
    assert_eq!(case.run()?.success()?.json()?["error"], ERRNO);
    let met = agent.met()?;
    let pid = is_process_state(case, &met)?;
    assert_eq!(met["met"]["state"]["pid"], pid);
    let asked: Value = serde_json::from_str(&agent.lines.until("asked")?)?;
    assert_eq!((&asked["asked"], &asked["by"]), (&json!(libc::SYS_getpgid), &json!(pid)));
    Ok(())
}

fn of_start(case: &mut Case) -> Outcome {
    asking(case);
    met_after_start(case)
}

fn met_after_start(case: &mut Case) -> Outcome {
    let mut agent = Agent::start(case)?;
    let mut lines = case.create()?;
    let (id, pid) = (case.id.clone(), case.pid()?);
    case.call(&["start", &id])?.success()?;
    let met = agent.met()?;
    assert_eq!(is_process_state(case, &met)?, u64::from(pid));
    let answer: Value = serde_json::from_str(&lines.until("error")?)?;
    assert_eq!(answer["error"], ERRNO);
    Ok(())
}

/// It is said before anything is stopped, and of a migration before anybody is asked to take it.
fn not_saved(case: &mut Case) -> Outcome {
    asking(case);
    let mut agent = Agent::start(case)?;
    case.start_waiting()?;
    is_process_state(case, &agent.met()?)?;
    let (images, id) = (images(case), case.id.clone());
    for args in [
        &["checkpoint", "--leave-running", "--image-path", &images, &id][..],
        &["migrate", "--dry-run", &id, "ssh://nowhere"],
    ] {
        let said = case.call(args)?.failure()?.stderr;
        assert!(said.contains("CRIU cannot save the listener of a filter with SCMP_ACT_NOTIFY"), "{said}");
    }
    assert!(!std::fs::exists(&images)?, "it was begun");
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}

fn of_exec(case: &mut Case) -> Outcome {
    asking(case);
    met_in_exec(case)
}

fn met_in_exec(case: &mut Case) -> Outcome {
    let mut agent = Agent::start(case)?;
    case.start_waiting()?;
    let first = agent.met()?;
    let init = is_process_state(case, &first)?;
    // The agent serves one filter at a time: another one for the second.
    drop(agent);
    std::fs::remove_file(case.path("agent"))?;
    let mut agent = Agent::start(case)?;
    let number = libc::SYS_getpgid.to_string();
    assert_eq!(case.exec(&[], &["/probe", "syscall", &number, "0"])?.success()?.json()?["error"], ERRNO);
    let second = agent.met()?;
    let joined = is_process_state(case, &second)?;
    assert_ne!(joined, init);
    assert_eq!(second["met"]["state"]["pid"], init);
    assert_eq!(second["met"]["state"]["status"], "running");
    Ok(())
}

fn privileged(case: &mut Case) -> Outcome {
    case.config["process"]["noNewPrivileges"] = false.into();
    of_run(case)
}

fn missing_at_run(case: &mut Case) -> Outcome {
    asking(case);
    let end = case.args(&["/probe", "write", "/home/ran", "x"]).run()?.failure()?;
    assert!(end.stderr.contains("agent"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn missing_at_start(case: &mut Case) -> Outcome {
    asking(case);
    case.args(&["/probe", "sleep", "forever"]).create()?;
    let (id, pid) = (case.id.clone(), case.pid()?);
    let end = case.call(&["start", &id])?.failure()?;
    assert!(end.stderr.contains("failed to connect with seccomp agent"), "{}", end.stderr);
    case.wait_for(pid)?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn datagrams(case: &mut Case) -> Outcome {
    asking(case);
    let _socket = std::os::unix::net::UnixDatagram::bind(case.path("agent"))?;
    case.run()?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// Nobody listens at the path, and nobody is asked to.
fn unused(case: &mut Case) -> Outcome {
    asking(case);
    case.config["linux"]["seccomp"]["syscalls"][0]["action"] = "SCMP_ACT_ERRNO".into();
    let end = case.run()?.success()?;
    assert_eq!(end.json()?["error"], libc::EPERM);
    Ok(())
}

fn metadata_alone(case: &mut Case) -> Outcome {
    asking(case);
    case.config["linux"]["seccomp"]["syscalls"] = json!([]);
    case.config["linux"]["seccomp"]["listenerPath"] = Value::Null;
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("linux.seccomp.listenerMetadata"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}
