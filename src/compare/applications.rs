//! Programs that people run, as workloads: each is an image of its own, which `make images` builds and loads, whose command measures it.

/// An application: its name as a workload, what its image measures, and the image in the store. The number after the colon grows when its work
/// becomes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Application {
    /// Name as a workload.
    pub name: &'static str,
    /// Its image's name in the store.
    pub image: &'static str,
}

/// All of them.
pub const APPLICATIONS: [Application; 5] = [
    Application { name: "pgbench", image: "app-pgbench:1" },
    Application { name: "django-api", image: "app-django-api:1" },
    Application { name: "redis", image: "app-redis:1" },
    Application { name: "python-start", image: "app-python-start:1" },
    Application { name: "compile", image: "app-compile:1" },
];

/// The programs of the embedded image's `measure`, in its order.
const PROGRAMS: [&str; 19] = [
    "syscall",
    "context-switch",
    "page-fault",
    "fork-exec",
    "memory-copy",
    "cpu-integer",
    "cpu-float",
    "cpu-sha256",
    "file-metadata",
    "file-write",
    "file-read",
    "random-write",
    "random-read",
    "tcp-connect",
    "tcp-latency",
    "tcp-throughput",
    "http",
    "http-p50",
    "http-p99",
];

/// All of these programs.
const SUITE: &str = "suite";

/// Why workloads cannot be measured.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WorkloadError {
    /// There is none of this name.
    #[error(
        "There is no workload '{0}': programs of the embedded image are {programs}, and {SUITE} is all of them; applications are {applications}",
        programs = PROGRAMS.join(", "),
        applications = APPLICATIONS.map(|app| app.name).join(", ")
    )]
    Unknown(String),
    /// Two of one name.
    #[error("Workload '{0}' is named twice: --runs says how often each is measured")]
    Twice(String),
    /// The suite beside others.
    #[error("'{SUITE}' is all programs of the embedded image: name it by itself")]
    Suite,
    /// An application beside others.
    #[error("Workload '{0}' is an image of its own, and a comparison is of one image: measure it by itself")]
    NotAlone(&'static str),
}

/// The application that these workloads are; `None` if they are programs of the embedded image.
pub fn application(workloads: &[String]) -> Result<Option<Application>, WorkloadError> {
    let app = |name: &String| APPLICATIONS.into_iter().find(|app| name == app.name);
    let known = |name: &String| name == SUITE || PROGRAMS.iter().any(|program| name == program) || app(name).is_some();
    if let Some(name) = workloads.iter().find(|name| !known(name)) {
        return Err(WorkloadError::Unknown(name.clone()));
    }
    match (workloads.iter().find_map(app), workloads) {
        (app, [] | [_]) => Ok(app),
        (Some(app), _) => Err(WorkloadError::NotAlone(app.name)),
        (None, names) if names.iter().any(|name| name == SUITE) => Err(WorkloadError::Suite),
        (None, names) => match names.iter().enumerate().find(|(at, name)| names.iter().take(*at).any(|n| n == *name)) {
            Some((_, name)) => Err(WorkloadError::Twice(name.clone())),
            None => Ok(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn found(names: &[&str]) -> Result<Option<&'static str>, WorkloadError> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        Ok(application(&names)?.map(|app| app.image))
    }

    fn source(path: &str) -> String {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    #[test]
    fn an_application_is_measured_alone_and_programs_together() {
        assert_eq!(found(&["pgbench"]), Ok(Some("app-pgbench:1")));
        for programs in [&["syscall", "fork-exec"][..], &["suite"], &[]] {
            assert_eq!(found(programs), Ok(None), "{programs:?}");
        }
        for mixed in [["pgbench", "syscall"], ["syscall", "pgbench"], ["pgbench", "pgbench"]] {
            assert_eq!(found(&mixed), Err(WorkloadError::NotAlone("pgbench")), "{mixed:?}");
        }
        assert_eq!(found(&["suite", "syscall"]), Err(WorkloadError::Suite));
        assert_eq!(found(&["syscall", "fork-exec", "syscall"]), Err(WorkloadError::Twice("syscall".to_owned())));
    }

    #[test]
    fn a_name_that_nothing_has_is_refused_with_those_that_are_there() {
        for (names, wrong) in [(&["syscall", "no-such"][..], "no-such"), (&["pgbench", ""], ""), (&["Suite"], "Suite")]
        {
            let refusal = found(names).unwrap_err();
            assert_eq!(refusal, WorkloadError::Unknown(wrong.to_owned()), "{names:?}");
            let said = refusal.to_string();
            assert!(said.contains(" syscall, context-switch, ") && said.contains(" pgbench, django-api"), "{said}");
        }
    }

    #[test]
    fn the_programs_are_those_of_the_embedded_image() {
        let text = source("guest/workloads/src/measure.rs");
        let there = text.lines().filter_map(|line| line.trim().strip_prefix("Measure(\"")?.split('"').next());
        assert_eq!(there.collect::<Vec<_>>(), PROGRAMS);
    }

    #[test]
    fn names_fit_the_images_and_the_folders_they_are_built_from() {
        for app in APPLICATIONS {
            assert_eq!(app.image.split_once(':').unwrap().0, format!("app-{}", app.name));
            assert!(source(&format!("tests/images/{}/measure", app.name)).contains("Measuring "), "{}", app.name);
        }
    }
}
