//! What is compared: arms, image, command, limits, rounds.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::density::Density;
use crate::spec::{Cpus, Digest, Isolation, MemorySize};

/// One side of a comparison: an isolation with settings. Limits are not among them, they are the same for all arms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arm {
    /// Its name in tables, unique in the comparison.
    pub name: String,
    /// Kind of walls.
    pub isolation: Isolation,
    /// Another guest kernel than the one installed (microVM only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The root file system refuses writes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Each run boots the guest kernel (microVM only).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
    /// Without capabilities and new privileges, with fewer system calls and rights to files (container only).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hardened: bool,
    /// The program in the built-in one's place: an OCI runtime (container), or QEMU (microVM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<PathBuf>,
    /// The command runs on the host itself, with the programs of this virtual environment of Python first (process only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub venv: Option<PathBuf>,
}

impl Arm {
    /// An outside runtime with a kernel of its own for the programs in it, which is a process of this host: gVisor's.
    pub(super) fn brings_kernel(&self) -> bool {
        self.is_outside_container()
            && self.runtime.as_deref().and_then(Path::file_name).is_some_and(|name| name == OWN_KERNEL)
    }

    /// A container by an outside runtime.
    pub(super) fn is_outside_container(&self) -> bool {
        self.isolation == Isolation::Container && self.runtime.is_some()
    }

    /// A microVM by QEMU.
    pub(super) fn is_qemus(&self) -> bool {
        self.isolation == Isolation::MicroVm && self.runtime.is_some()
    }

    /// The isolation that its walls are to its programs: a microVM's where the kernel that answers them is not the host's.
    pub(super) fn walls(&self) -> Isolation {
        if self.brings_kernel() { Isolation::MicroVm } else { self.isolation }
    }
}

/// The runtime that answers system calls itself.
const OWN_KERNEL: &str = "runsc";

/// OCI runtimes that need no path: programs of the search path.
const RUNTIMES: [&str; 4] = ["crun", "runc", "runsc", "youki"];

/// A microVM by QEMU, and the program of that.
const QEMU: &str = "qemu";
const QEMU_PROGRAM: &str = "qemu-system-x86_64";

/// What comes before the path of another.
const BY_PATH: &str = "runtime:";

/// What comes before the path of a virtual environment.
const VENV: &str = "venv:";

/// What is short for `container,hardened`.
const HARDENED: &str = "container-hardened";

/// Why a text is not an arm, or arms are not a comparison.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArmError {
    /// The isolation is unknown.
    #[error(
        "Arm '{0}' names none of 'microvm', 'qemu', 'container', 'container-hardened', 'process', 'venv:/PATH', {runtimes} \
        and 'runtime:/PATH': write [NAME=]ISOLATION[,cold][,hardened][,kernel=FILE][,read-only]",
        runtimes = RUNTIMES.map(|name| format!("'{name}'")).join(", ")
    )]
    Isolation(String),
    /// A setting is unknown.
    #[error("Arm '{arm}' has the unknown setting '{setting}': cold, hardened, kernel=FILE and read-only are known")]
    Setting {
        /// The arm as typed.
        arm: String,
        /// The setting.
        setting: String,
    },
    /// A kernel for a container.
    #[error("Arm '{0}' is a container, which runs on the host's kernel: leave out kernel=FILE and cold")]
    Kernel(String),
    /// A machine that is to be hardened as a container is.
    #[error("Arm '{0}' is a microVM, and hardened is for containers: leave it out")]
    Hardened(String),
    /// A plain process with a setting.
    #[error("Arm '{0}' is a plain process, which has no settings: it isolates nothing")]
    Process(String),
    /// A runtime that is not ours, and what only ours does.
    #[error("Arm '{0}' runs by an outside runtime, which does not confine files: leave out hardened")]
    Outside(String),
    /// A runtime by a path that depends on the folder.
    #[error("Arm '{0}' names its runtime by a path that is not absolute: write runtime:/PATH")]
    Relative(String),
    /// A virtual environment by such a path.
    #[error("Arm '{0}' names its virtual environment by a path that is not absolute: write venv:/PATH")]
    RelativeVenv(String),
    /// A runtime that is not there.
    #[error(
        "Arm '{arm}' needs the OCI runtime '{program}', which is no program in PATH: install it, or name it by its path with --arm {arm}=runtime:/PATH"
    )]
    NoRuntime {
        /// The arm.
        arm: String,
        /// The program.
        program: String,
    },
    /// QEMU is not there.
    #[error("Arm '{0}' needs '{QEMU_PROGRAM}', which is no program in PATH: install QEMU (Debian: qemu-system-x86)")]
    NoQemu(String),
    /// A runtime by a path where no program is.
    #[error("Arm '{arm}' needs the OCI runtime {}, which is no program", path.display())]
    NoProgram {
        /// The arm.
        arm: String,
        /// Its path.
        path: PathBuf,
    },
    /// Not a name.
    #[error("Name '{0}' of an arm is not 1 to 20 letters, digits, '_', '.' and '-'")]
    Name(String),
    /// Two arms of one name.
    #[error("Two arms are named '{0}': name them apart, such as a={0} and b={0}")]
    Twice(String),
    /// Nothing to compare with.
    #[error("A comparison needs two arms or more, not {0}")]
    TooFew(usize),
}

