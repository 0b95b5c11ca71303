//! Where in a JSON text an offset lies, as a JSON path: the parser says at which line and column it failed, and a reader looks for
//! the field's name.
//!
//! By the brackets and strings up to there, once parsing has failed: a parser that keeps the path as it goes would be
//! compiled a second time for every type, for a tenth of the whole program.

use std::fmt::Write;

/// What is open at a place in the text.
enum Open {
    /// An object, with the key of the member that is being read; none yet, or no longer.
    Object(Option<String>),
    /// An array, with the index of its element.
    Array(usize),
}

/// The path (`linux.namespaces[2].type`) of the value that ends at, or holds, the byte before `offset`. `None`: it is the document
/// itself.
pub fn path_at(text: &[u8], offset: usize) -> Option<String> {
    let text = &text[..offset.min(text.len())];
    let mut open: Vec<Open> = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'{' => open.push(Open::Object(None)),
            b'[' => open.push(Open::Array(0)),
            b'}' | b']' => drop(open.pop()),
            b',' => match open.last_mut() {
                Some(Open::Object(key)) => *key = None,
                Some(Open::Array(index)) => *index += 1,
                None => (),
            },
            b'"' => {
                let end = end_of_string(text, at);
                // The first string of a member is its key.
                if let Some(Open::Object(key @ None)) = open.last_mut() {
                    *key = Some(String::from_utf8_lossy(&text[at + 1..end]).into_owned());
                }
                at = end;
            }
            _ => (),
        }
        at += 1;
    }
    let mut path = String::new();
    for step in &open {
        // Writing to a string does not fail.
        let written = match step {
            Open::Object(Some(key)) if path.is_empty() => write!(path, "{key}"),
            Open::Object(Some(key)) => write!(path, ".{key}"),
            Open::Object(None) => Ok(()),
            Open::Array(index) => write!(path, "[{index}]"),
        };
        written.ok()?;
    }
    (!path.is_empty()).then_some(path)
}

/// The byte offset of a line and a column, both as serde_json counts them: the column is how many bytes of the line were read.
pub fn offset(text: &[u8], line: usize, column: usize) -> usize {
    let before = text.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1));
    before.map(<[u8]>::len).sum::<usize>() + column
}

/// The index of the quotation mark that ends the string which begins at `start`, or the text's length.
fn end_of_string(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses as a type that fails, and asks where.
    fn place<T: serde::de::DeserializeOwned>(text: &str) -> Option<String> {
        let error = serde_json::from_str::<T>(text).err()?;
        path_at(text.as_bytes(), offset(text.as_bytes(), error.line(), error.column()))
    }

    #[derive(serde::Deserialize)]
    #[expect(dead_code, reason = "only parsed")]
    struct Inner {
        number: u32,
        list: Vec<Vec<u8>>,
    }

    #[derive(serde::Deserialize)]
    #[expect(dead_code, reason = "only parsed")]
    struct Outer {
        a: Inner,
        b: Option<String>,
    }

    #[test]
    fn every_kind_of_failure_is_placed_at_its_value() {
        for (text, path) in [
            (r#"{"a": {"number": -1, "list": []}}"#, "a.number"),
            (r#"{"a": {"number": "1", "list": []}}"#, "a.number"),
            (r#"{"a": {"number": {}, "list": []}}"#, "a.number"),
            (r#"{"a": {"number": [], "list": []}}"#, "a.number"),
            (r#"{"a": {"number": true}}"#, "a.number"),
            (r#"{"a": {"number": 1, "list": [[1, 2], [3, 256]]}}"#, "a.list[1][1]"),
            (r#"{"a": {"number": 1, "list": [[], {"x": 1}]}}"#, "a.list[1]"),
            ("{\n \"b\": \"\\\"}{[,\",\n \"a\": {\"number\": 1}\n}", "a"),
            (r#"{"a": {"number": 1, "list": []}, "b": [1]}"#, "b"),
            (r#"{"a": {"number": 1, "list": []}, "b": 5}"#, "b"),
        ] {
            assert_eq!(place::<Outer>(text).as_deref(), Some(path), "{text}");
        }
        for text in [r#"{"b": "x"}"#, "5", "[]", ""] {
            let found = place::<Outer>(text);
            assert!(found.is_none() || found.as_deref() == Some("[0]"), "{text}: {found:?}");
        }
    }

    #[test]
    fn any_text_and_offset_have_an_answer() {
        for text in ["\"\\", "}}]]", "{\"a\\", "[[[{\"a\":", "\u{e4}\"\u{e4}"] {
            (0..text.len() + 2).for_each(|offset| drop(path_at(text.as_bytes(), offset)));
        }
    }
}
