//! What is asked of CRIU and what it answers: its RPC messages as values. criu/images/rpc.proto
//!
//! Only what ferry uses is here, each field with its number. An answer comes from another process and may be anything; one
//! that does not parse, or says what was not asked, is an error.

use super::wire::{self, Message, Value};

/// What is asked for. `criu_req_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Everything of a process tree.
    Dump = 1,
    /// The process tree.
    Restore = 2,
    /// The memory only, while the processes go on.
    PreDump = 4,
    /// Not asked for: CRIU tells how far it is, and waits to be told to go on.
    Notify = 6,
    /// Which features this CRIU and kernel have.
    FeatureCheck = 9,
    /// Its version.
    Version = 10,
}

const DEEDS: [Deed; 6] = [Deed::Dump, Deed::Restore, Deed::PreDump, Deed::Notify, Deed::FeatureCheck, Deed::Version];

/// How much of cgroups CRIU restores. `criu_cg_mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupsMode {
    /// Nothing.
    Ignore = 0,
    /// What it makes itself.
    Soft = 3,
    /// Also what is there.
    Full = 4,
    /// Everything, and nothing may be there.
    Strict = 5,
}

/// The words of `--manage-cgroups-mode`.
pub const CGROUPS_MODES: [(&str, CgroupsMode); 4] = [
    ("soft", CgroupsMode::Soft),
    ("full", CgroupsMode::Full),
    ("strict", CgroupsMode::Strict),
    ("ignore", CgroupsMode::Ignore),
];

/// How connections are kept still while their processes are. `criu_network_lock_method`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkLock {
    /// By rules of iptables.
    Iptables = 1,
    /// By rules of nftables.
    Nftables = 2,
    /// Not at all.
    Skip = 3,
}

/// The words of `--network-lock`.
pub const NETWORK_LOCKS: [(&str, NetworkLock); 3] =
    [("iptables", NetworkLock::Iptables), ("nftables", NetworkLock::Nftables), ("skip", NetworkLock::Skip)];

/// Two names that belong together: what is in the image, and what it is outside.
pub type Pair = (String, String);

/// What is asked for, in detail. Descriptors of the images' and the work directory are numbers in the process that asks;
/// those of `inherit` in CRIU itself. `criu_opts`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// The images' directory.
    pub images: i32,
    /// Where logs go and CRIU works, where that is not among the images.
    pub work: Option<i32>,
    /// The first process of the tree.
    pub pid: Option<i32>,
    /// The processes go on after the dump.
    pub leave_running: bool,
    /// UNIX sockets with a peer outside.
    pub ext_unix_sk: bool,
    /// Established TCP connections.
    pub tcp_established: bool,
    /// Connections that are still being made are left out.
    pub tcp_skip_in_flight: bool,
    /// TCP connections are closed by the restore.
    pub tcp_close: bool,
    /// A terminal from outside.
    pub shell_job: bool,
    /// File locks.
    pub file_locks: bool,
    /// Unlinked files get a name while they are in the images.
    pub link_remap: bool,
    /// The log's name, in the work directory.
    pub log_file: &'static str,
    /// The log tells all that is done.
    pub verbose: bool,
    /// Address and port of the page server.
    pub page_server: Option<(String, u16)>,
    /// The container's root as CRIU sees it.
    pub root: Option<Vec<u8>>,
    /// The images that these build on: relative to them.
    pub parent: Option<Vec<u8>>,
    /// Memory that is written to is tracked from here on.
    pub track_memory: bool,
    /// Pages that the parent's images hold in vain are freed.
    pub auto_dedup: bool,
    /// The memory stays where it is until it is asked for.
    pub lazy_pages: bool,
    /// Mounts from outside: dump: place and name; restore: name and source.
    pub mounts: Vec<Pair>,
    /// Things from outside, in the words of `criu dump --external`.
    pub external: Vec<String>,
    /// The cgroup that stops the processes.
    pub freeze_cgroup: Option<Vec<u8>>,
    /// Of which cgroups the processes' are children: controllers, and path.
    pub cgroup_roots: Vec<Pair>,
    /// How much of cgroups is restored.
    pub cgroups_mode: Option<CgroupsMode>,
    /// Bits of namespaces whose content is left alone.
    pub empty_namespaces: u32,
    /// Namespaces to join: kind and path.
    pub join: Vec<Pair>,
    /// Descriptors to be had in the place of what is in the images: name and number.
    pub inherit: Vec<(String, i32)>,
    /// The restored process is a sibling of CRIU, and so a child of who started that.
    pub sibling: bool,
    /// A device node that has another name inside than outside is taken for what it is.
    pub evasive_devices: bool,
    /// The LSM label to have instead of that in the images.
    pub lsm_profile: Option<String>,
    /// The SELinux context of mounts to have instead of that in the images.
    pub lsm_mount_context: Option<String>,
    /// How connections are kept still.
    pub network_lock: Option<NetworkLock>,
    /// Whether mounts are made again by mount(2).
    pub mounts_by_path: bool,
    /// A file with options that go before these.
    pub config_file: Option<Vec<u8>>,
}

