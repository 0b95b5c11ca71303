//! Both ends at once, with a container and a machine that only keep count of who runs, for tests.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::asker::daemon;
use super::container::{Container, Dumped, Held, Still};
use super::destination::{self, Served};
use super::host::{Host, Lazily};
use super::journal::tests::Scratch;
use super::journal::{self, Entry, Journals, Which};
use super::left::tests as left_tests;
use super::link::Link;
use super::link::tests::of;
use super::message::{Blob, Choices, Machine, PROTOCOL, Place, Request, Stream, Token};
use super::ownership::Role;
use super::progress::Silent;
use super::pump::Pump;
use super::relay::relay;
use super::report::Report;
use super::rounds::Wishes;
use super::settle::{self, Recovered};
use super::source::{NoConvergence, Options, PreCopy, Source};
use super::transport::Connection;
use crate::checkpoint::dump::Afterwards;
use crate::checkpoint::restore::Moment;
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::pack::Elsewhere;
use crate::log::Log;

/// What the destination lacks of the image.
const LAYER: &[u8] = b"a layer";

/// What the container has written to a file by the time that it stands still.
const WRITTEN: &[u8] = b"first and last";

const STREAM: Stream = Stream { length: 7, mode: 0o600 };
const PATIENCE: Duration = Duration::from_secs(20);

/// Which copies run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Copies {
    pub here: bool,
    pub there: bool,
    pub most: usize,
    pub lost: bool,
}

pub type Shared = Arc<Mutex<Copies>>;

pub fn set(shared: &Shared, change: impl FnOnce(&mut Copies)) {
    let mut copies = shared.lock().unwrap();
    change(&mut copies);
    copies.most = copies.most.max(usize::from(copies.here) + usize::from(copies.there));
}

pub struct FakeContainer {
    pub copies: Shared,
    /// What it has changed in its files.
    upper: PathBuf,
    pub exists: bool,
    pub frozen: bool,
    pub fails: &'static str,
}

impl FakeContainer {
    pub fn new(copies: &Shared, upper: PathBuf) -> Self {
        set(copies, |copies| copies.here = true);
        std::fs::create_dir(&upper).unwrap();
        Self { copies: Arc::clone(copies), upper, exists: true, frozen: false, fails: "" }
    }

    /// More than there is room for, and than fits between the two ends.
    fn swell(&self, at: &str, images: &Path) {
        if self.fails == at {
            let mut random = std::fs::File::open("/dev/urandom").unwrap().take(4 << 20);
            std::io::copy(&mut random, &mut std::fs::File::create(images.join("large.img")).unwrap()).unwrap();
        }
    }

    fn fail(&self, at: &str) -> Result<()> {
        if self.fails == at { Err(Error::plain(format!("{at} fails"))) } else { Ok(()) }
    }
}

pub struct FakeStill {
    file: PathBuf,
    frozen: bool,
    fails: &'static str,
}

impl Still for FakeStill {
    fn since(&self) -> Instant {
        Instant::now()
    }

    fn streams(&self) -> Result<[Option<Stream>; 3]> {
        Ok([None, Some(STREAM), None])
    }

    fn keep_root(&self, is_there: Elsewhere<'_>, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        assert!(is_there(&rustix::fs::stat(&self.file).unwrap()), "it was sent in a round");
        waiting()
    }

    fn freeze(&mut self) -> Result<()> {
        if self.fails == "freeze" {
            return Err(Error::plain("freeze fails"));
        }
        self.frozen = true;
        Ok(())
    }

    fn is_ending(&self) -> Result<bool> {
        Ok(self.fails == "killed")
    }
}

impl Container for FakeContainer {
    fn content(&mut self, digest: &Digest) -> Result<std::fs::File> {
        self.fail("content")?;
        assert_eq!(*digest, Digest::of(LAYER));
        let (near, far) = UnixStream::pair().unwrap();
        (&near).write_all(LAYER).unwrap();
        Ok(std::fs::File::from(OwnedFd::from(far)))
    }

    fn pre_dump(&mut self, images: &Path, _: Option<&Path>, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        waiting()?;
        self.fail("pre-dump")?;
        std::fs::write(images.join("pages-1.img"), vec![3; 4096 * 40]).unwrap();
        self.swell("large round", images);
        std::fs::write(self.upper.join("file"), b"first").unwrap();
        Ok(())
    }

