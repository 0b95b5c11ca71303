//! Archives that mean harm or are broken, each made from a number: the same number makes the same archive. They go through a table of
//! kinds, so that every number of them has some of each.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;
use serde_json::{Value, json};
use tar::EntryType;

use super::case::{Case, remove_tree};
use super::dice::Dice;
use super::hostile_entries as entries;
use super::scenario::Outcome;
use crate::image_fixtures::{self as fixtures, Layer};

/// What must become of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Whether it is taken is of no matter.
    Either,
    /// It is refused.
    Refused,
}

/// What an archive is made with.
pub struct Make<'a> {
    /// The case it is for.
    pub case: &'a Case,
    /// What differs from one to the next.
    pub dice: Dice,
    /// A directory of the host that hostile names lead to.
    pub outside: &'a Path,
    /// Where it goes: a file or a directory.
    pub path: PathBuf,
}

type Kind = (&'static str, Fate, fn(&mut Make<'_>) -> Outcome);

/// All kinds.
const KINDS: &[Kind] = &[
    ("entries that lead elsewhere", Fate::Either, |make| make.root(entries::any)),
    ("entries of which bytes are others", Fate::Either, |make| make.root_broken(entries::any)),
    ("headers that lie, with right sums", Fate::Either, |make| make.root(entries::lying)),
    ("GNU's maps of holes that lie", Fate::Either, |make| make.root(entries::gnu_sparse)),
    ("PAX' maps of holes that lie", Fate::Either, |make| make.root(entries::pax_sparse)),
    ("links out, and files through them", Fate::Either, |make| make.root(entries::through_links)),
    ("links out in one layer, and files through them in the next", Fate::Either, links_across),
    ("whiteouts of everything", Fate::Either, whiteouts),
    ("devices and pipes", Fate::Either, |make| make.root(entries::devices)),
    ("names that lead up", Fate::Refused, |make| make.root(entries::upwards)),
    ("headers without an end", Fate::Refused, |make| make.root(entries::endless)),
    ("gzip of which bytes are others", Fate::Either, |make| packed_broken(make, fixtures::gzip)),
    ("zstd of which bytes are others", Fate::Either, |make| packed_broken(make, zstd)),
    ("gzip that ends too soon", Fate::Refused, |make| cut_off(make, fixtures::gzip)),
    ("zstd that ends too soon", Fate::Refused, |make| cut_off(make, zstd)),
    ("gzip that never seems to end", Fate::Refused, |make| bomb(make, fixtures::gzip)),
    ("zstd that never seems to end", Fate::Refused, |make| bomb(make, zstd)),
    ("files that are large and empty", Fate::Refused, |make| make.root(entries::vast)),
    ("digests that are another's", Fate::Refused, digests),
    ("sizes that are another's", Fate::Refused, sizes),
    ("indexes that contain themselves", Fate::Refused, cycle),
    ("indexes that are nested", Fate::Refused, nested),
    ("layouts of which a document is another", Fate::Either, layout),
    ("archives of layouts of which bytes are others", Fate::Either, |make| layout_archive(make, true)),
    ("archives of layouts with more in them", Fate::Either, |make| layout_archive(make, false)),
    ("docker archives of which a document is another", Fate::Either, docker),
];

/// How many kinds there are.
pub const fn kinds() -> usize {
    KINDS.len()
}

/// Makes the archive with this number: its kind and what must become of it.
pub fn make(case: &Case, number: u64, outside: &Path) -> Result<(&'static str, Fate, PathBuf), Failed> {
    let (name, fate, make) = KINDS[number as usize % KINDS.len()];
    let mut making = Make { case, dice: Dice::new(number), outside, path: PathBuf::from(case.path("source")) };
    make(&mut making)?;
    Ok((name, fate, making.path))
}

impl Make<'_> {
    /// A root filesystem, packed or not.
    fn root(&mut self, archive: fn(&mut Self) -> Result<Vec<u8>, Failed>) -> Outcome {
        let whole = archive(self)?;
        self.save(whole)
    }

    fn root_broken(&mut self, archive: fn(&mut Self) -> Result<Vec<u8>, Failed>) -> Outcome {
        let whole = archive(self)?;
        let bytes = broken(&mut self.dice, whole);
        self.save(bytes)
    }

    fn save(&mut self, archive: Vec<u8>) -> Outcome {
        let bytes = match self.dice.roll(3) {
            0 => fixtures::gzip(&archive)?,
            1 => zstd(&archive)?,
            _ => archive,
        };
        Ok(fs::write(&self.path, bytes)?)
    }

    /// A layout of these layers; what was wrong with one of them stands in its blob.
    fn layers(&self, layers: &[Vec<u8>]) -> Outcome {
        Ok(fixtures::layout(&self.path, "test:latest", layers, &json!({"Cmd": ["/probe"]}))?)
    }
}

