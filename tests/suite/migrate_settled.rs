//! Migrations that were cut off and are settled by `migrate --recover`: in whichever order the ends are asked, and however often, and
//! whatever happens to who asks, the container runs at one of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value};

use super::case::{Case, names_in};
use super::checkpoint::CRIU;
use super::migrate::{calling_with, copied_bundle, counter, destination, gone, printed, settled, words};
use super::migrate_cut_off::{of_this, one_goes_on, restoring};
use super::need::Need::{self, CgroupV2, Criu, Ferry, Root, Tool};
use super::output::{self, Lines};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};

const NEEDS: &[Need] = &[Ferry, Root, Tool("strace"), Criu, CgroupV2(&[])];

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("killed_while_it_has_it_stand_still_it_goes_on", NEEDS, killed_while_it_looks),
    scenario("one_that_was_paused_since_stays_so", NEEDS, paused_since),
    scenario("one_that_was_given_up_is_nobody_elses_to_let_go_on", NEEDS, given_up),
    scenario("another_container_of_that_id_is_left_alone", NEEDS, stranger),
    scenario("another_container_of_that_id_at_the_source_is_left_alone", NEEDS, stranger_here),
    scenario("one_that_was_never_given_up_is_let_go_on_once", NEEDS, let_go_on_once),
    scenario("the_next_one_settles_an_earlier_one_where_that_went", NEEDS, earlier_one),
    scenario("what_the_other_end_cannot_settle_is_discarded_where_it_is", NEEDS, discarded),
    scenario("one_that_ended_there_is_known_whatever_comes_after", NEEDS, ended_since),
    scenario("a_removal_that_was_cut_off_is_gone_on_with", NEEDS, half_removed),
    scenario("one_that_is_made_meanwhile_is_left_alone", CRIU, made_meanwhile),
    scenario("one_that_is_killed_while_it_stands_still_does_not_go_on", CRIU, killed_meanwhile),
];

/// A migration whose destination ends as soon as the container runs there, with nobody told, as often as it is reached: it dies where it
/// first reads whether the container stands still. Answers that file.
fn unknown(case: &mut Case, there: &str) -> Result<(Row, String), Failed> {
    let row = counter(case)?;
    let (store, here) = (case.path("store"), case.id.clone());
    let files = case.cgroups().into_iter().map(|path| path.join("cgroup.freeze")).find(|path| path.exists());
    let file = files.ok_or("it has no freezer")?.display().to_string().replace(&here, there);
    let to = destination(case).replace("exec:exec ", &format!("exec:exec {} ", killed_at("pread64", 1, &file)));
    let said = case.call(&words(&["--timeout", "5s"], &store, (&here, there), &to))?.failure()?.stderr;
    assert!(said.contains("whether it runs there is not known"), "{said}");
    assert_eq!((status(case, &here)?, status(case, there)?), ("paused".into(), "running".into()));
    Ok((row, file))
}

/// Strace, which kills who makes this call on this file for the so many-th time.
fn killed_at(call: &str, number: u32, file: &str) -> String {
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={number}"));
    format!("strace -D -qq -o /dev/null -P {file} -e {trace} -e {inject}")
}

/// `migrate` with these words, which strace kills.
fn killed(case: &mut Case, strace: &str, words: &[&str]) -> Outcome {
    let mut strace = strace.split(' ');
    let ferry = case.command(&[&["--store", &case.path("store"), "migrate"], words].concat());
    let mut command = Command::new(strace.next().unwrap_or_default());
    command.args(strace).arg(ferry.get_program()).args(ferry.get_args());
    command.envs(ferry.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 137);
    Ok(())
}

fn status(case: &mut Case, id: &str) -> Result<String, Failed> {
    Ok(case.call(&["state", id])?.success()?.json()?["status"].as_str().unwrap_or_default().to_owned())
}

fn recover(case: &mut Case, id: &str) -> Outcome {
    let store = case.path("store");
    case.call(&["--store", &store, "migrate", "--recover", id])?.success().map(drop)
}

/// Freezing shows whether a container's processes are about to end; nobody but ferry knows that it was ferry who did it.
fn killed_while_it_looks(case: &mut Case) -> Outcome {
    for asked_first in [0, 2] {
        let there = case.other_id();
        let (row, file) = unknown(case, &there)?;
        // The first write freezes, and the second one thaws.
        let strace = killed_at("write", 2, &file);
        killed(case, &strace, &["--recover", &there])?;
        assert_eq!(status(case, &there)?, "paused");
        for _ in 0..asked_first {
            recover(case, &there)?;
            assert_eq!(status(case, &there)?, "running");
        }
        one_goes_on(case, row, &there, &format!("there {asked_first} times first"))?;
    }
    Ok(())
}

