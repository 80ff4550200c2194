//! What the tests do with the targets: all inputs of the corpus, and a number of mutants of each, the same ones at every run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::TARGETS;

/// Mutants of the whole corpus of one target.
const MUTANTS: u64 = 1000;
/// Longest input of the corpus, and most bytes of all inputs together.
const LONGEST: usize = 16 << 10;
const ALL: usize = 300 << 10;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = fuzz().join("corpus").join(name);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Numbers that look random (xorshift64*, Marsaglia 2003) and are the same every time.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % sides.max(1)
    }

    /// One to four changes.
    fn mutate(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        const ODD: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0x20, b'/', 0x10];
        for _ in 0..=self.throw(4) {
            let at = self.throw(bytes.len());
            match self.throw(6) {
                0 => bytes.truncate(at),
                1 if !bytes.is_empty() => bytes[at] ^= 1 << self.throw(8),
                2 if !bytes.is_empty() => bytes[at] = ODD[self.throw(8)],
                3 => drop(bytes.splice(at..at, (0..self.throw(9)).map(|_| 0xff).collect::<Vec<u8>>())),
                4 => {
                    let end = bytes.len().min(at + self.throw(16));
                    drop(bytes.drain(at..end));
                }
                _ => {
                    let from = self.throw(other.len());
                    let piece = &other[from..other.len().min(from + self.throw(64))];
                    drop(bytes.splice(at..at, piece.iter().copied()));
                }
            }
        }
    }
}

/// The corpus of a target, and its mutants.
pub(super) fn replay(name: &str, run: fn(&[u8])) {
    let corpus = corpus(name);
    corpus.iter().for_each(|input| run(input));
    run(&[]);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..MUTANTS {
        let mut input = corpus[dice.throw(corpus.len())].clone();
        let other = &corpus[dice.throw(corpus.len())];
        dice.mutate(&mut input, other);
        let told = std::panic::catch_unwind(|| run(&input));
        assert!(told.is_ok(), "found by {name}: {:02x?}", input);
    }
}

/// A target is in the table, has its program for libFuzzer and its corpus, and nothing else is there.
#[test]
fn targets_programs_and_corpora_are_the_same() {
    let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz().join(folder)).unwrap().map(|e| e.unwrap().path());
        entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("fuzz_targets"), known);
    assert_eq!(names("corpus"), known);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let programs: BTreeSet<String> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""))
        .map(str::to_owned)
        .collect();
    assert_eq!(programs, known);
    assert!(TARGETS.iter().all(|(name, _)| manifest.contains(&format!("name = \"{name}\""))));
}

#[test]
fn corpora_are_small() {
    let sizes = |(name, _): &(&str, fn(&[u8]))| corpus(name).iter().map(Vec::len).collect::<Vec<_>>();
    let sizes: Vec<usize> = TARGETS.iter().flat_map(sizes).collect();
    assert!(sizes.iter().all(|size| *size <= LONGEST) && sizes.iter().sum::<usize>() <= ALL);
}

#[test]
fn mutants_differ_and_are_the_same_every_time() {
    let mutants = || {
        let mut dice = Dice(1);
        let make = |_| {
            let mut bytes = b"some bytes".to_vec();
            dice.mutate(&mut bytes, b"others");
            bytes
        };
        (0..100).map(make).collect::<Vec<_>>()
    };
    assert_eq!(mutants(), mutants());
    assert!(mutants().iter().collect::<BTreeSet<_>>().len() > 50);
}
