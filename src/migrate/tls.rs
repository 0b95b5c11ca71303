//! TLS 1.3 in which both ends show a certificate of the same authority: `tls://`, for machines between which there is no ssh.
//!
//! ```text
//! ferry == a socket == speaker == the network == speaker == a socket == ferry
//! ```
//!
//! It is spoken by a process of its own for each connection. What takes a stranger's bytes apart before anybody has proved who they
//! are reaches nothing but its two ends (`crate::security::jail`), and the ferry that clones CRIU off stays without threads. ferry
//! hears of a connection once the far end has shown its certificate, and of the others why not.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, pipe2};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

use crate::error::{Context, Error, Result, Wire};
use crate::security::jail;
use crate::sys::clone::{Cloned, Parent, clone_either_way, exit_now};
use crate::sys::fd::close_from;

/// The files of a directory: whom to believe, who this machine is, and the proof of it.
const FILES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

/// How long a far end may take to show its certificate.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The most that is taken from either side before the other one has it. Bytes.
const PIECE: usize = 1 << 16;

/// What an end that was called says first: in TLS 1.3 only it knows that both have been believed.
const WELCOME: u8 = b'f';

/// The only version that is spoken: both ends are ferry's.
const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Who this machine is, and whom it believes.
#[derive(Debug)]
pub struct Identity {
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: Arc<RootCertStore>,
}

