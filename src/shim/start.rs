//! The verbs by which containerd begins with a shim, and cleans up after one that has died: runtime/v2/README.md of containerd.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::{getpid, setsid};
use prost::Message;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::arguments::Arguments;
use super::events::Events;
use super::messages::{Any, Options, RuntimeInfo, RuntimeVersion, task};
use super::server::{self, Socket};
use super::service::Service;
use super::{limit, mounts, settings};
use crate::cgroup;
use crate::error::{Context, Error, Result};
use crate::lifecycle::{Setting, delete, features};
use crate::sys::clone::{Cloned, Parent, clone_either_way};
use crate::sys::fd;

/// Where shims have their sockets, in a directory that makes their paths short.
const SOCKETS: &str = "/run/containerd/s";

/// Annotations by which containers are those of one pod, and are one shim's.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// The newest version of the Task service that is known here.
const VERSION: u32 = 3;

/// `start`: answers the address at which the container of the working directory is served, by a new process or by that of its
/// pod.
///
/// # Errors
/// The server cannot be started.
pub fn start(arguments: &Arguments) -> Result<()> {
    let bundle = std::env::current_dir().or_cannot("find", "the bundle")?;
    let group = group(&bundle)?.unwrap_or_else(|| arguments.id.clone());
    let socket = socket(&arguments.address, &arguments.namespace, &group);
    let address = format!("unix://{}", socket.display());
    // Other versions of containerd look for it here when they are started anew.
    fs::write(bundle.join("address"), &address).or_cannot("write", "the shim's address")?;
    if UnixStream::connect(&socket).is_ok() {
        return tell(&address);
    }
    // By this process, into whose cgroup the server is born: here alone a refusal is heard.
    enter(&handed_options().shim_cgroup)?;
    let listener = listen(&socket)?;
    // The address is told by the parent, whose end containerd waits for; what the child inherits of its streams it closes.
    let cloned = clone_either_way(0, Parent::Caller).or_cannot("fork", "the shim");
    match cloned.inspect_err(|_| drop(fs::remove_file(&socket)))? {
        Cloned::Parent { .. } => tell(&address),
        Cloned::Child => {
            let socket = Socket { listener, path: socket };
            fd::close_from(3, &[socket.listener.as_fd()]).or_cannot("close", "the daemon's descriptors")?;
            detach()?;
            let events = std::env::var_os("TTRPC_ADDRESS").filter(|path| !path.is_empty()).map(PathBuf::from);
            let events = Events::new(events, &arguments.namespace);
            server::serve(socket, Service::new(arguments.namespace.clone(), events))
        }
    }
}

/// The pod that a bundle's container is of.
fn group(bundle: &Path) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: std::collections::BTreeMap<String, String>,
    }
    let path = bundle.join("config.json");
    let text = fs::read(&path).or_cannot("read", path.display())?;
    let config: Annotated = serde_json::from_slice(&text)
        .map_err(|why| Error::said("read", path.display().to_string(), why.to_string()))?;
    Ok(GROUPS.iter().find_map(|name| config.annotations.get(*name).cloned()))
}

/// A socket's path is one for each daemon, namespace and group; of other shims' it is never.
fn socket(daemon: &str, namespace: &str, group: &str) -> PathBuf {
    use std::fmt::Write;
    let digest = Sha256::digest(format!("ferry\0{daemon}\0{namespace}\0{group}"));
    let mut name = String::with_capacity(64);
    for byte in digest {
        // Writing to a string does not fail.
        write!(name, "{byte:02x}").ok();
    }
    Path::new(SOCKETS).join(name)
}

fn listen(socket: &Path) -> Result<UnixListener> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(SOCKETS).or_cannot("make", SOCKETS)?;
    match fs::remove_file(socket) {
        Err(error) if error.kind() == ErrorKind::NotFound => (),
        // Nobody answers there any more.
        removed => removed.or_cannot("remove", socket.display())?,
    }
    let listener = UnixListener::bind(socket).or_cannot("make socket", socket.display())?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).or_cannot("protect", socket.display())?;
    Ok(listener)
}

/// The options that newer daemons hand to `start` as well; they are of no use to it but for one.
fn handed_options() -> Options {
    let mut bytes = Vec::new();
    let stdin = std::io::stdin();
    let read =
        if std::io::IsTerminal::is_terminal(&stdin) { Ok(0) } else { stdin.take(1 << 20).read_to_end(&mut bytes) };
    let any = read.ok().and_then(|_| Any::decode(&*bytes).ok());
    any.and_then(|any| settings::read(Some(&any)).ok()).unwrap_or_default()
}

