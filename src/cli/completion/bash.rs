//! The script for bash.

use std::fmt::Write;

use super::{Offer, arguments, families, names, offer, pattern, seconds, shown, verbs};
use crate::cli::verb::{CommandLine, Flag};
use crate::cli::{FAMILIES, VERBS, globals};

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
        let verb = pattern(verb);
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

pub(super) fn script() -> String {
    let mut values = String::new();
    bash_values("", globals::FLAGS, &mut values);
    verbs().for_each(|verb| bash_values(verb.name, verb.flags, &mut values));
    let mut flags = format!("        '') _ferry_words '{}' ;;\n", spellings(globals::FLAGS));
    let mut words = String::new();
    for verb in verbs() {
        let name = pattern(verb.name);
        writeln!(flags, "        {name}) _ferry_words '{}' ;;", spellings(verb.flags)).ok();
        for (place, offers) in arguments(verb).into_iter().enumerate().filter(|(_, offers)| !offers.is_empty()) {
            let offers: Vec<String> = offers.into_iter().map(bash_offer).collect();
            writeln!(words, "        {name}:{place}) {} ;;", offers.join("; ")).ok();
        }
    }
    for family in &FAMILIES {
        let seconds: Vec<&str> = seconds(family).map(|(second, _)| second).collect();
        writeln!(flags, "        {}) _ferry_words '--help' ;;", family.name).ok();
        writeln!(words, "        {}:0) _ferry_words '{}' ;;", family.name, seconds.join(" ")).ok();
    }
    let ends = VERBS.iter().filter(|verb| verb.arguments.command == CommandLine::AfterId);
    let ends = ends.map(|verb| verb.name).collect::<Vec<_>>().join("|");
    BASH.replace("@NAMES@", &names())
        .replace("@VALUES@", &values)
        .replace("@FLAGS@", &flags)
        .replace("@WORDS@", &words)
        .replace("@ENDS@", &ends)
        .replace("@FAMILIES@", &families())
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
        elif [[ ' @FAMILIES@ ' == *" $verb "* ]]; then
            # The verb is one of a family, and has two words.
            verb+=" $word"
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
