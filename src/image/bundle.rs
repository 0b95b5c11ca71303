//! What an image says of how it is run, as a runtime configuration. OCI image-spec, conversion.md
//!
//! The user is looked up in the image's own files, by descriptor and as text: the host's databases know nothing of it. A number
//! is a number, whatever names the image has (CVE-2016-3697).

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::manifest::ImageConfig;
use super::merged::Merged;
use crate::error::{Error, Result};
use crate::spec::check_process;
use crate::spec::config::{Config, Mount, Process, User};

/// As much of passwd and group as is looked at. Bytes.
const MOST: u64 = 1 << 20;

/// How annotations begin that runtimes act upon.
const ASKING: [&str; 4] = ["dev.ferry.", "org.criu.", "org.systemd.property.", "run.oci."];

/// Fields of a process that come from an image, and their names there.
const FIELDS: [(&str, &str); 4] = [
    ("process.args", "Entrypoint and Cmd, or the command in their place"),
    ("process.env", "Env"),
    ("process.cwd", "WorkingDir"),
    ("process.user", "User"),
];

/// Puts into `config` what the image says. `args` replaces the image's command, but not its entry point; `who` its user.
///
/// # Errors
/// The image has no command and none is given; its user is not in its passwd; a field of it breaks a rule.
pub fn apply(
    config: &mut Config,
    image: &ImageConfig,
    files: &Merged,
    args: &[String],
    who: Option<&str>,
) -> Result<()> {
    let execution = image.config.clone().unwrap_or_default();
    let process = config.process.get_or_insert_default();
    let command = if args.is_empty() { &execution.cmd } else { args };
    process.args = execution.entrypoint.iter().chain(command).cloned().collect();
    if process.args.is_empty() {
        return Err(Error::plain("the image says nothing of what to run").hint("give a command behind `--`"));
    }
    set_environment(process, &execution.env);
    process.cwd = match execution.working_dir.as_str() {
        "" => PathBuf::from("/"),
        dir => crate::path::clean(Path::new(dir)),
    };
    process.user = User { umask: process.user.umask, ..user(who.unwrap_or(&execution.user), files)? };
    // Before flags add theirs, so that it is the image that is to blame.
    check_process(process, "process").map_err(blame)?;
    annotate(config, image);
    Ok(())
}

/// Names the image's field in place of a file.
fn blame(error: Error) -> Error {
    let path = error.config_path().unwrap_or_default();
    match FIELDS.iter().find(|(field, _)| path.starts_with(field)) {
        Some((_, name)) => error.in_file(&format!("the image's {name}"), None),
        None => error,
    }
}

/// The image's variables replace those of the same name.
fn set_environment(process: &mut Process, variables: &[String]) {
    for variable in variables.iter().filter(|variable| variable.contains('=')) {
        let name = variable.split('=').next().unwrap_or_default();
        process.env.retain(|other| other.split('=').next() != Some(name));
        process.env.push(variable.clone());
    }
}

