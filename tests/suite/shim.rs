//! containerd's native shim, called as containerd calls it: `start`, then the Task service over ttrpc, and the events it tells.
//! What containerd itself makes of it is for the engines' tests.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use libtest_mimic::Failed;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use super::case::{Case, marked_processes};
use super::checkpoint::images;
use super::need::Need::{Criu, Ferry, Root};
use super::output::Lines;
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};
use super::shim_client::{Client, Daemon, Message, clean_up};

/// By root, since a shim's socket is in a directory of root's.
pub const SCENARIOS: &[Scenario] = &[
    scenario("a_container_lives_and_ends", &[Ferry, Root], lives),
    scenario("output_goes_into_fifos_and_input_comes_from_one", &[Ferry, Root], fifos),
    scenario("a_process_is_executed_inside", &[Ferry, Root], executes),
    scenario("a_terminal_has_the_size_that_is_asked_for", &[Ferry, Root], terminal),
    scenario("a_program_that_is_missing_is_told_and_leaves_nothing", &[Ferry, Root], missing),
    scenario("containers_of_a_pod_have_one_process", &[Ferry, Root], pod),
    scenario("one_that_was_not_started_is_deleted", &[Ferry, Root], not_started),
    scenario("what_a_killed_shim_leaves_is_cleaned_up", &[Ferry, Root], killed),
    scenario("a_root_is_mounted_and_unmounted", &[Ferry, Root], mounted),
    scenario("a_log_file_is_made_with_its_folders", &[Ferry, Root], logged_to_file),
    scenario("a_log_file_is_never_the_containers", &[Ferry, Root], logged_by_others),
    scenario("a_log_program_reads_the_outputs", &[Ferry, Root], logged),
    scenario("a_log_program_reads_a_terminal", &[Ferry, Root], logged_terminal),
    scenario("what_was_saved_goes_on_with_new_fifos", &[Ferry, Root, Criu], saved),
    scenario("bad_calls_are_refused_and_the_next_is_served", &[Ferry, Root], refused),
];

/// A shim, and the one container it was started for.
pub struct Shim {
    pub daemon: Daemon,
    /// As the daemon has it.
    pub client: Client,
    pub id: String,
    pub bundle: PathBuf,
    options: Message,
    pub pid: u32,
}

impl Shim {
    /// Starts one for the case's container.
    pub fn start(case: &mut Case) -> Result<Self, Failed> {
        let daemon = Daemon::new(case)?;
        Self::start_after(case, daemon, "")
    }

    /// The same for another daemon, after words of a shell.
    pub fn start_after(case: &mut Case, daemon: Daemon, words: &str) -> Result<Self, Failed> {
        let (bundle, id) = (PathBuf::from(case.write_config()?), case.id.clone());
        let address = daemon.start_after(case, &bundle, &id, words, &Message::default())?;
        let options = Message::default().text(7, case.path("records"));
        let client = Client::connect(case, &address)?;
        Ok(Self { daemon, client, id, bundle, options, pid: 0 })
    }

    pub fn this(&self) -> Message {
        Message::default().text(1, &self.id)
    }

    /// A request to create it.
    pub fn creation(&self) -> Message {
        let options = Message::default().text(1, "containerd.runc.v1.Options").message(2, &self.options);
        self.this().text(2, self.bundle.display().to_string()).message(10, &options)
    }

    /// `Create`, with more fields: a terminal (4), streams (5 to 7), mounts (3).
    pub fn create(&mut self, more: impl FnOnce(Message) -> Message) -> Result<u32, Failed> {
        let request = more(self.creation());
        let pid = self.client.done("Create", &request)?.number(1);
        let connected = self.client.done("Connect", &self.this())?;
        self.pid = u32::try_from(connected.number(1))?;
        assert_eq!(connected.number(2), pid);
        Ok(u32::try_from(pid)?)
    }

    /// The status that `State` answers: 1 created, 2 running, 3 stopped, 4 paused.
    fn status(&mut self) -> Result<u64, Failed> {
        let this = self.this();
        Ok(self.client.done("State", &this)?.number(4))
    }

