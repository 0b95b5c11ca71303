//! rtnetlink: one request at a time over a raw socket, and the messages it is answered with. rtnetlink(7), netlink(7)

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// New link, or a change of one.
pub const RTM_NEWLINK: u16 = 16;
/// Looks a link up.
pub const RTM_GETLINK: u16 = 18;
/// Gives a link an address.
pub const RTM_NEWADDR: u16 = 20;
/// Lists addresses.
pub const RTM_GETADDR: u16 = 22;
/// Every object there is.
pub const NLM_F_DUMP: u16 = 0x300;
/// Make it; with [`NLM_F_EXCL`], only if it is not there.
pub const NLM_F_CREATE: u16 = 0x400;
/// Fail if it is there.
pub const NLM_F_EXCL: u16 = 0x200;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// A route socket of the network namespace it was made in.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// A socket in the present network namespace.
    ///
    /// # Errors
    /// What socket(2) answers.
    pub fn open() -> Result<Self, Errno> {
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute).map(Self)
    }

    /// Sends a request, and answers the bodies of the messages that come back until it is acknowledged.
    ///
    /// # Errors
    /// The kernel's answer; EPROTO for one that does not read as such.
    pub fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
        send(self.0.as_raw_fd(), &request(kind, flags, body), MsgFlags::empty())?;
        let mut answers = Vec::new();
        loop {
            // Asked for first: a dump's datagrams may have 64 KiB, and clearing as much for the few bytes of an
            // acknowledgement is dearer than the call.
            let mut datagram = vec![0; self.receive(&mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC)?];
            let length = self.receive(&mut datagram, MsgFlags::empty())?;
            if let Some(end) = read(&datagram[..length], &mut answers)? {
                return end.map(|()| answers);
            }
        }
    }

    fn receive(&self, buffer: &mut [u8], flags: MsgFlags) -> Result<usize, Errno> {
        loop {
            match recv(self.0.as_raw_fd(), buffer, flags) {
                Err(Errno::EINTR) => (),
                length => return length,
            }
        }
    }
}

/// `struct nlmsghdr`, then the body.
fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence, port
    message.extend_from_slice(body);
    message
}

/// Takes the messages of one datagram apart; answers how the request ended, if it did.
fn read(mut datagram: &[u8], answers: &mut Vec<Vec<u8>>) -> Result<Option<Result<(), Errno>>, Errno> {
    while !datagram.is_empty() {
        let length = word(datagram, 0).ok_or(Errno::EPROTO)? as usize;
        let message = datagram.get(..length).filter(|message| message.len() >= HEADER).ok_or(Errno::EPROTO)?;
        match u16::from_ne_bytes([message[4], message[5]]) {
            NLMSG_ERROR => {
                let code = word(message, HEADER).ok_or(Errno::EPROTO)? as i32;
                return Ok(Some(if code == 0 { Ok(()) } else { Err(Errno::from_raw(-code)) }));
            }
            NLMSG_DONE => return Ok(Some(Ok(()))),
            _ => answers.push(message[HEADER..].to_vec()),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

/// The native 32-bit word at an offset.
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes)
}

/// `struct ifinfomsg` of the link with this index (0: none yet), with flags to set among those to change.
pub fn link(index: i32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4]; // family, padding, type
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&flags.to_ne_bytes());
    body.extend_from_slice(&change.to_ne_bytes());
    body
}

/// Appends an attribute: `struct rtattr`, the value, and padding to four bytes.
pub fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The attributes behind a fixed structure: kind and value. What does not read as one ends them.
pub fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let [low, high, kind_low, kind_high, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let Some(value) = bytes.get(4..length) else { break };
        found.push((u16::from_ne_bytes([kind_low, kind_high]), value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        request(kind, 0, body)
    }

    #[test]
    fn answers_up_to_the_acknowledgement() {
        let mut answers = Vec::new();
        let datagram = [message(RTM_NEWLINK, &[1, 2, 3, 4]), message(NLMSG_ERROR, &[0; 4])].concat();
        assert_eq!(read(&datagram, &mut answers), Ok(Some(Ok(()))));
        assert_eq!(answers, [vec![1, 2, 3, 4]]);
        let refused = message(NLMSG_ERROR, &(-(Errno::ENODEV as i32)).to_ne_bytes());
        assert_eq!(read(&refused, &mut answers), Ok(Some(Err(Errno::ENODEV))));
        assert_eq!(read(&message(RTM_NEWADDR, &[]), &mut answers), Ok(None));
        assert_eq!(read(&message(NLMSG_DONE, &[0; 4]), &mut answers), Ok(Some(Ok(()))));
        assert_eq!(read(&datagram[..30], &mut answers), Err(Errno::EPROTO));
        assert_eq!(read(&[0; 16], &mut answers), Err(Errno::EPROTO));
    }

    #[test]
    fn attributes_are_padded_and_read_back() {
        let mut body = Vec::new();
        push_attribute(&mut body, 3, b"eth0\0");
        push_attribute(&mut body, 28, &7u32.to_ne_bytes());
        assert_eq!(body.len(), 20);
        assert_eq!(attributes(&body), [(3, &b"eth0\0"[..]), (28, &7u32.to_ne_bytes()[..])]);
        assert_eq!(attributes(&[200, 0, 1, 0]), []);
    }
}