fn zstd(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::encode_all(bytes, 1)
}

type Pack = fn(&[u8]) -> std::io::Result<Vec<u8>>;

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

fn links_across(make: &mut Make<'_>) -> Outcome {
    let (lower, upper) = entries::links_and_files(make)?;
    make.layers(&[lower, upper])
}

fn whiteouts(make: &mut Make<'_>) -> Outcome {
    let (lower, upper) = (entries::any(make)?, entries::whiteouts(make)?);
    if make.dice.roll(2) == 0 { make.save(upper) } else { make.layers(&[lower, upper]) }
}

fn packed_broken(make: &mut Make<'_>, pack: Pack) -> Outcome {
    let whole = pack(&entries::any(make)?)?;
    Ok(fs::write(&make.path, broken(&mut make.dice, whole))?)
}

/// As a file, and as a blob whose digest is right.
fn cut_off(make: &mut Make<'_>, pack: Pack) -> Outcome {
    let noise = make.dice.bytes(3000);
    let archive = Layer::new().directory("dir/")?.file("dir/file", 0o644, &[&noise[..], &[7; 2000]].concat())?;
    let mut bytes = pack(&archive.finish()?)?;
    // Not in what may follow the archive's end.
    bytes.truncate(1 + make.dice.roll(bytes.len() / 2));
    if make.dice.roll(2) == 0 { Ok(fs::write(&make.path, bytes)?) } else { of_blob(make, &bytes) }
}

/// A layout with one layer, whose blob is this.
fn of_blob(make: &Make<'_>, blob: &[u8]) -> Outcome {
    let path = &make.path;
    let config = fixtures::config(&[blob.to_vec()], &json!({}));
    let config = fixtures::blob(path, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
    let layer = fixtures::blob(path, "application/vnd.oci.image.layer.v1.tar+gzip", blob)?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let mut entry =
        fixtures::blob(path, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())?;
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "test:latest"});
    Ok(fixtures::index(path, &[entry])?)
}

/// Megabytes of nothing in a few hundred bytes: as one file, as many that are small, or behind the last of them.
fn bomb(make: &mut Make<'_>, pack: Pack) -> Outcome {
    const LARGE: usize = 40 << 20;
    let archive = match make.dice.roll(3) {
        0 => Layer::new().file("zeros", 0o644, &vec![0; LARGE])?.finish()?,
        1 => {
            let zeros = vec![0; 200_000];
            let files =
                (0..200).try_fold(Layer::new(), |layer, number| layer.file(&format!("zeros-{number}"), 0o644, &zeros));
            files?.finish()?
        }
        _ => [Layer::new().file("file", 0o644, b"x")?.finish()?, vec![0; LARGE]].concat(),
    };
    Ok(fs::write(&make.path, pack(&archive)?)?)
}

