use super::*;

fn pieces(folder: &Path) -> Vec<Piece> {
    Reader::new(folder).map(Result::unwrap).collect()
}

fn output(at_ns: u64, stream: Stream, text: &str) -> Piece {
    Piece::Output { at_ns, stream, bytes: text.as_bytes().to_vec() }
}

#[test]
fn what_is_written_is_read_in_order_and_by_stream() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::new(dir.path(), LogLimits::default());
    log.write(1, Stream::Output, b"a\nb");
    log.write(2, Stream::Error, b"x\n");
    let mut reader = Reader::new(dir.path());
    assert_eq!(reader.next_piece().unwrap(), Some(output(1, Stream::Output, "a\nb")));
    assert_eq!(reader.next_piece().unwrap(), Some(output(2, Stream::Error, "x\n")));
    assert_eq!(reader.next_piece().unwrap(), None);
    log.write(3, Stream::Output, b"c\n");
    assert_eq!(reader.next_piece().unwrap(), Some(output(3, Stream::Output, "c\n")), "a reader follows");
    drop(log);
    let mut log = Log::new(dir.path(), LogLimits::default());
    log.write(4, Stream::Output, b"d");
    assert_eq!(pieces(dir.path()).len(), 4, "a later start goes on behind");
}

#[test]
fn lines_are_put_together_by_stream() {
    let mut lines = Lines::default();
    let line = |at_ns, stream, text: &str| Line { at_ns, stream, bytes: text.as_bytes().to_vec() };
    assert_eq!(lines.push(output(1, Stream::Output, "a\nb")), [line(1, Stream::Output, "a\n")]);
    assert_eq!(lines.push(output(2, Stream::Error, "x\n")), [line(2, Stream::Error, "x\n")]);
    assert_eq!(lines.push(output(3, Stream::Output, "c\nd")), [line(1, Stream::Output, "bc\n")]);
    assert_eq!(lines.rest(), [line(3, Stream::Output, "d")]);
    let long = lines.push(output(4, Stream::Output, &"y".repeat(40_000)));
    assert_eq!(long.iter().map(|l| l.bytes.len()).collect::<Vec<_>>(), [16 << 10, 16 << 10]);
    assert!(lines.push(Piece::Removed).is_empty());
}

#[test]
fn a_flood_stays_within_its_limits_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits { file_bytes: 1000, files: 3 };
    let mut log = Log::new(dir.path(), limits);
    let mut slow = Reader::new(dir.path());
    for n in 0..1000_u64 {
        log.write(n, Stream::Output, &[b'z'; 100]);
        if n == 0 {
            assert_eq!(slow.next_piece().unwrap().map(|p| matches!(p, Piece::Output { .. })), Some(true));
        }
    }
    let bytes: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 3 * (1000 + 113), "{bytes}");
    let all = pieces(dir.path());
    assert_eq!(all[0], Piece::Removed);
    assert!(matches!(all.last(), Some(Piece::Output { at_ns: 999, .. })));
    let rest: Vec<Piece> = slow.map(Result::unwrap).collect();
    assert_eq!(
        rest.iter().filter(|p| **p == Piece::Removed).count(),
        1,
        "a reader that was overtaken learns of it once"
    );
}

#[test]
fn a_torn_record_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::new(dir.path(), LogLimits::default());
    log.write(1, Stream::Output, b"whole");
    drop(log);
    let path = dir.path().join("log.0");
    let whole = fs::read(&path).unwrap();
    for torn in 1..whole.len() {
        fs::write(&path, [&whole[..], &whole[..torn]].concat()).unwrap();
        assert_eq!(pieces(dir.path()), [output(1, Stream::Output, "whole")]);
        let mut log = Log::new(dir.path(), LogLimits::default());
        log.write(2, Stream::Output, b"next");
        assert_eq!(pieces(dir.path())[1], output(2, Stream::Output, "next"));
    }
}

#[test]
fn output_that_cannot_be_kept_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::new(dir.path(), LogLimits::default());
    // Writes to a full disk fail with ENOSPC, as those to this device do.
    let full = || Some(File::options().read(true).write(true).open("/dev/full").unwrap());
    log.open().unwrap();
    let real = log.file.take();
    for (stream, length) in [(Stream::Output, 70), (Stream::Error, 30)] {
        (log.file, log.size) = (full(), 0);
        log.write(1, stream, &vec![b'q'; length]);
    }
    assert_eq!(log.lost, 100);
    (log.file, log.size) = (real, 0);
    log.write(3, Stream::Output, b"back");
    let all = pieces(dir.path());
    assert!(matches!(&all[0], Piece::Lost(100, why) if why.contains("No space")), "{all:?}");
    assert_eq!(all[1], output(3, Stream::Output, "back"));
}

#[test]
fn nothing_is_kept_where_nothing_is_to_be_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::new(dir.path(), LogLimits { file_bytes: 1, files: 0 });
    log.write(1, Stream::Output, b"x");
    assert!(pieces(dir.path()).is_empty() && fs::read_dir(dir.path()).unwrap().next().is_none());
}
