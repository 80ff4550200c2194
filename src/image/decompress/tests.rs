//! Streams that are whole, cut, damaged, doubled or too good to be true.

use std::io::Write;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn inflate(mut packed: &[u8], format: Compression, budget: &Budget) -> Result<Vec<u8>, DecompressError> {
    let mut source = Decompressor::new(&mut packed, format, budget)?;
    let (mut out, mut buf) = (Vec::new(), vec![0; 1000]);
    loop {
        let n = source.fill(&mut buf)?;
        out.extend_from_slice(&buf[..n]);
        if n == 0 {
            return Ok(out);
        }
    }
}

fn text() -> Vec<u8> {
    (0..20_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

#[test]
fn streams_of_several_members_are_one() {
    let budget = Budget::default();
    let twice = [text(), text()].concat();
    for (format, packed) in [
        (Compression::None, twice.clone()),
        (Compression::Gzip, [gzip(&text()), gzip(&text())].concat()),
        (Compression::Zstd, [zstd(&text()), zstd(&text())].concat()),
    ] {
        assert!(inflate(&packed, format, &budget).unwrap() == twice, "{format}");
    }
}

#[test]
fn a_skippable_frame_is_skipped() {
    // RFC 8878, 3.1.2: zstd:chunked and seekable layers end with one.
    let table = [&0x184D_2A50_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), b"toc!"].concat();
    let packed = [zstd(b"data"), table].concat();
    assert_eq!(inflate(&packed, Compression::Zstd, &Budget::default()).unwrap(), b"data");
}

#[test]
fn a_cut_stream_is_an_error_at_every_length() {
    for (format, packed) in
        [(Compression::Gzip, gzip(b"some text, text")), (Compression::Zstd, zstd(b"some text, text"))]
    {
        for len in 0..packed.len() {
            let result = inflate(&packed[..len], format, &Budget::default());
            assert!(matches!(result, Err(DecompressError::Format { .. })), "{format} cut to {len}: {result:?}");
        }
    }
}

#[test]
fn damage_and_strangers_are_errors() {
    let mut damaged = gzip(&text());
    let last = damaged.len() - 6;
    damaged[last] ^= 1;
    for (format, packed) in [
        (Compression::Gzip, damaged),
        (Compression::Gzip, zstd(b"x")),
        (Compression::Zstd, gzip(b"x")),
        (Compression::Gzip, [gzip(b"x"), b"rubbish behind it".to_vec()].concat()),
        (Compression::Zstd, [zstd(b"x"), b"rubbish behind it".to_vec()].concat()),
    ] {
        let error = inflate(&packed, format, &Budget::default()).unwrap_err();
        assert!(matches!(error, DecompressError::Format { .. }), "{error}");
    }
}

#[test]
fn bombs_are_stopped_by_ratio_and_size() {
    let budget = Budget { ratio_from: 1 << 20, inflated_bytes: 3 << 20, ratio: 500, ..Budget::default() };
    let zeros = vec![0; 4 << 20];
    for (format, packed) in [(Compression::Gzip, gzip(&zeros)), (Compression::Zstd, zstd(&zeros))] {
        let error = inflate(&packed, format, &budget).unwrap_err();
        assert!(matches!(error, DecompressError::Ratio { limit: 500, .. }), "{error}");
        let error = inflate(&packed, format, &Budget { ratio: 1 << 40, ..budget.clone() }).unwrap_err();
        assert_eq!(error.to_string(), "Stream inflates to more than 3145728 bytes (limit inflated_bytes = 3145728)");
    }
    assert!(inflate(&zeros, Compression::None, &budget).is_err());
}

#[test]
fn a_window_that_eats_the_memory_is_refused() {
    // Frame header: magic, no single segment, window descriptor of 2^30 bytes, a raw last block of one byte.
    let packed = [&0xFD2F_B528_u32.to_le_bytes()[..], &[0x00, 20 << 3, 0x09, 0, 0, b'x']].concat();
    assert!(matches!(inflate(&packed, Compression::Zstd, &Budget::default()), Err(DecompressError::Format { .. })));
}

#[test]
fn a_failing_input_is_told_from_a_damaged_stream() {
    struct Broken(Vec<u8>);
    impl Read for Broken {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            buf[0] = self.0.remove(0);
            Ok(1)
        }
    }
    let mut input = Broken(gzip(&text())[..1000].to_vec());
    let mut source = Decompressor::new(&mut input, Compression::Gzip, &Budget::default()).unwrap();
    let mut buf = vec![0; 1 << 20];
    assert!(matches!(source.fill(&mut buf), Err(DecompressError::Read { .. })));
}
