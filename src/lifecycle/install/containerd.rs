//! containerd: tables for its CRI plugin in config.toml, between two marks at the file's end.
//!
//! Not a file of ferry's own by `imports`: containerd 1.7 takes a plugin's whole section from the last file that has one,
//! so that such a file would drop the machine's other settings for the plugin. A table can stand anywhere in TOML, and at
//! the end it disturbs nothing. But none can add to a table in braces, so the result is parsed before it is written.

use std::ffi::OsStr;
use std::path::Path;

use toml::{Table, Value};

use super::{Deed, Edited, Engine, SHIM, quoted};
use crate::error::{Error, Result};

pub(super) const ENGINE: Engine = Engine {
    name: "containerd",
    system: "/etc/containerd/config.toml",
    user: "containerd/config.toml",
    edit,
    then: [
        "systemctl restart containerd",
        "systemctl --user restart containerd",
        "Kubernetes: a RuntimeClass with `handler: ferry`; ctr needs no configuration: ctr run --runc-binary FERRY IMAGE NAME, or with \
         ferry's own shim in a directory of containerd's PATH ctr run --runtime io.containerd.ferry.v2 IMAGE NAME",
    ],
};

const BEGIN: &str =
    "# ferry: begin. Made by `ferry install --engine containerd --write`; the same with --undo removes it.\n";
const END: &str = "# ferry: end\n";

fn edit(current: &str, binary: &str, deed: Deed) -> Result<Edited> {
    let rest = without_block(current)?;
    if deed == Deed::Undo {
        return Ok(Edited { file: (!rest.trim().is_empty()).then_some(rest), part: None });
    }
    let table = parse(&rest).map_err(|why| refused(format!("it is no TOML: {why}")))?;
    let (version, plugin) = plugin(&table)?;
    let runtimes = runtimes(&table, plugin);
    if runtimes.is_some_and(|runtimes| runtimes.get("ferry").is_some()) {
        return Err(refused("it has a runtime called ferry already").hint("take that out first"));
    }
    let runtime = Runtime::new(binary, makes_cgroups_by_systemd(runtimes));
    let block = format!("{BEGIN}{version}{}{END}", runtime.tables(plugin));
    let newline = if rest.is_empty() || rest.ends_with('\n') { "" } else { "\n" };
    let file = format!("{rest}{newline}{block}");
    parse(&file).map_err(|why| {
        refused(format!("its runtimes are written in braces, and so take none from the file's end: {why}"))
            .hint(format!("add by hand, within them: {}", runtime.in_braces()))
    })?;
    Ok(Edited { file: Some(file), part: Some(block) })
}

fn refused(why: impl Into<String>) -> Error {
    Error::said("change", "containerd's configuration", why)
}

/// The error is one line, with the number of the one at fault.
fn parse(text: &str) -> std::result::Result<Table, String> {
    toml::from_str(text).map_err(|why| {
        let before = why.span().map_or(0, |span| span.start);
        let line = text.bytes().take(before).filter(|byte| *byte == b'\n').count() + 1;
        format!("line {line}: {}", why.message())
    })
}

/// The file without what was added to it.
fn without_block(text: &str) -> Result<String> {
    let damaged = || {
        refused("of the two lines that begin and end ferry's part one is missing").hint("take out that part by hand")
    };
    match (text.find(BEGIN), text.find(END)) {
        (None, None) => Ok(text.to_owned()),
        (Some(begin), Some(end)) if begin < end => Ok(format!("{}{}", &text[..begin], &text[end + END.len()..])),
        _ => Err(damaged()),
    }
}

