//! The container that is migrated, as [`crate::migrate::source`] sees it. Others may change it between two deeds: it is locked
//! for each of them, and not for the whole way.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::fs::{FileType, stat};

use crate::cgroup::{self, Cgroup, life};
use crate::checkpoint::criu;
use crate::checkpoint::dump::{self, Afterwards, Choice, DumpChoice, Subject};
use crate::checkpoint::freezer::Freezer;
use crate::container::{Id, Record, Status, Store};
use crate::error::{Context, Error, Result};
use crate::image::digest::Digest;
use crate::image::pack::Elsewhere;
use crate::lifecycle::live::Live;
use crate::lifecycle::own_root::Changes;
use crate::lifecycle::pause::PATIENCE;
use crate::lifecycle::{Setting, checkpoint, delete, live, outlive, own_root};
use crate::migrate::container::{Container, Dumped, Held, Still};
use crate::migrate::journal::Which;
use crate::migrate::message::{Choices, Stream};
use crate::procfs;
use crate::spec::Config;

/// See the module.
pub struct Running<'a> {
    /// Where it is.
    pub setting: &'a Setting,
    /// Its id.
    pub id: &'a str,
    /// Which of those that have had this id, as far as that is known.
    pub which: Option<Which>,
    /// Whether another one was found to have it by now, and left alone.
    pub met_another: bool,
    /// Whether its migration was undone before, and it has gone on since.
    pub went_on: bool,
    /// Where it goes, as that was named.
    pub peer: String,
    /// What goes along.
    pub choices: Choices,
    /// Where CRIU's logs go.
    pub logs: Option<PathBuf>,
}

/// What stands for the rounds of this very process where it is noted since which images the kernel tracks: no number of any images.
fn own_rounds() -> u64 {
    1 << 63 | u64::from(std::process::id())
}

/// It, locked.
struct Locked {
    live: Live,
    config: Config,
    cgroup: Cgroup,
    pid: Pid,
}

impl Running<'_> {
    fn lock(&self) -> Result<Locked> {
        let live = live::open_locked(self.setting, self.id)?;
        if !self.is_it(&live.record, true) {
            return Err(Error::plain(format!("container {:?} is another one by now", self.id)));
        }
        let pid = match (live.status, live.init()) {
            (Status::Running, Some(init)) => init.pid(),
            (status, _) => return Err(Error::plain(format!("container {:?} is {status} now", self.id))),
        };
        Ok(Locked { config: live.entry.config()?, cgroup: live.cgroup("migrate")?, live, pid })
    }

    /// Whether this is its record; `unsaid`, where it is not known which one it is.
    fn is_it(&self, record: &Record, unsaid: bool) -> bool {
        self.which.as_ref().map_or(unsaid, |which| *which == Which::of(record))
    }

    /// It, locked, if it is still here.
    fn find(&mut self) -> Result<Option<Live>> {
        if !Store::new(&self.setting.root).has(&Id::new(self.id)?) {
            return Ok(None);
        }
        let live = live::open_locked(self.setting, self.id)?;
        self.met_another = !self.is_it(&live.record, true);
        Ok(Some(live).filter(|_| !self.met_another))
    }

    /// The images to build on, if the kernel tracks since then: somebody else may have had it begin anew between two rounds.
    fn tracked<'a>(locked: &Locked, parent: Option<&'a Path>) -> Result<Option<&'a Path>> {
        let parent = parent.filter(|_| locked.live.entry.tracked() == Some(own_rounds()));
        locked.live.entry.forget_tracked().map(|()| parent)
    }

    fn choice(&self, images: &Path, parent: Option<&Path>) -> DumpChoice {
        let Choices { tcp_established, tcp_close, ext_unix_sk, file_locks } = self.choices;
        let choice = Choice {
            images: images.to_owned(),
            work: self.logs.clone(),
            verbose: self.setting.log.debugs(),
            tcp_established,
            tcp_close,
            ext_unix_sk,
            file_locks,
            ..Choice::default()
        };
        // Where connections are closed, one that nobody has accepted yet is no reason to stay.
        let tcp_skip_in_flight = tcp_close;
        DumpChoice { choice, parent: parent.map(Path::to_owned), tcp_skip_in_flight, ..DumpChoice::default() }
    }
}

