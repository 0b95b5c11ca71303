//! `ferry completion`: a script by which a shell completes ferry's command line.
//!
//! Everything in it is read from the command table; a shell is asked for files and directories itself, and ferry for the ids
//! of containers.

use std::fmt::Write;

use clap::ArgMatches;

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
        "bash" => bash(),
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

/// By the name that help shows for the value: `A|B|C` are the words themselves.
fn offer(flag: &Flag) -> Option<Offer> {
    match flag.value {
        Value::Switch => None,
        Value::Path("DIR") => Some(Offer::Directories),
        Value::Path(_) => Some(Offer::Files),
        Value::Text(words) if words.contains('|') => Some(Offer::Words(words)),
        Value::Text(_) => Some(Offer::Nothing),
    }
}

/// What a verb's first arguments are.
fn arguments(verb: &Verb) -> Vec<Offer> {
    let word = |word: &'static str| match word {
        word if word.starts_with("ID") => Offer::Ids,
        word if word.starts_with("FILE") => Offer::Files,
        word if word.contains('|') => Offer::Words(word),
        _ => Offer::Nothing,
    };
    match verb.arguments.usage {
        // These name a container that is not there yet.
        _ if NEW.contains(&verb.name) => vec![Offer::Nothing],
        usage => usage.split_whitespace().map(|part| word(part.trim_matches(['[', ']']))).collect(),
    }
}

/// The verbs whose id is the caller's to choose.
const NEW: [&str; 2] = ["create", "run"];

/// `help` is no row of the table, and takes a verb's name.
const HELP: &str = "help";

