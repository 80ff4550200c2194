//! The import table of the house: which module may import which. A new module needs a row here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Module and what it may import of this crate. `spec` and `sys` are open to all, `fuzz` to the files of its name.
const TABLE: &[(&str, &[&str])] = &[
    ("spec", &[]),
    ("sys", &[]),
    ("vmm", &[]),
    ("jail", &["vmm"]),
    ("container", &[]),
    ("image", &[]),
    ("volume", &[]),
    ("doctor", &[]),
    ("lab", &["doctor"]),
    ("net", &[]),
    ("sandbox", &["vmm", "container", "image", "volume", "net", "jail"]),
    ("keeper", &["sandbox", "volume", "jail"]),
    ("compare", &["sandbox", "doctor"]),
    ("fuzz", &["vmm", "container", "image", "volume", "net", "lab", "sandbox", "keeper", "compare", "cli"]),
    ("cli", &["compare", "keeper", "sandbox", "image", "volume", "lab", "doctor", "container"]),
];

/// Crates that only these modules may name.
const CRATES: &[(&str, &[&str])] = &[
    ("libcontainer::", &["container"]),
    ("reqwest::", &["image"]),
    ("tokio::", &["image", "cli"]),
    ("kvm_ioctls::", &["vmm", "doctor"]),
    ("seccompiler::", &["jail", "container"]),
    ("clap::", &["cli"]),
    ("plotters::", &["compare"]),
    ("maud::", &["compare"]),
];

pub(crate) fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The code of a file: comments dropped.
pub(crate) fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// First segments of every `crate::` path in this text, those in `crate::{a, b::c}` included.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let list =
            if let Some(braced) = rest.strip_prefix('{') { top_level_items(braced) } else { vec![rest.to_owned()] };
        for item in list {
            found.insert(item.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

fn top_level_items(text: &str) -> Vec<String> {
    let mut depth = 0_u32;
    let mut items = vec![String::new()];
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            _ => {}
        }
        if depth == 0 && c != ',' {
            items.last_mut().unwrap().push(c);
        }
    }
    items
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let mut wrong = Vec::new();
    for path in sources(&root().join("src")) {
        let inside = path.strip_prefix(root().join("src")).unwrap();
        let module = inside.components().next().unwrap().as_os_str().to_str().unwrap().to_owned();
        if ["lib.rs", "main.rs", "bin"].contains(&module.as_str()) {
            continue;
        }
        let Some((_, allowed)) = TABLE.iter().find(|(m, _)| *m == module) else {
            wrong.push(format!("src/{module} has no row in the import table"));
            continue;
        };
        let text = code(&path);
        for import in imports(&text) {
            let free = import == module || import == "spec" || import == "sys" || import.is_empty();
            let target = import == "fuzz" && path.file_name().is_some_and(|name| name == "fuzz.rs");
            let known = TABLE.iter().any(|(m, _)| *m == import);
            if !free && !target && known && !allowed.contains(&import.as_str()) {
                wrong.push(format!("{} imports crate::{import}", inside.display()));
            }
        }
        for (name, homes) in CRATES {
            if text.contains(name) && !homes.contains(&module.as_str()) {
                wrong.push(format!("{} names {name}", inside.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_nested_imports() {
    let found = imports("use crate::{spec::{A, B}, vmm, image::layer::X}; crate::lab::start();");
    let expected: BTreeSet<String> = ["spec", "vmm", "image", "lab"].into_iter().map(str::to_owned).collect();
    assert_eq!(found, expected);
}
