//! Labels of a container's processes, on a host whose security module is in force. AppArmor's profiles are known by path and
//! need no labelled disk, so a test can bring its own.

use std::fs;
use std::process::{Command, Stdio};

use libtest_mimic::Failed;
use serde_json::json;

use super::case::Case;
use super::need::Need::{AppArmor, Root, Tool};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("the_process_has_the_profile", &[Root, AppArmor, Tool("apparmor_parser")], profile),
    scenario("exec_has_the_profile_of_its_flag", &[Root, AppArmor, Tool("apparmor_parser")], of_exec),
    scenario("a_profile_that_is_not_loaded_is_named", &[Root, AppArmor], not_loaded),
];

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
