//! Mount options: the one table of what config.md names, and what each does.
//!
//! Attributes of the mount itself (`ro`, `nosuid`, and their recursive forms) go to mount_setattr(2) as bits to set and
//! to clear; what the table does not know is the filesystem's own and goes to fsconfig(2) as it is.

use nix::mount::MsFlags;
use serde::Serialize;

use crate::sys::mount::{
    MOUNT_ATTR_ATIME as ATIME, MOUNT_ATTR_NOATIME as NOATIME, MOUNT_ATTR_NODEV as NODEV,
    MOUNT_ATTR_NODIRATIME as NODIRATIME, MOUNT_ATTR_NOEXEC as NOEXEC, MOUNT_ATTR_NOSUID as NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW as NOSYMFOLLOW, MOUNT_ATTR_RDONLY as RDONLY, MOUNT_ATTR_STRICTATIME as STRICTATIME,
};

/// Attribute bits to set and to clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Attributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
}

impl Attributes {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the option `name`, which sets and clears these bits, says what is asked for. Of the many names for the
    /// access-time mode that is zero only `zero` does.
    fn say(&self, name: &str, zero: &str, set: u64, clear: u64) -> bool {
        match (set, clear) {
            (0, ATIME) => name == zero && self.clear & ATIME != 0 && self.set & ATIME == 0,
            (0, clear) => self.clear & clear == clear,
            (set, _) => self.set & set == set,
        }
    }

    /// A later option wins over an earlier one.
    fn change(&mut self, set: u64, clear: u64) {
        self.clear = (self.clear & !set) | clear;
        self.set = (self.set & !clear) | set;
    }
}

impl Options {
    /// The options in words again, each once: those of the mount, what changes its propagation, and the filesystem's own.
    pub fn words(&self) -> Vec<String> {
        let word = |(name, effect): &(&str, Effect)| {
            let given = match *effect {
                Bind { recursive } => self.bind == Some(recursive),
                Idmap { recursive } => self.idmap == Some(recursive),
                Attribute(set, clear) => self.attributes.say(name, "relatime", set, clear),
                Recursive(set, clear) => self.recursive.say(name, "rrelatime", set, clear),
                CopyUp => self.copy_up,
                Remount => self.remount,
                Nothing | Propagation(_) | Superblock => false,
            };
            given.then(|| (*name).to_owned())
        };
        let propagation = self.propagation.iter().filter_map(|flags| propagation_name(*flags)).map(str::to_owned);
        let own = self.data.iter().map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        });
        TABLE.iter().filter_map(word).chain(propagation).chain(own).collect()
    }
}

/// The options of one mount, sorted by what they act on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Options {
    /// `Some(recursive)` for bind and rbind.
    pub bind: Option<bool>,
    /// Whether what is mounted there already gets these options, and nothing is mounted.
    pub remount: bool,
    /// Attributes of the mount.
    pub attributes: Attributes,
    /// Attributes of the mount and of all below it.
    pub recursive: Attributes,
    /// Propagation changes, in order: `MS_SHARED` and so on, with `MS_REC` for the recursive forms.
    pub propagation: Vec<u64>,
    /// `Some(recursive)` for idmap and ridmap.
    pub idmap: Option<bool>,
    /// Whether a tmpfs begins with what the image has there.
    pub copy_up: bool,
    /// The filesystem's own: key, and value where there is one.
    pub data: Vec<(String, Option<String>)>,
}

#[derive(Debug, Clone, Copy)]
enum Effect {
    Nothing,
    Bind {
        recursive: bool,
    },
    /// Bits to set and to clear.
    Attribute(u64, u64),
    Recursive(u64, u64),
    Propagation(MsFlags),
    Idmap {
        recursive: bool,
    },
    CopyUp,
    Remount,
    /// A flag of the superblock, passed on by name.
    Superblock,
}

use Effect::{Attribute, Bind, CopyUp, Idmap, Nothing, Propagation, Recursive, Remount, Superblock};

