//! Labels of a container's processes and mounts, on a host whose security module is in force. AppArmor's profiles are known by path
//! and need no labelled disk, so a test can bring its own. SELinux has one policy for all, which the host brings: in the virtual
//! machine that is `vm/selinux.cil`, with the names that distributions have for containers.

use std::fs;
use std::process::{Command, Stdio};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{self, AppArmor, Ferry, Root, SeLinux, Tool};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("the_process_has_the_profile", &[Root, AppArmor, Tool("apparmor_parser")], profile),
    scenario("exec_has_the_profile_of_its_flag", &[Root, AppArmor, Tool("apparmor_parser")], of_exec),
    scenario("a_profile_that_is_not_loaded_is_named", &[Root, AppArmor], not_loaded),
    scenario("selinux_has_the_context_of_the_process", SELINUX, context),
    scenario("selinux_has_the_context_of_execs_flag", SELINUX, context_of_exec),
    scenario("selinux_has_the_context_of_mounts", SELINUX, context_of_mounts),
    scenario("selinux_is_in_force_inside", SELINUX, in_force),
    scenario("selinux_contexts_that_the_policy_does_not_know_are_named", SELINUX_OF_FERRY, unknown_context),
];

const PROCESS: &str = "system_u:system_r:container_t:s0:c1,c2";
const OTHER: &str = "system_u:system_r:container_t:s0:c3";
const FILES: &str = "system_u:object_r:container_file_t:s0:c1,c2";
/// Of files that no container may touch.
const SHADOW: &str = "system_u:object_r:shadow_t:s0";

const SELINUX: &[Need] = &[Root, SeLinux(&[PROCESS, OTHER, FILES, SHADOW])];
const SELINUX_OF_FERRY: &[Need] = &[Root, SeLinux(&[PROCESS, OTHER, FILES, SHADOW]), Ferry];

/// Where the kernel tells a process its own profile.
const OWN: &str = "/proc/self/attr/apparmor/current";

/// A profile that allows everything but to read `/denied`, for as long as this is there.
struct Profile {
    name: String,
    file: String,
}

impl Profile {
    fn load(case: &Case) -> Result<Self, Failed> {
        let (name, file) = (format!("{}-profile", case.id), case.path("profile"));
        let rules = "file, capability, network, unix, signal, ptrace, mount, umount, pivot_root, deny /denied r,";
        fs::write(&file, format!("profile {name} flags=(attach_disconnected,mediate_deleted) {{ {rules} }}\n"))?;
        let profile = Self { name, file };
        profile.tell("--replace")?;
        Ok(profile)
    }

