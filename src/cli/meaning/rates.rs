//! The rates of block devices that the options describe.

use crate::cli::args::RateArgs;
use crate::spec::DeviceRate;

/// One entry for each device, in the order of their names' first appearance; what is said twice counts as said last.
pub(super) fn devices(args: &RateArgs) -> Vec<DeviceRate> {
    let mut devices: Vec<DeviceRate> = Vec::new();
    let mut set = |device: &std::path::Path, change: &dyn Fn(&mut DeviceRate)| {
        if !devices.iter().any(|known| known.device == device) {
            devices.push(DeviceRate { device: device.to_owned(), ..DeviceRate::default() });
        }
        devices.iter_mut().filter(|known| known.device == device).for_each(change);
    };
    for rate in &args.device_read_bps {
        set(&rate.device, &|known| known.read_bytes = Some(rate.value.0));
    }
    for rate in &args.device_write_bps {
        set(&rate.device, &|known| known.write_bytes = Some(rate.value.0));
    }
    for rate in &args.device_read_iops {
        set(&rate.device, &|known| known.read_operations = Some(rate.value));
    }
    for rate in &args.device_write_iops {
        set(&rate.device, &|known| known.write_operations = Some(rate.value));
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_one_device_are_one_entry() {
        let (a, b) = ("/dev/a".into(), "/dev/b".into());
        let args = RateArgs {
            device_read_bps: vec!["/dev/a:1mb".parse().unwrap(), "/dev/b:1".parse().unwrap()],
            device_write_bps: Vec::new(),
            device_read_iops: vec!["/dev/a:7".parse().unwrap()],
            device_write_iops: vec!["/dev/b:8".parse().unwrap(), "/dev/b:9".parse().unwrap()],
            net_rate: None,
        };
        let first =
            DeviceRate { device: a, read_bytes: Some(1 << 20), read_operations: Some(7), ..DeviceRate::default() };
        let second = DeviceRate { device: b, read_bytes: Some(1), write_operations: Some(9), ..DeviceRate::default() };
        assert_eq!(devices(&args), [first, second]);
    }
}
