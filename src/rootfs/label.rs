//! `linux.mountLabel`: the SELinux context that the files of the container's filesystems have.
//!
//! A filesystem takes it as a mount option, for all of its files at once. Binds keep the labels that their files have;
//! procfs and sysfs label each file by their own rules; mqueue takes no such option, and its root directory is labelled
//! when it is mounted. config-linux.md#mount-label, mount(8)

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, XattrFlags, fsetxattr, openat};

use super::plan::{Mount, What};
use crate::error::{Context, Result};

/// The options that are a context already, which then is the engine's own choice.
const CONTEXTS: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

/// The attribute that a file's context is kept in. xattr(7)
const ATTRIBUTE: &str = "security.selinux";

/// Adds the mount option `context`, or one of its kind, to every mount that takes it.
pub fn add(mounts: &mut [Mount], option: &str, label: &str) {
    for mount in mounts {
        let takes =
            matches!(&mount.what, What::Filesystem { kind, .. } if !["proc", "sysfs", "mqueue"].contains(&&**kind));
        let data = &mut mount.options.data;
        if takes && !data.iter().any(|(key, _)| CONTEXTS.contains(&key.as_str())) {
            data.push((option.to_owned(), Some(label.to_owned())));
        }
        if matches!(&mount.what, What::Filesystem { kind, .. } if kind == "mqueue") {
            mount.root_label = Some(label.to_owned());
        }
    }
}

/// Labels the root directory of a mount.
///
/// # Errors
/// EINVAL for a context that the policy does not know.
pub fn root(mount: BorrowedFd<'_>, label: &str, place: &Path) -> Result<()> {
    let named = || format!("{} with {label:?}", place.display());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(mount, c".", flags, Mode::empty()).or_cannot("label", named())?;
    fsetxattr(&directory, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()).or_cannot("label", named())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::options;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn labelled(kind: &str, given: &[&str]) -> Mount {
        let what = match kind {
            "bind" => What::Bind("/source".into()),
            "cgroup" => What::Cgroup,
            kind => What::Filesystem { kind: kind.to_owned(), source: kind.to_owned() },
        };
        let options = options::parse(&given.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>());
        let mount = Mount { destination: "/d".into(), what, options, idmap: None, handed: false, root_label: None };
        let mut mounts = [mount];
        add(&mut mounts, "context", LABEL);
        let [mount] = mounts;
        mount
    }

    #[test]
    fn a_filesystem_takes_the_label_as_an_option() {
        for kind in ["tmpfs", "devpts", "ext4"] {
            let expected = vec![("context".to_owned(), Some(LABEL.to_owned()))];
            assert_eq!(labelled(kind, &["nosuid"]).options.data, expected, "{kind}");
        }
        let own = labelled("tmpfs", &["rootcontext=other"]);
        assert_eq!(own.options.data, [("rootcontext".to_owned(), Some("other".to_owned()))]);
    }

    #[test]
    fn what_takes_no_such_option_gets_none() {
        for kind in ["proc", "sysfs", "bind", "cgroup"] {
            let mount = labelled(kind, &[]);
            assert_eq!((mount.options.data.len(), mount.root_label), (0, None), "{kind}");
        }
        let queue = labelled("mqueue", &[]);
        assert_eq!((queue.options.data.len(), queue.root_label.as_deref()), (0, Some(LABEL)));
    }
}
