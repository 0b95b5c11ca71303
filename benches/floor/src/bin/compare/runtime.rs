//! The runtimes: which there are on this machine, and the words of each for a deed.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::bundle::{Bundles, PROOF, PROVING};
use crate::measure::{Command, Output, Start};

/// A runtime under comparison.
pub struct Runtime {
    /// What the table calls it.
    pub name: String,
    /// What it says of itself, in one line.
    pub version: String,
    /// Its binary.
    pub binary: PathBuf,
    speech: Speech,
    root: PathBuf,
}

/// How it is spoken to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speech {
    /// The bare kernel calls.
    Floor { devices: bool },
    /// The command line of runc, which the others share.
    Oci,
}

/// What is asked of it.
pub enum Deed<'a> {
    /// One container from beginning to end.
    Run { bundle: &'a Path },
    /// A container that waits for `Start`.
    Create { bundle: &'a Path },
    /// Lets the created container go.
    Start,
    /// Kills what still runs, and leaves nothing.
    Delete,
    /// A program in the running container.
    Exec { words: &'a [&'a str] },
}

impl Runtime {
    /// The command for a deed to the container `id`.
    pub fn command(&self, deed: &Deed<'_>, id: &str) -> Result<Command, String> {
        match self.speech {
            Speech::Floor { devices } => self.floor_command(deed, id, devices),
            Speech::Oci => self.oci_command(deed, id),
        }
    }

    fn floor_command(&self, deed: &Deed<'_>, id: &str, devices: bool) -> Result<Command, String> {
        let state = text(&self.root.join(id));
        let rootfs = |bundle: &Path| text(&bundle.join("rootfs"));
        let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let words = match deed {
            Deed::Run { bundle } if bundle.ends_with("proves") => {
                [strings(&["run", &rootfs(bundle)]), strings(&PROVING)].concat()
            }
            Deed::Run { bundle } => strings(&["run", &rootfs(bundle), "/program"]),
            Deed::Create { bundle } if bundle.ends_with("stays") => {
                strings(&["create", &state, &rootfs(bundle), "/stay", "until killed"])
            }
            Deed::Create { bundle } => strings(&["create", &state, &rootfs(bundle), "/program"]),
            Deed::Start => strings(&["start", &state]),
            Deed::Delete => strings(&["delete", &state]),
            Deed::Exec { words } => [strings(&["exec", &state]), strings(words)].concat(),
        };
        let flags = devices.then(|| "--devices".to_owned());
        Command::new([text(&self.binary)].into_iter().chain(flags).chain(words))
    }