    fn dump(&mut self, images: &Path, _: Option<&Path>, held: &mut Held<'_>) -> Result<Afterwards> {
        self.fail("dump")?;
        set(&self.copies, |copies| copies.here = false);
        std::fs::write(images.join("pages-2.img"), vec![5; 4096 * 20]).unwrap();
        left_tests::images_of(images);
        std::fs::write(images.join("core-1.img"), b"registers").unwrap();
        self.swell("large rest", images);
        let file = self.upper.join("file");
        std::fs::write(&file, WRITTEN).unwrap();
        let mut still = FakeStill { file, frozen: false, fails: self.fails };
        held(Dumped::NotYet)?;
        let decided = held(Dumped::All(&mut still));
        self.frozen = still.frozen;
        match &decided {
            Ok(Afterwards::StandStill) => (),
            Ok(Afterwards::End) => self.exists = false,
            Err(_) => assert!(self.go_on()?),
        }
        decided
    }

    fn upper(&mut self) -> Result<Option<OwnedFd>> {
        self.fail("upper")?;
        Ok(Some(std::fs::File::open(&self.upper).unwrap().into()))
    }

    fn maps_files(&mut self) -> Result<bool> {
        Ok(false)
    }

    fn go_on(&mut self) -> Result<bool> {
        assert!(self.exists, "there is nothing left to go on with");
        self.frozen = false;
        set(&self.copies, |copies| copies.here = true);
        Ok(true)
    }

    fn take_back(&mut self) -> Result<()> {
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        self.exists = false;
        set(&self.copies, |copies| copies.here = false);
        Ok(())
    }
}

pub struct FakeHost {
    copies: Shared,
    root: PathBuf,
    fails: &'static str,
    threads: Threads,
}

pub type Threads = Arc<Mutex<Vec<std::thread::JoinHandle<()>>>>;

impl Host for FakeHost {
    fn place(&mut self) -> Result<Place> {
        if self.fails == "place" {
            return Err(Error::plain("place fails"));
        }
        let (machine, disk_free) = (Machine::default(), if self.fails == "room" { 1 << 20 } else { 1 << 30 });
        Ok(Place { version: PROTOCOL, host: "there".into(), machine, memory_free: 1 << 30, disk_free, lacks: vec![] })
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn obstacles(&mut self, request: &Request) -> Result<Vec<String>> {
        Ok(if request.id == "taken" { vec!["one".into(), "two\u{7}".into()] } else { Vec::new() })
    }

    fn lacks(&mut self, request: &Request) -> Result<Vec<Blob>> {
        Ok(request.content.clone())
    }

    fn keep(&mut self, _: &Request, directory: &Path, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 1);
        waiting()?;
        if self.fails == "keep" { Err(Error::plain("keep fails")) } else { Ok(()) }
    }

