//! Tests that need nothing: no KVM, no root, no network.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "support/scripted_registry.rs"]
mod scripted_registry;
#[path = "support/tarball.rs"]
mod tarball;

#[path = "offline/archives.rs"]
mod archives;
#[path = "offline/erofs_images.rs"]
mod erofs_images;
#[path = "support/erofs_reader.rs"]
mod erofs_reader;
#[path = "offline/hostile/mod.rs"]
mod hostile;
#[path = "offline/hostile_archives.rs"]
mod hostile_archives;
#[path = "offline/hostile_registry.rs"]
mod hostile_registry;
#[path = "offline/kernel_manifest.rs"]
mod kernel_manifest;
#[path = "offline/layers.rs"]
mod layers;
#[path = "offline/registry_contents.rs"]
mod registry_contents;
#[path = "offline/registry_wire.rs"]
mod registry_wire;
#[path = "offline/report.rs"]
mod report;
#[path = "offline/style.rs"]
mod style;
#[path = "offline/unheard.rs"]
mod unheard;
#[path = "offline/workloads.rs"]
mod workloads;