    /// `Start`, `Wait`; the exit status.
    pub fn run(&mut self) -> Result<u64, Failed> {
        let this = self.this();
        self.client.done("Start", &this)?;
        Ok(self.client.done("Wait", &this)?.number(1))
    }

    /// `Delete`, `Shutdown`, and nothing is left.
    pub fn end(mut self, case: &Case) -> Outcome {
        let this = self.this();
        self.client.done("Delete", &this)?;
        self.shut_down(case)?;
        assert_eq!(fs::read_dir(case.directory.join("records/test"))?.count(), 0, "records are left");
        Ok(())
    }
}

impl Shim {
    /// `Shutdown`, and nothing is left: the shim ends, and with it what did its work, of which the last may be about to.
    pub fn shut_down(&mut self, case: &Case) -> Outcome {
        let (processes, this) = (marked_processes(&case.directory), self.this());
        assert!(!processes.is_empty(), "the shim is gone");
        self.client.done("Shutdown", &this)?;
        processes.into_iter().try_for_each(|pid| case.wait_for(pid))?;
        assert_eq!(case.leftovers()?, [""; 0]);
        Ok(())
    }
}

/// Where standard output goes, as an address.
pub fn to_file(case: &Case, name: &str) -> String {
    format!("file://{}", case.path(name))
}

fn lives(case: &mut Case) -> Outcome {
    case.args(&["/probe", "exit", "7"]);
    let mut shim = Shim::start(case)?;
    let pid = shim.create(|request| request)?;
    assert_eq!(shim.status()?, 1);
    assert!(fs::exists(format!("/proc/{pid}"))?);
    assert_eq!(shim.run()?, 7);
    assert_eq!(shim.status()?, 3);
    let this = shim.this();
    let gone = shim.client.refused("Kill", &this.clone().number(3, 15))?;
    assert_eq!(gone.0, 5, "not found: {}", gone.1);
    let deleted = shim.client.done("Delete", &this)?;
    assert_eq!((deleted.number(1), deleted.number(2)), (pid.into(), 7));
    assert_eq!(shim.client.refused("State", &this)?.0, 5);
    let topics = shim.daemon.topics(case, 4)?;
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    shim.shut_down(case)
}

/// A fifo, and its ends: both, so that none waits for the other.
pub fn fifo(case: &Case, name: &str) -> Result<(String, File), Failed> {
    let path = case.path(name);
    mkfifo(path.as_str(), Mode::from_bits_truncate(0o700))?;
    let end = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
    Ok((path, end))
}

/// What a fifo brings until its end, once whoever holds it to write has let it go.
pub fn all_of(case: &Case, path: &str, held: File) -> Result<String, Failed> {
    let mut reader = File::open(path)?;
    drop(held);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        sender.send(reader.read_to_string(&mut text).map(|_| text))
    });
    Ok(receiver.recv_timeout(case.patience())??)
}

fn fifos(case: &mut Case) -> Outcome {
    case.args(&["/probe", "echo"]);
    let mut shim = Shim::start(case)?;
    let (stdin, mut input) = fifo(case, "stdin")?;
    let (stdout, output) = fifo(case, "stdout")?;
    shim.create(|request| request.text(5, &stdin).text(6, &stdout))?;
    let this = shim.this();
    shim.client.done("Start", &this)?;
    let waits = shim.client.begin("Wait", &this)?;
    input.write_all(b"through")?;
    // The writing end is still open here: the end of input is where a client says so.
    let closes = shim.client.begin("CloseIO", &this.clone().number(3, 1))?;
    let (first, second) = (shim.client.answer()?, shim.client.answer()?);
    assert_eq!([first.0, second.0], [closes, waits]);
    assert_eq!(second.1.map_err(|error| error.1)?.number(1), 0);
    assert_eq!(all_of(case, &stdout, output)?, "through");
    shim.end(case)
}

