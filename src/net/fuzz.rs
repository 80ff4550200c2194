//! Targets of fuzzing: what the host's files say of its network, and what members of a bridge ask.

use super::host::HostNetwork;
use crate::fuzz::Input;

/// A `resolv.conf`, and the kernel's routes and addresses.
pub(crate) fn resolv_conf(data: &[u8]) {
    let mut input = Input::new(data);
    let mut text = || String::from_utf8_lossy(input.piece()).into_owned();
    let (routes, addresses, resolv) = (text(), text(), text() + &text());
    let host = HostNetwork::fuzz(&resolv, &routes, &addresses);
    assert!(host.resolvers.len() <= 8 && host.search.len() <= 8);
    assert!(host.resolvers.iter().all(|ip| !ip.is_loopback() && !ip.is_unspecified()));
    assert!(host.local_resolver.is_none() || host.resolvers.is_empty());
    assert!(host.search.iter().all(|domain| !domain.contains(char::is_whitespace)));
}

pub(crate) use super::bridge::fuzz_names as names;