impl FromStr for Arm {
    type Err = ArmError;

    fn from_str(text: &str) -> Result<Self, ArmError> {
        let mut parts = text.split(',');
        let head = parts.next().unwrap_or_default();
        let runtime = |isolation: &str| match isolation.strip_prefix(BY_PATH) {
            Some(path) => Some(PathBuf::from(path)),
            None if isolation == QEMU => Some(QEMU_PROGRAM.into()),
            None => RUNTIMES.contains(&isolation).then(|| isolation.into()),
        };
        // By its path it is named as its file.
        let by_path = || head.strip_prefix(BY_PATH).and_then(|path| path.rsplit('/').next());
        let unnamed = || match head.strip_prefix(VENV) {
            Some(_) => ("venv", head),
            None => (by_path().unwrap_or(head), head),
        };
        let (name, isolation) = head.split_once('=').unwrap_or_else(unnamed);
        let venv = isolation.strip_prefix(VENV).map(PathBuf::from);
        if venv.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(ArmError::RelativeVenv(text.to_owned()));
        }
        let runtime = runtime(isolation);
        if runtime.as_ref().is_some_and(|program| isolation.starts_with(BY_PATH) && !program.is_absolute()) {
            return Err(ArmError::Relative(text.to_owned()));
        }
        let boots = isolation == QEMU;
        let (isolation, hardened) = match isolation {
            QEMU => ("microvm", false),
            HARDENED => ("container", true),
            _ if runtime.is_some() => ("container", false),
            _ if venv.is_some() => ("process", false),
            other => (other, false),
        };
        let isolation = isolation.parse().map_err(|_| ArmError::Isolation(text.to_owned()))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !(1..=20).contains(&name.len()) || !name.chars().all(plain) {
            return Err(ArmError::Name(name.to_owned()));
        }
        let name = name.to_owned();
        let mut arm = Self { name, isolation, kernel: None, read_only: false, cold: boots, hardened, runtime, venv };
        for part in parts {
            match part.split_once('=').unwrap_or((part, "")) {
                ("kernel", file) if !file.is_empty() => arm.kernel = Some(file.into()),
                ("read-only", "") => arm.read_only = true,
                ("cold", "") => arm.cold = true,
                ("hardened", "") => arm.hardened = true,
                _ => return Err(ArmError::Setting { arm: text.to_owned(), setting: part.to_owned() }),
            }
        }
        if arm.isolation == Isolation::Process && text.contains(',') {
            return Err(ArmError::Process(text.to_owned()));
        }
        if arm.is_outside_container() && arm.hardened {
            return Err(ArmError::Outside(text.to_owned()));
        }
        if arm.isolation == Isolation::Container && (arm.kernel.is_some() || arm.cold) {
            return Err(ArmError::Kernel(text.to_owned()));
        }
        if arm.isolation == Isolation::MicroVm && arm.hardened {
            return Err(ArmError::Hardened(text.to_owned()));
        }
        Ok(arm)
    }
}

/// The arms that these texts name; if there are none, a container, a microVM as `run` starts it, and one that boots. The first is the baseline.
pub fn arms(texts: &[String]) -> Result<Vec<Arm>, ArmError> {
    let usual = ["container", "microvm", "cold=microvm,cold"].map(str::to_owned);
    let texts = if texts.is_empty() { &usual[..] } else { texts };
    if texts.len() < 2 {
        return Err(ArmError::TooFew(texts.len()));
    }
    let mut arms: Vec<Arm> = Vec::new();
    for text in texts {
        let arm: Arm = text.parse()?;
        if arms.iter().any(|a| a.name == arm.name) {
            return Err(ArmError::Twice(arm.name));
        }
        arms.push(arm);
    }
    Ok(arms)
}

