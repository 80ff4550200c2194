//! Tests that need nothing: no KVM, no root, no network.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "offline/layers.rs"]
mod layers;
#[path = "offline/style.rs"]
mod style;