/// An exec's request, with its streams in files.
pub fn exec(shim: &Shim, id: &str, args: &[&str], more: impl FnOnce(Message) -> Message) -> Message {
    let process = json!({"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/"]}).to_string();
    let spec = Message::default().text(1, "types.containerd.io/opencontainers/runtime-spec/1/Process").text(2, process);
    more(shim.this().text(2, id).message(7, &spec))
}

fn executes(case: &mut Case) -> Outcome {
    case.args(&["/probe", "sleep", "forever"]);
    let mut shim = Shim::start(case)?;
    let first = shim.create(|request| request)?;
    let this = shim.this();
    shim.client.done("Start", &this)?;
    let output = to_file(case, "output");
    let request = exec(&shim, "one", &["/probe", "say", "inside"], |request| request.text(5, &output));
    shim.client.done("Exec", &request)?;
    assert_eq!(shim.client.refused("Exec", &request)?.0, 6, "it is there already");
    let one = this.clone().text(2, "one");
    let pid = shim.client.done("Start", &one)?.number(1);
    assert!(pid != 0 && pid != u64::from(first));
    assert_eq!(shim.client.done("Wait", &one)?.number(1), 0);
    assert_eq!(fs::read_to_string(case.path("output"))?, "inside\n");
    assert_eq!(shim.client.done("Delete", &one)?.number(1), pid);

    let request = exec(&shim, "two", &["/probe", "sleep", "forever"], |request| request);
    shim.client.done("Exec", &request)?;
    let two = this.clone().text(2, "two");
    shim.client.done("Start", &two)?;
    assert_eq!(shim.client.refused("Delete", &two)?.0, 9, "it runs");
    assert_eq!(shim.client.refused("Kill", &two.clone().number(3, 99))?.0, 3, "there is no such signal");
    shim.client.done("Kill", &two.clone().number(3, 0))?;
    // A real-time signal, as the init system of an image may want it.
    shim.client.done("Kill", &two.clone().number(3, 37))?;
    assert_eq!(shim.client.done("Wait", &two)?.number(1), 128 + 37);

    let request = exec(&shim, "three", &["/no/such/program"], |request| request);
    shim.client.done("Exec", &request)?;
    let three = this.clone().text(2, "three");
    let told = shim.client.refused("Start", &three)?.1;
    assert!(told.contains("/no/such/program"), "{told}");
    assert_ne!(shim.client.done("Wait", &three)?.number(1), 0);
    shim.client.done("Delete", &three)?;

    let request = exec(&shim, "four", &["/probe", "exit", "0"], |request| request);
    shim.client.done("Exec", &request)?;
    shim.client.done("Kill", &this.clone().number(3, 9))?;
    assert_eq!(shim.client.done("Wait", &this)?.number(1), 137);
    assert_eq!(shim.client.refused("Start", &this.clone().text(2, "four"))?.0, 9, "the container has ended");
    let topics = shim.daemon.topics(case, 9)?;
    let told =
        ["create", "start", "exec-added", "exec-started", "exit", "exec-added", "exec-started", "exit", "exec-added"];
    assert_eq!(topics, told.map(|topic| format!("/tasks/{topic}")));
    shim.end(case)
}

fn terminal(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    case.args(&["/probe", "window-wait", "33", "99"]);
    let mut shim = Shim::start(case)?;
    let (stdout, output) = fifo(case, "stdout")?;
    shim.create(|request| request.number(4, 1).text(6, &stdout))?;
    let this = shim.this();
    shim.client.done("Start", &this)?;
    shim.client.done("ResizePty", &this.clone().number(3, 99).number(4, 33))?;
    assert_eq!(shim.client.done("Wait", &this)?.number(1), 0);
    let said = all_of(case, &stdout, output)?;
    assert!(said.contains("33"), "{said:?}");
    shim.end(case)
}

fn missing(case: &mut Case) -> Outcome {
    case.args(&["/no/such/program"]);
    let mut shim = Shim::start(case)?;
    let request = shim.creation();
    let told = shim.client.refused("Create", &request)?.1;
    assert!(told.contains("/no/such/program") && told.contains("no such file"), "{told}");
    let this = shim.this();
    assert_eq!(shim.client.refused("State", &this)?.0, 5);
    shim.shut_down(case)
}

