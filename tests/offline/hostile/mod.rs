//! A generator of hostile archives: families of names and bytes, each with what must become of it. Nothing of it may touch the host.
//!
//! The verdict of an archive that is taken is its tree in a line, sorted by path: `d/` directory, `f(3)` file of 3 bytes, `s>target` link,
//! `c:1,3` and `b:8,0` devices, `p|` pipe, `g=f` second name of `f`, `-x` hides `x` of lower layers, `-*` everything. Behind it `@4755` a
//! mode other than the usual one, `+1:2` owners other than root, `{user.a}` attributes. A verdict that begins with `!` are words of the refusal.

mod fields;
mod host;
mod links;
mod merging;
mod metadata;
mod names;
mod order;
mod packing;
mod sparse;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use duplex::image::decompress::Compression;
use duplex::image::erofs::{self, Device};
use duplex::image::layer::{self, Budget};
use duplex::image::merge::merge;
use duplex::image::tree::{Attributes, Inode, InodeId, Kind, Tree};

use crate::tarball::Tarball;

/// Most bytes of a metadata image that any of these archives leads to: the largest names 70,000 links.
const METADATA: u64 = 24 << 20;

/// An archive and what must become of it.
pub(crate) struct Archive {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) packed: Compression,
    /// `!words of the refusal`, or the tree.
    pub(crate) verdict: String,
}

impl Archive {
    pub(crate) fn plain(name: impl Into<String>, bytes: Vec<u8>, verdict: impl Into<String>) -> Self {
        Self { name: name.into(), bytes, packed: Compression::None, verdict: verdict.into() }
    }
}

/// An archive of these entries.
pub(crate) fn made(
    name: impl Into<String>,
    build: impl FnOnce(&mut Tarball) -> &mut Tarball,
    verdict: impl Into<String>,
) -> Archive {
    let mut tar = Tarball::default();
    build(&mut tar);
    Archive::plain(name, tar.end(), verdict)
}

/// All of them.
pub(crate) fn all() -> Vec<Archive> {
    [
        fields::numbers(),
        fields::checksums(),
        fields::types(),
        fields::modes(),
        fields::devices(),
        names::names(),
        names::long_names(),
        names::whiteouts(),
        links::symbolic(),
        links::hard(),
        metadata::records(),
        metadata::values(),
        metadata::attributes(),
        metadata::global(),
        order::pairs(),
        order::below(),
        order::many(),
        sparse::maps(),
        sparse::records(),
        sparse::elsewhere(),
        sparse::growth(),
        packing::cuts(),
        packing::ends(),
        packing::streams(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn attributes(of: &Attributes, usual: u16) -> String {
    let mode = if of.mode == usual { String::new() } else { format!("@{:o}", of.mode) };
    let owner = if (of.uid, of.gid) == (0, 0) { String::new() } else { format!("+{}:{}", of.uid, of.gid) };
    let names: Vec<String> = of.xattrs.iter().flat_map(|x| x.keys()).map(|name| text(name)).collect();
    let xattrs = if names.is_empty() { String::new() } else { format!("{{{}}}", names.join(",")) };
    format!("{mode}{owner}{xattrs}")
}

fn shown(inode: &Inode) -> String {
    let own = |usual| attributes(&inode.attributes, usual);
    match &inode.kind {
        Kind::Directory(_) => format!("/{}", own(0o755)),
        Kind::File(file) => format!("({}){}", file.size, own(0o644)),
        Kind::Symlink(target) => format!(">{}{}", text(target), own(0o777)),
        Kind::CharDevice(number) => format!(":c{},{}{}", number.major(), number.minor(), own(0o644)),
        Kind::BlockDevice(number) => format!(":b{},{}{}", number.major(), number.minor(), own(0o644)),
        Kind::Fifo => format!("|{}", own(0o644)),
    }
}

/// A tree in a line.
pub(crate) fn listing(tree: &Tree) -> String {
    let mut lines = Vec::new();
    let mut first: BTreeMap<InodeId, String> = BTreeMap::new();
    let mut open = vec![(String::new(), InodeId::ROOT)];
    let root = shown(tree.get(InodeId::ROOT).unwrap());
    if root != "/" {
        lines.push(root);
    }
    while let Some((path, id)) = open.pop() {
        let directory = tree.get(id).unwrap().directory().unwrap();
        if let Some(hidden) = &directory.whiteouts {
            lines.extend(hidden.opaque.then(|| format!("{path}-*")));
            lines.extend(hidden.names.iter().map(|name| format!("{path}-{}", text(name))));
        }
        for (name, below) in &directory.entries {
            let path = format!("{path}{}", text(name));
            let inode = tree.get(*below).unwrap();
            if let Some(other) = first.insert(*below, path.clone()) {
                lines.push(format!("{path}={other}"));
                first.insert(*below, other);
                continue;
            }
            lines.push(format!("{path}{}", shown(inode)));
            if inode.directory().is_some() {
                open.push((format!("{path}/"), *below));
            }
        }
    }
    lines.sort();
    lines.join(" ")
}

/// Limits as everybody has them, but none that a test would wait for.
fn budget() -> Budget {
    Budget { inflated_bytes: 600 << 20, data_bytes: 64 << 20, ratio_from: 16 << 20, ..Budget::default() }
}

/// What becomes of an archive. Whatever is taken goes all the way to an image of bounded length.
fn outcome(archive: &Archive) -> String {
    let mut data = tempfile::tempfile().unwrap();
    let converted = layer::convert(&mut &archive.bytes[..], archive.packed, &budget(), &mut data);
    assert!(data.metadata().unwrap().len() <= 64 << 20, "{}: data beyond the budget", archive.name);
    match converted {
        Ok(converted) => {
            let found = listing(&converted.tree);
            let device = Device { data_len: converted.data_len, digest: converted.diff_id };
            let tree = merge(vec![converted.tree]).unwrap();
            let mut out = tempfile::tempfile().unwrap();
            let length = erofs::write(&tree, &[device], &mut out).unwrap();
            assert!(length.is_multiple_of(4096) && length <= METADATA, "{}: {length} bytes of metadata", archive.name);
            found
        }
        Err(error) => {
            let mut words = format!("!{error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                words = format!("{words}: {error}");
                cause = error.source();
            }
            words
        }
    }
}

fn fits(verdict: &str, outcome: &str) -> bool {
    match (verdict.strip_prefix('!'), outcome.strip_prefix('!')) {
        (Some(words), Some(said)) => said.contains(words),
        (None, None) => verdict == outcome,
        _ => false,
    }
}

#[test]
fn each_archive_has_its_verdict() {
    let archives = all();
    let names: BTreeSet<&str> = archives.iter().map(|a| a.name.as_str()).collect();
    assert!(names.len() == archives.len() && names.len() >= 300, "{} of {} names", names.len(), archives.len());
    let mut wrong = Vec::new();
    for archive in &archives {
        let found = outcome(archive);
        if !fits(&archive.verdict, &found) {
            wrong.push(format!("{}:\n  expected {}\n  found    {found}", archive.name, archive.verdict));
        }
        if found.starts_with('!') && found.chars().any(char::is_control) {
            wrong.push(format!("{}: not fit to be shown: {found:?}", archive.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {} archives:\n{}", wrong.len(), archives.len(), wrong.join("\n"));
}
