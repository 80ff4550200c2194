//! `duplex doctor`.

use std::path::Path;

use crate::cli::args::{DoctorArgs, Format};
use crate::cli::fail::{Code, Failure};
use crate::cli::output::{columns, print, print_json};
use crate::cli::{Context, environment};
use crate::doctor::{self, Check, CheckStatus, Places, Report};

/// Says what this host can do, and how to mend what it cannot. Fails if sandboxes run neither here nor in the lab.
pub(crate) fn doctor(context: &Context, args: &DoctorArgs) -> Result<u8, Failure> {
    if args.security {
        let checks = doctor::security(Path::new("/"));
        match args.format {
            Format::Json => print_json(&checks)?,
            Format::Table => print(&findings(&checks))?,
        }
        return Ok(Code::Done as u8);
    }
    let places = Places { store: context.installation.store.clone(), search: environment::search_path() };
    let report = doctor::probe(&places);
    match args.format {
        Format::Json => print_json(&report)?,
        Format::Table => print(&table(&report))?,
    }
    let here = report.microvms_here && report.containers_here;
    let lab = report.checks.iter().any(|c| c.name == "lab" && c.status == CheckStatus::Ok);
    Ok(if here || lab { Code::Done } else { Code::Failed } as u8)
}

fn table(report: &Report) -> String {
    let mut text = findings(&report.checks);
    let place = |here| if here { "on this host" } else { "in the lab (emulated hardware)" };
    text.push_str(&format!(
        "\nMicroVMs run {}, containers {}.\n",
        place(report.microvms_here),
        place(report.containers_here)
    ));
    text
}

fn findings(checks: &[Check]) -> String {
    let word = |status| match status {
        CheckStatus::Ok => "ok",
        CheckStatus::Warn => "note",
        CheckStatus::Missing => "MISSING",
    };
    let mut text = columns(
        ["CHECK", "STATUS", "FOUND"],
        checks.iter().map(|c| [c.name.clone(), word(c.status).to_owned(), c.found.clone()]),
    );
    let mends: Vec<String> =
        checks.iter().filter_map(|c| Some(format!("  {}: {}\n", c.name, c.mend.as_ref()?))).collect();
    if !mends.is_empty() {
        text.push_str("\nTo mend it:\n");
        text.extend(mends);
    }
    text
}
