//! An application of `compare --workload`: its image is built as `make images` does, on the packages of the tests' own image, and the comparison
//! runs through with the same output in both isolations.

use std::path::PathBuf;
use std::process::Command;

use duplex::compare::{APPLICATIONS, Record};

use crate::debian::{duplex, must, programs_layout, root};
use crate::runner::{Case, Need, Verdict};

const BUILD_NEEDS: &[Need] = &[Need::Outside, Need::Root, Need::Program("mmdebstrap"), Need::Program("umoci")];
const NEEDS: &[Need] = &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2];

pub(crate) const CASES: &[Case] = &[
    Case { name: "applications::an_image_is_built_and_loaded", needs: BUILD_NEEDS, run: an_image_is_built_and_loaded },
    Case { name: "applications::pgbench_is_compared", needs: NEEDS, run: pgbench_is_compared },
];

fn an_image_is_built_and_loaded() -> Verdict {
    let build = || {
        let mut command = Command::new(root().join("tests/images/build"));
        must(command.arg("--out").arg(folder()).arg("--base").arg(programs_layout()).arg("pgbench"));
        std::fs::read_to_string(layout().join("index.json")).unwrap()
    };
    let _ = std::fs::remove_dir_all(layout());
    let first = build();
    std::fs::remove_dir_all(layout()).unwrap();
    assert_eq!(build(), first, "the same parts give the same image");
    assert_eq!(
        must(duplex().args(["load", "-q", "-i"]).arg(layout())),
        format!("Loaded image: {}\n", APPLICATIONS[0].image)
    );
    Ok(())
}

fn folder() -> PathBuf {
    root().join("target/test-images")
}

fn layout() -> PathBuf {
    folder().join("app-pgbench")
}

fn pgbench_is_compared() -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("result.json");
    must(
        duplex()
            .env("DUPLEX_STATE", folder.path())
            .args(["compare", "--workload", "pgbench", "--arm", "container", "--arm", "microvm"])
            .args(["--runs", "1", "--warmup", "0", "--memory-runs", "0", "--timeout", "800", "--json"])
            .arg(&json),
    );
    let record: Record = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(
        (record.workloads.join(" "), record.image.reference.as_str()),
        ("pgbench".to_owned(), APPLICATIONS[0].image)
    );
    for arm in &record.arms {
        let measured = &arm.runs[0].measured_ns;
        assert_eq!(measured.keys().collect::<Vec<_>>(), ["pg-initdb", "pg-select", "pg-tpcb"], "{}", arm.arm.name);
        assert!(measured.values().all(|ns| *ns > 0.0), "{measured:?}");
    }
    Ok(())
}