/// Which end this is.
#[derive(Debug, Clone)]
pub enum End {
    /// It calls the machine of this name or address.
    Client(ServerName<'static>),
    /// It was called.
    Server,
}

/// Where the files are unless a flag says otherwise: `/etc/ferry/tls` for root, `$XDG_CONFIG_HOME/ferry/tls` for everybody else.
pub fn default_directory() -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let of_user = || variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
    match nix::unistd::geteuid().is_root() {
        true => PathBuf::from("/etc/ferry/tls"),
        false => of_user().unwrap_or_else(|| PathBuf::from("/etc")).join("ferry/tls"),
    }
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` of a directory.
    ///
    /// # Errors
    /// One is not there, or none of its kind; others than its owner may read the key.
    pub fn read(directory: &Path) -> Result<Self> {
        let [ca, cert, key] = FILES.map(|name| directory.join(name));
        let unreadable = |path: &Path, why: String| {
            Error::said("read", path.display().to_string(), why).hint(
                "a directory for TLS has ca.pem (whose certificates are believed), cert.pem and key.pem (this machine's own); \
                 --tls names another one",
            )
        };
        let certificates = |path: &Path| {
            let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            match all {
                Ok(all) if !all.is_empty() => Ok(all),
                Ok(_) => Err(unreadable(path, "it holds no certificate in PEM form".to_owned())),
                Err(why) => Err(unreadable(path, why.to_string())),
            }
        };
        let mut authorities = RootCertStore::empty();
        for certificate in certificates(&ca)? {
            authorities.add(certificate).map_err(|why| unreadable(&ca, why.to_string()))?;
        }
        let certificates = certificates(&cert)?;
        let mode = std::fs::metadata(&key).map_err(|why| unreadable(&key, why.to_string()))?.permissions().mode();
        if mode & 0o077 != 0 {
            let why = format!("its mode is {:04o}: others may read it", mode & 0o7777);
            return Err(Error::said("use", key.display().to_string(), why).hint("chmod 600 makes it its owner's alone"));
        }
        let key = PrivateKeyDer::from_pem_file(&key).map_err(|why| unreadable(&key, why.to_string()))?;
        Ok(Self { certificates, key, authorities: Arc::new(authorities) })
    }

    fn connection(&self, end: &End) -> Result<Connection, rustls::Error> {
        let provider = Arc::new(ring::default_provider());
        let (own, key) = (self.certificates.clone(), self.key.clone_key());
        match end {
            End::Client(name) => {
                let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(VERSIONS)?;
                let config =
                    config.with_root_certificates(Arc::clone(&self.authorities)).with_client_auth_cert(own, key)?;
                ClientConnection::new(Arc::new(config), name.clone()).map(Connection::Client)
            }
            End::Server => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.authorities), Arc::clone(&provider))
                        .build()
                        .map_err(|why| rustls::Error::General(why.to_string()))?;
                let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(VERSIONS)?;
                let config = config.with_client_cert_verifier(verifier).with_single_cert(own, key)?;
                ServerConnection::new(Arc::new(config)).map(Connection::Server)
            }
        }
    }
}

/// A process that speaks TLS for this one.
#[derive(Debug)]
pub struct Speaker {
    pid: Pid,
    pidfd: OwnedFd,
    /// How the handshake ended, as a [`Wire`] or nothing.
    told: File,
    /// What is said and heard, in the clear.
    near: UnixStream,
    until: Instant,
}

impl Speaker {
    /// Has it begin over the connection `network`. The caller must be the only thread of its process.
    ///
    /// # Errors
    /// The certificate and key do not go together; the kernel's answer.
    pub fn begin(end: &End, identity: &Identity, network: TcpStream) -> Result<Self> {
        let connection = identity
            .connection(end)
            .map_err(|why| Error::said("use", "the certificate of this machine", why.to_string()))?;
        network.set_nodelay(true).or_cannot("prepare", "the connection")?;
        let (near, theirs) = UnixStream::pair().or_cannot("make", "a socket")?;
        for stream in [network.as_fd(), theirs.as_fd()] {
            rustix::io::ioctl_fionbio(stream, true).or_cannot("prepare", "the connection")?;
        }
        let (told, tell) = pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
        match clone_either_way(0, Parent::Caller).or_cannot("start", "a process that speaks TLS")? {
            Cloned::Child => {
                let kept = [network.as_fd(), theirs.as_fd(), tell.as_fd()];
                // What else ferry has open is none of its affair, other connections' ends least of all: they would never end.
                let alone = close_from(3, &kept).or_cannot("close", "what ferry has open");
                let ready = alone.and_then(|()| jail::two_ends());
                let done = ready.and_then(|()| {
                    Relay { connection, network: network.as_fd(), near: theirs.as_fd() }.run(tell.as_fd())
                });
                if let Err(error) = done {
                    tell_of(tell.as_fd(), Some(&error));
                }
                exit_now(0)
            }
            Cloned::Parent { pid, pidfd } => {
                Ok(Self { pid, pidfd, told: told.into(), near, until: Instant::now() + HANDSHAKE })
            }
        }
    }

    /// What tells that [`Speaker::authenticated`] has an answer.
    pub fn news(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }

    /// When the far end has taken too long.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Ends it, whoever the far end may be.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn give_up(self) -> Result<()> {
        Spoken { pid: self.pid, pidfd: self.pidfd }.end(Duration::ZERO)
    }

    /// Waits until the far end has shown its certificate; answers what leads to it.
    ///
    /// # Errors
    /// It has none that is believed, or does not believe this machine's; it takes too long.
    pub fn authenticated(mut self) -> Result<(UnixStream, Spoken)> {
        let outcome = self.outcome();
        let Self { pid, pidfd, near, .. } = self;
        let spoken = Spoken { pid, pidfd };
        match outcome {
            Ok(()) => Ok((near, spoken)),
            Err(error) => {
                drop(near);
                Err(error.and_then(spoken.end(Duration::ZERO)))
            }
        }
    }

    fn outcome(&mut self) -> Result<()> {
        let silent = || Error::plain(format!("the far end has not shown who it is for {} s", HANDSHAKE.as_secs()));
        let left =
            PollTimeout::try_from(self.until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
        let mut waited = [PollFd::new(self.told.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waited, left) {
            Ok(0) => return Err(silent()),
            Ok(_) | Err(nix::errno::Errno::EINTR) => (),
            Err(answer) => return Err(Error::kernel("wait for", "the far end", answer)),
        }
        let mut text = [0; 4096];
        let count = self.told.read(&mut text).or_cannot("hear of", "the process that speaks TLS")?;
        match serde_json::from_slice::<Option<Wire>>(&text[..count]) {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(Error::from_wire(error)),
            Err(_) => Err(Error::plain("the process that speaks TLS ended without a word")),
        }
    }
}

/// The process, once the far end is known.
#[derive(Debug)]
pub struct Spoken {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Spoken {
    /// Waits for its end, which comes with that of the connection, and kills it where it takes longer than `patience`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn end(self, patience: Duration) -> Result<()> {
        let named = "the process that speaks TLS";
        let limit = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], limit) == Ok(0) {
            nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL).or_cannot("kill", named)?;
        }
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
                Err(nix::errno::Errno::EINTR) => (),
                answer => return answer.map(drop).or_cannot("wait for", named),
            }
        }
    }
}

/// Says how the handshake ended. Nobody hears it where ferry has gone.
fn tell_of(tell: impl AsFd, error: Option<&Error>) {
    let text = serde_json::to_vec(&error.map(Error::to_wire)).unwrap_or_default();
    rustix::io::write(tell, &text).ok();
}

/// A descriptor as a stream: by read(2) and write(2) alone, where a socket's own would be calls that the jail has not.
struct Bytes<F>(F);

impl<F: AsFd> Read for Bytes<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buffer)?)
    }
}

impl<F: AsFd> Write for Bytes<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The speaker's own work.
struct Relay<N, L> {
    connection: Connection,
    network: N,
    near: L,
}

/// What is on its way.
#[derive(Default)]
struct Way {
    /// Came from the network, and is not yet with ferry.
    heard: Vec<u8>,
    /// The network says no more.
    deaf: bool,
    /// ferry says no more.
    mute: bool,
    /// Whether ferry and the network have been told so.
    told: [bool; 2],
}

impl<N: AsFd, L: AsFd> Relay<N, L> {
    /// Goes on until both ends have said everything. `tell` hears once that the far end has shown its certificate.
    fn run(mut self, tell: impl AsFd) -> Result<()> {
        let mut way = Way::default();
        let mut is_known = false;
        self.connection.set_buffer_limit(None);
        while way.told != [true, true] {
            if !is_known && self.is_welcome(&mut way)? {
                tell_of(&tell, None);
                is_known = true;
            }
            let (network, near) = self.wait(&way, is_known)?;
            if network.contains(PollFlags::POLLOUT) {
                self.speak()?;
            }
            if network.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) && !way.deaf {
                self.hear(&mut way)?;
            }
            if near.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) && !way.mute {
                self.take(&mut way)?;
            }
            if is_known && !way.heard.is_empty() {
                self.hand_over(&mut way)?;
            }
            if way.deaf && !is_known && way.heard.is_empty() {
                return Err(Error::plain("the far end hung up before it had shown who it is"));
            }
            self.close(&mut way);
        }
        Ok(())
    }

    /// Whether both ends have believed each other; the one that was called says so, and is heard by the other.
    fn is_welcome(&mut self, way: &mut Way) -> Result<bool> {
        if self.connection.is_handshaking() {
            return Ok(false);
        }
        if let Connection::Server(server) = &mut self.connection {
            return server.writer().write_all(&[WELCOME]).or_cannot("say to", "the far end").map(|()| true);
        }
        match way.heard.first() {
            None => Ok(false),
            Some(&WELCOME) => {
                way.heard.remove(0);
                Ok(true)
            }
            Some(_) => Err(Error::plain("the far end is no `ferry receive`")),
        }
    }

    fn wait(&self, way: &Way, is_known: bool) -> Result<(PollFlags, PollFlags)> {
        let mut network = PollFlags::empty();
        if self.connection.wants_write() {
            network |= PollFlags::POLLOUT;
        }
        // A peer that sends faster than ferry takes waits, as does ferry for the network.
        if !way.deaf && way.heard.len() < PIECE {
            network |= PollFlags::POLLIN;
        }
        let mut near = PollFlags::empty();
        if is_known && !way.mute && !self.connection.wants_write() {
            near |= PollFlags::POLLIN;
        }
        if is_known && !way.heard.is_empty() {
            near |= PollFlags::POLLOUT;
        }
        let mut waited = [PollFd::new(self.network.as_fd(), network), PollFd::new(self.near.as_fd(), near)];
        // What is not asked about is not waited for: an end that has hung up would be told of for ever.
        let asked: &mut [PollFd<'_>] = match (network.is_empty(), near.is_empty()) {
            (false, true) => &mut waited[..1],
            (true, false) => &mut waited[1..],
            _ => &mut waited[..],
        };
        match poll(asked, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => (),
            Err(answer) => return Err(Error::kernel("wait for", "the far end", answer)),
        }
        let of = |waited: &PollFd<'_>| waited.revents().unwrap_or(PollFlags::empty());
        Ok((of(&waited[0]), of(&waited[1])))
    }

    /// Sends what there is to the network.
    fn speak(&mut self) -> Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Bytes(self.network.as_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                sent => sent.map(drop).or_cannot("send to", "the far end")?,
            }
        }
        Ok(())
    }

    /// Takes what comes from the network.
    fn hear(&mut self, way: &mut Way) -> Result<()> {
        match self.connection.read_tls(&mut Bytes(self.network.as_fd())) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => way.deaf = true,
            Ok(0) => way.deaf = true,
            heard => heard.map(drop).or_cannot("hear", "the far end")?,
        }
        let taken = self.connection.process_new_packets();
        if let Err(why) = taken {
            // The far end is told why, if it listens.
            self.speak().ok();
            return Err(Error::said("speak TLS with", "the far end", why.to_string()).hint(
                "each end's certificate has to be of an authority in the other's ca.pem, and the destination's has to name it",
            ));
        }
        let mut piece = [0; PIECE];
        loop {
            match self.connection.reader().read(&mut piece) {
                Ok(0) => {
                    way.deaf = true;
                    return Ok(());
                }
                Ok(count) => way.heard.extend_from_slice(&piece[..count]),
                // There is no more now, or never will be, without a word of farewell: whether that is too early, ferry knows.
                Err(_) => return Ok(()),
            }
        }
    }

    /// Takes what ferry says.
    fn take(&mut self, way: &mut Way) -> Result<()> {
        let mut piece = [0; PIECE];
        match rustix::io::read(&self.near, &mut piece) {
            Ok(0) | Err(rustix::io::Errno::CONNRESET) => {
                way.mute = true;
                Ok(())
            }
            Ok(count) => self.connection.writer().write_all(&piece[..count]).or_cannot("say to", "the far end"),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(()),
            Err(answer) => Err(answer).or_cannot("hear", "ferry"),
        }
    }

    /// Hands ferry what came.
    fn hand_over(&self, way: &mut Way) -> Result<()> {
        match rustix::io::write(&self.near, &way.heard) {
            Ok(count) => drop(way.heard.drain(..count)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => (),
            // It does not want it any more.
            Err(_) => {
                way.heard.clear();
                (way.deaf, way.mute) = (true, true);
            }
        }
        Ok(())
    }

    /// Tells each end that the other says no more, once it has everything.
    fn close(&mut self, way: &mut Way) {
        let write = rustix::net::Shutdown::Write;
        if way.deaf && way.heard.is_empty() && !way.told[0] {
            way.told[0] = true;
            rustix::net::shutdown(&self.near, write).ok();
        }
        if way.mute && !way.told[1] {
            self.connection.send_close_notify();
            // All that is left of it goes now: without a word from ferry there is nobody to wait for the network.
            if self.speak().is_err() || !self.connection.wants_write() {
                way.told[1] = true;
                rustix::net::shutdown(&self.network, write).ok();
            }
        }
    }
}
