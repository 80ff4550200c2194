//! `duplex lab`.

use std::ffi::OsString;
use std::time::Duration;

use crate::cli::args::{Format, LabArgs, LabVerb};
use crate::cli::fail::{Code, Failure, failed};
use crate::cli::output::{columns, note, print, print_json, size};
use crate::cli::{Context, place};
use crate::lab::{self, Status};

/// Starts, stops, shows or uses the lab.
pub(crate) fn lab(context: &Context, args: &LabArgs) -> Result<u8, Failure> {
    let mut settings = place::settings(context);
    match &args.verb {
        LabVerb::Start(start) => {
            settings.idle = start.idle.map_or(settings.idle, Duration::from_secs);
            settings.memory_mib = start.memory.map(|m| u32::try_from(m.mib_ceil()).unwrap_or(u32::MAX));
            let started = lab::start(&settings, &mut |step| note(step)).map_err(failed)?;
            let words = if started.fresh { "started" } else { "runs already" };
            print(&format!("Lab {words} (process {})\n", started.status.pid))?;
            Ok(Code::Done as u8)
        }
        LabVerb::Stop => {
            let stopped = lab::stop(&settings.places).map_err(failed)?;
            print(if stopped { "Lab stopped\n" } else { "No lab runs\n" })?;
            Ok(Code::Done as u8)
        }
        LabVerb::Status(args) => {
            let status = lab::status(&settings.places).map_err(failed)?;
            match args.format {
                Format::Json => print_json(&status)?,
                Format::Table => print(&status.as_ref().map_or_else(|| "No lab runs\n".to_owned(), table))?,
            }
            Ok(if status.is_some() { Code::Done } else { Code::Failed } as u8)
        }
        LabVerb::Run { command } => {
            lab::start(&settings, &mut |step| note(step)).map_err(|e| Failure::new(Code::Duplex, e))?;
            let argv: Vec<OsString> = command.iter().map(OsString::from).collect();
            place::in_lab(context, &settings.places, argv, &place::Needs::of_words())
        }
    }
}

fn table(status: &Status) -> String {
    let used = status.memory_used_bytes.map_or_else(String::new, |b| format!(", {} taken", size(b)));
    let rows = [
        ("Process", status.pid.to_string()),
        ("Up", seconds(status.uptime_s)),
        (
            "Idle",
            status.idle_s.map_or_else(
                || "no".to_owned(),
                |s| format!("{} (stops after {})", seconds(s), seconds(status.idle_limit_s)),
            ),
        ),
        ("Memory", format!("{} MiB{used}", status.memory_mib)),
        ("Processor", status.cpu.clone()),
        ("Kernel", status.kernel.clone()),
    ];
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect();
    if !status.commands.is_empty() {
        text.push('\n');
        let row = |c: &lab::RunningCommand| [c.id.to_string(), seconds(c.running_s), c.argv.join(" ")];
        text.push_str(&columns(["ID", "SINCE", "COMMAND"], status.commands.iter().map(row)));
    }
    text
}

fn seconds(s: u64) -> String {
    if s < 120 { format!("{s} s") } else { format!("{} min", s / 60) }
}
