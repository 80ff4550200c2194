//! What the tar reader and the layer conversion make of archives that are as they should be, in every dialect.

use std::fs::File;
use std::io::{BufReader, Read};

use duplex::image::decompress::Compression;
use duplex::image::layer::{self, Budget, Converted, LayerError};
use duplex::image::tar::{Entry, EntryKind, Reader};
use duplex::image::tree::{Content, DeviceNumber, Inode, Kind, Time};
use sha2::{Digest, Sha256};

use crate::tarball::{BLOCK, Header, Tarball};

/// All entries with their contents.
pub(crate) fn entries(bytes: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let mut reader = Reader::new(BufReader::with_capacity(700, bytes), &Budget::default());
    let mut found = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        let mut content = Vec::new();
        reader.read_to_end(&mut content).unwrap();
        found.push((entry, content));
    }
    found
}

fn only(tar: &Tarball) -> (Entry, Vec<u8>) {
    let mut all = entries(&tar.end());
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn path(entry: &Entry) -> String {
    String::from_utf8_lossy(entry.path.as_bytes()).into_owned()
}

/// Converts a layer; the data file comes with it.
pub(crate) fn convert(mut bytes: &[u8], budget: &Budget) -> Result<(Converted, File), LayerError> {
    let mut data = tempfile::tempfile().unwrap();
    layer::convert(&mut bytes, Compression::None, budget, &mut data).map(|converted| (converted, data))
}

fn inode<'c>(converted: &'c Converted, path: &str) -> &'c Inode {
    let id = converted.tree.find(path.as_bytes()).unwrap_or_else(|| panic!("{path}"));
    converted.tree.get(id).unwrap()
}

#[test]
fn kinds_and_attributes() {
    let mut tar = Tarball::default();
    tar.dir("d/").file("d/f", b"content").symlink("s", "../anything//at all").hard_link("h", "./d/f");
    tar.device(b'3', "c", (5, 1)).device(b'4', "b", (259, 1_000_000)).device(b'6', "p", (0, 0));
    let kinds: Vec<_> = entries(&tar.end()).into_iter().map(|(e, _)| e.kind).collect();
    assert_eq!(kinds[0], EntryKind::Directory);
    assert_eq!(kinds[1], EntryKind::File { size: 7, map: None });
    assert_eq!(kinds[2], EntryKind::Symlink(b"../anything//at all".to_vec()));
    assert!(matches!(&kinds[3], EntryKind::HardLink(target) if target.as_bytes() == b"d/f"));
    assert_eq!(kinds[4], EntryKind::CharDevice(DeviceNumber::new(5, 1).unwrap()));
    assert_eq!(kinds[5], EntryKind::BlockDevice(DeviceNumber::new(259, 1_000_000).unwrap()));
    assert_eq!(kinds[6], EntryKind::Fifo);
}

#[test]
fn names_in_every_dialect() {
    let long = format!("{}/{}", "a".repeat(120), "b".repeat(30));
    let mut prefixed = Header::new(b'0', b"name", 0);
    prefixed.put(345, b"front/of it");
    let mut gnu = Header::new(b'0', b"name", 0);
    gnu.gnu().put(345, b"not a prefix");
    let mut v7 = Header::new(0, b"old", 0);
    v7.put(257, &[0; 8]);
    let mut v7_dir = Header::new(0, b"olddir/", 0);
    v7_dir.put(257, &[0; 8]);
    let full = Header::new(b'0', &[b'n'; 100], 0);
    let cases: [(&str, Tarball); 8] = [
        ("front/of it/name", Tarball::default().entry(&prefixed, b"").clone()),
        ("name", Tarball::default().entry(&gnu, b"").clone()),
        ("old", Tarball::default().entry(&v7, b"").clone()),
        ("olddir", Tarball::default().entry(&v7_dir, b"").clone()),
        (&"n".repeat(100), Tarball::default().entry(&full, b"").clone()),
        (&long, Tarball::default().gnu_long(b'L', long.as_bytes()).file("cut", b"").clone()),
        (&long, Tarball::default().pax(b'x', &[("path", long.as_bytes())]).file("cut", b"").clone()),
        ("a/b", Tarball::default().file(".//a/./b", b"").clone()),
    ];
    for (expected, tar) in cases {
        assert_eq!(path(&only(&tar).0), expected);
    }
}

