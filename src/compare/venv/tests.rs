use super::*;
use crate::compare::drive::tests::{plan, recorded};

fn arm(venv: &Path) -> Arm {
    format!("venv:{}", venv.display()).parse().unwrap()
}

fn program(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A folder with what makes it a virtual environment.
fn made() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pyvenv.cfg"), "home = /usr/bin\n").unwrap();
    program(&dir.path().join("bin/python3"));
    dir
}

#[test]
fn only_a_virtual_environment_is_one() {
    let dir = made();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    let mut arms = [arm(&link), "container".parse().unwrap()];
    find_venvs(&mut arms).unwrap();
    assert_eq!(arms[0].venv, Some(dir.path().canonicalize().unwrap()), "as Python names its prefix");
    assert_eq!(arms[1].venv, None);
    let refused = |path: &Path| find_venvs(&mut [arm(path)]).unwrap_err().to_string();
    std::fs::remove_file(dir.path().join("bin/python3")).unwrap();
    assert!(refused(dir.path()).contains("has no bin/python3"));
    std::fs::remove_file(dir.path().join("pyvenv.cfg")).unwrap();
    assert!(refused(dir.path()).contains("has no pyvenv.cfg: make one with python3 -m venv"));
    assert!(matches!(find_venvs(&mut [arm(Path::new("/no/such"))]), Err(VenvError::NotThere { .. })));
}

#[test]
fn the_environments_programs_come_first() {
    let dir = made();
    let venv = dir.path();
    program(&venv.join("bin/measure"));
    let of = |text: &[&str]| words(venv, &text.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
    let own = |name: &str| venv.join("bin").join(name).display().to_string();
    assert_eq!(of(&["/app/measure"]), [own("measure")]);
    assert_eq!(of(&["python3", "-c", "/app/measure"]), [own("python3"), "-c".into(), "/app/measure".into()]);
    assert_eq!(of(&["/usr/bin/env"]), ["/usr/bin/env"]);
    assert_eq!(of(&[]), [""; 0]);
    let [path, environment] = variables(Path::new("/env"));
    assert!(path.starts_with("PATH=/env/bin:/usr/local/sbin:") && environment == "VIRTUAL_ENV=/env");
    assert_eq!(ask(&arm(venv))[0], own("python3"));
    assert_eq!(ask(&"container".parse().unwrap())[0], "python3");
}

#[test]
fn what_a_python_says_is_read() {
    let python = Python { version: "3.11.2".into(), prefix: "/srv/my env".into(), uid: 33 };
    assert_eq!(Python::from_answer("3.11.2\n/srv/my env\n33\n"), Some(python));
    for other in ["", "3.11.2\n/env\n", "3.11.2\n/env\nroot\n", "Traceback\n/env\n0\n"] {
        assert_eq!(Python::from_answer(other), None, "{other:?}");
    }
}

#[test]
fn an_image_that_needs_its_entrypoint_is_refused() {
    let arms = [arm(Path::new("/env")), "container".parse().unwrap()];
    let entrypoint = ["/start".to_owned()];
    let refusal = check_entrypoint(&arms, "image", &entrypoint).unwrap_err().to_string();
    assert!(refusal.contains("'venv'") && refusal.contains("(/start)"), "{refusal}");
    assert!(check_entrypoint(&arms, "image", &[]).is_ok());
    assert!(check_entrypoint(&arms, EMBEDDED, &entrypoint).is_ok());
    assert!(check_entrypoint(&arms[1..], "image", &entrypoint).is_ok());
}

#[test]
fn a_files_bytes_are_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let empty = bytes_on_disk(dir.path());
    std::fs::create_dir(dir.path().join("lib")).unwrap();
    std::fs::write(dir.path().join("lib/a"), vec![1; 100 << 10]).unwrap();
    let one = bytes_on_disk(dir.path());
    assert!(one >= empty + (100 << 10), "{one}");
    std::fs::hard_link(dir.path().join("lib/a"), dir.path().join("b")).unwrap();
    std::os::unix::fs::symlink("/usr", dir.path().join("c")).unwrap();
    assert!(bytes_on_disk(dir.path()) < one + (50 << 10), "neither twice nor where a link points");
}

#[test]
fn users_and_versions_of_python_are_held_against_each_other() {
    let python = |version: &str, uid| Some(Python { version: version.into(), prefix: "/env".into(), uid });
    let arms = |here, image| {
        let mut arms = recorded().arms;
        arms[0].arm = arm(Path::new("/env"));
        (arms[0].python, arms[1].python) = (here, image);
        arms
    };
    let proof = |arms: &[ArmRecord]| same_user(arms).into_iter().map(|(at, c)| (at, c.passed)).collect::<Vec<_>>();
    assert_eq!(proof(&arms(python("3.11.2", 0), python("3.11.2", 0))), [(0, true)]);
    assert_eq!(proof(&arms(python("3.11.2", 0), python("3.11.2", 33))), [(0, false)]);
    assert_eq!(proof(&arms(python("3.11.2", 0), None)), []);
    let said = |here, image| unequal(&Plan { reference: "image".into(), ..plan() }, &arms(here, image)).join("\n");
    let text = said(python("3.12.1", 0), python("3.11.2", 0));
    assert!(text.contains("ISOLATES NOTHING") && text.contains("Python 3.12.1, the image Python 3.11.2"), "{text}");
    assert!(said(python("3.11.2", 0), python("3.11.2", 0)).contains("Python is 3.11.2 in arm 'venv' and in the image"));
    assert!(said(python("3.11.2", 0), None).contains("the image has no python3"));
    assert_eq!(unequal(&plan(), &recorded().arms), [""; 0]);
}

#[test]
fn what_an_image_calls_a_version_is_one_or_nothing() {
    let version = |word: &str| Python::from_answer(&format!("{word}\n/usr\n0\n")).map(|python| python.version);
    assert_eq!(version("3.11.2+"), Some("3.11.2+".to_owned()));
    for word in ["", "x3", "3\u{1b}[2J", "3 11", &"3".repeat(33)] {
        assert_eq!(version(word), None, "{word:?}");
    }
}
