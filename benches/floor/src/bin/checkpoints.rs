//! Measures checkpoint and restore of one container by several runtimes, all with the same CRIU; and ferry's archive against a
//! peer's images in a gzip archive. `benches/compare-checkpoint` makes the bundles and calls this; see benches/README.md.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: checkpoints -n ROUNDS --archives ROUNDS --work DIR --json FILE --ferry FILE [--peer NAME=FILE]... SIZE=BUNDLE...";

/// How long a container may take to fill its memory.
const PATIENCE: Duration = Duration::from_secs(120);

/// What was asked for. Called by the script alone.
#[derive(Default)]
struct Options {
    rounds: usize,
    /// In how many of them there is one file too, of which a peer's takes a minute.
    archives: usize,
    work: PathBuf,
    json: PathBuf,
    /// Name, and file: ferry first.
    runtimes: Vec<(String, String)>,
    /// Megabytes, and the bundle of a program that holds so many.
    bundles: Vec<(u64, String)>,
}

/// One round of one runtime.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    /// Seconds until `checkpoint` has ended.
    dump: f64,
    /// Seconds for which the processes were being stopped and stood still, by CRIU's own account.
    frozen: f64,
    /// Seconds until `restore --detach` has ended.
    restore: f64,
    /// Bytes on disk.
    bytes: f64,
}

/// What of a round is compared, and how it is shown: name, unit, how many of it are one, the figure.
type Column = (&'static str, &'static str, f64, fn(&Round) -> f64);

const COLUMNS: [Column; 4] = [
    ("dump", "ms", 1e3, |round| round.dump),
    ("frozen", "ms", 1e3, |round| round.frozen),
    ("restore", "ms", 1e3, |round| round.restore),
    ("on disk", "MB", 1e-6, |round| round.bytes),
];

