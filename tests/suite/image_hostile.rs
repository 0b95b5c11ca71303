//! Archives that mean harm or are broken, made by the hundred from a seed: each is imported or refused with a reason, nothing is
//! left half done, and nothing outside of the store changes.

use std::fs;
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;
use serde_json::{Value, json};
use tar::EntryType;

use super::case::{Case, names_in};
use super::image::{base, clear, image};
use super::need::Need::{Ferry, Tool};
use super::scenario::{Outcome, Scenario, scenario};
use super::stage;
use crate::image_fixtures::{self as fixtures, Layer};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("generated_archives_leave_nothing", &[Ferry], generated),
    scenario("layers_are_taken_apart_in_a_jail", &[Ferry, Tool("strace")], jailed),
    scenario("a_full_disk_loses_nothing", &[Ferry, Tool("unshare"), Tool("mount")], full_disk),
];

/// Numbers that look random and come again with the same seed. George Marsaglia, Xorshift RNGs
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Near seeds are far apart after a few throws.
        for _ in 0..8 {
            dice.roll(2);
        }
        dice
    }

    /// Below `sides`.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % sides
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len())]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.roll(most)).map(|_| self.roll(256) as u8).collect()
    }
}

/// Names that lead somewhere else, or nowhere.
fn names(outside: &Path) -> Vec<String> {
    let outside = outside.display().to_string();
    let up = format!("{}{outside}", "../".repeat(40));
    let mut names: Vec<String> = [
        "",
        ".",
        "..",
        "/",
        "./",
        "//",
        "a",
        "b",
        "a/b",
        "a/b/c",
        "a/../b",
        "a/..",
        "../a",
        "a//b/",
        "b/",
        "etc/passwd",
        "link",
        "link/x",
        "link/link",
        "dir",
        "dir/",
        "dir/file",
        ".wh.",
        ".wh..",
        ".wh...",
        ".wh.a",
        ".wh.b",
        ".wh.dir",
        ".wh.link",
        "dir/.wh..wh..opq",
        ".wh..wh..opq",
        ".wh..wh.plnk",
        "link/.wh.x",
        "link/.wh..wh..opq",
        "a/.wh...",
        ".wh.a/b",
        ".wh.a/.wh.b",
        "proc/self/root/x",
        "dev/null",
        "\u{7f}",
        "a\nb",
        "dir/.wh.file",
        "layer.json",
        "../layer.json",
        "diff",
        "../diff/x",
    ]
    .map(str::to_owned)
    .to_vec();
    names.extend([
        outside.clone(),
        format!("{outside}/new"),
        format!("{outside}/canary"),
        format!("{outside}/.wh.canary"),
    ]);
    names.extend([
        up.clone(),
        format!("{up}/new"),
        format!("{up}/canary"),
        format!("dir/{up}/canary"),
        "x/".repeat(45) + "x",
    ]);
    names
}

/// Names that lead nowhere else by themselves.
const HARMLESS: [&str; 7] = ["a", "b/c", "dir/", "dir/file", "link", "link/x", "d/e/f"];

const KINDS: [EntryType; 17] = [
    EntryType::Regular,
    EntryType::Regular,
    EntryType::Regular,
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Link,
    EntryType::Symlink,
    EntryType::Symlink,
    EntryType::Directory,
    EntryType::Fifo,
    EntryType::Char,
    EntryType::Block,
    EntryType::Continuous,
    EntryType::GNUSparse,
    EntryType::GNULongName,
    EntryType::XHeader,
    EntryType::XGlobalHeader,
];

const KEYS: [&str; 14] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "gid",
    "mtime",
    "SCHILY.xattr.trusted.overlay.redirect",
    "SCHILY.xattr.user.overlay.opaque",
    "SCHILY.xattr.security.capability",
    "GNU.sparse.major",
    "GNU.sparse.map",
    "GNU.sparse.size",
    "GNU.sparse.realsize",
    "GNU.sparse.name",
];

