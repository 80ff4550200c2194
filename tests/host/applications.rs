//! The applications of `compare --workload`: an image is built as `make images` does, on the packages of the tests' own image where those have what it
//! needs, and the comparison runs through with the same output in both isolations.

use std::path::PathBuf;
use std::process::Command;

use duplex::compare::{APPLICATIONS, ArmRecord, Record};

use crate::debian::{duplex, must, programs_layout, root};
use crate::runner::{Case, Need, Verdict};

const BUILD_NEEDS: &[Need] = &[Need::Outside, Need::Root, Need::Program("mmdebstrap"), Need::Program("umoci")];
const VENV_NEEDS: &[Need] = &[Need::Outside, Need::Program("python3.11")];
const NEEDS: &[Need] = &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Store];

pub(crate) const CASES: &[Case] = &[
    Case { name: "applications::an_image_is_built_and_loaded", needs: BUILD_NEEDS, run: an_image_is_built_and_loaded },
    Case { name: "applications::further_images_are_built", needs: BUILD_NEEDS, run: further_images_are_built },
    Case { name: "applications::a_venv_is_made", needs: VENV_NEEDS, run: a_venv_is_made },
    Case { name: "applications::a_venv_is_compared", needs: NEEDS, run: a_venv_is_compared },
    Case {
        name: "applications::pgbench_is_compared",
        needs: NEEDS,
        run: || compared("pgbench", &["pg-initdb", "pg-select", "pg-tpcb"]),
    },
    Case {
        name: "applications::redis_is_compared",
        needs: NEEDS,
        run: || compared("redis", &["redis-p50", "redis-p99", "redis-pipeline", "redis-single"]),
    },
    Case {
        name: "applications::python_start_is_compared",
        needs: NEEDS,
        run: || compared("python-start", &["python-bare", "python-imports", "python-venv"]),
    },
    Case {
        name: "applications::compile_is_compared",
        needs: NEEDS,
        run: || compared("compile", &["gcc-compile", "gcc-link"]),
    },
];

fn an_image_is_built_and_loaded() -> Verdict {
    let build = || {
        build("pgbench", true);
        std::fs::read_to_string(layout("pgbench").join("index.json")).unwrap()
    };
    let _ = std::fs::remove_dir_all(layout("pgbench"));
    let first = build();
    std::fs::remove_dir_all(layout("pgbench")).unwrap();
    assert_eq!(build(), first, "the same parts give the same image");
    load("pgbench");
    Ok(())
}

/// The tests' own image has no compiler: that of `compile` is built from nothing.
fn further_images_are_built() -> Verdict {
    for (name, on_programs) in [("redis", true), ("python-start", true), ("compile", false)] {
        build(name, on_programs);
        load(name);
    }
    Ok(())
}

fn build(name: &str, on_programs: bool) {
    let mut command = Command::new(root().join("tests/images/build"));
    command.arg("--out").arg(folder());
    if on_programs {
        command.arg("--base").arg(programs_layout());
    }
    must(command.arg(name));
}

fn load(name: &str) {
    assert_eq!(must(duplex().args(["load", "-q", "-i"]).arg(layout(name))), format!("Loaded image: {}\n", image(name)));
}

fn image(name: &str) -> &'static str {
    APPLICATIONS.iter().find(|app| app.name == name).unwrap().image
}

fn folder() -> PathBuf {
    root().join("target/test-images")
}

fn layout(name: &str) -> PathBuf {
    folder().join(format!("app-{name}"))
}

fn venv() -> PathBuf {
    folder().join("venv-python-start")
}

/// Of the image's requirements, by the command that the README has.
fn a_venv_is_made() -> Verdict {
    must(Command::new(root().join("tests/images/venv")).arg("python-start").arg(venv()).arg("/usr/bin/python3.11"));
    assert!(venv().join("lib/python3.11/site-packages/jinja2/__init__.py").is_file());
    Ok(())
}

/// The same packages on the host and in an image: the outputs agree, or there would be no result.
fn a_venv_is_compared() -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("result.json");
    let arm = format!("venv:{}", venv().display());
    let out = duplex()
        .env("DUPLEX_STATE", folder.path())
        .args(["compare", "--workload", "python-start", "--arm", "container", "--arm", &arm])
        .args(["--runs", "1", "--warmup", "0", "--memory-runs", "0", "--timeout", "800", "--json"])
        .arg(&json)
        .output()
        .unwrap();
    let (said, told) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{told}");
    assert!(told.contains("arm 'venv' isolates nothing") && said.contains("venv isolates nothing"), "{told}{said}");
    let record: Record = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let [image, here] = [0, 1].map(|at| &record.arms[at]);
    let python = |arm: &ArmRecord| arm.python.clone().unwrap();
    assert_eq!((python(image).prefix, python(image).uid), (PathBuf::from("/usr"), python(here).uid));
    assert_eq!(python(here).prefix, venv().canonicalize().unwrap());
    assert!(record.unequal.iter().any(|line| line.contains(&python(here).version)), "{:?}", record.unequal);
    for name in ["host's namespaces", "host's root directory", "memory limit", "Python's prefix", "Python's user"] {
        assert!(here.controls.iter().any(|control| control.name == name && control.passed), "{name}");
    }
    let (size, whole) = (here.disk_bytes["venv"], image.disk_bytes["image"]);
    assert!(here.disk_bytes.len() == 1 && size > 1 << 20 && size < whole / 10, "{size} of {whole}");
    assert_eq!(here.runs[0].measured_ns.len(), 3);
    Ok(())
}

/// One round in each isolation, which `compare` refuses unless both printed the same, has these figures.
fn compared(name: &str, figures: &[&str]) -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("result.json");
    must(
        duplex()
            .env("DUPLEX_STATE", folder.path())
            .args(["compare", "--workload", name, "--arm", "container", "--arm", "microvm"])
            .args(["--runs", "1", "--warmup", "0", "--memory-runs", "0", "--timeout", "800", "--json"])
            .arg(&json),
    );
    let record: Record = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((record.workloads.join(" "), record.image.reference.as_str()), (name.to_owned(), image(name)));
    for arm in &record.arms {
        let measured = &arm.runs[0].measured_ns;
        assert_eq!(measured.keys().collect::<Vec<_>>(), figures, "{}", arm.arm.name);
        assert!(measured.values().all(|ns| *ns > 0.0), "{measured:?}");
    }
    Ok(())
}
