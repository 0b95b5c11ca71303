//! The label of the process: its AppArmor profile or SELinux context, given for the exec that follows.
//!
//! It is written to `thread-self/attr/…/exec`, by the task itself and right before the exec: the kernel refuses a writer
//! that has executed something since it opened the file. Between ferry and the program there is the stub, so the stub
//! writes it; had ferry, it would be the stub that the profile is judged and used up on. The procfs is a private one that
//! no mount of the container can stand in for (CVE-2019-16884). proc_pid_attr(5), config.md#linux-process

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};
use serde::Serialize;

use crate::error::{Context, Error, Result};
use crate::spec::config::Process;

/// What is written, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Label {
    /// Below the root of a procfs.
    pub file: &'static str,
    /// The text.
    pub text: String,
    /// It is SELinux', which labels keys, too: those that a process makes bear what it asks for, and else its own label. Made by ferry,
    /// the container's session keyring would be out of the container's reach.
    pub has_keys: bool,
}

impl Label {
    /// Gives the keys that this task makes from now on the label. It is taken away when it executes a program. To be called while
    /// `/proc` is the host's.
    ///
    /// # Errors
    /// EACCES where the policy does not let ferry.
    pub fn label_keys(&self) -> Result<()> {
        if !self.has_keys {
            return Ok(());
        }
        std::fs::write("/proc/thread-self/attr/keycreate", &self.text)
            .or_cannot("label", "the session keyring")
            .map_err(|error| error.hint("leave the keyring alone with --no-new-keyring"))
    }
}

/// A security module, as far as this host runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// Not at all.
    Absent,
    /// With the file for the label of the next exec.
    InForce(&'static str),
}

/// The security modules that label processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modules {
    /// AppArmor.
    pub apparmor: Module,
    /// SELinux.
    pub selinux: Module,
    /// Whether a profile of AppArmor confines ferry itself, and so whatever it starts.
    pub confined: bool,
}

/// The file that modules share, and the one that AppArmor has to itself since Linux 5.8.
const SHARED: &str = "thread-self/attr/exec";
const APPARMOR: &str = "thread-self/attr/apparmor/exec";

/// Asks the kernel what is in force.
pub fn probe() -> Modules {
    let apparmor = std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"));
    let own = Path::new("/proc").join(APPARMOR).exists();
    Modules {
        apparmor: match (apparmor, own) {
            (false, _) => Module::Absent,
            (true, true) => Module::InForce(APPARMOR),
            (true, false) => Module::InForce(SHARED),
        },
        selinux: if selinux_has_policy() { Module::InForce(SHARED) } else { Module::Absent },
        confined: apparmor && !is_unconfined(),
    }
}

fn is_unconfined() -> bool {
    let read = |file| std::fs::read(file).ok();
    read("/proc/self/attr/apparmor/current")
        .or_else(|| read("/proc/self/attr/current"))
        .is_some_and(|label| label.trim_ascii_end() == b"unconfined")
}

/// Whether SELinux runs and was given a policy: until then everything is `kernel`, and any label is accepted and means nothing.
fn selinux_has_policy() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
        && std::fs::read("/proc/self/attr/current")
            .is_ok_and(|label| label.strip_suffix(&[0]).unwrap_or(&label) != b"kernel")
}

/// Whether the policy that SELinux has loaded knows a context: the kernel would refuse it otherwise, but for a mount only, and without
/// a word about which. Where this may not be asked, the kernel's own answer later is as good.
pub fn is_known(context: &str) -> bool {
    let asked = std::fs::OpenOptions::new().write(true).open("/sys/fs/selinux/context");
    !asked.is_ok_and(|mut file| {
        file.write(context.as_bytes())
            .is_err_and(|answer| answer.raw_os_error() == Some(nix::errno::Errno::EINVAL as i32))
    })
}

/// Plans the label of a process; `at` is its JSON path. Nothing is probed when no label is given.
///
/// # Errors
/// A label for a module that is not in force: the process would run without it. A context that the policy does not know.
pub fn plan(
    process: &Process,
    at: &str,
    probe: impl FnOnce() -> Modules,
    is_known: impl FnOnce(&str) -> bool,
) -> Result<Option<Label>> {
    let (profile, context) = (&process.apparmor_profile, &process.selinux_label);
    if profile.is_empty() && context.is_empty() {
        return Ok(None);
    }
    let modules = probe();
    if !context.is_empty() {
        let at = format!("{at}.selinuxLabel");
        let file = in_force(modules.selinux, "SELinux", context, &at)?;
        known(context, &at, is_known)?;
        return Ok(Some(Label { file, text: context.clone(), has_keys: true }));
    }
    // Nothing is to be written, which an ordinary user could not in a container that exists.
    if profile == "unconfined" && (modules.apparmor == Module::Absent || !modules.confined) {
        return Ok(None);
    }
    let file = in_force(modules.apparmor, "AppArmor", profile, &format!("{at}.apparmorProfile"))?;
    Ok(Some(Label { file, text: format!("exec {profile}"), has_keys: false }))
}