/// Once it is known that it runs there, who pauses it there means it.
fn paused_since(case: &mut Case) -> Outcome {
    let (there, here) = (case.other_id(), case.id.clone());
    let (row, _) = unknown(case, &there)?;
    recover(case, &there)?;
    case.call(&["pause", &there])?.success()?;
    recover(case, &there)?;
    assert_eq!(status(case, &there)?, "paused");
    let (store, to) = (case.path("store"), destination(case));
    case.call(&["--store", &store, "migrate", "--recover", &here, &to])?.success()?;
    assert_eq!(status(case, &there)?, "paused");
    case.call(&["resume", &there])?.success()?;
    one_goes_on(case, row, &there, "resumed")
}

/// What it does there would be done here once more.
fn given_up(case: &mut Case) -> Outcome {
    let (there, here) = (case.other_id(), case.id.clone());
    let (row, _) = unknown(case, &there)?;
    let images = case.path("images");
    for words in [&["resume", &here][..], &["kill", &here, "TERM"], &["checkpoint", "--image-path", &images, &here]] {
        let said = case.call(words)?.failure()?.stderr;
        assert!(said.contains("a migration has given it up to exec:"), "{words:?}: {said}");
        assert!(said.contains(&format!("`ferry migrate --recover {here}` settles it")), "{words:?}: {said}");
        assert_eq!(status(case, &here)?, "paused");
    }
    one_goes_on(case, row, &there, "not resumed")
}

/// The source dies between its record and its directory.
fn half_removed(case: &mut Case) -> Outcome {
    let (there, here) = (case.other_id(), case.id.clone());
    let (row, _) = unknown(case, &there)?;
    let (entry, to) = (case.state_root().join(&here), destination(case));
    // Record, configuration, directory.
    killed(case, &killed_at("unlinkat", 3, &entry.display().to_string()), &["--recover", &here, &to])?;
    assert_eq!(names_in(&entry), Vec::<String>::new());
    assert!(entry.exists());
    one_goes_on(case, row, &there, "half removed")
}

/// A container of that id, of another bundle, once its program has said its last word.
fn other_of_that_id(case: &mut Case, id: &str, program: &[&str]) -> Outcome {
    let own = case.config.clone();
    case.args(program).write_config()?;
    let bundle = copied_bundle(case, "stranger")?;
    case.config = own;
    let mut lines = case.begin(&["run", "--detach", "--bundle", &bundle, id])?;
    match program {
        ["/probe", "sleep", ..] => lines.until("ready").map(drop),
        _ => lines.until("1").map(drop),
    }
}

/// Who deletes what came there makes it stay here; what he has made of the same id since is none of the migration's.
fn stranger(case: &mut Case) -> Outcome {
    let (there, here) = (case.other_id(), case.id.clone());
    let (mut row, _) = unknown(case, &there)?;
    case.call(&["delete", "--force", &there])?.success()?;
    other_of_that_id(case, &there, &["/probe", "sleep", "forever"])?;
    let (store, to) = (case.path("store"), destination(case));
    case.call(&["--store", &store, "migrate", "--recover", &here, &to])?.success()?;
    assert_eq!((status(case, &here)?, status(case, &there)?), ("running".into(), "running".into()));
    row.go_on(5)
}

/// The journal outlives the container that was given up, and its id is free once that is gone.
fn stranger_here(case: &mut Case) -> Outcome {
    for older in [false, true] {
        let (there, here) = (case.other_id(), case.id.clone());
        let (mut row, _) = unknown(case, &there)?;
        case.call(&["delete", "--force", &here])?.success()?;
        other_of_that_id(case, &here, &["/probe", "sleep", "forever"])?;
        let (store, to) = (case.path("store"), destination(case));
        if older {
            change(&the_journal(case)?, |journal| drop(journal.remove("which")))?;
        }
        let said = case.call(&["--store", &store, "migrate", "--recover", &here, &to])?.success()?.stdout;
        assert!(
            said.contains(&format!("{here} is at ")) && said.contains("is another one, and was left alone"),
            "{said}"
        );
        assert_eq!((status(case, &here)?, status(case, &there)?), ("running".into(), "running".into()));
        let lines = printed(case, &there)?;
        row.continued(lines)?;
        settled(case)?;
        [&here, &there].into_iter().try_for_each(|id| case.call(&["delete", "--force", id])?.success().map(drop))?;
    }
    Ok(())
}

/// The way to the other end, which somebody may close.
struct Way(PathBuf);

impl Way {
    fn open(case: &Case) -> Result<Self, Failed> {
        let way = Self(PathBuf::from(case.path("way")));
        fs::write(&way.0, format!("#!/bin/sh\n{}\n", destination(case).trim_start_matches("exec:")))?;
        fs::set_permissions(&way.0, fs::Permissions::from_mode(0o755))?;
        Ok(way)
    }

