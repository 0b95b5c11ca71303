//! How the far end is reached: `ssh://`, `exec:`, `tls://` or `tcp://`. Whichever it is, what comes of it is two descriptors.
//!
//! ssh and `exec:` start a command whose standard streams lead to `ferry receive --stdio`; nothing listens, and who may do it is
//! ssh's to say. With TLS both ends show certificates, before anything else is said. A plain TCP connection proves nothing about who is at its end, and so is taken on this machine only.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use rustix::process::{PidfdFlags, pidfd_open};
use rustls::pki_types::ServerName;

use super::link::Link;
use super::tls::{End, Identity, Speaker, Spoken};
use crate::checkpoint::criu::interrupts;
use crate::error::{Context, Error, Result};

/// How long a TCP connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a command may take to end once its streams have. ssh waits for a network that is gone.
const ENDING: Duration = Duration::from_secs(5);

/// Where to, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A command for the shell.
    Exec(String),
    /// `ssh [-p PORT] [USER@]HOST`.
    Ssh {
        /// With the user before it, if one was named.
        host: String,
        /// The port, if one was named.
        port: Option<u16>,
    },
    /// A server on this machine.
    Tcp(String),
    /// A server that shows a certificate of this name or address, and wants one.
    Tls {
        /// What its certificate names.
        name: ServerName<'static>,
        /// Host and port.
        address: String,
    },
}

/// How it is reached, beside where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// What calls ferry there, for ssh.
    pub remote: String,
    /// How long it may be silent.
    pub patience: Duration,
    /// The directory of certificates, for TLS.
    pub tls: PathBuf,
}

impl Destination {
    /// Whether a word looks like one.
    pub fn is_one(text: &str) -> bool {
        ["exec:", "ssh://", "tcp://", "tls://"].iter().any(|scheme| text.starts_with(scheme))
    }

    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::said("use destination", format!("{text:?}"), why.to_owned());
        if let Some(command) = text.strip_prefix("exec:") {
            return match command.trim() {
                "" => Err(wrong("it names no command")),
                _ => Ok(Self::Exec(command.to_owned())),
            };
        }
        if let Some(address) = text.strip_prefix("tcp://") {
            return Ok(Self::Tcp(address.to_owned()));
        }
        if let Some(address) = text.strip_prefix("tls://") {
            let host = address.rsplit_once(':').map(|(host, _)| host).ok_or_else(|| wrong("it names no port"))?;
            let name = ServerName::try_from(host.trim_matches(['[', ']'])).map_err(|_| wrong("its host is none"))?;
            return Ok(Self::Tls { name: name.to_owned(), address: address.to_owned() });
        }
        let Some(rest) = text.strip_prefix("ssh://") else {
            return Err(wrong(
                "it is none of ssh://[USER@]HOST[:PORT], exec:COMMAND, tls://HOST:PORT, tcp://ADDRESS:PORT",
            ));
        };
        let (host, port) = match rest.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| wrong("its port is none"))?)),
            None => (rest, None),
        };
        // ssh would take it for a flag.
        let name = host.rsplit_once('@').map_or(host, |(_, name)| name);
        let good = |text: &str| !text.is_empty() && !text.starts_with('-');
        if !good(host) || !good(name) || host.contains(['/', ' ']) {
            return Err(wrong("its host is none"));
        }
        Ok(Self::Ssh { host: host.replace(['[', ']'], ""), port })
    }

    /// The command line that leads there, where there is one; `remote` is what the shell at the far end of ssh is given.
    fn command(&self, remote: &str) -> Option<Vec<OsString>> {
        let words: Vec<String> = match self {
            Self::Exec(command) => vec!["sh".into(), "-c".into(), command.clone()],
            Self::Ssh { host, port } => {
                let port = port.map(|port| ["-p".to_owned(), port.to_string()]);
                let options = ["ssh", "-T"].map(str::to_owned);
                let end = ["--".to_owned(), host.clone(), remote.to_owned()];
                options.into_iter().chain(port.into_iter().flatten()).chain(end).collect()
            }
            Self::Tcp(_) | Self::Tls { .. } => return None,
        };
        Some(words.into_iter().map(OsString::from).collect())
    }

    /// Goes there.
    ///
    /// # Errors
    /// The command cannot be started; nobody listens, or has no certificate that is believed.
    pub fn connect(&self, reach: &Reach) -> Result<Connection> {
        let patience = reach.patience;
        match self {
            Self::Tcp(text) => return Connection::plain(tcp(text, true)?, patience),
            Self::Tls { name, address } => {
                let identity = Identity::read(&reach.tls)?;
                let speaker = Speaker::begin(&End::Client(name.clone()), &identity, tcp(address, false)?)?;
                return Connection::spoken(speaker, patience);
            }
            Self::Exec(_) | Self::Ssh { .. } => (),
        }
        let words = self.command(&format!("{} receive --stdio", reach.remote)).unwrap_or_default();
        // Of one socket both ways, what one program of a command does to its own end would be done to another's.
        let pair = || UnixStream::pair().or_cannot("make", "a socket");
        let ((output, stdin), (input, stdout)) = (pair()?, pair()?);
        let end = |stream: UnixStream| Stdio::from(OwnedFd::from(stream));
        let child = Command::new(&words[0]).args(&words[1..]).stdin(end(stdin)).stdout(end(stdout)).spawn();
        let child = child.or_cannot("start", words[0].to_string_lossy())?;
        Ok(Connection { link: Link::new(input.into(), output.into(), patience)?, through: Through::Command(child) })
    }
}

