//! What unpacking a layer came to, for its record and for warnings.

/// What was unpacked, and what was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Count {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Devices left out, since only root can make them.
    pub devices: u64,
    /// Attributes left out, which are not an image's to have or which the filesystem does not take.
    pub attributes: u64,
    /// Files made to belong to the one id there is.
    pub owners: u64,
    /// Entries that came again, and took the place of what they were before.
    pub replaced: u64,
}

impl Count {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.devices += other.devices;
        self.attributes += other.attributes;
        self.owners += other.owners;
        self.replaced += other.replaced;
    }
}
