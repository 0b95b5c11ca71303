//! Both ends at once, with a container and a machine that only keep count: every cut and every failure on the way ends with
//! one that runs, and never are there two.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::destination::{self, Host, Served};
use super::frame::HEADER;
use super::journal::tests::Scratch;
use super::journal::{Entry, Journals};
use super::link::Link;
use super::link::tests::of;
use super::message::{Choices, Machine, PROTOCOL, Place, Request, Stream, Token};
use super::ownership::Role;
use super::progress::Silent;
use super::report::Report;
use super::rounds::Wishes;
use super::settle::{self, Recovered};
use super::source::{Container, Dumped, Held, Options, Source, Still};
use super::transport::Connection;
use crate::checkpoint::dump::Afterwards;
use crate::checkpoint::restore::Moment;
use crate::error::{Error, Result};

const STREAM: Stream = Stream { length: 7, mode: 0o600 };
const PATIENCE: Duration = Duration::from_secs(20);

/// Which copies run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Copies {
    here: bool,
    there: bool,
    most: usize,
}

type Shared = Arc<Mutex<Copies>>;

fn set(shared: &Shared, change: impl FnOnce(&mut Copies)) {
    let mut copies = shared.lock().unwrap();
    change(&mut copies);
    copies.most = copies.most.max(usize::from(copies.here) + usize::from(copies.there));
}

struct FakeContainer {
    copies: Shared,
    exists: bool,
    frozen: bool,
    fails: &'static str,
}

impl FakeContainer {
    fn new(copies: &Shared) -> Self {
        set(copies, |copies| copies.here = true);
        Self { copies: Arc::clone(copies), exists: true, frozen: false, fails: "" }
    }

    fn fail(&self, at: &str) -> Result<()> {
        if self.fails == at { Err(Error::plain(format!("{at} fails"))) } else { Ok(()) }
    }
}

struct FakeStill {
    frozen: bool,
    fails: bool,
}

impl Still for FakeStill {
    fn since(&self) -> Instant {
        Instant::now()
    }

    fn streams(&self) -> Result<[Option<Stream>; 3]> {
        Ok([None, Some(STREAM), None])
    }

    fn freeze(&mut self) -> Result<()> {
        if self.fails {
            return Err(Error::plain("freeze fails"));
        }
        self.frozen = true;
        Ok(())
    }
}

impl Container for FakeContainer {
    fn pre_dump(&mut self, images: &Path, _: Option<&Path>, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        waiting()?;
        self.fail("pre-dump")?;
        std::fs::write(images.join("pages-1.img"), vec![3; 4096 * 40]).unwrap();
        Ok(())
    }

    fn dump(&mut self, images: &Path, _: Option<&Path>, held: &mut Held<'_>) -> Result<Afterwards> {
        self.fail("dump")?;
        set(&self.copies, |copies| copies.here = false);
        std::fs::write(images.join("pages-1.img"), vec![5; 4096 * 20]).unwrap();
        std::fs::write(images.join("core-1.img"), b"registers").unwrap();
        let mut still = FakeStill { frozen: false, fails: self.fails == "freeze" };
        held(Dumped::NotYet)?;
        let decided = held(Dumped::All(&mut still));
        self.frozen = still.frozen;
        match &decided {
            Ok(Afterwards::StandStill) => (),
            Ok(Afterwards::End) => self.exists = false,
            Err(_) => self.go_on()?,
        }
        decided
    }

    fn go_on(&mut self) -> Result<()> {
        assert!(self.exists, "there is nothing left to go on with");
        self.frozen = false;
        set(&self.copies, |copies| copies.here = true);
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        self.exists = false;
        set(&self.copies, |copies| copies.here = false);
        Ok(())
    }
}

struct FakeHost {
    copies: Shared,
    root: PathBuf,
    fails: &'static str,
}

