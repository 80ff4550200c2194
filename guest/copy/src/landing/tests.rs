use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use duplex_wire::Wanted;

use super::*;
use crate::{Reader, Source, Writer};

/// Copies between two folders as `cp` does between a host and a sandbox, both of which have this folder for a root.
fn copy(root: &Path, from: &str, follow: bool, to: &str, owner: Owner) -> Result<u64, CopyError> {
    let base = Base::within(fs::File::open(root).unwrap().into());
    let source = Source::new(from.as_bytes(), follow);
    let mut writer = Writer::new(Vec::new());
    source.send(&base, &mut writer)?;
    let stream = writer.finish().unwrap();
    let wanted = match source.name() {
        b"" => Wanted::Contents,
        name => Wanted::Named(name.to_vec()),
    };
    Landing::receive(&base, to.as_bytes(), &wanted, owner, &mut Reader::new(stream.as_slice()))
}

/// `src/{file,sub/deep,link -> file}`, `folder/`, `file`.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("src/sub")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("src/file"), "content").unwrap();
    fs::write(at("src/sub/deep"), "deep").unwrap();
    fs::write(at("file"), "old").unwrap();
    symlink("file", at("src/link")).unwrap();
    dir
}

fn read(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn destinations_are_dockers() {
    // From, to, and where the content of src/file or src/sub/deep is then; or a word of the refusal.
    for (from, to, there) in [
        ("src/file", "new", Ok("new")),
        ("src/file", "new/", Err("does not exist")),
        ("src/file", "no/new", Err("'no/' does not exist")),
        ("src/file", "file", Ok("file")),
        ("src/file", "file/", Err("is not a directory")),
        ("src/file", "folder", Ok("folder/file")),
        ("src/file", "folder/", Ok("folder/file")),
        ("src/file", "folder/.", Ok("folder/file")),
        ("src/file", "folder/other", Ok("folder/other")),
        ("src/file", "/", Ok("file")),
        ("src", "new", Ok("new/file")),
        ("src", "new/", Ok("new/file")),
        ("src/", "new", Ok("new/file")),
        ("src/.", "new", Ok("new/file")),
        ("src", "no/new", Err("'no/' does not exist")),
        ("src", "file", Err("Cannot copy a directory onto 'file'")),
        ("src", "folder", Ok("folder/src/file")),
        ("src/", "folder", Ok("folder/src/file")),
        ("src/.", "folder", Ok("folder/file")),
        ("src/./", "folder", Ok("folder/src/file")),
        ("src/sub/../file", "new", Ok("new")),
        ("file/", "new", Err("Not a directory")),
        ("file/.", "new", Err("Not a directory")),
        ("none", "new", Err("Cannot find 'none'")),
    ] {
        let dir = tree();
        let copied = copy(dir.path(), from, false, to, Owner::Own);
        match there {
            Ok(there) => {
                copied.unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
                let expected = if from == "file" { "old" } else { "content" };
                assert_eq!(read(dir.path(), there), expected, "{from} to {to}");
            }
            Err(word) => {
                let error = copied.expect_err(to);
                let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                assert!(format!("{error}: {source}").contains(word), "{from} to {to}: {error}: {source}");
            }
        }
    }
}

#[test]
fn links_are_copied_or_followed() {
    let dir = tree();
    let root = dir.path();
    copy(root, "src/link", false, "folder", Owner::Own).unwrap();
    assert_eq!(fs::read_link(root.join("folder/link")).unwrap(), Path::new("file"));
    copy(root, "src/link", true, "followed", Owner::Own).unwrap();
    assert!(!root.join("followed").is_symlink());
    assert_eq!(read(root, "followed"), "content");
    fs::remove_file(root.join("folder/link")).unwrap();
    copy(root, "src/link", true, "folder", Owner::Own).unwrap();
    assert_eq!(read(root, "folder/link"), "content", "under the link's name");

    // Destinations: what a link leads to, also where that is not yet; nothing leads out of the root.
    symlink("/folder", root.join("to-folder")).unwrap();
    symlink("../../file", root.join("folder/to-file")).unwrap();
    symlink("folder/made", root.join("to-nothing")).unwrap();
    symlink("round", root.join("round")).unwrap();
    copy(root, "src/file", false, "to-folder", Owner::Own).unwrap();
    assert_eq!(read(root, "folder/file"), "content");
    copy(root, "src/file", false, "folder/to-file", Owner::Own).unwrap();
    assert_eq!(read(root, "file"), "content", "the root has nothing above it");
    copy(root, "src", false, "to-nothing", Owner::Own).unwrap();
    assert_eq!(read(root, "folder/made/sub/deep"), "deep");
    assert!(matches!(copy(root, "src/file", false, "round", Owner::Own), Err(CopyError::Links(_))));
}

#[test]
fn folders_merge_and_nothing_changes_its_kind() {
    let dir = tree();
    let root = dir.path();
    fs::create_dir_all(root.join("folder/src/file")).unwrap();
    let error = copy(root, "src", false, "folder", Owner::Own).unwrap_err();
    assert_eq!(error.to_string(), "Cannot replace the directory 'src/file' with what is none");
    fs::remove_dir_all(root.join("folder/src")).unwrap();
    fs::create_dir(root.join("folder/src")).unwrap();
    fs::write(root.join("folder/src/kept"), "kept").unwrap();
    fs::write(root.join("folder/src/sub"), "in the way").unwrap();
    let error = copy(root, "src", false, "folder", Owner::Own).unwrap_err();
    assert_eq!(error.to_string(), "Cannot copy a directory onto 'src/sub', which is none");
    fs::remove_file(root.join("folder/src/sub")).unwrap();
    copy(root, "src", false, "folder", Owner::Own).unwrap();
    assert_eq!((read(root, "folder/src/kept"), read(root, "folder/src/sub/deep")), ("kept".into(), "deep".into()));
    // A link in the place of a folder is in the way, and not followed.
    fs::remove_dir_all(root.join("folder/src/sub")).unwrap();
    symlink("../../src/sub", root.join("folder/src/sub")).unwrap();
    assert!(copy(root, "src", false, "folder", Owner::Own).is_err());
}

#[test]
fn owners_and_modes_are_kept_or_plain() {
    let dir = tree();
    let root = dir.path();
    fs::set_permissions(root.join("src/file"), PermissionsExt::from_mode(0o4751)).unwrap();
    fs::set_permissions(root.join("src/sub"), PermissionsExt::from_mode(0o1577)).unwrap();
    fs::hard_link(root.join("src/file"), root.join("src/sub/again")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("src/pipe"), FileType::Fifo, Mode::from(0o640), 0).unwrap();
    let root_user = rustix::process::geteuid().is_root();
    if root_user {
        std::os::unix::fs::chown(root.join("src/file"), Some(7), Some(8)).unwrap();
        fs::set_permissions(root.join("src/file"), PermissionsExt::from_mode(0o4751)).unwrap();
    }
    copy(root, "src", false, "plain", Owner::Own).unwrap();
    copy(root, "src", false, "kept", Owner::Kept).unwrap();
    let of = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    let (me, mine) = (of("src/sub").uid(), of("src/sub").gid());
    assert_eq!((of("plain/file").mode() & 0o7777, of("plain/file").uid()), (0o751, me));
    assert_eq!((of("plain/sub").mode() & 0o7777, of("plain/pipe").mode() & 0o777), (0o1577, 0o640));
    let (user, group) = if root_user { (7, 8) } else { (me, mine) };
    assert_eq!((of("kept/file").mode() & 0o7777, of("kept/file").uid(), of("kept/file").gid()), (0o4751, user, group));
    assert_eq!(of("kept/file").ino(), of("kept/sub/again").ino(), "one file with two names");
    assert_eq!(of("kept/sub").mtime(), of("src/sub").mtime());
    assert_eq!(of("kept/file").mtime(), of("src/file").mtime());
}

/// A stream that a hostile sandbox might send.
fn sent(entries: &[(&str, Kind)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, kind) in entries {
        let path = path.as_bytes().to_vec();
        writer.entry(&Entry { path, kind: kind.clone(), mode: 0o6777, owner: (0, 0), modified_s: 0 }).unwrap();
        if let Kind::File(size) = kind {
            writer.content(&mut std::io::repeat(b'x'), *size).unwrap();
        }
    }
    writer.finish().unwrap()
}

#[test]
fn nothing_leaves_the_destination() {
    let dir = tree();
    let root = dir.path();
    fs::create_dir(root.join("victim")).unwrap();
    fs::write(root.join("victim/secret"), "secret").unwrap();
    let link = |target: &str| Kind::Link(target.as_bytes().to_vec());
    let again = |target: &str| Kind::Again(target.as_bytes().to_vec());
    let named = || Wanted::Named(b"asked".to_vec());
    let streams = [
        vec![("a", Kind::Folder), ("b", Kind::File(1))],
        vec![("a", Kind::Folder), ("", Kind::Folder), ("x", Kind::File(1))],
        vec![("a", Kind::File(1)), ("a/b", Kind::File(1))],
        vec![("a", link("../victim")), ("a/new", Kind::File(1))],
        vec![("a", Kind::Folder), ("a/l", link("../../victim")), ("a/l/new", Kind::File(1))],
        vec![("a", Kind::Folder), ("a/l", link("../../victim/secret")), ("a/h", again("a/l"))],
        vec![("a", Kind::Folder), ("a/h", again("victim/secret"))],
        vec![("a", Kind::Folder), ("a/h", again("a"))],
    ];
    for stream in streams {
        let bytes = sent(&stream);
        let base = Base::own();
        let into = root.join("folder");
        let into = into.to_str().unwrap().as_bytes();
        let got = Landing::receive(&base, into, &named(), Owner::Own, &mut Reader::new(bytes.as_slice()));
        assert!(got.is_err(), "{stream:?}");
        let made: Vec<_> = fs::read_dir(root.join("folder")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(made.iter().all(|name| name == "asked"), "{stream:?} made {made:?}");
        assert_eq!(fs::read_dir(root.join("victim")).unwrap().count(), 1, "{stream:?}");
        assert_eq!(read(root, "victim/secret"), "secret");
        fs::remove_dir_all(root.join("folder")).unwrap();
        fs::create_dir(root.join("folder")).unwrap();
    }
}

#[test]
fn kernels_windows_and_sockets_are_left_out() {
    let dir = tree();
    let socket = std::os::unix::net::UnixListener::bind(dir.path().join("src/socket")).unwrap();
    let base = Base::within(fs::File::open(dir.path()).unwrap().into());
    let mut writer = Writer::new(Vec::new());
    let told = Source::new(b"src", false).send(&base, &mut writer).unwrap();
    assert_eq!((told.count, told.skipped), (1, vec!["src/socket".to_owned()]));
    assert!(matches!(Source::new(b"src/socket", false).send(&base, &mut writer), Err(CopyError::Special(_))));
    drop(socket);
    let root = Base::within(fs::File::open("/").unwrap().into());
    let error = Source::new(b"/proc/self/root/etc", true).send(&root, &mut writer).unwrap_err();
    assert!(error.to_string().contains("Cannot find"), "the magic links of /proc lead out: {error}");
}

#[test]
fn a_stream_that_breaks_off_leaves_no_half_file() {
    let dir = tree();
    let bytes = sent(&[("a", Kind::File(5000))]);
    let base = Base::within(fs::File::open(dir.path()).unwrap().into());
    let wanted = Wanted::Named(b"new".to_vec());
    for cut in [0, 512, 3000] {
        let mut reader = Reader::new(&bytes[..cut]);
        assert!(Landing::receive(&base, b"folder", &wanted, Owner::Own, &mut reader).is_err());
        assert!(!dir.path().join("folder/new").exists(), "cut at {cut}");
    }
}
