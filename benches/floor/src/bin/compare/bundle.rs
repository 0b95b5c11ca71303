//! What the runtimes are given: one config.json and one root directory, in bundles that differ in what the
//! program does: end at once, stay, or prove that it ran.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::json;
use crate::options::Options;

/// What `runc spec` makes on a host with cgroup v2, with the program in place of the shell, and without a terminal.
const CONFIG: &str = include_str!("config.json");

/// An exit code that no runtime answers by chance: who does has run the program.
pub const PROOF: i32 = 7;
/// What makes the built-in program end with [`PROOF`].
pub const PROVING: [&str; 8] = ["/stay", "1", "2", "3", "4", "5", "6", "7"];

/// The bundles, and the program in them.
pub struct Bundles {
    /// Its program ends with 0 at once.
    pub ends: PathBuf,
    /// Its program stays until it is killed.
    pub stays: PathBuf,
    /// Its program ends with [`PROOF`] at once.
    pub proves: PathBuf,
    /// What the first bundle's config.json says, for the record.
    pub config: String,
}

/// Makes them below `directory`. `smallest` is the built-in program.
pub fn make(directory: &Path, smallest: &Path, options: &Options) -> Result<Bundles, String> {
    let config = config(options)?;
    let program = options.program.as_deref().unwrap_or(smallest);
    let make = |name: &str, config: &str| {
        let bundle = directory.join(name);
        write_bundle(&bundle, config, &[(program, "program"), (smallest, "stay")])
            .map_err(|why| format!("cannot make the bundle {}: {why}", bundle.display()))?;
        Ok::<_, String>(bundle)
    };
    let stays = json::replaced(&config, &["process", "args"], r#"["/stay", "until killed"]"#);
    let proving: Vec<String> = PROVING.iter().map(|word| json::quoted(word)).collect();
    let proves = json::replaced(&config, &["process", "args"], &format!("[{}]", proving.join(",")));
    let (ends, stays) = (make("ends", &config)?, make("stays", &stays)?);
    Ok(Bundles { ends, stays, proves: make("proves", &proves)?, config })
}

impl Bundles {
    /// Whether the config asks for a device program.
    pub fn has_devices(&self) -> bool {
        json::find(&self.config, &["linux", "resources", "devices"]).is_some()
    }
}

fn config(options: &Options) -> Result<String, String> {
    let read =
        |path: &PathBuf| fs::read_to_string(path).map_err(|why| format!("cannot read {}: {why}", path.display()));
    let mut config = options.config.as_ref().map_or(Ok(CONFIG.to_owned()), read)?;
    config = json::replaced(&config, &["process", "args"], r#"["/program"]"#);
    config = json::replaced(&config, &["process", "terminal"], "false");
    config = json::replaced(&config, &["root", "path"], r#""rootfs""#);
    if options.without_devices {
        config = json::replaced(&config, &["linux", "resources"], "{}");
    }
    if options.limits {
        config = with_limits(&config)?;
    }
    match &options.seccomp {
        Some(path) => with_seccomp(&config, &read(path)?),
        None => Ok(config),
    }
}

/// What `docker run -m 512m --cpus 1.5 --pids-limit 512` comes to.
const LIMITS: &str = r#""memory": {"limit": 536870912, "reservation": 0, "swap": 1073741824},
    "cpu": {"shares": 1024, "quota": 150000, "period": 100000}, "pids": {"limit": 512}, "blockIO": {}"#;

fn with_limits(config: &str) -> Result<String, String> {
    let resources =
        json::find(config, &["linux", "resources"]).ok_or("config.json has no linux.resources for --limits")?;
    let (head, tail) = config.split_at(resources.start + 1);
    let comma = if tail.trim_start().starts_with('}') { "" } else { "," };
    Ok(format!("{head}{LIMITS}{comma}{tail}"))
}

fn with_seccomp(config: &str, profile: &str) -> Result<String, String> {
    if json::find(config, &["linux", "seccomp"]).is_some() {
        return Ok(json::replaced(config, &["linux", "seccomp"], profile));
    }
    let linux = json::find(config, &["linux"]).ok_or("config.json has no linux section for --seccomp")?;
    let (head, tail) = config.split_at(linux.start + 1);
    Ok(format!("{head}\"seccomp\": {},{tail}", profile.trim()))
}

fn write_bundle(bundle: &Path, config: &str, programs: &[(&Path, &str)]) -> std::io::Result<()> {
    let rootfs = bundle.join("rootfs");
    for directory in ["", "proc", "sys", "dev", "tmp", "run", "etc"] {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(rootfs.join(directory))?;
    }
    fs::write(bundle.join("config.json"), config)?;
    for (source, name) in programs {
        let mut target = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(rootfs.join(name))?;
        std::io::copy(&mut fs::File::open(source)?, &mut target)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_runs_the_program_without_a_terminal() {
        let found = |path: &[&str]| json::find(CONFIG, path).map(|place| &CONFIG[place]);
        assert_eq!(found(&["process", "args"]), Some(r#"["/program"]"#));
        assert_eq!(found(&["process", "terminal"]), Some("false"));
        assert_eq!(found(&["root", "path"]), Some(r#""rootfs""#));
    }

    #[test]
    fn limits_stand_beside_what_there_is() {
        for config in [r#"{"linux": {"resources": {"devices": []}}}"#, r#"{"linux": {"resources": { }}}"#, CONFIG] {
            let limited = with_limits(config).unwrap();
            let found = |path: &[&str]| json::find(&limited, path).map(|place| limited[place].to_owned());
            assert_eq!(found(&["linux", "resources", "pids", "limit"]).as_deref(), Some("512"), "{limited}");
            let devices = ["linux", "resources", "devices"];
            assert_eq!(found(&devices).is_some(), json::find(config, &devices).is_some(), "{limited}");
        }
        assert!(with_limits("{}").is_err());
    }

    #[test]
    fn a_profile_is_added_or_replaced() {
        let config = r#"{"linux": {"namespaces": []}}"#;
        let added = with_seccomp(config, "{\"a\": 1}\n").unwrap();
        assert_eq!(added, r#"{"linux": {"seccomp": {"a": 1},"namespaces": []}}"#);
        assert_eq!(with_seccomp(&added, "{}").unwrap(), r#"{"linux": {"seccomp": {},"namespaces": []}}"#);
        assert!(with_seccomp("{}", "{}").is_err());
    }
}