/// A good layout to be spoiled; its blobs, the larger the more often.
fn good(make: &mut Make<'_>) -> Result<PathBuf, Failed> {
    let layer = Layer::new().file("file", 0o644, &make.dice.bytes(3000))?;
    make.layers(&[layer.finish()?, Layer::new().file("other", 0o644, b"x")?.finish()?])?;
    let mut blobs: Vec<PathBuf> = fs::read_dir(make.path.join("blobs/sha256"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    blobs.sort();
    Ok(make.dice.pick(&blobs).clone())
}

/// One byte of a blob is another, which no size tells.
fn digests(make: &mut Make<'_>) -> Outcome {
    let blob = good(make)?;
    let mut bytes = fs::read(&blob)?;
    let at = make.dice.roll(bytes.len());
    bytes[at] ^= 1 << make.dice.roll(8);
    Ok(fs::write(blob, bytes)?)
}

fn sizes(make: &mut Make<'_>) -> Outcome {
    let blob = good(make)?;
    let mut bytes = fs::read(&blob)?;
    match make.dice.roll(3) {
        0 => bytes.truncate(make.dice.roll(bytes.len())),
        1 => bytes.push(b' '),
        _ => bytes.extend(vec![0; 1 + make.dice.roll(100_000)]),
    }
    Ok(fs::write(blob, bytes)?)
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// No index can have its own digest in it: this one says so all the same, alone or by way of another.
fn cycle(make: &mut Make<'_>) -> Outcome {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let first = make.path.join("blobs/sha256").join("ab".repeat(32));
    let text = |size: usize| {
        let entry = json!({"mediaType": INDEX, "digest": digest, "size": size});
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string()
    };
    let size = text(100).len();
    let own = text(size);
    let entry = match make.dice.roll(2) {
        0 => json!({"mediaType": INDEX, "digest": digest, "size": size}),
        _ => fixtures::blob(&make.path, INDEX, own.as_bytes())?,
    };
    fixtures::index(&make.path, &[entry])?;
    Ok(fs::write(first, own)?)
}

/// Deeper than anybody's, or wider.
fn nested(make: &mut Make<'_>) -> Outcome {
    let path = make.path.clone();
    let mut entry = fixtures::manifest(&path, &[Layer::new().finish()?], &json!({}))?;
    let (levels, width) =
        if make.dice.roll(2) == 0 { (9 + make.dice.roll(100), 1) } else { (4, 8 + make.dice.roll(8)) };
    for _ in 0..levels {
        let manifests: Vec<&Value> = vec![&entry; width];
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        entry = fixtures::blob(&path, INDEX, index.to_string().as_bytes())?;
    }
    Ok(fixtures::index(&path, &[entry])?)
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
        7 => json!(INDEX),
        _ => json!([]),
    };
}

/// A layout of which a document was changed; digests fit as often as not.
fn layout(make: &mut Make<'_>) -> Outcome {
    let layers = match make.dice.roll(2) {
        0 => vec![entries::any(make)?, entries::any(make)?],
        _ => vec![super::image::base(make.case)?, entries::any(make)?],
    };
    let (dice, path) = (&mut make.dice, &make.path);
    let mut config = fixtures::config(&layers, &json!({"Cmd": ["/probe"]}));
    if dice.roll(3) == 0 {
        changed(dice, &mut config);
    }
    let config = fixtures::blob(path, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
    let mut described = Vec::new();
    for layer in &layers {
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

/// An archive of a good layout: with changed bytes, or with entries that have its documents and blobs elsewhere.
fn layout_archive(make: &mut Make<'_>, bytes: bool) -> Outcome {
    good(make)?;
    let archive = make.path.with_extension("tar");
    fixtures::archive(&make.path, &archive)?;
    remove_tree(&make.path)?;
    make.path = archive;
    let whole = fs::read(&make.path)?;
    let hostile = if bytes {
        broken(&mut make.dice, whole)
    } else {
        // Both ends count: an archive has no list of what is in it, and the last of one name is the one that holds.
        let more = entries::in_an_image(make)?;
        let end = whole.len() - 1024;
        if make.dice.roll(2) == 0 {
            [&more[..], &whole[..]].concat()
        } else {
            [&whole[..end], &more, &whole[end..]].concat()
        }
    };
    Ok(fs::write(&make.path, hostile)?)
}

fn docker(make: &mut Make<'_>) -> Outcome {
    let layer = entries::any(make)?;
    let config = fixtures::config(std::slice::from_ref(&layer), &json!({"Cmd": ["/probe"]}));
    let mut rows = json!([{"Config": "config.json", "RepoTags": ["test:latest"], "Layers": ["one/layer.tar"]}]);
    let (mut named, mut kind) = ("one/layer.tar".to_owned(), EntryType::Regular);
    match make.dice.roll(4) {
        0 => rows[0]["Layers"] = json!([make.dice.pick(&entries::names(make.outside)).clone()]),
        1 => (named, kind) = ("../one/layer.tar".to_owned(), EntryType::Regular),
        2 => kind = *make.dice.pick(&[EntryType::Symlink, EntryType::Link, EntryType::Directory, EntryType::Fifo]),
        _ => changed(&mut make.dice, &mut rows),
    }
    let (data, link) = match kind {
        EntryType::Regular => (layer.as_slice(), ""),
        _ => (&b""[..], "../../../../etc/passwd"),
    };
    let archive = Layer::new().entry(kind, &named, 0o644, link, data)?;
    let archive = archive.file("config.json", 0o644, config.to_string().as_bytes())?;
    let archive = archive.file("manifest.json", 0o644, rows.to_string().as_bytes())?.finish()?;
    let mut file = fs::File::create(&make.path)?;
    Ok(file.write_all(&archive)?)
}