/// The line that says the version, where it is still to be said, and what the CRI plugin is called in that version.
fn plugin(table: &Table) -> Result<(&'static str, &'static str)> {
    match table.get("version").map(Value::as_integer) {
        // What both containerd 1 and 2 read; an empty file would be taken for the oldest version.
        None if table.is_empty() => Ok(("version = 2\n", "io.containerd.grpc.v1.cri")),
        Some(Some(2)) => Ok(("", "io.containerd.grpc.v1.cri")),
        Some(Some(3)) => Ok(("", "io.containerd.cri.v1.runtime")),
        other => {
            let found = other.map_or(Some(1), |version| version).map_or("?".into(), |version| version.to_string());
            Err(refused(format!("it is written in version {found} of its language"))
                .hint("`containerd config migrate` brings it to a newer one"))
        }
    }
}

fn runtimes<'table>(table: &'table Table, plugin: &str) -> Option<&'table Value> {
    table.get("plugins")?.get(plugin)?.get("containerd")?.get("runtimes")
}

/// The kubelet and its runtimes have to agree on who makes cgroups; what holds for the others here holds for ferry.
fn makes_cgroups_by_systemd(runtimes: Option<&Value>) -> bool {
    let set = |runtime: &Value| runtime.get("options")?.get("SystemdCgroup")?.as_bool();
    runtimes.and_then(Value::as_table).is_some_and(|runtimes| runtimes.values().any(|other| set(other) == Some(true)))
}

/// What containerd is told of ferry, as `key = value`.
struct Runtime {
    keys: Vec<String>,
    options: Vec<String>,
}

impl Runtime {
    fn new(binary: &str, systemd: bool) -> Self {
        let (named, systemd) = (quoted(binary), format!("SystemdCgroup = {systemd}"));
        let kind = |name: &str| format!("runtime_type = \"io.containerd.{name}.v2\"");
        if Path::new(binary).file_name() == Some(OsStr::new(SHIM)) {
            Self { keys: vec![kind("ferry"), format!("runtime_path = {named}")], options: vec![systemd] }
        } else {
            Self { keys: vec![kind("runc")], options: vec![format!("BinaryName = {named}"), systemd] }
        }
    }

    fn tables(&self, plugin: &str) -> String {
        let table = format!("[plugins.\"{plugin}\".containerd.runtimes.ferry");
        let lines = |keys: &[String]| keys.iter().map(|key| format!("  {key}\n")).collect::<String>();
        format!("{table}]\n{}{table}.options]\n{}", lines(&self.keys), lines(&self.options))
    }

