//! `tls://`: a migration between ends that show each other certificates, and who has none that is believed.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use libtest_mimic::Failed;

use super::case::{Case, marked_processes};
use super::migrate::{followed, gone, settled};
use super::need::Need::{Criu, Ferry, Root, Tool};
use super::output::{self, Lines};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};

const OPENSSL: super::need::Need = Tool("openssl");

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("a_container_goes_to_who_is_known", &[Ferry, Root, Criu, OPENSSL], carried),
    scenario("who_is_not_known_gets_nothing", &[Ferry, Root, Criu, OPENSSL], strangers),
    scenario("who_says_nothing_keeps_nobody_waiting", &[Ferry, OPENSSL], silent),
    scenario("what_speaks_tls_is_in_a_jail", &[Ferry, OPENSSL], jailed),
    scenario("what_is_missing_is_named", &[Ferry, OPENSSL], missing),
];

fn openssl(args: &[&str]) -> Outcome {
    let made = Command::new("openssl").args(args).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    if made.status.success() { Ok(()) } else { Err(format!("openssl {args:?}: {said}").into()) }
}

/// An authority's key and certificate, in a directory of its own.
fn authority(case: &Case, name: &str) -> Result<String, Failed> {
    let directory = case.host_directory(name)?.display().to_string();
    let [key, certificate] = ["ca.key", "ca.pem"].map(|file| format!("{directory}/{file}"));
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let subject = format!("/CN={name}");
    let rest = ["-keyout", &key, "-out", &certificate, "-subj", &subject, "-days", "2"];
    openssl(&[&["req", "-x509"], &curve[..], &rest].concat())?;
    Ok(directory)
}

/// A directory for `--tls`: a certificate by this authority for `names`, and belief in that authority.
fn identity(case: &Case, name: &str, authority: &str, names: &str) -> Result<String, Failed> {
    let directory = case.host_directory(name)?.display().to_string();
    let file = |name: &str| format!("{directory}/{name}");
    let (key, request, extensions) = (file("key.pem"), file("request"), file("extensions"));
    fs::write(&extensions, format!("subjectAltName={names}\n"))?;
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    openssl(&[&["req"], &curve[..], &["-keyout", &key, "-out", &request, "-subj", "/CN=pier"]].concat())?;
    let (ca, ca_key) = (format!("{authority}/ca.pem"), format!("{authority}/ca.key"));
    let by = ["-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-days", "2"];
    let from = ["-in", &request, "-extfile", &extensions, "-out", &file("cert.pem")];
    openssl(&[&["x509", "-req"], &by[..], &from].concat())?;
    fs::copy(&ca, file("ca.pem"))?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    Ok(directory)
}

const HERE: &str = "IP:127.0.0.1,DNS:localhost";

/// One that listens: its process, what it says, and where it is.
fn listen(case: &mut Case, tls: &str, once: &[&str]) -> Result<(Child, Lines, String), Failed> {
    let (store, output) = (case.path("store"), case.path("output"));
    let words = ["--store", &store, "receive", "--listen", "127.0.0.1:0", "--tls", tls, "--output", &output];
    let (receiver, mut told) = case.spawn(&[&words[..], once].concat())?;
    let address = told.until("listening at")?.trim_start_matches("listening at ").to_owned();
    Ok((receiver, told, address))
}

fn end(receiver: &mut Child, case: &Case) -> Result<i32, Failed> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(receiver.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    Ok(output::code(output::wait(receiver, case.patience())?))
}

fn counter(case: &mut Case) -> Result<Row, Failed> {
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(5)?;
    Ok(row)
}

fn carried(case: &mut Case) -> Outcome {
    let authority = authority(case, "authority")?;
    let (ours, theirs) = (identity(case, "ours", &authority, "DNS:a")?, identity(case, "theirs", &authority, HERE)?);
    let mut row = counter(case)?;
    let (mut receiver, mut told, address) = listen(case, &theirs, &["--once"])?;
    let (id, there, store) = (case.id.clone(), case.other_id(), case.path("store"));
    let to = format!("tls://{address}");
    let words = ["--store", &store, "migrate", "--as", &there, "--tls", &ours, "--max-rounds", "2", &id, &to];
    let said = case.call(&words)?.success()?.stdout;
    assert!(said.contains(&format!("{id} runs at ")), "{said}");
    told.until(&format!("{there} runs here"))?;
    assert_eq!(output::code(output::wait(&mut receiver, case.patience())?), 0);
    gone(case, &id)?;
    let lines = followed(case, &format!("output/{there}.stdout"))?;
    row.continued(lines)?;
    settled(case)
}

