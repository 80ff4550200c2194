//! `duplex snapshot`.

use serde::Serialize;
use serde_json::{Value, json};

use super::stop::VerbError;
use super::volume::each;
use crate::cli::args::{SnapshotArgs, SnapshotCreateArgs, SnapshotLsArgs, SnapshotNamesArgs, SnapshotVerb};
use crate::cli::fail::{Failure, failed};
use crate::cli::keeping::roster;
use crate::cli::output::{columns, note, print, print_json, say, size};
use crate::cli::template::Form;
use crate::cli::time::{plain, rfc3339};
use crate::cli::{Context, place};
use crate::keeper::client;
use crate::sandbox::roster::Seen;
use crate::sandbox::snapshots::{Host, Origin, Record, Snapshots, check_savable, written};
use crate::spec::{Definition, MachineSize};
use crate::volume::Volumes;

/// One line of `ls`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    name: String,
    image: String,
    sandbox: String,
    memory: String,
    size: String,
    created_at: String,
}

/// All verbs of snapshots.
pub(crate) fn snapshot(context: &Context, args: &SnapshotArgs) -> Result<u8, Failure> {
    let snapshots = Snapshots::of(&context.installation.store);
    match &args.verb {
        SnapshotVerb::Create(args) => create(context, &snapshots, args),
        SnapshotVerb::Ls(args) => ls(&snapshots, args),
        SnapshotVerb::Inspect(args) => inspect(&snapshots, args),
        SnapshotVerb::Rm(args) => Ok(each(&args.snapshots, |name| {
            snapshots.remove(name).map_err(failed)?;
            print(&format!("{name}\n"))
        })),
    }
}

fn create(context: &Context, snapshots: &Snapshots, args: &SnapshotCreateArgs) -> Result<u8, Failure> {
    let roster = roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, std::slice::from_ref(&args.sandbox), false)? {
        return Ok(code);
    }
    let seen = roster.find(&args.sandbox).and_then(|id| roster.see(&id)).map_err(failed)?;
    check_savable(&seen.definition.spec).map_err(failed)?;
    let draft = snapshots.draft(&args.name, &seen.definition.spec).map_err(failed)?;
    let (definition, size) = saved(context, &seen, &draft.origin())?;
    let host = Host::here(&context.installation).map_err(failed)?;
    snapshots.keep(&draft, &args.name, (&definition, size), host).map_err(failed)?;
    print(&format!("{}\n", args.name))?;
    Ok(0)
}

/// Has the sandbox write its machine; what it is, and how large the machine.
pub(super) fn saved(context: &Context, seen: &Seen, to: &Origin) -> Result<(Definition, MachineSize), Failure> {
    let volumes = Volumes::of(seen.definition.store.as_ref().unwrap_or(&context.installation.store));
    let disks = written(&seen.definition.spec).map(|name| volumes.disk(name)).zip(to.disks.iter().cloned());
    let size = client::save(&seen.path, to.machine.clone(), disks.collect()).map_err(VerbError::of("save", seen))?;
    let mut definition = seen.definition.clone();
    definition.spec.limits = seen.limits();
    definition.spec.name = Some(seen.standing.name.clone());
    if definition.spec.network.publish.is_empty() {
        return Ok((definition, size));
    }
    note("published ports stay with the sandbox that has them: 'duplex fork -p' publishes those of a copy");
    Ok((definition, size))
}

fn ls(snapshots: &Snapshots, args: &SnapshotLsArgs) -> Result<u8, Failure> {
    let form = Form::parse(&args.format).map_err(failed)?;
    let (all, failures) = snapshots.list().map_err(failed)?;
    failures.into_iter().for_each(|error| say(failed(error).render().trim_end()));
    if args.quiet {
        print(&all.iter().map(|record| format!("{}\n", record.name)).collect::<String>())?;
        return Ok(0);
    }
    let lines: Vec<Line> = all.iter().map(|record| line(snapshots, record)).collect();
    form.show(&lines, |lines| {
        let rows =
            lines.iter().map(|l| [&l.name, &l.image, &l.sandbox, &l.memory, &l.size, &l.created_at].map(String::clone));
        columns(["SNAPSHOT", "IMAGE", "SANDBOX", "MEMORY", "ON DISK", "CREATED"], rows)
    })?;
    Ok(0)
}

fn line(snapshots: &Snapshots, record: &Record) -> Line {
    let spec = &record.definition.spec;
    Line {
        name: record.name.clone(),
        image: spec.reference.clone(),
        sandbox: spec.name.clone().unwrap_or_else(|| spec.id.to_string()),
        memory: size(record.size.memory.0),
        size: size(snapshots.used(record)),
        created_at: plain(record.created_at_ns),
    }
}

fn inspect(snapshots: &Snapshots, args: &SnapshotNamesArgs) -> Result<u8, Failure> {
    let mut found = Vec::new();
    let code = each(&args.snapshots, |name| {
        found.push(described(snapshots, &snapshots.see(name).map_err(failed)?));
        Ok(())
    });
    print_json(&found)?;
    Ok(code)
}

fn described(snapshots: &Snapshots, record: &Record) -> Value {
    let spec = &record.definition.spec;
    json!({
        "Name": record.name,
        "Created": rfc3339(record.created_at_ns),
        "Image": spec.image.to_string(),
        "Reference": spec.reference,
        "Sandbox": { "Id": spec.id.to_string(), "Name": spec.name },
        "Command": spec.process.args,
        "Memory": record.size.memory.0,
        "Processors": record.size.vcpus,
        "Size": snapshots.used(record),
        "Host": { "Kernel": record.host.kernel, "Processor": record.host.processor, "Monitor": record.host.monitor },
    })
}
