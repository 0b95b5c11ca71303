//! A second process in a running container: what it is given, what it shares, and what is refused.

use std::fs;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::checkpoint_freezer::path_with_criu;
use super::need::Need::{Criu, Ferry, Peer, Root};
use super::output::{self, Lines};
use super::pseudo_terminal::{ConsoleSocket, Terminal};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("arguments_and_exit_code", &[], exit_code),
    scenario("death_by_a_signal_is_128_and_its_number", &[], exit_signal),
    scenario("it_is_in_the_containers_namespaces", &[], namespaces),
    scenario("it_is_in_the_containers_user_namespace", &[], user_namespace),
    scenario("standard_streams", &[], streams),
    scenario("user_by_number", &[Root], user),
    scenario("user_names_are_not_looked_up", &[Root], user_name),
    scenario("additional_groups", &[Root, Peer("crun", "1.8.1: no such flag")], additional_gids),
    scenario("cwd_and_env", &[Peer("crun", "1.8.1: replaces the environment")], cwd_and_env),
    scenario(
        "a_capability_is_added",
        &[Root, Peer("runc", "1.1.5: adds ambient too"), Peer("crun", "1.8.1: replaces the set")],
        capability,
    ),
    scenario("no_inheritable_capabilities", &[Root], inheritable),
    scenario("no_new_privileges", &[], no_new_privs),
    scenario(
        "process_from_a_file",
        &[Peer("runc", "1.1.5: no umask"), Peer("crun", "1.8.1: no oomScoreAdj")],
        process_file,
    ),
    scenario(
        "process_is_like_the_containers_own",
        &[Peer("runc", "1.1.5: no umask"), Peer("crun", "1.8.1: no umask")],
        like_the_first,
    ),
    scenario("a_process_file_is_bound_as_the_container_is", &[Root, Ferry], process_bounds),
    scenario("rlimits_of_a_process_file", &[Peer("runc", "1.1.5: Go raises RLIMIT_NOFILE")], process_rlimits),
    scenario("detach_and_pid_file", &[], detach),
    scenario(
        "a_program_that_never_ran_has_no_pid_file",
        &[Peer("runc", "1.1.5: takes a script without its interpreter for run")],
        no_pid_file,
    ),
    scenario("no_stray_descriptors", &[], descriptors),
    scenario("preserve_fds_passes_exactly_that_many", &[], preserve_fds),
    scenario("a_terminal_of_its_own", &[], terminal),
    scenario("console_socket_receives_a_terminal", &[], console_socket),
    scenario("seccomp_filters_it_too", &[], seccomp),
    scenario("a_missing_program_is_127_or_an_error", &[], missing_program),
    scenario("a_program_that_is_not_executable", &[], not_executable),
    scenario("a_missing_cwd_is_refused_or_made", &[], missing_cwd),
    scenario("into_a_stopped_container_is_refused", &[], stopped),
    scenario("into_a_created_container", &[], created),
    scenario("into_a_container_that_is_being_made_is_refused", &[Ferry], being_made),
    scenario("into_a_container_that_is_being_restored_is_refused", &[Ferry, Root, Criu], being_restored),
    scenario("many_at_once", &[], many),
    scenario("it_dies_with_the_container", &[], dies_with_container),
];

fn exit_code(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    for code in [0, 3, 254] {
        assert_eq!(case.exec(&[], &["/probe", "exit", &code.to_string()])?.code, code);
    }
    let report = case.exec(&[], &["/probe", "report", "--flag", "a b"])?.success()?.json()?;
    assert_eq!(report["args"], json!(["/probe", "report", "--flag", "a b"]));
    Ok(())
}

fn exit_signal(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let end = case.exec(&[], &["/probe", "kill-self", "9"])?;
    assert_eq!(end.code, 137);
    Ok(())
}