fn main() -> ExitCode {
    match options().and_then(|options| compare(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("checkpoints: {why}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options { rounds: 5, archives: 5, ..Options::default() };
    let mut arguments = std::env::args().skip(1);
    let pair = |word: &str| {
        word.split_once('=').map(|(one, other)| (one.to_owned(), other.to_owned())).ok_or_else(|| USAGE.to_owned())
    };
    while let Some(word) = arguments.next() {
        if !word.starts_with('-') {
            let (size, bundle) = pair(&word)?;
            options.bundles.push((size.parse().map_err(|_| format!("{size} is no number"))?, bundle));
            continue;
        }
        let value = arguments.next().ok_or(USAGE)?;
        match word.as_str() {
            "-n" => options.rounds = value.parse().map_err(|_| format!("{value} is no number"))?,
            "--archives" => options.archives = value.parse().map_err(|_| format!("{value} is no number"))?,
            "--work" => options.work = value.into(),
            "--json" => options.json = value.into(),
            "--ferry" => options.runtimes.insert(0, ("ferry".to_owned(), value)),
            "--peer" => options.runtimes.push(pair(&value)?),
            _ => return Err(USAGE.to_owned()),
        }
    }
    let is_whole = options.runtimes.first().is_some_and(|(name, _)| name == "ferry") && !options.bundles.is_empty();
    if is_whole && options.rounds > 0 && options.archives > 0 { Ok(options) } else { Err(USAGE.to_owned()) }
}

/// Takes a command's time; an error has its words.
fn timed(command: &mut Command) -> Result<f64, String> {
    let said = tempfile(command)?;
    let began = Instant::now();
    // Into a file, and not a pipe: what is restored holds the stream for as long as it lives.
    let status = command.status().map_err(|why| format!("{command:?}: {why}"))?;
    let seconds = began.elapsed().as_secs_f64();
    if status.success() {
        return Ok(seconds);
    }
    let words = fs::read_to_string(&said).unwrap_or_default();
    Err(format!("{command:?}: {status}: {}", words.trim()))
}

/// Everything a command says goes into a file for itself; the file's name.
fn tempfile(command: &mut Command) -> Result<PathBuf, String> {
    let path = std::env::temp_dir().join(format!("ferry-checkpoints-{}", std::process::id()));
    let file = fs::File::create(&path).map_err(|why| format!("{}: {why}", path.display()))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    Ok(path)
}

/// A runtime with a directory of its own.
struct Runtime<'a> {
    name: &'a str,
    file: &'a str,
    root: PathBuf,
}

const ID: &str = "ferry-bench-checkpoint";

impl Runtime<'_> {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.file);
        command.arg("--root").arg(&self.root).args(words);
        command
    }

    /// A container whose memory is filled.
    fn begin(&self, megabytes: u64, bundle: &str) -> Result<(), String> {
        let pid_file = self.root.with_extension("pid");
        let mut command = self.command(&["run", "--detach", "--bundle", bundle, "--pid-file"]);
        // Its streams are nowhere, on every runtime alike.
        let status = command
            .arg(&pid_file)
            .arg(ID)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(|why| format!("{}: {why}", self.file))?;
        if !status.success() {
            // Once more, for its words.
            let mut again = self.command(&["run", "--detach", "--bundle", bundle, ID]);
            return timed(&mut again).map(drop).and_then(|()| Err(format!("{}: run: {status}", self.name)));
        }
        let pid = fs::read_to_string(&pid_file).map_err(|why| format!("{}: {why}", pid_file.display()))?;
        filled(pid.trim(), megabytes)
    }

    fn checkpoint(&self, images: &Path) -> Result<f64, String> {
        let mut command = self.command(&["checkpoint", "--image-path"]);
        command.arg(images).args(["--work-path"]).arg(images).arg(ID);
        timed(&mut command)
    }

    fn end(&self) -> Result<(), String> {
        timed(&mut self.command(&["delete", "--force", ID])).map(drop)
    }

    /// There and back, through images in a directory.
    fn round(&self, megabytes: u64, bundle: &str, images: &Path) -> Result<Round, String> {
        self.begin(megabytes, bundle)?;
        settle()?;
        let dump = self.checkpoint(images)?;
        let mut round = Round { dump, frozen: frozen(images)?, bytes: size(images)?, ..Round::default() };
        // Some leave a stopped container behind.
        self.end().ok();
        let mut command = self.command(&["restore", "--detach", "--bundle", bundle, "--image-path"]);
        command.arg(images).args(["--work-path"]).arg(images).arg(ID);
        round.restore = quietly(&mut command, images, "restore.log")?;
        self.end()?;
        Ok(round)
    }
}

/// As [`timed`], with no stream that could be another's: CRIU looks whether they are what they were.
fn quietly(command: &mut Command, images: &Path, log: &str) -> Result<f64, String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let status = command.status().map_err(|why| format!("{command:?}: {why}"))?;
    let seconds = began.elapsed().as_secs_f64();
    if status.success() {
        return Ok(seconds);
    }
    let text = fs::read_to_string(images.join(log)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("Error")).collect();
    Err(format!("{command:?}: {status}: {}", lines.join("; ")))
}

