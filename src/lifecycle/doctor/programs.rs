//! What else is used where it is there: CRIU, systemd, and a place for the records.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Access, access};

use super::Finding;
use crate::cgroup::systemd;
use crate::checkpoint::criu;

/// What was found; `root` is where records are kept.
pub(super) fn findings(root: &Path) -> Vec<Finding> {
    vec![records(root), systemd(), criu()]
}

fn records(root: &Path) -> Finding {
    let subject = "records";
    let there = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    if access(there, Access::WRITE_OK | Access::EXEC_OK).is_ok() {
        return Finding::ok(subject, root.display().to_string());
    }
    let found = format!("{} cannot be written by this user", there.display());
    Finding::missing(subject, found, "name another directory with --root before the verb").needed()
}

/// Its manager is asked for only where it runs: elsewhere there may be a bus that would start something.
fn systemd() -> Finding {
    let without = "use the default, --cgroup-manager cgroupfs";
    if !Path::new("/run/systemd/system").is_dir() {
        return Finding::warning("systemd", "does not run here: --systemd-cgroup cannot be used", without);
    }
    match systemd::Manager::connect() {
        Ok(_) => Finding::ok("systemd", "answers on its bus"),
        Err(error) => Finding::warning("systemd", format!("does not answer: {error}"), without),
    }
}

fn criu() -> Finding {
    let version =
        |criu: PathBuf| Command::new(criu).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = criu::find().ok().and_then(|criu| version(criu).ok());
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    match version_in(&said) {
        Some(version) if criu::is_allowed() => Finding::ok("criu", version),
        Some(version) => {
            let found =
                format!("{version}, of no use to this user, who has neither CAP_SYS_ADMIN nor CAP_CHECKPOINT_RESTORE");
            Finding::warning("criu", found, "checkpoint, restore and migrate as root")
        }
        None => Finding::warning("criu", "not found: there is no checkpoint and restore", "install the package criu"),
    }
}

fn version_in(said: &str) -> Option<String> {
    said.lines().find_map(|line| line.strip_prefix("Version:")).map(|version| version.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn criu_says_its_version() {
        assert_eq!(version_in("Version: 4.1.1\nGitID: v4\n").as_deref(), Some("4.1.1"));
        assert_eq!(version_in(""), None);
    }

    #[test]
    fn records_in_a_place_that_is_not_there_yet() {
        let there = records(&std::env::temp_dir().join("none-yet/deeper"));
        assert_eq!((there.level, there.fatal), (Level::Ok, false));
        // Below a file nothing can be made, by nobody.
        let never = records(Path::new("/etc/passwd/none"));
        assert_eq!((never.level, never.fatal), (Level::Missing, true));
    }
}
