//! How fast a sandbox reads and writes at most.

use std::fmt;
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
    /// Not a rate of a network.
    #[error(
        "'{0}' is not a rate of a network: write a whole number and bit, kbit, mbit or gbit a second, such as 10mbit, or bps, kbps, mbps or gbps, which are bytes a second"
    )]
    Network(String),
    /// A rate of a network that is too low or too high.
    #[error("A network's rate of '{0}' is not between {least} and {most}", least = NetRate::LEAST, most = NetRate::MOST)]
    Bounds(String),
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

/// How fast each interface of a sandbox sends, and how fast it receives, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetRate(u64);

impl NetRate {
    /// The lowest: below it one long packet takes longer than TCP waits for a first answer.
    pub const LEAST: Self = Self(64_000);
    /// The highest: its bytes a second fit the 32 bits in which the kernel keeps them.
    pub const MOST: Self = Self(32_000_000_000);

    /// The longest frame that any interface hands over at once, and some more: 64 KiB of packet and its headers.
    const LONGEST_FRAME: u64 = (64 << 10) + 64;
    /// The part of a second that may pass at once.
    const BURST: u64 = 40;

    /// Bits a second.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Bytes a second.
    pub fn bytes(self) -> u32 {
        u32::try_from(self.0 / 8).unwrap_or(u32::MAX)
    }

    /// Bytes that may pass at once after a pause: those of 25 ms, and at least one frame of any length.
    pub fn burst(self) -> u32 {
        let bytes = u64::from(self.bytes()) / Self::BURST;
        u32::try_from(bytes.max(Self::LONGEST_FRAME)).unwrap_or(u32::MAX)
    }

    /// The longest receive buffer of one connection, in bytes. TCP offers half of it, which is what passes in 250 ms: whatever else there is to
    /// receive waits no longer behind it. At most 6 MiB, Linux's usual.
    pub fn receive_buffer(self) -> u32 {
        (self.bytes() / 2).clamp(64 << 10, 6 << 20)
    }
}

/// What a text behind a number counts: bits a second in one of it. The longer names first, as some end like others.
const UNITS: [(&str, u64); 8] = [
    ("kbit", 1000),
    ("mbit", 1_000_000),
    ("gbit", 1_000_000_000),
    ("kbps", 8000),
    ("mbps", 8_000_000),
    ("gbps", 8_000_000_000),
    ("bit", 1),
    ("bps", 8),
];

impl FromStr for NetRate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let bad = || RateError::Network(text.to_owned());
        let lower = text.to_ascii_lowercase();
        let unit = UNITS.iter().find_map(|(name, bits)| Some((lower.strip_suffix(name)?, *bits)));
        let (number, bits) = unit.ok_or_else(bad)?;
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let rate = number.parse::<u64>().ok().and_then(|number| number.checked_mul(bits)).map(Self);
        let within = rate.filter(|rate| (Self::LEAST..=Self::MOST).contains(rate));
        within.ok_or_else(|| RateError::Bounds(text.to_owned()))
    }
}

impl fmt::Display for NetRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, bits) in [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1000)] {
            if self.0.is_multiple_of(bits) {
                return write!(f, "{}{name}", self.0 / bits);
            }
        }
        write!(f, "{}bit", self.0)
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

    #[test]
    fn rates_of_networks_read_as_tc_reads_them() {
        for (text, bits, shown) in [
            ("64kbit", 64_000, "64kbit"),
            ("10mbit", 10_000_000, "10mbit"),
            ("10Mbit", 10_000_000, "10mbit"),
            ("1500kbit", 1_500_000, "1500kbit"),
            ("2gbit", 2_000_000_000, "2gbit"),
            ("100001bit", 100_001, "100001bit"),
            ("8000bps", 64_000, "64kbit"),
            ("100kbps", 800_000, "800kbit"),
            ("1mbps", 8_000_000, "8mbit"),
            ("4gbps", 32_000_000_000, "32gbit"),
        ] {
            let rate: NetRate = text.parse().unwrap();
            assert_eq!((rate.bits(), rate.to_string().as_str()), (bits, shown), "{text}");
            assert_eq!(rate.to_string().parse(), Ok(rate));
        }
        for bad in ["", "10", "mbit", "10 mbit", "-1mbit", "+1mbit", "1.5mbit", "10mb", "10mbits", "10mibit", "1e3kbit"]
        {
            assert_eq!(bad.parse::<NetRate>(), Err(RateError::Network(bad.to_owned())), "{bad}");
        }
        for bad in
            ["0bit", "63999bit", "7999bps", "33gbit", "5gbps", "99999999999999999999gbit", "18446744073709551615gbit"]
        {
            assert_eq!(bad.parse::<NetRate>(), Err(RateError::Bounds(bad.to_owned())), "{bad}");
        }
        let words = RateError::Bounds("1bit".into()).to_string();
        assert!(words.contains("64kbit") && words.contains("32gbit"), "{words}");
    }

    #[test]
    fn a_burst_is_some_milliseconds_and_never_less_than_a_frame() {
        let of = |text: &str| text.parse::<NetRate>().unwrap();
        assert_eq!(NetRate::LEAST.bytes(), 8000);
        assert_eq!(NetRate::MOST.bytes(), 4_000_000_000);
        assert_eq!(of("1mbit").burst(), 65_600);
        assert_eq!(of("100mbit").burst(), 312_500);
        assert_eq!(NetRate::MOST.burst(), 100_000_000);
        assert_eq!([of("64kbit"), of("4mbit"), NetRate::MOST].map(NetRate::receive_buffer), [65_536, 250_000, 6 << 20]);
    }
}