impl Locked {
    fn subject<'a>(&'a self, id: &'a str) -> Subject<'a> {
        Subject {
            id,
            config: &self.config,
            bundle: &self.live.record.bundle,
            rootfs: &self.live.record.rootfs,
            pid: self.pid,
            cgroup: Some(&self.cgroup),
            entry: None,
            lock: Some(self.live.entry.dir()),
        }
    }
}

impl Container for Running<'_> {
    fn content(&mut self, digest: &Digest) -> Result<File> {
        let live = live::open(self.setting, self.id)?;
        let path = live.record.store.as_ref().ok_or_else(|| Error::plain("it runs from no image"))?;
        own_root::store_of(path)?.open_blob(digest)
    }

    fn pre_dump(
        &mut self,
        images: &Path,
        parent: Option<&Path>,
        waiting: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let locked = self.lock()?;
        let parent = Self::tracked(&locked, parent)?;
        let choice = DumpChoice { pre_dump: true, ..self.choice(images, parent) };
        dump::dump_then(&locked.subject(self.id), &choice, &mut |word, _| {
            if word == criu::WAITING { waiting() } else { Ok(()) }.map(|()| Afterwards::End)
        })?;
        locked.live.entry.note_tracked(own_rounds())
    }

    fn dump(&mut self, images: &Path, parent: Option<&Path>, held: &mut Held<'_>) -> Result<Afterwards> {
        let locked = self.lock()?;
        checkpoint::warn_of_lost(self.setting, locked.pid, &locked.cgroup)?;
        let parent = Self::tracked(&locked, parent)?;
        let changes = locked.live.record.store.is_some().then(|| Changes::of(&locked.live)).transpose()?;
        let (mut since, mut is_given) = (Instant::now(), false);
        let dumped =
            dump::dump_then(&locked.subject(self.id), &self.choice(images, parent), &mut |word, freezer| match word {
                dump::ABOUT_TO_STOP => {
                    since = Instant::now();
                    Ok(Afterwards::End)
                }
                dump::STANDS_STILL => {
                    let (locked, peer, changes) = (&locked, &self.peer, changes.as_ref());
                    let afterwards = held(Dumped::All(&mut Stopped { since, locked, peer, freezer, changes, images }));
                    is_given = afterwards.is_ok();
                    afterwards
                }
                criu::WAITING => held(Dumped::NotYet),
                _ => Ok(Afterwards::End),
            });
        match dumped {
            Err(error) if !is_given => Err(error.and_then(take_back(&locked.live))),
            dumped => dumped,
        }
    }

    fn upper(&mut self) -> Result<Option<OwnedFd>> {
        let live = live::open(self.setting, self.id)?;
        if live.record.store.is_none() { Ok(None) } else { Changes::of(&live)?.upper() }
    }

    fn maps_files(&mut self) -> Result<bool> {
        let live = live::open(self.setting, self.id)?;
        let pids = life::procs(&live.cgroup("migrate")?)?;
        // One that has ended meanwhile has none; one that cannot be looked at may have.
        let maps = |pid: Pid| match procfs::unless_ended(procfs::text(format!("/proc/{pid}/maps"))) {
            Ok(maps) => maps.is_some_and(|maps| maps.lines().any(is_shared_writable)),
            Err(_) => true,
        };
        Ok(pids.into_iter().any(maps))
    }

    fn go_on(&mut self) -> Result<bool> {
        let Some(live) = self.find()? else { return Ok(false) };
        // Who has it stand still after that means it.
        let went_on = self.went_on && live.record.given_to.is_none();
        if let Some(path) = live.record.cgroup.as_ref().filter(|_| live.has_process() && !went_on) {
            let cgroup = cgroup::fs::open(path)?;
            // One that is giving it up leaves it as it found it.
            outlive::criu(&cgroup)?;
            if life::is_frozen(&cgroup)? {
                life::thaw(&cgroup, PATIENCE)?;
            }
        }
        // Last: until then whoever comes after a death has it go on.
        take_back(&live).map(|()| true)
    }

    fn take_back(&mut self) -> Result<()> {
        self.find()?.map_or(Ok(()), |live| take_back(&live))
    }

    fn release(&mut self) -> Result<()> {
        // It may have been removed before whoever removed it could say so.
        if !Store::new(&self.setting.root).has(&Id::new(self.id)?) {
            return Ok(());
        }
        let entry = Store::new(&self.setting.root).open(&Id::new(self.id)?)?;
        entry.lock()?;
        // One without a record is what a removal that was cut off has left.
        let record = entry.record()?;
        self.met_another = record.as_ref().is_some_and(|record| !self.is_it(record, record.given_to.is_some()));
        if self.met_another { Ok(()) } else { delete::clean_up(self.setting, &entry, record.as_ref()) }
    }
}

