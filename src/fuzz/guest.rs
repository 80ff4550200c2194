//! Targets in the crates that host and guest share.

use std::fs;
use std::io::BufReader;
use std::os::unix::fs::symlink;
use std::path::Path;

use duplex_copy::{Base, Landing, Owner, Reader};
use duplex_wire::{
    Accounts, Counters, Decoder, HEADER, Identity, Message, ToGuest, ToHost, VERSION, Wanted, command_line, effect,
    encode, process_entry,
};

use super::Input;
use super::tarball::{BLOCK, Header};

/// Frames of both directions, whole or in pieces: a message is the same after another way over the wire.
pub(crate) fn wire(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() & 3 {
        0 => frames::<ToHost>(input.rest()),
        1 => frames::<ToGuest>(input.rest()),
        2 => bodies::<ToHost>(&mut input),
        _ => bodies::<ToGuest>(&mut input),
    }
}

/// Anything at all.
fn frames<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let decoded = |chunk: usize| {
        let (mut decoder, mut found) = (Decoder::<M>::default(), Vec::new());
        for piece in bytes.chunks(chunk) {
            decoder.push(piece);
            loop {
                match decoder.next_message() {
                    Ok(Some(message)) => found.push(message),
                    Ok(None) => break,
                    Err(_) => return found,
                }
            }
        }
        found
    };
    let found = decoded(usize::MAX);
    assert_eq!(found, decoded(1), "how it comes makes a difference");
    found.iter().for_each(again);
}

/// Good frames with any bodies.
fn bodies<M: Message + PartialEq + std::fmt::Debug>(input: &mut Input<'_>) {
    let mut decoder = Decoder::<M>::default();
    while !input.is_empty() {
        let length = usize::from(input.u16());
        let body = input.bytes(length);
        let mut frame = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        frame.extend(VERSION.to_le_bytes());
        frame.extend([0, 0]);
        assert_eq!(frame.len(), HEADER);
        frame.extend(body);
        decoder.push(&frame);
        match decoder.next_message() {
            Ok(message) => again(&message.expect("a whole frame is a message")),
            Err(_) => decoder = Decoder::default(),
        }
    }
}

fn again<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
    let Ok(bytes) = encode(message) else { return };
    let mut decoder = Decoder::<M>::default();
    decoder.push(&bytes);
    assert_eq!(decoder.next_message().as_ref(), Ok(&Some(clone(message))));
    assert!(decoder.is_empty());
}

/// Messages need not be [`Clone`].
fn clone<M: Message>(message: &M) -> M {
    postcard::from_bytes(&postcard::to_stdvec(message).unwrap()).unwrap()
}

/// A user of an image with any `passwd` and `group`: numbers and a home without a zero byte, root only where somebody says so.
pub(crate) fn users(data: &[u8]) {
    let mut input = Input::new(data);
    let spec = String::from_utf8_lossy(input.piece()).into_owned();
    let passwd = input.piece();
    let accounts = Accounts { passwd, group: input.rest() };
    if let Ok(identity) = Identity::resolve(&spec, accounts) {
        assert!(identity.uid <= i32::MAX as u32 && identity.gid <= i32::MAX as u32);
        assert!(identity.groups.len() <= 65536 && !identity.home.contains('\n'));
        if let Ok(number) = spec.parse::<u32>() {
            assert!(identity.uid == number || passwd.windows(spec.len()).any(|w| w == spec.as_bytes()), "{identity:?}");
        }
    }
}

/// Files of the kernel below `/proc` and in a cgroup, whose texts have names that processes choose.
pub(crate) fn proc_files(data: &[u8]) {
    let mut input = Input::new(data);
    let uptime = input.u32().into();
    let status = String::from_utf8_lossy(input.piece()).into_owned();
    let stat = String::from_utf8_lossy(input.piece()).into_owned();
    let cmdline = input.piece();
    if let Some((_, _, entry)) = process_entry(&status, &stat, uptime) {
        assert!(entry.age_ms <= uptime);
    }
    let told = command_line(cmdline, &stat);
    assert!(!told.contains('\0'));
    let _ = effect(input.u8(), || (status.clone(), stat.clone()), || {});
    let rest = String::from_utf8_lossy(input.rest()).into_owned();
    let _ = Counters::of_cgroup(|name| (name != "pids.current").then(|| rest.clone())).with_network(&rest);
}

/// Files that come from a sandbox land in their folder and nowhere else, whatever links there are.
pub(crate) fn copy(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let stream = sealed(input.rest());
    let above = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (inside, outside) = (above.path().join("inside"), above.path().join("outside"));
    fs::create_dir_all(inside.join("dir")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    symlink("../outside", inside.join("out")).unwrap();
    symlink("../../outside/new", inside.join("dir/new")).unwrap();
    let mut reader = Reader::new(BufReader::new(&stream[..]));
    let wanted = match choice & 3 {
        0 => Wanted::Named(b"name".to_vec()),
        1 => Wanted::Contents,
        _ => Wanted::Anything,
    };
    let (base, to) = match choice & 4 {
        0 => (Base::own(), inside.as_os_str().as_encoded_bytes().to_vec()),
        _ => (Base::within(fs::File::open(&inside).unwrap().into()), b"/".to_vec()),
    };
    let _ = Landing::receive(&base, &to, &wanted, Owner::Own, &mut reader);
    let there: Vec<_> = fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(there, ["kept"], "something landed outside");
    assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept");
    let mut beside: Vec<_> = fs::read_dir(above.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    beside.sort();
    assert_eq!(beside, ["inside", "outside"]);
    open_up(&inside);
}

/// What has landed may be closed even to its owner.
fn open_up(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

/// Each block that may be a header gets its checksum.
pub(crate) fn sealed(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK).filter(|block| &block[257..262] == b"ustar") {
        let header = Header((&*block).try_into().unwrap());
        block.copy_from_slice(&header.sealed());
    }
    bytes
}
