//! `ferry completion`: a script by which a shell completes ferry's command line.
//!
//! Everything in it is read from the command table; a shell is asked for files and directories itself, and ferry for the ids
//! of containers.

mod bash;

use std::fmt::Write;

use clap::ArgMatches;

use super::family::Family;
use super::globals::{self, Globals};
use super::verb::{Arguments, CommandLine, Flag, Value, Verb};
use super::{FAMILIES, VERBS, given, output};
use crate::error::{Error, Result};

/// The row of `completion`.
pub const VERB: Verb = Verb {
    name: "completion",
    about: "Print a script with which a shell completes ferry's command line",
    arguments: Arguments { usage: "bash|zsh|fish", min: 1, max: 1, command: CommandLine::None },
    flags: &[],
    details: &[
        (
            "DESCRIPTION",
            "Prints a completion script for bash, zsh or fish: commands, flags, the words that a flag takes, files, \
             directories, and the ids of the containers below --root.",
        ),
        ("EXIT STATUS", "0, or 1 for another shell."),
        (
            "EXAMPLES",
            "    source <(ferry completion bash)\n    ferry completion bash > /etc/bash_completion.d/ferry\n    \
             ferry completion zsh > \"${fpath[1]}/_ferry\"\n    \
             ferry completion fish > ~/.config/fish/completions/ferry.fish",
        ),
    ],
    run,
};

fn run(_: &Globals, matches: &ArgMatches) -> Result<u8> {
    let shell = given::arguments(matches)?.pop().unwrap_or_default();
    let script = match shell.as_str() {
        "bash" => bash::script(),
        "zsh" => zsh(),
        "fish" => fish(),
        _ => return Err(Error::plain(format!("no completion for {shell:?}: it is one of bash, zsh, fish"))),
    };
    output::print(&script)?;
    Ok(0)
}

/// What a shell offers for a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offer {
    /// Nothing that anybody could know.
    Nothing,
    /// Files and directories.
    Files,
    /// Directories.
    Directories,
    /// Ids of containers.
    Ids,
    /// These words.
    Words(&'static str),
}

/// By the name that help shows for a path.
fn offer(flag: &Flag) -> Option<Offer> {
    match flag.value {
        Value::Switch => None,
        Value::Path("DIR") => Some(Offer::Directories),
        Value::Path(_) => Some(Offer::Files),
        Value::Words(words) => Some(Offer::Words(words)),
        // Also of one that may be something else, such as a key.
        Value::Text(name) if name.ends_with("FILE") => Some(Offer::Files),
        Value::Text(_) => Some(Offer::Nothing),
    }
}

/// What a verb's first arguments are, each of which may be several things: its usage line has ` | ` between whole command lines.
fn arguments(verb: &Verb) -> Vec<Vec<Offer>> {
    let offer = |word: &'static str| match word {
        word if word.starts_with("ID") => Offer::Ids,
        word if word.starts_with("FILE") || word == "REPORT" || word == "SOURCE" => Offer::Files,
        word if word.starts_with("DIR") => Offer::Directories,
        word if word.starts_with(|letter: char| letter.is_ascii_lowercase()) => Offer::Words(word),
        _ => Offer::Nothing,
    };
    let mut places: Vec<Vec<Offer>> = Vec::new();
    // What some verbs name is a container that is not there yet.
    let lines = if NEW.contains(&verb.name) { "" } else { verb.arguments.usage };
    for line in lines.split(" | ") {
        let mut words = line.split_whitespace().map(|word| word.trim_matches(['[', ']']));
        let mut place = 0;
        while let Some(word) = words.next() {
            match word {
                // A command line of somebody else's.
                "--" => break,
                // With its value; it makes this another line.
                flag if flag.starts_with('-') => drop(words.next()),
                word => {
                    places.resize_with(places.len().max(place + 1), Vec::new);
                    places[place].extend(Some(offer(word)).filter(|offer| *offer != Offer::Nothing));
                    place += 1;
                }
            }
        }
    }
    places
}

/// The verbs whose id is the caller's to choose.
const NEW: [&str; 2] = ["create", "run"];

/// `help` is no row of the table, and takes a verb's name.
const HELP: &str = "help";