fn pod(case: &mut Case) -> Outcome {
    case.config["annotations"] = json!({"io.kubernetes.cri.sandbox-id": format!("pod-of-{}", case.id)});
    case.args(&["/probe", "sleep", "forever"]);
    let mut shim = Shim::start(case)?;
    shim.create(|request| request)?;
    let this = shim.this();
    shim.client.done("Start", &this)?;
    // Another container of the pod: a bundle of its own, and the same shim.
    let (other, bundle) = (case.other_id(), case.host_directory("other")?);
    fs::copy(shim.bundle.join("config.json"), bundle.join("config.json"))?;
    change(&bundle, |config| {
        config["root"]["path"] = shim.bundle.join("rootfs").display().to_string().into();
        config["process"]["args"] = json!(["/probe", "exit", "3"]);
    })?;
    let address = shim.daemon.start(case, &bundle, &other)?;
    let mut client = Client::connect(case, &address)?;
    let options = Message::default().text(1, "containerd.runc.v1.Options").message(2, &shim.options);
    let that = Message::default().text(1, &other);
    client.done("Create", &that.clone().text(2, bundle.display().to_string()).message(10, &options))?;
    assert_eq!(client.done("Connect", &that)?.number(1), u64::from(shim.pid), "another process");
    client.done("Start", &that)?;
    assert_eq!(client.done("Wait", &that)?.number(1), 3);
    client.done("Delete", &that)?;
    // It goes on for the rest of the pod.
    client.done("Shutdown", &that)?;
    assert_eq!(shim.status()?, 2);
    shim.client.done("Kill", &this.clone().number(3, 9))?;
    shim.client.done("Wait", &this)?;
    shim.end(case)
}

fn change(bundle: &std::path::Path, change: impl FnOnce(&mut Value)) -> Outcome {
    let path = bundle.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path)?)?;
    change(&mut config);
    Ok(fs::write(path, config.to_string())?)
}

fn not_started(case: &mut Case) -> Outcome {
    let mut shim = Shim::start(case)?;
    let pid = shim.create(|request| request)?;
    let this = shim.this();
    let waits = shim.client.begin("Wait", &this)?;
    let deletes = shim.client.begin("Delete", &this)?;
    let (first, second) = (shim.client.answer()?, shim.client.answer()?);
    assert_eq!([first.0, second.0], [waits, deletes]);
    assert_eq!(first.1.map_err(|error| error.1)?.number(1), 137);
    case.wait_for(pid)?;
    shim.shut_down(case)
}

fn killed(case: &mut Case) -> Outcome {
    case.args(&["/probe", "sleep", "forever"]);
    let mut shim = Shim::start(case)?;
    let pid = shim.create(|request| request)?;
    let this = shim.this();
    shim.client.done("Start", &this)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(shim.pid)?), nix::sys::signal::Signal::SIGKILL)?;
    case.wait_for(shim.pid)?;
    assert!(fs::exists(format!("/proc/{pid}"))?, "the container went with its shim");
    let socket = fs::read_to_string(shim.bundle.join("address"))?.replace("unix://", "");
    assert!(fs::exists(&socket)?);
    let deleted = clean_up(case, &shim.bundle, &shim.id)?;
    assert_eq!(deleted.number(2), 137);
    assert!(!fs::exists(&socket)?);
    case.wait_for(pid)?;
    assert_eq!(case.leftovers()?, [""; 0]);
    Ok(())
}

fn mounted(case: &mut Case) -> Outcome {
    case.args(&["/probe", "exit", "0"]);
    let root = case.host_directory("root")?;
    for entry in fs::read_dir(case.bundle.rootfs())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::create_dir(root.join(entry.file_name()))?;
        } else {
            fs::copy(entry.path(), root.join(entry.file_name()))?;
        }
    }
    fs::remove_file(case.bundle.rootfs().join("probe"))?;
    let mut shim = Shim::start(case)?;
    let mount = Message::default().text(1, "bind").text(2, root.display().to_string()).text(4, "rbind").text(4, "ro");
    shim.create(|request| request.message(3, &mount))?;
    assert_eq!(shim.run()?, 0);
    assert!(fs::exists(shim.bundle.join("rootfs/probe"))?);
    shim.end(case)
}

