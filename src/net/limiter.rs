//! The rate of a container's user-mode network: a piece of wire between the container's interface and pasta's, with a queue at each end.
//!
//! ```text
//! container's namespace        a namespace of nobody else's              the host's
//!   eth0 --------------- inside --- bridge --- eth0 (pasta's tap) ------ pasta
//!                         tbf: what comes in   tbf: what goes out
//! ```
//!
//! pasta makes its interface where the container is, because it also hands connections of the host's loopback on to the container's there. The
//! interface then moves, and another one takes its name and addresses. Nothing inside reaches the queues, whatever its capabilities. The
//! interfaces go with the namespace, and that with whoever holds this.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::helper::INCOMING;
use super::{INTERFACE, MAC, NetError, Plan, tbf, wires};
use crate::spec::NetRate;
use crate::sys::netns;

/// The container's interface as the bridge sees it.
const PORT: &str = "inside";
/// Hardware addresses of the bridge and of pasta's interface. What a bridge or a port of its has for an address it keeps for itself, so they are
/// neither the container's nor that of anything beyond.
const BRIDGE_MAC: [u8; 6] = [0x02, 0x64, 0x75, 0x70, 0x00, 0x03];
const TAP_MAC: [u8; 6] = [0x02, 0x64, 0x75, 0x70, 0x00, 0x04];

/// Holds the piece of wire.
#[derive(Debug)]
pub struct Limiter {
    _namespace: OwnedFd,
}

impl Limiter {
    /// Puts itself between pasta, which is ready, and its container.
    ///
    /// # Errors
    /// [`NetError::Rate`]; the container has no network then.
    pub fn between(container: BorrowedFd<'_>, plan: &Plan, rate: NetRate) -> Result<Self, NetError> {
        let mtu = plan.mtu();
        let failed = |module| move |source| NetError::Rate { module, source };
        let namespace = netns::make(|| wires::make_bridge(None, BRIDGE_MAC, mtu)).map_err(failed("bridge"))?;
        let network = namespace.as_fd();
        let taken = netns::within(container, || wires::hand_over(INTERFACE, network));
        let taken = taken.and_then(|()| {
            netns::within(network, || {
                wires::set_address(INTERFACE, TAP_MAC)?;
                wires::make_pair(PORT, (container, INTERFACE), MAC, mtu)
            })
        });
        taken.map_err(failed("veth"))?;
        let shaped = netns::within(network, || {
            wires::limit(INTERFACE, rate, wires::waiting(rate))?;
            wires::limit(PORT, rate, u32::try_from(INCOMING).unwrap_or(u32::MAX))
        });
        shaped.map_err(failed(tbf::MODULE))?;
        let attached = netns::within(network, || {
            wires::attach(INTERFACE, mtu)?;
            wires::attach(PORT, mtu)
        });
        let connected = attached.and_then(|()| netns::within(container, || connect(plan)));
        connected.map_err(failed("bridge"))?;
        Ok(Self { _namespace: namespace })
    }
}

/// Gives the container's interface what pasta's had.
fn connect(plan: &Plan) -> std::io::Result<()> {
    let guest = plan.guest();
    wires::bring_up(INTERFACE)?;
    guest.addresses.iter().try_for_each(|address| wires::add_address(INTERFACE, *address))?;
    guest.gateways.iter().try_for_each(|gateway| wires::add_default_route(INTERFACE, *gateway))
}