/// A layer of a few entries that want to be elsewhere.
fn entries(dice: &mut Dice, names: &[String]) -> Result<Vec<u8>, Failed> {
    let mut layer = Layer::new();
    for _ in 0..1 + dice.roll(8) {
        if dice.roll(8) == 0 {
            let mut records = Vec::new();
            for _ in 0..1 + dice.roll(3) {
                let value = match dice.roll(5) {
                    0 => dice.bytes(20),
                    1 => b"18446744073709551615".to_vec(),
                    2 => b"-9223372036854775808.999".to_vec(),
                    3 => b"0,1,99999999999,5".to_vec(),
                    _ => dice.pick(names).clone().into_bytes(),
                };
                records.push((*dice.pick(&KEYS), value));
            }
            let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (*key, value.as_slice())).collect();
            layer = layer.records(&records)?;
        }
        let mut name = || match dice.roll(3) {
            0 => dice.pick(names).clone(),
            _ => (*dice.pick(&HARMLESS)).to_owned(),
        };
        let (name, link) = (name(), name());
        let fitting = |text: String| text.chars().take(90).collect::<String>();
        let (kind, mode, data) = (*dice.pick(&KINDS), dice.roll(0o10000) as u32, dice.bytes(600));
        layer = layer.entry(kind, &fitting(name), mode, &fitting(link), &data)?;
    }
    Ok(layer.finish()?)
}

/// Bytes of which some are others, or missing, or twice there.
fn broken(dice: &mut Dice, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..1 + dice.roll(6) {
        if bytes.is_empty() {
            break;
        }
        let at = dice.roll(bytes.len());
        match dice.roll(5) {
            0 => bytes.truncate(at),
            1 => {
                let (piece, place) = (dice.bytes(40), dice.roll(bytes.len()));
                drop(bytes.splice(place..place, piece));
            }
            2 => {
                let end = (at + dice.roll(700)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.extend(piece);
            }
            _ => bytes[at] = dice.roll(256) as u8,
        }
    }
    bytes
}

/// A document in which one value, anywhere, is another.
fn changed(dice: &mut Dice, document: &mut Value) {
    let children: Vec<&mut Value> = match document {
        Value::Array(values) => values.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => Vec::new(),
    };
    let count = children.len();
    if count > 0 && dice.roll(4) > 0 {
        let chosen = dice.roll(count);
        return children.into_iter().nth(chosen).into_iter().for_each(|child| changed(dice, child));
    }
    let digest = format!("sha256:{}", "0".repeat(64));
    let many: Vec<u32> = vec![1; 600];
    *document = match dice.roll(9) {
        0 => Value::Null,
        1 => json!(-1),
        2 => json!(u64::MAX),
        3 => json!("../../../../etc/passwd"),
        4 => json!(digest),
        5 => json!({"a": [{}]}),
        6 => json!(many),
        7 => json!("application/vnd.oci.image.index.v1+json"),
        _ => json!([]),
    };
}

/// A layout of which a document was changed; digests fit as often as not.
fn layout(dice: &mut Dice, path: &Path, layers: &[Vec<u8>]) -> Outcome {
    let mut config = fixtures::config(layers, &json!({"Cmd": ["/probe"]}));
    if dice.roll(3) == 0 {
        changed(dice, &mut config);
    }
    let config = fixtures::blob(path, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
    let mut described = Vec::new();
    for layer in layers {
        let packed = if dice.roll(2) == 0 { fixtures::gzip(layer)? } else { layer.clone() };
        let packed = if dice.roll(3) == 0 { broken(dice, packed) } else { packed };
        described.push(fixtures::blob(path, "application/vnd.oci.image.layer.v1.tar+gzip", &packed)?);
    }
    let mut manifest = json!({"schemaVersion": 2, "config": config, "layers": described});
    if dice.roll(3) == 0 {
        changed(dice, &mut manifest);
    }
    let mut entry =
        fixtures::blob(path, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())?;
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "test:latest"});
    if dice.roll(4) == 0 {
        changed(dice, &mut entry);
    }
    fixtures::index(path, &[entry])?;
    if dice.roll(6) == 0 {
        let index = path.join("index.json");
        fs::write(&index, broken(dice, fs::read(&index)?))?;
    }
    Ok(())
}

