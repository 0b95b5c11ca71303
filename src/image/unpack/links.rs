//! Hard links to files further down, which wait until the layers there are at hand. Until then the layer's own entries go on: one
//! that is put at a link's name replaces the link, and one that hides its target came too late to take the file away from it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Links that wait.
#[derive(Debug, Default)]
pub struct Links {
    /// The target of each.
    targets: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Targets that the layer shows still.
    shown: BTreeSet<Vec<u8>>,
    /// Those that it has hidden since.
    hidden: BTreeSet<Vec<u8>>,
}

impl Links {
    /// Notes a link to what is not in the layer; to another such link, as one to that one's target.
    pub fn note(&mut self, target: &[u8], link: &[u8]) {
        let target = self.targets.get(target).map_or(target, Vec::as_slice).to_vec();
        if !self.hidden.contains(&target) {
            self.shown.insert(target.clone());
        }
        self.targets.insert(link.to_vec(), target);
    }

    /// Something else of the layer is at `path` from here on.
    pub fn replace(&mut self, path: &[u8], is_directory: bool) {
        self.targets.remove(path);
        if is_directory {
            self.hide(self.shown.get(path).cloned().into_iter().collect());
            return;
        }
        let below: Vec<_> = self.targets.range(inside(path)).map(|(link, _)| link.clone()).collect();
        below.iter().for_each(|link| drop(self.targets.remove(link)));
        self.remove(path);
    }

    /// The layer removes what is at `path` further down.
    pub fn remove(&mut self, path: &[u8]) {
        self.hide(self.shown.get(path).cloned().into_iter().collect());
        self.empty(path);
    }

    /// The layer removes what is in the directory `path` further down.
    pub fn empty(&mut self, path: &[u8]) {
        self.hide(self.shown.range(inside(path)).cloned().collect());
    }

    fn hide(&mut self, targets: Vec<Vec<u8>>) {
        for target in targets {
            self.shown.remove(&target);
            self.hidden.insert(target);
        }
    }

    /// Each with its target, and whether the layer has hidden that one since.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8], bool)> {
        self.targets.iter().map(|(link, target)| (link.as_slice(), target.as_slice(), self.hidden.contains(target)))
    }
}

/// All that is in the directory `path`: from `PATH/` up to the next byte after the slash.
pub fn inside(path: &[u8]) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    match path {
        b"" => (Bound::Unbounded, Bound::Unbounded),
        path => (Bound::Included([path, b"/"].concat()), Bound::Excluded([path, b"0"].concat())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(links: &Links) -> Vec<(&str, &str, bool)> {
        let text = |bytes| std::str::from_utf8(bytes).unwrap();
        links.iter().map(|(link, target, hidden)| (text(link), text(target), hidden)).collect()
    }

    #[test]
    fn what_comes_later_replaces_links_and_takes_no_target_away() {
        let mut links = Links::default();
        links.note(b"a/old", b"y");
        links.note(b"y", b"z");
        links.note(b"b/c/old", b"d/e");
        links.note(b"b-/old", b"d-");
        assert_eq!(listed(&links)[3], ("z", "a/old", false), "a link to a link");
        links.replace(b"y", false);
        links.remove(b"a");
        assert_eq!(listed(&links), [("d-", "b-/old", false), ("d/e", "b/c/old", false), ("z", "a/old", true)]);
        links.replace(b"b", true);
        links.replace(b"d", true);
        assert!(!listed(&links)[1].2, "a directory is one with that below");
        links.empty(b"b");
        links.replace(b"d-", true);
        assert_eq!(listed(&links), [("d/e", "b/c/old", true), ("z", "a/old", true)]);
        links.replace(b"d", false);
        links.note(b"x", b"w");
        links.empty(b"");
        assert_eq!(listed(&links), [("w", "x", true), ("z", "a/old", true)]);
    }
}