impl Host for FakeHost {
    fn place(&mut self) -> Result<Place> {
        let machine = Machine::default();
        Ok(Place { version: PROTOCOL, host: "there".into(), machine, memory_free: 1 << 30, disk_free: 1 << 30 })
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn obstacles(&mut self, request: &Request) -> Result<Vec<String>> {
        Ok(if request.id == "taken" { vec!["one".into(), "two\u{7}".into()] } else { Vec::new() })
    }

    fn restore(&mut self, entry: &Entry, images: &Path, held: &mut dyn FnMut(Moment) -> Result<()>) -> Result<i32> {
        let last = entry.last.as_ref().unwrap();
        assert_eq!(last.streams, [None, Some(STREAM), None]);
        assert_eq!(std::fs::read(images.join(last.round.to_string()).join("core-1.img")).unwrap(), b"registers");
        if self.fails == "restore" {
            return Err(Error::plain("restore fails"));
        }
        held(Moment::Waiting)?;
        held(Moment::Held)?;
        held(Moment::Waiting)?;
        if self.fails == "resume" {
            return Err(Error::plain("resume fails"));
        }
        set(&self.copies, |copies| copies.there = true);
        if ["look", "blind"].contains(&self.fails) {
            return Err(Error::plain("it is not seen"));
        }
        Ok(77)
    }

    fn runs(&mut self, _: &Entry) -> Result<Option<i32>> {
        if self.fails == "blind" {
            return Err(Error::plain("nothing is seen"));
        }
        Ok(self.copies.lock().unwrap().there.then_some(77))
    }

    fn discard(&mut self, _: &Entry) -> Result<()> {
        assert!(!self.copies.lock().unwrap().there, "what runs is not discarded");
        Ok(())
    }
}

/// Passes so many frames on, of both directions, and then cuts.
fn relay(
    mut left: u32,
    from: &UnixStream,
    to: &UnixStream,
    count: &Arc<Mutex<u32>>,
) -> Vec<std::thread::JoinHandle<()>> {
    left += 1;
    let pump = |mut from: UnixStream, mut to: UnixStream, count: Arc<Mutex<u32>>| {
        std::thread::spawn(move || {
            let mut frame = || -> std::io::Result<()> {
                let mut header = [0; HEADER];
                from.read_exact(&mut header)?;
                let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
                let mut payload = vec![0; length as usize];
                from.read_exact(&mut payload)?;
                let mut count = count.lock().unwrap();
                *count += 1;
                if *count >= left {
                    return Err(std::io::ErrorKind::ConnectionAborted.into());
                }
                to.write_all(&[&header[..], &payload].concat())
            };
            while frame().is_ok() {}
            from.shutdown(std::net::Shutdown::Both).ok();
            to.shutdown(std::net::Shutdown::Both).ok();
        })
    };
    let copies = (from.try_clone().unwrap(), to.try_clone().unwrap());
    vec![
        pump(copies.0, copies.1, Arc::clone(count)),
        pump(to.try_clone().unwrap(), from.try_clone().unwrap(), Arc::clone(count)),
    ]
}

/// One migration of these two.
struct World {
    scratch: Scratch,
    copies: Shared,
    container: FakeContainer,
    host_fails: &'static str,
    id: &'static str,
    dry_run: bool,
}

impl World {
    fn new(name: &str) -> Self {
        let copies = Shared::default();
        let container = FakeContainer::new(&copies);
        Self { scratch: Scratch::new(name), copies, container, host_fails: "", id: "web", dry_run: false }
    }

    fn journals(&self) -> Journals {
        Journals::new(&self.scratch.0)
    }

    /// A destination at the other end of the link that is answered.
    fn destination(&self) -> (Link, std::thread::JoinHandle<Result<Served>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (of(ours, PATIENCE), self.serve(theirs))
    }

    fn serve(&self, stream: UnixStream) -> std::thread::JoinHandle<Result<Served>> {
        let mut host = FakeHost { copies: Arc::clone(&self.copies), root: "/there".into(), fails: self.host_fails };
        let journals = self.journals();
        std::thread::spawn(move || destination::serve(&mut of(stream, PATIENCE), &journals, &mut host))
    }

