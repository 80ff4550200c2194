//! Targets of fuzzing: each is a function that takes any bytes and panics if what reads them does not keep what it promises.
//!
//! ```text
//! fuzz/fuzz_targets/NAME.rs (libFuzzer) ─┐
//!                                        ├─> run(NAME, bytes) ─> the module's own fuzz.rs ─> what it tests, private or not
//! tests: fuzz/corpus/NAME/* and mutants ─┘
//! ```
//! A target that finds something: the input goes to fuzz/corpus/NAME, the mend gets a unit test.

#[path = "../../tests/support/erofs_reader.rs"]
pub(crate) mod erofs_reader;
mod guest;
mod input;
#[cfg(test)]
mod replay;
#[path = "../../tests/support/tarball.rs"]
pub(crate) mod tarball;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use guest::sealed;
pub(crate) use input::Input;

use crate::{cli, compare, container, image, keeper, lab, net, sandbox, vmm, volume};

/// A target: what it is called, and what it does.
type Target = (&'static str, fn(&[u8]));

macro_rules! targets {
    ($($name:ident: $run:path,)*) => {
        /// All targets by name.
        const TARGETS: &[Target] = &[$((stringify!($name), $run)),*];

        #[cfg(test)]
        mod each {
            use super::*;

            $(#[test]
            fn $name() {
                replay::replay(stringify!($name), $run);
            })*
        }
    };
}

use vmm::fuzz::virtio;

targets! {
    agent_client: sandbox::fuzz::agent_client,
    archive: image::fuzz::archive,
    balloon: virtio::balloon,
    block: virtio::block,
    challenge: image::fuzz::challenge,
    cli: cli::fuzz::words,
    comparison: compare::fuzz::comparison,
    config: image::fuzz::config,
    console: virtio::console,
    copy: guest::copy,
    decompress: image::fuzz::decompress,
    file_server: virtio::fs,
    host_files: sandbox::fuzz::host_files,
    hot_pages: vmm::fuzz::hot_pages,
    keeper_messages: keeper::fuzz::messages,
    kernel: vmm::fuzz::kernel,
    kernel_command_line: vmm::fuzz::command_line,
    lab_frames: lab::fuzz::frames,
    layers: image::fuzz::layers,
    manifest: image::fuzz::manifest,
    monitor_messages: vmm::fuzz::monitor_messages,
    names: net::fuzz::names,
    net: virtio::net,
    ports: vmm::fuzz::ports,
    proc_files: guest::proc_files,
    queue: virtio::queue,
    reference: image::fuzz::reference,
    registers: virtio::registers_of_all,
    resolv_conf: net::fuzz::resolv_conf,
    restored: virtio::restored,
    rng: virtio::rng,
    saved_machine: vmm::fuzz::saved_machine,
    seccomp: container::seccomp::fuzz::profile,
    superblock: volume::fuzz_superblock,
    tar: image::fuzz::tar,
    tree: image::fuzz::tree,
    users: guest::users,
    vsock: virtio::vsock,
    wire: guest::wire,
}

/// Runs a target once.
///
/// # Panics
/// When it finds something, or there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let (_, run) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of this name");
    run(data);
}

/// What decodes from these bytes decodes from its own bytes as the same.
pub(crate) fn same<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(value) = postcard::from_bytes::<T>(bytes) {
        let again = postcard::to_stdvec(&value).unwrap();
        assert_eq!(postcard::from_bytes::<T>(&again).as_ref(), Ok(&value));
    }
}