fn namespaces(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let report = case.exec(&[], &["/probe"])?.success()?.json()?;
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "uts", "user"] {
        let link = fs::read_link(format!("/proc/{}/ns/{name}", case.pid()?))?;
        assert_eq!(report["namespaces"][name].as_str(), link.to_str(), "{name}");
    }
    assert_eq!(report["hostname"], "ship");
    let processes = report["processes"].as_array().cloned().unwrap_or_default();
    assert_eq!(processes, [json!(1), report["pid"].clone()]);
    Ok(())
}

fn user_namespace(case: &mut Case) -> Outcome {
    if nix::unistd::geteuid().is_root() {
        config::user_namespace(&mut case.config, (100_000, 100_000), 65536);
        case.bundle.give_to(100_000)?;
    }
    case.start_waiting()?;
    let report = case.exec(&[], &["/probe"])?.success()?.json()?;
    assert_eq!((&report["uid"]["effective"], &report["gid"]["effective"]), (&json!(0), &json!(0)));
    let of_first = fs::read_to_string(format!("/proc/{}/uid_map", case.pid()?))?;
    let numbers: Vec<u64> = of_first.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(report["uid_map"], json!([numbers]));
    assert_eq!(report["capabilities"]["effective"], config::CAPABILITIES_MASK);
    Ok(())
}

fn streams(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let input = case.directory.join("input");
    fs::write(&input, "through the wall")?;
    let mut command = case.command(&["exec", &case.id, "/probe", "echo"]);
    let end = case.finish(command.stdin(fs::File::open(&input)?))?.success()?;
    assert_eq!(end.stdout, "through the wall");
    let end = case.exec(&[], &["/probe", "complain", "a", "b"])?.success()?;
    assert_eq!((end.stdout.as_str(), end.stderr.as_str()), ("", "a b\n"));
    Ok(())
}

fn user(case: &mut Case) -> Outcome {
    case.config["process"]["user"] = json!({"uid": 5, "gid": 6});
    case.start_waiting()?;
    for (flag, uid, gid) in
        [("1000", 1000, 6), ("1000:1001", 1000, 1001), ("0", 0, 6), ("0:0", 0, 0), ("1001", 1001, 6)]
    {
        if case.stage.runtime.name != "ferry" && !flag.contains(':') {
            // runc and crun keep or reset the group here; both have done either.
            let report = case.exec(&["--user", flag], &["/probe"])?.success()?.json()?;
            assert_eq!(report["uid"]["effective"], uid);
            continue;
        }
        let report = case.exec(&["--user", flag], &["/probe"])?.success()?.json()?;
        for which in ["real", "effective", "saved"] {
            assert_eq!((&report["uid"][which], &report["gid"][which]), (&json!(uid), &json!(gid)), "{flag} {which}");
        }
    }
    Ok(())
}

/// CVE-2016-3697, CVE-2026-30892: the image's passwd maps the name `1001` to uid 0.
fn user_name(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let report = case.exec(&["--user", "1001"], &["/probe"])?.success()?.json()?;
    assert_eq!(report["uid"]["effective"], 1001);
    for name in ["ship", "1:", "1x", "-1", "4294967295"] {
        if name == "ship" || case.stage.runtime.name == "ferry" {
            case.exec(&["--user", name], &["/probe"])?.failure()?;
        }
    }
    Ok(())
}

fn additional_gids(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let report = case.exec(&["-g", "50", "-g", "60"], &["/probe"])?.success()?.json()?;
    assert_eq!(report["groups"], json!([50, 60]));
    Ok(())
}

fn cwd_and_env(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let report =
        case.exec(&["--cwd", "/home", "--env", "PORT=Kiel", "--env", "EMPTY="], &["/probe"])?.success()?.json()?;
    assert_eq!(report["cwd"], "/home");
    assert_eq!((&report["env"]["PORT"], &report["env"]["EMPTY"]), (&json!("Kiel"), &json!("")));
    assert_eq!(report["env"]["TERM"], "xterm");
    Ok(())
}

fn capability(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let report = case.exec(&["--cap", "CAP_SYS_TIME"], &["/probe"])?.success()?.json()?;
    let with_time = "0000000022000420";
    for set in ["effective", "permitted", "bounding"] {
        assert_eq!(report["capabilities"][set], with_time, "{set}");
    }
    assert_eq!(report["capabilities"]["inheritable"], "0000000000000000");
    Ok(())
}