#[test]
fn pax_overrides_the_header() {
    let mut tar = Tarball::default();
    let records: [(&str, &[u8]); 6] = [
        ("size", b"5"),
        ("uid", b"3000000000"),
        ("gid", b"7"),
        ("mtime", b"12.5"),
        ("uname", b"somebody"),
        ("SCHILY.xattr.user.n\u{e9}", b"=\n\0"),
    ];
    // The header says 0 bytes; were that believed, the content would be read as headers (CVE-2025-62518).
    tar.pax(b'x', &records).entry(&Header::new(b'0', b"f", 0), b"hello").file("next", b"");
    let all = entries(&tar.end());
    let (entry, content) = &all[0];
    assert_eq!((entry.uid, entry.gid, entry.mtime), (3_000_000_000, 7, Time::new(12, 500_000_000).unwrap()));
    assert_eq!(content, b"hello");
    assert_eq!(entry.xattrs, [("user.n\u{e9}".as_bytes().to_vec(), b"=\n\0".to_vec())]);
    assert_eq!(path(&all[1].0), "next");
}

#[test]
fn an_archive_inside_a_file_stays_inside() {
    let mut inner = Tarball::default();
    inner.file("evil", b"x");
    let inner = inner.end();
    let mut tar = Tarball::default();
    tar.pax(b'x', &[("size", inner.len().to_string().as_bytes())]).entry(&Header::new(b'0', b"inner.tar", 0), &inner);
    tar.file("behind", b"");
    let names: Vec<_> = entries(&tar.end()).iter().map(|(e, _)| path(e)).collect();
    assert_eq!(names, ["inner.tar", "behind"]);
}

#[test]
fn global_headers_last_until_changed() {
    let mut tar = Tarball::default();
    tar.pax(b'g', &[("uid", b"5"), ("comment", b"c")]).file("a", b"").pax(b'x', &[("uid", b"6")]).file("b", b"");
    tar.file("c", b"").pax(b'g', &[("gid", b"9")]).file("d", b"");
    let owners: Vec<_> = entries(&tar.end()).iter().map(|(e, _)| (e.uid, e.gid)).collect();
    assert_eq!(owners, [(5, 0), (6, 0), (5, 0), (5, 9)]);
}

#[test]
fn numbers_beyond_octal() {
    let mut header = Header::new(b'0', b"f", 0);
    header.gnu().base256(108, 8, 4_000_000_000).base256(116, 8, 70_000).base256(136, 12, -62_135_596_800);
    let (entry, _) = only(Tarball::default().entry(&header, b""));
    assert_eq!((entry.uid, entry.gid, entry.mtime.seconds()), (4_000_000_000, 70_000, -62_135_596_800));
}

/// A file of 40,000 bytes with data at 0, at 20,000 and at its end, in each of the four sparse formats.
fn sparse_archives() -> [(&'static str, Tarball); 4] {
    let data = [vec![b'a'; 10], vec![b'b'; 600], vec![b'c'; 1]].concat();
    let map = [(0, 10), (20_000, 600), (39_999, 1)];
    let mut old = Header::new(b'S', b"sparse", data.len() as u64);
    old.gnu().octal(483, 12, 40_000);
    for (number, (offset, len)) in map.iter().enumerate() {
        old.octal(386 + 24 * number, 12, *offset).octal(398 + 24 * number, 12, *len);
    }
    let text: Vec<String> = map.iter().map(|(o, l)| format!("{o},{l}")).collect();
    let text = text.join(",");
    let mut v00 = Tarball::default();
    let numbers: Vec<(String, String)> = map.iter().map(|(o, l)| (o.to_string(), l.to_string())).collect();
    let mut records: Vec<(&str, &[u8])> = vec![("GNU.sparse.size", b"40000"), ("GNU.sparse.numblocks", b"3")];
    for (offset, len) in &numbers {
        records.extend([("GNU.sparse.offset", offset.as_bytes()), ("GNU.sparse.numbytes", len.as_bytes())]);
    }
    v00.pax(b'x', &records).file("sparse", &data);
    let mut v01 = Tarball::default();
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.size", b"40000"),
        ("GNU.sparse.numblocks", b"3"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.map", text.as_bytes()),
    ];
    v01.pax(b'x', &records).file("GNUSparseFile.7/sparse", &data);
    let mut body = format!("3\n{}\n", text.replace(',', "\n")).into_bytes();
    body.resize(BLOCK, 0);
    body.extend(&data);
    let mut v10 = Tarball::default();
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"40000"),
    ];
    v10.pax(b'x', &records).file("GNUSparseFile.7/sparse", &body);
    [("old GNU", Tarball::default().entry(&old, &data).clone()), ("0.0", v00), ("0.1", v01), ("1.0", v10)]
}