/// Prints where the server is: as JSON for those who say that they know versions.
fn tell(address: &str) -> Result<()> {
    let newest = std::env::var("MAX_SHIM_VERSION").ok().and_then(|version| version.parse().ok());
    let text = match newest {
        Some(newest) => {
            let version = VERSION.min(newest);
            serde_json::json!({ "version": version, "address": address, "protocol": "ttrpc" }).to_string()
        }
        None => address.to_owned(),
    };
    print(text.as_bytes())
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).or_cannot("write to", "standard output")
}

/// Becomes a process of its own: of no session, with no streams but containerd's log, in no directory that is in use.
fn detach() -> Result<()> {
    setsid().or_cannot("begin", "a session")?;
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").or_cannot("open", "/dev/null")?;
    // A fifo, which stays open for reading here: the daemon that reads it may be started anew.
    let log = fs::OpenOptions::new().read(true).write(true).open("log");
    let errors = log.as_ref().unwrap_or(&null);
    fd::arrange(0, &[null.as_fd(), null.as_fd(), errors.as_fd()]).or_cannot("arrange", "the standard streams")?;
    std::env::set_current_dir("/").or_cannot("leave", "the bundle")?;
    // What service managers tell daemons is not for the containers'.
    crate::sys::environment::remove(&["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"]);
    limit::raise();
    protect_from_oom();
    Ok(())
}

/// Enters the cgroup that the option `ShimCgroup` names.
fn enter(path: &str) -> Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    let none = || Error::said("enter the cgroup", path, "there is no cgroup v2 on this host");
    let tree = cgroup::location::find_tree()?.ok_or_else(none)?;
    let cgroup = cgroup::fs::open(&tree.mount.join(path.trim_start_matches('/')))
        .map_err(|error| error.hint("the runtime's option ShimCgroup names it, and it has to be there"))?;
    cgroup::fs::attach(&cgroup, getpid())
}

/// A shim is killed for want of memory a little sooner than its daemon, from which it has its score, and later than containers.
fn protect_from_oom() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let score = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = score.filter(|score| *score < 1000) {
        // It is raised, which nobody is refused; where /proc is not, there is no daemon either.
        fs::write(FILE, (score + 1).to_string()).ok();
    }
}

/// `delete`: takes down a container whose shim has died, and answers how it ended, as far as that can be said.
///
/// # Errors
/// Something of it cannot be removed.
pub fn clean_up(arguments: &Arguments) -> Result<()> {
    let bundle = match &arguments.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().or_cannot("find", "the bundle")?,
    };
    let setting = Setting { root: settings::kept_root(&bundle, &arguments.namespace), ..Setting::default() };
    delete::delete(&setting, &arguments.id, delete::Which::Any)?;
    mounts::undo(&bundle)?;
    remove_socket(&bundle)?;
    let killed = 128 + 9;
    let deleted = task::Deleted { pid: 0, exit_status: killed, exited_at: Some(SystemTime::now().into()) };
    print(&deleted.encode_to_vec())
}

/// Removes the socket of a shim that has died; that of a pod's other containers is still answered.
fn remove_socket(bundle: &Path) -> Result<()> {
    // Where there is no address, there was no socket.
    let Ok(address) = fs::read_to_string(bundle.join("address")) else { return Ok(()) };
    let socket = Path::new(address.trim_start_matches("unix://"));
    match UnixStream::connect(socket) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(socket).or_cannot("remove", socket.display())
        }
        _ => Ok(()),
    }
}

/// `-info`: what this runtime is and can do.
///
/// # Errors
/// The features cannot be found out.
pub fn info() -> Result<()> {
    let features = features::features(&Setting::default())?;
    let info = RuntimeInfo {
        name: "io.containerd.ferry.v2".into(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), revision: String::new() }),
        options: None,
        features: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features".into(),
            value: features.to_string().into_bytes(),
        }),
    };
    print(&info.encode_to_vec())
}

/// `-v`: the version.
///
/// # Errors
/// Nobody reads it.
pub fn version() -> Result<()> {
    print(format!("containerd-shim-ferry-v2 {}\n", env!("CARGO_PKG_VERSION")).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_one_for_each_group_and_short() {
        let of = |group| socket("/run/containerd/containerd.sock", "k8s.io", group);
        assert_ne!(of("a"), of("b"));
        assert_eq!(of("a"), of("a"));
        assert!(of(&"x".repeat(500)).as_os_str().len() < 108);
    }
}
