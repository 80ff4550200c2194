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
pub const APPLICATIONS: [Application; 2] = [
    Application { name: "pgbench", image: "app-pgbench:1" },
    Application { name: "django-api", image: "app-django-api:1" },
];

/// Why workloads cannot be measured together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("Workload '{0}' is an image of its own, and a comparison is of one image: measure it by itself")]
pub struct NotAlone(&'static str);

/// The application that these workloads are; `None` if they are programs of the embedded image.
pub fn application(workloads: &[String]) -> Result<Option<Application>, NotAlone> {
    let found = APPLICATIONS.into_iter().find(|app| workloads.iter().any(|name| name == app.name));
    match found {
        Some(app) if workloads.len() > 1 => Err(NotAlone(app.name)),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Result<Option<&'static str>, NotAlone> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        Ok(application(&names)?.map(|app| app.image))
    }

    #[test]
    fn an_application_is_measured_alone_and_programs_together() {
        assert_eq!(found(&["pgbench"]), Ok(Some("app-pgbench:1")));
        assert_eq!(found(&["syscall", "fork-exec"]), Ok(None));
        assert_eq!(found(&[]), Ok(None));
        for mixed in [["pgbench", "syscall"], ["syscall", "pgbench"], ["pgbench", "pgbench"]] {
            assert_eq!(found(&mixed), Err(NotAlone("pgbench")), "{mixed:?}");
        }
    }

    #[test]
    fn names_fit_the_images_and_the_folders_they_are_built_from() {
        for app in APPLICATIONS {
            assert_eq!(app.image.split_once(':').unwrap().0, format!("app-{}", app.name));
            let driver =
                std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(app.name).join("measure");
            let text = std::fs::read_to_string(&driver).unwrap();
            assert!(text.contains("Measuring "), "{}", driver.display());
        }
    }
}
