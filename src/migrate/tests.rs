//! Both ends at once, with a container and a machine that only keep count: every cut and every failure on the way ends with
//! one that runs, and never are there two.

use std::path::Path;

use super::destination::Served;
use super::left::page;
use super::message::{PROTOCOL, Token};
use super::ownership::Role;
use super::world::{World, one_runs_or_it_is_lost};

#[test]
fn undisturbed_it_goes_there_and_leaves_nothing() {
    let mut world = World::new("undisturbed");
    let (report, frames) = world.migrate(u32::MAX - 1, false);
    let report = report.unwrap();
    assert!(report.migrated && report.pid == 77 && report.host == "there");
    assert!(report.rounds.len() >= 3 && report.rounds[0].pages == 4096 * 40, "{:?}", report.rounds);
    let names: Vec<&str> = report.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["reserve", "pre-copy", "stop-and-copy", "commit", "activate", "release"]);
    assert!(report.bytes.saved_same > 4096 * 40, "{:?}", report.bytes);
    // A file is written anew before each round, with the same in it before the second.
    let files: Vec<u64> = report.rounds.iter().map(|round| round.files).collect();
    assert_eq!((&files[..3], files.last(), report.bytes.files), (&[5, 0, files[2]][..], Some(&14), 19));
    assert!(frames > 15);
    world.one_runs("undisturbed");
    assert!(world.copies.lock().unwrap().there);
    assert_eq!(std::fs::read_dir(world.journals().path()).unwrap().count(), 0, "journals are left");
}

/// What the destination lacks of the image comes before anything else; without it nothing else does.
#[test]
fn what_the_image_is_made_of_comes_first() {
    let mut world = World::new("lacks");
    world.lacks = true;
    let report = world.migrate(u32::MAX - 1, false).0.unwrap();
    assert_eq!(report.bytes.content, 7);
    let names: Vec<&str> = report.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names[..3], ["reserve", "content", "pre-copy"]);
    assert!(report.text().contains("image         7 B of it were not there"), "{}", report.text());
    world.one_runs("lacks");
    for (here, there, said) in [("content", "", "content fails"), ("", "keep", "the destination: keep fails")] {
        let mut world = World::new(&format!("lacks-{here}{there}"));
        (world.lacks, world.container.fails, world.host_fails) = (true, here, there);
        let error = world.migrate(u32::MAX - 1, false).0.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        world.one_runs(said);
        assert!(world.copies.lock().unwrap().here);
        assert_eq!(std::fs::read_dir(world.journals().path()).unwrap().count(), 0, "{said}: journals are left");
    }
}

#[test]
fn asked_alone_it_says_what_would_be_sent() {
    let mut world = World::new("lacks-asked");
    (world.lacks, world.dry_run) = (true, true);
    let report = world.migrate(u32::MAX - 1, false).0.unwrap();
    assert_eq!(report.notes, ["7 B of its image are not there, and would be sent first"]);
    world.one_runs("asked");
}

/// The link is cut after every number of frames there is, with and without another one afterwards.
#[test]
fn wherever_it_is_cut_one_runs_in_the_end() {
    let (_, frames) = World::new("count").migrate(u32::MAX - 1, false);
    let (mut here, mut there) = (0, 0);
    for reconnects in [true, false] {
        for cut in 0..frames {
            // Without a way there each try waits; a few of those will do.
            if !reconnects && cut + 6 < frames && cut % 5 > 0 {
                continue;
            }
            let mut world = World::new(&format!("cut-{reconnects}-{cut}"));
            let (report, _) = world.migrate(cut, reconnects);
            let said = format!("cut after {cut} of {frames}, {reconnects}: {:?}", report.as_ref().err());
            assert!(world.copies.lock().unwrap().most <= 1, "{said}");
            if report.is_err() && !world.container.frozen {
                assert!(world.copies.lock().unwrap().here, "it goes on at once: {said}");
            }
            world.recover();
            world.one_runs(&said);
            *(if world.copies.lock().unwrap().here { &mut here } else { &mut there }) += 1;
            assert_eq!(
                world.journals().of("web", Path::new("/here"), Role::Source).unwrap().len(),
                0,
                "the source has nothing left to settle: {said}"
            );
        }
    }
    assert!(here > 5 && there > 1, "{here} {there}");
}

#[test]
fn whatever_fails_before_the_commit_it_goes_on_here() {
    for (at, said) in [
        ("pre-dump", "pre-dump fails"),
        ("dump", "dump fails"),
        ("freeze", "freeze fails"),
        ("killed", "it was killed while it stood still"),
        ("restore", "the destination: restore fails"),
        ("resume", "the destination could not let it go on: resume fails"),
    ] {
        let mut world = World::new(&format!("fails-{at}"));
        world.container.fails = at;
        world.host_fails = at;
        let (report, _) = world.migrate(u32::MAX - 1, true);
        let error = report.unwrap_err().to_string();
        assert!(error.contains(said), "{at}: {error}");
        world.one_runs(at);
        assert!(world.copies.lock().unwrap().here, "{at}");
        assert_eq!(std::fs::read_dir(world.journals().path()).unwrap().count(), 0, "{at}: journals are left");
    }
}

/// Who sends does not listen meanwhile, and the far end has gone when it does.
#[test]
fn why_the_far_end_takes_no_more_is_told() {
    for round in ["large round", "large rest"] {
        let mut world = World::new(&round.replace(' ', "-"));
        (world.container.fails, world.host_fails) = (round, "room");
        let error = world.migrate_directly().unwrap_err().to_string();
        assert!(error.contains("the destination: ") && error.contains("more than was asked for"), "{round}: {error}");
        world.one_runs(round);
        assert!(world.copies.lock().unwrap().here, "{round}");
        assert_eq!(std::fs::read_dir(world.journals().path()).unwrap().count(), 0, "{round}: journals are left");
    }
}