/// CVE-2022-29162 and its like.
fn inheritable(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    for flags in [&[][..], &["--user", "1000:1000"]] {
        let report = case.exec(flags, &["/probe"])?.success()?.json()?;
        assert_eq!(report["capabilities"]["inheritable"], "0000000000000000");
        assert_eq!(report["capabilities"]["ambient"], "0000000000000000");
    }
    Ok(())
}

fn no_new_privs(case: &mut Case) -> Outcome {
    case.config["process"]["noNewPrivileges"] = false.into();
    case.start_waiting()?;
    let without = case.exec(&[], &["/probe"])?.success()?.json()?;
    let with = case.exec(&["--no-new-privs"], &["/probe"])?.success()?.json()?;
    assert_eq!((&without["no_new_privs"], &with["no_new_privs"]), (&json!(false), &json!(true)));
    Ok(())
}

/// A `process` object for `exec --process`, made from the configuration's own.
fn process(case: &Case, args: &[&str]) -> Value {
    let mut process = case.config["process"].clone();
    process["args"] = json!(args);
    process
}

fn exec_file(case: &mut Case, process: &Value) -> Result<Value, Failed> {
    let file = case.path("process.json");
    fs::write(&file, process.to_string())?;
    let id = case.id.clone();
    case.call(&["exec", "--process", &file, &id])?.success()?.json()
}

fn process_file(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let mut process = process(case, &["/probe", "report", "x"]);
    process["cwd"] = "/tmp".into();
    process["env"] = json!(["ONLY=this"]);
    process["oomScoreAdj"] = 900.into();
    process["user"]["umask"] = 0o27.into();
    let report = exec_file(case, &process)?;
    assert_eq!((&report["cwd"], &report["env"]["ONLY"]), (&json!("/tmp"), &json!("this")));
    assert_eq!((&report["env"]["TERM"], &report["umask"]), (&Value::Null, &json!("0027")));
    assert_eq!(report["oom_score_adj"], 900);
    assert_eq!(report["args"], json!(["/probe", "report", "x"]));
    Ok(())
}

fn like_the_first(case: &mut Case) -> Outcome {
    case.config["process"]["user"]["umask"] = 0o77.into();
    case.start_waiting()?;
    let report = case.exec(&[], &["/probe"])?.success()?.json()?;
    assert_eq!(report["umask"], "0077");
    assert_eq!(report["capabilities"]["effective"], config::CAPABILITIES_MASK);
    assert_eq!(report["capabilities"]["bounding"], config::CAPABILITIES_MASK);
    assert_eq!(report["no_new_privs"], true);
    Ok(())
}

fn process_rlimits(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let mut process = process(case, &["/probe"]);
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    assert_eq!(exec_file(case, &process)?["rlimits"]["RLIMIT_NOFILE"], json!({"soft": 100, "hard": 200}));
    Ok(())
}

/// What a file leaves out of what binds a process is the container's; what it names is its own.
fn process_bounds(case: &mut Case) -> Outcome {
    case.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    case.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    case.start_waiting()?;
    let whole = process(case, &["/probe"]);
    let mut bare = whole.clone();
    for field in ["capabilities", "rlimits", "ioPriority", "noNewPrivileges"] {
        bare.as_object_mut().ok_or("no process")?.remove(field);
    }
    let (report, alike) = (exec_file(case, &bare)?, exec_file(case, &whole)?);
    for field in ["capabilities", "rlimits", "io_priority"] {
        assert_eq!(report[field], alike[field], "{field}");
    }
    assert_eq!(report["rlimits"]["RLIMIT_NOFILE"], json!({"soft": 100, "hard": 200}));
    assert_eq!(report["capabilities"]["effective"], config::CAPABILITIES_MASK);
    assert_eq!(report["no_new_privs"], false);
    bare["capabilities"] = json!({});
    assert_eq!(exec_file(case, &bare)?["capabilities"]["effective"], "0000000000000000");
    Ok(())
}

