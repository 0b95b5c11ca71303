//! What verbs answer on standard output.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::error::{Context, Error, Result, printable};

/// Writes text to standard output. A reader that has seen enough (`ferry list | head -1`) is no failure.
///
/// # Errors
/// Standard output is closed or full.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(refused) if refused.kind() == ErrorKind::BrokenPipe => Ok(()),
        answer => answer.or_cannot("write to", "standard output"),
    }
}

/// Writes a value as JSON over several lines.
///
/// # Errors
/// Standard output is closed or full.
pub fn print_pretty(value: &impl Serialize) -> Result<()> {
    print_json(serde_json::to_string_pretty(value))
}

/// Writes a value as JSON on one line.
///
/// # Errors
/// Standard output is closed or full.
pub fn print_line(value: &impl Serialize) -> Result<()> {
    print_json(serde_json::to_string(value))
}

fn print_json(json: serde_json::Result<String>) -> Result<()> {
    let mut text = json.map_err(|why| Error::said("write the answer as", "JSON", why.to_string()))?;
    text.push('\n');
    print(&text)
}

/// Two ways to answer, by the value of `--format`: whether it is `json`. `other` is the word for the default.
///
/// # Errors
/// Neither of them.
pub fn is_json(format: Option<&str>, other: &str) -> Result<bool> {
    match format {
        Some("json") => Ok(true),
        None => Ok(false),
        Some(word) if word == other => Ok(false),
        Some(word) => Err(Error::plain(format!("invalid format {word:?}: it is one of {other}, json"))),
    }
}

/// Rows under a heading, in columns at least 12 wide and three blanks apart; the last column is not padded. A cell may be anybody's
/// text, and stays on its line.
pub fn table<const COLUMNS: usize>(heading: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let mut widths = heading.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let heading = heading.map(str::to_owned);
    for row in std::iter::once(&heading).chain(rows) {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let width = if column + 1 == COLUMNS { 0 } else { (width + 3).max(12) };
            let cell = printable(cell).replace(['\n', '\t'], " ");
            text.push_str(&format!("{cell:<width$}"));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_at_least_twelve() {
        let rows = [
            ["a".to_owned(), "1".to_owned(), "x".to_owned()],
            ["abcdefghijkl".to_owned(), "22".to_owned(), "y".to_owned()],
        ];
        assert_eq!(
            table(["ID", "PID", "OWNER"], &rows),
            "ID             PID         OWNER\na              1           x\nabcdefghijkl   22          y\n"
        );
    }

    #[test]
    fn a_cell_commands_no_terminal() {
        let rows = [["a\u{1b}[2J".to_owned(), "b\nc\td\u{9b}".to_owned()]];
        assert_eq!(table(["ID", "BY"], &rows), "ID          BY\na\u{fffd}[2J       b c d\u{fffd}\n");
    }

    #[test]
    fn formats_outside_the_vocabulary_are_refused() {
        assert_eq!(is_json(None, "table"), Ok(false));
        assert_eq!(is_json(Some("table"), "table"), Ok(false));
        assert_eq!(is_json(Some("json"), "table"), Ok(true));
        assert_eq!(
            is_json(Some("xml"), "table").unwrap_err().to_string(),
            "invalid format \"xml\": it is one of table, json"
        );
    }
}
