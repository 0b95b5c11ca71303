//! Measures how fast an image is unpacked, against other tools and against the floor, and how fast a container of it starts, against
//! one of a bundle. `benches/compare-images` makes the image and calls this; see benches/README.md.
//!
//! The floor of unpacking is what cannot be done without: the layers decompressed to nowhere, on as many threads as there are
//! processors, and then as many bytes written to one file and synced.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

const USAGE: &str = "usage: images -n ROUNDS --starts COUNT --work DIR --ferry FILE --layout DIR --tag TAG \
[--archive FILE] [--containerd SOCKET] LAYER...";

/// What was asked for. Called by the script alone.
#[derive(Default)]
struct Options {
    rounds: usize,
    starts: usize,
    work: PathBuf,
    ferry: String,
    layout: String,
    tag: String,
    archive: Option<String>,
    containerd: Option<String>,
    layers: Vec<PathBuf>,
}

/// Seconds of every round, by name.
type Samples = Vec<(String, Vec<f64>)>;

fn main() -> ExitCode {
    let done = options().and_then(|options| unpacking(&options).and_then(|()| starting(&options)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("images: {why}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options { rounds: 5, starts: 200, ..Options::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(word) = arguments.next() {
        if !word.starts_with('-') {
            options.layers.push(word.into());
            continue;
        }
        let value = arguments.next().ok_or(USAGE)?;
        let number = || value.parse().map_err(|_| format!("{value} is no number"));
        match word.as_str() {
            "-n" => options.rounds = number()?,
            "--starts" => options.starts = number()?,
            "--work" => options.work = value.into(),
            "--ferry" => options.ferry = value,
            "--layout" => options.layout = value,
            "--tag" => options.tag = value,
            "--archive" => options.archive = Some(value),
            "--containerd" => options.containerd = Some(value),
            _ => return Err(USAGE.to_owned()),
        }
    }
    if options.layers.is_empty() || options.ferry.is_empty() { Err(USAGE.to_owned()) } else { Ok(options) }
}

/// One way to unpack: its name, the command that counts, and the commands that undo it off the clock.
struct Way {
    name: &'static str,
    command: Vec<String>,
    undo: Vec<Vec<String>>,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn ways(options: &Options) -> Vec<Way> {
    let path = |name: &str| options.work.join(name).display().to_string();
    let (store, tree, image) = (path("store"), path("tree"), format!("{}:{}", options.layout, options.tag));
    let import = ["--store", &store, "image", "import", "--progress", "none", &options.layout];
    let mut ways = vec![
        Way {
            name: "ferry image import",
            command: [words(&[&options.ferry]), words(&import)].concat(),
            undo: vec![words(&["rm", "-rf", &store])],
        },
        Way {
            name: "umoci unpack",
            command: words(&["umoci", "unpack", "--image", &image, &tree]),
            undo: vec![words(&["rm", "-rf", &tree])],
        },
    ];
    if in_path("mkfs.erofs") {
        ways.push(Way {
            name: "ferry import --erofs",
            command: [words(&[&options.ferry]), words(&import), words(&["--erofs"])].concat(),
            undo: vec![words(&["rm", "-rf", &store])],
        });
    }
    if let Some(archive) = &options.archive {
        let (root, run) = (path("podman"), podman_run().display().to_string());
        // Without a mount of its own that nobody would undo.
        let option = ["--storage-driver", "overlay", "--storage-opt", "overlay.skip_mount_home=true"];
        let podman = [&["podman", "--root", &root, "--runroot", &run], &option[..]].concat();
        ways.push(Way {
            name: "podman load",
            command: [words(&podman), words(&["load", "-q", "-i", archive])].concat(),
            undo: vec![[words(&podman), words(&["rmi", "-a", "-f"])].concat()],
        });
    }
    if let (Some(archive), Some(socket)) = (&options.archive, &options.containerd) {
        let ctr = ["ctr", "-a", socket];
        ways.push(Way {
            name: "ctr image import",
            command: [words(&ctr), words(&["image", "import", archive])].concat(),
            undo: vec![words(&[
                "sh",
                "-c",
                &format!("ctr -a {socket} image ls -q | xargs ctr -a {socket} image rm --sync"),
            ])],
        });
    }
    ways.retain(|way| way.name.starts_with("ferry") || in_path(&way.command[0]));
    ways
}

/// Where podman keeps what is of the moment. It takes no path longer than 50 characters.
fn podman_run() -> PathBuf {
    std::env::temp_dir().join(format!("bench-podman-{}", std::process::id()))
}

fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

fn run(command: &[String]) -> Result<f64, String> {
    let began = Instant::now();
    let output = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|why| format!("{}: {why}", command[0]))?;
    let seconds = began.elapsed().as_secs_f64();
    match output.status.success() {
        true => Ok(seconds),
        false => Err(format!("{}: {}: {}", command.join(" "), output.status, String::from_utf8_lossy(&output.stderr))),
    }
}

/// Everything on its way to the disk is there: what one leaves behind is not to burden the next.
fn settle(work: &Path) -> Result<(), String> {
    let directory = File::open(work).map_err(|why| format!("{}: {why}", work.display()))?;
    // SAFETY: an open descriptor.
    match unsafe { libc::syncfs(directory.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(format!("syncfs: {}", std::io::Error::last_os_error())),
    }
}

/// Seconds to decompress the layers, seconds to write as many bytes, and how many that are.
fn floor(options: &Options) -> Result<(f64, f64, u64), String> {
    let (next, sum) = (AtomicUsize::new(0), AtomicU64::new(0));
    let failed = |path: &Path, why: std::io::Error| format!("{}: {why}", path.display());
    let mut layers = options.layers.clone();
    layers.sort_by_key(|path| std::cmp::Reverse(path.metadata().map_or(0, |metadata| metadata.len())));
    let work = || -> Result<(), String> {
        let mut buffer = vec![0; 256 << 10];
        while let Some(path) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
            let file = File::open(path).map_err(|why| failed(path, why))?;
            let mut stream = flate2::read::MultiGzDecoder::new(std::io::BufReader::with_capacity(256 << 10, file));
            loop {
                match stream.read(&mut buffer).map_err(|why| failed(path, why))? {
                    0 => break,
                    count => drop(sum.fetch_add(count as u64, Ordering::Relaxed)),
                }
            }
        }
        Ok(())
    };
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread failed".to_owned())?)
    })?;
    let decompressed = began.elapsed().as_secs_f64();
    let total = sum.into_inner();
    let path = options.work.join("floor");
    let began = Instant::now();
    let mut file = File::create(&path).map_err(|why| failed(&path, why))?;
    let piece = vec![0x5a; 1 << 20];
    let mut left = total;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        file.write_all(&piece[..count]).map_err(|why| failed(&path, why))?;
        left -= count as u64;
    }
    settle(&options.work)?;
    let written = began.elapsed().as_secs_f64();
    std::fs::remove_file(&path).map_err(|why| failed(&path, why))?;
    Ok((decompressed, written, total))
}

