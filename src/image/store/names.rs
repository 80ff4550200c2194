//! Names of images.

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::record::{self, NameRecord};
use super::{Store, StoreError, entries};
use crate::image::Reference;
use crate::spec::Digest;

impl Store {
    /// A name can be longer than a file name may be, so the file is named by the name's digest and holds the name.
    pub(super) fn name_path(&self, reference: &Reference) -> PathBuf {
        let digest = Digest::from_sha256(Sha256::digest(reference.canonical()).into());
        self.root.join("references").join(format!("{}.json", digest.hex()))
    }

    pub(super) fn name(&self, reference: &Reference) -> Result<Option<NameRecord>, StoreError> {
        record::read(&self.name_path(reference))
    }

    /// All names, sorted.
    pub(super) fn names(&self) -> Result<Vec<NameRecord>, StoreError> {
        let paths = entries(&self.root.join("references"))?;
        let mut names: Vec<NameRecord> =
            paths.iter().filter_map(|p| record::read(p).transpose()).collect::<Result<_, _>>()?;
        names.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(names)
    }
}

/// At most three of the known names that look like the wanted one: the last word of the path a few letters apart, whatever
/// registry and tag.
pub(super) fn near(wanted: &str, known: &[String]) -> Vec<String> {
    let word = last_word(wanted);
    let mut found: Vec<(usize, &String)> = known
        .iter()
        .map(|name| (distance(last_word(name), word), name))
        .filter(|(distance, _)| *distance <= 1usize.saturating_add(word.len().min(12) / 4))
        .collect();
    found.sort();
    found.into_iter().take(3).map(|(_, name)| name.clone()).collect()
}

/// `debian` of `127.0.0.1:5000/x/debian:12`.
fn last_word(name: &str) -> &str {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split([':', '@']).next().unwrap_or(last)
}

/// Levenshtein's distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i.saturating_add(1);
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            let cost = usize::from(x != *y);
            row[j + 1] = (diagonal.saturating_add(cost)).min(above.saturating_add(1)).min(row[j].saturating_add(1));
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_look_alike_are_offered() {
        let known: Vec<String> =
            ["127.0.0.1:5000/x/debian:12", "debian:11", "nginx:latest", "redis:latest"].map(str::to_owned).into();
        assert_eq!(near("debian:latest", &known), ["127.0.0.1:5000/x/debian:12", "debian:11"]);
        assert_eq!(near("ngnix:latest", &known), ["nginx:latest"]);
        assert!(near("postgres:latest", &known).is_empty());
    }

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, d) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("abc", "abc", 0)] {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }
}
