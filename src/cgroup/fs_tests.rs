//! Making real cgroups, and the refusals of a host whose controllers are elsewhere.

use super::*;
use crate::cgroup::delegation::delegate;
use crate::cgroup::life;
use crate::cgroup::location;
use crate::cgroup::resources::plan_update;
use crate::cgroup::trial::{PATIENCE, Trial, skip};
use rustix::fs::Uid;

fn limits(json: &str) -> Limits {
    plan_update(&serde_json::from_str(json).unwrap()).unwrap()
}

#[test]
fn makes_what_is_missing_and_undoes_just_that() {
    let Some(trial) = Trial::new("make") else { return };
    let one = trial.create("one");
    assert_eq!(one.made, 1);
    let deep = trial.create("one/two/three");
    assert_eq!(deep.made, 2);
    deep.undo().unwrap();
    assert!(one.path.exists() && !one.path.join("two").exists());
    // A sibling that has come to use a directory keeps it.
    let deep = trial.create("one/two/three");
    let sibling = trial.create("one/two/four");
    deep.undo().unwrap();
    assert!(sibling.path.exists() && !one.path.join("two/three").exists());
}

#[test]
fn an_existing_cgroup_must_be_empty_and_thawed() {
    let Some(mut trial) = Trial::new("existing") else { return };
    let made = trial.create("box");
    assert_eq!(trial.create("box").made, 0);
    // Another start has looked, and has not cloned yet.
    let other = create(&trial.below("box"), &Limits::default()).unwrap().unwrap();
    let error = create(&trial.below("box"), &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("another container is just being put there"), "{error}");
    drop(other);
    life::freeze(&made, PATIENCE).unwrap();
    let error = create(&trial.below("box"), &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("cgroup unexpectedly frozen"), "{error}");
    life::thaw(&made, PATIENCE).unwrap();
    trial.start(&made);
    let error = create(&trial.below("box"), &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("the container's cgroup is not empty"), "{error}");
    assert!(made.path.exists());
}

