//! Python's virtual environments of the host, as arms: the command on this host, with the environment's programs first.
//!
//! No image is around such an arm, so the command's program is the one of its name in the environment's `bin`, wherever the image has its own:
//! `/app/measure` and `python3` are `bin/measure` and `bin/python3`. What the environment has no program of is run as it is written.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::control::{Control, Evidence};
use super::plan::{Arm, Plan};
use super::record::ArmRecord;
use super::spawn::EMBEDDED;

/// The search path behind the environment's own programs: Docker's usual one, as in images.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a Python says of itself, a line each.
const ASK: &str = "import os, sys\nprint(sys.version.split()[0], os.path.realpath(sys.prefix), os.getuid(), sep='\\n')";

/// Why a folder is no virtual environment.
#[derive(Debug, thiserror::Error)]
pub enum VenvError {
    /// It cannot be looked at.
    #[error("Arm '{arm}' needs the virtual environment {}", path.display())]
    NotThere {
        /// The arm.
        arm: String,
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something that every virtual environment has is not there.
    #[error(
        "Arm '{arm}' needs a virtual environment of Python, and {} has no {missing}: make one with python3 -m venv",
        path.display()
    )]
    NotOne {
        /// The arm.
        arm: String,
        /// The folder.
        path: PathBuf,
        /// What is missing.
        missing: &'static str,
    },
    /// The image's entrypoint would be a program of the image.
    #[error(
        "Arm '{arm}' runs without the image, and the image has an entrypoint ({entrypoint}), which would be missing: \
        take an image whose command is whole"
    )]
    Entrypoint {
        /// The arm.
        arm: String,
        /// The image's.
        entrypoint: String,
    },
}

/// The Python that answers in an arm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Python {
    /// Its version.
    pub version: String,
    /// Where its packages are (`sys.prefix`), without symbolic links.
    pub prefix: PathBuf,
    /// The user's number that it runs as.
    pub uid: u32,
}

impl Python {
    /// What it says to [`ask`].
    pub(super) fn from_answer(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let version = lines.next().filter(|v| is_version(v))?.to_owned();
        let prefix = PathBuf::from(lines.next()?);
        Some(Self { version, prefix, uid: lines.next()?.parse().ok()? })
    }
}

/// Whether an image's word for its Python's version is one that can be shown: a digit first, and nothing that a terminal would take for a command.
fn is_version(word: &str) -> bool {
    const LONGEST: usize = 32;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '_');
    word.len() <= LONGEST && word.starts_with(|c: char| c.is_ascii_digit()) && word.chars().all(plain)
}

/// What asks this Python who it is.
pub(super) fn ask(arm: &Arm) -> Vec<String> {
    let python = arm.venv.as_ref().map_or_else(|| "python3".into(), |venv| venv.join("bin/python3"));
    [&python.display().to_string(), "-IB", "-c", ASK].map(str::to_owned).into()
}

/// Makes the folders of these arms whole, and refuses what is no virtual environment.
pub fn find_venvs(arms: &mut [Arm]) -> Result<(), VenvError> {
    for arm in arms {
        let Some(path) = arm.venv.clone() else { continue };
        let name = || arm.name.clone();
        let found = path.canonicalize();
        let found = found.map_err(|source| VenvError::NotThere { arm: name(), path: path.clone(), source })?;
        let is_program =
            |file: &Path| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        let parts = [
            ("pyvenv.cfg", found.join("pyvenv.cfg").is_file()),
            ("bin/python3", is_program(&found.join("bin/python3"))),
        ];
        if let Some((missing, _)) = parts.into_iter().find(|(_, there)| !there) {
            return Err(VenvError::NotOne { arm: name(), path, missing });
        }
        arm.venv = Some(found);
    }
    Ok(())
}

/// Refuses an image of this name that cannot be run without itself. Programs of the embedded image need nothing else of it.
pub fn check_entrypoint(arms: &[Arm], reference: &str, entrypoint: &[String]) -> Result<(), VenvError> {
    let missing = reference != EMBEDDED && !entrypoint.is_empty();
    match arms.iter().find(|arm| arm.venv.is_some()).filter(|_| missing) {
        Some(arm) => Err(VenvError::Entrypoint { arm: arm.name.clone(), entrypoint: entrypoint.join(" ") }),
        None => Ok(()),
    }
}