/// Whether mounts can be labelled: `label` is `linux.mountLabel`. Nothing is probed when it is empty.
///
/// # Errors
/// A label where SELinux is not in force: the files would be without it. A context that the policy does not know.
pub fn labels_mounts(
    label: &str,
    probe: impl FnOnce() -> Modules,
    is_known: impl FnOnce(&str) -> bool,
) -> Result<bool> {
    if label.is_empty() {
        return Ok(false);
    }
    let at = "linux.mountLabel";
    in_force(probe().selinux, "SELinux", label, at)?;
    known(label, at, is_known).map(|()| true)
}

fn known(context: &str, at: &str, is_known: impl FnOnce(&str) -> bool) -> Result<()> {
    if is_known(context) {
        return Ok(());
    }
    let why = format!("{context:?} cannot be applied: SELinux' policy does not know it");
    Err(Error::config(at, why)
        .hint("`seinfo -t` lists its types; the package container-selinux brings those of containers"))
}

fn in_force(module: Module, name: &str, label: &str, at: &str) -> Result<&'static str> {
    match module {
        Module::InForce(file) => Ok(file),
        Module::Absent => {
            let why = format!("{label:?} cannot be applied: this host's kernel does not run {name}");
            Err(Error::config(at, why).hint("leave it out where no label is wanted"))
        }
    }
}

/// A procfs of this process' pid namespace that is mounted nowhere, and holds processes only where the kernel can (Linux
/// 5.8): whoever got hold of it would find nothing that masked and read-only paths keep from him. Where that may not be mounted (a pid namespace that is
/// not this user namespace's), a detached copy of the one at `/proc`, which must still be the host's.
///
/// # Errors
/// EPERM in a user namespace whose only procfs is masked.
pub fn procfs() -> Result<OwnedFd> {
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let own = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|context| {
        match fsconfig_set_string(&context, "subset", "pid") {
            Ok(()) | Err(rustix::io::Errno::INVAL) => (),
            Err(answer) => return Err(answer),
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    });
    match own {
        Err(rustix::io::Errno::PERM) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let copy = rustix::mount::open_tree(rustix::fs::CWD, "/proc", flags);
            let copy = copy.or_cannot("make a private copy of", "/proc for the process' label")?;
            let kind = rustix::fs::fstatfs(&copy).or_cannot("look at", "/proc")?.f_type;
            if kind == rustix::fs::PROC_SUPER_MAGIC {
                return Ok(copy);
            }
            Err(Error::said("label", "the process", "/proc is no procfs"))
        }
        own => own.or_cannot("mount", "a private procfs for the process' label"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Modules = Modules { apparmor: Module::Absent, selinux: Module::Absent, confined: false };
    const BOTH: Modules =
        Modules { apparmor: Module::InForce(APPARMOR), selinux: Module::InForce(SHARED), confined: true };

    fn planned(profile: &str, context: &str, modules: Modules) -> Result<Option<Label>> {
        let process = Process { apparmor_profile: profile.into(), selinux_label: context.into(), ..Process::default() };
        plan(&process, "process", || modules, |context| context != "a:b:unknown")
    }

    #[test]
    fn what_is_written_and_where() {
        let label = |file, text: &str, has_keys| Ok(Some(Label { file, text: text.into(), has_keys }));
        assert_eq!(planned("", "", NONE), Ok(None));
        assert_eq!(planned("strict", "", BOTH), label(APPARMOR, "exec strict", false));
        assert_eq!(
            planned("", "system_u:system_r:container_t:s0", BOTH),
            label(SHARED, "system_u:system_r:container_t:s0", true)
        );
    }

    #[test]
    fn no_label_is_dropped_in_silence() {
        let error = |profile, context| planned(profile, context, NONE).unwrap_err().to_string();
        assert!(error("strict", "").starts_with("process.apparmorProfile: \"strict\" cannot be applied: this host"));
        assert!(error("", "a:b:c").starts_with("process.selinuxLabel: \"a:b:c\" cannot be applied: this host"));
        let error = planned("", "a:b:unknown", BOTH).unwrap_err().to_string();
        assert!(
            error.starts_with("process.selinuxLabel: \"a:b:unknown\" cannot be applied: SELinux' policy"),
            "{error}"
        );
        let mounts =
            |label| labels_mounts(label, || BOTH, |context| context != "a:b:unknown").map_err(|e| e.to_string());
        assert_eq!((mounts(""), mounts("a:b:c")), (Ok(false), Ok(true)));
        assert!(mounts("a:b:unknown").unwrap_err().starts_with("linux.mountLabel: \"a:b:unknown\" cannot be"));
        // To be confined by nothing is what is the case there.
        assert_eq!(planned("unconfined", "", NONE), Ok(None));
        assert_eq!(planned("unconfined", "", Modules { confined: false, ..BOTH }), Ok(None));
        assert!(planned("unconfined", "", BOTH).unwrap().is_some());
    }

    #[test]
    fn the_private_procfs_is_one_and_has_this_process() {
        match procfs() {
            Ok(procfs) => {
                let kind = rustix::fs::fstatfs(&procfs).unwrap().f_type;
                assert_eq!(kind, rustix::fs::PROC_SUPER_MAGIC);
                rustix::fs::statat(&procfs, "thread-self/attr", rustix::fs::AtFlags::empty()).unwrap();
            }
            Err(error) => assert!(!crate::host::probe().privileged, "{error}"),
        }
    }
}
