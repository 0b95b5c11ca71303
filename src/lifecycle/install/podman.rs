//! podman: a file of ferry's own among those that are read after containers.conf (containers.conf(5)).

use super::{Deed, Edited, Engine};
use crate::error::{Error, Result};

pub(super) const ENGINE: Engine = Engine {
    name: "podman",
    system: "/etc/containers/containers.conf.d/50-ferry.conf",
    user: "containers/containers.conf.d/50-ferry.conf",
    edit,
    then: ["", "", "podman --runtime ferry run IMAGE"],
};

/// By which a file is known as ferry's.
const MARK: &str = "# Made by `ferry install --engine podman --write`; the same with --undo removes it.\n";

fn edit(current: &str, binary: &str, deed: Deed) -> Result<Edited> {
    if !current.is_empty() && !current.starts_with(MARK) {
        return Err(Error::said("change", "podman's configuration", "this file was not made by ferry")
            .hint("move it away, or give another file by --config"));
    }
    let text = || format!("{MARK}[engine.runtimes]\nferry = [{}]\n", super::quoted(binary));
    Ok(Edited { file: (deed == Deed::Install).then(text), part: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_file_is_ferrys() {
        let made = edit("", "/usr/bin/ferry", Deed::Install).unwrap().file.unwrap();
        assert_eq!(made, format!("{MARK}[engine.runtimes]\nferry = [\"/usr/bin/ferry\"]\n"));
        assert_eq!(edit(&made, "/usr/bin/ferry", Deed::Install).unwrap().file.as_ref(), Some(&made));
        assert_eq!(edit(&made, "/usr/bin/ferry", Deed::Undo).unwrap().file, None);
    }

    #[test]
    fn somebody_elses_is_not_touched() {
        for deed in [Deed::Install, Deed::Undo] {
            let error = edit("[engine]\n", "/ferry", deed).unwrap_err().to_string();
            assert!(error.contains("was not made by ferry"), "{error}");
        }
    }
}