impl Options {
    fn encode(&self) -> Message {
        let mut out = Message::default();
        out.signed(1, self.images).signed_if(2, self.pid);
        out.flag(3, self.leave_running).flag(4, self.ext_unix_sk).flag(5, self.tcp_established);
        out.flag(6, self.evasive_devices).flag(7, self.shell_job).flag(8, self.file_locks);
        // All that it does but for what is for CRIU's own developers, or errors and warnings: the processes stand still meanwhile, and with
        // 16 MB of memory a fifth of that time was seen to go into the lines.
        out.signed(9, if self.verbose { 4 } else { 2 }).bytes(10, self.log_file);
        if let Some((address, port)) = &self.page_server {
            let mut server = Message::default();
            server.bytes(1, address).signed(2, i32::from(*port));
            out.message(11, &server);
        }
        // Progress is told by notifications, and a pty without its master is handed over by one.
        out.flag(12, true).flag(50, true);
        out.bytes_if(13, self.root.as_ref()).bytes_if(14, self.parent.as_ref());
        out.flag(15, self.track_memory).flag(16, self.auto_dedup).signed_if(17, self.work).flag(18, self.link_remap);
        for (key, value) in &self.mounts {
            out.message(23, &pair(1, key, 2, value));
        }
        out.flag(24, true);
        for (controllers, path) in &self.cgroup_roots {
            out.message(25, &pair(1, controllers, 2, path));
        }
        out.flag(26, self.sibling);
        for (key, number) in &self.inherit {
            let mut inherit = Message::default();
            inherit.bytes(1, key).signed(2, *number);
            out.message(27, &inherit);
        }
        out.signed_if(34, self.cgroups_mode.map(|mode| mode as i32));
        for external in &self.external {
            out.bytes(37, external);
        }
        if self.empty_namespaces != 0 {
            out.number(38, u64::from(self.empty_namespaces));
        }
        for (kind, path) in &self.join {
            out.message(39, &pair(1, kind, 2, path));
        }
        out.bytes_if(44, self.freeze_cgroup.as_ref());
        out.flag(46, self.tcp_skip_in_flight).flag(48, self.lazy_pages);
        out.bytes_if(51, self.config_file.as_ref()).flag(52, self.tcp_close);
        out.bytes_if(53, self.lsm_profile.as_ref()).bytes_if(63, self.lsm_mount_context.as_ref());
        out.signed_if(64, self.network_lock.map(|method| method as i32)).flag(65, self.mounts_by_path);
        out
    }
}

fn pair(first: u32, one: &str, second: u32, other: &str) -> Message {
    let mut message = Message::default();
    message.bytes(first, one).bytes(second, other);
    message
}

/// A feature to be asked after. `criu_features`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// The kernel tells which pages were written to.
    MemoryTracking = 1,
    /// Memory can be brought when it is asked for.
    LazyPages = 2,
}

/// A request. `criu_req`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The version.
    Version,
    /// One feature.
    Feature(Feature),
    /// Dump, pre-dump or restore.
    Deed(Deed, Box<Options>),
    /// A notification was heard: go on, or, if not, give up.
    Heard(bool),
}

impl Request {
    /// What goes over the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Message::default();
        match self {
            Self::Version => out.number(1, Deed::Version as u64),
            Self::Feature(feature) => {
                let mut features = Message::default();
                features.flag(*feature as u32, true);
                out.number(1, Deed::FeatureCheck as u64).message(5, &features)
            }
            Self::Deed(deed, options) => out.number(1, *deed as u64).message(2, &options.encode()),
            Self::Heard(well) => out.number(1, Deed::Notify as u64).number(3, u64::from(*well)),
        };
        out.into_bytes()
    }
}

/// An answer. `criu_resp`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response {
    /// What it is about; none that ferry knows.
    pub deed: Option<Deed>,
    /// Whether it was done.
    pub success: bool,
    /// An errno, where CRIU gives one.
    pub errno: Option<i32>,
    /// CRIU's word on a request it did not understand.
    pub words: String,
    /// What is notified, and the pid that goes with it.
    pub notified: String,
    /// The first process, as the host counts: in a notification, or in the answer to a restore.
    pub pid: Option<i32>,
    /// Major, minor and sub-level, as 31500 for 3.15.
    pub version: Option<u32>,
    /// The numbers of the features that are there.
    pub features: Vec<u32>,
}

