//! Resources to the files of a cgroup, and the path of a cgroup to its place.

#![no_main]

use std::path::{Component, Path};

use ferry::cgroup::location::{Tree, locate};
use ferry::cgroup::resources;
use ferry::spec::resources::Resources;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let tree = Tree { mount: "/sys/fs/cgroup".into(), hybrid: false };
    if let Ok(path) = std::str::from_utf8(text)
        && let Ok(location) = locate(&tree, Path::new("/own.slice/own.scope"), path, "fuzzed")
    {
        let dir = location.dir();
        assert!(dir.starts_with(&tree.mount) && dir != tree.mount, "{dir:?}");
        assert!(!dir.components().any(|part| part == Component::ParentDir), "{dir:?}");
    }
    let Ok(wanted) = serde_json::from_slice::<Resources>(text) else { return };
    if let Ok(limits) = resources::plan(&wanted) {
        for write in &limits.writes {
            assert!(!write.file.contains('/') && !write.file.is_empty(), "{write:?}");
        }
    }
});
