//! What the program prints, logs and answers before any container is touched.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn ferry(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferry")).args(args).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A directory of one test, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ferry-cli-{test}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn the_version_is_on_standard_output_alone() {
    for flag in ["--version", "-v", "-version"] {
        let output = ferry(&[flag]);
        assert!(output.status.success() && output.stderr.is_empty());
        assert!(stdout(&output).starts_with("ferry version ") && stdout(&output).ends_with("\nspec: 1.3.0\n"));
    }
}

#[test]
fn help_that_was_asked_for_is_no_failure() {
    for args in [&["help"][..], &["--help"], &[], &["exec", "--help"], &["help", "exec"], &["exec", "-help"]] {
        let output = ferry(args);
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}");
        assert!(stdout(&output).contains("\nUsage: ferry "), "{args:?}");
    }
    assert_eq!(ferry(&["help", "exec"]).stdout, ferry(&["exec", "--help"]).stdout);
}

#[test]
fn a_wrong_command_line_is_one_line_on_standard_error_and_exit_code_1() {
    for (args, said) in [
        (&["delet", "c"][..], "ferry: unknown command \"delet\" (hint: did you mean `ferry delete`? "),
        (&["--frob", "list"], "ferry: flag provided but not defined: --frob (hint: `ferry help` shows the usage)"),
        (&["kill", "c", "-9"], "ferry: flag provided but not defined: -9 (hint: `ferry kill --help` shows the usage)"),
        (&["state"], "ferry: \"state\" requires exactly 1 argument(s) (hint: "),
        (&["exec"], "ferry: \"exec\" requires a minimum of 1 argument(s) (hint: "),
        (&["kill", "c", "NOPE"], "ferry: unknown signal \"NOPE\" (hint: "),
        (&["--root", "/", "list"], "ferry: --root must not be / (hint: "),
        (&["--root", "/nonexistent", "list"], "ferry: cannot read --root /nonexistent: ENOENT: "),
    ] {
        let output = ferry(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stdout.is_empty() && stderr(&output).starts_with(said), "{args:?}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{args:?}");
    }
}

#[test]
fn exec_that_runs_nothing_answers_255() {
    let output = ferry(&["exec", "--user", "root", "c", "sh"]);
    assert_eq!(output.status.code(), Some(255));
    assert!(stderr(&output).starts_with("ferry: \"root\" is not a user id (hint: "), "{}", stderr(&output));
}

#[test]
fn an_error_is_in_the_log_too_in_the_form_engines_read() {
    let scratch = Scratch::new("log");
    let log = scratch.path("log.json");
    for _ in 0..2 {
        let output = ferry(&["--log", &log, "--log-format", "json", "kill", "c", "NOPE"]);
        assert!(stderr(&output).starts_with("ferry: unknown signal \"NOPE\""), "{}", stderr(&output));
    }
    let text = fs::read_to_string(&log).unwrap();
    assert_eq!(text.lines().count(), 2, "a log is appended to: {text}");
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["level"], "error");
        assert!(line["msg"].as_str().unwrap().starts_with("unknown signal \"NOPE\""), "{line}");
        assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
    }
}

#[test]
fn without_a_log_json_goes_to_standard_error_alone() {
    let output = ferry(&["--log-format=json", "kill", "c", "NOPE"]);
    let line: Value = serde_json::from_str(stderr(&output)).unwrap();
    assert_eq!(line["level"], "error");
}

#[test]
fn spec_writes_a_configuration_once() {
    let scratch = Scratch::new("spec");
    let (bundle, config) = (scratch.path(""), scratch.path("config.json"));
    assert!(ferry(&["spec", "--bundle", &bundle]).status.success());
    let text = fs::read_to_string(&config).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["process"]["args"][0], "sh");
    let again = ferry(&["spec", "--rootless", "-b", &bundle]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("config.json is there already (hint: "), "{}", stderr(&again));
    assert_eq!(fs::read_to_string(&config).unwrap(), text);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ferry"))
        .arg("help")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success() && said.is_empty(), "{said}");
}

#[test]
fn standard_output_that_is_full_is_a_failure() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ferry")).arg("help").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("ferry: cannot write to standard output: ENOSPC: "), "{}", stderr(&output));
}