    fn tell(&self, deed: &str) -> Result<(), Failed> {
        let parser = Command::new("apparmor_parser")
            .args(["--skip-cache", deed, &self.file])
            .stdin(Stdio::null())
            .output()
            .map_err(|why| format!("apparmor_parser: {why}"))?;
        match parser.status.success() {
            true => Ok(()),
            false => Err(format!("apparmor_parser {deed}: {}", String::from_utf8_lossy(&parser.stderr)).into()),
        }
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let removed = self.tell("--remove");
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

fn profile(case: &mut Case) -> Outcome {
    let profile = Profile::load(case)?;
    fs::write(case.bundle.rootfs().join("denied"), "")?;
    fs::write(case.bundle.rootfs().join("allowed"), "")?;
    assert_eq!(case.deed(&["read", "/denied"])?["ok"], "", "without the profile it can be read");
    case.config["process"]["apparmorProfile"] = json!(profile.name);
    let own = case.deed(&["read", OWN])?["ok"].as_str().unwrap_or_default().trim().to_owned();
    assert_eq!(own, format!("{} (enforce)", profile.name));
    assert_eq!(case.deed(&["read", "/allowed"])?["ok"], "");
    assert_eq!(case.deed(&["read", "/denied"])?["error"], libc::EACCES);
    Ok(())
}

fn of_exec(case: &mut Case) -> Outcome {
    let profile = Profile::load(case)?;
    case.start_waiting()?;
    let own = case.exec(&["--apparmor", &profile.name], &["/probe", "read", OWN])?.success()?.json()?;
    assert_eq!(own["ok"].as_str().unwrap_or_default().trim(), format!("{} (enforce)", profile.name));
    let own = case.exec(&[], &["/probe", "read", OWN])?.success()?.json()?;
    assert_eq!(own["ok"].as_str().unwrap_or_default().trim(), "unconfined");
    let (id, waiting) = (case.id.clone(), case.pid()?);
    case.call(&["kill", &id, "KILL"])?.success()?;
    case.wait_for(waiting)
}

fn not_loaded(case: &mut Case) -> Outcome {
    case.config["process"]["apparmorProfile"] = json!("ferry-no-such-profile");
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("AppArmor") || end.stderr.contains("apparmor"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// What the kernel says of the context of a process.
const CURRENT: &str = "/proc/self/attr/current";

fn told(answer: &Value) -> &str {
    answer["ok"].as_str().unwrap_or_default().trim_end_matches(['\0', '\n'])
}

fn context(case: &mut Case) -> Outcome {
    let own = case.deed(&["read", CURRENT])?;
    assert!(!told(&own).contains("container_t"), "without a label it has its maker's: {own}");
    case.config["process"]["selinuxLabel"] = json!(PROCESS);
    for no_new_privileges in [true, false] {
        case.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        assert_eq!(told(&case.deed(&["read", CURRENT])?), PROCESS);
    }
    // Or it could not use its own keys.
    assert_eq!(told(&case.deed(&["keyring-label"])?), PROCESS);
    Ok(())
}

fn context_of_exec(case: &mut Case) -> Outcome {
    case.config["process"]["selinuxLabel"] = json!(PROCESS);
    case.start_waiting()?;
    for (flags, expected) in [(&[][..], PROCESS), (&["--process-label", OTHER], OTHER)] {
        let own = case.exec(flags, &["/probe", "read", CURRENT])?.success()?.json()?;
        assert_eq!(told(&own), expected);
        let keyring = case.exec(flags, &["/probe", "keyring-label"])?.success()?.json()?;
        assert_eq!(told(&keyring), PROCESS, "it is the container's");
    }
    case.kill_and_wait("KILL")
}

/// The attribute that a file's context is kept in.
const ATTRIBUTE: &str = "security.selinux";

/// The context of a file as the container sees it.
fn of_file(pid: u32, path: &str) -> Result<String, Failed> {
    let mut value = [0; 256];
    let length = rustix::fs::getxattr(format!("/proc/{pid}/root{path}"), ATTRIBUTE, &mut value)
        .map_err(|why| format!("{path}: {why}"))?;
    Ok(String::from_utf8_lossy(&value[..length]).trim_end_matches('\0').to_owned())
}

fn context_of_mounts(case: &mut Case) -> Outcome {
    case.config["linux"]["mountLabel"] = json!(FILES);
    case.start_waiting()?;
    let pid = case.pid()?;
    for path in ["/dev", "/dev/shm", "/dev/pts", "/dev/mqueue", "/dev/null"] {
        assert_eq!(of_file(pid, path)?, FILES, "{path}");
    }
    // Of their own kind, whoever mounts them.
    for path in ["/proc/cpuinfo", "/sys/kernel"] {
        assert_ne!(of_file(pid, path)?, FILES, "{path}");
    }
    case.kill_and_wait("KILL")
}

fn in_force(case: &mut Case) -> Outcome {
    case.config["linux"]["mountLabel"] = json!(FILES);
    case.config["root"]["readonly"] = json!(false);
    let secret = case.bundle.rootfs().join("secret");
    fs::write(&secret, "kept")?;
    rustix::fs::setxattr(&secret, ATTRIBUTE, SHADOW.as_bytes(), rustix::fs::XattrFlags::empty())?;
    assert_eq!(case.deed(&["write", "/secret", "kept"])?["error"], Value::Null, "without a label it may");
    case.config["process"]["selinuxLabel"] = json!(PROCESS);
    assert_eq!(case.deed(&["write", "/secret", "lost"])?["error"], libc::EACCES);
    assert_eq!(fs::read_to_string(&secret)?, "kept");
    assert_eq!(case.deed(&["write", "/dev/shm/own", "x"])?["error"], Value::Null, "what bears its label is its own");
    Ok(())
}

fn unknown_context(case: &mut Case) -> Outcome {
    for (at, section, label) in [
        ("process.selinuxLabel", "process", "system_u:system_r:nobody_t:s0"),
        ("linux.mountLabel", "linux", "system_u:object_r:nobody_t:s0"),
    ] {
        let name = at.rsplit('.').next().unwrap_or_default();
        case.config[section][name] = json!(label);
        let end = case.run()?.failure()?;
        assert!(end.stderr.contains(&format!("{at}: {label:?} cannot be applied: SELinux' policy")), "{}", end.stderr);
        assert_eq!(case.leftovers()?, Vec::<String>::new());
        case.config[section].as_object_mut().ok_or("no object")?.remove(name);
    }
    Ok(())
}
