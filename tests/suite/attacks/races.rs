//! Attacks by swapping names while the runtime works on them: two containers share a volume, and the program in one
//! exchanges a directory with a link in an endless loop while the other is made over and over again.
//!
//! Nothing may be mounted or made outside of the root filesystem. A mount that lands elsewhere is not in the container's
//! table, since the rest of the tree is gone by then: so each container that came into being is asked for its table.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::super::case::Case;
use super::super::need::Need::Root;
use super::super::output;
use super::super::pseudo_terminal::Terminal;
use super::super::scenario::{Outcome, Scenario, scenario};
use super::super::stage::is_long;
use super::{assert_unharmed, mounts_where, outside, told};
use crate::rootfs_fixtures::config::{add, bind, mount, without_mount};

pub const SCENARIOS: &[Scenario] = &[
    scenario("swapped_destination", &[], destination),
    scenario("swapped_destination_of_a_bind", &[], destination_of_bind),
    scenario("swapped_missing_destination", &[], missing_destination),
    scenario("swapped_masked_path", &[], masked),
    scenario("swapped_read_only_path", &[], read_only),
    scenario("swapped_console", &[Root], console),
];

/// How often and for how long.
struct Bounds {
    seconds: f64,
    tries: u32,
}

/// So many tries at least, however slow the machine is.
const FEWEST: u32 = 10;

fn bounds() -> Bounds {
    if is_long() { Bounds { seconds: 60.0, tries: 10_000 } } else { Bounds { seconds: 2.0, tries: 1_000 } }
}

/// A volume with `trap`, a directory, and `link`, which leads to `target`; both hold `inner/` and `secret`.
fn volume(case: &Case, target: &Path) -> Result<PathBuf, Failed> {
    let volume = case.host_directory("volume")?;
    fs::create_dir_all(volume.join("trap/inner"))?;
    fs::write(volume.join("trap/secret"), "treasure")?;
    std::os::unix::fs::symlink(target, volume.join("link"))?;
    Ok(volume)
}

/// Makes containers, edited by `edit` for each, while another one exchanges `one` and `other` of `volume`; `check` looks at
/// the report of each that came into being.
fn race(
    case: &mut Case,
    (volume, one, other): (&Path, &str, &str),
    edit: impl Fn(&mut Value, u32),
    check: impl Fn(&Value) -> Outcome,
) -> Result<(u32, u32), Failed> {
    let Bounds { seconds, tries } = bounds();
    let base = case.config.clone();
    add(&mut case.config, "/mounts", bind(volume, "/mnt", &["bind"]));
    let (one, other) = (format!("/mnt/{one}"), format!("/mnt/{other}"));
    // It ends by itself, in case this test does not.
    case.args(&["/probe", "exchange", &one, &other, &(seconds + 60.0).to_string()]);
    let (bundle, attacker) = (case.write_config()?, case.other_id());
    case.begin(&["create", "--bundle", &bundle, &attacker])?;
    case.call(&["start", &attacker])?.success()?;
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let (mut made, mut refused) = (0, 0);
    // A busy machine may take longer for the fewest that mean anything.
    while made + refused <= FEWEST || (made + refused < tries && Instant::now() < end) {
        case.config = base.clone();
        add(&mut case.config, "/mounts", bind(volume, "/mnt", &["bind"]));
        edit(&mut case.config, made + refused);
        match told(case.run()?)? {
            Some(report) => {
                check(&report)?;
                made += 1;
            }
            None => refused += 1,
        }
        case.forget_transcript();
    }
    case.call(&["kill", &attacker, "KILL"])?;
    assert!(made > 0, "no container came into being: nothing was raced for");
    Ok((made, refused))
}

/// CVE-2021-30465.
fn destination(case: &mut Case) -> Outcome {
    let outside = outside(case)?;
    let volume = volume(case, &outside)?;
    let edit = |config: &mut Value, _| add(config, "/mounts", mount("tmpfs", "trapped", "/mnt/trap/inner", &[]));
    race(case, (&volume, "trap", "link"), edit, |report| {
        assert_eq!(mounts_where(report, |mount| mount["source"] == "trapped"), 1, "it was mounted elsewhere");
        Ok(())
    })?;
    assert_unharmed(&outside)
}

/// CVE-2021-30465, by which the host's root itself was had: what is bound over the swapped name is the volume again.
fn destination_of_bind(case: &mut Case) -> Outcome {
    let outside = outside(case)?;
    let volume = volume(case, Path::new("/"))?;
    let again = volume.clone();
    let edit = move |config: &mut Value, _| {
        add(config, "/mounts", bind(&again, "/mnt/trap/inner", &["rbind", "nosuid"]));
        config["process"]["args"] = json!(["/probe"]);
    };
    race(case, (&volume, "trap", "link"), edit, |report| {
        let bound = |mount: &Value| mount["root"].as_str().is_some_and(|root| root.ends_with("/volume"));
        assert_eq!(mounts_where(report, bound), 2, "it was bound elsewhere");
        Ok(())
    })?;
    assert_unharmed(&outside)
}

