//! How fast a sandbox may read and write.

use clap::Args;

use crate::spec::{DeviceValue, MemorySize, NetRate};

/// Rates.
#[derive(Args, Clone, Debug)]
pub(crate) struct RateArgs {
    /// Bytes a second that it reads at most from a disk of this host; again for more
    #[arg(long, value_name = "DEVICE:SIZE")]
    pub device_read_bps: Vec<DeviceValue<MemorySize>>,
    /// Bytes a second that it writes at most to a disk of this host; again for more
    #[arg(long, value_name = "DEVICE:SIZE")]
    pub device_write_bps: Vec<DeviceValue<MemorySize>>,
    /// Reads a second at most from a disk of this host; again for more
    #[arg(long, value_name = "DEVICE:N")]
    pub device_read_iops: Vec<DeviceValue<u64>>,
    /// Writes a second at most to a disk of this host; again for more
    #[arg(long, value_name = "DEVICE:N")]
    pub device_write_iops: Vec<DeviceValue<u64>>,
    /// How fast each of its network interfaces sends, and how fast it receives, at most: 10mbit, or 1mbps for bytes
    #[arg(long, value_name = "RATE")]
    pub net_rate: Option<NetRate>,
}