fn shown(flags: &'static [Flag]) -> impl Iterator<Item = &'static Flag> {
    flags.iter().filter(|flag| !flag.hidden)
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

/// `--long -s`, for each flag.
fn spellings(flags: &'static [Flag]) -> String {
    let spell = |flag: &Flag| match flag.short {
        Some(short) => format!("--{} -{short}", flag.long),
        None => format!("--{}", flag.long),
    };
    shown(flags).map(spell).chain(["--help".to_owned()]).collect::<Vec<_>>().join(" ")
}

/// The branches of a `case` over `VERB:FLAG`, with what each flag's value is completed from; `*` for global flags.
fn bash_values(verb: &str, flags: &'static [Flag], text: &mut String) {
    for (flag, offer) in flags.iter().filter_map(|flag| Some((flag, offer(flag)?))) {
        let short = flag.short.map(|short| format!("|{verb}:-{short}")).unwrap_or_default();
        let long = flag.long;
        writeln!(text, "        {verb}:--{long}|{verb}:-{long}{short}) {} ;;", bash_offer(offer)).ok();
    }
}

fn bash_offer(offer: Offer) -> String {
    match offer {
        Offer::Nothing => ":".to_owned(),
        Offer::Files => "_ferry_files -f".to_owned(),
        Offer::Directories => "_ferry_files -d".to_owned(),
        Offer::Ids => "_ferry_words \"$(_ferry_ids)\"".to_owned(),
        Offer::Words(words) => format!("_ferry_words '{}'", words.replace('|', " ")),
    }
}

fn bash() -> String {
    let mut values = String::new();
    bash_values("", globals::FLAGS, &mut values);
    VERBS.iter().for_each(|verb| bash_values(verb.name, verb.flags, &mut values));
    let mut flags = format!("        '') _ferry_words '{}' ;;\n", spellings(globals::FLAGS));
    let mut words = String::new();
    for verb in &VERBS {
        writeln!(flags, "        {}) _ferry_words '{}' ;;", verb.name, spellings(verb.flags)).ok();
        for (place, offer) in arguments(verb).into_iter().enumerate().filter(|(_, offer)| *offer != Offer::Nothing) {
            writeln!(words, "        {}:{place}) {} ;;", verb.name, bash_offer(offer)).ok();
        }
    }
    let ends = VERBS.iter().filter(|verb| verb.arguments.command == CommandLine::AfterId);
    let ends = ends.map(|verb| verb.name).collect::<Vec<_>>().join("|");
    BASH.replace("@NAMES@", &names())
        .replace("@VALUES@", &values)
        .replace("@FLAGS@", &flags)
        .replace("@WORDS@", &words)
        .replace("@ENDS@", &ends)
}

/// Bash 4 and no library: `bash-completion` is not everywhere. A value may stand behind `=`, which bash splits words at.
const BASH: &str = r#"# bash completion for ferry, made by `ferry completion bash`
_ferry_words() {
    COMPREPLY+=($(compgen -W "$1" -- "$cur"))
    return 0
}

_ferry_files() {
    compopt -o filenames 2>/dev/null
    local IFS=$'\n'
    COMPREPLY+=($(compgen "$1" -- "$cur"))
    return 0
}

_ferry_ids() {
    "${COMP_WORDS[0]}" "${root[@]}" list --quiet 2>/dev/null
}

# Completes the value of a flag, by VERB:FLAG; false: the flag takes none.
_ferry_value() {
    case "$1" in
@VALUES@        *) return 1 ;;
    esac
}

_ferry() {
    local cur=${COMP_WORDS[COMP_CWORD]} verb='' place=0 owner='' at word
    local -a root=()
    COMPREPLY=()
    [[ $cur == '=' ]] && cur=''
    for ((at = 1; at < COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        if [[ $word == '=' ]]; then
            continue
        elif [[ -n $owner ]]; then
            # This word is the value of the flag before.
            [[ $owner == :--root || $owner == :-root ]] && root=(--root "$word")
            owner=''
        elif [[ $word == -* ]]; then
            if COMPREPLY=() _ferry_value "$verb:$word" >/dev/null; then
                owner=$verb:$word
            fi
            COMPREPLY=()
        elif [[ -z $verb ]]; then
            verb=$word
        else
            place=$((place + 1))
            case "$verb" in
            @ENDS@) return ;;
            esac
        fi
    done
    if [[ -n $owner ]]; then
        _ferry_value "$owner"
        return
    fi
    if [[ $cur == -* ]]; then
        case "$verb" in
@FLAGS@        esac
        return
    fi
    if [[ -z $verb || $verb == help && $place == 0 ]]; then
        _ferry_words '@NAMES@'
        return
    fi
    case "$verb:$place" in
@WORDS@    esac
}

complete -F _ferry ferry
"#;

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
    text.push_str("    case $line[1] in\n    help) _ferry_commands ;;\n");
    for verb in &VERBS {
        writeln!(text, "    {})\n        _arguments \\", verb.name).ok();
        zsh_flags(verb.flags, &mut text);
        let ends = verb.arguments.command == CommandLine::AfterId;
        for (place, offer) in arguments(verb).into_iter().enumerate().take(if ends { 1 } else { usize::MAX }) {
            writeln!(text, "        '{}:{}' \\", place + 1, zsh_offer(offer)).ok();
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
    list --quiet 2>/dev/null)\"})\n    compadd -a ids\n}\n\n";

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
        Offer::Ids => "container:_ferry_ids".to_owned(),
        Offer::Words(words) => format!("word:({})", words.replace('|', " ")),
    }
}

fn fish() -> String {
    let mut text = String::from(FISH_HEAD);
    let none = "__ferry_verb | string match -q ''";
    fish_flags(none, globals::FLAGS, &mut text);
    for verb in &VERBS {
        writeln!(text, "complete -c ferry -n \"{none}\" -a {} -d '{}'", verb.name, fish_quoted(verb.about)).ok();
    }
    for family in &FAMILIES {
        let about = fish_quoted(family.about);
        writeln!(text, "complete -c ferry -n \"{none}\" -a {} -d '{about}'", family.name).ok();
    }
    writeln!(text, "complete -c ferry -n \"{none}\" -a help -d 'Show the commands, or the help of one'").ok();
    for verb in &VERBS {
        let here = format!("__ferry_verb | string match -q {}", verb.name);
        fish_flags(&here, verb.flags, &mut text);
        for offer in arguments(verb).into_iter().filter(|offer| *offer != Offer::Nothing) {
            writeln!(text, "complete -c ferry -n \"{here}\" {}", fish_offer(offer).trim_start_matches("-x ")).ok();
        }
    }
    writeln!(text, "complete -c ferry -n \"__ferry_verb | string match -q help\" -a '{}'", names()).ok();
    text
}

/// The verb is the first word behind ferry that is neither a flag nor a global flag's value.
const FISH_HEAD: &str = r#"# fish completion for ferry, made by `ferry completion fish`
function __ferry_verb
    set -l skip 0
    for word in (commandline -opc)[2..]
        if test $skip = 1
            set skip 0
        else if string match -qr '^--?(root|store|log|log-format|log-level|cgroup-manager|rootless)$' -- $word
            set skip 1
        else if not string match -q -- '-*' $word
            echo $word
            return
        end
    end
    echo ''
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
        let (bash, zsh, fish) = (bash(), zsh(), fish());
        for verb in &VERBS {
            let name = verb.name;
            assert!(zsh.contains(&format!("        '{name}:")) && zsh.contains(&format!("    {name})\n")), "{name}");
            assert!(fish.contains(&format!("-a {name} -d ")), "{name}");
            let line = bash.lines().find(|line| line.trim().starts_with(&format!("{name}) _ferry_words"))).unwrap();
            for flag in shown(verb.flags) {
                let long = flag.long;
                assert!(line.contains(&format!("--{long} ")), "{name} --{long}");
                assert_eq!(
                    bash.contains(&format!(" {name}:--{long}|")),
                    flag.value != Value::Switch,
                    "{name} --{long}"
                );
                assert!(fish.contains(&format!("match -q {name}\" -l {long}")), "{name} --{long}");
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
        let of = |name: &str| VERBS.iter().find(|verb| verb.name == name).map(arguments).unwrap();
        assert_eq!(of("state"), [Offer::Ids]);
        assert_eq!(of("kill")[0], Offer::Ids);
        assert_eq!(of("exec")[0], Offer::Ids);
        assert_eq!((of("run"), of("create")), (vec![Offer::Nothing], vec![Offer::Nothing]));
        assert_eq!(of("completion"), [Offer::Words("bash|zsh|fish")]);
    }
}