/// Where the image's volumes are, parents first: data there is not to be written to the root filesystem.
pub fn volumes(image: &ImageConfig) -> Vec<PathBuf> {
    let volumes = image.config.iter().flat_map(|execution| execution.volumes.keys());
    let cleaned = volumes.map(|path| crate::path::clean(Path::new(path))).filter(|path| path != Path::new("/"));
    cleaned.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// A bind of the directory `source` of the bundle to a volume.
pub fn bind(source: PathBuf, volume: &Path) -> Mount {
    Mount {
        destination: volume.to_owned(),
        kind: "bind".to_owned(),
        source,
        options: ["rbind", "rw", "nosuid", "nodev"].map(str::to_owned).to_vec(),
        ..Mount::default()
    }
}

fn annotate(config: &mut Config, image: &ImageConfig) {
    let execution = image.config.clone().unwrap_or_default();
    let ports: Vec<&str> = execution.exposed_ports.keys().map(String::as_str).collect();
    let rows = [
        ("os", image.platform.os.clone()),
        ("architecture", image.platform.architecture.clone()),
        ("variant", image.platform.variant.clone()),
        ("author", image.author.clone().unwrap_or_default()),
        ("created", image.created.clone().unwrap_or_default()),
        ("stopSignal", execution.stop_signal.clone()),
        ("exposedPorts", ports.join(",")),
    ];
    for (key, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        config.annotations.insert(format!("org.opencontainers.image.{key}"), value);
    }
    // The specification lets an image's own labels win.
    config.annotations.extend(execution.labels.into_iter().filter(|(key, _)| !asks_the_host(key)));
}

/// The labels that do not become annotations.
pub fn withheld(image: &ImageConfig) -> impl Iterator<Item = &str> {
    let labels = image.config.iter().flat_map(|execution| execution.labels.keys());
    labels.map(String::as_str).filter(|key| asks_the_host(key))
}

/// Whether a runtime that finds such an annotation does something on the host for it: that is for whoever runs the image to ask.
fn asks_the_host(key: &str) -> bool {
    ASKING.iter().any(|beginning| key.starts_with(beginning))
}

/// Who `USER[:GROUP]` is in the image.
///
/// # Errors
/// A name that the image's files do not have.
pub fn user(said: &str, files: &Merged) -> Result<User> {
    let (name, group) = said.split_once(':').unwrap_or((said, ""));
    let text = |name: &str, read: Result<Vec<u8>, Errno>| match read {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EISDIR | Errno::EINVAL) => Ok(String::new()),
        Err(answer) => Err(Error::kernel("read in the image", name.to_owned(), answer)),
    };
    let [passwd, groups] = files.read_of(Path::new("/etc"), [c"passwd", c"group"], MOST);
    let (passwd, groups) = (text("/etc/passwd", passwd)?, text("/etc/group", groups)?);
    let unknown = |kind: &str, name: &str, file: &str| {
        Error::plain(format!("the image's {kind} {name:?} is not in its {file}"))
            .hint("give a number with --user, or another image")
    };
    let known = match (name, name.parse::<u32>()) {
        ("", _) => line(&passwd, |fields| fields.get(2) == Some(&"0")),
        (_, Ok(uid)) => line(&passwd, |fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid)),
        (name, Err(_)) => {
            let found = line(&passwd, |fields| fields.first() == Some(&name) && fields.len() >= 4);
            Some(found.ok_or_else(|| unknown("user", name, "/etc/passwd"))?)
        }
    };
    let number = |index: usize| known.as_ref().and_then(|fields| fields.get(index)?.parse::<u32>().ok());
    let uid = match (name, name.parse::<u32>()) {
        ("", _) => 0,
        (_, Ok(uid)) => uid,
        (name, Err(_)) => number(2).ok_or_else(|| unknown("user", name, "/etc/passwd"))?,
    };
    let mut additional_gids = Vec::new();
    let gid = match (group, group.parse::<u32>()) {
        ("", _) => {
            if let Some(login) = known.as_ref().and_then(|fields| fields.first()) {
                additional_gids = memberships(&groups, login);
            }
            number(3).unwrap_or(0)
        }
        (_, Ok(gid)) => gid,
        (group, Err(_)) => {
            let found = line(&groups, |fields| fields.first() == Some(&group));
            let found = found.and_then(|fields| fields.get(2)?.parse().ok());
            found.ok_or_else(|| unknown("group", group, "/etc/group"))?
        }
    };
    additional_gids.retain(|other| *other != gid);
    Ok(User { uid, gid, umask: None, additional_gids })
}

/// The fields of the first line that fits.
fn line(text: &str, fits: impl Fn(&[&str]) -> bool) -> Option<Vec<String>> {
    let lines = text.lines().map(|line| line.split(':').collect::<Vec<&str>>());
    let found = lines.into_iter().find(|fields| fits(fields))?;
    Some(found.into_iter().map(str::to_owned).collect())
}

