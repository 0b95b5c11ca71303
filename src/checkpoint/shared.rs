//! What CRIU writes in the UTS and IPC namespaces of a container, whoever they belong to: a restore gives them the names and
//! parameters that they had at the dump. In those that the container only joined, a pod's, that is taken back.
//!
//! CRIU does so before it tells that the namespaces are there, and nothing of the container runs until then. sysctl(5)

use std::fs::File;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::error::{Context, Result};
use crate::namespaces::{Join, Kind, Namespaces};
use crate::process::sysctl::{self, Sysctl};
use crate::procfs;

/// The parameters that CRIU writes. criu/criu/uts_ns.c, ipc_ns.c
const PARAMETERS: [(Kind, &[&str]); 2] = [
    (Kind::Uts, &["kernel/hostname", "kernel/domainname"]),
    (
        Kind::Ipc,
        &[
            "kernel/auto_msgmni",
            "kernel/msg_next_id",
            "kernel/msgmax",
            "kernel/msgmnb",
            "kernel/msgmni",
            "kernel/sem",
            "kernel/sem_next_id",
            "kernel/shm_next_id",
            "kernel/shm_rmid_forced",
            "kernel/shmall",
            "kernel/shmmax",
            "kernel/shmmni",
            "fs/mqueue/msg_default",
            "fs/mqueue/msg_max",
            "fs/mqueue/msgsize_default",
            "fs/mqueue/msgsize_max",
            "fs/mqueue/queues_max",
        ],
    ),
];

/// Does `work` in a namespace.
///
/// # Errors
/// `work`'s own; ferry cannot enter, or cannot come back.
pub(super) fn visit<T>(kind: Kind, namespace: &File, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let row = kind.row();
    let own = open(&Path::new("/proc/self/ns").join(row.file))?;
    let flag = CloneFlags::from_bits_retain(row.flag);
    setns(namespace, flag).or_cannot("enter", format!("the container's {} namespace", row.name))?;
    let done = work();
    setns(own, flag).or_cannot("return to", format!("ferry's own {} namespace", row.name))?;
    done
}

/// Opens a namespace.
///
/// # Errors
/// It is not there.
pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path).or_cannot("open namespace", path.display())
}

/// The parameters of the namespaces that a container joins, as they were before its restore.
#[derive(Debug)]
pub(super) struct Shared(Vec<(Kind, File, Vec<Sysctl>)>);

impl Shared {
    /// Looks at them.
    ///
    /// # Errors
    /// A namespace is not there, or cannot be entered.
    pub fn of(namespaces: &Namespaces) -> Result<Self> {
        let joined = namespaces.join.iter().filter_map(|Join { kind, path }| {
            let (_, names) = PARAMETERS.iter().find(|(known, _)| known == kind)?;
            Some((*kind, path, names.iter().copied()))
        });
        let looked = joined.map(|(kind, path, names)| {
            let namespace = open(path)?;
            let were = visit(kind, &namespace, || names.filter_map(read).collect::<Result<_>>())?;
            Ok((kind, namespace, were))
        });
        looked.collect::<Result<_>>().map(Self)
    }

    /// Gives them what they had, where they have something else.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn put_back(&self) -> Result<()> {
        self.0.iter().try_for_each(|(kind, namespace, were)| {
            visit(*kind, namespace, || {
                let is_other = |was: &&Sysctl| read(&was.file) != Some(Ok((*was).clone()));
                sysctl::apply(&were.iter().filter(is_other).cloned().collect::<Vec<_>>())
            })
        })
    }
}

/// A parameter as it stands. `None`: this kernel has none of that name.
fn read(file: &str) -> Option<Result<Sysctl>> {
    let path = format!("/proc/sys/{file}");
    match procfs::text(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        value => Some(value.or_cannot("read", path).map(|value| Sysctl { file: file.to_owned(), value })),
    }
}

/// What of System V is in an IPC namespace, in words: CRIU would make it once more in one that was joined, where it is still.
///
/// # Errors
/// The namespace cannot be entered.
pub(super) fn system_v(namespace: &Path) -> Result<Vec<&'static str>> {
    const KINDS: [(&str, &str); 3] = [("shm", "shared memory"), ("sem", "semaphores"), ("msg", "message queues")];
    visit(Kind::Ipc, &open(namespace)?, || {
        let has = |file: &str| {
            let path = format!("/proc/sysvipc/{file}");
            // The first line names the columns.
            procfs::text(&path).or_cannot("read", path).map(|table| table.lines().count() > 1)
        };
        KINDS.iter().filter_map(|(file, what)| has(file).map(|has| has.then_some(*what)).transpose()).collect()
    })
}
