//! Entries of archives that mean harm: names, links and devices that lead elsewhere, headers and maps of holes that lie.
//! POSIX pax(1); GNU tar manual, "Basic Tar Format"

use std::path::Path;

use libtest_mimic::Failed;
use tar::EntryType;

use super::dice::Dice;
use super::hostile_archives::Make;
use crate::image_fixtures::Layer;

type Bytes = Result<Vec<u8>, Failed>;

/// What fits into a header's field for names.
fn fitting(text: &str) -> String {
    text.chars().take(90).collect()
}

/// Names that lead somewhere else, or nowhere.
pub fn names(outside: &Path) -> Vec<String> {
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

fn harmless(dice: &mut Dice) -> &'static str {
    dice.pick::<&str>(&HARMLESS)
}

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
pub fn any(make: &mut Make<'_>) -> Result<Vec<u8>, Failed> {
    let (names, dice) = (names(make.outside), &mut make.dice);
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
                    _ => dice.pick(&names).clone().into_bytes(),
                };
                records.push((*dice.pick(&KEYS), value));
            }
            let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (*key, value.as_slice())).collect();
            layer = layer.records(&records)?;
        }
        let mut name = || match dice.roll(3) {
            0 => dice.pick(&names).clone(),
            _ => harmless(dice).to_owned(),
        };
        let (name, link) = (name(), name());
        let (kind, mode, data) = (*dice.pick(&KINDS), dice.roll(0o10000) as u32, dice.bytes(600));
        layer = layer.entry(kind, &fitting(&name), mode, &fitting(&link), &data)?;
    }
    Ok(layer.finish()?)
}

/// What a header and the data of an entry are padded to. Bytes.
const BLOCK: usize = 512;

/// A header of which any field can be written, made of a good one.
fn raw(kind: u8, name: &str, link: &str, size: usize) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, &fitting(name));
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "14524545400\0");
    put(157, &fitting(link));
    put(257, "ustar  \0");
    header[156] = kind;
    header
}