#[test]
fn sparse_files_in_every_format() {
    let mut expected = vec![0; 40_000];
    expected[..10].fill(b'a');
    expected[20_000..20_600].fill(b'b');
    expected[39_999] = b'c';
    for (format, mut tar) in sparse_archives() {
        tar.file("next", b"behind");
        let all = entries(&tar.end());
        assert_eq!((path(&all[0].0).as_str(), path(&all[1].0).as_str()), ("sparse", "next"), "{format}");
        assert!(all[0].1 == expected, "{format}");
        let (converted, mut data) = convert(&tar.end(), &Budget::default()).unwrap();
        let Kind::File(file) = &inode(&converted, "sparse").kind else { panic!("{format}") };
        let Content::Sparse(sparse) = &file.content else { panic!("{format}") };
        let mut blob = Vec::new();
        data.read_to_end(&mut blob).unwrap();
        let mut found = vec![0; 40_960];
        for run in &sparse.runs {
            let [first, chunks, from] = [run.first, run.chunks, run.address].map(|n| usize::try_from(n).unwrap());
            let (at, len) = (first * 4096, chunks * 4096);
            found[at..at + len].copy_from_slice(&blob[from..from + len]);
        }
        assert!(found[..40_000] == expected && found[40_000..].iter().all(|b| *b == 0), "{format}");
        // Data lies in blocks 0, 4, 5 and 9; the file behind it has one block.
        assert_eq!(converted.data_len, 5 * 4096, "{format}");
    }
}

#[test]
fn a_long_old_gnu_map_goes_on_in_further_blocks() {
    let mut header = Header::new(b'S', b"sparse", 30);
    header.gnu().octal(483, 12, 300_000);
    let mut more = [0_u8; 2 * BLOCK];
    for number in 0..30_u64 {
        let (offset, len) = (format!("{:011o}\0", number * 10_000), format!("{:011o}\0", 1));
        let number = usize::try_from(number).unwrap();
        if number < 4 {
            header.put(386 + 24 * number, offset.as_bytes()).put(398 + 24 * number, len.as_bytes());
        } else {
            let block = (number - 4) / 21;
            let at = block * BLOCK + (number - 4) % 21 * 24;
            more[at..at + 12].copy_from_slice(offset.as_bytes());
            more[at + 12..at + 24].copy_from_slice(len.as_bytes());
        }
    }
    header.put(482, b"1");
    more[504] = 1;
    let mut tar = Tarball::default();
    tar.entry(&header, &[&more[..], &[b'x'; 30]].concat()).file("next", b"");
    let all = entries(&tar.end());
    assert_eq!(all[0].1.iter().filter(|b| **b == b'x').count(), 30);
    assert_eq!(all[0].1[290_000], b'x');
    assert_eq!(path(&all[1].0), "next");
}

#[test]
fn contents_lie_on_blocks_and_the_digest_covers_every_byte() {
    let mut tar = Tarball::default();
    tar.file("a", b"aaa").file("empty", b"").file("b", &[b'b'; 5000]);
    let bytes = [tar.end(), b"what stands behind the end marker".to_vec()].concat();
    let (converted, mut data) = convert(&bytes, &Budget::default()).unwrap();
    let mut blob = Vec::new();
    data.read_to_end(&mut blob).unwrap();
    assert_eq!((converted.data_len, blob.len()), (12_288, 12_288));
    let address = |path| match &inode(&converted, path).kind {
        Kind::File(file) => (file.size, file.content.clone()),
        _ => unreachable!(),
    };
    assert_eq!(address("a"), (3, Content::Whole(0)));
    assert_eq!(address("b"), (5000, Content::Whole(4096)));
    assert_eq!(address("empty"), (0, Content::Whole(0)));
    assert!(blob[4096..9096].iter().all(|b| *b == b'b') && blob[9096..].iter().all(|b| *b == 0));
    assert_eq!(converted.diff_id.to_string(), format!("sha256:{:x}", Sha256::digest(&bytes)));
}

#[test]
fn large_contents_pass_whole() {
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let mut tar = Tarball::default();
    tar.file("small", b"1").file("large", &content).file("last", b"2");
    let (_, mut data) = convert(&tar.end(), &Budget::default()).unwrap();
    let mut blob = Vec::new();
    data.read_to_end(&mut blob).unwrap();
    assert!(blob[4096..4096 + content.len()] == content && blob[4096 + 3_002_368] == b'2');
}

