//! Step one: can the destination take the container? Everything that is in the way is named, before anything is sent. Pure;
//! what the machines are is probed by [`machine`].

use std::path::Path;

use super::message::{Blob, Machine, PROTOCOL, Request};
use crate::checkpoint::root::Image;
use crate::error::{Context, Result};
use crate::procfs;

/// What images take beside memory. Bytes.
const BESIDE: u64 = 16 << 20;

/// A path of so many bytes no kernel takes. linux/limits.h
const PATH_MAX: usize = 4096;

/// The most bytes of an image's name, and the most layers: it is noted in a small file.
const LONGEST_NAME: usize = 1024;
const MOST_LAYERS: usize = 256;

/// What is in the way, on a machine with so much free. Bytes.
pub fn missing(request: &Request, here: &Machine, memory_free: u64, disk_free: u64) -> Vec<String> {
    let there = &request.machine;
    let mut missing = Vec::new();
    if request.version != PROTOCOL {
        missing.push(format!("it speaks version {} of the protocol, and this end {PROTOCOL}", request.version));
    }
    if request.bundle.as_os_str().len() >= PATH_MAX {
        missing.push("the path of its bundle is too long".to_owned());
    }
    let is_small = |image: &Image| image.name.len() <= LONGEST_NAME && image.layers.len() <= MOST_LAYERS;
    if !request.image.as_ref().is_none_or(is_small) {
        missing.push("its image has too long a name, or too many layers".to_owned());
    }
    if there.architecture != here.architecture {
        missing.push(format!("its processor is of {}, and this one of {}", there.architecture, here.architecture));
        return missing;
    }
    let lacking: Vec<&str> = there
        .cpu_features
        .iter()
        .filter(|feature| here.cpu_features.binary_search(feature).is_err())
        .map(String::as_str)
        .take(20)
        .collect();
    if !lacking.is_empty() {
        missing.push(format!("this processor lacks what its programs may use: {}", lacking.join(" ")));
    }
    if there.page_size != here.page_size {
        missing.push(format!("its pages have {} bytes, and these {}", there.page_size, here.page_size));
    }
    if there.criu / 100 > here.criu / 100 {
        let shown = criu_version;
        missing.push(format!(
            "this end has {}, and what {} writes may be unknown to it",
            shown(here.criu),
            shown(there.criu)
        ));
    }
    let needed = request.memory.saturating_add(request.files).saturating_add(BESIDE);
    if memory_free < request.memory {
        missing.push(format!("it takes {} bytes of memory, and {memory_free} are free", request.memory));
    }
    if disk_free < needed {
        missing.push(format!("its images take up to {needed} bytes of disk, and {disk_free} are free"));
    }
    missing
}

/// What an image that is to come takes of the disk: it lies there as it comes and as it is kept, and at least once more unpacked.
pub fn no_room(lacks: &[Blob], memory: u64, disk_free: u64) -> Option<String> {
    let bytes = lacks.iter().fold(0_u64, |bytes, blob| bytes.saturating_add(blob.size));
    let needed = bytes.saturating_mul(3).saturating_add(memory).saturating_add(BESIDE);
    (bytes > 0 && disk_free < needed)
        .then(|| format!("with its image it takes {needed} bytes of disk at least, and {disk_free} are free"))
}

fn criu_version(version: u32) -> String {
    format!("CRIU {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// This machine; `criu` is the version that is installed.
///
/// # Errors
/// procfs cannot be read.
pub fn machine(criu: u32) -> Result<Machine> {
    let names = rustix::system::uname();
    let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
    let cpuinfo = procfs::text("/proc/cpuinfo").or_cannot("read", "/proc/cpuinfo")?;
    Ok(Machine {
        architecture: text(names.machine()),
        kernel: text(names.release()),
        cpu_features: cpu_features(&cpuinfo),
        page_size: rustix::param::page_size() as u64,
        criu,
    })
}

/// What the first processor can, sorted: `flags` on x86, `Features` on Arm. proc_cpuinfo(5)
fn cpu_features(cpuinfo: &str) -> Vec<String> {
    let line = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        matches!(key.trim(), "flags" | "Features").then_some(value)
    });
    let mut features: Vec<String> = line.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    features.retain(|feature| !KERNEL_ONLY.contains(&feature.as_str()));
    features.sort();
    features
}

/// What stands among the features and is nothing that programs use: the kernel's own choices, and what virtual machines see.
/// arch/x86/include/asm/cpufeatures.h
const KERNEL_ONLY: [&str; 16] = [
    "hypervisor",
    "tsc_known_freq",
    "tsc_reliable",
    "nonstop_tsc",
    "constant_tsc",
    "arch_perfmon",
    "rep_good",
    "nopl",
    "cpuid",
    "pti",
    "ibrs",
    "ibpb",
    "stibp",
    "ssbd",
    "ibrs_enhanced",
    "md_clear",
];