/// Adds an entry whose header gets a right sum.
fn add(archive: &mut Vec<u8>, mut header: [u8; BLOCK], data: &[u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive.extend(header);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

fn ended(mut archive: Vec<u8>) -> Bytes {
    archive.resize(archive.len() + 2 * BLOCK, 0);
    Ok(archive)
}

/// Fields of a header, by offset and length: name, mode, uid, gid, size, mtime, type, link, magic, devmajor, devminor, prefix.
const FIELDS: [(usize, usize); 12] = [
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (257, 8),
    (329, 8),
    (337, 8),
    (345, 155),
];

/// What a field can hold that nobody expects: all ones, the largest and the least binary number, text, no digits, nothing.
fn odd(dice: &mut Dice, length: usize) -> Vec<u8> {
    let mut field = match dice.roll(7) {
        0 => vec![0xff; length],
        1 => [&[0x80][..], &[0xff; 200]].concat(),
        2 => [&[0x80][..], &[0; 200]].concat(),
        3 => vec![b'7'; length],
        4 => b"-0000001 99999999999".to_vec(),
        5 => "../".repeat(60).into_bytes(),
        _ => dice.bytes(length + 1),
    };
    field.resize(length, 0);
    field
}

/// Headers of which a field or two hold what nobody expects.
pub fn lying(make: &mut Make<'_>) -> Bytes {
    let dice = &mut make.dice;
    let mut archive = Vec::new();
    for _ in 0..1 + dice.roll(6) {
        let data = dice.bytes(900);
        let kind = *dice.pick(b"0000123456755VMLKSgx");
        let (name, link) = (harmless(dice), harmless(dice));
        let mut header = raw(kind, name, link, data.len());
        for _ in 0..dice.roll(3) {
            let (at, length) = *dice.pick(&FIELDS);
            header[at..at + length].copy_from_slice(&odd(dice, length));
        }
        add(&mut archive, header, &data);
    }
    ended(archive)
}

/// A number of a map of holes: small, large, or beyond everything.
fn number(dice: &mut Dice) -> u64 {
    match dice.roll(6) {
        0 => u64::MAX >> dice.roll(4),
        1 => 0,
        2 => 1 << dice.roll(34),
        _ => dice.roll(5000) as u64,
    }
}

/// The map that GNU tar's first format has in the header, with more of it in blocks that follow.
pub fn gnu_sparse(make: &mut Make<'_>) -> Bytes {
    let dice = &mut make.dice;
    let mut archive = Vec::new();
    for _ in 0..1 + dice.roll(3) {
        let data = dice.bytes(3000);
        let mut header = raw(b'S', harmless(dice), "", data.len());
        let octal = |number: u64| format!("{:011o}\0", number & 0o77_777_777_777).into_bytes();
        for part in 0..dice.roll(5) {
            let at = 386 + 24 * part;
            header[at..at + 12].copy_from_slice(&octal(number(dice)));
            header[at + 12..at + 24].copy_from_slice(&octal(number(dice)));
        }
        let more = dice.roll(3);
        header[482] = u8::from(more > 0);
        header[483..495].copy_from_slice(&octal(number(dice)));
        add(&mut archive, header, &[]);
        for left in (0..more).rev() {
            let mut block = [0; BLOCK];
            for part in 0..dice.roll(22) {
                block[24 * part..24 * part + 12].copy_from_slice(&octal(number(dice)));
                block[24 * part + 12..24 * part + 24].copy_from_slice(&octal(number(dice)));
            }
            // Now and then there is said to be one more than there is.
            block[504] = u8::from(left > 0 || dice.roll(8) == 0);
            archive.extend(block);
        }
        archive.extend(&data);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    ended(archive)
}

/// Maps of holes in PAX records, of all three formats.
pub fn pax_sparse(make: &mut Make<'_>) -> Bytes {
    let dice = &mut make.dice;
    let mut layer = Layer::new();
    for _ in 0..1 + dice.roll(4) {
        let mut records: Vec<(&str, Vec<u8>)> = Vec::new();
        let mut data = dice.bytes(2000);
        let parts: Vec<(u64, u64)> = (0..dice.roll(5)).map(|_| (number(dice), number(dice))).collect();
        let size = number(dice).to_string().into_bytes();
        match dice.roll(3) {
            0 => {
                records.push(("GNU.sparse.size", size));
                records.push(("GNU.sparse.numblocks", number(dice).to_string().into_bytes()));
                for (offset, length) in &parts {
                    records.push(("GNU.sparse.offset", offset.to_string().into_bytes()));
                    records.push(("GNU.sparse.numbytes", length.to_string().into_bytes()));
                }
            }
            1 => {
                let map: Vec<String> = parts.iter().map(|(offset, length)| format!("{offset},{length}")).collect();
                records.push(("GNU.sparse.size", size));
                records.push(("GNU.sparse.map", map.join(",").into_bytes()));
            }
            _ => {
                records.push(("GNU.sparse.major", b"1".to_vec()));
                records.push(("GNU.sparse.minor", b"0".to_vec()));
                records.push(("GNU.sparse.name", dice.pick(&names(make.outside)).clone().into_bytes()));
                records.push(("GNU.sparse.realsize", size));
                let said = if dice.roll(3) == 0 { number(dice) } else { parts.len() as u64 };
                let lines: Vec<String> = parts.iter().map(|(offset, length)| format!("{offset}\n{length}\n")).collect();
                let mut map = format!("{said}\n{}", lines.concat()).into_bytes();
                map.resize(map.len().next_multiple_of(BLOCK), 0);
                data = [map, data].concat();
            }
        }
        let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (*key, value.as_slice())).collect();
        layer = layer.records(&records)?.file(harmless(dice), 0o644, &data)?;
    }
    Ok(layer.finish()?)
}

/// Where a link can lead that is to lead out.
fn ways_out(dice: &mut Dice, outside: &Path) -> String {
    match dice.roll(6) {
        0 => "/".to_owned(),
        1 => "..".to_owned(),
        2 => "../../../../../../../../../..".to_owned(),
        3 => "/proc/self/root".to_owned(),
        4 => "/proc/self/cwd".to_owned(),
        _ => outside.display().to_string(),
    }
}

/// A link out, and every kind of entry through it: a link to a link, a hard link through a link, a directory in a link's place.
pub fn through_links(make: &mut Make<'_>) -> Bytes {
    let (lower, upper) = links_and_files(make)?;
    // One archive: the first without its end, and then the other.
    Ok([&lower[..lower.len() - 2 * BLOCK], &upper[..]].concat())
}

/// Links out; and, for another archive or behind them, entries that go through them.
pub fn links_and_files(make: &mut Make<'_>) -> Result<(Vec<u8>, Vec<u8>), Failed> {
    let (dice, outside) = (&mut make.dice, make.outside);
    let file = outside.display().to_string();
    let mut links = Layer::new().directory("dir/")?;
    for name in ["link", "dir/link", "second"] {
        let target = if name == "second" { "dir/link".to_owned() } else { ways_out(dice, outside) };
        links = links.link(name, &fitting(&target))?;
    }
    let mut entries = Layer::new();
    for _ in 0..1 + dice.roll(8) {
        let through = *dice.pick(&["link", "dir/link", "second", "link/link", "dir/../link", "second/."]);
        let rest = match dice.roll(4) {
            0 => file.trim_start_matches('/').to_owned(),
            1 => "canary".to_owned(),
            2 => format!("{}/canary", file.trim_start_matches('/')),
            _ => "new".to_owned(),
        };
        let path = fitting(&format!("{through}/{rest}"));
        entries = match dice.roll(8) {
            0 => entries.directory(&path)?,
            1 => entries.hard_link("taken", &path)?,
            2 => entries.hard_link(&path, "dir")?,
            3 => entries.file(&fitting(&format!("{through}/.wh.canary")), 0o644, b"")?,
            4 => entries.file(&fitting(&format!("{through}/.wh..wh..opq")), 0o644, b"")?,
            5 => entries.entry(EntryType::Symlink, &path, 0o777, "canary", b"")?,
            6 => entries.directory(through)?,
            _ => entries.file(&path, 0o4755, b"new")?,
        };
    }
    Ok((links.finish()?, entries.finish()?))
}

/// Whiteouts of what is there, of what is not, of the layer itself and of what is above it; as every kind of entry.
pub fn whiteouts(make: &mut Make<'_>) -> Bytes {
    let (dice, mut layer) = (&mut make.dice, Layer::new());
    let kinds = [EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link, EntryType::Char];
    for _ in 0..1 + dice.roll(12) {
        let above = *dice.pick(&["", "", "dir/", "a/b/", "link/", ".wh.a/", "dir/.wh.dir/", "../", "dir/../../"]);
        let name = *dice.pick(&[
            ".wh.",
            ".wh..",
            ".wh...",
            ".wh..wh..opq",
            ".wh..wh.plnk",
            ".wh..wh.aufs",
            ".wh.a",
            ".wh.dir",
            ".wh.file",
            ".wh.link",
            ".wh..wh.",
            ".wh./",
            ".wh.../x",
            ".wh..wh..opq/x",
            ".wh.dir/file",
            "dir",
            "dir/file",
            "a",
        ]);
        let data = if dice.roll(4) == 0 { dice.bytes(700) } else { Vec::new() };
        let kind = if dice.roll(3) == 0 { *dice.pick(&kinds) } else { EntryType::Regular };
        let data = if kind == EntryType::Regular { data } else { Vec::new() };
        layer = layer.entry(kind, &format!("{above}{name}"), 0o644, harmless(dice), &data)?;
    }
    Ok(layer.finish()?)
}

/// Devices with every number, overlay's own mark among them, and files in their place.
pub fn devices(make: &mut Make<'_>) -> Bytes {
    let dice = &mut make.dice;
    let mut archive = Vec::new();
    for _ in 0..1 + dice.roll(8) {
        let mut header = raw(*dice.pick(b"33446057"), harmless(dice), "a", 0);
        for at in [329, 337] {
            let field = match dice.roll(4) {
                0 => odd(dice, 8),
                _ => format!("{:07o}\0", dice.roll(300)).into_bytes(),
            };
            header[at..at + 8].copy_from_slice(&field);
        }
        header[100..107].copy_from_slice(format!("{:07o}", dice.roll(0o10000)).as_bytes());
        add(&mut archive, header, &[]);
    }
    ended(archive)
}

/// A name with `..` in it, as a header, a PAX record or a long name has it.
pub fn upwards(make: &mut Make<'_>) -> Bytes {
    let dice = &mut make.dice;
    let name = dice
        .pick(&["../new", "dir/../../new", "/../new", "dir/..", "..", "a/../../../../../../../../tmp/new"])
        .to_string();
    let layer = Layer::new().directory("dir/")?;
    let layer = match dice.roll(4) {
        0 => layer.records(&[("path", name.as_bytes())])?.file("fine", 0o644, b"new")?,
        1 => {
            let long = [name.as_bytes(), b"\0"].concat();
            layer.entry(EntryType::GNULongName, "././@LongLink", 0o644, "", &long)?.file("fine", 0o644, b"new")?
        }
        2 => layer.hard_link("fine", &name)?,
        _ => layer.file(&name, 0o644, b"new")?,
    };
    Ok(layer.finish()?)
}

/// A header with more attributes, a longer name or a longer map of holes than anybody has memory for; or one that only says so.
pub fn endless(make: &mut Make<'_>) -> Bytes {
    const LARGE: usize = 20 << 20;
    let dice = &mut make.dice;
    let kind = *dice.pick(b"xLK");
    let mut archive = Vec::new();
    let there = if dice.roll(4) == 0 { LARGE } else { dice.roll(4000) };
    let said = if there == LARGE { LARGE } else { 1 << (24 + dice.roll(8)) };
    add(&mut archive, raw(kind, "header", "", said), &vec![b'x'; there]);
    add(&mut archive, raw(b'0', "file", "", 1), b"x");
    ended(archive)
}

/// Files of many gigabytes, all of them holes; or headers that say so.
pub fn vast(make: &mut Make<'_>) -> Bytes {
    let dice = &mut make.dice;
    let size = 1_u64 << (21 + dice.roll(40));
    let text = size.to_string();
    let layer = match dice.roll(3) {
        0 => Layer::new()
            .records(&[("GNU.sparse.size", text.as_bytes()), ("GNU.sparse.map", b"0,1")])?
            .file("a", 0o644, b"x")?,
        1 => Layer::new().records(&[("size", text.as_bytes())])?.file("a", 0o644, b"x")?,
        _ => {
            let mut archive = Vec::new();
            add(&mut archive, raw(b'0', "a", "", (size as usize).min(0o77_777_777_777)), b"x");
            return ended(archive);
        }
    };
    Ok(layer.finish()?)
}

/// Entries for the archive of an image: its documents and blobs once more, as something else or somewhere else.
pub fn in_an_image(make: &mut Make<'_>) -> Bytes {
    let (dice, mut archive) = (&mut make.dice, Vec::new());
    for _ in 0..1 + dice.roll(4) {
        let name = *dice.pick(&[
            "index.json",
            "oci-layout",
            "blobs",
            "blobs/sha256",
            "./index.json",
            "../index.json",
            "a/../index.json",
            "manifest.json",
            "blobs/../../x",
            "blobs/sha256/0",
        ]);
        let link = match dice.roll(4) {
            0 => make.outside.join("canary").display().to_string(),
            1 => "index.json".to_owned(),
            2 => "../../../../../etc/passwd".to_owned(),
            _ => "blobs/sha256".to_owned(),
        };
        let kind = *dice.pick(b"0012357");
        let data = if kind == b'0' { dice.bytes(300) } else { Vec::new() };
        add(&mut archive, raw(kind, name, &link, data.len()), &data);
    }
    Ok(archive)
}
