//! Migration with memory that follows: the container goes on before all of it is there. Nothing is lost where both ends live, and
//! where they do not, what has run without all of its memory does not run again by itself.

use std::fs;
use std::path::Path;
use std::process::Child;

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::case::{Case, names_in};
use super::checkpoint::CRIU;
use super::migrate::{destination, followed, gone, settled, words};
use super::migrate_cut_off::{MIGRATES, is_running, of_this};
use super::output::{self, Lines};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("memory_follows_there_and_back", CRIU, there_and_back),
    scenario("processes_with_memory_of_their_own_go_along", CRIU, ring),
    scenario("a_process_goes_on_while_memory_of_another_follows", CRIU, grows),
    scenario("an_end_that_is_killed_while_memory_follows", CRIU, killed),
    scenario("a_cut_while_memory_follows", CRIU, cut),
];

/// As `migrate` is called, and what it reports.
fn migrate(case: &mut Case, flags: &[&str], there: &str) -> Result<Value, Failed> {
    let (store, id, to, report) = (case.path("store"), case.id.clone(), destination(case), case.path("report.json"));
    let flags = [&["--mode", "post-copy", "--report", &report], flags].concat();
    let told = case.call(&words(&flags, &store, (&id, there), &to))?.success()?.stdout;
    assert!(told.contains("left here") && told.contains("times it waited for a page"), "{told}");
    Ok(serde_json::from_str(&fs::read_to_string(&report)?)?)
}

/// It writes to all of 8 MiB, over and over, and looks at what it wrote.
fn scribbler(case: &mut Case) -> Result<Row, Failed> {
    let mut row = Row::of(case.args(&["/probe", "scribble", "8", "10"]).start()?);
    row.go_on(3)?;
    Ok(row)
}

fn there_and_back(case: &mut Case) -> Outcome {
    let mut row = scribbler(case)?;
    let (here, there) = (case.id.clone(), case.other_id());
    let report = migrate(case, &[], &there)?;
    gone(case, &here)?;
    let lines = followed(case, &format!("output/{there}.stdout"))?;
    row.continued(lines)?;
    settled(case)?;
    assert_eq!((&report["mode"], &report["migrated"]), (&"post-copy".into(), &true.into()));
    let number = |path: &str| report.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    assert!(number("/faults/bytes") >= 8 << 20, "{report}");
    assert!(number("/rounds/0/pages") < 8 << 20, "it stood still for what may not follow alone: {report}");
    assert!(number("/faults/median") <= number("/faults/p99") && number("/faults/p99") <= number("/faults/longest"));
    assert!(number("/downtime") > 0 && number("/downtime") < number("/total"), "{report}");
    case.id = there;
    migrate(case, &[], &here)?;
    case.id = here;
    assert!(case.state()?["status"] == "running");
    settled(case)
}

fn ring(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
    row.go_on(5)?;
    let there = case.other_id();
    migrate(case, &["--timeout", "120s"], &there)?;
    let lines = followed(case, &format!("output/{there}.stdout"))?;
    row.continued(lines)?;
    settled(case)
}

/// All of its own memory is there long before the other's, and it has pages that nobody has touched yet.
fn grows(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "grow-beside", "16"]).start()?);
    row.go_on(3)?;
    let there = case.other_id();
    migrate(case, &["--bandwidth", "8M", "--compress-level", "0"], &there)?;
    let lines = followed(case, &format!("output/{there}.stdout"))?;
    row.continued(lines)?;
    settled(case)
}

