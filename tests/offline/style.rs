//! Size and safety rules of the house, counted.

use std::path::Path;

use crate::layers::{code, root, sources};

/// Longest file and function, in lines.
const FILE: usize = 600;
const FUNCTION: usize = 70;

/// Files that may be longer, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// Functions that may be longer, each with its reason.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];

/// Where `unsafe` may be written.
const UNSAFE_HOMES: &[&str] = &[
    "src/sys/",
    "src/vmm/kvm/",
    "src/vmm/memory/",
    "guest/agent/src/sys.rs",
    "guest/hostile/src/sys.rs",
    "guest/init/src/sys.rs",
    "guest/workloads/src/sys.rs",
];

fn all() -> Vec<std::path::PathBuf> {
    ["src", "guest", "tests", "benches", "fuzz/fuzz_targets"]
        .iter()
        .map(|d| root().join(d))
        .filter(|d| d.exists())
        .flat_map(|d| sources(&d))
        .collect()
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn files_stay_short() {
    let mut wrong = Vec::new();
    for path in all() {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        let name = name(&path);
        if lines > FILE && !LONG_FILES.iter().any(|(f, _)| *f == name) {
            wrong.push(format!("{name}: {lines} lines, at most {FILE}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Functions of rustfmt-formatted code with their lengths: from the line with `fn` to the closing brace in the same column.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let Some(at) = trimmed.find("fn ").filter(|at| *at == 0 || trimmed.as_bytes()[at - 1] == b' ') else {
            continue;
        };
        if trimmed[..at].contains(['"', '=', '/']) {
            continue;
        }
        let close = format!("{}}}", " ".repeat(indent));
        if let Some(length) = lines[start..].iter().position(|l| *l == close) {
            let name = trimmed[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.push((name, length + 1));
        }
    }
    found
}

#[test]
fn functions_stay_short() {
    let mut wrong = Vec::new();
    for path in all() {
        for (function, length) in functions(&std::fs::read_to_string(&path).unwrap()) {
            let full = format!("{}::{function}", name(&path));
            if length > FUNCTION && !LONG_FUNCTIONS.iter().any(|(f, _)| *f == full) {
                wrong.push(format!("{full}: {length} lines, at most {FUNCTION}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stays_at_home() {
    let mut wrong = Vec::new();
    for path in all() {
        let name = name(&path);
        if UNSAFE_HOMES.iter().any(|home| name.starts_with(home)) || name.starts_with("tests/") {
            continue;
        }
        if code(&path).lines().any(|l| {
            l.contains("unsafe {")
                || l.contains("unsafe fn")
                || l.contains("unsafe impl")
                || l.contains("allow(unsafe_code")
        }) {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "unsafe outside its homes:\n{}", wrong.join("\n"));
}

#[test]
fn every_exception_is_still_needed() {
    for (file, _) in LONG_FILES {
        assert!(root().join(file).exists(), "{file} is gone: drop its exception");
    }
    let known: Vec<String> = all()
        .iter()
        .flat_map(|p| {
            functions(&std::fs::read_to_string(p).unwrap()).into_iter().map(|(f, _)| format!("{}::{f}", name(p)))
        })
        .collect();
    for (function, _) in LONG_FUNCTIONS {
        assert!(known.iter().any(|k| k == function), "{function} is gone: drop its exception");
    }
}

#[test]
fn the_check_measures_functions() {
    let text = "impl X {\n    pub(crate) fn a(&self) {\n        b();\n    }\n}\nfn c() {\n}\n";
    assert_eq!(functions(text), [("a".to_owned(), 3), ("c".to_owned(), 2)]);
}