    fn close(&self) -> Outcome {
        Ok(fs::remove_file(&self.0)?)
    }

    fn words(&self) -> String {
        format!("exec:{}", self.0.display())
    }
}

/// A migration whose source is killed once the other end has all of it, and before it is given up: it goes on here.
fn undecided(case: &mut Case, there: &str) -> Result<(Row, Way), Failed> {
    let mut row = counter(case)?;
    let (here, way) = (case.id.clone(), Way::open(case)?);
    // That it is given up is in its record before it is in the journal.
    let entry = case.state_root().join(&here);
    killed(case, &killed_at("renameat", 1, &entry.display().to_string()), &["--as", there, &here, &way.words()])?;
    for pid in of_this(case, " receive ") {
        case.wait_for(u32::try_from(pid)?)?;
    }
    row.go_on(5)?;
    assert_eq!(states(case)?, ["destination prepared", "source open"]);
    Ok((row, way))
}

/// Which ends keep a journal, and how far each is.
fn states(case: &Case) -> Result<Vec<String>, Failed> {
    let migrations = PathBuf::from(case.path("store/migrations"));
    let mut states = Vec::new();
    for name in names_in(&migrations) {
        let journal: Value = serde_json::from_slice(&fs::read(migrations.join(name).join("journal.json"))?)?;
        states.push([&journal["role"], &journal["state"]].map(|word| word.as_str().unwrap_or_default()).join(" "));
    }
    states.sort();
    Ok(states)
}

/// What is asked again and again, until the other end is reached, has it go on the first time only; and of another one nothing.
fn let_go_on_once(case: &mut Case) -> Outcome {
    let (there, here) = (case.other_id(), case.id.clone());
    let (mut row, way) = undecided(case, &there)?;
    way.close()?;
    case.call(&["pause", &here])?.success()?;
    // Whether that was CRIU nobody knows.
    recover(case, &here)?;
    row.go_on(5)?;
    case.call(&["pause", &here])?.success()?;
    recover(case, &here)?;
    assert_eq!((status(case, &here)?, states(case)?.len()), ("paused".into(), 2));
    let way = Way::open(case)?;
    recover(case, &here)?;
    assert_eq!(status(case, &here)?, "paused");
    settled(case)?;
    case.call(&["delete", "--force", &here])?.success()?;
    let (_row, _way) = (undecided(case, &there)?, way);
    case.call(&["delete", "--force", &here])?.success()?;
    other_of_that_id(case, &here, &["/probe", "sleep", "forever"])?;
    case.call(&["pause", &here])?.success()?;
    recover(case, &here)?;
    assert_eq!(status(case, &here)?, "paused");
    settled(case)
}

/// Any other machine knows nothing of it, and so takes it for settled; the one that it went to would wait for ever.
fn earlier_one(case: &mut Case) -> Outcome {
    let (there, here) = (case.other_id(), case.id.clone());
    let (mut row, way) = undecided(case, &there)?;
    let (store, other) = (case.path("store"), case.path("other-store"));
    let elsewhere = format!("{} receive --stdio --output {}", calling_with(case, &other), case.path("output"));
    let elsewhere = format!("exec:exec {elsewhere}");
    case.call(&words(&["--dry-run"], &store, (&here, &there), &elsewhere))?.success()?;
    assert_eq!(states(case)?, ["destination prepared", "source open"]);
    way.close()?;
    let said = case.call(&words(&["--timeout", "5s"], &store, (&here, &there), &elsewhere))?.failure()?.stderr;
    assert!(said.contains(&format!("an earlier migration of {here} to {} is not settled", way.words())), "{said}");
    assert_eq!(states(case)?, ["destination prepared", "source aborted"]);
    row.go_on(5)?;
    Way::open(case)?;
    case.call(&words(&[], &store, (&here, &there), &elsewhere))?.success()?;
    settled(case)?;
    let lines = printed(case, &there)?;
    row.continued(lines)
}

