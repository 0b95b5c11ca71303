//! The manifest: what was dumped, where, and what the archive is made of.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{CONFIG, IMAGES, SPEC};
use crate::checkpoint::criu::shown;
use crate::checkpoint::root::{DIFF, Origin};
use crate::error::{Context, Error, Result};
use crate::image::digest::Digest;
use crate::procfs;

/// The version of the format.
pub const FORMAT: u32 = 1;

/// A manifest longer than this is none. Bytes.
pub const LONGEST: u64 = 16 << 20;

/// More parts than any container's images are.
const MOST_PARTS: usize = 200_000;

/// What stands in `ferry.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The container's id.
    pub id: String,
    /// When it was dumped: RFC 3339, UTC.
    pub created: String,
    /// Where.
    pub host: Host,
    /// The flags that the restore needs too.
    pub flags: BTreeSet<String>,
    /// What the root lies upon, where it is an overlay of the container's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Origin>,
    /// Everything else in the archive, by name.
    pub parts: BTreeMap<String, Part>,
}

/// One file of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Bytes.
    pub size: u64,
    /// Of its content.
    pub digest: Digest,
}

/// What a container finds on its host, and takes for granted once it has looked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    /// As uname(2) has it: `x86_64`.
    pub architecture: String,
    /// As uname(2) has it: `6.12.43+deb13-amd64`.
    pub kernel: String,
    /// As 40101 for CRIU 4.1.1.
    pub criu: u32,
    /// Bytes.
    pub page_size: u64,
    /// Extensions of the processor that programs choose their code by, as `/proc/cpuinfo` calls them.
    pub cpu_features: BTreeSet<String>,
}

/// Of the flags of an x86 processor those that are seen in programs: instructions, and the size of what xsave keeps.
const X86: [&str; 64] = [
    "3dnow",
    "3dnowext",
    "abm",
    "adx",
    "aes",
    "amx_bf16",
    "amx_int8",
    "amx_tile",
    "avx",
    "avx2",
    "avx512_bf16",
    "avx512_bitalg",
    "avx512_fp16",
    "avx512_vbmi2",
    "avx512_vnni",
    "avx512_vp2intersect",
    "avx512_vpopcntdq",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512er",
    "avx512f",
    "avx512ifma",
    "avx512pf",
    "avx512vbmi",
    "avx512vl",
    "avx_vnni",
    "bmi1",
    "bmi2",
    "clflushopt",
    "clwb",
    "cx16",
    "erms",
    "f16c",
    "fma",
    "fma4",
    "fsgsbase",
    "fsrm",
    "gfni",
    "lahf_lm",
    "movbe",
    "movdir64b",
    "movdiri",
    "ospke",
    "pclmulqdq",
    "pni",
    "popcnt",
    "rdpid",
    "rdrand",
    "rdseed",
    "rdtscp",
    "serialize",
    "sha_ni",
    "sse4_1",
    "sse4_2",
    "sse4a",
    "ssse3",
    "tbm",
    "vaes",
    "vpclmulqdq",
    "waitpkg",
    "xop",
    "xsave",
    "xsavec",
];

impl Host {
    /// This host; `criu` is the version of its CRIU.
    ///
    /// # Errors
    /// `/proc/cpuinfo` cannot be read.
    pub fn own(criu: u32) -> Result<Self> {
        let name = rustix::system::uname();
        let architecture = name.machine().to_string_lossy().into_owned();
        let cpus = procfs::text("/proc/cpuinfo").or_cannot("read", "/proc/cpuinfo")?;
        Ok(Self {
            kernel: name.release().to_string_lossy().into_owned(),
            criu,
            page_size: rustix::param::page_size() as u64,
            cpu_features: features(&cpus, &architecture),
            architecture,
        })
    }

    /// Whether what was dumped on `other` runs here.
    ///
    /// # Errors
    /// What this host lacks.
    pub fn can_run(&self, other: &Self) -> Result<()> {
        let lacks = |why: String, hint: &'static str| Err(Error::said("restore", "this archive here", why).hint(hint));
        if self.architecture != other.architecture {
            let why = format!(
                "it is from a machine of architecture {}, and this is {}",
                other.architecture, self.architecture
            );
            return lacks(why, "restore it on a machine of the same kind");
        }
        if self.page_size != other.page_size {
            let why =
                format!("its kernel had pages of {} bytes, and this one's have {}", other.page_size, self.page_size);
            return lacks(why, "restore it on a kernel with pages of that size");
        }
        let missing: Vec<&str> = other.cpu_features.difference(&self.cpu_features).map(String::as_str).collect();
        if !missing.is_empty() {
            let why = format!("its programs may use what this processor does not have: {}", missing.join(", "));
            return lacks(why, "restore it on a machine with such a processor");
        }
        if self.criu < other.criu {
            let why = format!("it was made by {}, and here is {}", shown(other.criu), shown(self.criu));
            return lacks(why, "install a CRIU that is at least as new");
        }
        if release(&self.kernel) < release(&other.kernel) {
            let why = format!("it is from Linux {}, and this is the older {}", other.kernel, self.kernel);
            return lacks(
                why,
                "restore it under a kernel that is at least as new: its programs may use what came with it",
            );
        }
        Ok(())
    }
}