/// Waits until a process has its memory, of which nothing tells.
#[allow(clippy::disallowed_methods, reason = "there is no event to wait for, and nothing is on the clock")]
fn filled(pid: &str, megabytes: u64) -> Result<(), String> {
    let (path, until) = (format!("/proc/{pid}/status"), Instant::now() + PATIENCE);
    while Instant::now() < until {
        let status = fs::read_to_string(&path).map_err(|why| format!("{path}: {why}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        let kilobytes: u64 = line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
        if kilobytes >= megabytes * 1024 && status.contains("State:\tS") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("process {pid} does not come to hold {megabytes} MB"))
}

/// Waits for the disk: nobody is to pay for what another has written or removed.
fn settle() -> Result<(), String> {
    timed(&mut Command::new("sync")).map(drop)
}

fn remove(directory: &Path) -> Result<(), String> {
    timed(Command::new("rm").arg("-rf").arg(directory)).map(drop)
}

/// Bytes that a directory of images takes on disk.
fn size(images: &Path) -> Result<f64, String> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in fs::read_dir(images).map_err(|why| format!("{}: {why}", images.display()))?.flatten() {
        sum += entry.metadata().map_err(|why| format!("{}: {why}", entry.path().display()))?.blocks() * 512;
    }
    Ok(sum as f64)
}

/// How long the processes stood still, while they were being stopped and after that: the first two fields of the first field of CRIU's
/// statistics, in microseconds.
fn frozen(images: &Path) -> Result<f64, String> {
    let path = images.join("stats-dump");
    let bytes = fs::read(&path).map_err(|why| format!("{}: {why}", path.display()))?;
    let broken = || format!("{} is not understood", path.display());
    // Two magic numbers and a length come first.
    let message = field(bytes.get(12..).ok_or_else(broken)?, 1).ok_or_else(broken)?;
    let Value::Bytes(dump) = message else { return Err(broken()) };
    let microseconds = |wanted| match field(dump, wanted) {
        Some(Value::Number(number)) => Ok(number as f64),
        _ => Err(broken()),
    };
    Ok((microseconds(1)? + microseconds(2)?) / 1e6)
}

/// A value of a protobuf message.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn field(mut message: &[u8], wanted: u64) -> Option<Value<'_>> {
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut message)?),
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(length)?;
                message = rest;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        if key >> 3 == wanted {
            return Some(value);
        }
    }
    None
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// One file: seconds to make it, seconds from it to a container, bytes.
fn archive(runtime: &Runtime<'_>, megabytes: u64, bundle: &str, work: &Path) -> Result<[f64; 3], String> {
    let (file, images) = (work.join("archive"), work.join("images"));
    runtime.begin(megabytes, bundle)?;
    settle()?;
    let is_ferry = runtime.name == "ferry";
    let made = if is_ferry {
        timed(runtime.command(&["checkpoint", "--export"]).arg(&file).arg(ID))?
    } else {
        let dump = runtime.checkpoint(&images)?;
        runtime.end().ok();
        dump + timed(Command::new("tar").arg("-czf").arg(&file).arg("-C").arg(work).arg("images"))?
    };
    let bytes = file.metadata().map_err(|why| format!("{}: {why}", file.display()))?.len();
    let back = if is_ferry {
        let mut command = runtime.command(&["restore", "--detach", "--bundle", bundle, "--import"]);
        quietly(command.arg(&file).arg(ID), work, "none")?
    } else {
        remove(&images)?;
        let unpacked = timed(Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(work))?;
        let mut command = runtime.command(&["restore", "--detach", "--bundle", bundle, "--image-path"]);
        unpacked + quietly(command.arg(&images).arg("--work-path").arg(&images).arg(ID), &images, "restore.log")?
    };
    runtime.end()?;
    fs::remove_file(&file).ok();
    remove(&images).ok();
    Ok([made, back, bytes as f64])
}

fn compare(options: &Options) -> Result<(), String> {
    let mut json = String::from("{\n");
    let runtimes: Vec<Runtime<'_>> = options
        .runtimes
        .iter()
        .map(|(name, file)| Runtime { name, file, root: options.work.join(format!("state-{name}")) })
        .collect();
    let images = options.work.join("images");
    let (smallest, bundle) = options.bundles.iter().min_by_key(|(size, _)| *size).ok_or(USAGE)?;
    let mut able = Vec::new();
    for runtime in &runtimes {
        // Whoever cannot do it is left out, in its own words.
        let tried = runtime.round(*smallest, bundle, &images);
        runtime.end().ok();
        remove(&images).ok();
        match tried {
            Ok(_) => able.push(runtime),
            Err(why) if runtime.name == "ferry" => return Err(why),
            Err(why) => println!("left out: {why}\n"),
        }
    }
    for (megabytes, bundle) in &options.bundles {
        let mut rounds: Vec<Vec<Round>> = able.iter().map(|_| Vec::new()).collect();
        let mut archives: Vec<Vec<[f64; 3]>> = able.iter().map(|_| Vec::new()).collect();
        for number in 0..options.rounds {
            let mut order: Vec<usize> = (0..able.len()).collect();
            if number % 2 == 1 {
                order.reverse();
            }
            for index in order {
                let runtime = able[index];
                rounds[index].push(runtime.round(*megabytes, bundle, &images)?);
                remove(&images)?;
                if number < options.archives {
                    archives[index].push(archive(runtime, *megabytes, bundle, &options.work)?);
                }
            }
        }
        println!("{megabytes} MB of memory, {} rounds, {} of one file\n", options.rounds, archives[0].len());
        table(&able, &rounds);
        archive_table(&able, &archives);
        record(&mut json, *megabytes, &able, &rounds, &archives);
    }
    let text = format!("{}\n}}\n", json.trim_end().trim_end_matches(','));
    fs::write(&options.json, text).map_err(|why| format!("{}: {why}", options.json.display()))
}

