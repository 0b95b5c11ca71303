//! What a registry answers to a request without the right to it: the `WWW-Authenticate` header (RFC 9110, 11.6.1), of which
//! registries use two schemes: `Basic`, and `Bearer` with the address of a server that gives out tokens.

use std::collections::BTreeMap;

/// How the registry wants to be asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from `realm`, for `service`, good for `scope` (distribution's token specification).
    Bearer {
        /// The address of the token server, with its scheme.
        realm: String,
        /// Who the token is for, as the token server is told.
        service: Option<String>,
        /// What the token is to permit: `repository:NAME:pull`.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenge in one header's value that this program can meet. `None`: there is none, or the value is malformed.
    pub fn parse(value: &str) -> Option<Self> {
        let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest)?;
        Some(Self::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }
}

/// `name=value, name="quoted \" value"` with names in lower case.
fn parameters(mut text: &str) -> Option<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    loop {
        text = text.trim_start_matches([' ', '\t', ',']);
        if text.is_empty() {
            return Some(found);
        }
        let (name, rest) = text.split_once('=')?;
        let (value, rest) = match rest.strip_prefix('"') {
            Some(rest) => quoted(rest)?,
            None => {
                let end = rest.find([',', ' ']).unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        found.insert(name.trim().to_ascii_lowercase(), value);
        text = rest;
    }
}

/// The text up to the closing quote, and what follows that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_registries_send() {
        assert_eq!(Challenge::parse("Basic realm=\"Registry\""), Some(Challenge::Basic));
        assert_eq!(
            Challenge::parse(
                r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#
            ),
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".to_owned(),
                service: Some("registry.example".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned()),
            })
        );
        assert_eq!(
            Challenge::parse(r#"bearer Realm=https://a/t , service="a \"b\"""#),
            Some(Challenge::Bearer {
                realm: "https://a/t".to_owned(),
                service: Some("a \"b\"".to_owned()),
                scope: None
            })
        );
    }

    #[test]
    fn what_cannot_be_met_is_none() {
        for value in [
            "",
            "Negotiate",
            "Bearer",
            "Bearer service=\"x\"",
            "Bearer realm=\"unclosed",
            "Bearer realm",
            "Bearer realm=\"a\\",
        ] {
            assert_eq!(Challenge::parse(value), None, "{value}");
        }
    }
}
