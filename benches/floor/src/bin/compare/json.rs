//! As much JSON as the comparison needs: finding a value's place in a text to replace it, and quoting a string.
//!
//! The configs come from tools, so a text that is no JSON shows as "not found" or a runtime's own complaint.

use std::ops::Range;

/// Where the value at `path` (a list of object keys) stands in `text`.
pub fn find(text: &str, path: &[&str]) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let mut value = skip_space(bytes, 0);
    for key in path {
        value = member(bytes, value, key)?;
    }
    Some(value..skip_value(bytes, value)?)
}

/// The start of the value of `key` in the object that begins at `at`.
fn member(bytes: &[u8], at: usize, key: &str) -> Option<usize> {
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    let mut at = skip_space(bytes, at + 1);
    while bytes.get(at) == Some(&b'"') {
        let end = skip_value(bytes, at)?;
        let value = skip_space(bytes, skip_space(bytes, end) + 1);
        if &bytes[at + 1..end - 1] == key.as_bytes() {
            return Some(value);
        }
        at = skip_space(bytes, skip_value(bytes, value)?);
        if bytes.get(at) == Some(&b',') {
            at = skip_space(bytes, at + 1);
        }
    }
    None
}

fn skip_space(bytes: &[u8], at: usize) -> usize {
    at + bytes.iter().skip(at).take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// The end of the value that begins at `at`.
fn skip_value(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at)? {
        b'"' => skip_string(bytes, at),
        b'{' | b'[' => skip_nested(bytes, at),
        _ => Some(at + bytes[at..].iter().take_while(|byte| !b",]} \t\r\n".contains(byte)).count()),
    }
}

fn skip_string(bytes: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn skip_nested(bytes: &[u8], at: usize) -> Option<usize> {
    let (mut at, mut depth) = (at, 0);
    loop {
        match bytes.get(at)? {
            b'"' => {
                at = skip_string(bytes, at)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

/// `text` with the value at `path` replaced; unchanged where there is none.
pub fn replaced(text: &str, path: &[&str], value: &str) -> String {
    let mut text = text.to_owned();
    if let Some(place) = find(&text, path) {
        text.replace_range(place, value);
    }
    text
}

/// `text` as a JSON string.
pub fn quoted(text: &str) -> String {
    let mut answer = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => answer.extend(['\\', character]),
            control if control.is_control() => answer.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => answer.push(other),
        }
    }
    answer + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{ "args": ["}"], "process": {"args" : [ "a\"]", {"args": 1} ], "terminal":true}, "n": 12 }"#;

    #[test]
    fn finds_by_path_not_by_name() {
        let found = |path: &[&str]| find(TEXT, path).map(|place| &TEXT[place]);
        assert_eq!(found(&["process", "args"]), Some(r#"[ "a\"]", {"args": 1} ]"#));
        assert_eq!(found(&["process", "terminal"]), Some("true"));
        assert_eq!(found(&["n"]), Some("12"));
        assert_eq!(found(&["process", "n"]), None);
        assert_eq!(found(&["n", "args"]), None);
    }

    #[test]
    fn an_unfinished_text_has_nothing_to_find() {
        assert_eq!(find(r#"{"a": [1, "#, &["a"]), None);
    }

    #[test]
    fn replaces_in_place() {
        assert_eq!(replaced(r#"{"a":{"b": 1}}"#, &["a", "b"], "[2]"), r#"{"a":{"b": [2]}}"#);
    }

    #[test]
    fn quotes_what_json_forbids() {
        assert_eq!(quoted("a\"\\\n"), r#""a\"\\\u000a""#);
    }
}
