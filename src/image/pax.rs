//! Records of PAX headers, each `LENGTH KEY=VALUE` and a newline. Values are bytes like any other, newlines too (names, file
//! capabilities), so only the length tells where one ends. POSIX pax(1), "pax Extended Header"

/// The key of an extended attribute is this and its name.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";
/// What a key cannot hold, and what stands for it: as GNU tar writes names of attributes.
const ESCAPES: [(u8, &[u8]); 2] = [(b'%', b"%25"), (b'=', b"%3D")];

/// What a header says, record by record.
#[derive(Debug, Clone, Copy)]
pub struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// The records in a header's body.
    pub fn of(body: &'a [u8]) -> Self {
        Self(body)
    }

    fn cut(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let length: usize = std::str::from_utf8(&self.0[..digits]).ok()?.parse().ok()?;
        let (record, rest) = self.0.split_at_checked(length)?;
        let record = record.get(digits..)?.strip_prefix(b" ")?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        self.0 = rest;
        Some((&record[..equals], &record[equals + 1..]))
    }
}

impl<'a> Iterator for Records<'a> {
    /// Key and value.
    type Item = Result<(&'a [u8], &'a [u8]), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = self.cut();
        if record.is_none() {
            self.0 = &[];
        }
        Some(record.ok_or_else(|| "a record of its PAX header is broken".to_owned()))
    }
}

/// Adds a record to a header's body.
pub fn add(body: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // Blank, equals sign and newline. The length counts its own digits, too.
    let others = 3 + key.len() + value.len();
    let mut length = others + 1;
    while others + length.to_string().len() > length {
        length += 1;
    }
    body.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        body.extend_from_slice(part);
    }
}

/// The key of the attribute that is called so.
pub fn attribute_key(name: &[u8]) -> Vec<u8> {
    let mut key = ATTRIBUTE.to_vec();
    for byte in name {
        match ESCAPES.iter().find(|(escaped, _)| escaped == byte) {
            Some((_, escape)) => key.extend_from_slice(escape),
            None => key.push(*byte),
        }
    }
    key
}

/// The name of the attribute with this key, if it is one's.
pub fn attribute_name(key: &[u8]) -> Option<Vec<u8>> {
    let mut rest = key.strip_prefix(ATTRIBUTE)?;
    let mut name = Vec::with_capacity(rest.len());
    while let Some((byte, behind)) = rest.split_first() {
        match ESCAPES.iter().find(|(_, escape)| rest.starts_with(escape)) {
            Some((escaped, escape)) => {
                name.push(*escaped);
                rest = &rest[escape.len()..];
            }
            None => {
                name.push(*byte);
                rest = behind;
            }
        }
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_whatever_it_is() {
        let long = vec![b'\n'; 1000];
        let written = [
            (&b"path"[..], &b"a\nb"[..]),
            (b"comment", b""),
            (b"user", b"5 a=b\n\n"),
            (b"k", b"12"),
            (b"k", &long),
            (b"key\n\xff", b"\0=\n"),
        ];
        // Around every length where there is one more digit.
        let padded: Vec<Vec<u8>> = (85..105).chain(980..1005).map(|length| vec![b'x'; length]).collect();
        let written = written.into_iter().chain(padded.iter().map(|value| (&b"key"[..], value.as_slice())));
        let mut body = Vec::new();
        written.clone().for_each(|(key, value)| add(&mut body, key, value));
        let read: Vec<_> = Records::of(&body).map(Result::unwrap).collect();
        assert_eq!(read, written.collect::<Vec<_>>());
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        for bad in [
            &b"x"[..],
            b"\n",
            b"0 a=b\n",
            b"2 a=b\n",
            b"5 a=b\n",
            b"7 a=b\n",
            b"6 a b\n",
            b"+6 a=b\n",
            b"6 a=b\n\0",
            b"99999999999999999999 a=b\n",
        ] {
            assert!(Records::of(bad).any(|record| record.is_err()), "{bad:?}");
        }
        assert_eq!(Records::of(b"6 a=b\n").count(), 1);
    }

    #[test]
    fn names_of_attributes_may_have_what_keys_cannot() {
        for (name, key) in [
            ("user.a=b", "SCHILY.xattr.user.a%3Db"),
            ("user.50%", "SCHILY.xattr.user.50%25"),
            ("user.%3D", "SCHILY.xattr.user.%253D"),
            ("user.note", "SCHILY.xattr.user.note"),
        ] {
            assert_eq!(attribute_key(name.as_bytes()), key.as_bytes());
            assert_eq!(attribute_name(key.as_bytes()).unwrap(), name.as_bytes());
        }
        // Others write a percent sign as it is.
        assert_eq!(attribute_name(b"SCHILY.xattr.user.5%").unwrap(), b"user.5%");
        assert_eq!(attribute_name(b"path"), None);
    }
}