/// CVE-2024-45310.
fn missing_destination(case: &mut Case) -> Outcome {
    let outside = outside(case)?;
    let volume = volume(case, &outside)?;
    let edit = |config: &mut Value, count: u32| {
        let place = format!("/mnt/trap/new-{count}/deep");
        add(config, "/mounts", mount("tmpfs", "trapped", &place, &[]));
        add(config, "/mounts", bind(Path::new("/etc/passwd"), &format!("/mnt/trap/file-{count}"), &["bind", "ro"]));
    };
    race(case, (&volume, "trap", "link"), edit, |_| Ok(()))?;
    assert_unharmed(&outside)
}

/// GHSA-3q8j-pf29-vwv8. Wherever the name leads at that moment, something is covered, and inside.
fn masked(case: &mut Case) -> Outcome {
    let volume = twice_inside(case)?;
    let edit = |config: &mut Value, _| add(config, "/linux/maskedPaths", json!("/mnt/trap/secret"));
    let covered = |mount: &Value| {
        let point = mount["point"].as_str().unwrap_or_default();
        point.ends_with("/secret")
            && (mount["root"] == "/null" || mount["type"] == "devtmpfs" || mount["type"] == "tmpfs")
    };
    race(case, (&volume, "trap", "link"), edit, |report| {
        assert_eq!(mounts_where(report, covered), 1, "nothing was masked");
        Ok(())
    })
    .map(drop)
}

fn read_only(case: &mut Case) -> Outcome {
    let volume = twice_inside(case)?;
    let edit = |config: &mut Value, _| add(config, "/linux/readonlyPaths", json!("/mnt/trap/secret"));
    let protected = |mount: &Value| {
        let point = mount["point"].as_str().unwrap_or_default();
        point.ends_with("/secret") && mount["options"].as_array().is_some_and(|options| options.contains(&json!("ro")))
    };
    race(case, (&volume, "trap", "link"), edit, |report| {
        assert_eq!(mounts_where(report, protected), 1, "nothing was made read-only");
        Ok(())
    })
    .map(drop)
}

/// A volume whose link leads to a directory of the container's own.
fn twice_inside(case: &mut Case) -> Result<PathBuf, Failed> {
    case.bundle.directory("home/other")?;
    case.bundle.file("home/other/secret", "treasure")?;
    volume(case, Path::new("/home/other"))
}

/// CVE-2025-52565. The image's /dev is another container's volume.
fn console(case: &mut Case) -> Outcome {
    let outside = outside(case)?;
    let dev = case.bundle.inside("dev");
    for name in ["pts", "shm", "mqueue"] {
        case.bundle.directory(&format!("dev/{name}"))?;
    }
    fs::write(dev.join("console"), "")?;
    std::os::unix::fs::symlink(outside.join("treasure"), dev.join("link"))?;
    without_mount(&mut case.config, "/dev");
    let base = case.config.clone();
    add(&mut case.config, "/mounts", bind(&dev, "/mnt", &["bind"]));
    case.args(&["/probe", "exchange", "/mnt/console", "/mnt/link", "12"]);
    let (bundle, attacker) = (case.write_config()?, case.other_id());
    case.begin(&["create", "--bundle", &bundle, &attacker])?;
    case.call(&["start", &attacker])?.success()?;
    case.config = base;
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(&["/probe", "stat", "/dev/console"]).write_config()?, case.id.clone());
    let end = Instant::now() + Duration::from_secs_f64(if is_long() { 10.0 } else { 2.0 });
    let (mut made, mut refused) = (0, 0);
    while made + refused <= FEWEST || Instant::now() < end {
        let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
        let mut child = terminal.spawn(&case.command(&["run", "--bundle", &bundle, &id]))?;
        let status = output::wait(&mut child, case.patience())?;
        assert_unharmed(&outside)?;
        if !status.success() {
            refused += 1;
            continue;
        }
        let line = terminal.lines(case.patience())?.until("\"type\"")?;
        let seen: Value = serde_json::from_str(&line[line.find('{').unwrap_or(0)..])?;
        // The name may have been swapped away again by the time it is looked at.
        let kind = (&seen["ok"]["type"], &seen["ok"]["major"]);
        assert!(kind == (&json!("char"), &json!(136)) || *kind.0 == "link" || *kind.0 == "file", "{seen}");
        made += 1;
    }
    case.call(&["kill", &attacker, "KILL"])?;
    Ok(())
}