/// The median of each figure, and of its ratio to ferry's in the same round.
fn table(runtimes: &[&Runtime<'_>], rounds: &[Vec<Round>]) {
    print!("{:<8}", "");
    COLUMNS.iter().for_each(|(name, unit, ..)| print!(" {:>16}", format!("{name} {unit}")));
    println!("   / ferry's, of each");
    for (runtime, own) in runtimes.iter().zip(rounds) {
        print!("{:<8}", runtime.name);
        let figures = |figure: fn(&Round) -> f64| median(own.iter().map(figure));
        COLUMNS.iter().for_each(|(.., unit, figure)| print!(" {:>16.1}", figures(*figure) * unit));
        print!("  ");
        for (.., figure) in COLUMNS {
            let ratios = own.iter().zip(&rounds[0]).map(|(own, ferry)| figure(own) / figure(ferry));
            print!(" {:.2}", median(ratios));
        }
        println!();
    }
    println!();
}

fn archive_table(runtimes: &[&Runtime<'_>], archives: &[Vec<[f64; 3]>]) {
    println!("{:<20} {:>10} {:>12} {:>10} {:>16}", "one file", "made ms", "restored ms", "MB", "time x size");
    let product = |[made, _, bytes]: &[f64; 3]| made * bytes;
    for (runtime, own) in runtimes.iter().zip(archives) {
        let name = if runtime.name == "ferry" { "ferry".to_owned() } else { format!("{} and tar.gz", runtime.name) };
        let of = |index: usize| median(own.iter().map(|round| round[index]));
        let ratio = median(own.iter().zip(&archives[0]).map(|(own, ferry)| product(own) / product(ferry)));
        let (made, back, bytes) = (of(0) * 1e3, of(1) * 1e3, of(2) / 1e6);
        println!("{name:<20} {made:>10.1} {back:>12.1} {bytes:>10.1} {:>16}", format!("{ratio:.2} of ferry's"));
    }
    println!();
}

/// Every sample, in seconds and bytes.
fn record(
    json: &mut String,
    megabytes: u64,
    runtimes: &[&Runtime<'_>],
    rounds: &[Vec<Round>],
    archives: &[Vec<[f64; 3]>],
) {
    for ((runtime, rounds), archives) in runtimes.iter().zip(rounds).zip(archives) {
        let name = runtime.name;
        // Writing to a text does not fail.
        let mut row = |what: &str, values: Vec<f64>| {
            let values: Vec<String> = values.iter().map(f64::to_string).collect();
            writeln!(json, "  \"{megabytes} {name} {what}\": [{}],", values.join(", ")).unwrap_or_default();
        };
        COLUMNS.iter().for_each(|(what, .., figure)| row(what, rounds.iter().map(figure).collect()));
        for (index, what) in ["archive made", "archive restored", "archive bytes"].into_iter().enumerate() {
            row(what, archives.iter().map(|round| round[index]).collect());
        }
    }
}

fn median(all: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = all.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