fn shown(flags: &'static [Flag]) -> impl Iterator<Item = &'static Flag> {
    flags.iter().filter(|flag| !flag.hidden)
}

/// Every verb, those of families by their two words.
fn verbs() -> impl Iterator<Item = &'static Verb> {
    VERBS.iter().chain(FAMILIES.iter().flat_map(|family| family.verbs))
}

/// The second words of a family's verbs.
fn seconds(family: &'static Family) -> impl Iterator<Item = (&'static str, &'static str)> {
    family.verbs.iter().map(|verb| (verb.name.split(' ').next_back().unwrap_or(verb.name), verb.about))
}

fn families() -> String {
    FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(" ")
}

/// A verb's name as one pattern of a `case`.
fn pattern(name: &str) -> String {
    name.replace(' ', "\\ ")
}

fn names() -> String {
    VERBS
        .iter()
        .map(|verb| verb.name)
        .chain(FAMILIES.iter().map(|family| family.name))
        .chain([HELP])
        .collect::<Vec<_>>()
        .join(" ")
}

/// Text inside single quotes, for each of the three shells.
fn quoted(text: &str) -> String {
    text.replace('\'', "'\\''")
}

fn zsh() -> String {
    let mut text = String::from(ZSH_HEAD);
    writeln!(text, "_ferry_commands() {{\n    local -a commands=(").ok();
    for verb in &VERBS {
        writeln!(text, "        '{}:{}'", verb.name, quoted(verb.about).replace(':', "\\:")).ok();
    }
    for family in &FAMILIES {
        writeln!(text, "        '{}:{}'", family.name, quoted(family.about)).ok();
    }
    writeln!(text, "        'help:Show the commands, or the help of one'\n    )").ok();
    text.push_str("    _describe -t commands command commands\n}\n\n_ferry() {\n    local context state line\n");
    text.push_str("    typeset -A opt_args\n    _arguments -C \\\n");
    zsh_flags(globals::FLAGS, &mut text);
    text.push_str("        '1:command:_ferry_commands' \\\n        '*::argument:->verb' && return\n");
    // The arguments of a verb are read anew, and the flags before it forgotten.
    text.push_str("    local -a ferry_root=(${opt_args[--root]:+--root ${opt_args[--root]}})\n");
    // A verb of a family has two words, and its arguments begin behind the second.
    text.push_str("    local verb=$line[1]\n    case $verb in\n");
    for family in &FAMILIES {
        writeln!(text, "    {})\n        if (( CURRENT == 2 )); then\n            local -a commands=(", family.name)
            .ok();
        for (second, about) in seconds(family) {
            writeln!(text, "                '{second}:{}'", quoted(about).replace(':', "\\:")).ok();
        }
        text.push_str(
            "            )\n            _describe -t commands command commands\n            return\n        fi\n",
        );
        text.push_str("        verb+=\" $words[2]\"\n        shift words\n        (( CURRENT-- ))\n        ;;\n");
    }
    text.push_str("    esac\n    case $verb in\n    help) _ferry_commands ;;\n");
    for verb in verbs() {
        writeln!(text, "    {})\n        _arguments \\", pattern(verb.name)).ok();
        zsh_flags(verb.flags, &mut text);
        let ends = verb.arguments.command == CommandLine::AfterId;
        for (place, offers) in arguments(verb).into_iter().enumerate().take(if ends { 1 } else { usize::MAX }) {
            writeln!(text, "        '{}:{}' \\", place + 1, zsh_offers(&offers)).ok();
        }
        text.push_str(if ends { "        '*::command:_normal'\n" } else { "        && return\n" });
        text.push_str("        ;;\n");
    }
    text.push_str("    esac\n}\n\n");
    text.push_str("[[ ${funcstack[1]} == _ferry ]] && _ferry \"$@\" || compdef _ferry ferry\n");
    text
}

const ZSH_HEAD: &str = "#compdef ferry\n# zsh completion for ferry, made by `ferry completion zsh`\n\n\
    _ferry_ids() {\n    local -a ids=(${(f)\"$(_call_program ids ferry $ferry_root \
    list --quiet 2>/dev/null)\"})\n    compadd -a ids\n    (( $# == 0 )) || compadd -- \"$@\"\n}\n\n";