/// A TCP connection, to the first of its addresses that takes one.
fn tcp(text: &str, in_the_clear: bool) -> Result<TcpStream> {
    let addresses = text.to_socket_addrs().or_cannot("find", text)?;
    let mut refused = Error::said("connect to", text.to_owned(), "it has no address");
    for address in addresses {
        if in_the_clear {
            loopback(address.ip(), text)?;
        }
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                refused = Err::<(), _>(error).or_cannot("connect to", address).err().unwrap_or(refused);
            }
        }
    }
    Err(refused)
}

/// Nothing is to be heard or said in the clear beyond this machine.
///
/// # Errors
/// The address is another machine's.
pub fn loopback(address: IpAddr, shown: &str) -> Result<()> {
    match address.is_loopback() {
        true => Ok(()),
        false => Err(Error::said(
            "use",
            shown.to_owned(),
            "it is not of this machine, and tcp:// neither hides nor proves anything",
        )
        .hint("use ssh:// or tls://")),
    }
}

/// A link, and what it goes through.
pub struct Connection {
    /// The link.
    pub link: Link,
    through: Through,
}

/// What has to be waited for in the end.
enum Through {
    Nothing,
    Command(Child),
    Tls(Spoken),
}

impl Connection {
    /// One that goes through nothing that would have to be waited for.
    pub fn over(link: Link) -> Self {
        Self { link, through: Through::Nothing }
    }

    fn plain(stream: TcpStream, patience: Duration) -> Result<Self> {
        stream.set_nodelay(true).or_cannot("prepare", "the connection")?;
        let copy = stream.try_clone().or_cannot("prepare", "the connection")?;
        Ok(Self::over(Link::new(copy.into(), stream.into(), patience)?))
    }

    fn spoken(speaker: Speaker, patience: Duration) -> Result<Self> {
        let (near, spoken) = speaker.authenticated()?;
        let copy = near.try_clone().or_cannot("prepare", "the connection")?;
        Ok(Self { link: Link::new(copy.into(), near.into(), patience)?, through: Through::Tls(spoken) })
    }

    /// Ends it, and waits for the command, which is killed where it does not end by itself.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn close(self) -> Result<()> {
        let Self { link, through } = self;
        drop(link);
        let mut child = match through {
            Through::Nothing => return Ok(()),
            Through::Tls(spoken) => return spoken.end(ENDING),
            Through::Command(child) => child,
        };
        let named = "the command that leads to the far end";
        let pidfd = rustix::process::Pid::from_raw(child.id().cast_signed())
            .ok_or_else(|| Error::plain("a command without a process"))
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).or_cannot("find", named))?;
        let limit = PollTimeout::try_from(ENDING).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], limit) == Ok(0) {
            child.kill().or_cannot("kill", named)?;
        }
        child.wait().map(drop).or_cannot("wait for", named)
    }
}

/// Where connections come in.
pub struct Listener {
    listener: TcpListener,
    /// The one it listens at.
    pub address: SocketAddr,
    identity: Option<Identity>,
    /// Those that have not shown who they are, the oldest first.
    unknown: VecDeque<Speaker>,
    /// Made once, so that it is there when there are no descriptors left.
    signals: SignalFd,
}

/// How long nobody is taken, where there is nothing left to take them with.
const REST: Duration = Duration::from_secs(1);

/// So many may be about to show who they are.
const UNKNOWN: usize = 16;

impl Listener {
    /// Listens. Without an identity, nobody can be known, and only this machine is listened to.
    ///
    /// # Errors
    /// The address is not this machine's, or another's to be had in the clear.
    pub fn bind(address: &str, identity: Option<Identity>) -> Result<Self> {
        let listener = TcpListener::bind(address).or_cannot("listen at", address)?;
        let bound = listener.local_addr().or_cannot("listen at", address)?;
        if identity.is_none() {
            loopback(bound.ip(), address)?;
        }
        Ok(Self { listener, address: bound, identity, unknown: VecDeque::new(), signals: interrupts()? })
    }

