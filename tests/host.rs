//! Tests that need a host: this machine's tools, or KVM, cgroup v2 and root as the lab has them.
//!
//! Every case says what it needs. A case whose needs are not met is a skip with a name, a reason and a place in the last line's count; it is
//! never silently absent. `DUPLEX_TEST_HOST=1` says that this host is a capable one (the lab sets it).
//!
//! ```text
//! cargo test --test host [-- [FILTER...] [--list] [--exact] [--test-threads N]]
//! ```
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "support/runner.rs"]
mod runner;

#[path = "support/busybox.rs"]
mod busybox;
#[path = "support/debian.rs"]
mod debian;
#[path = "support/inventory.rs"]
mod inventory;
#[path = "support/neighbour.rs"]
mod neighbour;
#[path = "support/tarball.rs"]
mod tarball;

#[path = "vm/devices.rs"]
mod devices;
#[path = "vm/hostile.rs"]
mod hostile;
#[path = "vm/lives.rs"]
mod lives;
#[path = "vm/machine.rs"]
mod machine;
#[path = "vm/net.rs"]
mod net_device;

#[path = "vm/share.rs"]
mod share;

#[path = "host/applications.rs"]
mod applications;
#[path = "host/arms.rs"]
mod arms;
#[path = "host/bad_ends.rs"]
mod bad_ends;
#[path = "host/bad_input.rs"]
mod bad_input;
#[path = "host/binds.rs"]
mod binds;
#[path = "host/bridge.rs"]
mod bridge;
#[path = "conformance/mod.rs"]
mod conformance;
#[path = "host/container_walls.rs"]
mod container_walls;
#[path = "host/copy.rs"]
mod copy;
#[path = "host/density.rs"]
mod density;
#[path = "host/filters.rs"]
mod filters;
#[path = "host/forks.rs"]
mod forks;
#[path = "host/health.rs"]
mod health;
#[path = "host/hostile_agent.rs"]
mod hostile_agent;
#[path = "host/inside.rs"]
mod inside;
#[path = "host/kills.rs"]
mod kills;
#[path = "host/lab.rs"]
mod lab;
#[path = "host/layers.rs"]
mod layers;
#[path = "host/life.rs"]
mod life;
#[path = "host/net_rate.rs"]
mod net_rate;
#[path = "host/network.rs"]
mod network;
#[path = "host/noise.rs"]
mod noise;
#[path = "host/probes.rs"]
mod probes;
#[path = "host/programs.rs"]
mod programs;
#[path = "host/random_layers.rs"]
mod random_layers;
#[path = "host/rates.rs"]
mod rates;
#[path = "host/reach.rs"]
mod reach;
#[path = "host/real_input.rs"]
mod real_input;
#[path = "host/registry.rs"]
mod registry;
#[path = "host/report.rs"]
mod report;
#[path = "host/runner_itself.rs"]
mod runner_itself;
#[path = "host/stats.rs"]
mod stats;
#[path = "host/templates.rs"]
mod templates;
#[path = "host/volumes.rs"]
mod volumes;
#[path = "host/walls.rs"]
mod walls;

/// The modules' cases. A new module adds its line here.
const ALL: &[&[runner::Case]] = &[
    applications::CASES,
    arms::CASES,
    bad_ends::CASES,
    bad_input::CASES,
    binds::CASES,
    bridge::CASES,
    container_walls::CASES,
    copy::CASES,
    density::CASES,
    devices::CASES,
    filters::CASES,
    forks::CASES,
    health::CASES,
    hostile::CASES,
    hostile_agent::CASES,
    inside::CASES,
    kills::CASES,
    lab::CASES,
    layers::CASES,
    life::CASES,
    lives::CASES,
    net_device::CASES,
    net_rate::CASES,
    network::CASES,
    noise::CASES,
    probes::CASES,
    programs::CASES,
    random_layers::CASES,
    rates::CASES,
    reach::CASES,
    real_input::CASES,
    registry::CASES,
    report::CASES,
    runner_itself::CASES,
    share::CASES,
    stats::CASES,
    templates::CASES,
    volumes::CASES,
    walls::CASES,
];

fn main() -> std::process::ExitCode {
    if conformance::crash::keep() {
        return std::process::ExitCode::SUCCESS;
    }
    runner::main(&[ALL, conformance::CASES].concat())
}
