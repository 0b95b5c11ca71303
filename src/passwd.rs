//! What a passwd file says of a user id: read as text, of the host or inside a container.
//!
//! Not asked of the C library, which, linked statically, would load its name services at run time, and inside a container
//! would load the container's. Ids are never looked up by name: whom a number belongs to is asked, never the reverse.
//! passwd(5)

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// As much of the file as is looked at: in a container it is anybody's. Bytes.
const MOST: u64 = 1 << 20;

/// A user's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The login name.
    pub name: String,
    /// The home directory.
    pub home: String,
}

/// Looks a user id up in `/etc/passwd`, as it stands for this process.
pub fn find(uid: u32) -> Option<User> {
    let mut text = Vec::new();
    // An image may have a pipe there, on which an ordinary open would wait for ever.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open("/etc/passwd").ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    file.take(MOST).read_to_end(&mut text).ok()?;
    find_in(&String::from_utf8_lossy(&text), uid)
}

fn find_in(text: &str, uid: u32) -> Option<User> {
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields[..] {
            [name, _, id, _, _, home, _] if id.parse() == Ok(uid) => {
                Some(User { name: name.into(), home: home.into() })
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_number() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbroken\nu:x:1000:1000::/home/u:\n";
        assert_eq!(find_in(text, 1000), Some(User { name: "u".into(), home: "/home/u".into() }));
        assert_eq!(find_in(text, 1), None);
    }
}
