//! What a cgroup's files said before an update, so that one the kernel refuses in the middle leaves nothing changed.
//!
//! Files of one value are put back as they were read. Files of one line a device or resource are put back for just the
//! keys that the update names; a key that had no line gets the word that stands for none.
//!
//! Source: the kernel's admin-guide/cgroup-v2.rst, "Format".

use std::os::fd::AsFd;

use rustix::fs::{Access, AtFlags, accessat};
use rustix::io::Errno;

use crate::error::{Error, Result};

use super::file;
use super::fs::Cgroup;
use super::resources::{Limits, Otherwise, Write};

/// The writes that lead back, in the order the update makes its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Previous(Vec<Write>);

impl Previous {
    /// Reads what `limits` are about to change. A file that cannot be read (`memory.reclaim` is a deed and no state) has
    /// nothing to go back to.
    pub fn read(cgroup: &Cgroup, limits: &Limits) -> Self {
        let mut back: Vec<Write> = Vec::new();
        for write in &limits.writes {
            let (name, value) = target(cgroup, write);
            let Ok(text) = file::read(cgroup.as_fd(), &name) else { continue };
            let value = value_before(&name, &text, value);
            // A file or line that several writes change (io.max has one for each limit) leads back once.
            if !back.iter().any(|known| known.file == *name && known.value == value) {
                back.push(Write { file: name.into(), value, otherwise: Otherwise::Refuse, ..write.clone() });
            }
        }
        Self(back)
    }

    /// The same as limits, for those who keep a copy of them.
    pub fn limits(&self) -> Limits {
        Limits { writes: self.0.clone(), ..Limits::default() }
    }

    /// Puts everything back.
    ///
    /// # Errors
    ///
    /// A file says something else afterwards: its name and what it should say.
    pub fn restore(&self, cgroup: &Cgroup) -> Result<()> {
        // Twice, because files are checked against each other and each may have to wait for the other's old value. Whether
        // it worked is asked of the files: a value that follows from another (the weight of an idle cgroup) is not taken.
        let mut refused = None;
        for _ in 0..2 {
            for write in self.0.iter().rev() {
                if let Err(errno) = file::write(cgroup.as_fd(), &write.file, &format!("{}\n", write.value)) {
                    refused = Some(errno);
                }
            }
        }
        let differs = |write: &&Write| {
            file::read(cgroup.as_fd(), &*write.file)
                .map_or(true, |text| value_before(&write.file, &text, &write.value) != write.value)
        };
        match self.0.iter().find(differs) {
            None => Ok(()),
            Some(write) => {
                let object = format!("{:?} to {}/{}", write.value, cgroup.path.display(), write.file);
                Err(Error::kernel("write back", object, file::answer(refused.unwrap_or(Errno::IO))))
            }
        }
    }
}

/// The file that a write ends up in, and what is written there.
fn target<'write>(cgroup: &Cgroup, write: &'write Write) -> (String, &'write str) {
    match &write.otherwise {
        Otherwise::Instead(name, value)
            if accessat(cgroup, &*write.file, Access::EXISTS, AtFlags::empty()).is_err() =>
        {
            ((*name).to_owned(), value)
        }
        _ => (write.file.to_string(), &write.value),
    }
}

/// What to write for `file`, which says `text`, to read the same again where `value` is written now.
fn value_before(file: &str, text: &str, value: &str) -> String {
    let key = key(value);
    let line = text.lines().find(|line| line.split(' ').next() == Some(key));
    match file {
        "io.max" => limits_before(key, line, &["rbps", "wbps", "riops", "wiops"]),
        "rdma.max" => limits_before(key, line, &["hca_handle", "hca_object"]),
        "io.latency" => limits_before(key, line, &["target"]).replace("max", "0"),
        "io.weight" | "io.bfq.weight" if key.contains(':') => line.map_or_else(|| format!("{key} default"), Into::into),
        "io.weight" | "io.bfq.weight" => text.lines().next().unwrap_or("default 100").to_owned(),
        // `isolated invalid (why)` is what became of asking for `isolated`.
        "cpuset.cpus.partition" => text.split_whitespace().next().unwrap_or_default().to_owned(),
        "misc.max" | "dmem.max" | "dmem.min" | "dmem.low" => line.unwrap_or_default().to_owned(),
        _ => text.trim_end().to_owned(),
    }
}

/// A line that sets every limit of `key`: those that `line` does not have are none.
fn limits_before(key: &str, line: Option<&str>, names: &[&str]) -> String {
    let mut text = key.to_owned();
    for name in names {
        let known = line.and_then(|line| line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')));
        text.push_str(&format!(" {name}={}", known.unwrap_or("max")));
    }
    text
}

/// The device or resource that a line is about; a value of one word is its own, and is compared with nothing.
fn key(value: &str) -> &str {
    value.split(' ').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lead_back_in_their_own_form() {
        for (file, text, value, before) in [
            ("memory.max", "max\n", "4096", "max"),
            ("cpu.max", "20000 100000\n", "max", "20000 100000"),
            ("cpuset.cpus", "\n", "0-3", ""),
            ("io.max", "", "8:0 rbps=5", "8:0 rbps=max wbps=max riops=max wiops=max"),
            (
                "io.max",
                "8:0 rbps=9 wbps=max riops=max wiops=7\n",
                "8:0 rbps=5",
                "8:0 rbps=9 wbps=max riops=max wiops=7",
            ),
            ("io.weight", "default 100\n8:0 50\n", "200", "default 100"),
            ("io.weight", "default 100\n8:0 50\n", "8:0 7", "8:0 50"),
            ("io.weight", "default 100\n", "8:0 7", "8:0 default"),
            (
                "rdma.max",
                "mlx4_0 hca_handle=2 hca_object=max\n",
                "mlx4_0 hca_handle=9",
                "mlx4_0 hca_handle=2 hca_object=max",
            ),
            ("cpuset.cpus.partition", "isolated invalid (Parent is not a partition root)\n", "root", "isolated"),
            ("misc.max", "res_a max\nres_b 4\n", "res_b 5", "res_b 4"),
        ] {
            assert_eq!(value_before(file, text, value), before, "{file}: {value}");
            // What was read back says that nothing is left to do.
            assert_eq!(value_before(file, text, before), before, "{file}: {before}");
        }
    }
}
