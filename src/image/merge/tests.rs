//! The rules of "Applying Changesets", one by one.

use crate::image::tree::{Attributes, Content, File, Whiteouts};

use super::*;

/// A tree of these paths: `dir/` a directory, `dir!/` an implied one, `.wh.x` a whiteout, `link>target` a link, `x=y` a hard link to `y`, others files
/// whose size is `size`.
fn layer(size: u64, paths: &[&str]) -> Tree {
    let mut tree = Tree::default();
    for path in paths {
        let (parent, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path.trim_end_matches('/')));
        let implied = name.ends_with('!');
        let name = name.trim_end_matches('!');
        let into = tree.find(parent.as_bytes()).unwrap();
        if let Some(hidden) = name.strip_prefix(".wh.") {
            let directory = tree.get_mut(into).unwrap().directory_mut().unwrap();
            let whiteouts: &mut Whiteouts = directory.whiteouts.get_or_insert_default();
            match hidden {
                ".wh..opq" => whiteouts.opaque = true,
                name => drop(whiteouts.names.insert(name.as_bytes().into())),
            }
            continue;
        }
        let (name, id) = if let Some((name, other)) = name.split_once('=') {
            (name, tree.find(other.as_bytes()).unwrap())
        } else {
            let (name, kind) = match name.split_once('>') {
                _ if path.ends_with('/') => (name, Kind::Directory(Directory { implied, ..Directory::default() })),
                Some((name, target)) => (name, Kind::Symlink(target.as_bytes().into())),
                None => (name, Kind::File(File { size, layer: 0, content: Content::Whole(0) })),
            };
            let uid = u32::try_from(size).unwrap();
            let attributes = Attributes { mode: 0o700, uid, ..Attributes::default() };
            (name, tree.add(Inode { attributes, kind }).unwrap())
        };
        tree.get_mut(into).unwrap().directory_mut().unwrap().entries.insert(name.as_bytes().into(), id);
    }
    tree
}

/// All paths, sorted, with owner (the number of the layer that gave the attributes).
fn listing(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), InodeId::ROOT)];
    while let Some((path, id)) = open.pop() {
        let directory = tree.get(id).unwrap().directory().unwrap();
        assert_eq!(directory.whiteouts, None);
        for (name, id) in &directory.entries {
            let path = format!("{path}{}", String::from_utf8_lossy(name));
            let inode = tree.get(*id).unwrap();
            let mark = match &inode.kind {
                Kind::Directory(_) => "/",
                Kind::Symlink(_) => ">",
                _ => "",
            };
            found.push(format!("{path}{mark} {}", inode.attributes.uid));
            if mark == "/" {
                open.push((format!("{path}/"), *id));
            }
        }
    }
    found.sort();
    found
}

fn merged(layers: &[&[&str]]) -> Vec<String> {
    let layers = (1..).zip(layers).map(|(n, paths)| layer(n, paths)).collect();
    listing(&merge(layers).unwrap())
}

#[test]
fn nothing_is_an_empty_root() {
    assert_eq!(merge(Vec::new()).unwrap(), Tree::default());
}

#[test]
fn names_add_up_and_upper_ones_win() {
    assert_eq!(merged(&[&["a/", "a/x", "b"], &["a/", "a/y", "b"]]), ["a/ 2", "a/x 1", "a/y 2", "b 2"]);
}

#[test]
fn an_implied_directory_keeps_what_is_below() {
    assert_eq!(merged(&[&["a/"], &["a!/", "a/x"]]), ["a/ 1", "a/x 2"]);
    assert_eq!(merged(&[&["a!/", "a/x"], &["a/"]]), ["a/ 2", "a/x 1"]);
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    assert_eq!(merged(&[&["a", "d/", "d/x"], &[".wh.a", ".wh.d", ".wh.never"]]), [""; 0]);
    assert_eq!(merged(&[&["a"], &[".wh.a", "a"]]), ["a 2"]);
    assert_eq!(merged(&[&["a", ".wh.a"]]), ["a 1"]);
    assert_eq!(merged(&[&["a"], &[".wh.a"], &["b"]]), ["b 3"]);
}

#[test]
fn an_opaque_directory_starts_anew() {
    let upper: &[&str] = &["d/", "d/.wh..wh..opq", "d/y"];
    assert_eq!(merged(&[&["d/", "d/x", "d/e/", "d/e/z"], upper]), ["d/ 2", "d/y 2"]);
    assert_eq!(merged(&[&["d/", "d/x"], upper, &["d/", "d/z"]]), ["d/ 3", "d/y 2", "d/z 3"]);
}

#[test]
fn kinds_replace_each_other() {
    assert_eq!(merged(&[&["a/", "a/x"], &["a"]]), ["a 2"]);
    assert_eq!(merged(&[&["a"], &["a/", "a/x"]]), ["a/ 2", "a/x 2"]);
    // A link is replaced, not followed.
    assert_eq!(merged(&[&["t/", "a>t"], &["a!/", "a/x"]]), ["a/ 2", "a/x 2", "t/ 1"]);
}

#[test]
fn hard_links_stay_one_inode_within_their_layer() {
    let trees = vec![layer(1, &["a", "b=a", "d/", "d/c=a"]), layer(2, &[".wh.a"])];
    let tree = merge(trees).unwrap();
    assert_eq!(listing(&tree), ["b 1", "d/ 1", "d/c 1"]);
    assert_eq!(tree.find(b"b"), tree.find(b"d/c"));
    assert_eq!(tree.inodes().len(), 3);
}

#[test]
fn files_know_their_layer() {
    let tree = merge(vec![layer(1, &["a", "b"]), layer(2, &["b", "c"]), layer(3, &[])]).unwrap();
    let layers = [b"a", b"b", b"c"].map(|path| match &tree.get(tree.find(path).unwrap()).unwrap().kind {
        Kind::File(file) => file.layer,
        _ => unreachable!(),
    });
    assert_eq!(layers, [0, 1, 1]);
}

#[test]
fn too_many_layers_are_refused() {
    let layers = vec![Tree::default(); MOST_LAYERS + 1];
    assert_eq!(merge(layers), Err(MergeError::TooManyLayers(1025)));
}