/// Bytes that the folder takes on disk, each file once, whatever its names; what cannot be read is not counted.
pub fn bytes_on_disk(folder: &Path) -> u64 {
    let (mut sum, mut seen, mut folders) = (0u64, BTreeSet::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(about) = entry.metadata() else { continue };
            if about.is_dir() {
                folders.push(entry.path());
            }
            if seen.insert((about.dev(), about.ino())) {
                sum = sum.saturating_add(about.blocks().saturating_mul(512));
            }
        }
    }
    sum
}

/// The variables of a command in this environment, as `activate` sets them.
pub(super) fn variables(venv: &Path) -> [String; 2] {
    let venv = venv.display();
    [format!("PATH={venv}/bin:{PATH}"), format!("VIRTUAL_ENV={venv}")]
}

/// The command's words with the environment's program, if it has one of this name.
pub(super) fn words(venv: &Path, words: &[String]) -> Vec<String> {
    let own = words.first().and_then(|program| Some(venv.join("bin").join(Path::new(program).file_name()?)));
    match own.filter(|program| program.is_file()) {
        Some(program) => std::iter::once(program.display().to_string()).chain(words.iter().skip(1).cloned()).collect(),
        None => words.to_owned(),
    }
}

/// The proof that the environment's Python answers.
pub(super) fn control(venv: &Path, evidence: &Evidence) -> Control {
    let expected = venv.display().to_string();
    let found = evidence.python.as_ref().map(|python| python.prefix.display().to_string());
    let passed = found.as_ref() == Some(&expected);
    Control {
        name: "Python's prefix".to_owned(),
        expected,
        found: found.unwrap_or_else(|| "not seen".to_owned()),
        passed,
    }
}

/// The proof that a virtual environment and the image run as the same user, once all arms have been asked; none where no other Python answers.
pub(super) fn same_user(arms: &[ArmRecord]) -> Vec<(usize, Control)> {
    let of_image = arms.iter().filter(|arm| arm.arm.venv.is_none()).find_map(|arm| arm.python.as_ref());
    let Some(image) = of_image else { return Vec::new() };
    let here = arms.iter().enumerate().filter(|(_, arm)| arm.arm.venv.is_some());
    let proofs = here.filter_map(|(at, arm)| {
        let uid = arm.python.as_ref()?.uid;
        let (expected, found) = (image.uid.to_string(), uid.to_string());
        Some((at, Control { name: "Python's user".to_owned(), passed: expected == found, expected, found }))
    });
    proofs.collect()
}

/// What is not equal between these arms and the others, in sentences.
pub(super) fn unequal(plan: &Plan, arms: &[ArmRecord]) -> Vec<String> {
    let mut said = Vec::new();
    let version = |arm: &ArmRecord| arm.python.as_ref().map(|python| python.version.clone());
    let image = arms.iter().filter(|arm| arm.arm.venv.is_none()).find_map(version);
    for arm in arms {
        let (name, Some(venv)) = (&arm.arm.name, &arm.arm.venv) else { continue };
        said.push(format!(
            "Arm '{name}' ISOLATES NOTHING: it is the command on this host, with its files, processes, network, devices \
            and, as root, all rights. The virtual environment {} only chooses which packages Python finds; the limits are \
            those of the other arms, the image is not there.",
            venv.display()
        ));
        let own = words(venv, &plan.command);
        if plan.reference != EMBEDDED && own != plan.command {
            let (own, others) =
                (own.first().map_or("", String::as_str), plan.command.first().map_or("", String::as_str));
            said.push(format!("Arm '{name}' runs {own} where the others run {others} of the image."));
        }
        said.push(format!(
            "Disk of arm '{name}': the virtual environment alone. The host's Python and its libraries, which it needs, \
            are the host's anyway and not counted; an image has its own."
        ));
        said.extend(match (version(arm), &image) {
            (Some(here), Some(image)) if here != *image => Some(format!(
                "Arm '{name}' has the host's Python {here}, the image Python {image}: not the same program."
            )),
            (Some(here), Some(_)) => Some(format!(
                "Python is {here} in arm '{name}' and in the image, each with its own build and libraries."
            )),
            (Some(here), None) => Some(format!("Arm '{name}' has Python {here}; the image has no python3 to ask.")),
            (None, _) => None,
        });
    }
    said
}

#[cfg(test)]
mod tests;
