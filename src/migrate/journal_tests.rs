//! What is noted, and what is not.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A directory of one test, gone with it; two tests may choose one name, and run at once.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("ferry-migrate-{name}-{process}-{number}"));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let dir = open_dir(&self.0).unwrap();
        clear(dir.as_fd(), 8).unwrap();
        std::fs::remove_dir(&self.0).unwrap();
    }
}

pub fn entry(role: Role) -> Entry {
    Entry {
        id: "web".into(),
        root: "/run/x".into(),
        peer: "exec:y".into(),
        bundle: "/b".into(),
        ..Entry::none(Token::new().unwrap(), role)
    }
}

#[test]
fn what_is_noted_is_there_for_whoever_comes_next() {
    let scratch = Scratch::new("journal");
    let journals = Journals::new(&scratch.0.join("deep/store"), &Log::default());
    assert!(journals.of("web", Path::new("/run/x"), Role::Source).unwrap().is_empty());
    let entry = entry(Role::Source);
    let mut journal = journals.begin(entry.clone()).unwrap();
    journal.note(State::Committed).unwrap();
    let round = journal.round(1).unwrap();
    std::fs::write(round.join("pages-1.img"), "x").unwrap();
    std::os::unix::fs::symlink("/etc", round.join("parent")).unwrap();
    drop(journal);
    assert!(journals.of("web", Path::new("/run/other"), Role::Source).unwrap().is_empty());
    assert!(journals.of("web", Path::new("/run/x"), Role::Destination).unwrap().is_empty());
    let mut found = journals.of("web", Path::new("/run/x"), Role::Source).unwrap();
    let journal = found.pop().unwrap();
    assert_eq!(journal.entry, Entry { state: State::Committed, ..entry.clone() });
    journal.remove().unwrap();
    assert!(journals.open(&entry.token, Role::Source).unwrap().is_none());
    assert!(std::fs::exists("/etc/passwd").unwrap(), "links are not followed");
}

#[test]
fn what_was_cut_off_before_it_was_a_journal_is_swept_away() {
    let scratch = Scratch::new("swept");
    let journals = Journals::new(&scratch.0, &Log::default());
    let (cut_off, in_work) = (entry(Role::Source), entry(Role::Destination));
    make_dirs(journals.path()).unwrap();
    let left = journals.make(cut_off).unwrap();
    std::fs::create_dir(left.images()).unwrap();
    let path = left.path.clone();
    assert!(journals.of("web", Path::new("/run/x"), Role::Source).unwrap().is_empty());
    assert!(path.exists(), "somebody is at work on it");
    drop(left);
    let kept = journals.begin(in_work).unwrap();
    assert!(journals.of("web", Path::new("/run/x"), Role::Source).unwrap().is_empty());
    assert!(!path.exists() && kept.path.exists());
}

#[test]
fn what_is_no_journal_is_refused_by_name() {
    let scratch = Scratch::new("no-journal");
    let journals = Journals::new(&scratch.0, &Log::default());
    let entry = entry(Role::Destination);
    drop(journals.begin(entry.clone()).unwrap());
    let file = journals.path().join(directory(&entry.token, entry.role)).join("journal.json");
    for (text, said) in [("{}", "missing field"), ("nonsense", "expected"), ("", "EOF")] {
        std::fs::write(&file, text).unwrap();
        let error = journals.open(&entry.token, entry.role).unwrap_err().to_string();
        assert!(error.contains("journal.json") && error.contains(said), "{error}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(journals.open(&entry.token, entry.role).unwrap().is_none(), "cut off while it was made");
}

/// What the far end names may be of any length, and what a journal cannot be read for is no reason to stop others.
#[test]
fn what_cannot_be_read_is_not_written_and_stops_nobody() {
    let scratch = Scratch::new("long");
    let journals = Journals::new(&scratch.0, &Log::default());
    let long = Entry { bundle: "/b".repeat(40_000).into(), ..entry(Role::Destination) };
    let said = journals.begin(long).unwrap_err().to_string();
    assert!(said.contains("journal.json") && said.contains("longer than one may be"), "{said}");
    assert_eq!(std::fs::read_dir(journals.path()).unwrap().count(), 0, "nothing is left");
    let (broken, whole) = (entry(Role::Destination), entry(Role::Destination));
    drop((journals.begin(broken.clone()).unwrap(), journals.begin(whole.clone()).unwrap()));
    let file = journals.path().join(directory(&broken.token, broken.role)).join("journal.json");
    std::fs::write(&file, vec![b' '; 70_000]).unwrap();
    let found = journals.of("web", Path::new("/run/x"), Role::Destination).unwrap();
    assert_eq!(found.iter().map(|journal| &journal.entry).collect::<Vec<_>>(), [&whole]);
    assert!(file.exists(), "it may be of use to a person");
}

#[test]
fn images_go_before_the_journal_where_they_are_of_no_use() {
    let scratch = Scratch::new("forgotten");
    let journals = Journals::new(&scratch.0, &Log::default());
    let journal = journals.begin(entry(Role::Destination)).unwrap();
    std::fs::write(journal.round(1).unwrap().join("pages-1.img"), "x").unwrap();
    assert!(journal.age() < Duration::from_secs(3600));
    journal.forget_images().unwrap();
    assert_eq!(std::fs::read_dir(journal.images()).unwrap().count(), 0);
    drop(journal);
    assert_eq!(journals.of("web", Path::new("/run/x"), Role::Destination).unwrap().len(), 1);
}

/// One that an older ferry has begun is settled by this one.
#[test]
fn a_journal_that_does_not_say_which_container_is_read() {
    let scratch = Scratch::new("older");
    let journals = Journals::new(&scratch.0, &Log::default());
    let entry = Entry { which: Some(Which::default()), ..entry(Role::Source) };
    drop(journals.begin(entry.clone()).unwrap());
    let file = journals.path().join(directory(&entry.token, entry.role)).join("journal.json");
    let mut journal: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert!(journal.as_object_mut().unwrap().remove("which").is_some());
    std::fs::write(&file, journal.to_string()).unwrap();
    let found = journals.open(&entry.token, entry.role).unwrap().unwrap();
    assert_eq!(found.entry, Entry { which: None, ..entry });
}
