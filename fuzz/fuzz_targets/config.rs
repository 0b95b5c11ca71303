//! config.json to a configuration, and on to a plan: any text is a plan or an error.

#![no_main]

use std::path::Path;

use ferry::cgroup::Driver;
use ferry::container::Id;
use ferry::host::Host;
use ferry::launch::plan::{self, Options};
use ferry::spec::Document;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let document = Document::new(Path::new("/bundle/config.json"), text.to_vec());
    let config = match document.config() {
        Ok(config) => config,
        Err(error) => {
            assert!(error.to_string().starts_with("/bundle/config.json"), "{error}");
            return;
        }
    };
    let Ok(id) = Id::new("fuzzed") else { return };
    for privileged in [true, false] {
        let host = Host { uid: if privileged { 0 } else { 1000 }, privileged, ..ferry::host::probe() };
        let options = Options { cgroup_driver: Driver::Disabled, ..Options::default() };
        match plan::plan(&id, &config, Path::new("/bundle"), &host, &options) {
            Ok(plan) => drop(serde_json::to_string(&plan)),
            Err(error) => drop(document.locate(error).to_string()),
        }
    }
});