fn logged_to_file(case: &mut Case) -> Outcome {
    // More than a pipe holds.
    let words = "word ".repeat(20_000);
    case.args(&["/probe", "say", &words]);
    let mut shim = Shim::start(case)?;
    let output = to_file(case, "log%20files/of/one");
    shim.create(|request| request.text(6, &output).text(7, &output))?;
    assert_eq!(shim.run()?, 0);
    let file = case.path("log files/of/one");
    assert_eq!(fs::read_to_string(&file)?, format!("{words}\n"));
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o644);
    shim.end(case)
}

/// Whoever has it open may change its mode, and its owner may empty it.
fn logged_by_others(case: &mut Case) -> Outcome {
    case.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    case.args(&["/probe", "stat", "/proc/self/fd/1"]);
    let mut shim = Shim::start(case)?;
    let output = to_file(case, "log");
    shim.create(|request| request.text(6, &output))?;
    assert_eq!(shim.run()?, 0);
    let found: Value = serde_json::from_slice(&fs::read(case.path("log"))?)?;
    assert!(found["ok"]["target"].as_str().is_some_and(|target| target.starts_with("pipe:")), "{found}");
    assert_eq!(fs::metadata(case.path("log"))?.uid(), 0);
    shim.end(case)
}

/// The address of a log program, which says what it is given and what it reads.
fn log_program(case: &Case, told: &str) -> Result<String, Failed> {
    let program = case.directory.join("log program");
    let script = "#!/bin/sh\nexec >\"$2\"\necho \"$# $1 $3 $CONTAINER_NAMESPACE $CONTAINER_ID\"\nexec 5>&-\n\
                  sed 's/^/out: /' <&3 | cat &\nsed 's/^/error: /' <&4\nwait\necho over\n";
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(format!("binary://{}?file={told}&flag", program.display().to_string().replace(' ', "%20")))
}

fn logged(case: &mut Case) -> Outcome {
    case.args(&["/probe", "say", "said"]);
    let mut shim = Shim::start(case)?;
    let (told, mut lines) = read_fifo(case, "told")?;
    let address = log_program(case, &told)?;
    shim.create(|request| request.text(6, &address).text(7, &address))?;
    assert_eq!(lines.until("")?, format!("4 file flag test {}", shim.id));
    assert_eq!(shim.run()?, 0);
    assert_eq!((lines.until("")?, lines.until("")?), ("out: said".into(), "over".into()));
    // Without one there is no container.
    let missing = format!("binary://{}", case.path("missing"));
    let this = shim.this();
    shim.client.done("Delete", &this)?;
    let request = shim.creation().text(6, &missing);
    let (_, words) = shim.client.refused("Create", &request)?;
    assert!(words.contains("log program") && words.contains("No such file"), "{words}");
    shim.shut_down(case)
}

fn logged_terminal(case: &mut Case) -> Outcome {
    case.args(&["/probe", "sleep", "forever"]);
    let mut shim = Shim::start(case)?;
    shim.create(|request| request)?;
    let this = shim.this();
    shim.client.done("Start", &this)?;
    let (told, mut lines) = read_fifo(case, "told")?;
    let address = log_program(case, &told)?;
    let request = exec(&shim, "one", &["/probe", "say", "said"], |request| request.number(3, 1).text(5, &address));
    shim.client.done("Exec", &request)?;
    let one = this.clone().text(2, "one");
    shim.client.done("Start", &one)?;
    assert_eq!(lines.until("")?, "4 file flag test one");
    assert_eq!(shim.client.done("Wait", &one)?.number(1), 0);
    shim.client.done("Delete", &one)?;
    assert_eq!((lines.until("")?, lines.until("")?), ("out: said".into(), "over".into()));
    shim.client.done("Kill", &this.clone().number(3, 9))?;
    shim.client.done("Wait", &this)?;
    shim.end(case)
}

