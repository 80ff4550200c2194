//! What layers do to each other, two at a time: a case is what the lower one has, what the upper one has, and the tree.

use duplex::image::layer::Budget;
use duplex::image::merge::merge;

use super::listing;
use crate::archives::convert;
use crate::tarball::Tarball;

/// One line of entries: `d/`, `f=content`, `l>target`, `h:target`, `p|`.
fn layer(line: &str) -> Vec<u8> {
    let mut tar = Tarball::default();
    for entry in line.split(' ').filter(|entry| !entry.is_empty()) {
        if let Some((path, content)) = entry.split_once('=') {
            tar.file(path, content.as_bytes());
        } else if let Some((path, target)) = entry.split_once('>') {
            tar.symlink(path, target);
        } else if let Some((path, target)) = entry.split_once(':') {
            tar.hard_link(path, target);
        } else if let Some(path) = entry.strip_suffix('|') {
            tar.device(b'6', path, (0, 0));
        } else {
            tar.dir(entry);
        }
    }
    tar.end()
}

const CASES: &[(&str, &str, &str, &str)] = &[
    ("a file over a file", "f=1", "f=22", "f(2)"),
    ("a file over a directory", "d/ d/x=1", "d=1", "d(1)"),
    ("a directory over a file", "d=1", "d/", "d/"),
    ("a directory over a directory", "d/ d/x=1", "d/ d/y=1", "d/ d/x(1) d/y(1)"),
    ("a directory over a link", "d>/etc", "d/ d/passwd=evil", "d/ d/passwd(4)"),
    ("a path through a link of the layer below", "d>/etc", "d/passwd=evil", "d/ d/passwd(4)"),
    ("a path through a link to above", "d>..", "d/x=1", "d/ d/x(1)"),
    ("a path through a link to a directory of the image", "r/ r/x=1 d>r", "d/x=22", "d/ d/x(2) r/ r/x(1)"),
    ("a link over a directory", "d/ d/x=1", "d>/etc", "d>/etc"),
    ("a link over a directory, whiteouts below it", "d/ d/x=1", "d>/etc d/.wh.x=", "d>/etc"),
    ("a whiteout of a file", "f=1 g=1", ".wh.f=", "g(1)"),
    ("a whiteout of a directory", "d/ d/x=1", ".wh.d=", ""),
    ("a whiteout of nothing", "f=1", ".wh.x=", "f(1)"),
    ("a whiteout of a link", "l>/etc", ".wh.l=", ""),
    ("a whiteout through a link", "r/ r/x=1 l>r", "l/.wh.x=", "l/ r/ r/x(1)"),
    ("a whiteout and the same name", "f=1", ".wh.f= f=22", "f(2)"),
    ("the same name and its whiteout", "f=1", "f=22 .wh.f=", "f(2)"),
    ("a whiteout of a directory that comes again", "d/ d/x=1", ".wh.d= d/ d/y=1", "d/ d/y(1)"),
    ("an opaque directory", "d/ d/x=1 e=1", "d/ d/.wh..wh..opq=", "d/ e(1)"),
    ("an opaque directory with a file in front", "d/ d/x=1", "d/ d/y=1 d/.wh..wh..opq=", "d/ d/y(1)"),
    ("an opaque directory that is only implied", "d/ d/x=1", "d/.wh..wh..opq=", "d/"),
    ("an opaque root", "a=1 d/ d/x=1", ".wh..wh..opq= b=1", "b(1)"),
    ("an opaque mark below a file", "d=1", "d/.wh..wh..opq=", "d/"),
    ("a whiteout deep in nothing", "f=1", "a/b/.wh.c=", "a/ a/b/ f(1)"),
    ("a second name loses its first", "a=1 b:a", ".wh.a=", "b(1)"),
    ("a second name keeps its old content", "a=1 b:a", "a=22", "a(2) b(1)"),
    ("a whiteout's own name below", ".wh.f=", "f=1", "f(1)"),
    ("a whiteout of the lower layer's whiteout", ".wh.f=", ".wh.f=", ""),
    ("a pipe over a directory", "d/ d/x=1", "d|", "d|"),
    ("a directory over a pipe", "d|", "d/ d/x=1", "d/ d/x(1)"),
    ("mixed spellings of one name", "d/x=1", "./d//x=22", "d/ d/x(2)"),
];

#[test]
fn layers_over_layers_have_their_trees() {
    let mut wrong = Vec::new();
    for (name, lower, upper, expected) in CASES {
        let trees = [lower, upper].map(|line| convert(&layer(line), &Budget::default()).unwrap().0.tree);
        let found = listing(&merge(trees.to_vec()).unwrap());
        if found != *expected {
            wrong.push(format!("{name}:\n  expected {expected}\n  found    {found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A second name is of a file in the same layer: the lower layer's files are not there to be linked to.
#[test]
fn second_names_do_not_reach_into_other_layers() {
    let lower = convert(&layer("a=1"), &Budget::default());
    assert!(lower.is_ok());
    assert!(convert(&layer("b:a"), &Budget::default()).is_err());
}
