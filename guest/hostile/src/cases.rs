//! All cases, in groups. The tests on the host read their names from here.

mod chips;
mod disk;
mod ends;
mod fs;
mod layout;
mod net;
mod processor;
mod queue;
mod second;
mod small;
mod spaces;
mod transport;
mod vsock;

pub(crate) use second::end as end_second;

use crate::Verdict;
use crate::virtio::{Device, Target};

/// An attack on a device, after which the device must still answer, once it has been reset.
#[derive(Debug)]
pub struct Case {
    /// What it is called within its group and target.
    pub name: &'static str,
    pub(crate) run: fn(&Device) -> Verdict,
}

/// Cases that attack the same devices.
#[derive(Debug)]
pub struct Group {
    /// What it is called.
    pub name: &'static str,
    /// The devices that it attacks, one after the other.
    pub targets: &'static [Target],
    /// What it does to each of them.
    pub cases: &'static [Case],
}

/// Every case there is.
pub const GROUPS: &[Group] = &[
    Group { name: "queue", targets: Target::DEVICES, cases: queue::CASES },
    Group { name: "layout", targets: Target::DEVICES, cases: layout::CASES },
    Group { name: "transport", targets: Target::DEVICES, cases: transport::CASES },
    Group { name: "request", targets: &[Target::DiskRo, Target::DiskRw], cases: disk::CASES },
    Group { name: "space", targets: &[Target::DiskRw], cases: disk::SPACE },
    Group { name: "packet", targets: &[Target::Vsock], cases: vsock::CASES },
    Group { name: "frame", targets: &[Target::Net], cases: net::CASES },
    Group { name: "output", targets: &[Target::Console], cases: small::CONSOLE },
    Group { name: "random", targets: &[Target::Rng], cases: small::RNG },
    Group { name: "pages", targets: &[Target::Balloon], cases: small::BALLOON },
    Group { name: "spaces", targets: &[Target::Machine], cases: spaces::CASES },
    Group { name: "processor", targets: &[Target::Machine], cases: processor::CASES },
    Group { name: "chips", targets: &[Target::Machine], cases: chips::CASES },
    Group { name: "second", targets: &[Target::Machine], cases: second::CASES },
    Group { name: "server", targets: &[Target::Fs], cases: fs::CASES },
    Group { name: "end", targets: &[Target::Machine], cases: ends::CASES },
];

/// `Case`s named as their functions.
macro_rules! named {
    ($($name:ident),* $(,)?) => { &[$(Case { name: stringify!($name), run: $name }),*] };
}
use named;
