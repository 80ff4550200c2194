//! Layers: conversion against `umoci unpack` of the same image, and the steps behind it.
//!
//! `cargo bench --bench layer`. The Debian image comes from `target/test-images/debian.tar` (the host tests make it with mmdebstrap); without it, or
//! without umoci, those two are left out and said so.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use duplex::image::decompress::Compression;
use duplex::image::erofs::{self, Device};
use duplex::image::layer::{self, Budget, Converted};
use duplex::image::merge::merge;
use duplex::image::tree::Tree;

#[path = "../tests/support/tarball.rs"]
mod tarball;

use tarball::Tarball;

fn convert(mut packed: &[u8], compression: Compression) -> Converted {
    let mut data = tempfile::tempfile().unwrap();
    layer::convert(&mut packed, compression, &Budget::default(), &mut data).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// 20,000 small files in 400 directories.
fn many_files() -> Vec<u8> {
    let mut tar = Tarball::default();
    for number in 0..20_000_usize {
        let content: Vec<u8> = (0..=255).cycle().skip(number % 251).take(number % 3000).collect();
        tar.file(&format!("usr/lib/modules-{:03}/file-{number:05}.js", number / 50), &content);
    }
    tar.end()
}

fn steps(c: &mut Criterion) {
    let archive = many_files();
    let mut group = c.benchmark_group("20,000 files");
    group.sample_size(10).throughput(Throughput::Bytes(archive.len() as u64));
    for (name, packed, compression) in [
        ("convert plain", archive.clone(), Compression::None),
        ("convert gzip", gzip(&archive), Compression::Gzip),
        ("convert zstd", zstd::encode_all(&archive[..], 3).unwrap(), Compression::Zstd),
    ] {
        group.bench_function(name, |b| b.iter(|| convert(&packed, compression)));
    }
    group.finish();
    let Converted { tree, data_len, diff_id } = convert(&archive, Compression::None);
    let devices = [Device { data_len, digest: diff_id }];
    let mut bytes = Vec::new();
    tree.write_to(&mut bytes).unwrap();
    let mut group = c.benchmark_group("20,000 files");
    group.sample_size(20);
    group.bench_function("read tree", |b| b.iter(|| Tree::read_from(&mut bytes.as_slice()).unwrap()));
    group.bench_function("merge", |b| {
        b.iter_batched(|| vec![tree.clone()], |t| merge(t).unwrap(), BatchSize::LargeInput)
    });
    group.bench_function("write EROFS", |b| {
        let mut out = tempfile::tempfile().unwrap();
        b.iter(|| erofs::write(&tree, &devices, &mut out).unwrap());
    });
    group.finish();
}

/// Bytes to unpacked (umoci) or to mountable (ours), each from the same gzip layer on disk.
fn debian(c: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-images");
    let tar = folder.join("debian.tar");
    let work = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some((image, blob)) = umoci_image(&tar, work.path()) else {
        eprintln!("skipped: Debian against umoci (needs {} and umoci)", tar.display());
        return;
    };
    let mut group = c.benchmark_group("Debian");
    group.sample_size(10).throughput(Throughput::Bytes(fs::metadata(&tar).unwrap().len()));
    group.bench_function("duplex convert, merge, write", |b| {
        b.iter(|| {
            let mut data =
                File::options().create(true).truncate(true).write(true).open(work.path().join("data")).unwrap();
            let mut input = File::open(&blob).unwrap();
            let made = layer::convert(&mut input, Compression::Gzip, &Budget::default(), &mut data).unwrap();
            let device = Device { data_len: made.data_len, digest: made.diff_id };
            let mut meta = File::create(work.path().join("meta")).unwrap();
            erofs::write(&merge(vec![made.tree]).unwrap(), &[device], &mut meta).unwrap()
        });
    });
    group.bench_function("umoci unpack", |b| {
        b.iter_custom(|rounds| (0..rounds).map(|_| umoci_unpack(&image, &work.path().join("bundle"))).sum());
    });
    group.finish();
}

/// The image and its one layer blob.
fn umoci_image(tar: &Path, work: &Path) -> Option<(String, PathBuf)> {
    let layout = work.join("oci");
    let image = format!("{}:x", layout.display());
    let umoci = |args: &[&str]| Command::new("umoci").args(args).status().is_ok_and(|s| s.success());
    let made = tar.exists()
        && umoci(&["init", "--layout", layout.to_str()?])
        && umoci(&["new", "--image", &image])
        && umoci(&["raw", "add-layer", "--image", &image, tar.to_str()?]);
    let blobs = made.then(|| fs::read_dir(layout.join("blobs/sha256")).unwrap())?;
    let largest = blobs.map(|e| e.unwrap()).max_by_key(|e| e.metadata().unwrap().len())?;
    Some((image, largest.path()))
}

fn umoci_unpack(image: &str, bundle: &Path) -> Duration {
    let _ = fs::remove_dir_all(bundle);
    let began = Instant::now();
    assert!(Command::new("umoci").args(["unpack", "--image", image]).arg(bundle).status().unwrap().success());
    began.elapsed()
}

criterion_group!(benches, steps, debian);
criterion_main!(benches);