    fn restore(&mut self, entry: &Entry, images: &Path, held: &mut dyn FnMut(Moment) -> Result<()>) -> Result<i32> {
        let last = entry.last.as_ref().unwrap();
        assert_eq!(last.streams, [None, Some(STREAM), None]);
        assert_eq!(std::fs::read(images.join(last.round.to_string()).join("core-1.img")).unwrap(), b"registers");
        let body = std::fs::read_dir(journal::bodies(images)).unwrap().next().unwrap().unwrap().path();
        assert_eq!(std::fs::read(body).unwrap(), WRITTEN);
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

    fn begin_lazily(&mut self, _: &Entry, images: &Path) -> Result<Lazily> {
        if self.fails == "daemon" {
            return Err(Error::plain("daemon fails"));
        }
        assert!(!images.join("4/.left-7").exists(), "what is left is not sent");
        let (near, far) = UnixStream::pair().unwrap();
        let (dies, copies) = (self.fails == "dies", Arc::clone(&self.copies));
        self.threads.lock().unwrap().push(std::thread::spawn(move || daemon(far, &copies, dies)));
        Ok(Lazily { asks: near.into(), criu: 40_200, daemon: None })
    }

    fn pump(&mut self, pump: Pump) -> Result<()> {
        self.threads.lock().unwrap().push(std::thread::spawn(move || drop(pump.run())));
        Ok(())
    }

    fn whole(&mut self) -> Result<()> {
        Ok(())
    }

    fn lose(&mut self, _: &Entry) -> Result<()> {
        set(&self.copies, |copies| (copies.there, copies.lost) = (false, true));
        Ok(())
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

/// One migration of these two.
pub struct World {
    pub scratch: Scratch,
    pub copies: Shared,
    pub container: FakeContainer,
    pub host_fails: &'static str,
    pub id: &'static str,
    pub dry_run: bool,
    pub leaves: bool,
    pub lacks: bool,
    pub threads: Threads,
}

impl World {
    pub fn new(name: &str) -> Self {
        let copies = Shared::default();
        let scratch = Scratch::new(name);
        let container = FakeContainer::new(&copies, scratch.0.join("upper"));
        Self {
            scratch,
            copies,
            container,
            host_fails: "",
            id: "web",
            dry_run: false,
            leaves: false,
            lacks: false,
            threads: Threads::default(),
        }
    }

    pub fn journals(&self) -> Journals {
        Journals::new(&self.scratch.0, &Log::default())
    }

    /// A destination at the other end of the link that is answered.
    pub fn destination(&self) -> (Link, std::thread::JoinHandle<Result<Served>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (of(ours, PATIENCE), self.serve(theirs))
    }

    fn serve(&self, stream: UnixStream) -> std::thread::JoinHandle<Result<Served>> {
        let mut host = FakeHost {
            copies: Arc::clone(&self.copies),
            root: "/there".into(),
            fails: self.host_fails,
            threads: Arc::clone(&self.threads),
        };
        let journals = self.journals();
        std::thread::spawn(move || destination::serve(&mut of(stream, PATIENCE), &journals, &mut host))
    }

    /// Migrates over a link that is cut after so many frames; `reconnects` says whether there is another one after that.
    pub fn migrate(&mut self, frames: u32, reconnects: bool) -> (Result<Report>, u32) {
        let (ours, near) = UnixStream::pair().unwrap();
        let (far, theirs) = UnixStream::pair().unwrap();
        let count = Arc::new(Mutex::new(0));
        let pumps = relay(frames, &near, &far, &count);
        let served = self.serve(theirs);
        drop((near, far));
        let report = self.migrate_over(ours, served, reconnects);
        pumps.into_iter().for_each(|pump| pump.join().unwrap());
        let frames = *count.lock().unwrap();
        (report, frames)
    }

    /// Migrates with nothing in between.
    pub fn migrate_directly(&mut self) -> Result<Report> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let served = self.serve(theirs);
        self.migrate_over(ours, served, false)
    }

    fn migrate_over(
        &mut self,
        ours: UnixStream,
        served: std::thread::JoinHandle<Result<Served>>,
        reconnects: bool,
    ) -> Result<Report> {
        let (mut link, journals) = (of(ours, PATIENCE), self.journals());
        let options = Options {
            destination: "exec:x".into(),
            root: "/here".into(),
            id: "web".into(),
            which: Which::default(),
            pre_copy: PreCopy::Everything,
            wishes: Wishes { max_downtime: Duration::from_secs(1), max_rounds: 3 },
            leaves: self.leaves,
            on_no_convergence: NoConvergence::Stop,
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
            files: 0,
            memory: 1 << 20,
            choices: Choices::default(),
            image: None,
            content: Vec::from_iter(self.lacks.then(|| Blob { digest: Digest::of(LAYER), size: LAYER.len() as u64 })),
            leaves: self.leaves,
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
                let mut host = FakeHost {
                    copies: Arc::clone(&copies),
                    root: "/there".into(),
                    fails: host_fails,
                    threads: Threads::default(),
                };
                let journals = Journals::new(&scratch, &Log::default());
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
        let threads = std::mem::take(&mut *self.threads.lock().unwrap());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        report
    }

    /// `--recover` at the source, and then at the destination.
    pub fn recover(&mut self) {
        for journal in self.journals().of("web", Path::new("/here"), Role::Source).unwrap() {
            let mut served = Vec::new();
            let recovered = {
                let mut threads = Vec::new();
                let world = (self.scratch.0.clone(), Arc::clone(&self.copies));
                let mut connect = || {
                    let (ours, theirs) = UnixStream::pair().unwrap();
                    let mut host = FakeHost {
                        copies: Arc::clone(&world.1),
                        root: "/there".into(),
                        fails: "",
                        threads: Threads::default(),
                    };
                    let journals = Journals::new(&world.0, &Log::default());
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
                Recovered::Gone(_) => panic!("no machine has gone down"),
                Recovered::Lost(_) => assert!(self.copies.lock().unwrap().lost && self.container.frozen),
                Recovered::There(pid) => assert!(pid == Some(77) && self.copies.lock().unwrap().there),
            }
        }
        let mut host = FakeHost {
            copies: Arc::clone(&self.copies),
            root: "/there".into(),
            fails: "",
            threads: Threads::default(),
        };
        for journal in self.journals().of("web", Path::new("/there"), Role::Destination).unwrap() {
            destination::recover(journal, &mut host).unwrap();
        }
    }

    pub fn one_runs(&self, said: &str) {
        let copies = *self.copies.lock().unwrap();
        assert!(copies.here != copies.there, "{said}: {copies:?}");
        assert_eq!(copies.most, 1, "{said}");
        assert_eq!(copies.here, self.container.exists, "{said}: what is left of it here");
    }
}

/// In the end it runs at one of them, or it is lost: it has run there and does not any more, and here it stands still.
pub fn one_runs_or_it_is_lost(world: &World, said: &str) -> bool {
    let copies = *world.copies.lock().unwrap();
    assert!(copies.most <= 1, "{said}");
    if copies.lost {
        assert!(
            !copies.here && !copies.there && world.container.exists && world.container.frozen,
            "{said}: {copies:?}"
        );
    } else {
        world.one_runs(said);
    }
    copies.lost
}
