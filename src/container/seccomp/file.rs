//! Profiles in the format of Docker's `--security-opt seccomp=FILE`: that of the OCI runtime config (config-linux.md, "Seccomp") with rules for
//! some capabilities, architectures and kernels only.

use serde::Deserialize;

use super::{Action, Condition, Profile, Rule, Test};
use crate::spec::Capability;

/// Longest profile, in bytes.
pub const LONGEST: usize = 1 << 20;

/// Names of this machine's architecture: Go's, and libseccomp's with that of its 32-bit programs.
const AMD64: &str = "amd64";
const X86_64: &str = "SCMP_ARCH_X86_64";
const X86: &str = "SCMP_ARCH_X86";

/// Arguments of a system call.
const ARGUMENTS: u8 = 6;

/// Why a profile is none.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProfileError {
    /// Not JSON, or not of a profile.
    #[error("It is not JSON in Docker's format for profiles: {0}")]
    Format(String),
    /// A long one.
    #[error("It is longer than {LONGEST} bytes")]
    Size,
    /// An action that is unknown, or needs somebody who answers.
    #[error("Action '{0}' is none of SCMP_ACT_ALLOW, _LOG, _ERRNO, _TRAP, _KILL, _KILL_THREAD and _KILL_PROCESS")]
    Action(String),
    /// An error number past the kernel's last.
    #[error("Error number {0} is not 0 to 4095")]
    Errno(u32),
    /// An operator that is unknown.
    #[error(
        "Operator '{0}' is none of SCMP_CMP_EQ, SCMP_CMP_NE, SCMP_CMP_LT, SCMP_CMP_LE, SCMP_CMP_GT, SCMP_CMP_GE and \
        SCMP_CMP_MASKED_EQ"
    )]
    Operator(String),
    /// An argument that no call has.
    #[error("A system call has no argument {0}: the first one is 0, the last one 5")]
    Argument(u8),
    /// Two lists of architectures.
    #[error("Only one of 'architectures' and 'archMap' can be given")]
    Architectures,
    /// Not for this machine.
    #[error("It does not name this machine's architecture, {X86_64}")]
    Foreign,
    /// One rule with both spellings, or with none.
    #[error("A rule has either 'name' or 'names'")]
    Names,
    /// Not a kernel's version.
    #[error("Kernel '{0}' is not VERSION.RELEASE")]
    Kernel(String),
    /// Something that is not done here.
    #[error("'{0}' is not supported: leave it out")]
    Unsupported(&'static str),
    /// More than the kernel takes.
    #[error("It becomes {0} instructions, and the kernel takes 4096 at most")]
    TooLong(usize),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchMap>>,
    listener_path: Option<String>,
    syscalls: Option<Vec<FileRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileRule {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    includes: Option<Circumstances>,
    excludes: Option<Circumstances>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    #[serde(default)]
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Circumstances {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Reads a profile for a process with these capabilities on this kernel.
///
/// # Errors
/// What is wrong with it.
pub fn read(text: &str, capabilities: &[Capability]) -> Result<Profile, ProfileError> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let here = Here { capabilities, kernel: kernel(&release)? };
    if text.len() > LONGEST {
        return Err(ProfileError::Size);
    }
    let file: File = serde_json::from_str(text).map_err(|e| ProfileError::Format(e.to_string()))?;
    if file.listener_path.as_ref().is_some_and(|path| !path.is_empty()) {
        return Err(ProfileError::Unsupported("listenerPath"));
    }
    let i386 = architectures(&file)?;
    let mut rules = Vec::new();
    for rule in file.syscalls.iter().flatten() {
        let read = rule.read()?;
        if rule.applies(&here)? {
            rules.extend(read);
        }
    }
    let profile = Profile { default: action(&file.default_action, file.default_errno_ret)?, i386, rules };
    profile.compile()?;
    Ok(profile)
}

/// Whether 32-bit programs have a part in it. A profile that names no architecture is for the machine's own.
fn architectures(file: &File) -> Result<bool, ProfileError> {
    let named = file.architectures.as_ref().filter(|named| !named.is_empty());
    if let Some(map) = file.arch_map.as_ref().filter(|map| !map.is_empty()) {
        if named.is_some() {
            return Err(ProfileError::Architectures);
        }
        let own = map.iter().find(|entry| entry.architecture == X86_64).ok_or(ProfileError::Foreign)?;
        return Ok(own.sub_architectures.iter().flatten().any(|sub| sub == X86));
    }
    let Some(named) = named else { return Ok(false) };
    if named.iter().any(|name| name == X86_64) {
        Ok(named.iter().any(|name| name == X86))
    } else {
        Err(ProfileError::Foreign)
    }
}

/// What rules depend on.
struct Here<'a> {
    capabilities: &'a [Capability],
    kernel: (u32, u32),
}

impl Here<'_> {
    fn has(&self, capability: &str) -> bool {
        let name = capability.strip_prefix("CAP_").unwrap_or(capability);
        self.capabilities.iter().any(|held| held.name() == Some(name))
    }

    fn reaches(&self, least: Option<&String>) -> Result<Option<bool>, ProfileError> {
        least.map(|least| Ok(self.kernel >= kernel(least)?)).transpose()
    }
}

