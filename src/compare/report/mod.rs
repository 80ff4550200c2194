//! The record as one HTML file: it fetches nothing, runs nothing, and reads in light, in dark and on paper.
//!
//! What comes from elsewhere (names, commands, facts of the host) goes through the template's escaping; drawings are made by [`plot`] of such
//! text and numbers, escaped by its backend. A content security policy forbids the rest.

mod density;
mod figures;
mod ink;
mod page;
mod plot;
mod reach;
mod tables;
mod walls;

use super::baseline::Against;
use super::record::Record;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A plot.
    #[error("Cannot draw the plot of {what}")]
    Plot {
        /// What it shows.
        what: &'static str,
        /// Why.
        #[source]
        source: plot::PlotError,
    },
    /// The record as JSON.
    #[error("Cannot write the result's raw data")]
    Json(#[source] serde_json::Error),
}

/// The page, with what became of an earlier result where there is one.
pub fn report(record: &Record, against: Option<&Against>) -> Result<String, ReportError> {
    page::page(record, against)
}