/// One source, as a file or directory.
fn source(case: &Case, dice: &mut Dice, names: &[String]) -> Result<PathBuf, Failed> {
    let path = PathBuf::from(case.path("source"));
    match dice.roll(5) {
        0 => fs::write(&path, entries(dice, names)?)?,
        1 => {
            let whole = entries(dice, names)?;
            fs::write(&path, broken(dice, whole))?;
        }
        2 => {
            let packed = fixtures::gzip(&entries(dice, names)?)?;
            fs::write(&path, if dice.roll(2) == 0 { broken(dice, packed) } else { packed })?;
        }
        kind => {
            let layers = match dice.roll(2) {
                0 => vec![entries(dice, names)?, entries(dice, names)?],
                _ => vec![base(case)?, entries(dice, names)?],
            };
            layout(dice, &path, &layers)?;
            if kind == 4 {
                let archive = path.with_extension("tar");
                fixtures::archive(&path, &archive)?;
                let bytes = fs::read(&archive)?;
                fs::write(&archive, if dice.roll(2) == 0 { broken(dice, bytes) } else { bytes })?;
                super::case::remove_tree(&path)?;
                return Ok(archive);
            }
        }
    }
    Ok(path)
}

/// What must not change: where hostile names lead to, and what is beside the store's own.
fn untouched(case: &Case, outside: &Path, seed: u64) -> Outcome {
    assert_eq!(names_in(outside), ["canary"], "seed {seed}");
    assert_eq!(fs::read_to_string(outside.join("canary"))?, "sings", "seed {seed}");
    let mut own = names_in(case.path("store").as_ref());
    own.sort();
    assert_eq!(
        own,
        ["blobs", "containers", "format", "images.json", "images.lock", "layers", "lock", "tmp"],
        "seed {seed}"
    );
    assert_eq!(names_in(&PathBuf::from(case.path("store/tmp"))), Vec::<String>::new(), "seed {seed}");
    Ok(())
}