fn unpacking(options: &Options) -> Result<(), String> {
    let ways = ways(options);
    let mut samples: Samples =
        ["floor: decompress", "floor: write", "floor"].map(|name| (name.to_owned(), Vec::new())).into();
    samples.extend(ways.iter().map(|way| (way.name.to_owned(), Vec::new())));
    let packed: u64 = options.layers.iter().map(|path| path.metadata().map_or(0, |metadata| metadata.len())).sum();
    let mut total = 0;
    // The first round fills the caches, and does not count.
    for round in 0..=options.rounds {
        let (decompressed, written, bytes) = floor(options)?;
        total = bytes;
        let mut times = vec![decompressed, written, decompressed + written];
        for way in &ways {
            settle(&options.work)?;
            let seconds = run(&way.command)?;
            // Whoever leaves the writing to the kernel has not done it: everybody's ends on the disk.
            let began = Instant::now();
            settle(&options.work)?;
            times.push(seconds + began.elapsed().as_secs_f64());
            way.undo.iter().try_for_each(|command| run(command).map(drop))?;
        }
        if round > 0 {
            samples.iter_mut().zip(times).for_each(|((_, all), seconds)| all.push(seconds));
        }
    }
    println!(
        "unpacking {} layers, {} MB packed, {} MB unpacked, {} rounds\n",
        options.layers.len(),
        packed / 1_000_000,
        total / 1_000_000,
        options.rounds
    );
    table(&samples, 1000.0, "ms", 2);
    let of = |name: &str| samples.iter().find(|(known, _)| known == name).map_or(f64::NAN, |(_, all)| median(all));
    let others = ways.iter().filter(|way| !way.name.starts_with("ferry")).map(|way| of(way.name));
    println!("fastest other / ferry: {:.2}", others.fold(f64::INFINITY, f64::min) / of("ferry image import"));
    println!("ferry / floor: {:.2}\n", of("ferry image import") / of("floor"));
    leave_podman_run()
}

#[allow(clippy::disallowed_methods, reason = "it was made here, and nobody else may write to it")]
fn leave_podman_run() -> Result<(), String> {
    match std::fs::remove_dir_all(podman_run()) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(why.to_string()),
        _ => Ok(()),
    }
}

