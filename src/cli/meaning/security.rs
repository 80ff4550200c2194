//! Docker's `--security-opt`, `--userns` and `--hardened`.

use super::MeaningError;
use crate::cli::args::{RunArgs, Users};
use crate::container::seccomp;
use crate::container::seccomp::file::ProfileError;
use crate::spec::{Capability, Isolation, NetworkMode, Seccomp, Security, UserNamespace};

/// About a sandbox's walls.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SecurityError {
    /// An unknown option.
    #[error(
        "Option --security-opt '{0}' is none of seccomp=FILE, seccomp=unconfined, seccomp=builtin and \
        no-new-privileges[=true|false]"
    )]
    Unknown(String),
    /// A list of system calls for a machine with a kernel of its own.
    #[error(
        "Option --security-opt seccomp={0} is for containers: programs in a microVM have a kernel of their own, which is not \
        filtered; leave it out, or use --isolation container"
    )]
    MicroVm(String),
    /// Walls of containers.
    #[error(
        "Option --hardened is for containers: in a microVM use --cap-drop ALL and --security-opt no-new-privileges, or \
        --isolation container"
    )]
    Hardened,
    /// A microVM's users are not the host's.
    #[error(
        "Option --userns is for containers: the users of a microVM are its own kernel's; leave it out, or use --isolation container"
    )]
    Users,
    /// The host's network belongs to the host's users.
    #[error("Options --userns private and --net host exclude each other: the host's network is the host's users'")]
    HostNetwork,
    /// A hardened sandbox without what makes it so.
    #[error("Options --hardened and --security-opt {0} exclude each other")]
    Exclude(String),
    /// A profile that is none.
    #[error("The profile '{file}' cannot be used")]
    Profile {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: ProfileError,
    },
}

/// What `--security-opt` says.
#[derive(Clone, Copy, Debug, Default)]
struct Options<'a> {
    seccomp: Option<&'a str>,
    no_new_privileges: Option<bool>,
}

/// The last word on a thing holds. Docker takes ':' for '=', too.
fn options(args: &RunArgs) -> Result<Options<'_>, SecurityError> {
    let mut options = Options::default();
    for text in &args.security_opt {
        let unknown = || SecurityError::Unknown(text.clone());
        let (name, value) = match text.split_once('=').or_else(|| text.split_once(':')) {
            Some((name, value)) => (name, Some(value)),
            None => (text.as_str(), None),
        };
        match (name, value) {
            ("seccomp", Some(value)) if !value.is_empty() => options.seccomp = Some(value),
            ("no-new-privileges", None | Some("true")) => options.no_new_privileges = Some(true),
            ("no-new-privileges", Some("false")) => options.no_new_privileges = Some(false),
            _ => return Err(unknown()),
        }
    }
    Ok(options)
}

/// The file with a profile that has to be read before the command line has a meaning.
pub(crate) fn profile_file(args: &RunArgs) -> Option<&str> {
    options(args).ok()?.seccomp.filter(|value| !["builtin", "unconfined"].contains(value))
}

/// The sandbox's walls, and whether its processes gain no privileges. `profile` is the content of [`profile_file`].
pub(crate) fn security(
    args: &RunArgs,
    profile: Option<&str>,
    capabilities: &[Capability],
) -> Result<(Security, bool), MeaningError> {
    let Options { seccomp, no_new_privileges } = options(args)?;
    let microvm = args.isolation == Isolation::MicroVm;
    if args.hardened && microvm {
        return Err(SecurityError::Hardened.into());
    }
    if args.hardened && no_new_privileges == Some(false) {
        return Err(SecurityError::Exclude("no-new-privileges=false".to_owned()).into());
    }
    if let Some(value) = seccomp.filter(|value| args.hardened && *value != "builtin") {
        return Err(SecurityError::Exclude(format!("seccomp={value}")).into());
    }
    let seccomp = match seccomp {
        Some("unconfined") => Seccomp::Unconfined,
        None | Some("builtin") if seccomp.is_none() || !microvm => Seccomp::Builtin,
        Some(file) if microvm => return Err(SecurityError::MicroVm(file.to_owned()).into()),
        file => {
            let text = profile.unwrap_or_default();
            let wrong = |source| SecurityError::Profile { file: file.unwrap_or_default().to_owned(), source };
            seccomp::file::read(text, capabilities).map_err(wrong)?;
            Seccomp::Profile(text.to_owned())
        }
    };
    let security = Security { seccomp, hardened: args.hardened, users: users(args)? };
    Ok((security, args.hardened || no_new_privileges.unwrap_or_default()))
}

