//! A bundle on disk whose whole root file system is one static program.

use std::fs;
use std::io::Result;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Directories a root file system has before anything is mounted: mount points, and a place to write.
const DIRECTORIES: &[&str] = &["dev", "etc", "mnt", "proc", "sys", "tmp", "home"];

/// A directory with `rootfs/` and, once written, `config.json`.
#[derive(Debug, Clone)]
pub struct Bundle {
    path: PathBuf,
}

impl Bundle {
    /// Makes the bundle's directory and its root file system: `/probe` is a hard link to `probe`, so that nothing is
    /// copied and the program is never open for writing while another thread forks ("text file busy").
    pub fn make(path: &Path, probe: &Path) -> Result<Self> {
        let bundle = Self { path: path.to_owned() };
        fs::create_dir_all(bundle.rootfs())?;
        for directory in DIRECTORIES {
            bundle.directory(directory)?;
        }
        bundle.file(
            "etc/passwd",
            "root:x:0:0:root:/root:/probe\nship:x:1000:1000::/home/ship:/probe\n1001:x:0:0::/:/probe\n",
        )?;
        bundle.file("etc/group", "root:x:0:\nship:x:1000:\n")?;
        fs::hard_link(probe, bundle.rootfs().join("probe"))?;
        Ok(bundle)
    }

    /// The bundle's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root file system's directory.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// A path of the container as the host sees it.
    pub fn inside(&self, path: &str) -> PathBuf {
        self.rootfs().join(path.trim_start_matches('/'))
    }

    /// Makes a directory in the root file system, readable by all whatever the umask.
    pub fn directory(&self, path: &str) -> Result<()> {
        fs::create_dir_all(self.inside(path))?;
        fs::set_permissions(self.inside(path), fs::Permissions::from_mode(0o755))
    }

    /// Makes a file in the root file system.
    pub fn file(&self, path: &str, text: &str) -> Result<()> {
        fs::write(self.inside(path), text)?;
        fs::set_permissions(self.inside(path), fs::Permissions::from_mode(0o644))
    }

    /// Makes an executable file in the root file system.
    pub fn program(&self, path: &str, text: &str) -> Result<()> {
        fs::write(self.inside(path), text)?;
        fs::set_permissions(self.inside(path), fs::Permissions::from_mode(0o755))
    }

    /// Makes a symbolic link in the root file system.
    pub fn link(&self, path: &str, target: &str) -> Result<()> {
        std::os::unix::fs::symlink(target, self.inside(path))
    }

    /// Gives the root file system's directories to `uid`, the host id of a user namespace's root.
    pub fn give_to(&self, uid: u32) -> Result<()> {
        chown(self.rootfs(), Some(uid), Some(uid))?;
        DIRECTORIES.iter().try_for_each(|directory| chown(self.inside(directory), Some(uid), Some(uid)))
    }

    /// Writes config.json.
    pub fn write_config(&self, config: &Value) -> Result<()> {
        fs::write(self.path.join("config.json"), serde_json::to_string_pretty(config)?)
    }
}