fn starting(options: &Options) -> Result<(), String> {
    let path = |name: &str| options.work.join(name).display().to_string();
    let (store, root, bundle) = (path("store"), path("state"), path("bundle"));
    let ferry = |rest: &[&str]| [words(&[&options.ferry, "--root", &root, "--store", &store]), words(rest)].concat();
    run(&ferry(&["image", "import", "--progress", "none", "--name", "bench:1", &options.layout]))?;
    run(&ferry(&["bundle", "create", "--image", "bench:1", &bundle, "--", "/program"]))?;
    let has_erofs = in_path("mkfs.erofs");
    // What was written so far, and removed, is the disk's affair before anything is timed: it is not what a start waits for.
    run(&words(&["sync"]))?;
    let of_bundle = ["--bundle", bundle.as_str(), "b"];
    let of_image = ["--image", "bench:1", "i", "--", "/program"];
    let of_erofs = ["--image", "bench:1", "--erofs", "e", "--", "/program"];
    // Name, command, and whose container is deleted off the clock.
    let mut commands = vec![
        ("start of a bundle", ferry(&[&["run", "--detach"][..], &of_bundle[..]].concat()), Some("b")),
        ("start of an image", ferry(&[&["run", "--detach"][..], &of_image[..]].concat()), Some("i")),
        ("run of a bundle", ferry(&[&["run"][..], &of_bundle[..]].concat()), None),
        ("run of an image", ferry(&[&["run"][..], &of_image[..]].concat()), None),
    ];
    if has_erofs {
        run(&ferry(&["image", "import", "--erofs", "--progress", "none", "--name", "bench:1", &options.layout]))?;
        // One that stays: the mounts are there, as they are for all containers of an image but the first.
        run(&ferry(&["run", "--detach", "--image", "bench:1", "--erofs", "stays", "--", "/program"]))?;
        commands.push(("start with --erofs", ferry(&[&["run", "--detach"][..], &of_erofs].concat()), Some("e")));
        commands.push(("run with --erofs", ferry(&[&["run"][..], &of_erofs].concat()), None));
    }
    let mut samples: Samples = commands.iter().map(|(name, ..)| ((*name).to_owned(), Vec::new())).collect();
    for round in 0..options.starts + 3 {
        let order: Vec<usize> = (0..commands.len()).collect();
        let order = if round % 2 == 0 { order } else { order.into_iter().rev().collect() };
        for index in order {
            let (_, command, id) = &commands[index];
            let seconds = run(command)?;
            id.map_or(Ok(()), |id| run(&ferry(&["delete", "--force", id])).map(drop))?;
            if round >= 3 {
                samples[index].1.push(seconds);
            }
        }
    }
    println!("starting a container, and running one from beginning to end, {} rounds\n", options.starts);
    table(&samples, 1e6, "us", 0);
    let ratio = |one: usize, other: usize| median(&samples[one].1) / median(&samples[other].1);
    println!("image / bundle: start {:.3}, run {:.3}", ratio(1, 0), ratio(3, 2));
    if has_erofs {
        println!("erofs / image: start {:.3}, run {:.3}\n", ratio(4, 1), ratio(5, 3));
        reading(options, &store)?;
        run(&ferry(&["delete", "--force", "stays"]))?;
    }
    run(&words(&["rm", "-rf", &store, &root, &bundle])).map(drop)
}

/// Every file of every layer is read through, from the layers' directories and from their EROFS images, all of it in memory already.
fn reading(options: &Options, store: &str) -> Result<(), String> {
    let names = ["from directories", "from EROFS images"];
    let mut samples: Samples = names.iter().map(|name| ((*name).to_owned(), Vec::new())).collect();
    let read = |place: &str| {
        let layers =
            format!("cd {store}/layers && for layer in *; do tar -cf - -C \"$layer/{place}\" . | cat >/dev/null; done");
        run(&words(&["sh", "-c", &layers]))
    };
    // The first round fills the caches, and does not count.
    for round in 0..=options.rounds {
        for (place, (_, all)) in ["diff", "erofs/mount"].into_iter().zip(&mut samples) {
            let seconds = read(place)?;
            if round > 0 {
                all.push(seconds);
            }
        }
    }
    println!("reading every file of its layers, from memory, {} rounds\n", options.rounds);
    table(&samples, 1000.0, "ms", 0);
    println!("erofs / directories: {:.2}", median(&samples[1].1) / median(&samples[0].1));
    Ok(())
}

/// One line for each: the median, the least, and the median against that of the row `base`.
fn table(samples: &Samples, unit: f64, named: &str, base: usize) {
    let floor = median(&samples[base].1);
    println!("{:<20} {:>10} {:>10} {:>8}", "", format!("median {named}"), "min", "x");
    for (name, all) in samples {
        let least = all.iter().copied().fold(f64::INFINITY, f64::min);
        println!("{name:<20} {:>10.0} {:>10.0} {:>8.2}", median(all) * unit, least * unit, median(all) / floor);
    }
    println!();
}

fn median(all: &[f64]) -> f64 {
    let mut sorted = all.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