/// Every option of runtime-spec 1.3.0, config.md#linux-mount-options. An access-time mode clears its whole field, as
/// mount_setattr(2) asks; relatime is zero in it.
const TABLE: &[(&str, Effect)] = &[
    ("async", Superblock),
    ("atime", Attribute(0, ATIME)),
    ("bind", Bind { recursive: false }),
    ("defaults", Nothing),
    ("dev", Attribute(0, NODEV)),
    ("diratime", Attribute(0, NODIRATIME)),
    ("dirsync", Superblock),
    ("exec", Attribute(0, NOEXEC)),
    ("idmap", Idmap { recursive: false }),
    ("iversion", Nothing),
    ("lazytime", Superblock),
    ("loud", Nothing),
    ("mand", Superblock),
    ("noatime", Attribute(NOATIME, ATIME)),
    ("nodev", Attribute(NODEV, 0)),
    ("nodiratime", Attribute(NODIRATIME, 0)),
    ("noexec", Attribute(NOEXEC, 0)),
    ("noiversion", Nothing),
    ("nolazytime", Superblock),
    ("nomand", Superblock),
    ("norelatime", Attribute(0, ATIME)),
    ("nostrictatime", Attribute(0, ATIME)),
    ("nosuid", Attribute(NOSUID, 0)),
    ("nosymfollow", Attribute(NOSYMFOLLOW, 0)),
    ("private", Propagation(MsFlags::MS_PRIVATE)),
    ("ratime", Recursive(0, ATIME)),
    ("rbind", Bind { recursive: true }),
    ("rdev", Recursive(0, NODEV)),
    ("rdiratime", Recursive(0, NODIRATIME)),
    ("relatime", Attribute(0, ATIME)),
    ("remount", Remount),
    ("rexec", Recursive(0, NOEXEC)),
    ("ridmap", Idmap { recursive: true }),
    ("rnoatime", Recursive(NOATIME, ATIME)),
    ("rnodev", Recursive(NODEV, 0)),
    ("rnodiratime", Recursive(NODIRATIME, 0)),
    ("rnoexec", Recursive(NOEXEC, 0)),
    ("rnorelatime", Recursive(0, ATIME)),
    ("rnostrictatime", Recursive(0, ATIME)),
    ("rnosuid", Recursive(NOSUID, 0)),
    ("rnosymfollow", Recursive(NOSYMFOLLOW, 0)),
    ("ro", Attribute(RDONLY, 0)),
    ("rprivate", Propagation(MsFlags::MS_PRIVATE.union(MsFlags::MS_REC))),
    ("rrelatime", Recursive(0, ATIME)),
    ("rro", Recursive(RDONLY, 0)),
    ("rrw", Recursive(0, RDONLY)),
    ("rshared", Propagation(MsFlags::MS_SHARED.union(MsFlags::MS_REC))),
    ("rslave", Propagation(MsFlags::MS_SLAVE.union(MsFlags::MS_REC))),
    ("rstrictatime", Recursive(STRICTATIME, ATIME)),
    ("rsuid", Recursive(0, NOSUID)),
    ("rsymfollow", Recursive(0, NOSYMFOLLOW)),
    ("runbindable", Propagation(MsFlags::MS_UNBINDABLE.union(MsFlags::MS_REC))),
    ("rw", Attribute(0, RDONLY)),
    ("shared", Propagation(MsFlags::MS_SHARED)),
    ("silent", Nothing),
    ("slave", Propagation(MsFlags::MS_SLAVE)),
    ("strictatime", Attribute(STRICTATIME, ATIME)),
    ("suid", Attribute(0, NOSUID)),
    ("symfollow", Attribute(0, NOSYMFOLLOW)),
    ("sync", Superblock),
    ("tmpcopyup", CopyUp),
    ("unbindable", Propagation(MsFlags::MS_UNBINDABLE)),
];

/// The options ferry itself understands, for `features`.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}

/// Sorts a mount's options by what they act on. There is no error here: what the table does not name is for the
/// filesystem to judge.
pub fn parse(options: &[String]) -> Options {
    let mut parsed = Options::default();
    for option in options {
        let row = TABLE.binary_search_by(|(name, _)| (*name).cmp(option.as_str())).map(|at| TABLE[at].1);
        match row {
            Ok(Nothing) => (),
            Ok(Bind { recursive }) => parsed.bind = Some(recursive || parsed.bind == Some(true)),
            Ok(Attribute(set, clear)) => parsed.attributes.change(set, clear),
            Ok(Recursive(set, clear)) => parsed.recursive.change(set, clear),
            Ok(Propagation(flags)) => parsed.propagation.push(flags.bits()),
            Ok(Idmap { recursive }) => parsed.idmap = Some(recursive),
            Ok(CopyUp) => parsed.copy_up = true,
            Ok(Remount) => parsed.remount = true,
            Ok(Superblock) => parsed.data.push((option.clone(), None)),
            Err(_) => parsed.data.push(match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.clone(), None),
            }),
        }
    }
    parsed
}

/// Propagation of the root mount by name: `shared`, `rslave`, … config-linux.md#rootfs-mount-propagation
pub fn propagation(name: &str) -> Option<u64> {
    match TABLE.binary_search_by(|(row, _)| (*row).cmp(name)).map(|at| TABLE[at].1) {
        Ok(Propagation(flags)) => Some(flags.bits()),
        _ => None,
    }
}

/// The name of a propagation, the reverse of [`propagation`].
pub fn propagation_name(flags: u64) -> Option<&'static str> {
    let is_it = |effect: &Effect| matches!(effect, Propagation(row) if row.bits() == flags);
    TABLE.iter().find(|(_, effect)| is_it(effect)).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Options {
        parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_table_is_sorted() {
        assert!(TABLE.is_sorted_by(|left, right| left.0 < right.0));
    }

    #[test]
    fn in_words_again() {
        for words in [
            &["bind", "nosuid", "ro", "rslave"][..],
            &["nodev", "relatime", "mode=755", "newinstance"],
            &["noatime", "rbind", "rro", "tmpcopyup"],
            &["dev", "rrelatime", "strictatime", "suid"],
        ] {
            assert_eq!(of(words).words(), words);
        }
        assert_eq!(of(&["ro", "rw", "atime", "defaults"]).words(), ["relatime", "rw"]);
        assert_eq!(propagation("rslave").and_then(propagation_name), Some("rslave"));
    }

    #[test]
    fn the_last_of_two_opposites_wins() {
        assert_eq!(of(&["ro", "rw"]).attributes, Attributes { set: 0, clear: RDONLY });
        assert_eq!(of(&["rw", "ro"]).attributes, Attributes { set: RDONLY, clear: 0 });
        assert_eq!(of(&["noatime", "strictatime"]).attributes, Attributes { set: STRICTATIME, clear: ATIME });
    }

    #[test]
    fn the_filesystems_own_options_pass_through() {
        let options = of(&["nosuid", "mode=755", "size=65536k", "newinstance", "rbind"]);
        let data = [("mode", Some("755")), ("size", Some("65536k")), ("newinstance", None)];
        assert_eq!(options.data, data.map(|(key, value)| (key.to_owned(), value.map(str::to_owned))));
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.attributes, Attributes { set: NOSUID, clear: 0 });
    }
}
