//! How fast a sandbox reads and writes at most.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{LimitsError, MemorySize};

/// Rates of one block device of the host, for what the sandbox reads from it and writes to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRate {
    /// The device's node on the host, of a whole disk.
    pub device: PathBuf,
    /// Bytes a second.
    pub read_bytes: Option<u64>,
    /// Bytes a second.
    pub write_bytes: Option<u64>,
    /// Operations a second.
    pub read_operations: Option<u64>,
    /// Operations a second.
    pub write_operations: Option<u64>,
}

impl DeviceRate {
    /// Writes are limited.
    pub fn limits_writes(&self) -> bool {
        self.write_bytes.is_some() || self.write_operations.is_some()
    }
}

/// `PATH:RATE` of one of Docker's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceValue<T> {
    /// The device's node.
    pub device: PathBuf,
    /// The rate.
    pub value: T,
}

/// Why a text is not a rate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RateError {
    /// Not `PATH:RATE`.
    #[error("'{0}' is not PATH:RATE with the path of a block device, such as /dev/sda:10mb or /dev/sda:1000")]
    Device(String),
    /// Not a size.
    #[error(transparent)]
    Size(#[from] LimitsError),
    /// Not a number of operations.
    #[error("'{0}' is not a number of operations a second, 1 or more")]
    Operations(String),
}

impl<T> FromStr for DeviceValue<T>
where
    T: Rate,
{
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let (device, value) = text.rsplit_once(':').ok_or_else(|| RateError::Device(text.to_owned()))?;
        if !device.starts_with('/') {
            return Err(RateError::Device(text.to_owned()));
        }
        Ok(Self { device: device.into(), value: T::parse(value)? })
    }
}

/// What stands behind a device's path.
pub trait Rate: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// [`RateError`].
    fn parse(text: &str) -> Result<Self, RateError>;
}

impl Rate for MemorySize {
    fn parse(text: &str) -> Result<Self, RateError> {
        Ok(text.parse()?)
    }
}

impl Rate for u64 {
    fn parse(text: &str) -> Result<Self, RateError> {
        text.parse().ok().filter(|n| *n > 0).ok_or_else(|| RateError::Operations(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_devices_read_as_docker_reads_them() {
        let bytes: DeviceValue<MemorySize> = "/dev/sda:1mb".parse().unwrap();
        assert_eq!((bytes.device, bytes.value.0), ("/dev/sda".into(), 1 << 20));
        let operations: DeviceValue<u64> = "/dev/disk/by-path/a:b:1000".parse().unwrap();
        assert_eq!((operations.device, operations.value), ("/dev/disk/by-path/a:b".into(), 1000));
        assert_eq!("sda:1".parse::<DeviceValue<u64>>(), Err(RateError::Device("sda:1".into())));
        assert_eq!("/dev/sda".parse::<DeviceValue<u64>>(), Err(RateError::Device("/dev/sda".into())));
        assert_eq!("/dev/sda:0".parse::<DeviceValue<u64>>(), Err(RateError::Operations("0".into())));
        assert!(matches!("/dev/sda:fast".parse::<DeviceValue<MemorySize>>(), Err(RateError::Size(_))));
    }
}
