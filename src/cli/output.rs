//! Results on standard output, words on standard error.

use std::io::{self, IsTerminal, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::fail::{Failure, failed};

/// Writes a result to standard output. A reader that has gone away is not a failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(failed),
    }
}

/// Writes a result as JSON.
pub(crate) fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value).map_err(failed)?;
    text.push('\n');
    print(&text)
}

/// Says something to the person, on standard error. Nobody listening is no failure.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Says something about this run in a line that is told from the command's own words by its beginning.
pub(crate) fn note(text: &str) {
    say(&format!("duplex: {text}"));
}

/// A list as Docker prints one: columns, no lines. Not broken: what does not fit is the terminal's to wrap.
pub(crate) fn columns<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// A size as people read it.
#[allow(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn size(bytes: u64) -> String {
    match bytes as f64 {
        b if b >= 1e9 => format!("{:.2}GB", b / 1e9),
        b if b >= 1e6 => format!("{:.1}MB", b / 1e6),
        b if b >= 1e3 => format!("{:.1}kB", b / 1e3),
        _ => format!("{bytes}B"),
    }
}

/// A bar on standard error if that is a terminal; nothing otherwise. It goes away when it is dropped.
pub(crate) fn bar(length: u64, template: &str) -> Option<ProgressBar> {
    if !io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    Some(bar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_dockers() {
        let text =
            columns(["NAME", "SIZE"], [["a".to_owned(), "1B".to_owned()], ["longer".to_owned(), "22B".to_owned()]]);
        assert_eq!(text, "NAME     SIZE\na        1B\nlonger   22B\n");
        assert_eq!([999, 1_500, 7_250_000, 3_000_000_000].map(size), ["999B", "1.5kB", "7.2MB", "3.00GB"]);
    }
}
