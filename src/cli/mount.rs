//! Mounts on the command line, as podman and docker spell them: `--mount type=bind,src=/a,dst=/b,ro` and
//! `--volume /a:/b:ro`.

use std::path::{Path, PathBuf};

use crate::rootfs::options;
use crate::security::lsm;
use crate::spec::config::Mount;

/// A mount of `--mount`: `key=value` and words parted by commas. `src`/`source`, `dst`/`destination`/`target`, `type`
/// (bind by default), `ro`/`readonly`, `rw`, `bind-propagation` and `bind-nonrecursive` are read; any other word is a
/// mount option: a bind's, or the filesystem's own, which it judges itself. For tmpfs also `tmpfs-size` and `tmpfs-mode`,
/// and every `key=value` of the filesystem's own.
///
/// # Errors
/// In words: what is missing or not understood.
pub fn from_mount(given: &str) -> Result<Mount, String> {
    let mut mount = Mount { kind: "bind".to_owned(), ..Mount::default() };
    let mut recursive = true;
    let mut propagation = "rprivate".to_owned();
    let mut options = Vec::new();
    for field in given.split(',').filter(|field| !field.is_empty()) {
        let (key, value) = field.split_once('=').map_or((field, None), |(key, value)| (key, Some(value)));
        match (key, value) {
            ("type", Some(kind)) => mount.kind = kind.to_owned(),
            ("src" | "source", Some(source)) => mount.source = source.into(),
            ("dst" | "destination" | "target", Some(destination)) => mount.destination = destination.into(),
            ("ro" | "readonly", truth) => options.push(if truth_of(key, truth)? { "ro" } else { "rw" }.to_owned()),
            ("rw", truth) => options.push(if truth_of(key, truth)? { "rw" } else { "ro" }.to_owned()),
            ("bind-propagation", Some(kind)) if options::propagation(kind).is_some() => propagation = kind.to_owned(),
            ("bind-propagation", kind) => {
                return Err(format!(
                    "{:?} is no propagation: private, slave, shared or their r-forms",
                    kind.unwrap_or_default()
                ));
            }
            ("bind-nonrecursive", truth) => recursive = !truth_of(key, truth)?,
            ("tmpfs-size", Some(size)) => options.push(format!("size={size}")),
            ("tmpfs-mode", Some(mode)) => options.push(format!("mode={mode}")),
            (_, Some(_)) if mount.kind == "bind" => return Err(format!("unknown key {key:?} for a bind mount")),
            _ => options.push(field.to_owned()),
        }
    }
    if mount.kind == "bind" {
        mount.source = source(&mount.source)?;
        options = of_bind(options.into_iter())?;
        mount.options = vec![if recursive { "rbind" } else { "bind" }.to_owned(), propagation];
    } else if mount.source.as_os_str().is_empty() {
        // A filesystem without a device shows its type in /proc/self/mountinfo.
        mount.source = PathBuf::from(&mount.kind);
    }
    mount.options.append(&mut options);
    mount.destination = destination(&mount.destination)?;
    Ok(mount)
}

/// A bind mount of `--volume SRC:DST[:OPTION,…]`.
///
/// # Errors
/// In words: what is missing or not understood.
pub fn from_volume(given: &str) -> Result<Mount, String> {
    let mut parts = given.split(':');
    let (Some(from), Some(to)) = (parts.next(), parts.next()) else {
        return Err("it reads SRC:DST or SRC:DST:ro".to_owned());
    };
    if !from.contains('/') && !from.starts_with('.') {
        return Err(format!(
            "{from:?} is not a path; there are no named volumes, so give a directory, such as ./{from}"
        ));
    }
    let mut options = vec!["rbind".to_owned(), "rprivate".to_owned()];
    let extra = parts.next().unwrap_or_default();
    options.extend(of_bind(extra.split(',').filter(|option| !option.is_empty()).map(str::to_owned))?);
    match parts.next() {
        Some(_) => Err("it has more than three parts".to_owned()),
        None => Ok(Mount {
            kind: "bind".to_owned(),
            source: source(Path::new(from))?,
            destination: destination(Path::new(to))?,
            options,
            ..Mount::default()
        }),
    }
}

/// The options of a bind, less those that ask for nothing here. The kernel would pass over what a bind cannot have, and a mistyped
/// `ro` would give a directory of the host that can be written.
fn of_bind(given: impl Iterator<Item = String>) -> Result<Vec<String>, String> {
    let mut options: Vec<String> = Vec::new();
    for option in given {
        match option.as_str() {
            "z" | "Z" => relabel(&option, lsm::probe().selinux)?,
            "U" => return Err("U would change the owner of the host's files: do it before, with chown -R".to_owned()),
            "O" => return Err("O is not known: --mount type=overlay mounts an overlay".to_owned()),
            "idmap" | "ridmap" => {
                return Err(format!("{option} takes the id mapping of a bundle's config.json, and here is none"));
            }
            _ if options::parse(std::slice::from_ref(&option)).suit_a_bind() => options.push(option),
            _ => {
                return Err(format!(
                    "{option:?} is no option of a bind mount; one is ro, rw, nosuid, nodev, noexec, rslave, rshared, …"
                ));
            }
        }
    }
    Ok(options)
}