/// A fifo that a client reads: what comes, line by line, until nobody has it open to write.
fn read_fifo(case: &Case, name: &str) -> Result<(String, Lines), Failed> {
    let path = case.path(name);
    mkfifo(path.as_str(), Mode::from_bits_truncate(0o700))?;
    let end = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
    Ok((path, Lines::new(end.into(), case.patience())))
}

/// Saved and ended, created from what was saved, and started: with other fifos than before, as containerd has them.
fn saved(case: &mut Case) -> Outcome {
    case.args(&["/probe", "count", "1000000", "0"]);
    let mut shim = Shim::start(case)?;
    let (this, images) = (shim.this(), images(case));
    let (stdin, _input) = fifo(case, "stdin")?;
    let ((stdout, lines), (stderr, _errors)) = (read_fifo(case, "stdout")?, read_fifo(case, "stderr")?);
    shim.create(|request| request.text(5, &stdin).text(6, &stdout).text(7, &stderr))?;
    shim.client.done("Start", &this)?;
    let mut row = Row::of(lines);
    row.go_on(10)?;
    let options =
        |options: Message| Message::default().text(1, "containerd.runc.v1.CheckpointOptions").message(2, &options);
    // Where the client asks for it, and not the daemon; it goes on.
    let place = Message::default().text(8, case.path("place"));
    shim.client.done("Checkpoint", &this.clone().text(2, &images).message(3, &options(place)))?;
    assert_eq!((fs::exists(case.path("place/inventory.img"))?, fs::exists(&images)?), (true, false));
    row.go_on(10)?;
    let exit = Message::default().number(1, 1);
    shim.client.done("Checkpoint", &this.clone().text(2, &images).message(3, &options(exit)))?;
    shim.client.done("Wait", &this)?;
    // Of what is in its images alone there is no record: clients that kill before they delete go on upon this.
    assert_eq!(shim.client.refused("Kill", &this.clone().number(3, 9).number(4, 1))?.0, 5);
    shim.client.done("Delete", &this)?;

    let ((stdout, lines), (stderr, _errors)) = (read_fifo(case, "stdout2")?, read_fifo(case, "stderr2")?);
    let (stdin, _input) = fifo(case, "stdin2")?;
    let request = shim.creation().text(5, &stdin).text(6, &stdout).text(7, &stderr).text(8, &images);
    shim.client.done("Create", &request)?;
    let pid = shim.client.done("Start", &this)?.number(1);
    assert!(fs::exists(format!("/proc/{pid}"))?);
    row.continued(lines)?;
    shim.client.done("Kill", &this.clone().number(3, 9))?;
    assert_eq!(shim.client.done("Wait", &this)?.number(1), 137);
    shim.end(case)
}

fn refused(case: &mut Case) -> Outcome {
    let mut shim = Shim::start(case)?;
    let this = shim.this();
    assert_eq!(shim.client.refused("Fly", &this)?.0, 12);
    assert_eq!(shim.client.refused("Start", &this)?.0, 5);
    let connected = shim.client.done("Connect", &this)?;
    assert!(fs::exists(format!("/proc/{}", connected.number(1)))? && connected.number(2) == 0);
    let garbage = Message::default().text(1, [0xff, 0xfe]);
    assert_eq!(shim.client.refused("State", &garbage)?.0, 3);
    let address = fs::read_to_string(shim.bundle.join("address"))?;
    let mut other = Client::connect(case, &address)?;
    assert!(other.hangs_up_on(&[0xff; 64])?);
    shim.create(|request| request)?;
    let again = shim.this().text(2, shim.bundle.display().to_string());
    assert_eq!(shim.client.refused("Create", &again)?.0, 6);
    for (stdout, stderr) in
        [("http://a", ""), ("binary://true", ""), ("", "binary:///bin/true"), ("binary:///a", "binary:///b")]
    {
        let unknown = Message::default().text(1, "x").text(2, case.path("bundle")).text(6, stdout).text(7, stderr);
        assert_eq!(shim.client.refused("Create", &unknown)?.0, 3, "{stdout} {stderr}");
    }
    shim.end(case)
}
