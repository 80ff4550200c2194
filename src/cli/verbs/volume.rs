//! `duplex volume`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::rm::confirmed;
use crate::cli::args::{
    VolumeArgs, VolumeCreateArgs, VolumeInspectArgs, VolumeLsArgs, VolumePruneArgs, VolumeRmArgs, VolumeVerb,
};
use crate::cli::fail::{Failure, failed};
use crate::cli::keeping::roster;
use crate::cli::output::{columns, print, print_json, say, size};
use crate::cli::template::{Form, Template};
use crate::cli::time::{plain, rfc3339};
use crate::cli::{Context, place};
use crate::spec::MountSpec;
use crate::volume::{Volume, VolumeError, Volumes, Wanted};

/// What can be wrong beside the volumes themselves.
#[derive(Debug, thiserror::Error)]
enum VerbError {
    /// A sandbox has it, whether it runs or not.
    #[error("Volume '{volume}' is in use by sandbox {name} ({id}): remove that one first")]
    InUse { volume: String, name: String, id: String },
    /// A label without a name.
    #[error("Label '{0}' has no name: write NAME or NAME=VALUE")]
    Label(String),
    /// An unknown filter.
    #[error("Filter '{0}' is unknown here: write name=, label= or dangling=true|false")]
    Filter(String),
}

/// One line of `ls`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    name: String,
    driver: &'static str,
    size: String,
    used: String,
    created_at: String,
    mountpoint: String,
    labels: String,
}

/// Who has which volume: name of the volume, name and id of the sandbox.
type Users = BTreeMap<String, (String, String)>;

/// All verbs of volumes.
pub(crate) fn volume(context: &Context, args: &VolumeArgs) -> Result<u8, Failure> {
    let volumes = Volumes::of(&context.installation.store);
    match &args.verb {
        VolumeVerb::Create(args) => create(&volumes, args),
        VolumeVerb::Ls(args) => ls(context, &volumes, args),
        VolumeVerb::Inspect(args) => inspect(&volumes, args),
        VolumeVerb::Rm(args) => rm(context, &volumes, args),
        VolumeVerb::Prune(args) => prune(context, &volumes, args),
    }
}

fn create(volumes: &Volumes, args: &VolumeCreateArgs) -> Result<u8, Failure> {
    let mut labels = BTreeMap::new();
    for label in &args.label {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        if name.is_empty() {
            return Err(failed(VerbError::Label(label.clone())));
        }
        labels.insert(name.to_owned(), value.to_owned());
    }
    let name = match &args.name {
        Some(name) => name.clone(),
        None => {
            let mut bytes = [0_u8; 32];
            rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
            bytes.iter().map(|b| format!("{b:02x}")).collect()
        }
    };
    let wanted = Wanted { size: args.size.map(|s| s.0), anonymous: args.name.is_none(), labels, content: None };
    let made = volumes.create(&name, &wanted).map_err(failed)?;
    print(&format!("{}\n", made.name))?;
    Ok(0)
}

/// Which volumes the sandboxes of the roster have, running or not.
fn users(context: &Context) -> Result<Users, Failure> {
    let (all, failures) = roster(context).and_then(|roster| roster.list()).map_err(failed)?;
    failures.into_iter().for_each(|error| say(failed(error).render().trim_end()));
    let mut users = Users::new();
    for seen in all {
        let spec = &seen.definition.spec;
        for name in spec.mounts.iter().filter_map(MountSpec::volume) {
            users.insert(name.to_owned(), (seen.standing.name.clone(), spec.id.to_string()));
        }
    }
    Ok(users)
}

fn ls(context: &Context, volumes: &Volumes, args: &VolumeLsArgs) -> Result<u8, Failure> {
    let form = Form::parse(&args.format).map_err(failed)?;
    let (all, failures) = volumes.list().map_err(failed)?;
    failures.into_iter().for_each(|error| say(failed(error).render().trim_end()));
    let mut meant = Vec::new();
    let users = if args.filter.is_empty() { Users::new() } else { users(context)? };
    for volume in all {
        let mut matches = true;
        for filter in &args.filter {
            matches &= matched(filter, &volume, &users).ok_or_else(|| failed(VerbError::Filter(filter.clone())))?;
        }
        if matches {
            meant.push(volume);
        }
    }
    if args.quiet {
        print(&meant.iter().map(|v| format!("{}\n", v.name)).collect::<String>())?;
        return Ok(0);
    }
    let lines = meant.iter().map(|volume| line(volumes, volume).map_err(failed)).collect::<Result<Vec<_>, _>>()?;
    form.show(&lines, |lines| {
        let rows = lines.iter().map(|l| [l.driver.to_owned(), l.name.clone(), l.size.clone(), l.used.clone()]);
        columns(["DRIVER", "VOLUME NAME", "SIZE", "ON DISK"], rows)
    })?;
    Ok(0)
}