/// Finds the outside runtimes of these arms: those without a path in these folders.
pub fn find_runtimes(arms: &mut [Arm], search: &[PathBuf]) -> Result<(), ArmError> {
    for arm in arms {
        let Some(program) = &arm.runtime else { continue };
        if program.is_absolute() {
            if !is_program(program) {
                return Err(ArmError::NoProgram { arm: arm.name.clone(), path: program.clone() });
            }
            continue;
        }
        let found =
            search.iter().map(|folder| folder.join(program)).find(|path| path.is_absolute() && is_program(path));
        let name = arm.name.clone();
        let missing = || match arm.is_qemus() {
            true => ArmError::NoQemu(name),
            false => ArmError::NoRuntime { arm: name, program: program.display().to_string() },
        };
        arm.runtime = Some(found.ok_or_else(missing)?);
    }
    Ok(())
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Goes on until the intervals are narrow or the time is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Until {
    /// How far an interval of the start's ratio may reach to either side, as a share of it.
    pub precision: f64,
    /// Longest time of all timed rounds.
    pub budget: Duration,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The arms; the first is the baseline.
    pub arms: Vec<Arm>,
    /// The image as the user named it.
    pub reference: String,
    /// Its manifest, the same for every arm.
    pub image: Digest,
    /// The command and its arguments; empty is the image's own.
    pub command: Vec<String>,
    /// Memory of every arm.
    pub memory: MemorySize,
    /// Processors of every arm.
    pub cpus: Cpus,
    /// What the command is a list of, when it is the embedded image's `measure`, or the application that it is: then the times that it prints are
    /// figures.
    pub workloads: Vec<String>,
    /// Measured rounds; at least so many if `until` asks for more.
    pub runs: u32,
    /// When enough rounds are measured, if not after `runs`.
    pub until: Option<Until>,
    /// Rounds before them that are kept but not counted.
    pub warmup: u32,
    /// Rounds that measure memory.
    pub memory_runs: u32,
    /// Every arm is probed for what its walls let through.
    pub probes: bool,
    /// Every arm runs once more, to count what it reaches of the host.
    pub reach: bool,
    /// And once more, to count the functions of the host's kernel that it reaches.
    pub functions: bool,
    /// How many idle sandboxes are tried, and what stops that.
    pub density: Option<Density>,
    /// Seed of the order.
    pub seed: u64,
    /// Differing outputs and exit codes are noted, not refused.
    pub allow_difference: bool,
    /// Longest time of one run.
    pub timeout: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_are_an_isolation_with_settings() {
        let arm = |name: &str, isolation| Arm {
            name: name.to_owned(),
            isolation,
            kernel: None,
            read_only: false,
            cold: false,
            hardened: false,
            runtime: None,
            venv: None,
        };
        assert_eq!("microvm".parse(), Ok(arm("microvm", Isolation::MicroVm)));
        assert_eq!("a=container".parse(), Ok(arm("a", Isolation::Container)));
        let full = Arm { kernel: Some("/k".into()), read_only: true, cold: true, ..arm("new", Isolation::MicroVm) };
        assert_eq!("new=microvm,kernel=/k,read-only,cold".parse(), Ok(full));
        let hardened = |name: &str| Arm { hardened: true, ..arm(name, Isolation::Container) };
        assert_eq!("container-hardened".parse(), Ok(hardened("container-hardened")));
        assert_eq!("a=container-hardened".parse(), Ok(hardened("a")));
        assert_eq!("b=container,hardened".parse(), Ok(hardened("b")));
        assert_eq!("process".parse(), Ok(arm("process", Isolation::Process)));
        let venv = |name: &str| Arm { venv: Some("/srv/env".into()), ..arm(name, Isolation::Process) };
        assert_eq!("venv:/srv/env".parse(), Ok(venv("venv")));
        assert_eq!("host=venv:/srv/env".parse(), Ok(venv("host")));
        let outside =
            |name: &str, program: &str| Arm { runtime: Some(program.into()), ..arm(name, Isolation::Container) };
        assert_eq!("runsc".parse(), Ok(outside("runsc", "runsc")));
        assert_eq!("a=crun,read-only".parse(), Ok(Arm { read_only: true, ..outside("a", "crun") }));
        assert_eq!("runtime:/opt/it".parse(), Ok(outside("it", "/opt/it")));
        assert_eq!("b=runtime:/opt/it".parse(), Ok(outside("b", "/opt/it")));
        let qemu = |name: &str| Arm {
            runtime: Some("qemu-system-x86_64".into()),
            cold: true,
            ..arm(name, Isolation::MicroVm)
        };
        assert_eq!(["qemu", "a=qemu,cold"].map(str::parse), [Ok(qemu("qemu")), Ok(qemu("a"))]);
        let walls = |text: &str| text.parse::<Arm>().unwrap().walls();
        assert_eq!(["runsc", "x=runtime:/opt/runsc"].map(walls), [Isolation::MicroVm; 2]);
        assert_eq!(["crun", "runsc=runtime:/opt/it", "runsc=container"].map(walls), [Isolation::Container; 3]);
        assert_eq!(
            arms(&[]).unwrap().iter().map(|a| a.name.as_str()).collect::<Vec<_>>(),
            ["container", "microvm", "cold"]
        );
    }

    #[test]
    fn what_is_no_comparison_is_refused() {
        let parse = |texts: &[&str]| arms(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>()).unwrap_err();
        assert_eq!(parse(&["vm", "container"]), ArmError::Isolation("vm".into()));
        assert_eq!(parse(&["microvm"]), ArmError::TooFew(1));
        assert_eq!(parse(&["microvm", "microvm"]), ArmError::Twice("microvm".into()));
        assert_eq!(parse(&["a=container,kernel=/k", "microvm"]), ArmError::Kernel("a=container,kernel=/k".into()));
        assert_eq!(parse(&["microvm,hardened", "container"]), ArmError::Hardened("microvm,hardened".into()));
        assert_eq!(parse(&["a b=microvm", "microvm"]), ArmError::Name("a b".into()));
        assert_eq!(parse(&["process,cold", "microvm"]), ArmError::Process("process,cold".into()));
        assert_eq!(parse(&["venv:env", "microvm"]), ArmError::RelativeVenv("venv:env".into()));
        assert_eq!(parse(&["venv:/env,cold", "microvm"]), ArmError::Process("venv:/env,cold".into()));
        assert_eq!(parse(&["crun,hardened", "microvm"]), ArmError::Outside("crun,hardened".into()));
        assert_eq!(parse(&["crun,cold", "microvm"]), ArmError::Kernel("crun,cold".into()));
        assert_eq!(parse(&["qemu,hardened", "microvm"]), ArmError::Hardened("qemu,hardened".into()));
        assert_eq!(parse(&["runtime:it", "microvm"]), ArmError::Relative("runtime:it".into()));
        let unknown = ArmError::Setting { arm: "microvm,memory=1g".into(), setting: "memory=1g".into() };
        assert_eq!(parse(&["microvm,memory=1g", "container"]), unknown, "limits are the same for all arms");
    }

    #[test]
    fn runtimes_are_programs_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let find = |text: &str| {
            let mut arms = [text.parse::<Arm>().unwrap()];
            find_runtimes(&mut arms, &["".into(), dir.path().join("none"), dir.path().to_owned()])?;
            Ok(arms[0].runtime.clone())
        };
        let missing = || ArmError::NoRuntime { arm: "a".into(), program: "runsc".into() };
        assert!(missing().to_string().contains("--arm a=runtime:/PATH"), "{}", missing());
        assert_eq!(find("a=runsc"), Err(missing()));
        let program = dir.path().join("runsc");
        std::fs::write(&program, "").unwrap();
        assert_eq!(find("a=runsc"), Err(missing()), "a file that nobody may execute");
        let by_path = format!("runtime:{}", program.display());
        assert_eq!(find(&by_path), Err(ArmError::NoProgram { arm: "runsc".into(), path: program.clone() }));
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!((find("a=runsc"), find(&by_path)), (Ok(Some(program.clone())), Ok(Some(program))));
        assert_eq!(find("container"), Ok(None));
        assert_eq!(find("a=qemu"), Err(ArmError::NoQemu("a".into())));
    }
}