/// Who its users are. A container has its own, unless it has the host's network, whose users are the host's, or an outside runtime makes it.
fn users(args: &RunArgs) -> Result<UserNamespace, SecurityError> {
    let hosts_network = args.net.mode == NetworkMode::Host;
    let able = args.isolation == Isolation::Container && !hosts_network && args.runtime.is_none();
    match args.userns {
        Some(_) if args.isolation == Isolation::MicroVm => Err(SecurityError::Users),
        Some(Users::Private) if hosts_network => Err(SecurityError::HostNetwork),
        Some(Users::Private) => Ok(UserNamespace::Private),
        None if able => Ok(UserNamespace::Private),
        Some(Users::Host) | None => Ok(UserNamespace::Host),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{meant, refused};
    use super::*;

    fn error(line: &str) -> SecurityError {
        match refused(line) {
            MeaningError::Security(error) => error,
            other => panic!("{line}: {other}"),
        }
    }

    #[test]
    fn options_are_dockers() {
        let plain = meant("--isolation container img");
        assert_eq!((plain.security.seccomp, plain.process.no_new_privileges), (Seccomp::Builtin, false));
        let of = |line: &str| meant(&format!("--isolation container {line} img"));
        for line in ["no-new-privileges", "no-new-privileges=true", "no-new-privileges:true"] {
            assert!(of(&format!("--security-opt {line}")).process.no_new_privileges, "{line}");
        }
        let last = of("--security-opt no-new-privileges --security-opt no-new-privileges=false");
        assert!(!last.process.no_new_privileges);
        assert_eq!(of("--security-opt seccomp=unconfined").security.seccomp, Seccomp::Unconfined);
        assert_eq!(of("--security-opt seccomp:builtin").security.seccomp, Seccomp::Builtin);
        for bad in ["apparmor=x", "seccomp", "seccomp=", "no-new-privileges=yes", "x"] {
            assert_eq!(error(&format!("--security-opt {bad} img")), SecurityError::Unknown(bad.to_owned()));
        }
        let file = error("--isolation container --security-opt seccomp=p.json img");
        assert!(matches!(file, SecurityError::Profile { .. }), "no file was read: {file}");
    }

    #[test]
    fn a_microvm_has_no_filter_to_choose() {
        let microvm = meant("--security-opt no-new-privileges --security-opt seccomp=unconfined img");
        assert!(microvm.process.no_new_privileges);
        for value in ["builtin", "p.json"] {
            let error = error(&format!("--security-opt seccomp={value} img"));
            assert_eq!(error, SecurityError::MicroVm(value.to_owned()));
        }
        assert_eq!(error("--hardened img"), SecurityError::Hardened);
    }

    #[test]
    fn users_are_the_hosts_or_its_own() {
        use UserNamespace::{Host, Private};
        for (line, users) in [
            ("container", Private),
            ("container --net none", Private),
            ("container --net host", Host),
            ("container --userns host", Host),
            ("container --userns private", Private),
            ("container --runtime /usr/bin/crun", Host),
            ("container --hardened", Private),
            ("container --hardened --userns host", Host),
            ("container --hardened --net host", Host),
            ("microvm", Host),
        ] {
            assert_eq!(meant(&format!("--isolation {line} img")).security.users, users, "{line}");
        }
        assert_eq!(error("--userns host img"), SecurityError::Users);
        assert_eq!(error("--isolation container --userns private --net host img"), SecurityError::HostNetwork);
    }

    #[test]
    fn hardened_is_all_of_it() {
        let hardened = meant("--isolation container --hardened img");
        assert!(hardened.security.hardened && hardened.process.no_new_privileges);
        assert_eq!(hardened.process.capabilities, []);
        let one = meant("--isolation container --hardened --cap-add NET_BIND_SERVICE img");
        assert_eq!(one.process.capabilities, [Capability(10)]);
        for option in ["seccomp=unconfined", "no-new-privileges=false", "seccomp=p.json"] {
            let error = error(&format!("--isolation container --hardened --security-opt {option} img"));
            assert_eq!(error, SecurityError::Exclude(option.to_owned()));
        }
    }
}
