//! What `compare --workload` cannot measure is refused at once: no store is made, no image is looked for, and neither a sandbox nor the lab is
//! started.

use std::fs;
use std::process::Command;

fn refusal(workloads: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_duplex"))
        .args(["compare", "--workload", workloads])
        .env("DUPLEX_ROOT", folder.path().join("store"))
        .env("DUPLEX_STATE", folder.path().join("state"))
        .output()
        .unwrap();
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!((output.status.code(), left), (Some(125), Vec::new()), "{workloads}: {output:?}");
    assert_eq!(output.stdout, b"", "{workloads}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn an_unknown_workload_is_refused_with_all_names_before_anything_starts() {
    for workloads in ["no-such", "syscall,no-such", "no-such,pgbench"] {
        let said = refusal(workloads);
        assert!(said.starts_with("Error: There is no workload 'no-such': "), "{said}");
        for name in ["syscall", "tcp-throughput", "suite", "pgbench", "django-api"] {
            assert!(said.contains(name), "{name}: {said}");
        }
    }
}

#[test]
fn workloads_that_are_no_one_measurement_are_refused_before_anything_starts() {
    assert!(refusal("pgbench,syscall").contains("measure it by itself"));
    assert!(refusal("suite,syscall").contains("name it by itself"));
    assert!(refusal("syscall,syscall").contains("named twice"));
}