/// `None`: there is no such filter.
fn matched(filter: &str, volume: &Volume, users: &Users) -> Option<bool> {
    let (kind, value) = filter.split_once('=')?;
    match (kind, value) {
        ("name", part) => Some(volume.name.contains(part)),
        ("label", label) => {
            let (name, value) = label.split_once('=').map_or((label, None), |(n, v)| (n, Some(v)));
            Some(volume.labels.get(name).is_some_and(|v| value.is_none_or(|value| v == value)))
        }
        ("dangling", "true" | "1") => Some(!users.contains_key(&volume.name)),
        ("dangling", "false" | "0") => Some(users.contains_key(&volume.name)),
        _ => None,
    }
}

fn line(volumes: &Volumes, volume: &Volume) -> Result<Line, VolumeError> {
    let labels: Vec<String> = volume.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Ok(Line {
        name: volume.name.clone(),
        driver: "local",
        size: size(volume.size),
        used: size(volumes.used(&volume.name)?),
        created_at: plain(volume.created_at_ns),
        mountpoint: volumes.disk(&volume.name).display().to_string(),
        labels: labels.join(","),
    })
}

fn inspect(volumes: &Volumes, args: &VolumeInspectArgs) -> Result<u8, Failure> {
    let template: Option<Template> = match Form::parse(&args.format).map_err(failed)? {
        Form::Lines(template) => Some(template),
        Form::Table | Form::Json => None,
    };
    let mut found = Vec::new();
    let code = each(&args.volumes, |name| {
        found.push(described(volumes, &volumes.see(name).map_err(failed)?)?);
        Ok(())
    });
    match template {
        None => print_json(&found)?,
        Some(template) => {
            let lines = found.iter().map(|value| template.fill(value).map(|line| line + "\n").map_err(failed));
            print(&lines.collect::<Result<String, Failure>>()?)?;
        }
    }
    Ok(code)
}

fn described(volumes: &Volumes, volume: &Volume) -> Result<Value, Failure> {
    Ok(json!({
        "CreatedAt": rfc3339(volume.created_at_ns),
        "Driver": "local",
        "Labels": volume.labels,
        "Mountpoint": volumes.disk(&volume.name),
        "Name": volume.name,
        "Options": { "size": volume.size.to_string() },
        "Scope": "local",
        "Anonymous": volume.anonymous,
        "UsageData": { "Size": volumes.used(&volume.name).map_err(failed)? },
    }))
}

/// One that fails does not keep the others; the exit code tells.
pub(super) fn each(names: &[String], mut act: impl FnMut(&str) -> Result<(), Failure>) -> u8 {
    let mut code = 0;
    for name in names {
        if let Err(failure) = act(name) {
            say(failure.render().trim_end());
            code = failure.code as u8;
        }
    }
    code
}

fn rm(context: &Context, volumes: &Volumes, args: &VolumeRmArgs) -> Result<u8, Failure> {
    // Sandboxes of a running lab have volumes of this store too.
    if let Some(code) = place::follow_all(context, true, false)? {
        return Ok(code);
    }
    let users = users(context)?;
    Ok(each(&args.volumes, |name| {
        if let Some((sandbox, id)) = users.get(name) {
            let (volume, name, id) = (name.to_owned(), sandbox.clone(), id.clone());
            return Err(failed(VerbError::InUse { volume, name, id }));
        }
        match volumes.remove(name) {
            Err(VolumeError::Unknown(_)) if args.force => {}
            other => other.map_err(failed)?,
        }
        print(&format!("{name}\n"))
    }))
}

fn prune(context: &Context, volumes: &Volumes, args: &VolumePruneArgs) -> Result<u8, Failure> {
    if let Some(code) = place::follow_all(context, true, !args.force)? {
        return Ok(code);
    }
    let which = if args.all { "all" } else { "anonymous" };
    let warning = format!("WARNING! This will remove {which} volumes that no sandbox has.");
    if !args.force && !confirmed(&warning)? {
        return Ok(0);
    }
    let users = users(context)?;
    let (mut removed, mut bytes) = (String::new(), 0_u64);
    for volume in volumes.list().map_err(failed)?.0 {
        if users.contains_key(&volume.name) || !(args.all || volume.anonymous) {
            continue;
        }
        let used = volumes.used(&volume.name).unwrap_or(0);
        match volumes.remove(&volume.name) {
            Ok(()) => {
                removed.push_str(&format!("{}\n", volume.name));
                bytes = bytes.saturating_add(used);
            }
            Err(VolumeError::Unknown(_)) => {}
            Err(error) => say(failed(error).render().trim_end()),
        }
    }
    let list = if removed.is_empty() { removed } else { format!("Deleted Volumes:\n{removed}\n") };
    print(&format!("{list}Total reclaimed space: {}\n", size(bytes)))?;
    Ok(0)
}