    fn oci_command(&self, deed: &Deed<'_>, id: &str) -> Result<Command, String> {
        let (binary, root) = (text(&self.binary), text(&self.root));
        let words = match deed {
            Deed::Run { bundle } => vec!["run".to_owned(), "--bundle".to_owned(), text(bundle), id.to_owned()],
            Deed::Create { bundle } => vec!["create".to_owned(), "--bundle".to_owned(), text(bundle), id.to_owned()],
            Deed::Start => vec!["start".to_owned(), id.to_owned()],
            Deed::Delete => vec!["delete".to_owned(), "--force".to_owned(), id.to_owned()],
            Deed::Exec { words } => {
                let words = words.iter().map(|word| (*word).to_owned());
                ["exec".to_owned(), id.to_owned()].into_iter().chain(words).collect()
            }
        };
        Command::new([binary, "--root".to_owned(), root].into_iter().chain(words))
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The runtimes found, the floor first, and a line for each that was looked for in vain.
///
/// `devices`: the config asks for a device program, so a second floor shows what it costs.
pub fn discover(
    beside: &Path,
    state: &Path,
    devices: bool,
    output: &mut Output,
) -> Result<(Vec<Runtime>, Vec<String>), String> {
    let (mut found, mut missing) = (vec![floor("floor", beside, state, false)], Vec::new());
    if devices {
        found.push(floor("floor+devices", beside, state, true));
    }
    for (name, binary) in candidates(beside) {
        match binary.filter(|binary| executable(binary)) {
            Some(binary) => {
                let mut runtime = oci(&name, binary, state.join(format!("{}-{name}", found.len())), output)?;
                // A container's cgroup is named after its id, and the id after the runtime: no two may be the same.
                if found.iter().any(|other| other.name == runtime.name) {
                    runtime.name = format!("{} #{}", runtime.name, found.len());
                }
                found.push(runtime);
            }
            None => missing.push(format!("{name}: not found, left out")),
        }
    }
    for runtime in &found {
        let why = |why| format!("cannot make {}: {why}", runtime.root.display());
        std::fs::create_dir(&runtime.root).map_err(why)?;
    }
    Ok((found, missing))
}

fn floor(name: &str, beside: &Path, state: &Path, devices: bool) -> Runtime {
    Runtime {
        name: name.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        binary: beside.join("floor"),
        speech: Speech::Floor { devices },
        root: state.join(name),
    }
}

impl Runtime {
    /// The container's name in every turn of this runtime.
    pub fn id(&self) -> String {
        format!("compare-{}-{}", std::process::id(), self.name.replace([' ', '+', '#', '~'], "-"))
    }

    /// Runs one container, and makes sure that it was run: a runtime that did nothing would be quick. A peer that cannot is left out with its own words, the answer; the floor and ferry must.
    pub fn trial(&self, bundles: &Bundles, output: &mut Output) -> Result<Option<String>, String> {
        let command = self.command(&Deed::Run { bundle: &bundles.proves }, &self.id())?;
        let Err(why) = command.run_to(PROOF, Start::Spawn, output) else {
            return Ok(None);
        };
        self.sweep(output);
        let peer = self.speech == Speech::Oci && !self.name.starts_with("ferry");
        if peer { Ok(Some(format!("{}: left out, for {}", self.name, why.trim_end()))) } else { Err(why) }
    }

    /// Removes what a failed deed may have left. It may have left nothing, so no failure is one.
    pub fn sweep(&self, output: &mut Output) {
        let deleted = self.command(&Deed::Delete, &self.id()).and_then(|command| command.run(Start::Spawn, output));
        deleted.map(drop).unwrap_or_default();
        let cgroup = if self.speech == Speech::Oci { self.id() } else { format!("floor-{}", self.id()) };
        std::fs::remove_dir(Path::new("/sys/fs/cgroup").join(cgroup)).unwrap_or_default();
    }
}

/// Name and place of every runtime to look for.
fn candidates(beside: &Path) -> Vec<(String, Option<PathBuf>)> {
    let ferry = std::env::var_os("FERRY_RUNTIME").map_or_else(|| beside.join("ferry"), PathBuf::from);
    let mut all = vec![("ferry".to_owned(), Some(ferry))];
    for (name, variable) in [("crun", "FERRY_BENCH_CRUN"), ("runc", "FERRY_BENCH_RUNC"), ("youki", "FERRY_BENCH_YOUKI")]
    {
        all.push((name.to_owned(), in_path(name)));
        let further = std::env::var_os(variable).unwrap_or_default();
        all.extend(
            std::env::split_paths(&further)
                .filter(|path| !path.as_os_str().is_empty())
                .map(|path| (name.to_owned(), Some(path))),
        );
    }
    all
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|binary| executable(binary))
}

fn executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

fn oci(name: &str, binary: PathBuf, root: PathBuf, output: &mut Output) -> Result<Runtime, String> {
    Command::new([text(&binary).as_str(), "--version"])?.run(Start::Spawn, output)?;
    let version = output.text().lines().next().unwrap_or_default().to_owned();
    let number = version.split(' ').find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    let name = number.map_or(name.to_owned(), |number| format!("{name} {number}"));
    Ok(Runtime { name, version, binary, speech: Speech::Oci, root })
}