    fn in_braces(&self) -> String {
        format!("ferry = {{ {}, options = {{ {} }} }}", self.keys.join(", "), self.options.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str =
        "version = 2\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    sandbox_image = \"p\" # mine\n";

    fn text(current: &str, deed: Deed) -> Option<String> {
        edit(current, "/usr/bin/ferry", deed).unwrap().file
    }

    fn error(current: &str) -> String {
        edit(current, "/ferry", Deed::Install).unwrap_err().to_string()
    }

    #[test]
    fn what_is_there_stays_as_it_is() {
        let after = text(USERS, Deed::Install).unwrap();
        assert!(after.starts_with(USERS) && after.ends_with(END), "{after}");
        assert!(after.contains("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.ferry]\n"), "{after}");
        assert!(after.contains("BinaryName = \"/usr/bin/ferry\"\n  SystemdCgroup = false\n"), "{after}");
        assert_eq!(text(&after, Deed::Install).as_ref(), Some(&after));
        assert_eq!(text(&after, Deed::Undo).unwrap(), USERS);
    }

    #[test]
    fn a_shim_of_its_own_is_named_by_its_path() {
        let after = edit(USERS, "/opt/containerd-shim-ferry-v2", Deed::Install).unwrap().file.unwrap();
        let wanted =
            "  runtime_type = \"io.containerd.ferry.v2\"\n  runtime_path = \"/opt/containerd-shim-ferry-v2\"\n[";
        assert!(
            after.contains(wanted) && after.contains(".options]\n  SystemdCgroup = false\n# ferry: end"),
            "{after}"
        );
    }

    #[test]
    fn a_file_is_made_and_goes_again() {
        let made = text("", Deed::Install).unwrap();
        assert!(made.starts_with(&format!("{BEGIN}version = 2\n[plugins.")), "{made}");
        assert_eq!(text(&made, Deed::Install).as_ref(), Some(&made));
        assert_eq!(text(&made, Deed::Undo), None);
        let commented = text("# nothing yet\n", Deed::Install).unwrap();
        assert_eq!(text(&commented, Deed::Undo).unwrap(), "# nothing yet\n");
    }

    #[test]
    fn who_makes_cgroups_is_the_same_for_all() {
        let runc = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]";
        for (options, systemd) in [
            (format!("{runc}\n  options = {{ SystemdCgroup=true }} # yes\n"), true),
            (format!("{runc}\n  options.SystemdCgroup = false # SystemdCgroup = true\n"), false),
            ("[plugins.other.containerd.runtimes.runc.options]\n  SystemdCgroup = true\n".into(), false),
        ] {
            let after = text(&format!("{USERS}{options}"), Deed::Install).unwrap();
            assert!(after.ends_with(&format!("SystemdCgroup = {systemd}\n{END}")), "{after}");
        }
    }

    #[test]
    fn the_plugin_is_called_after_the_version() {
        let after = text("version = 3 # new\n", Deed::Install).unwrap();
        assert!(after.contains("[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.ferry]"), "{after}");
        for old in ["version = 1\n", "root = \"/r\"\n", "[a]\nversion = 2\n"] {
            let error = error(old);
            assert!(error.contains("version 1 of its language (hint: `containerd config migrate`"), "{error}");
        }
        assert!(error("version = \"2\"\n").contains("version ? of its language"));
    }

    /// Written in other ways, it is the same table.
    #[test]
    fn a_runtime_called_ferry_is_known_by_where_it_stands() {
        let runtimes = "plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes";
        for theirs in [
            format!("{USERS}[{runtimes}.ferry]\n"),
            format!("{USERS}[{runtimes}.\"ferry\"]\n"),
            format!("{USERS}[{runtimes}]\nferry.runtime_type = \"x\"\n"),
            format!("version = 2\n{runtimes} = {{ ferry = {{}} }}\n"),
        ] {
            assert!(error(&theirs).contains("called ferry already"), "{theirs}: {}", error(&theirs));
        }
        for others in [
            "[debug]\n  address = \"runtimes.ferry\"\n",
            " # runtimes.ferry\n",
            "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.ferry]\n",
            "[plugins.'io.containerd.grpc.v1.cri'.containerd]\n  runtimes.runc.runtime_type = \"x\"\n",
        ] {
            let after = text(&format!("{USERS}{others}"), Deed::Install).unwrap();
            let read: Table = toml::from_str(&after).unwrap();
            let ferry = &read["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["ferry"];
            assert_eq!(ferry["options"]["BinaryName"].as_str(), Some("/usr/bin/ferry"), "{after}");
        }
    }

    #[test]
    fn runtimes_in_braces_are_left_to_a_person() {
        for braces in [
            "[plugins.'io.containerd.grpc.v1.cri'.containerd]\n  runtimes = { runc = { options = { SystemdCgroup = true } } }\n",
            "[plugins.'io.containerd.grpc.v1.cri']\n  containerd = { runtimes = { runc = { options = { SystemdCgroup = true } } } }\n",
        ] {
            let error = error(&format!("version = 2\n{braces}"));
            let wanted = "(hint: add by hand, within them: ferry = { runtime_type = \"io.containerd.runc.v2\", options = \
                          { BinaryName = \"/ferry\", SystemdCgroup = true } })";
            assert!(error.contains("written in braces") && error.ends_with(wanted), "{error}");
        }
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let broken = error("version = 2\n[plugins\n");
        assert!(broken.contains("it is no TOML: line 2: "), "{broken}");
        let damaged = text(USERS, Deed::Install).unwrap().replace(END, "");
        for deed in [Deed::Install, Deed::Undo] {
            assert!(edit(&damaged, "/ferry", deed).unwrap_err().to_string().contains("one is missing"));
        }
    }
}