impl Response {
    /// Reads an answer. `None`: it is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut response = Self::default();
        for field in wire::fields(bytes) {
            let (number, value) = field?;
            match number {
                1 => response.deed = DEEDS.into_iter().find(|deed| *deed as u64 == value.number()),
                2 => response.success = value.number() != 0,
                4 => response.pid = inner(value, 1)?.and_then(Value::signed),
                5 => {
                    response.notified = inner(value, 1)?.map(Value::text).unwrap_or_default();
                    response.pid = inner(value, 2)?.and_then(Value::signed);
                }
                7 => response.errno = value.signed(),
                8 => response.features = set(value)?,
                9 => response.words = value.text(),
                10 => response.version = Some(version(value)?),
                _ => (),
            }
        }
        Some(response)
    }
}

/// A field of a message within.
fn inner(value: Value<'_>, number: u32) -> Option<Option<Value<'_>>> {
    let mut found = None;
    for field in wire::fields(value.bytes()) {
        let (other, value) = field?;
        if other == number {
            found = Some(value);
        }
    }
    Some(found)
}

/// The numbers of the fields that say yes.
fn set(value: Value<'_>) -> Option<Vec<u32>> {
    let fields: Option<Vec<_>> = wire::fields(value.bytes()).collect();
    Some(fields?.into_iter().filter(|(_, value)| value.number() != 0).map(|(number, _)| number).collect())
}

fn version(value: Value<'_>) -> Option<u32> {
    let part = |number| inner(value, number).map(|part| part.and_then(Value::signed).unwrap_or(0).clamp(0, 99));
    u32::try_from(part(1)? * 10_000 + part(2)? * 100 + part(4)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let shown = |(number, value): (u32, Value<'_>)| match value {
            Value::Number(value) => (number, value.to_string().into_bytes()),
            Value::Bytes(bytes) => (number, bytes.to_vec()),
        };
        wire::fields(bytes).map(|field| shown(field.unwrap())).collect()
    }

    fn options(request: &Request) -> Vec<(u32, String)> {
        let all = read(&request.encode());
        let inner = &all.iter().find(|(number, _)| *number == 2).unwrap().1;
        read(inner).into_iter().map(|(number, value)| (number, String::from_utf8_lossy(&value).into_owned())).collect()
    }

    #[test]
    fn a_dump_says_what_the_flags_say() {
        let asked = Options {
            images: 5,
            pid: Some(42),
            leave_running: true,
            tcp_established: true,
            log_file: "dump.log",
            root: Some(b"/r".to_vec()),
            external: vec!["net[7]:extRootNetNS".into()],
            empty_namespaces: 0x4000_0000,
            network_lock: Some(NetworkLock::Skip),
            cgroups_mode: Some(CgroupsMode::Ignore),
            ..Options::default()
        };
        let said = options(&Request::Deed(Deed::Dump, Box::new(asked)));
        let has = |number: u32, value: &str| said.contains(&(number, value.to_owned()));
        for (number, value) in [
            (1, "5"),
            (2, "42"),
            (3, "1"),
            (5, "1"),
            (9, "2"),
            (10, "dump.log"),
            (12, "1"),
            (13, "/r"),
            (34, "0"),
            (37, "net[7]:extRootNetNS"),
            (38, "1073741824"),
            (50, "1"),
            (64, "3"),
        ] {
            assert!(has(number, value), "{number}={value} in {said:?}");
        }
        assert!(!said.iter().any(|(number, _)| [4, 7, 8, 17, 26, 48].contains(number)), "{said:?}");
    }

    #[test]
    fn answers_are_read() {
        let mut notify = Message::default();
        notify.bytes(1, "post-restore").signed(2, 4711);
        let mut answer = Message::default();
        answer.number(1, 6).number(2, 1).message(5, &notify);
        let heard = Response::decode(&answer.into_bytes()).unwrap();
        assert_eq!((heard.deed, heard.success), (Some(Deed::Notify), true));
        assert_eq!((heard.notified.as_str(), heard.pid), ("post-restore", Some(4711)));

        let mut version = Message::default();
        version.signed(1, 4).signed(2, 1).signed(4, 1);
        let mut answer = Message::default();
        answer.number(1, 10).number(2, 1).message(10, &version);
        assert_eq!(Response::decode(&answer.into_bytes()).unwrap().version, Some(40101));
    }

    #[test]
    fn strange_answers_are_none() {
        assert_eq!(Response::decode(&[0x0a]), None);
        // A notification whose inside is cut off.
        assert_eq!(Response::decode(&[0x08, 6, 0x10, 1, 0x2a, 2, 0x0a, 9]), None);
        let unknown = Response::decode(&[0x08, 99, 0x10, 1]).unwrap();
        assert_eq!((unknown.deed, unknown.success), (None, true));
        assert!(!Response::decode(&[]).unwrap().success);
    }
}
