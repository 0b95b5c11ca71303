//! `completion`: what a shell that has read the script offers, asked of the shell itself.

use std::fs;
use std::process::Command;

use libtest_mimic::Failed;

use super::case::Case;
use super::need::Need::{Ferry, Tool};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("bash_offers_commands_flags_and_values", &[Ferry, Tool("bash")], bash),
    scenario("bash_offers_ids_of_containers", &[Ferry, Tool("bash")], bash_ids),
    scenario("bash_offers_files_and_directories", &[Ferry, Tool("bash")], bash_files),
    scenario("fish_offers_commands_flags_and_ids", &[Ferry, Tool("fish")], fish),
    scenario("zsh_offers_commands_flags_and_ids", &[Ferry, Tool("zsh")], zsh),
    scenario("another_shell_is_refused", &[Ferry], another),
];

/// The script of a shell, in a file.
fn script(case: &mut Case, shell: &str) -> Result<String, Failed> {
    let text = case.call(&["completion", shell])?.success()?.stdout;
    let path = case.path(&format!("completion.{shell}"));
    fs::write(&path, text)?;
    Ok(path)
}

/// What bash offers for the last of the words.
fn offered_by_bash(case: &mut Case, words: &[&str]) -> Result<Vec<String>, Failed> {
    let path = script(case, "bash")?;
    let driver = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _ferry; \
                  complete -p ferry >/dev/null && printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", driver, "driver", &path]).arg(&case.stage.runtime.path).args(words);
    let end = case.finish(&mut command)?.success()?;
    assert_eq!(end.stderr, "", "{words:?}");
    Ok(end.stdout.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn bash(case: &mut Case) -> Outcome {
    for (words, expected) in [
        (&["st"][..], &["start", "state", "stats"][..]),
        (&["--root", "/x", "del"], &["delete"]),
        (&["--root", "=", "/x", "--debug", "compl"], &["completion"]),
        (&["help", "expl"], &["explain"]),
        (&["--cgroup-m"], &["--cgroup-manager"]),
        (&["--log-format", ""], &["text", "json"]),
        (&["--log-format", "=", "j"], &["json"]),
        (&["list", "--format", "t"], &["table"]),
        (&["list", "-f", "j"], &["json"]),
        (&["list", "-format", "j"], &["json"]),
        (&["delete", "--fo"], &["--force"]),
        (&["delete", "--force", "--re"], &["--regex"]),
        (&["exec", "--ignore"], &["--ignore-paused"]),
        (&["update", "--cpu-idle", ""], &["0", "1"]),
        (&["update", "--kernel"], &[]),
        (&["mounts", ""], &["add", "remove"]),
        (&["completion", "z"], &["zsh"]),
        (&["image", "p"], &["pull", "prune"]),
        (&["--debug", "snapshot", "ro"], &["rollback"]),
        (&["bundle", ""], &["create"]),
        (&["image", "--"], &["--help"]),
        (&["image", "pull", "--prog"], &["--progress"]),
        (&["image", "pull", "--progress", ""], &["auto", "json", "none"]),
        (&["install", "--engine", ""], &["containerd", "docker", "podman"]),
        (&["migrate", "--mode", "p"], &["pre-copy", "post-copy"]),
        (&["checkpoint", "--network-lock", "s"], &["skip"]),
        (&["checkpoint", "--manage-cgroups-mode", "s"], &["soft", "strict"]),
        (&["checkpoint", "insp"], &["inspect"]),
        // Behind exec's id everything is the command's own.
        (&["exec", "web", "ls", "--"], &[]),
        // The value of a flag, of which nobody knows anything.
        (&["kill", "--regex", "a", "b", ""], &[]),
    ] {
        assert_eq!(offered_by_bash(case, words)?, expected, "{words:?}");
    }
    Ok(())
}

fn bash_ids(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (root, id) = (case.state_root().display().to_string(), case.id.clone());
    for words in [
        &["state", ""][..],
        &["image", "diff", ""],
        &["snapshot", "list", ""],
        &["delete", "--force", ""],
        &["exec", "-t", ""],
        &["mounts", "add", ""],
    ] {
        let line = [&["--root", &root], words].concat();
        assert_eq!(offered_by_bash(case, &line)?, [id.as_str()], "{words:?}");
    }
    // A new container's id is nobody's yet.
    assert_eq!(offered_by_bash(case, &["--root", &root, "run", ""])?, Vec::<String>::new());
    Ok(())
}

fn bash_files(case: &mut Case) -> Outcome {
    let place = case.host_directory("place")?;
    fs::create_dir(place.join("a folder"))?;
    fs::write(place.join("afile"), "")?;
    let beginning = format!("{}/a", place.display());
    let (folder, file) = (format!("{}/a folder", place.display()), format!("{}/afile", place.display()));
    let mut files = offered_by_bash(case, &["exec", "--process", &beginning])?;
    files.sort_unstable();
    assert_eq!(files, [folder.as_str(), &file]);
    assert_eq!(offered_by_bash(case, &["run", "--bundle", &beginning])?, [folder.as_str()]);
    assert_eq!(offered_by_bash(case, &["run", "-b", &beginning])?, [folder.as_str()]);
    for words in [&["checkpoint", "inspect", &beginning][..], &["checkpoint", "--recipient", &beginning]] {
        let mut files = offered_by_bash(case, words)?;
        files.sort_unstable();
        assert_eq!(files, [folder.as_str(), &file], "{words:?}");
    }
    assert_eq!(offered_by_bash(case, &["bundle", "create", "--image", "alpine", &beginning])?, [folder.as_str()]);
    assert_eq!(offered_by_bash(case, &["image", "mount", "alpine", &beginning])?, [folder.as_str()]);
    assert_eq!(offered_by_bash(case, &["--root", "=", &beginning])?, [folder]);
    Ok(())
}

/// `ferry` as a shell finds it: by name.
fn on_path(case: &Case) -> Result<String, Failed> {
    let folder = case.directory.join("path");
    if !folder.exists() {
        fs::create_dir(&folder)?;
        std::os::unix::fs::symlink(&case.stage.runtime.path, folder.join("ferry"))?;
    }
    Ok(format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default()))
}

fn fish(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (path, root, id) = (script(case, "fish")?, case.state_root().display().to_string(), case.id.clone());
    let offered = |case: &mut Case, line: &str| -> Result<Vec<String>, Failed> {
        let mut command = Command::new("fish");
        command.args(["--no-config", "-c", &format!("source {path}; complete -C '{line}'")]);
        command.env("PATH", on_path(case)?).env("HOME", &case.directory);
        let end = case.finish(&mut command)?.success()?;
        assert_eq!(end.stderr, "", "{line}");
        Ok(end.stdout.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect())
    };
    for (line, expected) in [
        ("ferry st", &["start", "state", "stats"][..]),
        ("ferry --root /x del", &["delete"]),
        ("ferry list --format ", &["json", "table"]),
        ("ferry delete --fo", &["--force"]),
        ("ferry completion z", &["zsh"]),
        ("ferry image pu", &["pull"]),
        ("ferry image pull --progress ", &["auto", "json", "none"]),
    ] {
        let mut words = offered(case, line)?;
        words.sort_unstable();
        assert_eq!(words, expected, "{line}");
    }
    assert_eq!(offered(case, &format!("ferry --root {root} state "))?, [id]);
    Ok(())
}

/// zsh completes in its line editor alone, so it is given a terminal of its own (zpty), and a line and a tab are typed. The
/// words that it would list come from `compadd`, which is asked what matches.
fn zsh(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (path, root, id) = (script(case, "zsh")?, case.state_root().display().to_string(), case.id.clone());
    let driver = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
typed() { zpty -w shell "$1" }
typed 'PS1=; autoload -Uz compinit && compinit -u -D; source '$1
typed 'compadd() { local -a hits; builtin compadd -O hits "$@"; (( $#hits )) && print -rl -- $hits >> $OFFERED; builtin compadd "$@" }'
typed 'done-with-it() { exit }; zle -N done-with-it; bindkey "^G" done-with-it'
zpty -n -w shell "$2"$'\t\a'
while zpty -r shell output; do :; done
"#;
    let offered = |case: &mut Case, line: &str| -> Result<Vec<String>, Failed> {
        let answers = case.path("offered");
        fs::write(&answers, "")?;
        let mut command = Command::new("zsh");
        command.args(["-f", "-c", driver, "driver", &path, line]);
        command.env("PATH", on_path(case)?).env("HOME", &case.directory).env("OFFERED", &answers).env("TERM", "vt100");
        case.finish(&mut command)?.success()?;
        let text = fs::read_to_string(&answers)?;
        let mut words: Vec<String> = text.lines().map(str::to_owned).collect();
        words.sort_unstable();
        words.dedup();
        Ok(words)
    };
    for (line, expected) in [
        ("ferry st", &["start", "state", "stats"][..]),
        ("ferry --root /x del", &["delete"]),
        ("ferry list --format ", &["json", "table"]),
        ("ferry delete --fo", &["--force"]),
        ("ferry completion z", &["zsh"]),
        ("ferry image pu", &["pull"]),
        ("ferry image pull --progress ", &["auto", "json", "none"]),
    ] {
        assert_eq!(offered(case, line)?, expected, "{line}");
    }
    assert_eq!(offered(case, &format!("ferry --root {root} state "))?, [id]);
    Ok(())
}

fn another(case: &mut Case) -> Outcome {
    let end = case.call(&["completion", "tcsh"])?.failure()?;
    assert!(end.stderr.contains("no completion for \"tcsh\": it is one of bash, zsh, fish"), "{}", end.stderr);
    Ok(())
}