/// Certificates of another authority, of another name, and none at all; then somebody who is known, to the same end.
fn strangers(case: &mut Case) -> Outcome {
    let (authority, other) = (authority(case, "authority")?, authority(case, "another")?);
    let ours = identity(case, "ours", &authority, "DNS:a")?;
    let stranger = identity(case, "stranger", &other, HERE)?;
    // They believe us, and are not believed.
    fs::copy(format!("{authority}/ca.pem"), format!("{stranger}/ca.pem"))?;
    let theirs = identity(case, "theirs", &authority, HERE)?;
    let elsewhere = identity(case, "elsewhere", &authority, "DNS:elsewhere.example")?;
    let mut row = counter(case)?;
    let (id, there, store) = (case.id.clone(), case.other_id(), case.path("store"));
    let migrate = |case: &mut Case, tls: &str, to: &str| {
        case.call(&["--store", &store, "migrate", "--as", &there, "--timeout", "30s", "--tls", tls, &id, to])
    };
    for (listener, caller, said) in [
        (&theirs, &stranger, "fatal alert"),
        (&stranger, &ours, "invalid peer certificate: UnknownIssuer"),
        (&elsewhere, &ours, "not valid for name"),
    ] {
        let (mut receiver, _, address) = listen(case, listener, &[])?;
        let answer = migrate(case, caller, &format!("tls://{address}"))?.failure()?;
        assert!(answer.stderr.contains(said), "{said}: {}", answer.stderr);
        assert_eq!(case.state()?["status"], "running");
        end(&mut receiver, case)?;
    }
    let (mut receiver, _, address) = listen(case, &theirs, &["--once"])?;
    // Words in the clear, and such as are no TLS at all, are heard by nobody.
    let answer = migrate(case, &ours, &format!("tcp://{address}"))?.failure()?;
    assert!(answer.stderr.contains("ferry's protocol") || answer.stderr.contains("cut"), "{}", answer.stderr);
    TcpStream::connect(&address)?.write_all(&[0x16, 3, 3, 0xff, 0xff, 1, 2, 3])?;
    assert_eq!(case.state()?["status"], "running");
    // Neither was the one connection that it waits for.
    migrate(case, &ours, &format!("tls://{address}"))?.success()?;
    assert_eq!(output::code(output::wait(&mut receiver, case.patience())?), 0);
    let lines = followed(case, &format!("output/{there}.stdout"))?;
    row.continued(lines)?;
    settled(case)
}

/// Many connections on which nothing is said, and one that is known gets an answer meanwhile.
fn silent(case: &mut Case) -> Outcome {
    let authority = authority(case, "authority")?;
    let (ours, theirs) = (identity(case, "ours", &authority, "DNS:a")?, identity(case, "theirs", &authority, HERE)?);
    let (mut receiver, _, address) = listen(case, &theirs, &[])?;
    let silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(&address)).collect::<Result<_, _>>()?;
    let file = |name: &str| format!("{ours}/{name}");
    let mut known = Command::new("openssl");
    known.args(["s_client", "-quiet", "-verify_return_error", "-connect", &address, "-CAfile", &file("ca.pem")]);
    known.args(["-cert", &file("cert.pem"), "-key", &file("key.pem")]);
    let mut known = known.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut welcome = [0];
    let stream = known.stdout.as_mut().ok_or("no stream")?;
    std::io::Read::read_exact(stream, &mut welcome)?;
    assert_eq!(&welcome, b"f");
    drop(silent);
    known.kill()?;
    known.wait()?;
    assert_eq!(end(&mut receiver, case)?, 1);
    // Who spoke for those that have hung up ends by itself, and need not have done so by now.
    marked_processes(&case.directory).into_iter().try_for_each(|pid| case.wait_for(pid))?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// The processes that this one has begun.
fn children(pid: u32) -> Result<Vec<u32>, Failed> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}

fn jailed(case: &mut Case) -> Outcome {
    let authority = authority(case, "authority")?;
    let theirs = identity(case, "theirs", &authority, HERE)?;
    let (mut receiver, _, address) = listen(case, &theirs, &[])?;
    let silent = TcpStream::connect(&address)?;
    let field = |pid: u32, name: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t").map(str::to_owned))
    };
    let confined = |pid: &u32| field(*pid, "Seccomp").is_some_and(|mode| mode == "2");
    let until = std::time::Instant::now() + case.patience();
    let speaker = loop {
        if let Some(found) = children(receiver.id())?.into_iter().find(confined) {
            break found;
        }
        assert!(std::time::Instant::now() < until, "nobody in a jail speaks TLS");
        std::thread::yield_now();
    };
    assert_eq!(field(speaker, "NoNewPrivs").as_deref(), Some("1"));
    // Beyond the standard streams it has its two ends, and what it tells ferry by.
    let open = fs::read_dir(format!("/proc/{speaker}/fd"))?.flatten().map(|entry| entry.path());
    let open = open.filter(|path| !["0", "1", "2"].iter().any(|number| path.ends_with(number)));
    let open = open.map(|path| fs::read_link(path).unwrap_or_default().display().to_string());
    let mut kinds: Vec<String> = open.map(|name| name.split(':').next().unwrap_or_default().to_owned()).collect();
    kinds.sort();
    assert_eq!(kinds, ["pipe", "socket", "socket"]);
    drop(silent);
    assert_eq!(end(&mut receiver, case)?, 1);
    Ok(())
}

fn missing(case: &mut Case) -> Outcome {
    let authority = authority(case, "authority")?;
    let (theirs, other) = (identity(case, "theirs", &authority, HERE)?, identity(case, "other", &authority, HERE)?);
    let mut refused = |said: &str| -> Outcome {
        let end = case.call(&["receive", "--listen", "127.0.0.1:0", "--once", "--tls", &theirs])?.failure()?;
        assert!(end.stderr.contains(said), "{said}: {}", end.stderr);
        Ok(())
    };
    let file = |name: &str| format!("{theirs}/{name}");
    fs::set_permissions(file("key.pem"), fs::Permissions::from_mode(0o640))?;
    refused("its mode is 0640: others may read it (hint: chmod 600")?;
    fs::set_permissions(file("key.pem"), fs::Permissions::from_mode(0o600))?;
    let key = fs::read(file("key.pem"))?;
    fs::write(file("key.pem"), "no key")?;
    refused("key.pem")?;
    fs::write(file("key.pem"), fs::read(format!("{other}/key.pem"))?)?;
    fs::write(file("ca.pem"), "")?;
    refused("it holds no certificate in PEM form")?;
    fs::remove_file(file("cert.pem"))?;
    fs::copy(format!("{other}/ca.pem"), file("ca.pem"))?;
    refused("a directory for TLS has ca.pem")?;
    fs::write(file("key.pem"), key)?;
    Ok(())
}
