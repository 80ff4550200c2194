//! `duplex inspect`. The names of fields are Docker's where Docker has such a field.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::cli::args::InspectArgs;
use crate::cli::fail::{Failure, failed};
use crate::cli::keeping::{each, roster};
use crate::cli::output::{print, print_json};
use crate::cli::template::{Form, Template};
use crate::cli::time::rfc3339;
use crate::cli::{Context, place, ports};
use crate::sandbox::posture::{self, Posture};
use crate::sandbox::roster::Seen;
use crate::spec::{
    DeviceRate, Healthcheck, Isolation, Limits, MemorySize, MemorySwap, MountSource, MountSpec, NetRate, NetworkChoice,
    SandboxSpec, Seccomp, Status, UserNamespace,
};
use crate::volume::Volumes;

/// Docker's word for a moment that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Shows sandboxes whole.
pub(crate) fn inspect(context: &Context, args: &InspectArgs) -> Result<u8, Failure> {
    let template: Option<Template> = match Form::parse(&args.format).map_err(failed)? {
        Form::Lines(template) => Some(template),
        Form::Table | Form::Json => None,
    };
    let roster = roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, &args.sandboxes, false)? {
        return Ok(code);
    }
    let mut found = Vec::new();
    let code = each(&roster, &args.sandboxes, |seen| {
        found.push(described(seen)?);
        Ok(())
    })?;
    match template {
        None => print_json(&found)?,
        Some(template) => {
            let lines = found.iter().map(|value| template.fill(value).map(|line| line + "\n").map_err(failed));
            print(&lines.collect::<Result<String, Failure>>()?)?;
        }
    }
    Ok(code)
}

fn described(seen: &Seen) -> Result<Value, Failure> {
    let (definition, standing) = (&seen.definition, &seen.standing);
    let spec = &definition.spec;
    let (program, args) = spec.process.args.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
    let mut described = json!({
        "Id": spec.id,
        "Created": rfc3339(definition.created_at_ns),
        "Path": program,
        "Args": args,
        "State": state(seen),
        "Image": spec.image,
        "Name": format!("/{}", standing.name),
        "RestartCount": standing.restarts,
        "Isolation": spec.isolation,
        "LogPath": seen.path.join("log.0"),
        "Mounts": spec.mounts.iter().map(|mount| described_mount(mount, definition.store.as_deref())).collect::<Vec<_>>(),
        "HostConfig": host_config(seen),
        "NetworkSettings": network_settings(seen),
        "Confinement": posture::postures(&spec.id, standing.keeper).iter().map(confinement).collect::<Vec<_>>(),
        "Config": {
            "Hostname": spec.hostname,
            "User": spec.process.user,
            "Tty": spec.process.terminal.is_some(),
            "OpenStdin": spec.process.stdin,
            "StdinOnce": definition.input_once,
            "Env": spec.process.env,
            "Cmd": spec.process.args,
            "Image": spec.reference,
            "WorkingDir": spec.process.cwd,
            "Labels": definition.labels,
            "StopSignal": definition.stop_signal.to_string(),
            "StopTimeout": definition.stop_timeout_s,
        },
    });
    if let Some(health) = standing.health {
        let log = seen.health_log().map_err(failed)?;
        let checks = log.checks.iter().map(|check| {
            let (start, end) = (rfc3339(check.start_ns), rfc3339(check.end_ns));
            json!({ "Start": start, "End": end, "ExitCode": check.exit_code, "Output": check.output })
        });
        described["State"]["Health"] = json!({
            "Status": health.word(),
            "FailingStreak": log.failing_streak,
            "Log": checks.collect::<Vec<_>>(),
        });
    }
    if let Some(check) = &definition.health {
        described["Config"]["Healthcheck"] = described_check(check);
    }
    Ok(described)
}

/// What is not said is left out, as in Docker.
fn described_check(check: &Healthcheck) -> Value {
    let mut fields = Map::new();
    if !check.test.is_empty() {
        fields.insert("Test".to_owned(), json!(check.test));
    }
    let numbers = [
        ("Interval", check.interval_ns),
        ("Timeout", check.timeout_ns),
        ("StartPeriod", check.start_period_ns),
        ("StartInterval", check.start_interval_ns),
        ("Retries", u64::from(check.retries)),
    ];
    fields.extend(numbers.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), json!(n))));
    Value::Object(fields)
}

fn described_mount(mount: &MountSpec, store: Option<&Path>) -> Value {
    let (kind, name, source) = match &mount.source {
        MountSource::Volume { name, .. } => ("volume", Some(name), store.map(|store| Volumes::of(store).disk(name))),
        MountSource::Bind { path, .. } => ("bind", None, Some(path.clone())),
    };
    json!({
        "Type": kind,
        "Name": name,
        "Source": source,
        "Destination": mount.target,
        "Mode": if mount.read_only { "ro" } else { "" },
        "RW": !mount.read_only,
    })
}

fn state(seen: &Seen) -> Value {
    let standing = &seen.standing;
    let time = |at: Option<u64>| at.map_or_else(|| NEVER.to_owned(), rfc3339);
    let outcome = standing.outcome.as_ref();
    json!({
        "Status": standing.status.word(),
        "Running": standing.status.is_live(),
        "Paused": standing.status == Status::Paused,
        "Restarting": standing.status == Status::Restarting,
        "OOMKilled": outcome.is_some_and(|o| o.oom),
        "Dead": false,
        "Pid": standing.keeper.unwrap_or(0),
        "ExitCode": outcome.map_or(0, |o| o.exit.code()),
        "Error": outcome.and_then(|o| o.reason.clone()).unwrap_or_default(),
        "StartedAt": time(standing.started_at_ns),
        "FinishedAt": time(standing.finished_at_ns),
    })
}

