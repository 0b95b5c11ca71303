//! What a container's creator asks of its runtime: the Any of a Create, in runc's form, which `ctr` and docker send, or as the
//! CRI plugin has it of a runtime it does not know: the table of its configuration, in TOML.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use prost::Message;
use serde::Deserialize;

use super::failure::{Code, Failure};
use super::messages::{Any, GenericOptions, Options};
use crate::cgroup::Driver;
use crate::error::{Context, Error};
use crate::lifecycle::Setting;
use crate::log::{Format, Level, Log};

/// Where records are, a directory for each of containerd's namespaces, unless it is said otherwise.
const ROOT: &str = "/run/containerd/ferry";

/// The options in the CRI plugin's configuration, under the names they have for runc.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Table {
    no_pivot_root: bool,
    no_new_keyring: bool,
    shim_cgroup: String,
    io_uid: u32,
    io_gid: u32,
    root: String,
    systemd_cgroup: bool,
    criu_image_path: String,
    criu_work_path: String,
}

/// Reads what was asked; nothing is asked by one who sends nothing.
///
/// # Errors
/// It is of another kind, or damaged.
pub fn read(any: Option<&Any>) -> Result<Options, Failure> {
    let Some(any) = any else { return Ok(Options::default()) };
    match any.name() {
        "" => Ok(Options::default()),
        "containerd.runc.v1.Options" => Ok(Options::decode(&*any.value)?),
        "runtimeoptions.v1.Options" => of_table(&GenericOptions::decode(&*any.value)?),
        other => Err(Failure::new(Code::InvalidArgument, format!("unknown kind of runtime options: {other}"))),
    }
}

fn of_table(generic: &GenericOptions) -> Result<Options, Failure> {
    let refused =
        |why: String| Failure::new(Code::InvalidArgument, format!("cannot read the runtime's options: {why}"));
    let text = match generic.config_path.as_str() {
        "" => String::from_utf8(generic.config_body.clone()).map_err(|why| refused(why.to_string()))?,
        path => std::fs::read_to_string(path).map_err(|why| refused(format!("{path}: {why}")))?,
    };
    let table: Table = toml::from_str(&text).map_err(|why| refused(why.to_string()))?;
    Ok(Options {
        no_pivot_root: table.no_pivot_root,
        no_new_keyring: table.no_new_keyring,
        shim_cgroup: table.shim_cgroup,
        io_uid: table.io_uid,
        io_gid: table.io_gid,
        root: table.root,
        systemd_cgroup: table.systemd_cgroup,
        criu_image_path: table.criu_image_path,
        criu_work_path: table.criu_work_path,
    })
}

/// Where the records of a namespace are.
pub fn root(options: &Options, namespace: &str) -> PathBuf {
    let root = if options.root.is_empty() { ROOT } else { &options.root };
    PathBuf::from(root).join(namespace)
}

/// The file in a bundle that says where its record is, for whoever cleans up after a shim that has died.
const ROOT_FILE: &str = "ferry.root";

/// Writes down where a bundle's container has its record.
///
/// # Errors
/// The bundle cannot be written to.
pub fn keep_root(bundle: &Path, root: &Path) -> Result<(), Error> {
    let file = bundle.join(ROOT_FILE);
    std::fs::write(&file, root.as_os_str().as_bytes()).or_cannot("write", file.display())
}

/// Where a bundle's container has its record.
pub fn kept_root(bundle: &Path, namespace: &str) -> PathBuf {
    match std::fs::read(bundle.join(ROOT_FILE)) {
        Ok(path) => PathBuf::from(OsString::from_vec(path)),
        // It was never created.
        Err(_) => root(&Options::default(), namespace),
    }
}

/// What holds for the verbs of a container. Warnings go to the bundle, where those of runc are found as well.
pub fn setting(options: &Options, root: PathBuf, bundle: &Path) -> Setting {
    let log = Log::file(&bundle.join("log.json"), Format::Json, Level::Warning);
    Setting {
        root,
        cgroup_manager: if options.systemd_cgroup { Driver::Systemd } else { Driver::Cgroupfs },
        // Without a file there is standard error, which is nobody's.
        log: log.unwrap_or_default(),
        ..Setting::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let wanted = Options { systemd_cgroup: true, root: "/r".into(), ..Options::default() };
        let ours = Any::of("containerd.runc.v1.Options", &wanted);
        assert_eq!(read(Some(&ours)).unwrap(), wanted);
        let body = b"SystemdCgroup = true\nRoot = \"/r\"\nBinaryName = \"runc\"\n".to_vec();
        let generic = GenericOptions { config_body: body, ..GenericOptions::default() };
        assert_eq!(read(Some(&Any::of("types/runtimeoptions.v1.Options", &generic))).unwrap(), wanted);
        assert_eq!(read(None).unwrap(), Options::default());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let windows = Any { type_url: "containerd.runhcs.v1.Options".into(), value: Vec::new() };
        assert!(read(Some(&windows)).unwrap_err().status().message.contains("containerd.runhcs.v1.Options"));
        let torn = GenericOptions { config_body: b"SystemdCgroup = ".to_vec(), ..GenericOptions::default() };
        assert!(read(Some(&Any::of("runtimeoptions.v1.Options", &torn))).is_err());
    }

    #[test]
    fn each_namespace_has_its_own_records() {
        assert_eq!(root(&Options::default(), "k8s.io").to_str(), Some("/run/containerd/ferry/k8s.io"));
        assert_eq!(root(&Options { root: "/r".into(), ..Options::default() }, "a").to_str(), Some("/r/a"));
    }
}