/// `z` and `Z` ask that the source be labelled for the container, which is nothing where no labels are in force.
fn relabel(option: &str, selinux: lsm::Module) -> Result<(), String> {
    match selinux {
        lsm::Module::Absent => Ok(()),
        lsm::Module::InForce(_) => {
            Err(format!("{option} would label the host's files anew: do it before, with chcon -Rt container_file_t"))
        }
    }
}

/// `readonly`, `readonly=true`, `readonly=false`.
fn truth_of(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(format!("{key} is true or false, not {other:?}")),
    }
}

/// A person's relative path is relative to where they stand, not to a bundle.
fn source(given: &Path) -> Result<PathBuf, String> {
    if given.as_os_str().is_empty() {
        return Err("it names no source (src=…)".to_owned());
    }
    std::path::absolute(given).map_err(|why| format!("cannot find the working directory: {why}"))
}

fn destination(given: &Path) -> Result<PathBuf, String> {
    if given.as_os_str().is_empty() {
        return Err("it names no destination (dst=…)".to_owned());
    }
    if given.is_absolute() { Ok(given.to_owned()) } else { Err(format!("its destination {given:?} is not absolute")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.to_owned(),
            source: source.into(),
            destination: destination.into(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn a_bind_mount_is_recursive_and_private_unless_it_says_otherwise() {
        let plain = mount("bind", "/a", "/b", &["rbind", "rprivate"]);
        assert_eq!(from_mount("type=bind,src=/a,dst=/b").unwrap(), plain);
        assert_eq!(from_mount("source=/a,target=/b").unwrap(), plain);
        assert_eq!(
            from_mount("type=bind,source=/a,destination=/b,readonly,bind-propagation=rslave,bind-nonrecursive")
                .unwrap(),
            mount("bind", "/a", "/b", &["bind", "rslave", "ro"])
        );
        assert_eq!(
            from_mount("src=/a,dst=/b,ro=false,nosuid").unwrap(),
            mount("bind", "/a", "/b", &["rbind", "rprivate", "rw", "nosuid"])
        );
    }

    #[test]
    fn a_filesystem_gets_its_own_options() {
        assert_eq!(
            from_mount("type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=1777,nr_inodes=5,noexec").unwrap(),
            mount("tmpfs", "tmpfs", "/t", &["size=64m", "mode=1777", "nr_inodes=5", "noexec"])
        );
    }

    #[test]
    fn a_volume_is_a_bind_mount() {
        assert_eq!(from_volume("/a:/b").unwrap(), mount("bind", "/a", "/b", &["rbind", "rprivate"]));
        assert_eq!(
            from_volume("/a:/b:ro,nosuid").unwrap(),
            mount("bind", "/a", "/b", &["rbind", "rprivate", "ro", "nosuid"])
        );
        let here = std::env::current_dir().unwrap().join("a");
        assert_eq!(from_volume("./a:/b").unwrap().source, here);
    }

    #[test]
    fn what_is_missing_or_unknown_is_said() {
        for (given, said) in [
            ("dst=/b", "it names no source (src=…)"),
            ("src=/a", "it names no destination (dst=…)"),
            ("src=/a,dst=b", "its destination \"b\" is not absolute"),
            ("scr=/a,dst=/b", "unknown key \"scr\" for a bind mount"),
            ("src=/a,dst=/b,ro=maybe", "ro is true or false, not \"maybe\""),
            (
                "src=/a,dst=/b,bind-propagation=own",
                "\"own\" is no propagation: private, slave, shared or their r-forms",
            ),
        ] {
            assert_eq!(from_mount(given).unwrap_err(), said, "{given}");
        }
        for (given, said) in [
            ("/a", "it reads SRC:DST or SRC:DST:ro"),
            ("/a:/b:ro:x", "it has more than three parts"),
            ("data:/b", "\"data\" is not a path; there are no named volumes, so give a directory, such as ./data"),
            ("/a:b", "its destination \"b\" is not absolute"),
        ] {
            assert_eq!(from_volume(given).unwrap_err(), said, "{given}");
        }
    }

    #[test]
    fn what_a_bind_cannot_have_is_refused() {
        for option in
            ["RO", "or", "readonly", "rx", "bogus=1", "size=5", "sync", "remount", "tmpcopyup", "U", "O", "idmap"]
        {
            let why = from_volume(&format!("/a:/b:ro,{option}")).unwrap_err();
            assert!(why.contains(option), "{option}: {why}");
        }
        for option in ["RO", "rx", "sync", "U", "ridmap"] {
            assert!(from_mount(&format!("{option},type=bind,src=/a,dst=/b")).unwrap_err().contains(option), "{option}");
        }
        assert!(from_mount("type=tmpfs,dst=/t,sync,huge=never").is_ok(), "these are the filesystem's to judge");
    }

    #[test]
    fn a_label_is_nothing_where_there_are_none() {
        assert_eq!(relabel("z", lsm::Module::Absent), Ok(()));
        assert!(relabel("Z", lsm::Module::InForce("")).unwrap_err().starts_with("Z would label"));
        if lsm::probe().selinux == lsm::Module::Absent {
            assert_eq!(from_volume("/a:/b:ro,Z").unwrap(), mount("bind", "/a", "/b", &["rbind", "rprivate", "ro"]));
        }
    }
}
