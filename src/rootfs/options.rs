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

    /// What a bind is to have in place of what its source has: all that is not set is cleared. Access times stay the
    /// source's unless something is set there, as with mount(8).
    pub fn replacing(self) -> Self {
        let times = if (self.set | self.clear) & (ATIME | NODIRATIME) == 0 { 0 } else { ATIME | NODIRATIME };
        let all = RDONLY | NOSUID | NODEV | NOEXEC | NOSYMFOLLOW | times;
        // The access-time mode is a field: it is cleared also where it is set.
        Self { set: self.set, clear: all & !(self.set & !ATIME) }
    }

    /// As much of [`Attributes::replacing`] as may be had of a mount whose attributes the host locked: what is asked for by
    /// name, and beside it only what cannot be locked. mount_namespaces(7)
    pub fn keeping(self) -> Self {
        let lockable_unasked = (RDONLY | NOSUID | NODEV | NOEXEC) & !self.clear;
        let Self { set, clear } = self.replacing();
        Self { set, clear: clear & !lockable_unasked }
    }

    /// A later option wins over an earlier one.
    fn change(&mut self, set: u64, clear: u64) {
        self.clear = (self.clear & !set) | clear;
        self.set = (self.set & !clear) | set;
    }

    /// Takes back what an earlier option set.
    fn unset(&mut self, bits: u64) {
        if self.set & bits & ATIME != 0 {
            self.clear &= !ATIME;
        }
        self.set &= !bits;
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
                CopyLink => self.copy_link,
                Remount => self.remount,
                Nothing | Propagation(_) | Superblock | Unset(_) => false,
            };
            given.then(|| (*name).to_owned())
        };
        let propagation = self.propagation.iter().filter_map(|flags| propagation_name(*flags)).map(str::to_owned);
        TABLE.iter().filter_map(word).chain(propagation).chain(self.own_words()).collect()
    }

    /// The filesystem's own options in words again. A bind passes over them: its source is mounted already.
    pub fn own_words(&self) -> impl Iterator<Item = String> {
        self.data.iter().map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        })
    }

    /// Whether all of them are of use to a new bind.
    pub fn suit_a_bind(&self) -> bool {
        self.data.is_empty() && !self.remount && !self.copy_up
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
    /// Whether any option is about attributes of the mount, be it one that asks for what is so anyway (`atime`). A bind
    /// without any has those of its source.
    pub about_attributes: bool,
    /// Attributes of the mount and of all below it.
    pub recursive: Attributes,
    /// Propagation changes, in order: `MS_SHARED` and so on, with `MS_REC` for the recursive forms.
    pub propagation: Vec<u64>,
    /// `Some(recursive)` for idmap and ridmap.
    pub idmap: Option<bool>,
    /// Whether a tmpfs begins with what the image has there.
    pub copy_up: bool,
    /// Whether a bind's source that is a symbolic link is made again, and what it leads to is not mounted: crun's option, by which
    /// podman mounts without dereferencing.
    pub copy_link: bool,
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
    /// Bits that are not asked for after all. Access times are then the kernel's default, and a bind's those of its source.
    Unset(u64),
    Recursive(u64, u64),
    Propagation(MsFlags),
    Idmap {
        recursive: bool,
    },
    CopyUp,
    CopyLink,
    Remount,
    /// A flag of the superblock, passed on by name.
    Superblock,
}

use Effect::{Attribute, Bind, CopyLink, CopyUp, Idmap, Nothing, Propagation, Recursive, Remount, Superblock, Unset};