#[test]
fn an_existing_cgroup_must_be_a_leaf() {
    let Some(trial) = Trial::new("leaf") else { return };
    let inner = trial.create("inner");
    let offered = std::fs::read_to_string(inner.path.join("cgroup.controllers")).unwrap();
    let Some(controller) = offered.split_whitespace().next() else {
        return skip("this tree has no controllers below its root");
    };
    std::fs::write(inner.path.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let error = create(&trial.below("inner"), &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("takes no process") && error.contains("below it"), "{error}");
    let threaded = trial.create("threaded");
    std::fs::write(threaded.path.join("cgroup.type"), "threaded").unwrap();
    let error = create(&trial.below("threaded"), &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("threads only"), "{error}");
}

#[test]
fn a_controller_of_v1_is_named_with_the_field_and_nothing_is_left() {
    let Some(trial) = Trial::new("hybrid") else { return };
    if !location::find_tree().unwrap().unwrap().hybrid {
        return skip("this host's controllers are all in v2");
    }
    let error = create(&trial.below("a/b"), &limits(r#"{"memory": {"limit": 4096}}"#)).unwrap_err().to_string();
    assert!(error.contains("linux.resources.memory.limit: memory is bound to cgroup v1 on this host"), "{error}");
    assert!(!trial.below("a").dir().exists());
    // A cgroup made without them refuses them as well.
    let cgroup = trial.create("c");
    let error = apply(&cgroup, &limits(r#"{"pids": {"limit": 5}}"#)).unwrap_err().to_string();
    assert!(error.contains("linux.resources.pids.limit: pids is bound to cgroup v1"), "{error}");
    // So does a write that might be skipped if only the file were missing.
    let error = apply(&cgroup, &limits(r#"{"memory": {"swap": -1}}"#)).unwrap_err().to_string();
    assert!(error.contains("linux.resources.memory.swap: memory is bound to cgroup v1"), "{error}");
}

#[test]
fn what_making_would_answer_is_known_before() {
    let Some(mut trial) = Trial::new("foreseen") else { return };
    foresee(&trial.below("a/b"), &Limits::default()).unwrap().expect("a cgroup");
    assert!(!trial.below("a").dir().exists(), "nothing is made");
    let lacking = limits(r#"{"unified": {"nosuch.max": "1"}}"#);
    for place in ["a/b", "box"] {
        let foreseen = foresee(&trial.below(place), &lacking).unwrap_err().to_string();
        assert_eq!(foreseen, create(&trial.below(place), &lacking).unwrap_err().to_string(), "{place}");
    }
    let made = trial.create("box");
    foresee(&trial.below("box"), &Limits::default()).unwrap().expect("an empty one can be used");
    trial.start(&made);
    let foreseen = foresee(&trial.below("box"), &Limits::default()).unwrap_err().to_string();
    assert_eq!(foreseen, create(&trial.below("box"), &Limits::default()).unwrap_err().to_string());
}

#[test]
fn a_controller_the_kernel_lacks_is_named() {
    let Some(trial) = Trial::new("lacking") else { return };
    let limits = limits(r#"{"unified": {"nosuch.max": "1"}}"#);
    let error = create(&trial.below("a"), &limits).unwrap_err().to_string();
    assert!(error.contains("unified[\"nosuch.max\"]: this kernel has no nosuch controller"), "{error}");
    let cgroup = trial.create("b");
    let core = self::limits(r#"{"unified": {"cgroup.nosuch": "1"}}"#);
    let error = apply(&cgroup, &core).unwrap_err().to_string();
    assert!(error.contains("cgroup.nosuch: ENOENT"), "{error}");
}

#[test]
fn core_files_are_written() {
    let Some(trial) = Trial::new("core") else { return };
    let cgroup = trial.create("box");
    let limits = limits(r#"{"unified": {"cgroup.max.depth": "3", "cgroup.max.descendants": "7"}}"#);
    apply(&cgroup, &limits).unwrap();
    let read = |name| file::read(cgroup.as_fd(), name).unwrap();
    assert_eq!((read("cgroup.max.depth").trim(), read("cgroup.max.descendants").trim()), ("3", "7"));
}

/// A trial below whose cgroup these controllers can be had without a change to the host's own: `None` on a hybrid host.
fn with_controllers(test: &str, controllers: &[&str]) -> Option<Trial> {
    let trial = Trial::new(test)?;
    let enabled = std::fs::read_to_string(trial.location.mount.join("cgroup.subtree_control")).unwrap();
    let missing = controllers.iter().find(|controller| !enabled.split_whitespace().any(|name| name == **controller));
    match missing {
        None => Some(trial),
        Some(missing) => {
            skip(&format!("{missing} is not enabled in the root of the v2 tree"));
            None
        }
    }
}

#[test]
fn enables_controllers_on_the_way_and_applies_their_limits() {
    let Some(mut trial) = with_controllers("enable", &["cpu", "memory", "pids"]) else { return };
    let limits = limits(
        r#"{"pids": {"limit": 20}, "memory": {"limit": 33554432, "swap": 67108864, "reservation": 4096},
            "cpu": {"shares": 512, "quota": 5000, "period": 10000, "burst": 2000}}"#,
    );
    let location = trial.below("a/box");
    let cgroup = create(&location, &limits).unwrap().unwrap();
    assert_eq!(cgroup.made, 2);
    apply(&cgroup, &limits).unwrap();
    // Twice, the second time with a quota below the burst in place: the burst has to go down first.
    apply(&cgroup, &self::limits(r#"{"cpu": {"quota": 1000, "burst": 500}}"#)).unwrap();
    for (file, value) in [
        ("pids.max", "20"),
        ("memory.max", "33554432"),
        ("memory.low", "4096"),
        ("cpu.weight", "59"),
        ("cpu.max", "1000 10000"),
        ("cpu.max.burst", "500"),
    ] {
        assert_eq!(file::read(cgroup.as_fd(), file).unwrap().trim(), value, "{file}");
    }
    // One with processes of its own cannot give controllers to children.
    let busy = trial.create("busy");
    trial.start(&busy);
    for (json, field) in [
        (r#"{"memory": {"limit": 33554432}, "cpu": {"shares": 2}}"#, "memory for linux.resources.memory.limit"),
        (r#"{"cpu": {"shares": 2}}"#, "cpu for linux.resources.cpu.shares"),
    ] {
        let error = create(&trial.below("busy/box"), &self::limits(json)).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("processes run in that very cgroup"), "{error}");
        assert!(!busy.path.join("box").exists());
        assert_eq!(file::read(busy.as_fd(), "cgroup.type").unwrap(), "domain\n");
    }
    // One above which they are not enabled has not got them.
    let without = trial.create("without");
    let below = trial.create("without/box");
    let error = apply(&below, &self::limits(r#"{"pids": {"limit": 5}}"#)).unwrap_err().to_string();
    assert!(error.contains(&format!("pids is not enabled in {}", without.path.display())), "{error}");
}

#[test]
fn processors_disks_and_huge_pages_are_limited() {
    let Some(trial) = with_controllers("kinds", &["cpu", "cpuset", "io", "hugetlb"]) else { return };
    let Ok(disk) = std::fs::read_to_string("/sys/block/vda/dev") else {
        return skip("this host has no disk vda");
    };
    let (major, minor) = disk.trim().split_once(':').unwrap();
    let device = format!(r#""major": {major}, "minor": {minor}"#);
    let limits = limits(&format!(
        r#"{{"cpu": {{"cpus": "0", "mems": "0", "idle": 1, "shares": 2048}},
            "blockIO": {{"throttleReadBpsDevice": [{{{device}, "rate": 1048576}}],
                "throttleWriteIOPSDevice": [{{{device}, "rate": 100}}],
                "throttleReadIOPSDevice": [{{{device}, "rate": 0}}]}},
            "hugepageLimits": [{{"pageSize": "2MB", "limit": 4194304}}]}}"#
    ));
    let cgroup = create(&trial.below("box"), &limits).unwrap().unwrap();
    apply(&cgroup, &limits).unwrap();
    for (file, value) in [
        ("cpuset.cpus", "0".into()),
        ("cpuset.mems", "0".into()),
        ("cpu.idle", "1".into()),
        ("io.max", format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=100")),
        ("hugetlb.2MB.max", "4194304".into()),
        ("hugetlb.2MB.rsvd.max", "4194304".into()),
    ] {
        assert_eq!(file::read(cgroup.as_fd(), file).unwrap().trim(), value, "{file}");
    }
    // Weighed by whichever scheduler there is; the refusal of a kernel with neither names the field.
    match apply(&cgroup, &self::limits(r#"{"blockIO": {"weight": 500}}"#)) {
        Ok(()) => {
            let weights =
                ["io.bfq.weight", "io.weight"].map(|name| file::read(cgroup.as_fd(), name).unwrap_or_default());
            assert!(weights[0].contains("500") || weights[1].contains("4950"), "{weights:?}");
        }
        Err(error) => {
            assert!(!cgroup.path.join("io.weight").exists() && error.to_string().contains("blockIO.weight"), "{error}");
        }
    }
    // Out of an idle cgroup and into a weight, in one update.
    apply(&cgroup, &self::limits(r#"{"cpu": {"idle": 0, "shares": 512}}"#)).unwrap();
    assert_eq!(file::read(cgroup.as_fd(), "cpu.weight").unwrap().trim(), "59");
    let nowhere = r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 999, "minor": 9, "rate": 1}]}}"#;
    let error = apply(&cgroup, &self::limits(nowhere)).unwrap_err().to_string();
    assert!(error.contains("throttleReadBpsDevice") && error.contains("no block device of that number"), "{error}");
}

#[test]
fn usage_above_a_checked_limit_refuses_it() {
    let Some(trial) = with_controllers("check", &["memory"]) else { return };
    let limits = limits(r#"{"memory": {"checkBeforeUpdate": true, "limit": 1024}}"#);
    let location = trial.below("box");
    let cgroup = create(&location, &limits).unwrap().unwrap();
    // What a process has used stays on the cgroup's account while it lives there: here a page of a file it made.
    let file = std::env::temp_dir().join(format!("ferry-test-check-{}", std::process::id()));
    let script = r#"echo $$ > "$1/cgroup.procs" && echo page > "$2""#;
    let status = std::process::Command::new("sh").args(["-c", script, "sh"]).args([&cgroup.path, &file]).status();
    assert!(status.unwrap().success());
    let before = file::read(cgroup.as_fd(), "memory.max").unwrap();
    let error = apply(&cgroup, &limits).unwrap_err().to_string();
    assert!(
        error.contains("linux.resources.memory.limit to 1024: rejecting memory limit: the container uses"),
        "{error}"
    );
    assert_eq!(file::read(cgroup.as_fd(), "memory.max").unwrap(), before);
    std::fs::remove_file(file).unwrap();
}

#[test]
fn usage_that_cannot_be_read_refuses_nothing() {
    let Some(trial) = Trial::new("unchecked") else { return };
    let cgroup = trial.create("box");
    if file::read(cgroup.as_fd(), "memory.current").is_ok() {
        return skip("this cgroup has the memory controller");
    }
    check_memory(&cgroup, MemoryCheck { limit: Some(1), with_swap: None }).unwrap();
}

/// Runs `body` on a thread of an ordinary user: the kernel keeps ids and capabilities by the thread.
fn as_ordinary_user<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let nobody = Uid::from_raw(65534);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            body()
        });
        thread.join().unwrap()
    })
}

#[test]
fn an_ordinary_user_without_a_cgroup_runs_without_one_but_not_without_limits() {
    let Some(trial) = Trial::new("ordinary") else { return };
    let unasked = Location { explicit: false, ..trial.below("box") };
    let limits = limits(r#"{"unified": {"cgroup.max.depth": "3"}}"#);
    let (without, limited, named) = as_ordinary_user(|| {
        (
            create(&unasked, &Limits::default()),
            create(&unasked, &limits),
            create(&trial.below("box"), &Limits::default()),
        )
    });
    assert!(without.unwrap().is_none());
    for error in [limited.unwrap_err().to_string(), named.unwrap_err().to_string()] {
        assert!(error.contains("EACCES") && error.contains("delegated"), "{error}");
    }
    // What is delegated is used.
    delegate(&held(&trial), Uid::from_raw(65534)).unwrap();
    let made = as_ordinary_user(|| create(&unasked, &Limits::default()).unwrap().unwrap().made);
    assert_eq!(made, 1);
}

fn held(trial: &Trial) -> Cgroup {
    open(&trial.location.dir()).unwrap()
}

#[test]
fn a_cgroup_without_limits_is_made_ready_for_some() {
    let Some(trial) = with_controllers("ready", &["hugetlb"]) else { return };
    let location = trial.below("a/box");
    let cgroup = create(&location, &Limits::default()).unwrap().unwrap();
    assert!(!cgroup.path.join("hugetlb.2MB.max").exists());
    let limits = limits(r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#);
    make_ready(&cgroup, &location, &limits).unwrap();
    apply(&cgroup, &limits).unwrap();
    assert_eq!(file::read(cgroup.as_fd(), "hugetlb.2MB.max").unwrap(), "4194304\n");
}

#[test]
fn a_file_that_is_missing_is_found_before_anything_is_written() {
    let Some(trial) = with_controllers("missing", &["hugetlb"]) else { return };
    let location = trial.below("box");
    let cgroup = create(&location, &Limits::default()).unwrap().unwrap();
    let limits =
        limits(r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}], "unified": {"hugetlb.no-such": "1"}}"#);
    let error = make_ready(&cgroup, &location, &limits).unwrap_err().to_string();
    assert!(error.contains("hugetlb.no-such"), "{error}");
    assert_ne!(file::read(cgroup.as_fd(), "hugetlb.2MB.max").unwrap(), "4194304\n");
}
