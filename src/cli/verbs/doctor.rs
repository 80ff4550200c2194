//! `duplex doctor`.

use crate::cli::args::{DoctorArgs, Format};
use crate::cli::fail::{Code, Failure};
use crate::cli::output::{columns, print, print_json, size};
use crate::cli::{Context, environment};
use crate::doctor::{self, CheckStatus, Places, Report};

/// Says what this host can do, and how to mend what it cannot. Fails if something that Duplex needs is missing.
pub(crate) fn doctor(context: &Context, args: &DoctorArgs) -> Result<u8, Failure> {
    let places = Places { store: context.installation.store.clone(), search: environment::search_path() };
    let report = doctor::probe(&places);
    match args.format {
        Format::Json => print_json(&report)?,
        Format::Table => print(&table(&report))?,
    }
    let missing = report.checks.iter().any(|c| c.status == CheckStatus::Missing);
    Ok(if missing { Code::Failed } else { Code::Done } as u8)
}

fn table(report: &Report) -> String {
    let host = &report.host;
    let kind = if host.virtual_machine { "virtual machine" } else { "machine" };
    let mut text = format!(
        "{}, {} CPUs, {} of memory; {kind} with {} on Linux {}\n\n",
        host.cpu_model,
        host.cpus,
        size(host.memory_bytes),
        host.distribution,
        host.kernel
    );
    let word = |status| match status {
        CheckStatus::Ok => "ok",
        CheckStatus::Warn => "note",
        CheckStatus::Missing => "MISSING",
    };
    text.push_str(&columns(
        ["CHECK", "STATUS", "FOUND"],
        report.checks.iter().map(|c| [c.name.clone(), word(c.status).to_owned(), c.found.clone()]),
    ));
    let mends: Vec<String> =
        report.checks.iter().filter_map(|c| Some(format!("  {}: {}\n", c.name, c.mend.as_ref()?))).collect();
    if !mends.is_empty() {
        text.push_str("\nTo mend it:\n");
        text.extend(mends);
    }
    let place = |here| if here { "on this host" } else { "in the lab (emulated hardware)" };
    text.push_str(&format!(
        "\nMicroVMs run {}, containers {}.\n",
        place(report.microvms_here),
        place(report.containers_here)
    ));
    text
}
