//! The network that the options describe.

use super::MeaningError;
use crate::cli::args::RunArgs;
use crate::spec::{HostAddress, Isolation, MOST_PUBLISHED, NetworkChoice, NetworkMode, NetworkSpec, Publish};

pub(super) fn network(args: &RunArgs) -> Result<NetworkSpec, MeaningError> {
    let NetworkChoice { mode, bridge } = args.net.clone();
    if mode == NetworkMode::Host && args.isolation == Isolation::MicroVm {
        return Err(MeaningError::HostNetwork);
    }
    let mut publish = Vec::new();
    for text in &args.publish {
        publish.extend(Publish::parse(text)?);
    }
    if publish.len() > MOST_PUBLISHED {
        return Err(MeaningError::Published(publish.len()));
    }
    let hosts = args.add_host.iter().map(|text| HostAddress::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let gateway = hosts.iter().any(|(_, address)| *address == HostAddress::Gateway);
    // The host's network has every port already, and its loopback; without a network there is nobody to ask.
    let useless = [
        ("-p", !publish.is_empty() && mode != NetworkMode::User),
        ("--dns", !args.dns.is_empty() && mode == NetworkMode::None),
        ("--add-host NAME:host-gateway", gateway && mode == NetworkMode::None),
    ];
    if let Some((option, _)) = useless.into_iter().find(|(_, useless)| *useless) {
        return Err(MeaningError::NoNetwork { option, mode });
    }
    let rate = args.rates.net_rate;
    if rate.is_some() && mode != NetworkMode::User {
        return Err(MeaningError::NetworkRate(mode));
    }
    Ok(NetworkSpec { mode, publish, dns: args.dns.clone(), hosts, bridge, rate })
}