/// One process of the sandbox on this host, as the kernel describes it now.
fn confinement(posture: &Posture) -> Value {
    let capabilities =
        posture.capabilities.iter().map(|(name, set)| ((*name).to_owned(), json!(format!("{set:016x}"))));
    json!({
        "Part": posture.part.word(),
        "Pid": posture.pid,
        "Name": posture.name,
        "User": posture.user,
        "Group": posture.group,
        "Capabilities": capabilities.collect::<Map<_, _>>(),
        "NoNewPrivs": posture.no_new_privs,
        "Seccomp": posture.seccomp,
        "OwnNamespaces": posture.own_namespaces,
        "EmptyRoot": posture.empty_root,
        "Descriptors": posture.descriptors,
    })
}

/// Addresses and ports that it has now; empty while it does not run.
fn network_settings(seen: &Seen) -> Value {
    let attached = seen.standing.network.clone().unwrap_or_default();
    let address = |six: bool| attached.addresses.iter().find(|(address, _)| address.is_ipv6() == six);
    let gateway = |six: bool| attached.gateways.iter().find(|address| address.is_ipv6() == six);
    let written = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let endpoint = json!({
        "IPAddress": address(false).map(|(address, _)| address.to_string()).unwrap_or_default(),
        "IPPrefixLen": address(false).map_or(0, |(_, prefix)| *prefix),
        "Gateway": gateway(false).map(ToString::to_string).unwrap_or_default(),
        "GlobalIPv6Address": address(true).map(|(address, _)| address.to_string()).unwrap_or_default(),
        "GlobalIPv6PrefixLen": address(true).map_or(0, |(_, prefix)| *prefix),
        "IPv6Gateway": gateway(true).map(ToString::to_string).unwrap_or_default(),
        "MacAddress": attached.mac.map(written).unwrap_or_default(),
    });
    let mut settings = endpoint.clone();
    settings["Ports"] = ports::map(&attached.ports);
    settings["Networks"] = json!({ seen.definition.spec.network.mode.to_string(): endpoint });
    if let Some(shared) = &attached.bridge {
        settings["Networks"][format!("bridge:{}", shared.name)] = json!({
            "IPAddress": shared.address,
            "IPPrefixLen": shared.prefix,
            "MacAddress": written(shared.mac),
        });
    }
    settings
}

/// Of both together, as Docker numbers it: -1 is no limit, 0 none that was said.
fn memory_swap(memory: Option<MemorySize>, swap: MemorySwap, isolation: Isolation) -> Value {
    let Some(memory) = memory else { return if swap == MemorySwap::Unlimited { json!(-1) } else { json!(0) } };
    let swap = if isolation == Isolation::MicroVm { Some(0) } else { swap.beside(memory) };
    swap.map_or(json!(-1), |swap| json!(memory.0.saturating_add(swap)))
}

/// The devices that have this rate.
fn rates(devices: &[DeviceRate], rate: impl Fn(&DeviceRate) -> Option<u64>) -> Value {
    devices.iter().filter_map(|device| Some(json!({ "Path": device.device, "Rate": rate(device)? }))).collect()
}

/// As they would be given.
fn security_options(spec: &SandboxSpec) -> Vec<String> {
    let gains_none = spec.process.no_new_privileges.then(|| "no-new-privileges".to_owned());
    let calls = match &spec.security.seccomp {
        Seccomp::Builtin => None,
        Seccomp::Unconfined => Some("seccomp=unconfined".to_owned()),
        Seccomp::Profile(text) => Some(format!("seccomp={text}")),
    };
    gains_none.into_iter().chain(calls).collect()
}

fn host_config(seen: &Seen) -> Value {
    let definition = &seen.definition;
    let Limits { memory, swap, cpus, pids, cpu_shares } = seen.limits();
    let isolation = definition.spec.isolation;
    let (log, network) = (definition.log, &definition.spec.network);
    let restart = seen.restart();
    let most = if let crate::spec::Restart::OnFailure(most) = restart { most } else { 0 };
    json!({
        "AutoRemove": definition.remove,
        "RestartPolicy": { "Name": restart.name(), "MaximumRetryCount": most },
        "Memory": memory.map_or(0, |m| m.0),
        "MemorySwap": memory_swap(memory, swap, isolation),
        "NanoCpus": cpus.map_or(0, |c| u64::from(c.0).saturating_mul(1_000_000)),
        "CpuShares": cpu_shares.unwrap_or(0),
        "PidsLimit": pids,
        "BlkioDeviceReadBps": rates(&definition.spec.devices, |rate| rate.read_bytes),
        "BlkioDeviceWriteBps": rates(&definition.spec.devices, |rate| rate.write_bytes),
        "BlkioDeviceReadIOps": rates(&definition.spec.devices, |rate| rate.read_operations),
        "BlkioDeviceWriteIOps": rates(&definition.spec.devices, |rate| rate.write_operations),
        "NetworkMode": NetworkChoice { mode: network.mode, bridge: network.bridge.clone() }.to_string(),
        "NetworkRate": network.rate.map_or(0, NetRate::bits),
        "PortBindings": ports::map(&network.publish),
        "Dns": network.dns,
        "ExtraHosts": network.hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect::<Vec<_>>(),
        "Init": definition.spec.init,
        "ReadonlyRootfs": definition.spec.read_only,
        "SecurityOpt": security_options(&definition.spec),
        "Hardened": definition.spec.security.hardened,
        "UsernsMode": match definition.spec.security.users {
            UserNamespace::Host => "host",
            UserNamespace::Private => "private",
        },
        "LogConfig": {
            "Type": if log.files == 0 { "none" } else { "local" },
            "Config": { "max-size": log.file_bytes.to_string(), "max-file": log.files.to_string() },
        },
    })
}