fn zsh_flags(flags: &'static [Flag], text: &mut String) {
    for flag in shown(flags) {
        let help = quoted(&flag.help.replace('\\', "\\\\").replace('[', "\\[").replace(']', "\\]"));
        let value = offer(flag).map(|offer| format!(":{}", zsh_offer(offer))).unwrap_or_default();
        let spelled = if value.is_empty() { String::new() } else { "=".to_owned() };
        let many = if flag.many { "*" } else { "" };
        writeln!(text, "        '{many}--{}{spelled}[{help}]{value}' \\", flag.long).ok();
        if let Some(short) = flag.short {
            let plus = if value.is_empty() { "" } else { "+" };
            writeln!(text, "        '{many}-{short}{plus}[{help}]{value}' \\").ok();
        }
    }
    text.push_str("        '(- *)--help[Show the help]' \\\n");
}

fn zsh_offer(offer: Offer) -> String {
    match offer {
        Offer::Nothing => "value: ".to_owned(),
        Offer::Files => "file:_files".to_owned(),
        Offer::Directories => "directory:_files -/".to_owned(),
        // With a blank in front, so that it is given no options of compadd's for words.
        Offer::Ids => "container: _ferry_ids".to_owned(),
        Offer::Words(words) => format!("word:({})", words.replace('|', " ")),
    }
}

/// Of an argument that may be several things; ids take the words that may stand in their place.
fn zsh_offers(offers: &[Offer]) -> String {
    match offers {
        [Offer::Ids, Offer::Words(words)] => format!("container: _ferry_ids {}", words.replace('|', " ")),
        [offer, ..] => zsh_offer(*offer),
        [] => zsh_offer(Offer::Nothing),
    }
}

fn fish() -> String {
    let mut text = FISH_HEAD.replace("@FAMILIES@", &families());
    let none = "__ferry_verb | string match -q ''";
    fish_flags(none, globals::FLAGS, &mut text);
    for verb in &VERBS {
        writeln!(text, "complete -c ferry -n \"{none}\" -a {} -d '{}'", verb.name, fish_quoted(verb.about)).ok();
    }
    for family in &FAMILIES {
        let about = fish_quoted(family.about);
        writeln!(text, "complete -c ferry -n \"{none}\" -a {} -d '{about}'", family.name).ok();
        let here = fish_is(family.name);
        for (second, about) in seconds(family) {
            writeln!(text, "complete -c ferry -n \"{here}\" -a {second} -d '{}'", fish_quoted(about)).ok();
        }
    }
    writeln!(text, "complete -c ferry -n \"{none}\" -a help -d 'Show the commands, or the help of one'").ok();
    for verb in verbs() {
        let here = fish_is(verb.name);
        fish_flags(&here, verb.flags, &mut text);
        for offer in arguments(verb).into_iter().flatten() {
            writeln!(text, "complete -c ferry -n \"{here}\" {}", fish_offer(offer).trim_start_matches("-x ")).ok();
        }
    }
    writeln!(text, "complete -c ferry -n \"__ferry_verb | string match -q help\" -a '{}'", names()).ok();
    text
}

fn fish_is(verb: &str) -> String {
    format!("__ferry_verb | string match -q '{verb}'")
}

/// The verb is the first word behind ferry, or the first two of a family's, that is neither a flag nor a global flag's value.
const FISH_HEAD: &str = r#"# fish completion for ferry, made by `ferry completion fish`
function __ferry_verb
    set -l skip 0
    set -l verb
    for word in (commandline -opc)[2..]
        if test $skip = 1
            set skip 0
        else if string match -qr '^--?(root|store|log|log-format|log-level|cgroup-manager|rootless)$' -- $word
            set skip 1
        else if not string match -q -- '-*' $word
            set -a verb $word
            if not contains -- "$verb" @FAMILIES@
                break
            end
        end
    end
    echo "$verb"
end

function __ferry_ids
    set -l words (commandline -opc)
    set -l root
    for at in (seq (count $words))
        if string match -qr '^--?root$' -- $words[$at]
            set root --root $words[(math $at + 1)]
        else if string match -qr '^--?root=' -- $words[$at]
            set root $words[$at]
        end
    end
    ferry $root list --quiet 2>/dev/null
