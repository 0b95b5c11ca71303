//! How the far end is reached: `ssh://`, `exec:` or `tcp://`. Whichever it is, what comes of it is two descriptors.
//!
//! ssh and `exec:` start a command whose standard streams lead to `ferry receive --stdio`; nothing listens, and who may do it is
//! ssh's to say. A plain TCP connection proves nothing about who is at its end, and so is taken on this machine only.

use std::ffi::OsString;
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use super::link::Link;
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
        if text.starts_with("tls://") {
            return Err(wrong("there is no tls:// yet").hint("use ssh://"));
        }
        let Some(rest) = text.strip_prefix("ssh://") else {
            return Err(wrong("it is none of ssh://[USER@]HOST[:PORT], exec:COMMAND, tcp://ADDRESS:PORT"));
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
            Self::Tcp(_) => return None,
        };
        Some(words.into_iter().map(OsString::from).collect())
    }

    /// Goes there.
    ///
    /// # Errors
    /// The command cannot be started; nobody listens.
    pub fn connect(&self, remote: &str, patience: Duration) -> Result<Connection> {
        let Some(words) = self.command(remote) else {
            let stream = self.tcp()?;
            stream.set_nodelay(true).or_cannot("prepare", "the connection")?;
            let copy = stream.try_clone().or_cannot("prepare", "the connection")?;
            return Ok(Connection { link: Link::new(copy.into(), stream.into(), patience)?, child: None });
        };
        let (ours, theirs) = UnixStream::pair().or_cannot("make", "a socket")?;
        let copies =
            theirs.try_clone().and_then(|theirs| Ok((theirs, ours.try_clone()?))).or_cannot("make", "a socket")?;
        let end = |stream: UnixStream| Stdio::from(OwnedFd::from(stream));
        let child = Command::new(&words[0]).args(&words[1..]).stdin(end(theirs)).stdout(end(copies.0)).spawn();
        let child = child.or_cannot("start", words[0].to_string_lossy())?;
        Ok(Connection { link: Link::new(ours.into(), copies.1.into(), patience)?, child: Some(child) })
    }

    fn tcp(&self) -> Result<TcpStream> {
        let Self::Tcp(text) = self else { return Err(Error::plain("it is no TCP address")) };
        let addresses = text.to_socket_addrs().or_cannot("find", text)?;
        let mut refused = Error::said("connect to", text.clone(), "it has no address");
        for address in addresses {
            loopback(address.ip(), text)?;
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    refused = Err::<(), _>(error).or_cannot("connect to", address).err().unwrap_or(refused);
                }
            }
        }
        Err(refused)
    }
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
        .hint("use ssh://")),
    }
}

/// A link, and what it goes through.
pub struct Connection {
    /// The link.
    pub link: Link,
    child: Option<Child>,
}

impl Connection {
    /// One that goes through nothing that would have to be waited for.
    pub fn over(link: Link) -> Self {
        Self { link, child: None }
    }

    /// Ends it, and waits for the command, which is killed where it does not end by itself.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn close(self) -> Result<()> {
        let Self { link, child } = self;
        drop(link);
        let Some(mut child) = child else { return Ok(()) };
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

#[cfg(test)]
mod tests {
    use super::super::message::Message;
    use super::*;

    #[test]
    fn destinations_as_they_are_written() {
        let ssh = |host: &str, port| Destination::Ssh { host: host.into(), port };
        for (text, expected) in [
            ("ssh://b", ssh("b", None)),
            ("ssh://root@b.example:2222", ssh("root@b.example", Some(2222))),
            ("ssh://u@[::1]:22", ssh("u@::1", Some(22))),
            ("ssh://[::1]", ssh("::1", None)),
            ("exec:ssh -J x b ferry receive", Destination::Exec("ssh -J x b ferry receive".into())),
            ("tcp://127.0.0.1:7", Destination::Tcp("127.0.0.1:7".into())),
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
            "tls://b:1",
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
        let error = Destination::parse("tcp://192.0.2.1:9").unwrap().connect("", CONNECT).err().unwrap().to_string();
        assert!(error.contains("not of this machine"), "{error}");
    }

    #[test]
    fn a_command_is_at_the_other_end() {
        let mut connection = Destination::parse("exec:cat").unwrap().connect("", CONNECT).unwrap();
        connection.link.send(&Message::Prepared).unwrap();
        assert_eq!(connection.link.hear().unwrap(), Message::Prepared);
        connection.close().unwrap();
        let mut gone = Destination::parse("exec:exit 3").unwrap().connect("", CONNECT).unwrap();
        assert!(gone.link.hear().unwrap_err().to_string().contains("cut"));
    }
}