    /// Migrates over a link that is cut after so many frames; `reconnects` says whether there is another one after that.
    fn migrate(&mut self, frames: u32, reconnects: bool) -> (Result<Report>, u32) {
        let (ours, near) = UnixStream::pair().unwrap();
        let (far, theirs) = UnixStream::pair().unwrap();
        let count = Arc::new(Mutex::new(0));
        let pumps = relay(frames, &near, &far, &count);
        let served = self.serve(theirs);
        drop((near, far));
        let (mut link, journals) = (of(ours, PATIENCE), self.journals());
        let options = Options {
            destination: "exec:x".into(),
            root: "/here".into(),
            id: "web".into(),
            pre_copy: true,
            wishes: Wishes { max_downtime: Duration::from_secs(1), max_rounds: 3 },
            abort_on_no_convergence: false,
            level: Some(1),
        };
        let request = Request {
            version: PROTOCOL,
            token: Token::new().unwrap(),
            id: self.id.into(),
            from: "here".into(),
            bundle: "/b".into(),
            config: "{}".into(),
            machine: Machine::default(),
            memory: 1 << 20,
            choices: Choices::default(),
            image: None,
            dry_run: self.dry_run,
        };
        let mut later = Vec::new();
        let report = {
            let (scratch, copies) = (self.scratch.0.clone(), Arc::clone(&self.copies));
            // Later it sees again.
            let host_fails = Some(self.host_fails).filter(|fails| *fails != "blind").unwrap_or_default();
            let mut connect = || {
                if !reconnects {
                    return Err(Error::plain("no way there"));
                }
                let (ours, theirs) = UnixStream::pair().unwrap();
                let mut host = FakeHost { copies: Arc::clone(&copies), root: "/there".into(), fails: host_fails };
                let journals = Journals::new(&scratch);
                later.push(std::thread::spawn(move || {
                    destination::serve(&mut of(theirs, PATIENCE), &journals, &mut host)
                }));
                Ok(Connection::over(of(ours, PATIENCE)))
            };
            let mut source = Source {
                link: &mut link,
                container: &mut self.container,
                options: &options,
                progress: &mut Silent,
                connect: &mut connect,
                asked: false,
            };
            source.migrate(&request, &journals)
        };
        drop(link);
        served.join().unwrap().ok();
        later.into_iter().for_each(|thread| drop(thread.join().unwrap()));
        pumps.into_iter().for_each(|pump| pump.join().unwrap());
        let frames = *count.lock().unwrap();
        (report, frames)
    }

    /// `--recover` at the source, and then at the destination.
    fn recover(&mut self) {
        for journal in self.journals().of("web", Path::new("/here"), Role::Source).unwrap() {
            let mut served = Vec::new();
            let recovered = {
                let mut threads = Vec::new();
                let world = (self.scratch.0.clone(), Arc::clone(&self.copies));
                let mut connect = || {
                    let (ours, theirs) = UnixStream::pair().unwrap();
                    let mut host = FakeHost { copies: Arc::clone(&world.1), root: "/there".into(), fails: "" };
                    let journals = Journals::new(&world.0);
                    threads.push(std::thread::spawn(move || {
                        destination::serve(&mut of(theirs, PATIENCE), &journals, &mut host)
                    }));
                    Ok(Connection::over(of(ours, PATIENCE)))
                };
                let recovered = settle::recover(journal, &mut self.container, &mut connect).unwrap();
                served.append(&mut threads);
                recovered
            };
            served.into_iter().for_each(|thread| drop(thread.join().unwrap()));
            match recovered {
                Recovered::Here(untold) => assert!(untold.is_none() && self.copies.lock().unwrap().here),
                Recovered::There(pid) => assert!(pid == 77 && self.copies.lock().unwrap().there),
            }
        }
        let mut host = FakeHost { copies: Arc::clone(&self.copies), root: "/there".into(), fails: "" };
        for journal in self.journals().of("web", Path::new("/there"), Role::Destination).unwrap() {
            destination::recover(journal, &mut host).unwrap();
        }
    }

    fn one_runs(&self, said: &str) {
        let copies = *self.copies.lock().unwrap();
        assert!(copies.here != copies.there, "{said}: {copies:?}");
        assert_eq!(copies.most, 1, "{said}");
        assert_eq!(copies.here, self.container.exists, "{said}: what is left of it here");
    }
}

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
    assert!(frames > 15);
    world.one_runs("undisturbed");
    assert!(world.copies.lock().unwrap().there);
    assert_eq!(std::fs::read_dir(world.journals().path()).unwrap().count(), 0, "journals are left");
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
    world.id = "web";
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
        (Message::Finish(Box::new(Last { round: 1, streams: [None; 3] })), "\"finish\" came out of turn"),
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
