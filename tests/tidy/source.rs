//! The files of the tree as the rules see them: Rust without its comments and strings.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A text file of the tree. `code` is `text` with the inside of comments and strings blanked, line for line, where it is Rust.
pub struct Source {
    pub file: String,
    pub text: String,
    pub code: String,
}

impl Source {
    /// Reads `text` as that of `file`, a path from the root of the tree.
    pub fn new(file: &str, text: &str) -> Self {
        let code = if file.ends_with(".rs") { blank(text) } else { String::new() };
        Self { file: file.to_owned(), text: text.to_owned(), code }
    }

    /// Whether it is part of ferry itself.
    pub fn in_src(&self) -> bool {
        self.file.starts_with("src/") && self.file.ends_with(".rs")
    }
}

/// Replaces what stands in comments, strings and character literals by as many spaces as it has bytes; newlines stay.
fn blank(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(next) = rest.chars().next() {
        let length = literal_length(rest);
        let (taken, left) = rest.split_at(length.unwrap_or(next.len_utf8()));
        match length {
            Some(_) => out.extend(taken.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' })),
            None => out.push(next),
        }
        rest = left;
    }
    out
}

/// The length in bytes of the comment, string or character literal that `rest` begins with, if it does.
fn literal_length(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment_length(rest));
    }
    if rest.starts_with('"') {
        return Some(quoted_length(rest, '"'));
    }
    if rest.starts_with('r') {
        return raw_string_length(rest);
    }
    let character = rest.strip_prefix('\'')?;
    // A lifetime has no closing quote behind its first character.
    let closed = character.starts_with('\\') || character.chars().nth(1) == Some('\'');
    closed.then(|| quoted_length(rest, '\''))
}

fn block_comment_length(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        match here {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted_length(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn raw_string_length(rest: &str) -> Option<usize> {
    let hashes = rest[1..].len() - rest[1..].trim_start_matches('#').len();
    let inside = rest[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(inside.find(&end).map_or(rest.len(), |at| 2 + hashes + at + end.len()))
}

/// Whether a name can have it in it.
pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands in `text` as a word of its own: byte offsets. One that begins with a slash is an absolute path, so that
/// nothing of a longer path stands before it.
pub fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let goes_on = |c: char| is_word(c) || (word.starts_with('/') && "/.-~})".contains(c));
    let alone = move |at: usize| {
        let before =
            text[..at].chars().next_back().is_some_and(goes_on) && word.starts_with(|c| c == '/' || is_word(c));
        let after = text[at + word.len()..].chars().next().is_some_and(is_word) && word.ends_with(is_word);
        !before && !after
    };
    text.match_indices(word).map(|(at, _)| at).filter(move |at| alone(*at))
}

/// The line of a byte of `text`, from 1.
pub fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// The text files of the tree that starts at `root`.
pub fn tree(root: &Path) -> io::Result<Vec<Source>> {
    let (mut sources, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let (path, kind) = (folder.join(entry.file_name()), entry.file_type()?);
            if !is_ours(&path) {
                continue;
            }
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file()
                && let Ok(text) = String::from_utf8(fs::read(entry.path())?)
            {
                sources.push(Source::new(&path.to_string_lossy(), &text));
            }
        }
    }
    Ok(sources)
}

/// Not what is built, nor what fuzzing finds, nor what begins with a dot, but for the three that the project has itself.
fn is_ours(path: &Path) -> bool {
    let name = path.to_string_lossy();
    let hidden = name.starts_with('.') && ![".ci", ".cargo", ".gitignore"].contains(&&*name);
    let made = ["target", "fuzz/target", "fuzz/corpus", "fuzz/artifacts"].contains(&&*name);
    !made && !hidden
}

#[test]
fn finds_what_is_in_the_tree_and_leaves_out_what_is_built() {
    assert!([".ci", ".gitignore", "src", "src/target"].into_iter().all(|path| is_ours(Path::new(path))));
    assert!([".git", ".idea", "target", "fuzz/target"].into_iter().all(|path| !is_ours(Path::new(path))));
}

#[test]
fn blanks_comments_and_literals_only() {
    let cases = [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d\n */ e", "a               \n    e"),
        (r#"a "b \" c" d"#, "a          d"),
        ("r#\"a\" b\"# c", "          c"),
        (r"'\'' 'a' '{' <'a> 'b: loop", "             <'a> 'b: loop"),
    ];
    for (text, code) in cases {
        assert_eq!(blank(text), code, "{text}");
    }
}