fn detach(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (id, file) = (case.id.clone(), case.path("pid"));
    let args = ["exec", "--detach", "--pid-file", &file, &id, "/probe", "sleep", "forever"];
    case.begin(&args)?.until("ready")?;
    let pid = fs::read_to_string(&file)?;
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/cmdline"))?, "/probe\0sleep\0forever\0");
    assert_ne!(pid, case.pid()?.to_string());
    Ok(())
}

fn no_pid_file(case: &mut Case) -> Outcome {
    case.bundle.program("home/script", "#!/no/such/interpreter\n")?;
    case.start_waiting()?;
    let file = case.path("pid");
    for program in ["/no/such/program", "/home/script"] {
        case.exec(&["--detach", "--pid-file", &file], &[program])?.failure()?;
        assert!(!std::path::Path::new(&file).exists(), "{program}");
    }
    Ok(())
}

fn descriptors(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let report = case.exec(&[], &["/probe"])?.success()?.json()?;
    let numbers: Vec<_> =
        report["descriptors"].as_object().into_iter().flat_map(|table| table.keys().cloned()).collect();
    assert_eq!(numbers, ["0", "1", "2"]);
    Ok(())
}

fn preserve_fds(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    let command = case.command(&["exec", "--preserve-fds", "2", &id, "/probe"]);
    let mut command = output::inheriting(&command, &case.directory, 3..7)?;
    let report = case.finish(&mut command)?.success()?.json()?;
    assert_eq!(output::inherited(&report), ["3", "4"]);
    Ok(())
}

fn terminal(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    let terminal = Terminal::open(&case.stage.probe, 33, 99)?;
    let mut child = terminal.spawn(&case.command(&["exec", "--tty", &id, "/probe", "window-wait", "44", "88"]))?;
    let mut lines = terminal.lines(case.patience())?;
    lines.until("window 33 99")?;
    terminal.resize(44, 88)?;
    lines.until("window 44 88")?;
    assert!(output::wait(&mut child, case.patience())?.success());
    let mut child = terminal.spawn(&case.command(&["exec", "-t", &id, "/probe"]))?;
    let report: Value = serde_json::from_str(&lines.until("is_terminal")?)?;
    output::wait(&mut child, case.patience())?;
    assert_eq!(report["terminal"]["is_terminal"], json!([true, true, true]));
    assert_eq!(report["terminal"]["controlling"], true);
    Ok(())
}

fn console_socket(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (id, path) = (case.id.clone(), case.directory.join("console"));
    let socket = ConsoleSocket::bind(&path)?;
    let path = path.display().to_string();
    case.call(&["exec", "--detach", "--tty", "--console-socket", &path, &id, "/probe", "say", "ahoy"])?.success()?;
    let master = socket.receive(case.patience())?;
    output::Lines::new(master, case.patience()).until("ahoy").map(drop)
}

fn seccomp(case: &mut Case) -> Outcome {
    case.config["linux"]["seccomp"] = super::security::filter("getpgid", "SCMP_ACT_ERRNO", json!(99));
    case.start_waiting()?;
    let call = libc::SYS_getpgid.to_string();
    let answer = case.exec(&[], &["/probe", "syscall", &call, "0"])?.success()?.json()?;
    assert_eq!(answer["error"], 99);
    Ok(())
}

fn missing_program(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let end = case.exec(&[], &["/no/such/program"])?.failure()?;
    assert!(end.stderr.contains("/no/such/program"), "{}", end.stderr);
    assert!([1, 127, 255].contains(&end.code), "{}", end.code);
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}

fn not_executable(case: &mut Case) -> Outcome {
    case.bundle.file("home/plain", "text")?;
    case.start_waiting()?;
    let end = case.exec(&[], &["/home/plain"])?.failure()?;
    assert!([1, 126, 255].contains(&end.code), "{}", end.code);
    Ok(())
}

