//! Where a machine was saved, and where it may go on.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{SnapshotError, failed, hex};
use crate::spec::Installation;

/// What must be the same where a saved machine goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Release of the host's kernel.
    pub kernel: String,
    /// The processor.
    pub processor: String,
    /// SHA-256 of the monitor's program, in hexadecimal digits.
    pub monitor: String,
}

impl Host {
    /// This one.
    ///
    /// # Errors
    /// If the monitor's program or the kernel's files cannot be read.
    pub fn here(installation: &Installation) -> Result<Self, SnapshotError> {
        let path = &installation.monitor;
        let monitor = fs::read(path).map(|bytes| hex(&Sha256::digest(bytes))).map_err(|e| failed("read", path, e))?;
        let read = |path: &str| fs::read_to_string(path).map_err(|e| failed("read", Path::new(path), e));
        let kernel = read("/proc/sys/kernel/osrelease")?.trim().to_owned();
        Ok(Self { kernel, processor: processor(&read("/proc/cpuinfo")?), monitor })
    }
}

/// The first processor, as far as its guests see it (proc_cpuinfo(5)).
pub(in crate::sandbox) fn processor(cpuinfo: &str) -> String {
    let value = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key));
        line.and_then(|line| line.split_once(':')).map_or("?", |(_, value)| value.trim())
    };
    let flags = hex(Sha256::digest(value("flags")).get(..4).unwrap_or_default());
    let [family, model, stepping] = ["cpu family", "model", "stepping"].map(value);
    format!("{} (family {family}, model {model}, stepping {stepping}, features {flags})", value("model name"))
}