/// The two numbers that decide on what a kernel can do.
fn release(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn features(cpus: &str, architecture: &str) -> BTreeSet<String> {
    let line = |key: &str| cpus.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'));
    let words = line("flags").or_else(|| line("Features")).unwrap_or_default().split_whitespace();
    words.filter(|word| architecture != "x86_64" || X86.contains(word)).map(str::to_owned).collect()
}

impl Manifest {
    /// Reads a manifest, and holds it to what the format allows.
    ///
    /// # Errors
    /// It is none, or names what an archive never has.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let wrong = |why: String| Error::said("read", "the archive's manifest", why);
        let version: serde_json::Value = serde_json::from_slice(text).map_err(|why| wrong(why.to_string()))?;
        let format = &version["format"];
        if *format != FORMAT {
            return Err(wrong(format!("it is of format {format}, and this ferry knows {FORMAT}")));
        }
        let manifest: Self = serde_json::from_value(version).map_err(|why| wrong(why.to_string()))?;
        if manifest.parts.len() > MOST_PARTS {
            return Err(wrong(format!("it has more than {MOST_PARTS} parts")));
        }
        let host = &manifest.host;
        let texts = [&manifest.id, &manifest.created, &host.architecture, &host.kernel];
        let lists = manifest.flags.iter().chain(&host.cpu_features);
        let origin = manifest.root.iter().flat_map(Origin::texts).collect::<Vec<_>>();
        // They are shown to people.
        if texts
            .into_iter()
            .chain(lists)
            .chain(&origin)
            .any(|text| text.len() > 1000 || text.chars().any(char::is_control))
        {
            return Err(wrong("it has a text that is none".to_owned()));
        }
        if manifest.root.is_some() != manifest.parts.contains_key(DIFF) {
            return Err(wrong(format!("it has a root of its own without {DIFF}, or that without a root")));
        }
        match manifest.parts.keys().find(|name| !is_part(name)) {
            Some(name) => Err(wrong(format!("{name:?} is no part of an archive"))),
            None => Ok(manifest),
        }
    }

    /// Bytes of all parts.
    ///
    /// # Errors
    /// More than there can be.
    pub fn size(&self) -> Result<u64> {
        let total = self.parts.values().try_fold(0_u64, |total, part| total.checked_add(part.size));
        total.ok_or_else(|| Error::said("read", "the archive's manifest", "its parts are larger than any disk"))
    }
}

/// The names that parts have. None leads anywhere but into the directory of images or the one above it.
pub fn is_part(name: &str) -> bool {
    if [CONFIG, SPEC, DIFF].contains(&name) {
        return true;
    }
    let is_plain = |file: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        !file.is_empty() && file.len() <= 200 && !file.starts_with('.') && file.bytes().all(known)
    };
    name.strip_prefix(IMAGES).and_then(|rest| rest.strip_prefix('/')).is_some_and(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            architecture: "x86_64".into(),
            kernel: "6.12.43-x".into(),
            criu: 40101,
            page_size: 4096,
            cpu_features: ["avx", "sse4_2"].map(str::to_owned).into(),
        }
    }

    #[test]
    fn a_host_that_cannot_run_it_is_told_why() {
        let archived = host();
        assert!(host().can_run(&archived).is_ok());
        assert!(Host { kernel: "7.0.1".into(), criu: 40200, ..host() }.can_run(&archived).is_ok());
        for (here, said) in [
            (Host { architecture: "aarch64".into(), ..host() }, "architecture x86_64, and this is aarch64"),
            (Host { page_size: 65536, ..host() }, "pages of 4096 bytes"),
            (Host { cpu_features: BTreeSet::new(), ..host() }, "does not have: avx, sse4_2"),
            (Host { criu: 31701, ..host() }, "made by CRIU 4.1.1, and here is CRIU 3.17.1"),
            (Host { kernel: "6.1.0-44".into(), ..host() }, "Linux 6.12.43-x, and this is the older 6.1.0-44"),
        ] {
            let error = here.can_run(&archived).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn features_that_programs_see() {
        let cpus = "processor\t: 0\nflags\t\t: fpu avx sse4_2 hypervisor\nbugs\t\t: x\n";
        assert_eq!(features(cpus, "x86_64"), host().cpu_features);
        assert_eq!(features("Features\t: fp asimd\n", "aarch64").len(), 2);
        assert!(X86.is_sorted(), "a list that people keep");
    }

    #[test]
    fn names_that_lead_out_are_none() {
        for good in ["spec.dump", "rootfs-diff.tar", "checkpoint/pages-1.img", "checkpoint/descriptors.json"] {
            assert!(is_part(good), "{good}");
        }
        for bad in [
            "",
            "ferry.json",
            "checkpoint",
            "checkpoint/",
            "checkpoint/../x",
            "checkpoint/..",
            "checkpoint/a/b",
            "/spec.dump",
            "checkpoint/.x",
            "x",
            "checkpoint/a\0b",
            "checkpoint//a",
        ] {
            assert!(!is_part(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_manifest_of_another_form_is_none() {
        let whole = Manifest {
            format: FORMAT,
            id: "web".into(),
            created: String::new(),
            host: host(),
            flags: BTreeSet::new(),
            root: None,
            parts: BTreeMap::from([("spec.dump".to_owned(), Part { size: u64::MAX, digest: Digest::of(b"") })]),
        };
        let text = serde_json::to_string(&whole).unwrap();
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), whole);
        assert_eq!(whole.size().unwrap(), u64::MAX);
        for (from, to, said) in [
            ("\"format\":1", "\"format\":2", "it is of format 2"),
            ("spec.dump", "../spec.dump", "is no part of an archive"),
            ("\"id\"", "\"other\"", "unknown field"),
            ("sha256:", "md5:", "only sha256"),
            ("\"parts\"", "\"root\":{\"directory\":\"/srv\"},\"parts\"", "without rootfs-diff.tar"),
        ] {
            let error = Manifest::parse(text.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let mut two = whole;
        two.parts.insert("checkpoint/x".into(), Part { size: 1, digest: Digest::of(b"") });
        assert!(two.size().is_err());
    }
}