/// Groups that list a user: group(5).
fn memberships(groups: &str, login: &str) -> Vec<u32> {
    let lines = groups.lines().map(|line| line.split(':').collect::<Vec<&str>>());
    let member = |fields: &Vec<&str>| fields.get(3).is_some_and(|members| members.split(',').any(|one| one == login));
    lines.filter(member).filter_map(|fields| fields.get(2)?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::Execution;
    use rustix::fs::{CWD, Mode, OFlags, openat};

    fn with_files(test: impl FnOnce(&Merged)) {
        let base = std::env::temp_dir().join(format!("ferry-bundle-{:x}", crate::image::store::session::random()));
        std::fs::create_dir_all(base.join("etc")).unwrap();
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nship:x:1000:1001::/home/ship:/bin/sh\n1234:x:0:0::/:/bin/sh\nbroken\n";
        std::fs::write(base.join("etc/passwd"), passwd).unwrap();
        std::fs::write(base.join("etc/group"), "root:x:0:\ncrew:x:50:other,ship\nhold:x:51:ship\nown:x:1001:ship\n")
            .unwrap();
        let dir = openat(CWD, &base, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        test(&Merged::new(vec![std::rc::Rc::new(dir)]));
        std::process::Command::new("rm").arg("-r").arg(&base).status().unwrap();
    }

    #[test]
    fn users_are_the_images() {
        with_files(|files| {
            let of = |said: &str| user(said, files).map(|user| (user.uid, user.gid, user.additional_gids));
            assert_eq!(of(""), Ok((0, 0, vec![])));
            assert_eq!(of("ship"), Ok((1000, 1001, vec![50, 51])));
            assert_eq!(of("1000"), Ok((1000, 1001, vec![50, 51])));
            assert_eq!(of("ship:crew"), Ok((1000, 50, vec![])));
            assert_eq!(of("ship:7"), Ok((1000, 7, vec![])));
            // A user called 1234 does not make the number another's.
            assert_eq!(of("1234"), Ok((1234, 0, vec![])));
            assert!(
                of("nobody")
                    .unwrap_err()
                    .to_string()
                    .starts_with("the image's user \"nobody\" is not in its /etc/passwd")
            );
            assert!(of("ship:nogroup").unwrap_err().to_string().contains("/etc/group"));
            assert!(of("broken").is_err());
        });
    }

    #[test]
    fn labels_that_ask_the_host_are_no_annotations() {
        with_files(|files| {
            let known =
                crate::spec::extensions::TABLE.iter().flat_map(|row| [row.name.to_owned(), format!("{}x", row.name)]);
            let asking: Vec<String> = known.chain(["org.criu.config".to_owned()]).collect();
            let labels = asking.iter().map(String::as_str).chain(["run.ocis", "org.criu", "Run.oci.x"]);
            let labels = labels.map(|key| (key.to_owned(), "/x".to_owned())).collect();
            let execution = Execution { cmd: vec!["x".into()], labels, ..Execution::default() };
            let image = ImageConfig { config: Some(execution), ..ImageConfig::default() };
            let mut config = crate::spec::template::config(true);
            let before = config.annotations.len();
            apply(&mut config, &image, files, &[], None).unwrap();
            assert!(asking.iter().all(|key| !config.annotations.contains_key(key)), "{:?}", config.annotations);
            assert_eq!(config.annotations.len() - before, 3);
            assert!(asking.iter().all(|key| withheld(&image).any(|one| one == key)));
        });
    }

    #[test]
    fn the_command_replaces_cmd_and_keeps_the_entry_point() {
        with_files(|files| {
            let execution = Execution {
                entrypoint: vec!["/init".into()],
                cmd: vec!["default".into()],
                env: vec!["PATH=/opt".into(), "A=1".into(), "bad".into()],
                working_dir: "srv/../work".into(),
                labels: [("a".to_owned(), "b".to_owned())].into(),
                stop_signal: "SIGINT".into(),
                ..Execution::default()
            };
            let image = ImageConfig { config: Some(execution), ..ImageConfig::default() };
            let mut config = crate::spec::template::config(true);
            apply(&mut config, &image, files, &["x".to_owned()], None).unwrap();
            let process = config.process.as_ref().unwrap();
            assert_eq!(process.args, ["/init", "x"]);
            assert_eq!(process.env, ["TERM=xterm", "PATH=/opt", "A=1"]);
            assert_eq!(process.cwd, Path::new("/work"));
            assert_eq!(config.annotations["org.opencontainers.image.stopSignal"], "SIGINT");
            assert_eq!(config.annotations["a"], "b");
            let nothing = apply(&mut config, &ImageConfig::default(), files, &[], None).unwrap_err().to_string();
            assert!(nothing.starts_with("the image says nothing of what to run"), "{nothing}");
        });
    }
}
