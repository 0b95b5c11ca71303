//! The man pages are what the command table gives. `FERRY_WRITE_MAN=1 cargo test --test cli` writes them anew.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use ferry::cli::family::Family;
use ferry::cli::verb::Verb;
use ferry::cli::{FAMILIES, VERBS, overview, rows};
use ferry::spec::extensions;

use super::config_page;

const WRITE: &str = "FERRY_WRITE_MAN";

/// Defines the apostrophe clap_mangen writes; it puts this before each of its sections, a page needs it once.
const APOSTROPHE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("man")
}

/// File name and text of every page.
fn pages() -> Vec<(String, String)> {
    let page = |name: &str| format!("ferry-{}.1", name.replace(' ', "-"));
    let verbs = rows().map(|verb| (page(verb.name), verb_page(verb)));
    let families = FAMILIES.iter().map(|family| (page(family.name), family_page(family)));
    let others = [("ferry.1".to_owned(), main_page()), ("ferry-config.5".to_owned(), config_page())];
    others.into_iter().chain(verbs).chain(families).collect()
}

fn main_page() -> String {
    let command = overview();
    let mut page = head("ferry", &command);
    page.push_str(&section("DESCRIPTION", &rendered(&command, Man::render_description_section, 1)));
    page.push_str(&rendered(&command, Man::render_options_section, 0));
    page.push_str(".SH COMMANDS\n");
    let verbs = VERBS.iter().map(|verb| (verb.name, verb.about));
    for (name, about) in verbs.chain(FAMILIES.iter().map(|family| (family.name, family.about))) {
        writeln!(page, ".TP\n\\fB{name}\\fR\n{}. See \\fBferry\\-{name}\\fR(1).", escaped(about)).unwrap();
    }
    page.push_str(".TP\n\\fBhelp\\fR [\\fICOMMAND\\fR]\nShow the commands, or the flags of one.\n");
    page.push_str(&section(
        "EXIT STATUS",
        ".PP\n0, or 1 when the command failed; \\fBrun\\fR and \\fBexec\\fR answer what the program answers.\n",
    ));
    page
}

/// What ferry reads: the prose, and the annotations by their table.
fn config_page() -> String {
    let name = ".SH NAME\nferry\\-config \\- what ferry reads in config.json, and what it decides\n";
    let mut page = format!("{APOSTROPHE}.TH FERRY-CONFIG 5\n{name}");
    for (title, text) in config_page::SECTIONS {
        page.push_str(&section(title, &paragraphs(text)));
    }
    page.push_str(&section("ANNOTATIONS", &paragraphs(config_page::ANNOTATIONS)));
    for row in extensions::TABLE {
        let (name, value, help) = (escaped(row.name), escaped(row.value), escaped(row.help));
        // The beginning of a name has a part of it to come.
        let name = if row.name.ends_with('.') { format!("\\fB{name}\\fINAME") } else { format!("\\fB{name}") };
        writeln!(page, ".TP\n{name}\\fR=\\fI{value}\\fR\n{help}").unwrap();
    }
    page.push_str(&section("SEE ALSO", ".PP\n\\fBferry\\fR(1), \\fBferry\\-spec\\fR(1), \\fBferry\\-explain\\fR(1)\n"));
    page
}

fn verb_page(verb: &Verb) -> String {
    let command = verb.manual();
    let mut page = head(&format!("ferry-{}", verb.name.replace(' ', "-")), &command);
    let (description, others): (Vec<_>, Vec<_>) = verb.details.iter().partition(|(title, _)| *title == "DESCRIPTION");
    for (title, text) in description {
        page.push_str(&section(title, &paragraphs(text)));
    }
    page.push_str(&rendered(&command, Man::render_options_section, 0));
    for (title, text) in others {
        page.push_str(&section(title, &paragraphs(text)));
    }
    page.push_str(&section("SEE ALSO", ".PP\n\\fBferry\\fR(1)\n"));
    page
}

fn family_page(family: &Family) -> String {
    let name = format!("ferry-{}", family.name);
    let mut page = head(&name, &family.manual());
    for (title, text) in family.details {
        page.push_str(&section(title, &paragraphs(text)));
    }
    page.push_str(".SH COMMANDS\n");
    for verb in family.verbs {
        let (page_name, word) = (verb.name.replace(' ', "-"), verb.name.split(' ').next_back().unwrap_or_default());
        let see = escaped(&format!("ferry-{page_name}"));
        writeln!(page, ".TP\n\\fB{word}\\fR\n{}. See \\fB{see}\\fR(1).", escaped(verb.about)).unwrap();
    }
    page.push_str(&section("SEE ALSO", ".PP\n\\fBferry\\fR(1)\n"));
    page
}

/// Title, name and synopsis. No date and no version in the title: pages change when what they say does.
fn head(name: &str, command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").trim();
    format!(
        "{APOSTROPHE}.TH {} 1\n.SH NAME\n{} \\- {}\n.SH SYNOPSIS\n.nf\n{}\n.fi\n",
        name.to_uppercase(),
        escaped(name),
        escaped(&about),
        escaped(usage)
    )
}

/// A section as clap_mangen renders it, without its first `skip` lines and the preamble of macros it puts before each.
fn rendered(
    command: &Command,
    render: fn(&Man, &mut dyn std::io::Write) -> std::io::Result<()>,
    skip: usize,
) -> String {
    let mut bytes = Vec::new();
    render(&Man::new(command.clone()), &mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with(".ie ") && !line.starts_with(".el "));
    lines.skip(skip).fold(String::new(), |text, line| text + line + "\n")
}

fn section(title: &str, text: &str) -> String {
    format!(".SH \"{title}\"\n{text}")
}

/// Paragraphs parted by empty lines; lines indented by four spaces stand as they are.
fn paragraphs(text: &str) -> String {
    let mut page = String::new();
    for paragraph in text.split("\n\n") {
        if paragraph.starts_with("    ") {
            let lines: Vec<String> = paragraph.lines().map(escaped).collect();
            writeln!(page, ".PP\n.nf\n{}\n.fi", lines.join("\n")).unwrap();
        } else {
            writeln!(page, ".PP\n{}", escaped(paragraph)).unwrap();
        }
    }
    page
}

/// Text that roff takes for nothing else: no escapes, no hyphens for dashes, no line that begins a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[test]
fn the_pages_are_what_the_table_gives() {
    let folder = folder();
    let write = std::env::var_os(WRITE).is_some();
    for (name, text) in pages() {
        let path = folder.join(&name);
        if write {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == text,
            "man/{name} is not what the command table gives: {WRITE}=1 cargo test --test cli writes it"
        );
    }
}

#[test]
fn no_page_is_left_of_a_verb_that_is_gone() {
    let known: Vec<String> = pages().into_iter().map(|(name, _)| name).collect();
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name), "man/{name} belongs to no verb");
    }
}
