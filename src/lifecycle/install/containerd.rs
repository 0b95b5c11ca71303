//! containerd: tables for its CRI plugin in config.toml, between two marks at the file's end.
//!
//! Not a file of ferry's own by `imports`: containerd 1.7 takes a plugin's whole section from the last file that has one,
//! so that such a file would drop the machine's other settings for the plugin. A table can stand anywhere in TOML, and at
//! the end it disturbs nothing.

use std::ffi::OsStr;
use std::path::Path;

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
    if rest.lines().any(|line| line.starts_with(['[', ' ', '\t']) && line.contains("runtimes.ferry")) {
        return Err(Error::said("change", "containerd's configuration", "it has a runtime called ferry already")
            .hint("take that out first"));
    }
    let block = block(&rest, binary)?;
    let newline = if rest.is_empty() || rest.ends_with('\n') { "" } else { "\n" };
    Ok(Edited { file: Some(format!("{rest}{newline}{block}")), part: Some(block) })
}

/// The file without what was added to it.
fn without_block(text: &str) -> Result<String> {
    let damaged = || {
        Error::said(
            "change",
            "containerd's configuration",
            "of the two lines that begin and end ferry's part one is missing",
        )
        .hint("take out that part by hand")
    };
    match (text.find(BEGIN), text.find(END)) {
        (None, None) => Ok(text.to_owned()),
        (Some(begin), Some(end)) if begin < end => Ok(format!("{}{}", &text[..begin], &text[end + END.len()..])),
        _ => Err(damaged()),
    }
}

fn block(rest: &str, binary: &str) -> Result<String> {
    let (version, plugin) = match version(rest) {
        // What both containerd 1 and 2 read; an empty file would be taken for the oldest version.
        None if is_empty(rest) => ("version = 2\n", "io.containerd.grpc.v1.cri"),
        Some("2") => ("", "io.containerd.grpc.v1.cri"),
        Some("3") => ("", "io.containerd.cri.v1.runtime"),
        other => {
            let found = format!("it is written in version {} of its language", other.unwrap_or("1"));
            return Err(Error::said("change", "containerd's configuration", found)
                .hint("`containerd config migrate` brings it to a newer one"));
        }
    };
    // The kubelet and its runtimes have to agree on who makes cgroups; what holds for the others here holds for ferry.
    let systemd = rest.lines().map(squeezed).any(|line| line == "SystemdCgroup=true");
    let table = format!("[plugins.\"{plugin}\".containerd.runtimes.ferry");
    let (kind, named) = ("  runtime_type = \"io.containerd", quoted(binary));
    let tables = if Path::new(binary).file_name() == Some(OsStr::new(SHIM)) {
        format!("{table}]\n{kind}.ferry.v2\"\n  runtime_path = {named}\n{table}.options]\n")
    } else {
        format!("{table}]\n{kind}.runc.v2\"\n{table}.options]\n  BinaryName = {named}\n")
    };
    Ok(format!("{BEGIN}{version}{tables}  SystemdCgroup = {systemd}\n{END}"))
}

/// The version that a file says it is written in, which it does before its first table.
fn version(text: &str) -> Option<&str> {
    let head = text.lines().map(str::trim).take_while(|line| !line.starts_with('['));
    let value = head.filter_map(|line| line.strip_prefix("version")?.trim_start().strip_prefix('=')).next()?;
    Some(value.split('#').next().unwrap_or(value).trim())
}

fn is_empty(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#'))
}

/// A line without blanks and comments.
fn squeezed(line: &str) -> String {
    line.split('#').next().unwrap_or(line).split_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str =
        "version = 2\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    sandbox_image = \"p\" # mine\n";

    fn text(current: &str, deed: Deed) -> Option<String> {
        edit(current, "/usr/bin/ferry", deed).unwrap().file
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
        let after = text(&format!("{USERS}[x.options]\n  SystemdCgroup=true # yes\n"), Deed::Install).unwrap();
        assert!(after.contains("SystemdCgroup = true\n# ferry: end"), "{after}");
    }

    #[test]
    fn the_plugin_is_called_after_the_version() {
        let after = text("version = 3 # new\n", Deed::Install).unwrap();
        assert!(after.contains("[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.ferry]"), "{after}");
        for old in ["version = 1\n", "root = \"/r\"\n", "[a]\nversion = 2\n"] {
            let error = edit(old, "/ferry", Deed::Install).unwrap_err().to_string();
            assert!(error.contains("version 1 of its language (hint: `containerd config migrate`"), "{error}");
        }
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let theirs = format!("{USERS}[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.ferry]\n");
        assert!(edit(&theirs, "/ferry", Deed::Install).unwrap_err().to_string().contains("called ferry already"));
        let damaged = text(USERS, Deed::Install).unwrap().replace(END, "");
        for deed in [Deed::Install, Deed::Undo] {
            assert!(edit(&damaged, "/ferry", deed).unwrap_err().to_string().contains("one is missing"));
        }
    }
}