/// Each end forgets what only the other one could settle, if a person says so, and takes the container again.
fn discarded(case: &mut Case) -> Outcome {
    let (there, here) = (case.other_id(), case.id.clone());
    let (mut row, way) = undecided(case, &there)?;
    let (store, to) = (case.path("store"), destination(case));
    let call = |case: &mut Case, words: &[&str]| case.call(&[&["--store", &store, "migrate"], words].concat());
    way.close()?;
    let said = call(case, &["--recover", &there])?.failure()?.stderr;
    assert!(said.contains("only") && said.contains(&format!("`ferry migrate --recover --discard {there}`")), "{said}");
    let said = call(case, &["--recover", "--discard", &here])?.success()?.stdout;
    assert!(said.contains(&format!("{here} is here")) && said.contains("is forgotten"), "{said}");
    assert_eq!(states(case)?, ["destination prepared"]);
    let said = call(case, &["--as", &there, &here, &to])?.failure()?.stderr;
    assert!(said.contains("an earlier migration") && said.contains("is not settled"), "{said}");
    let said = call(case, &["--discard", &there, &to])?.failure()?.stderr;
    assert!(said.contains("--discard goes with --recover"), "{said}");
    let said = call(case, &["--recover", "--discard", &there])?.success()?.stdout;
    assert!(said.contains("is removed") && said.contains("was not asked"), "{said}");
    settled(case)?;
    row.go_on(5)?;
    call(case, &["--as", &there, &here, &to])?.success()?;
    let lines = printed(case, &there)?;
    row.continued(lines)?;
    // What was given up is not forgotten where it stands still.
    case.call(&["delete", "--force", &there])?.success()?;
    let (row, _) = unknown(case, &there)?;
    let gone = ["--timeout", "5s", "--recover", "--discard", &here, "exec:false"];
    call(case, &gone)?.failure()?;
    assert_eq!(status(case, &here)?, "paused");
    one_goes_on(case, row, &there, "not discarded")
}

/// The one that the source keeps.
fn the_journal(case: &Case) -> Result<PathBuf, Failed> {
    let migrations = PathBuf::from(case.path("store/migrations"));
    let name = names_in(&migrations).into_iter().find(|name| name.ends_with(".source")).ok_or("there is no journal")?;
    Ok(migrations.join(name).join("journal.json"))
}

fn change(path: &Path, change: impl FnOnce(&mut Map<String, Value>)) -> Outcome {
    let mut journal = serde_json::from_slice(&fs::read(path)?)?;
    change(&mut journal);
    Ok(fs::write(path, serde_json::to_vec(&journal)?)?)
}

/// The source asks after the next one of that id has come, or was asked for.
fn ended_since(case: &mut Case) -> Outcome {
    let (there, here) = (case.other_id(), case.id.clone());
    drop(unknown(case, &there)?);
    recover(case, &there)?;
    let (store, to) = (case.path("store"), destination(case));
    case.call(&["delete", "--force", &there])?.success()?;
    let said = case.call(&["--store", &store, "migrate", "--recover", &there])?.success()?.stdout;
    assert_eq!(said.trim(), format!("{there} ran here and has ended since"));
    let other = case.args(&["/probe", "sleep", "forever"]).start_other()?;
    for flags in [&["--dry-run"][..], &[]] {
        case.call(&words(flags, &store, (&other, &there), &to))?.success()?;
    }
    let said = case.call(&["--store", &store, "migrate", "--recover", &here, &to])?.success()?.stdout;
    assert!(said.contains("ran there and has ended since"), "{said}");
    gone(case, &here)?;
    assert_eq!(status(case, &there)?, "running");
    settled(case)
}

/// A migration that has said this.
fn begun(case: &mut Case, there: &str, step: &str) -> Result<(Child, Lines), Failed> {
    let (store, here, to) = (case.path("store"), case.id.clone(), destination(case));
    let (child, mut told) = case.spawn(&words(&["--progress", "json"], &store, (&here, there), &to))?;
    told.until(step)?;
    Ok((child, told))
}

/// The id is free when the place is reserved, and taken when it is restored: by one that has ended by then.
fn made_meanwhile(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let there = case.other_id();
    let (mut source, _told) = begun(case, &there, "stop-and-copy")?;
    let pid = Pid::from_raw(i32::try_from(source.id())?);
    kill(pid, Signal::SIGSTOP)?;
    other_of_that_id(case, &there, &["/probe", "count", "1", "0"])?;
    kill(pid, Signal::SIGCONT)?;
    assert_ne!(output::code(output::wait(&mut source, case.patience())?), 0);
    assert_eq!(status(case, &there)?, "stopped");
    row.go_on(5)?;
    settled(case)
}

/// Who kills it is told that it was, and so it does not go on elsewhere.
fn killed_meanwhile(case: &mut Case) -> Outcome {
    let _row = counter(case)?;
    let (there, here) = (case.other_id(), case.id.clone());
    let (mut source, _told) = begun(case, &there, "stop-and-copy")?;
    // It stands still for as long as that one is about it.
    let end = Instant::now() + case.patience();
    let criu = loop {
        match restoring(case).pop() {
            Some(pid) => break Pid::from_raw(pid),
            None => assert!(Instant::now() < end && source.try_wait()?.is_none(), "nobody restores it"),
        }
    };
    kill(criu, Signal::SIGSTOP)?;
    case.call(&["kill", &here, "KILL"])?.success()?;
    kill(criu, Signal::SIGCONT)?;
    assert_ne!(output::code(output::wait(&mut source, case.patience())?), 0);
    gone(case, &there)?;
    assert_eq!(status(case, &here)?, "stopped");
    settled(case)
}