/// Whoever may do something with it may again.
fn take_back(live: &Live) -> Result<()> {
    match live.entry.record()? {
        Some(record) if record.given_to.is_some() => live.entry.save(&Record { given_to: None, ..record }),
        _ => Ok(()),
    }
}

/// Whether this line of `/proc/PID/status` is of signals that wait, and the one is among them that nothing outlives.
/// proc_pid_status(5)
fn is_killed(line: &str) -> bool {
    let waiting = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"));
    let mask = waiting.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (Signal::SIGKILL as i32 - 1) != 0)
}

/// Whether this line of `/proc/PID/maps` is of memory through which a file can be written to. proc_pid_maps(5)
fn is_shared_writable(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace().skip(1);
    let is_writable =
        words.next().is_some_and(|access| access.as_bytes().get(1) == Some(&b'w') && access.ends_with('s'));
    is_writable && words.nth(2).is_some_and(|inode| inode != "0")
}

/// It stands still.
struct Stopped<'a, 'b> {
    since: Instant,
    locked: &'a Locked,
    peer: &'a str,
    freezer: &'a mut Freezer<'b>,
    changes: Option<&'a Changes>,
    images: &'a Path,
}

impl Still for Stopped<'_, '_> {
    fn since(&self) -> Instant {
        self.since
    }

    fn streams(&self) -> Result<[Option<Stream>; 3]> {
        let file = |number: i32| {
            let found = stat(format!("/proc/{}/fd/{number}", self.locked.pid)).ok()?;
            let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
            is_file.then(|| Stream { length: found.st_size.cast_unsigned(), mode: found.st_mode & 0o777 })
        };
        Ok([file(0), file(1), file(2)])
    }

    fn keep_root(&self, is_there: Elsewhere<'_>, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.changes.map_or(Ok(()), |changes| changes.keep(self.images, is_there, waiting))
    }

    fn freeze(&mut self) -> Result<()> {
        // First: one that stands still for longer than ferry lives is for nobody to let go on.
        let Live { entry, record, .. } = &self.locked.live;
        entry.save(&Record { given_to: Some(self.peer.to_owned()), ..record.clone() })?;
        self.freezer.keep()
    }

    fn is_ending(&self) -> Result<bool> {
        if self.locked.live.record.init.is_none_or(|init| matches!(init.is_ending(), Ok(true))) {
            return Ok(true);
        }
        // An older freezer, or a tracer, keeps it from ending.
        let path = format!("/proc/{}/status", self.locked.pid);
        procfs::text(&path).or_cannot("read", &path).map(|status| status.lines().any(is_killed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_killed_is_told_by_the_signals_that_wait() {
        for line in ["SigPnd:\t0000000000000100", "ShdPnd:\t0000000000004100"] {
            assert!(is_killed(line), "{line}");
        }
        for line in ["SigPnd:\t0000000000004000", "SigBlk:\t0000000000000100", "ShdPnd:\tnone", ""] {
            assert!(!is_killed(line), "{line}");
        }
    }

    #[test]
    fn memory_that_is_a_file_is_told_from_other_memory() {
        let line = |access: &str, inode: &str| format!("7f0a-7f0b {access} 00000000 fe:00 {inode}   /data/a file");
        assert!(is_shared_writable(&line("rw-s", "12")) && is_shared_writable(&line("-w-s", "12")));
        for (access, inode) in [("rw-p", "12"), ("r--s", "12"), ("rw-s", "0")] {
            assert!(!is_shared_writable(&line(access, inode)), "{access} {inode}");
        }
        assert!(!is_shared_writable(""));
    }
}