/// Every option of runtime-spec 1.3.0, config.md#linux-mount-options. An access-time mode clears its whole field, as
/// mount_setattr(2) asks; relatime is zero in it.
const TABLE: &[(&str, Effect)] = &[
    ("async", Superblock),
    ("atime", Unset(NOATIME)),
    ("bind", Bind { recursive: false }),
    ("copy-symlink", CopyLink),
    ("defaults", Nothing),
    ("dev", Attribute(0, NODEV)),
    ("diratime", Unset(NODIRATIME)),
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
    ("norelatime", Unset(0)),
    ("nostrictatime", Unset(STRICTATIME)),
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
            Ok(Attribute(set, clear)) => {
                parsed.attributes.change(set, clear);
                parsed.about_attributes = true;
            }
            Ok(Unset(bits)) => {
                parsed.attributes.unset(bits);
                parsed.about_attributes = true;
            }
            Ok(Recursive(set, clear)) => parsed.recursive.change(set, clear),
            Ok(Propagation(flags)) => parsed.propagation.push(flags.bits()),
            Ok(Idmap { recursive }) => parsed.idmap = Some(recursive),
            Ok(CopyUp) => parsed.copy_up = true,
            Ok(CopyLink) => parsed.copy_link = true,
            Ok(Remount) => parsed.remount = true,
            Ok(Superblock) => parsed.data.push((option.clone(), None)),
            // podman sends an empty one along with the mounts of a container that runs systemd.
            Err(_) if option.is_empty() => (),
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
        assert_eq!(of(&["ro", "rw", "atime", "defaults"]).words(), ["rw"]);
        assert_eq!(propagation("rslave").and_then(propagation_name), Some("rslave"));
    }

    #[test]
    fn a_bind_has_nothing_of_a_new_filesystem() {
        for words in [&["ro", "nosuid", "rslave", "rro"][..], &["rbind", "noatime", "copy-symlink", ""]] {
            assert!(of(words).suit_a_bind(), "{words:?}");
        }
        for word in ["RO", "readonly", "size=5", "sync", "remount", "tmpcopyup"] {
            assert!(!of(&["rbind", word]).suit_a_bind(), "{word}");
        }
    }

    #[test]
    fn an_empty_option_is_none() {
        assert_eq!(of(&["", "nosuid", ""]), of(&["nosuid"]));
    }

    #[test]
    fn the_last_of_two_opposites_wins() {
        assert_eq!(of(&["ro", "rw"]).attributes, Attributes { set: 0, clear: RDONLY });
        assert_eq!(of(&["rw", "ro"]).attributes, Attributes { set: RDONLY, clear: 0 });
        assert_eq!(of(&["noatime", "strictatime"]).attributes, Attributes { set: STRICTATIME, clear: ATIME });
    }

    #[test]
    fn an_option_taken_back_asks_for_nothing() {
        for words in [&["noatime", "atime"][..], &["strictatime", "nostrictatime"], &["nodiratime", "diratime"]] {
            let options = of(words);
            assert_eq!((options.attributes, options.about_attributes), (Attributes::default(), true), "{words:?}");
        }
        assert_eq!(of(&["noatime", "nostrictatime"]).attributes, Attributes { set: NOATIME, clear: ATIME });
        assert!(!of(&["bind", "rro", "rslave", "mode=755"]).about_attributes);
    }

    #[test]
    fn a_bind_has_what_is_asked_for_and_the_times_of_its_source() {
        let replacing = |words: &[&str]| of(words).attributes.replacing();
        let others = NOSUID | NODEV | NOEXEC | NOSYMFOLLOW;
        assert_eq!(replacing(&["ro"]), Attributes { set: RDONLY, clear: others });
        assert_eq!(replacing(&["dev"]), Attributes { set: 0, clear: RDONLY | others });
        let times = ATIME | NODIRATIME;
        assert_eq!(replacing(&["ro", "noatime"]), Attributes { set: RDONLY | NOATIME, clear: others | times });
        let nodiratime = Attributes { set: RDONLY | NODIRATIME, clear: others | ATIME };
        assert_eq!(replacing(&["ro", "nodiratime"]), nodiratime, "relatime comes with it");
        assert_eq!(replacing(&["ro", "relatime"]), Attributes { set: RDONLY, clear: others | times });
    }

    #[test]
    fn a_locked_bind_keeps_what_nobody_asked_to_lose() {
        let keeping = |words: &[&str]| of(words).attributes.keeping();
        assert_eq!(keeping(&["ro"]), Attributes { set: RDONLY, clear: NOSYMFOLLOW });
        assert_eq!(keeping(&["ro", "exec"]), Attributes { set: RDONLY, clear: NOSYMFOLLOW | NOEXEC });
        assert_eq!(keeping(&["nosymfollow", "rw"]), Attributes { set: NOSYMFOLLOW, clear: RDONLY });
        assert_eq!(keeping(&["relatime"]), Attributes { set: 0, clear: NOSYMFOLLOW | ATIME | NODIRATIME });
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