fn generated(case: &mut Case) -> Outcome {
    let outside = case.host_directory("outside")?;
    fs::write(outside.join("canary"), "sings")?;
    let names = names(&outside);
    // The store has all its files before anything is counted.
    let first = case.path("first");
    fixtures::layout(first.as_ref(), "first:1", &[base(case)?], &json!({}))?;
    image(case, &["import", &first])?.success()?;
    let before = image(case, &["list"])?.success()?.stdout;
    let count = if stage::is_long() { 500 } else { 100 };
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..count {
        let mut dice = Dice::new(seed);
        let path = source(case, &mut dice, &names)?;
        case.forget_transcript();
        let end = image(case, &["import", "--max-size", "1m", "--name", "test:latest", &path.display().to_string()])?;
        match end.code {
            0 => {
                taken += 1;
                image(case, &["remove", "test:latest"])?.success()?;
            }
            1 => {
                refused += 1;
                assert!(
                    end.stderr.starts_with("ferry: cannot ") || end.stderr.contains("ferry"),
                    "seed {seed}: {}",
                    end.stderr
                );
                assert!(!end.stderr.contains("panicked"), "seed {seed}: {}", end.stderr);
            }
            other => return Err(format!("seed {seed}: it ended with {other}: {}", end.stderr).into()),
        }
        untouched(case, &outside, seed)?;
        assert_eq!(image(case, &["list"])?.success()?.stdout, before, "seed {seed}");
        if path.is_dir() {
            super::case::remove_tree(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    // Neither kind is all there is: else the dice would show nothing.
    assert!(taken > count / 20 && refused > count / 4, "{taken} taken, {refused} refused of {count}");
    let pruned = image(case, &["prune", "--format", "json"])?.success()?.json()?;
    assert_eq!(pruned["unfinished"], 0, "{pruned}");
    image(case, &["check"])?.success()?;
    clear(case)
}

/// What is done on a disk of a few megabytes: an image comes and runs, others are too large for what is left, and the first is
/// still whole each time.
const FULL: &str = r#"
set -e
mount -t tmpfs -o size=12m,mode=0700 none "$STORE"
image() { "$FERRY" --store "$STORE" image "$@"; }
whole() { image check >/dev/null && test "$(image list -q)" = small:1; }
refused() { if "$@" 2>"$STORE.errors"; then echo "not refused: $*"; exit 1; fi; grep -q "ENOSPC" "$STORE.errors" || { cat "$STORE.errors"; exit 1; }; }
image import small >/dev/null
whole
refused image import large
whole
test -z "$(ls "$STORE/tmp")"
refused image import middle
whole
# Not a byte more: not even a name can be added, and none is lost.
dd if=/dev/zero of="$STORE/filler" bs=64k 2>/dev/null || true
dd if=/dev/zero of="$STORE/crumbs" bs=512 2>/dev/null || true
refused image tag small:1 other:1
whole
rm "$STORE/filler" "$STORE/crumbs"
image tag small:1 other:1
image remove other:1 >/dev/null
whole
image prune >/dev/null
whole
echo "nothing lost"
"#;

fn full_disk(case: &mut Case) -> Outcome {
    let noise = |size: usize| {
        let mut dice = Dice::new(size as u64);
        (0..size).map(|_| dice.roll(256) as u8).collect::<Vec<u8>>()
    };
    for (name, layers) in [
        ("small", vec![base(case)?]),
        // The blob alone is too large; the blob is not, and what is in it is.
        ("large", vec![Layer::new().file("noise", 0o644, &noise(16 << 20))?.finish()?]),
        ("middle", vec![base(case)?, Layer::new().file("zeros", 0o644, &vec![0; 16 << 20])?.finish()?]),
    ] {
        fixtures::layout(case.path(name).as_ref(), &format!("{name}:1"), &layers, &json!({"Cmd": ["/probe"]}))?;
    }
    let store = case.host_directory("store")?;
    let root = nix::unistd::geteuid().is_root();
    let mut shell = std::process::Command::new("unshare");
    shell.args(if root { &["--mount"][..] } else { &["--user", "--map-root-user", "--mount"] });
    shell.args(["sh", "-c", FULL]).current_dir(&case.directory);
    shell.env("STORE", store).env("FERRY", &case.stage.runtime.path);
    let end = case.finish(&mut shell)?;
    assert!(end.code == 0 && end.stdout.contains("nothing lost"), "{} {}", end.stdout, end.stderr);
    Ok(())
}

/// Who makes a layer's files, and who decompresses it, has given up before whatever that takes no part of.
fn jailed(case: &mut Case) -> Outcome {
    let layer = Layer::new().file("of-the-layer", 0o644, b"content")?.finish()?;
    fixtures::layout(case.path("jail").as_ref(), "jail:1", &[layer], &json!({"Cmd": ["/probe"]}))?;
    let (store, source, trace) = (case.path("store"), case.path("jail"), case.path("trace"));
    let ferry = case.command(&["--store", &store, "image", "import", &source]);
    let mut strace = std::process::Command::new("strace");
    strace.args(["-f", "-qq", "-o", &trace, "-e", "trace=openat,openat2,pwrite64,write,prctl,seccomp,/^landlock"]);
    strace.arg(ferry.get_program()).args(ferry.get_args());
    strace.envs(ferry.get_envs().filter_map(|(name, value)| Some((name, value?))));
    case.finish(&mut strace)?.success()?;
    let trace = fs::read_to_string(trace)?;
    let has_landlock =
        trace.lines().any(|line| line.contains("landlock_create_ruleset(NULL") && !line.contains(" = -1"));
    // The blob is packed: only who unpacks writes the content, and only who reads writes the blob.
    for (content, whose) in [("\"of-the-layer\"", "unpacks"), ("\"\\37\\213", "keeps")] {
        let done = trace.lines().position(|line| line.contains(content) && !line.contains("read("));
        let done = done.ok_or_else(|| format!("nobody {whose} the layer: {trace}"))?;
        let who = trace.lines().nth(done).and_then(|line| line.split_whitespace().next()).unwrap_or_default();
        let before: Vec<&str> = trace.lines().take(done).filter(|line| line.starts_with(who)).collect();
        let gave_up = |what: &str| before.iter().any(|line| line.contains(what) && line.ends_with(" = 0"));
        assert!(gave_up("SECCOMP"), "who {whose} has no filter: {before:?}");
        assert_eq!(gave_up("landlock_restrict_self"), has_landlock, "who {whose}: {before:?}");
    }
    Ok(())
}
