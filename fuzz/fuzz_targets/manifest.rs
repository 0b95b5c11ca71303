//! The documents of an image: an index, a manifest, a configuration, or none.

#![no_main]

use ferry::image::manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    for described in ["", "application/vnd.oci.image.index.v1+json"] {
        drop(manifest::document_kind(text, described, "fuzzed"));
    }
    drop(manifest::parse::<manifest::Manifest>(text, "fuzzed"));
    drop(manifest::parse::<manifest::Index>(text, "fuzzed"));
    if let Ok(text) = std::str::from_utf8(text) {
        drop(manifest::platform(text));
        drop(text.parse::<ferry::image::reference::Reference>());
        drop(text.parse::<ferry::image::digest::Digest>());
    }
});
