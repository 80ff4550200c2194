//! `--format` of lists and of `inspect`: `table`, `json`, or a text with fields in double braces.

use serde::Serialize;
use serde_json::Value;

use super::fail::{Failure, failed};
use super::output::{print, print_json};

/// A format that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum TemplateError {
    /// Braces that do not end.
    #[error("The format '{0}' has {{{{ without }}}}")]
    Open(String),
    /// Go templates can do more than this.
    #[error(
        "The format has '{{{{{0}}}}}', which is not supported: only fields such as {{{{.ID}}}} and {{{{json .ID}}}} are"
    )]
    Unsupported(String),
    /// No such field.
    #[error("There is no field '{field}' here, only {known}")]
    Field {
        /// What was written.
        field: String,
        /// What there is.
        known: String,
    },
}

/// How a list is to be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Columns.
    Table,
    /// An array.
    Json,
    /// A line for each.
    Lines(Template),
}

impl Form {
    /// Reads `--format`.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        match text {
            "table" | "" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            text => Template::parse(text).map(Self::Lines),
        }
    }

    /// Prints rows in this form; `table` makes the columns.
    pub(crate) fn show<T: Serialize>(&self, rows: &[T], table: impl FnOnce(&[T]) -> String) -> Result<(), Failure> {
        match self {
            Self::Table => print(&table(rows)),
            Self::Json => print_json(&rows),
            Self::Lines(template) => {
                let lines = rows.iter().map(|row| {
                    let value = serde_json::to_value(row).map_err(failed)?;
                    template.fill(&value).map(|line| line + "\n").map_err(failed)
                });
                print(&lines.collect::<Result<String, Failure>>()?)
            }
        }
    }
}

/// A text with fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The names on the way to the value, and whether it is wanted as JSON.
    Field(Vec<String>, bool),
}

impl Template {
    /// Reads a template; `\t` and `\n` in it are what they are in Go.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, inside)) = rest.split_once("{{") {
            let (field, after) = inside.split_once("}}").ok_or_else(|| TemplateError::Open(text.to_owned()))?;
            parts.push(Part::Text(plain(before)));
            parts.push(part(field)?);
            rest = after;
        }
        parts.push(Part::Text(plain(rest)));
        Ok(Self(parts))
    }

    /// The text with this value's fields in it.
    pub(crate) fn fill(&self, value: &Value) -> Result<String, TemplateError> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Field(path, json) => {
                    let found = path.iter().try_fold(value, |value, name| step(value, name))?;
                    text.push_str(&if *json { found.to_string() } else { shown(found) });
                }
            }
        }
        Ok(text)
    }
}

fn plain(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn part(field: &str) -> Result<Part, TemplateError> {
    let refuse = || TemplateError::Unsupported(field.to_owned());
    let trimmed = field.trim();
    let (path, json) = match trimmed.strip_prefix("json") {
        Some(rest) if rest.starts_with(' ') => (rest.trim(), true),
        _ => (trimmed, false),
    };
    let path = path.strip_prefix('.').ok_or_else(refuse)?;
    let names: Vec<String> = if path.is_empty() { Vec::new() } else { path.split('.').map(str::to_owned).collect() };
    let is_name = |n: &String| !n.is_empty() && n.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    if names.iter().all(is_name) { Ok(Part::Field(names, json)) } else { Err(refuse()) }
}

fn step<'a>(value: &'a Value, name: &str) -> Result<&'a Value, TemplateError> {
    value.get(name).ok_or_else(|| {
        let names = value.as_object().map(|o| o.keys().map(String::as_str).collect::<Vec<_>>().join(", "));
        let known = names.filter(|n| !n.is_empty()).unwrap_or_else(|| "a value without fields".to_owned());
        TemplateError::Field { field: name.to_owned(), known }
    })
}

/// As Go prints a value, near enough: texts as they are, lists in brackets.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".to_owned(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{name}:{}", shown(value)));
            format!("map[{}]", fields.collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(template: &str) -> Result<String, TemplateError> {
        let value =
            json!({ "ID": "a1", "State": { "ExitCode": 3, "Error": null }, "Args": ["x", "y"], "Env": { "A": "1" } });
        Template::parse(template)?.fill(&value)
    }

    #[test]
    fn fields_are_filled_in() {
        for (template, text) in [
            ("{{.ID}}", "a1"),
            ("{{ .ID }}\\t{{.State.ExitCode}}!", "a1\t3!"),
            ("{{.Args}} {{.Env}} {{.State.Error}}", "[x y] map[A:1] <nil>"),
            ("{{json .Args}} {{json .State}}", "[\"x\",\"y\"] {\"Error\":null,\"ExitCode\":3}"),
            ("plain", "plain"),
        ] {
            assert_eq!(filled(template).unwrap(), text, "{template}");
        }
        assert!(filled("{{json .}}").unwrap().starts_with("{\"Args\""));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (template, word) in [
            ("{{.Id}}", "'Id'"),
            ("{{.ID.x}}", "without fields"),
            ("{{range .Args}}{{.}}{{end}}", "range .Args"),
            ("{{if .ID}}", "if .ID"),
            ("{{.ID", "without"),
            ("{{.ID | upper}}", "upper"),
            ("{{..}}", "supported"),
        ] {
            let words = filled(template).unwrap_err().to_string();
            assert!(words.contains(word), "{words}");
        }
    }
}