fn missing_cwd(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let end = case.exec(&["--cwd", "/no/such/place"], &["/probe"])?;
    // runc makes a missing working directory at create, and refuses it here; what must not happen is to run elsewhere.
    assert!(end.code != 0 || end.json()?["cwd"] == "/no/such/place", "{}", end.stdout);
    Ok(())
}

fn stopped(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    case.kill_and_wait("KILL")?;
    let end = case.exec(&[], &["/probe"])?.failure()?;
    assert!(end.stderr.contains("stopped") || end.stderr.contains("not running"), "{}", end.stderr);
    Ok(())
}

fn created(case: &mut Case) -> Outcome {
    case.args(&["/probe", "sleep", "forever"]).create()?;
    assert_eq!(case.exec(&[], &["/probe", "exit", "4"])?.code, 4);
    assert_eq!(case.state()?["status"], "created");
    Ok(())
}

/// While hooks of the host run, the root of its mount namespace is still the host's.
fn being_made(case: &mut Case) -> Outcome {
    let (state, id) = (case.state_root().display().to_string(), case.id.clone());
    let path = case.stage.runtime.path.clone();
    let args = ["ferry", "--root", &state, "exec", &id, "/bin/true"];
    case.config["hooks"] = json!({"createRuntime": [{"path": path, "args": args}]});
    for verb in ["create", "run"] {
        let bundle = case.args(&["/probe", "exit", "0"]).write_config()?;
        let said = case.call(&[verb, "--bundle", &bundle, &id])?.failure()?.stderr;
        assert!(said.contains(&format!("cannot exec in container {id}: it is being created")), "{verb}: {said}");
        assert_eq!(case.leftovers()?, Vec::<String>::new());
    }
    Ok(())
}

/// A process that joined it stood in the host's root filesystem: the first process that is noted is CRIU until there is another.
fn being_restored(case: &mut Case) -> Outcome {
    let (id, said, images) = (case.id.clone(), case.path("said"), case.path("images"));
    let exec = format!("{} --root {} exec {id} /probe", case.stage.runtime.path.display(), case.state_root().display());
    let hook = format!("{exec} >>{said} 2>&1 || exit 0");
    case.config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]});
    let lines = case.args(&["/probe", "sleep", "forever"]).start()?;
    case.call(&["checkpoint", "--image-path", &images, &id])?.success()?;
    drop(lines);
    fs::write(&said, "")?;
    let path =
        path_with_criu(case, |criu| format!("#!/bin/sh\n{exec} >>{said} 2>&1 3>&-\nexec {} \"$@\"\n", criu.display()))?;
    let bundle = case.bundle.path().display().to_string();
    let mut restore = case.command(&["restore", "--detach", "--image-path", &images, "--bundle", &bundle, &id]);
    restore.env("PATH", path);
    // Of the kind that its streams were.
    let (lines, pipe) = Lines::pipe(case.patience())?;
    restore.stdout(pipe).stderr(fs::File::create(case.directory.join("errors"))?);
    let ended = output::wait(&mut restore.spawn()?, case.patience())?;
    drop((restore, lines));
    let said = fs::read_to_string(said)?;
    assert!(ended.success(), "{said} {}", fs::read_to_string(case.directory.join("errors"))?);
    let refused = said.matches(&format!("cannot exec in container {id}: it is being created")).count();
    assert!(refused >= 2 && !said.contains("capabilities"), "{said}");
    case.exec(&[], &["/probe"])?.success().map(drop)
}

fn many(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    let started: Result<Vec<_>, _> =
        (0..8).map(|number: i32| case.spawn(&["exec", &id, "/probe", "exit", &number.to_string()])).collect();
    for (number, (mut child, _lines)) in started?.into_iter().enumerate() {
        assert_eq!(output::code(output::wait(&mut child, case.patience())?), i32::try_from(number)?);
    }
    Ok(())
}

fn dies_with_container(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    let (mut child, mut lines) = case.spawn(&["exec", &id, "/probe", "sleep", "forever"])?;
    lines.until("ready")?;
    case.kill_and_wait("KILL")?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 137);
    Ok(())
}