/// One runs, and has lost nothing; or it is lost: then it has run there, and here it stands still until somebody says otherwise.
fn one_or_lost(case: &mut Case, mut row: Row, there: &str, what: &str) -> Result<bool, Failed> {
    let (here, store, to) = (case.id.clone(), case.path("store"), destination(case));
    assert!(!(is_running(case, &here)? && is_running(case, there)?), "{what}: two run");
    let said = case.call(&["--store", &store, "migrate", "--recover", &here, &to])?.success()?.stdout;
    case.call(&["--store", &store, "migrate", "--recover", there])?.success()?;
    let (is_here, is_there) = (is_running(case, &here)?, is_running(case, there)?);
    let wrong = |why| format!("{what}, here {is_here}, there {is_there}: {why:?}");
    match (is_here, is_there) {
        (true, false) => {
            row.go_on(3).map_err(wrong)?;
            let printed = fs::metadata(case.path(&format!("output/{there}.stdout"))).map_or(0, |file| file.len());
            assert_eq!(printed, 0, "{what}: two ran");
        }
        (false, true) => {
            let lines = followed(case, &format!("output/{there}.stdout"))?;
            row.continued(lines).map_err(wrong)?;
        }
        (false, false) => {
            assert_eq!(case.state()?["status"], "paused", "{what}: {said}");
            gone(case, there)?;
            assert!(daemons(case).is_empty(), "{what}: what put memory in its place is left");
            // That is for a person to decide.
            case.call(&["resume", &here])?.success()?;
            row.go_on(3).map_err(wrong)?;
        }
        (true, true) => return Err(format!("{what}: two run").into()),
    }
    for name in names_in(&Path::new(&store).join("migrations")) {
        let path = Path::new(&store).join("migrations").join(&name);
        let journal: Value = serde_json::from_slice(&fs::read(path.join("journal.json"))?)?;
        assert!(is_there && name.ends_with(".destination") && journal["state"] == "active", "{what}: {journal}");
        super::case::remove_tree(&path)?;
    }
    for id in [&here, there] {
        case.call(&["delete", "--force", id])?.success()?;
    }
    Ok(!is_here && !is_there)
}

/// CRIU's daemons of this case.
fn daemons(case: &Case) -> Vec<i32> {
    of_this(case, "lazy-pages")
}

/// A migration that is about to send what was left, slowly enough for something to happen meanwhile.
fn begun(case: &mut Case, there: &str, to: &str) -> Result<(Child, Lines), Failed> {
    let (store, here) = (case.path("store"), case.id.clone());
    let flags =
        ["--mode", "post-copy", "--timeout", "5s", "--progress", "json", "--bandwidth", "4M", "--compress-level", "0"];
    let (child, mut told) = case.spawn(&words(&flags, &store, (&here, there), to))?;
    told.until("push")?;
    Ok((child, told))
}

/// Something that does not compress, and is not sent twice.
fn large(case: &mut Case) -> Result<Row, Failed> {
    let mut row = Row::of(case.args(&["/probe", "scribble", "32", "20"]).start()?);
    row.go_on(3)?;
    Ok(row)
}

fn killed(case: &mut Case) -> Outcome {
    for whom in [MIGRATES, " receive ", "lazy-pages"] {
        let there = case.other_id();
        let row = large(case)?;
        let to = destination(case);
        let (mut child, _told) = begun(case, &there, &to)?;
        for pid in of_this(case, whom) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        output::wait(&mut child, case.patience())?;
        for pid in of_this(case, " receive ") {
            case.wait_for(u32::try_from(pid)?)?;
        }
        assert!(one_or_lost(case, row, &there, whom)?, "{whom}: all of its memory was there");
    }
    Ok(())
}

fn cut(case: &mut Case) -> Outcome {
    let ferry = destination(case).trim_start_matches("exec:exec ").to_owned();
    let there = case.other_id();
    let row = large(case)?;
    // By its words it is found.
    let way = format!("cat - {}/none", case.path("store"));
    let (mut child, _told) = begun(case, &there, &format!("exec:{way} | {ferry}"))?;
    let passing = of_this(case, &way);
    assert_eq!(passing.len(), 1);
    kill(Pid::from_raw(passing[0]), Signal::SIGKILL)?;
    output::wait(&mut child, case.patience())?;
    for pid in of_this(case, " receive ") {
        case.wait_for(u32::try_from(pid)?)?;
    }
    assert!(one_or_lost(case, row, &there, "cut")?, "all of its memory was there");
    Ok(())
}