impl FileRule {
    fn applies(&self, here: &Here<'_>) -> Result<bool, ProfileError> {
        let none = Circumstances::default();
        let (wanted, unwanted) = (self.includes.as_ref().unwrap_or(&none), self.excludes.as_ref().unwrap_or(&none));
        let here_of = |arches: &Option<Vec<String>>| {
            arches.as_ref().filter(|arches| !arches.is_empty()).map(|arches| arches.iter().any(|arch| arch == AMD64))
        };
        let included = here_of(&wanted.arches) != Some(false)
            && wanted.caps.iter().flatten().all(|capability| here.has(capability))
            && here.reaches(wanted.min_kernel.as_ref())? != Some(false);
        let excluded = here_of(&unwanted.arches) == Some(true)
            || unwanted.caps.iter().flatten().any(|capability| here.has(capability))
            || here.reaches(unwanted.min_kernel.as_ref())? == Some(true);
        Ok(included && !excluded)
    }

    /// One rule, or one for each condition: several on one argument are alternatives, as runc has it.
    fn read(&self) -> Result<Vec<Rule>, ProfileError> {
        let calls = match (&self.name, &self.names) {
            (Some(name), None) => vec![name.clone()],
            (None, Some(names)) => names.clone(),
            _ => return Err(ProfileError::Names),
        };
        let action = action(&self.action, self.errno_ret)?;
        let conditions: Vec<Condition> =
            self.args.iter().flatten().map(Argument::read).collect::<Result<_, ProfileError>>()?;
        let twice = |number: u8| conditions.iter().filter(|condition| condition.argument == number).count() > 1;
        if !(0..ARGUMENTS).any(twice) {
            return Ok(vec![Rule { calls, action, conditions }]);
        }
        let alone = |condition| Rule { calls: calls.clone(), action, conditions: vec![condition] };
        Ok(conditions.into_iter().map(alone).collect())
    }
}

impl Argument {
    fn read(&self) -> Result<Condition, ProfileError> {
        if self.index >= ARGUMENTS {
            return Err(ProfileError::Argument(self.index));
        }
        let (test, value) = match self.op.as_str() {
            "SCMP_CMP_EQ" => (Test::Equal, self.value),
            "SCMP_CMP_NE" => (Test::NotEqual, self.value),
            "SCMP_CMP_LT" => (Test::Less, self.value),
            "SCMP_CMP_LE" => (Test::AtMost, self.value),
            "SCMP_CMP_GT" => (Test::Greater, self.value),
            "SCMP_CMP_GE" => (Test::AtLeast, self.value),
            "SCMP_CMP_MASKED_EQ" => (Test::Masked(self.value), self.value_two),
            other => return Err(ProfileError::Operator(other.to_owned())),
        };
        Ok(Condition { argument: self.index, short: false, test, value })
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, ProfileError> {
    // The kernel's last error is 4095 (linux/err.h).
    let errno = errno.unwrap_or(libc::EPERM.unsigned_abs());
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => {
            let known = u16::try_from(errno).ok().filter(|errno| *errno <= 4095);
            Action::Errno(known.ok_or(ProfileError::Errno(errno))?)
        }
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => return Err(ProfileError::Action(other.to_owned())),
    })
}

/// `6.12.1-whatever` or `4.8` as numbers.
fn kernel(release: &str) -> Result<(u32, u32), ProfileError> {
    let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    let mut parts = release.split('.').map(digits);
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(version), Some(release)) => Ok((version, release)),
        _ => Err(ProfileError::Kernel(release.to_owned())),
    }
}
