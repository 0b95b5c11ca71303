//! Who is to own the container's cgroup: its own user, where it is to divide it further. config-linux.md#cgroup-ownership
//!
//! That is so exactly where the container has a cgroup namespace of its own and the cgroup filesystem mounted writable. An
//! ordinary user gives nothing away: what is delegated to it is its own already.

use std::path::Path;

use crate::host::Host;
use crate::namespaces::{Kind, Namespaces, User};
use crate::path::clean;
use crate::spec::config::{Config, Mount};

/// The id of the host that the container's user is; `None` where the cgroup stays whose it is.
pub fn of(config: &Config, namespaces: &Namespaces, host: &Host) -> Option<u32> {
    if !host.privileged || !namespaces.makes(Kind::Cgroup) || !config.mounts.iter().any(is_writable_cgroup) {
        return None;
    }
    let inside = config.process.as_ref()?.user.uid;
    let owner = match &namespaces.user {
        User::Inherit => inside,
        User::Make { uids, .. } => uids.iter().find_map(|map| {
            let offset = inside.checked_sub(map.container_id).filter(|offset| *offset < map.size)?;
            map.host_id.checked_add(offset)
        })?,
        // Its maps are another's, who has made it for whatever is in it.
        User::Join(_) => return None,
    };
    (owner != host.uid).then_some(owner)
}

fn is_writable_cgroup(mount: &Mount) -> bool {
    mount.source == Path::new("cgroup")
        && clean(&mount.destination) == Path::new("/sys/fs/cgroup")
        && !mount.options.iter().any(|option| option == "ro")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespaces::plan;
    use crate::spec::config::{IdMapping, Namespace, Process};

    const ROOT: Host = Host { uid: 0, gid: 0, privileged: true, permitted: u64::MAX };

    fn config() -> Config {
        let mount = Mount { destination: "/sys/fs/cgroup/".into(), source: "cgroup".into(), ..Mount::default() };
        let mut config = Config { process: Some(Process::default()), mounts: vec![mount], ..Config::default() };
        let kinds = ["cgroup", "mount", "user"].map(|kind| Namespace { kind: kind.into(), ..Namespace::default() });
        let map = |container_id, host_id| IdMapping { container_id, host_id, size: 10 };
        config.linux.namespaces = kinds.to_vec();
        config.linux.uid_mappings = vec![map(0, 5000), map(100, 7000)];
        config.linux.gid_mappings = vec![map(0, 5000)];
        config
    }

    fn owner(change: impl FnOnce(&mut Config)) -> Option<u32> {
        let mut config = config();
        change(&mut config);
        of(&config, &plan::plan(&config).unwrap(), &ROOT)
    }

    #[test]
    fn it_is_the_containers_user_as_the_host_counts() {
        assert_eq!(owner(|_| ()), Some(5000));
        assert_eq!(owner(|c| c.process.as_mut().unwrap().user.uid = 103), Some(7003));
        assert_eq!(owner(|c| c.process.as_mut().unwrap().user.uid = 10), None);
        let without_user = |c: &mut Config| {
            c.linux.namespaces.pop();
            (c.linux.uid_mappings, c.linux.gid_mappings) = Default::default();
        };
        assert_eq!(owner(without_user), None, "root's already");
        let ordinary = |c: &mut Config| {
            without_user(c);
            c.process.as_mut().unwrap().user.uid = 1000;
        };
        assert_eq!(owner(ordinary), Some(1000));
    }

    #[test]
    fn it_is_left_alone_unless_the_container_can_write_to_its_own() {
        assert_eq!(owner(|c| c.mounts[0].options = vec!["ro".into()]), None);
        assert_eq!(owner(|c| c.mounts.clear()), None);
        assert_eq!(owner(|c| c.mounts[0].destination = "/mnt".into()), None);
        assert_eq!(owner(|c| drop(c.linux.namespaces.remove(0))), None, "the host's cgroup namespace");
        let config = config();
        let host = Host { uid: 1000, gid: 1000, privileged: false, permitted: 0 };
        assert_eq!(of(&config, &plan::plan(&config).unwrap(), &host), None);
    }
}