#[test]
fn what_overlayfs_keeps_for_itself_is_left_out() {
    let mut tar = Tarball::default();
    let records: [(&str, &[u8]); 6] = [
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.system.other", b"x"),
        ("SCHILY.xattr.nonamespace", b"x"),
        ("SCHILY.xattr.user.kept", b"x"),
        ("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0"),
    ];
    tar.pax(b'x', &records).dir("d");
    let (converted, _) = convert(&tar.end(), &Budget::default()).unwrap();
    let xattrs = inode(&converted, "d").attributes.xattrs.as_ref().unwrap();
    let names: Vec<_> = xattrs.keys().map(|n| String::from_utf8_lossy(n).into_owned()).collect();
    assert_eq!(names, ["system.posix_acl_access", "user.kept"]);
}

#[test]
fn whiteouts_and_what_aufs_left() {
    let mut tar = Tarball::default();
    tar.file("d/.wh.gone", b"with content").file("d/.wh..wh..opq", b"").file(".wh..wh.plnk", b"").dir(".wh..wh.aufs/x");
    tar.hard_link(".wh.linked", "nowhere").file("d/.whiteout", b"");
    let (converted, _) = convert(&tar.end(), &Budget::default()).unwrap();
    let root = inode(&converted, "").directory().unwrap();
    let hidden = |d: &duplex::image::tree::Directory| {
        d.whiteouts.as_ref().unwrap().names.iter().map(|n| n.to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(hidden(root), [b"linked"]);
    let d = inode(&converted, "d").directory().unwrap();
    assert!(d.whiteouts.as_ref().unwrap().opaque && d.implied);
    assert_eq!(hidden(d), [b"gone"]);
    assert_eq!(d.entries.keys().map(|k| k.to_vec()).collect::<Vec<_>>(), [b".whiteout"]);
    assert_eq!(root.entries.len(), 1);
}

/// umoci packs a directory that became a link as the link with whiteouts below it: they hide nothing, where the link leads least of all.
#[test]
fn whiteouts_below_a_link_are_not_followed() {
    let mut tar = Tarball::default();
    tar.dir("real")
        .symlink("a", "real")
        .file("a/.wh.x", b"")
        .file("a/.wh..wh..opq", b"")
        .file("f", b"")
        .file("f/.wh.y", b"");
    let (converted, _) = convert(&tar.end(), &Budget::default()).unwrap();
    let hides_nothing = |d: &duplex::image::tree::Directory| d.whiteouts.is_none() && !d.implied;
    assert!(hides_nothing(inode(&converted, "real").directory().unwrap()));
    assert!(matches!(inode(&converted, "a").kind, Kind::Symlink(_)));
    assert_eq!(converted.tree.inodes().len(), 4);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let mut tar = Tarball::default();
    tar.file("f", b"1")
        .hard_link("g", "f")
        .file("f", b"22")
        .dir("d")
        .file("d/x", b"")
        .dir("d")
        .file("e/x", b"")
        .file("e", b"");
    let (converted, _) = convert(&tar.end(), &Budget::default()).unwrap();
    let size = |path| match &inode(&converted, path).kind {
        Kind::File(file) => file.size,
        _ => unreachable!(),
    };
    assert_eq!((size("f"), size("g"), size("d/x"), size("e")), (2, 1, 0, 0));
    assert_eq!(converted.tree.find(b"e/x"), None);
}

#[test]
fn a_full_disk_and_a_broken_stream_are_told_apart() {
    struct Broken(Vec<u8>);
    impl Read for Broken {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            match self.0.pop() {
                Some(byte) => {
                    buf[0] = byte;
                    Ok(1)
                }
                None => Err(std::io::ErrorKind::TimedOut.into()),
            }
        }
    }
    let bytes = Tarball::default().file("f", &[1; 2 << 20]).end();
    let mut full = File::options().write(true).open("/dev/full").unwrap();
    let error = layer::convert(&mut &bytes[..], Compression::None, &Budget::default(), &mut full).unwrap_err();
    assert!(matches!(&error, LayerError::Write { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
    let mut broken = Broken(bytes[..3000].iter().rev().copied().collect());
    let mut data = tempfile::tempfile().unwrap();
    let error = layer::convert(&mut broken, Compression::None, &Budget::default(), &mut data).unwrap_err();
    assert!(
        matches!(error, LayerError::Decompress(_)),
        "the stream's error, not that the archive is cut short: {error}"
    );
    let (made, _) = convert(&bytes, &Budget::default()).unwrap();
    let device = duplex::image::erofs::Device { data_len: made.data_len, digest: made.diff_id };
    assert!(duplex::image::erofs::write(&made.tree, &[device], &mut full).is_err());
}
