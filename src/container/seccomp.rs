//! Which system calls a container's processes may make, and what the others answer (seccomp(2)).
//!
//! ```text
//! builtin.rs     the usual list, in groups with their why        \
//! hardened.rs    the short list of --hardened                     > Profile -> compile.rs -> the kernel's program
//! file.rs        a profile in Docker's format                    /          \-> Profile::oci, for outside runtimes
//! ```

mod builtin;
mod compile;
pub mod file;
#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(crate) mod fuzz;
mod hardened;

use libc::sock_filter;
use serde_json::{Value, json};

use self::file::ProfileError;
use crate::spec::{Capability, Seccomp, Security};

/// Numbers of capabilities that lists depend on (linux/capability.h).
const CAP_SYS_ADMIN: Capability = Capability(21);

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Allow,
    /// Allowed, and told to the audit log.
    Log,
    /// Not made; the caller gets this error.
    Errno(u16),
    /// Not made; the caller gets SIGSYS.
    Trap,
    KillThread,
    KillProcess,
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
    /// The argument's bits of this mask are equal.
    Masked(u64),
}

/// What an argument must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    /// The argument's number, from 0.
    argument: u8,
    /// The kernel takes its lower 32 bits only, and so does the comparison: what stands above them must not make a difference.
    short: bool,
    test: Test,
    value: u64,
}

/// What becomes of these calls if all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    calls: Vec<String>,
    action: Action,
    conditions: Vec<Condition>,
}

/// A list of system calls. Of a call's rules those with conditions are tried first; the first that fits decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// For a call without a rule. A call that is newer than all that the profile names does not exist instead (ENOSYS), where this is an
    /// error: programs then do without it.
    default: Action,
    /// The calls of 32-bit programs too; without it the first of them ends the program.
    i386: bool,
    rules: Vec<Rule>,
}

/// The list for a process with these capabilities; none if it may make every call.
///
/// # Errors
/// [`ProfileError`] of a profile from a file.
pub fn profile(security: &Security, capabilities: &[Capability]) -> Result<Option<Profile>, ProfileError> {
    match &security.seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::Profile(text) => file::read(text, capabilities).map(Some),
        Seccomp::Builtin if security.hardened => Ok(Some(hardened::profile(capabilities))),
        Seccomp::Builtin => Ok(Some(builtin::profile(capabilities))),
    }
}

impl Rule {
    /// Of these calls, with spaces between them.
    fn new(calls: &str, action: Action) -> Self {
        Self { calls: calls.split_whitespace().map(str::to_owned).collect(), action, conditions: Vec::new() }
    }

    fn allow(calls: &str) -> Self {
        Self::new(calls, Action::Allow)
    }

    /// For a call whose argument of this number, of which the kernel takes 32 bits, is so.
    fn when(mut self, argument: u8, test: Test, value: u64) -> Self {
        self.conditions.push(Condition { argument, short: true, test, value });
        self
    }
}

impl Profile {
    /// The kernel's program.
    ///
    /// # Errors
    /// [`ProfileError::TooLong`].
    pub fn compile(&self) -> Result<Vec<sock_filter>, ProfileError> {
        compile::program(self)
    }

    /// As the `seccomp` of an OCI runtime config (config-linux.md, "Seccomp").
    pub fn oci(&self) -> Value {
        let (action, errno) = self.default.oci();
        let architectures: &[&str] =
            if self.i386 { &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"] } else { &["SCMP_ARCH_X86_64"] };
        // Runtimes refuse a rule that says what is said of all.
        let rules = self.rules.iter().filter(|rule| rule.action != self.default);
        let mut profile = json!({
            "defaultAction": action,
            "architectures": architectures,
            "syscalls": rules.map(Rule::oci).collect::<Vec<_>>(),
        });
        if let Some(errno) = errno {
            profile["defaultErrnoRet"] = errno.into();
        }
        profile
    }
}

impl Rule {
    fn oci(&self) -> Value {
        let (action, errno) = self.action.oci();
        let mut rule = json!({
            "names": self.calls,
            "action": action,
            "args": self.conditions.iter().map(Condition::oci).collect::<Vec<_>>(),
        });
        if let Some(errno) = errno {
            rule["errnoRet"] = errno.into();
        }
        rule
    }
}

impl Condition {
    fn oci(&self) -> Value {
        let (index, value) = (self.argument, self.value);
        let op = match self.test {
            Test::Equal => "SCMP_CMP_EQ",
            Test::NotEqual => "SCMP_CMP_NE",
            Test::Less => "SCMP_CMP_LT",
            Test::AtMost => "SCMP_CMP_LE",
            Test::Greater => "SCMP_CMP_GT",
            Test::AtLeast => "SCMP_CMP_GE",
            Test::Masked(mask) => {
                return json!({ "index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" });
            }
        };
        json!({ "index": index, "value": value, "op": op })
    }
}

impl Action {
    fn oci(self) -> (&'static str, Option<u16>) {
        match self {
            Self::Allow => ("SCMP_ACT_ALLOW", None),
            Self::Log => ("SCMP_ACT_LOG", None),
            Self::Errno(errno) => ("SCMP_ACT_ERRNO", Some(errno)),
            Self::Trap => ("SCMP_ACT_TRAP", None),
            Self::KillThread => ("SCMP_ACT_KILL_THREAD", None),
            Self::KillProcess => ("SCMP_ACT_KILL_PROCESS", None),
        }
    }
}

#[cfg(test)]
mod tests;