    /// The next connection, whose far end is known where that is asked for. `refused` hears of those that are not, or that came to
    /// nothing. Signals with which a user ends a program must be blocked, and end it.
    ///
    /// # Errors
    /// A signal; the kernel's answer.
    pub fn accept(&mut self, patience: Duration, refused: &mut dyn FnMut(Error)) -> Result<Connection> {
        let mut rests = false;
        loop {
            let oldest = self
                .unknown
                .front()
                .map(|speaker| speaker.until().saturating_duration_since(Instant::now()) + Duration::from_millis(1));
            let left = oldest.into_iter().chain(rests.then_some(REST)).min();
            let limit = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
            let ends =
                [self.signals.as_fd(), self.listener.as_fd()].into_iter().chain(self.unknown.iter().map(Speaker::news));
            let mut waited: Vec<PollFd<'_>> = ends.map(|end| PollFd::new(end, PollFlags::POLLIN)).collect();
            if rests {
                waited[1].set_events(PollFlags::empty());
            }
            match poll(&mut waited, limit) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => (),
                Err(answer) => return Err(Error::kernel("wait for", "a connection", answer)),
            }
            rests = false;
            let ready: Vec<bool> = waited.iter().map(|waited| waited.any().unwrap_or(false)).collect();
            if ready[0] {
                return Err(Error::plain("interrupted by a signal"));
            }
            let late = |speaker: &Speaker| speaker.until() <= Instant::now();
            let told = (0..self.unknown.len()).find(|index| ready[index + 2] || late(&self.unknown[*index]));
            if let Some(speaker) = told.and_then(|index| self.unknown.remove(index)) {
                match Connection::spoken(speaker, patience) {
                    Ok(connection) => return Ok(connection),
                    Err(error) => refused(error),
                }
            } else if ready[1] {
                match self.take(patience) {
                    Ok(Some(connection)) => return Ok(connection),
                    Ok(None) => (),
                    Err(error) => {
                        // The connection waits on, and is there again at once.
                        rests = matches!(error.errno(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM));
                        refused(error);
                    }
                }
                if self.unknown.len() > UNKNOWN
                    && let Some(oldest) = self.unknown.pop_front()
                {
                    oldest.give_up()?;
                    refused(Error::plain(format!("{UNKNOWN} newer connections wait for who they are to be known")));
                }
            }
        }
    }

    /// Takes a connection; `None`: who is at its end is not known yet. accept(2) also tells of what befell it on the network.
    fn take(&mut self, patience: Duration) -> Result<Option<Connection>> {
        let (stream, _) = self.listener.accept().or_cannot("accept a connection at", self.address)?;
        let Some(identity) = &self.identity else { return Connection::plain(stream, patience).map(Some) };
        self.unknown.push_back(Speaker::begin(&End::Server, identity, stream)?);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Message;
    use super::*;

    fn reach() -> Reach {
        Reach { remote: String::new(), patience: CONNECT, tls: PathBuf::new() }
    }

    #[test]
    fn destinations_as_they_are_written() {
        let tls = |name: &str, address: &str| {
            let name = ServerName::try_from(name).unwrap().to_owned();
            Destination::Tls { name, address: address.into() }
        };
        let ssh = |host: &str, port| Destination::Ssh { host: host.into(), port };
        for (text, expected) in [
            ("ssh://b", ssh("b", None)),
            ("ssh://root@b.example:2222", ssh("root@b.example", Some(2222))),
            ("ssh://u@[::1]:22", ssh("u@::1", Some(22))),
            ("ssh://[::1]", ssh("::1", None)),
            ("exec:ssh -J x b ferry receive", Destination::Exec("ssh -J x b ferry receive".into())),
            ("tcp://127.0.0.1:7", Destination::Tcp("127.0.0.1:7".into())),
            ("tls://b.example:7", tls("b.example", "b.example:7")),
            ("tls://[::1]:7", tls("::1", "[::1]:7")),
        ] {
            assert_eq!(Destination::parse(text).unwrap(), expected, "{text}");
            assert!(Destination::is_one(text));
        }
        for wrong in [
            "b",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://u@-x",
            "ssh://b:x",
            "ssh://a b",
            "exec: ",
            "tls://b",
            "tls://b c:1",
            "ssh://b/x",
        ] {
            assert!(Destination::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ssh_is_given_words_it_cannot_mistake() {
        let destination = Destination::parse("ssh://root@b:2222").unwrap();
        let words = destination.command("sudo ferry receive --stdio").unwrap();
        assert_eq!(words[..5], ["ssh", "-T", "-p", "2222", "--"]);
        assert_eq!(words[5..], ["root@b", "sudo ferry receive --stdio"]);
    }

    #[test]
    fn the_clear_is_for_this_machine_alone() {
        let error = Destination::parse("tcp://192.0.2.1:9").unwrap().connect(&reach()).err().unwrap().to_string();
        assert!(error.contains("not of this machine"), "{error}");
    }

    #[test]
    fn a_command_is_at_the_other_end() {
        let mut connection = Destination::parse("exec:cat").unwrap().connect(&reach()).unwrap();
        connection.link.send(&Message::Prepared).unwrap();
        assert_eq!(connection.link.hear().unwrap(), Message::Prepared);
        connection.close().unwrap();
        let mut gone = Destination::parse("exec:exit 3").unwrap().connect(&reach()).unwrap();
        assert!(gone.link.hear().unwrap_err().to_string().contains("cut"));
    }
}