end

complete -c ferry -f
"#;

fn fish_quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "\\'")
}

fn fish_flags(condition: &str, flags: &'static [Flag], text: &mut String) {
    for flag in shown(flags) {
        let short = flag.short.map(|short| format!(" -s {short}")).unwrap_or_default();
        let value = offer(flag).map(|offer| format!(" {}", fish_offer(offer))).unwrap_or_default();
        let help = fish_quoted(flag.help);
        writeln!(text, "complete -c ferry -n \"{condition}\" -l {}{short}{value} -d '{help}'", flag.long).ok();
    }
}

fn fish_offer(offer: Offer) -> String {
    match offer {
        Offer::Nothing => "-x".to_owned(),
        Offer::Files => "-rF".to_owned(),
        Offer::Directories => "-x -a '(__fish_complete_directories)'".to_owned(),
        Offer::Ids => "-x -a '(__ferry_ids)'".to_owned(),
        Offer::Words(words) => format!("-x -a '{}'", words.replace('|', " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every verb, and every flag that help shows, is somewhere in each script, in that shell's way to say it.
    #[test]
    fn every_verb_and_every_flag_is_in_every_script() {
        let (bash, zsh, fish) = (bash::script(), zsh(), fish());
        for verb in verbs() {
            let (last, name) = (verb.name.split(' ').next_back().unwrap(), pattern(verb.name));
            assert!(zsh.contains(&format!("        '{last}:")) && zsh.contains(&format!("    {name})\n")), "{name}");
            assert!(fish.contains(&format!("-a {last} -d ")), "{name}");
            let line = bash.lines().find(|line| line.trim().starts_with(&format!("{name}) _ferry_words"))).unwrap();
            for flag in shown(verb.flags) {
                let long = flag.long;
                assert!(line.contains(&format!("--{long} ")), "{name} --{long}");
                assert_eq!(
                    bash.contains(&format!(" {name}:--{long}|")),
                    flag.value != Value::Switch,
                    "{name} --{long}"
                );
                assert!(fish.contains(&format!("match -q '{}'\" -l {long}", verb.name)), "{name} --{long}");
                let of_zsh = zsh.split(&format!("    {name})\n")).nth(1).unwrap().split(";;").next().unwrap();
                assert!(of_zsh.contains(&format!("--{long}")), "{name} --{long}");
            }
        }
        for family in &FAMILIES {
            let name = family.name;
            assert!(zsh.contains(&format!("        '{name}:")) && fish.contains(&format!("-a {name} -d ")), "{name}");
            assert!(bash.contains(&format!(" {name} ")), "{name}");
        }
        for flag in shown(globals::FLAGS) {
            assert!([&bash, &zsh].iter().all(|script| script.contains(&format!("--{}", flag.long))), "{}", flag.long);
            assert!(fish.contains(&format!(" -l {}", flag.long)), "{}", flag.long);
            let skipped = fish.contains(&format!("|{}", flag.long)) || fish.contains(&format!("({}|", flag.long));
            assert_eq!(skipped, flag.value != Value::Switch, "{}: __ferry_verb", flag.long);
        }
    }

    #[test]
    fn ids_are_offered_where_a_container_is_meant_that_is_there() {
        let of = |name: &str| verbs().find(|verb| verb.name == name).map(arguments).unwrap();
        assert_eq!(of("state"), [[Offer::Ids]]);
        assert_eq!(of("kill"), [vec![Offer::Ids], vec![]]);
        assert_eq!(of("exec")[0], [Offer::Ids]);
        assert_eq!((of("run"), of("create")), (vec![], vec![]));
        assert_eq!(of("completion"), [[Offer::Words("bash|zsh|fish")]]);
        assert_eq!(of("checkpoint"), [vec![Offer::Ids, Offer::Words("inspect")], vec![Offer::Files]]);
        assert_eq!(of("bundle create"), [[Offer::Directories]]);
        assert_eq!(of("mounts"), [[Offer::Words("add|remove")], [Offer::Ids], [Offer::Files]]);
    }
}