/// What runs over there is not given back because of what went wrong a moment later, nor where nobody knows whether it runs.
#[test]
fn what_fails_once_it_runs_there_does_not_bring_it_back() {
    for fails in ["look", "blind"] {
        let mut world = World::new(&format!("runs-{fails}"));
        world.host_fails = fails;
        let (report, _) = world.migrate(u32::MAX - 1, true);
        assert!(report.unwrap().migrated, "{fails}");
        world.one_runs(fails);
        assert!(world.copies.lock().unwrap().there, "{fails}");
    }
}

#[test]
fn a_refusal_names_every_reason_and_a_dry_run_changes_nothing() {
    let mut world = World::new("refused");
    world.id = "taken";
    let error = world.migrate(u32::MAX - 1, false).0.unwrap_err().to_string();
    assert!(error.starts_with("cannot migrate container \"taken\": one; two (hint: nothing was sent"), "{error}");
    (world.id, world.host_fails) = ("web", "place");
    let error = world.migrate(u32::MAX - 1, false).0.unwrap_err().to_string();
    assert!(error.contains("the destination: place fails"), "{error}");
    world.host_fails = "";
    world.dry_run = true;
    let report = world.migrate(u32::MAX - 1, false).0.unwrap();
    assert!(!report.migrated && report.steps.len() == 1);
    world.one_runs("dry run");
    assert!(!world.journals().path().exists());
}

/// A source that goes on talking out of turn, or of a migration that is not its own.
#[test]
fn a_source_out_of_turn_is_refused() {
    use super::message::{Last, Message, Verdict};
    let token = Token::new().unwrap();
    let settle = |version| Message::Settle { version, token: token.clone(), verdict: Verdict::Committed };
    for (message, said) in [
        (Message::Commit(token.clone()), "\"commit\" came out of turn"),
        (Message::Round(1), "\"round\" came out of turn"),
        (Message::Finish(Box::new(Last { round: 1, left: 0, streams: [None; 3] })), "\"finish\" came out of turn"),
        (settle(9), "it speaks version 9"),
    ] {
        let world = World::new("turn");
        let (mut link, served) = world.destination();
        link.send(&message).unwrap();
        let error = served.join().unwrap().unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let world = World::new("unknown");
    let (mut link, served) = world.destination();
    link.send(&settle(PROTOCOL)).unwrap();
    assert_eq!(link.hear().unwrap(), Message::Unknown);
    drop(link);
    assert_eq!(served.join().unwrap().unwrap(), Served::Nothing);
}

#[test]
fn memory_that_is_left_follows() {
    let mut world = World::new("left-undisturbed");
    world.leaves = true;
    let report = world.migrate(u32::MAX - 1, false).0.unwrap();
    assert!(report.migrated && report.mode == "hybrid");
    let faults = report.faults.unwrap();
    assert_eq!((faults.count, faults.bytes), (2, 6 * page()));
    assert!(faults.longest >= faults.median && faults.median > 0);
    let names: Vec<&str> = report.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["reserve", "pre-copy", "stop-and-copy", "commit", "activate", "push", "release"]);
    world.one_runs("undisturbed");
    assert!(world.copies.lock().unwrap().there);
    assert_eq!(std::fs::read_dir(world.journals().path()).unwrap().count(), 0, "journals are left");
}

/// Cut after every number of frames: never do two run, and what has run without all of its memory does not run again.
#[test]
fn wherever_it_is_cut_with_memory_left_never_do_two_run() {
    let count = || {
        let mut world = World::new("left-count");
        world.leaves = true;
        world.migrate(u32::MAX - 1, false).1
    };
    let frames = count();
    let (mut here, mut there, mut lost) = (0, 0, 0);
    for reconnects in [true, false] {
        for cut in 0..frames {
            if !reconnects && (cut + 10 < frames || cut % 3 > 0) {
                continue;
            }
            let mut world = World::new(&format!("left-{reconnects}-{cut}"));
            world.leaves = true;
            let (report, _) = world.migrate(cut, reconnects);
            let said = format!("cut after {cut} of {frames}, {reconnects}: {:?}", report.as_ref().err());
            assert!(world.copies.lock().unwrap().most <= 1, "{said}");
            world.recover();
            let is_lost = one_runs_or_it_is_lost(&world, &said);
            let is_here = world.copies.lock().unwrap().here;
            *(if is_lost {
                &mut lost
            } else if is_here {
                &mut here
            } else {
                &mut there
            }) += 1;
            let left = world.journals().of("web", Path::new("/here"), Role::Source).unwrap().len();
            assert_eq!(left, 0, "the source has nothing left to settle: {said}");
        }
    }
    assert!(here > 5 && there > 1 && lost > 1, "{here} {there} {lost}");
}

#[test]
fn without_what_puts_memory_in_its_place_it_stays_or_is_lost() {
    for (fails, said, is_lost) in [
        ("daemon", "the destination: daemon fails", false),
        ("resume", "the destination could not let it go on: resume fails", false),
        ("dies", "the container is lost", true),
    ] {
        let mut world = World::new(&format!("left-{fails}"));
        (world.leaves, world.host_fails) = (true, fails);
        let error = world.migrate(u32::MAX - 1, true).0.unwrap_err().to_string();
        assert!(error.contains(said), "{fails}: {error}");
        assert!(!is_lost || error.contains("`ferry resume web` lets it go on from there"), "{fails}: {error}");
        assert_eq!(one_runs_or_it_is_lost(&world, fails), is_lost, "{fails}: {error}");
        assert_eq!(std::fs::read_dir(world.journals().path()).unwrap().count(), 0, "{fails}: journals are left");
    }
}
