//! Filesystems of disks, which are files of the test's on loop devices.

use std::fs;
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::json;

use super::case::Case;
use super::need::Need::{CgroupV2, Root, Tool};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config::{add, mount};

const LOOPS: super::need::Need = Tool("losetup");
const MKFS: super::need::Need = Tool("mkfs.ext4");

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_read_only_one_is_not_written_to", &[Root, LOOPS, MKFS], read_only),
    scenario("a_write_protected_one_is_mounted_read_only", &[Root, LOOPS, MKFS], write_protected),
    scenario("remount_makes_it_writable_again", &[Root, LOOPS, MKFS], remounted),
    scenario("it_is_mounted_whatever_devices_the_program_may_use", &[Root, CgroupV2(&[]), LOOPS, MKFS], denied),
];

/// A disk with an ext4; its loop device goes when dropped.
struct Disk {
    image: String,
    device: String,
}

impl Disk {
    fn make(case: &Case, flags: &[&str]) -> Result<Self, Failed> {
        let image = case.path("disk");
        fs::File::create(&image)?.set_len(8 << 20)?;
        told(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0", &image]))?;
        let device = told(Command::new("losetup").args(flags).args(["--find", "--show", &image]))?;
        Ok(Self { image, device: device.trim().to_owned() })
    }

    /// What is on it; nobody has it mounted.
    fn bytes(&self) -> Result<Vec<u8>, Failed> {
        told(Command::new("sync").arg(&self.device))?;
        Ok(fs::read(&self.image)?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(why) = told(Command::new("losetup").args(["--detach", &self.device])) {
            println!("{} stays: {}", self.device, why.message().unwrap_or_default());
        }
    }
}

fn told(command: &mut Command) -> Result<String, Failed> {
    let end = command.output()?;
    let words = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if end.status.success() { Ok(words(&end.stdout)) } else { Err(words(&end.stderr).into()) }
}

/// The disk on /mnt, for a program that may use every device.
fn with_disk(case: &mut Case, flags: &[&str], options: &[&str]) -> Result<Disk, Failed> {
    let disk = Disk::make(case, flags)?;
    add(&mut case.config, "/mounts", mount("ext4", &disk.device, "/mnt", options));
    case.config["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
    Ok(disk)
}

fn read_only(case: &mut Case) -> Outcome {
    let disk = with_disk(case, &[], &["ro"])?;
    // Its place for this one is on the disk already, and nothing has to be made there.
    add(&mut case.config, "/mounts", mount("tmpfs", "tmpfs", "/mnt/lost+found", &[]));
    let before = disk.bytes()?;
    assert_eq!(case.deed(&["list", "/mnt"])?["ok"], json!(["lost+found"]));
    assert!(disk.bytes()? == before, "the disk was written to");
    assert_eq!(case.deed(&["write", "/mnt/new", "x"])?["error"], libc::EROFS);
    Ok(())
}

fn write_protected(case: &mut Case) -> Outcome {
    let _disk = with_disk(case, &["--read-only"], &["ro"])?;
    assert_eq!(case.deed(&["list", "/mnt"])?["ok"], json!(["lost+found"]));
    Ok(())
}

fn remounted(case: &mut Case) -> Outcome {
    let _disk = with_disk(case, &[], &["ro"])?;
    add(&mut case.config, "/mounts", mount("", "", "/mnt", &["remount", "rw"]));
    assert!(case.deed(&["write", "/mnt/new", "x"])?["error"].is_null());
    Ok(())
}

/// Again and again, since the filter is made while the child mounts; and what it denies is denied to the program.
fn denied(case: &mut Case) -> Outcome {
    let disk = with_disk(case, &[], &["rw"])?;
    case.config["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    let number: i64 = disk.device.trim_start_matches("/dev/loop").parse()?;
    case.config["linux"]["devices"] = json!([{"path": "/dev/disk", "type": "b", "major": 7, "minor": number}]);
    for _ in 0..6 {
        assert_eq!(case.deed(&["open", "/dev/disk", "r"])?["error"], libc::EPERM);
    }
    case.start_waiting()?;
    assert_eq!(case.exec(&[], &["/probe", "list", "/mnt"])?.success()?.json()?["ok"], json!(["lost+found"]));
    assert_eq!(case.exec(&[], &["/probe", "open", "/dev/disk", "r"])?.success()?.json()?["error"], libc::EPERM);
    Ok(())
}
