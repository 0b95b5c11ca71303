//! The verbs that act upon a living container, on a record made by hand around a real process in a real cgroup.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::events::{self, Event};
use super::super::{pause, ps, resume, update};
use super::*;
use crate::cgroup::trial::Trial;
use crate::cgroup::{Driver, fs, life};
use crate::container::record::FORMAT;
use crate::procfs;

/// A container called `box` whose process sleeps, and the processes themselves; removed when the test ends.
struct Sleeper {
    setting: Setting,
    entry: Entry,
    record: Record,
    pid: i32,
    trial: Trial,
}

impl Sleeper {
    fn new(test: &str) -> Option<Self> {
        let mut trial = Trial::new(test)?;
        let cgroup = trial.create("box");
        let pid = trial.start(&cgroup);
        let root = std::env::temp_dir().join(format!("ferry-{test}-{}", std::process::id()));
        let init = Init { pid: pid.as_raw(), start_time: procfs::stat(pid).unwrap().start_time };
        let record = Record {
            format: FORMAT,
            id: "box".into(),
            oci_version: "1.3.0".into(),
            bundle: PathBuf::from("/srv/box"),
            rootfs: PathBuf::from("/srv/box/rootfs"),
            created: "2026-01-02T03:04:05Z".into(),
            owner: 0,
            init: Some(init),
            cgroup: Some(cgroup.path),
            unit: None,
            store: None,
            cgroup_driver: Driver::Cgroupfs,
            namespaces: Vec::new(),
            mounted_over: None,
            no_new_keyring: false,
            reads_config: false,
            resctrl: None,
            brought_by: None,
            given_to: None,
        };
        let entry = Store::new(&root).claim(&Id::new("box").unwrap(), &record).unwrap();
        entry.keep_config(br#"{"ociVersion": "1.3.0", "root": {"path": "rootfs"}, "x": 1}"#).unwrap();
        // Claimed is locked, and a lock of this very process would keep the verbs waiting too.
        entry.unlock().unwrap();
        Some(Self { setting: Setting { root, ..Setting::default() }, entry, record, pid: pid.as_raw(), trial })
    }

    fn cgroup(&self) -> Cgroup {
        fs::open(self.record.cgroup.as_ref().unwrap()).unwrap()
    }

    fn without_cgroup(&self) {
        self.entry.save(&Record { cgroup: None, ..self.record.clone() }).unwrap();
    }

    fn end(&mut self) {
        life::kill(&self.cgroup()).unwrap();
        self.trial.signals();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let removed = self.entry.remove().is_ok() && std::fs::remove_dir(&self.setting.root).is_ok();
        println!("record removed: {removed}");
    }
}

fn error<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn pauses_once_and_resumes_once() {
    let Some(mut sleeper) = Sleeper::new("pause") else { return };
    let setting = sleeper.setting.clone();
    assert_eq!(error(resume::resume(&setting, "box")), "container not paused: \"box\" is running");
    pause::pause(&setting, "box").unwrap();
    assert!(life::is_frozen(&sleeper.cgroup()).unwrap());
    assert_eq!(open(&setting, "box").unwrap().status, Status::Paused);
    assert_eq!(error(pause::pause(&setting, "box")), "container not running: \"box\" is paused");
    resume::resume(&setting, "box").unwrap();
    assert!(!life::is_frozen(&sleeper.cgroup()).unwrap());
    sleeper.end();
    assert_eq!(error(pause::pause(&setting, "box")), "container not running: \"box\" is stopped");
    assert_eq!(error(resume::resume(&setting, "box")), "container not paused: \"box\" is stopped");
}

#[test]
fn processes_with_and_without_a_cgroup() {
    let Some(mut sleeper) = Sleeper::new("ps") else { return };
    let setting = sleeper.setting.clone();
    let second = sleeper.trial.start(&sleeper.trial.create("box/below")).as_raw();
    let mut both = [sleeper.pid, second];
    both.sort_unstable();
    assert_eq!(ps::pids(&setting, "box").unwrap(), both);
    sleeper.without_cgroup();
    assert_eq!(ps::pids(&setting, "box").unwrap(), [sleeper.pid]);
    sleeper.end();
    assert_eq!(ps::pids(&setting, "box").unwrap(), [0i32; 0]);
    assert!(error(ps::pids(&setting, "other")).starts_with("container \"other\" does not exist"));
}

#[test]
fn what_needs_a_cgroup_says_so_and_what_to_do() {
    let Some(sleeper) = Sleeper::new("none") else { return };
    let setting = &sleeper.setting;
    sleeper.without_cgroup();
    let limits = serde_json::from_value(json!({"pids": {"limit": 5}})).unwrap();
    for (verb, said) in [
        ("pause", error(pause::pause(setting, "box"))),
        ("resume", error(resume::resume(setting, "box"))),
        ("update", error(update::update(setting, "box", &limits))),
        ("count the usage of", error(events::stats(setting, "box"))),
    ] {
        let expected = format!("cannot {verb} container \"box\": it has no cgroup of its own (hint: ");
        assert!(said.starts_with(&expected) && said.contains("Delegate=yes"), "{said}");
    }
    // Nothing to change needs nothing.
    update::update(setting, "box", &Default::default()).unwrap();
}

#[test]
fn a_limit_is_in_force_and_in_the_record_or_in_neither() {
    let Some(sleeper) = Sleeper::new("update") else { return };
    let (setting, path) = (&sleeper.setting, sleeper.entry.path().join("config.json"));
    let config = || serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap();
    let update = |json| update::update(setting, "box", &serde_json::from_value(json).unwrap());
    let before = config();
    let refused = error(update(json!({"unified": {"no-such.file": "1"}})));
    assert!(refused.contains("no-such"), "{refused}");
    assert_eq!(config(), before);
    let limit = json!({"cgroup.max.depth": "3"});
    update(json!({"unified": limit, "devices": [{"allow": true, "access": "rwm"}]})).unwrap();
    assert_eq!(config()["linux"]["resources"], json!({"unified": limit}));
    // What ferry does not know stays.
    assert_eq!(config()["x"], 1);
}

#[test]
fn events_come_at_their_interval_and_end_with_the_container() {
    let Some(mut sleeper) = Sleeper::new("events") else { return };
    let setting = sleeper.setting.clone();
    assert_eq!(events::stats(&setting, "box").unwrap()["pids"]["current"], 1);
    let mut seen = 0;
    events::follow(&setting, "box", Duration::from_millis(20), &mut |event| {
        assert!(matches!(event, Event::Stats(usage) if usage["memory"].is_object()));
        seen += 1;
        if seen == 2 {
            sleeper.end();
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, 2);
    let said = error(events::stats(&setting, "box"));
    assert_eq!(said, "container with id box is not running: it is stopped");
}
