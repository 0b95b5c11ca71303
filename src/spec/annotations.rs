//! `annotations` as a map in which every key is there once. serde_json's own maps keep the last of two, and what a tool that
//! reads the same file with another parser takes for the value would then be another. config.md#annotations

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserializer;
use serde::de::{Error, MapAccess, Visitor};

/// Reads the map; null is the empty one.
///
/// # Errors
/// A key that is empty or there twice; a value that is no string.
pub(super) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    deserializer.deserialize_any(Annotations)
}

struct Annotations;

impl<'de> Visitor<'de> for Annotations {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of strings to strings")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut rows: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, value)) = rows.next_entry::<String, String>()? {
            if key.is_empty() {
                return Err(A::Error::custom("a key is the empty string"));
            }
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key} is there twice")));
            }
            map.insert(key, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<BTreeMap<String, String>, String> {
        read(&mut serde_json::Deserializer::from_str(text)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_map_of_strings_to_strings() {
        assert_eq!(of("null"), Ok(BTreeMap::new()));
        assert_eq!(
            of(r#"{"a": "", "b": "x"}"#).unwrap(),
            BTreeMap::from([("a".into(), "".into()), ("b".into(), "x".into())])
        );
        for text in [r#"{"a": 1}"#, r#"{"a": null}"#, r#"{"a": ["b"]}"#, r#"["a"]"#, r#""a""#] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_key_is_there_once_and_is_not_empty() {
        let error = of(r#"{"a": "x", "b": "y", "a": "x"}"#).unwrap_err();
        assert!(error.starts_with("the key a is there twice"), "{error}");
        let error = of(r#"{"": "x"}"#).unwrap_err();
        assert!(error.starts_with("a key is the empty string"), "{error}");
    }
}
