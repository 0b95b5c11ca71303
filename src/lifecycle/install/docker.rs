//! docker: a row under `runtimes` of daemon.json (dockerd(8)). Whatever else is in that file stays, in its order and its
//! own spelling.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

use super::{Deed, Edited, Engine, quoted};
use crate::error::{Error, Result};

pub(super) const ENGINE: Engine = Engine {
    name: "docker",
    system: "/etc/docker/daemon.json",
    user: "docker/daemon.json",
    edit,
    then: ["systemctl reload docker", "systemctl --user reload docker", "docker run --runtime ferry IMAGE"],
};

/// An object's members as they stand in the text.
#[derive(Default)]
struct Members(Vec<(String, Box<RawValue>)>);

impl Members {
    fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    fn set(&mut self, key: &str, value: Box<RawValue>) {
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some(member) => member.1 = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    fn remove(&mut self, key: &str) {
        self.0.retain(|(name, _)| name != key);
    }

    /// The members of the object `key`, none if it is not there.
    fn below(&self, key: &str) -> Result<Self> {
        self.get(key).map_or_else(|| Ok(Self::default()), |value| parse(value.get(), key))
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Members, A::Error> {
                let mut members = Members::default();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    members.set(&key, value);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

fn edit(current: &str, binary: &str, deed: Deed) -> Result<Edited> {
    let mut daemon = if current.trim().is_empty() { Members::default() } else { parse(current, "the file")? };
    let mut runtimes = daemon.below("runtimes")?;
    let mut ferry = runtimes.below("ferry")?;
    let path = raw(&quoted(binary))?;
    let is_there = runtimes.get("ferry").is_some();
    let is_done = match deed {
        Deed::Install => ferry.get("path").is_some_and(|there| there.get() == path.get()),
        Deed::Undo => !is_there,
    };
    if is_done {
        return Ok(Edited { file: (!current.is_empty()).then(|| current.to_owned()), part: None });
    }
    match deed {
        Deed::Install => {
            ferry.set("path", path);
            runtimes.set("ferry", object(&ferry)?);
        }
        Deed::Undo if daemon.get("default-runtime").is_some_and(|name| name.get() == "\"ferry\"") => {
            return Err(Error::said("take ferry out of", "docker's runtimes", "it is docker's default-runtime")
                .hint("name another one there first: without it docker would not start"));
        }
        Deed::Undo => runtimes.remove("ferry"),
    }
    if runtimes.0.is_empty() {
        daemon.remove("runtimes");
    } else {
        daemon.set("runtimes", object(&runtimes)?);
    }
    let text = || serde_json::to_string_pretty(&daemon).map(|text| text + "\n");
    let file = (!daemon.0.is_empty()).then(text).transpose();
    Ok(Edited {
        file: file.map_err(|why| Error::said("write", "docker's configuration", why.to_string()))?,
        part: None,
    })
}

fn parse(text: &str, what: &str) -> Result<Members> {
    serde_json::from_str(text).map_err(|why| Error::said("read docker's configuration:", what, why.to_string()))
}

fn raw(text: &str) -> Result<Box<RawValue>> {
    RawValue::from_string(text.to_owned()).map_err(|why| Error::said("write", text, why.to_string()))
}

fn object(members: &Members) -> Result<Box<RawValue>> {
    raw(&serde_json::to_string(members).map_err(|why| Error::said("write", "runtimes", why.to_string()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(current: &str, deed: Deed) -> Option<String> {
        edit(current, "/usr/bin/ferry", deed).unwrap().file
    }

    #[test]
    fn a_file_is_made_and_goes_again() {
        let made = text("", Deed::Install).unwrap();
        assert_eq!(made, "{\n  \"runtimes\": {\"ferry\":{\"path\":\"/usr/bin/ferry\"}}\n}\n");
        assert_eq!(text(&made, Deed::Install).as_ref(), Some(&made));
        assert_eq!(text(&made, Deed::Undo), None);
        assert_eq!(text("", Deed::Undo), None);
    }

    #[test]
    fn everything_else_stays_in_its_order() {
        let before = r#"{"zeta": 1.50, "runtimes": {"other": {"path": "o"}}, "alpha": [ 1,2 ]}"#;
        let after = text(before, Deed::Install).unwrap();
        let ferry = r#"{"other":{"path": "o"},"ferry":{"path":"/usr/bin/ferry"}}"#;
        assert_eq!(after, format!("{{\n  \"zeta\": 1.50,\n  \"runtimes\": {ferry},\n  \"alpha\": [ 1,2 ]\n}}\n"));
        let back = text(&after, Deed::Undo).unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&back).unwrap(),
            serde_json::from_str::<serde_json::Value>(before).unwrap()
        );
        assert_eq!(text(before, Deed::Undo).unwrap(), before);
    }

    #[test]
    fn arguments_that_a_user_gave_it_stay() {
        let before = r#"{"runtimes": {"ferry": {"path": "/old", "runtimeArgs": ["--debug"]}}}"#;
        let after = text(before, Deed::Install).unwrap();
        assert!(after.contains(r#"{"path":"/usr/bin/ferry","runtimeArgs":["--debug"]}"#), "{after}");
    }

    #[test]
    fn what_would_stop_docker_is_refused() {
        let default = r#"{"default-runtime": "ferry", "runtimes": {"ferry": {"path": "/usr/bin/ferry"}}}"#;
        let error = edit(default, "/usr/bin/ferry", Deed::Undo).unwrap_err().to_string();
        assert!(error.contains("it is docker's default-runtime (hint: "), "{error}");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for current in ["[]", "{", "{\"runtimes\": 3}", "{\"runtimes\": {\"ferry\": []}}", "{} {}"] {
            let error = edit(current, "/usr/bin/ferry", Deed::Install).unwrap_err().to_string();
            assert!(error.starts_with("cannot read docker's configuration: "), "{current}: {error}");
        }
    }
}
