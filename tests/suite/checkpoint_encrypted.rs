//! Archives that are encrypted to a recipient: only who has the key gets the container, and nobody gets half of it; and what `age`
//! makes of archives, ferry reads, as `age` reads ferry's.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use libtest_mimic::Failed;
use serde_json::json;

use super::case::Case;
use super::checkpoint::CRIU;
use super::checkpoint_archive::{counter, exported, imported, refused_with};
use super::need::Need::{self, Ferry, Tool};
use super::scenario::{Outcome, Scenario, scenario};

const AGE: &[Need] = &[CRIU[0], CRIU[1], CRIU[2], Tool("age"), Tool("age-keygen")];

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("an_encrypted_archive_comes_back_with_its_key_alone", CRIU, with_its_key),
    scenario("an_encrypted_archive_goes_to_many_and_through_pipes", CRIU, to_many),
    scenario("age_reads_archives_and_ferry_those_of_age", AGE, both_ways),
    scenario("keys_are_for_archives_alone", &[Ferry], for_archives),
];

/// A key in a file; answers the recipient and the file.
fn key(case: &Case, name: &str) -> Result<(String, String), Failed> {
    let (key, path) = (Identity::generate(), case.path(name));
    fs::write(&path, format!("# public key: {}\n{}\n", key.to_public(), key.to_string().expose_secret()))?;
    Ok((key.to_public().to_string(), path))
}

fn with_its_key(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let ((recipient, own), (_, other)) = (key(case, "own.key")?, key(case, "other.key")?);
    let archive = exported(case, &["--recipient", &recipient])?;
    let bytes = fs::read(&archive)?;
    assert!(bytes.starts_with(b"age-encryption.org/v1\n"));
    let zstd: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    assert!(!bytes.windows(4).take(1000).any(|window| window == zstd), "what is inside is to be seen");
    let said = case.call(&["checkpoint", "inspect", &archive])?.failure()?.stderr;
    assert!(said.contains("it is encrypted") && said.contains("--identity"), "{said}");
    let found = case.call(&["checkpoint", "inspect", "--identity", &own, "--format", "json", &archive])?;
    assert_eq!(found.success()?.json()?["id"], json!(case.id));
    for (flags, expected) in [
        (&[][..], "it is encrypted"),
        (&["--identity", &other], "it is encrypted to none of the keys in"),
        (&["--identity", "/nowhere/key"], "ENOENT"),
        (&["--identity", "/etc/hostname"], "line 1 is no key"),
    ] {
        let said = refused_with(case, &archive, flags)?;
        assert!(said.contains(expected), "{said}");
    }
    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    let cut = [bytes.len() - 1, bytes.len() / 2, 300, 30].map(|end| bytes[..end].to_vec());
    for bytes in cut.into_iter().chain([changed]) {
        fs::write(&archive, bytes)?;
        let said = refused_with(case, &archive, &["--identity", &own])?;
        assert!(said.contains("cut off") || said.contains("was changed"), "{said}");
    }
    fs::write(&archive, bytes)?;
    let lines = imported(case, &archive, &["--identity", &other, "--identity", &own])?;
    row.continued(lines)?;
    let archive = exported(case, &[])?;
    let said = refused_with(case, &archive, &["--identity", &own])?;
    assert!(said.contains("it is not encrypted"), "{said}");
    let lines = imported(case, &archive, &[])?;
    row.continued(lines)
}

fn to_many(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let ((first, _), (second, own), file) = (key(case, "1.key")?, key(case, "2.key")?, case.path("recipients"));
    fs::write(&file, format!("# who may\n{second}\n"))?;
    let id = case.id.clone();
    let mut command = case.command(&["checkpoint", "--export", "-", "--recipient", &first, "--recipient", &file, &id]);
    let made = command.stderr(Stdio::inherit()).output()?;
    assert!(made.status.success() && made.stdout.starts_with(b"age-encryption.org/v1\n"));
    let archive = case.path("piped");
    fs::write(&archive, made.stdout)?;
    let lines = imported(case, &archive, &["--identity", &own])?;
    row.continued(lines)
}

/// What a program makes of a file.
fn made_of(program: &mut Command, bytes: &[u8]) -> Result<Vec<u8>, Failed> {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().ok_or("no standard input")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes));
        child.wait_with_output()
    })?;
    assert!(output.status.success(), "{program:?}");
    Ok(output.stdout)
}

fn both_ways(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let own = case.path("key");
    let made = Command::new("age-keygen").args(["-o", &own]).output()?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let recipient = String::from_utf8(Command::new("age-keygen").args(["-y", &own]).output()?.stdout)?;
    let recipient = recipient.trim().to_owned();
    let archive = exported(case, &["--recipient", &recipient])?;
    let plain = made_of(Command::new("age").args(["--decrypt", "--identity", &own]), &fs::read(&archive)?)?;
    fs::write(&archive, &plain)?;
    let lines = imported(case, &archive, &[])?;
    row.continued(lines)?;
    let archive = exported(case, &[])?;
    let whole = fs::read(&archive)?;
    let bytes = made_of(Command::new("age").args(["--encrypt", "--armor", "--recipient", &recipient]), &whole)?;
    fs::write(&archive, bytes)?;
    let said = refused_with(case, &archive, &["--identity", &own])?;
    assert!(said.contains("in letters, as for the mail"), "{said}");
    let bytes = made_of(Command::new("age").args(["--encrypt", "--recipient", &recipient]), &whole)?;
    fs::write(&archive, bytes)?;
    let lines = imported(case, &archive, &["--identity", &own])?;
    row.continued(lines)
}

fn for_archives(case: &mut Case) -> Outcome {
    let (recipient, own) = key(case, "key")?;
    for (line, expected) in [
        (&["checkpoint", "--recipient", &recipient, "x"][..], "--recipient is for archives"),
        (&["checkpoint", "--identity", &own, "x"], "--identity is for archives"),
        (&["checkpoint", "--export", "x", "--identity", &own, "x"], "--identity is for inspect"),
        (&["checkpoint", "inspect", "--recipient", &recipient, "x"], "--recipient is for --export"),
        (&["restore", "--identity", &own, "x"], "--identity is for archives"),
        (&["checkpoint", "--export", "x", "--recipient", "age1x", "x"], "invalid value \"age1x\" for --recipient"),
        (&["checkpoint", "--export", "x", "--recipient", "/nowhere", "x"], "ENOENT"),
    ] {
        let said = case.call(line)?.failure()?.stderr;
        assert!(said.contains(expected), "{line:?}: {said}");
    }
    Ok(())
}
