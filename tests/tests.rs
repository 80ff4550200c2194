//! Tests that need nothing: no KVM, no root, no network.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "support/tarball.rs"]
mod tarball;

#[path = "offline/archives.rs"]
mod archives;
#[path = "offline/erofs_images.rs"]
mod erofs_images;
#[path = "support/erofs_reader.rs"]
mod erofs_reader;
#[path = "offline/hostile_archives.rs"]
mod hostile_archives;
#[path = "offline/kernel_manifest.rs"]
mod kernel_manifest;
#[path = "offline/layers.rs"]
mod layers;
#[path = "offline/report.rs"]
mod report;
#[path = "offline/style.rs"]
mod style;