/// Bytes of memory that can be had without swapping. proc_meminfo(5)
///
/// # Errors
/// procfs cannot be read.
pub fn memory_free() -> Result<u64> {
    let text = procfs::text("/proc/meminfo").or_cannot("read", "/proc/meminfo")?;
    Ok(available(&text).unwrap_or(0))
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes that are free where a path is, or is about to be.
///
/// # Errors
/// The kernel's answer.
pub fn disk_free(path: &Path) -> Result<u64> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    let found = rustix::fs::statvfs(there).or_cannot("look at", there.display())?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::super::message::{Choices, Token};
    use super::*;
    use crate::image::digest::Digest;

    fn x86() -> Machine {
        let features = ["avx", "avx2", "sse2"].map(str::to_owned).to_vec();
        Machine {
            architecture: "x86_64".into(),
            kernel: "6.12".into(),
            cpu_features: features,
            page_size: 4096,
            criu: 40101,
        }
    }

    fn request() -> Request {
        Request {
            version: PROTOCOL,
            token: Token::new().unwrap(),
            id: "web".into(),
            from: "a".into(),
            bundle: "/b".into(),
            config: "{}".into(),
            machine: x86(),
            memory: 64 << 20,
            files: 0,
            choices: Choices::default(),
            image: None,
            content: Vec::new(),
            leaves: false,
            dry_run: false,
        }
    }

    const PLENTY: u64 = 1 << 40;

    #[test]
    fn a_like_machine_with_room_takes_it() {
        assert_eq!(missing(&request(), &x86(), PLENTY, PLENTY), Vec::<String>::new());
        let newer = Machine { criu: 40200, kernel: "7.0".into(), ..x86() };
        assert_eq!(missing(&request(), &newer, PLENTY, PLENTY), Vec::<String>::new());
    }

    #[test]
    fn everything_in_the_way_is_named_at_once() {
        let here = Machine { cpu_features: vec!["sse2".into()], page_size: 65536, criu: 31700, ..x86() };
        let found = missing(&Request { version: 9, ..request() }, &here, 1000, 2000);
        for said in [
            "version 9 of the protocol",
            "lacks what its programs may use: avx avx2",
            "pages have 4096 bytes, and these 65536",
            "this end has CRIU 3.17.0",
            "takes 67108864 bytes of memory, and 1000 are free",
            "83886080 bytes of disk, and 2000 are free",
        ] {
            assert!(found.iter().any(|reason| reason.contains(said)), "{said}: {found:?}");
        }
        assert_eq!(found.len(), 6);
        let names = |name: usize, layers: usize| Image {
            name: "n".repeat(name),
            manifest: Digest::of(b""),
            layers: vec![Digest::of(b""); layers],
        };
        for (bundle, image, said) in [
            ("/b".repeat(2048), None, "the path of its bundle is too long"),
            ("/b".to_owned(), Some(names(1025, 1)), "too long a name, or too many layers"),
            ("/b".to_owned(), Some(names(9, 257)), "too long a name, or too many layers"),
        ] {
            let found = missing(&Request { bundle: bundle.into(), image, ..request() }, &x86(), PLENTY, PLENTY);
            assert!(found.len() == 1 && found[0].contains(said), "{found:?}");
        }
        let long = Request { image: Some(names(1024, 256)), ..request() };
        assert_eq!(missing(&long, &x86(), PLENTY, PLENTY), Vec::<String>::new());
        let arm = Machine { architecture: "aarch64".into(), ..x86() };
        assert_eq!(missing(&request(), &arm, 0, 0), ["its processor is of x86_64, and this one of aarch64"]);
    }

    #[test]
    fn this_machine_is_like_itself() {
        let here = machine(40101).unwrap();
        assert!(!here.architecture.is_empty() && here.page_size >= 4096);
        assert!(memory_free().unwrap() > 0 && disk_free(Path::new("/none/such")).unwrap() > 0);
        let request = Request { machine: here.clone(), ..request() };
        assert_eq!(missing(&request, &here, PLENTY, PLENTY), Vec::<String>::new());
    }

    #[test]
    fn features_that_no_program_uses_do_not_count() {
        let text = "processor\t: 0\nflags\t\t: sse2 hypervisor avx tsc_reliable\nflags\t: other\n";
        assert_eq!(cpu_features(text), ["avx", "sse2"]);
        assert_eq!(cpu_features("Features : fp asimd\n"), ["asimd", "fp"]);
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12288));
    }
}
