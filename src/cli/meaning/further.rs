//! What a further command in a sandbox means.

use super::{MeaningError, Surroundings, Variables, environment};
use crate::cli::args::ExecArgs;
use crate::spec::{ProcessSpec, SandboxSpec, TerminalSize};

/// The sandbox's own process with what this command line changes: program, streams, and what its options name. Privileges stay the same.
pub(crate) fn further(
    args: &ExecArgs,
    sandbox: &SandboxSpec,
    around: &Surroundings<'_>,
) -> Result<ProcessSpec, MeaningError> {
    let own = &sandbox.process;
    let variables = Variables {
        image: &own.env,
        files: around.env_files,
        flags: &args.process.env,
        caller: around.variable,
        hostname: &sandbox.hostname,
        terminal: args.process.tty,
    };
    let cwd = args.workdir.clone().unwrap_or_else(|| own.cwd.clone());
    if !cwd.starts_with('/') {
        return Err(MeaningError::Workdir(cwd));
    }
    Ok(ProcessSpec {
        args: args.command.clone(),
        env: environment(&variables)?,
        cwd,
        user: args.user.clone().unwrap_or_else(|| own.user.clone()),
        terminal: args.process.tty.then(|| around.terminal.unwrap_or(TerminalSize { rows: 24, columns: 80 })),
        stdin: args.process.interactive && !args.detach,
        ..own.clone()
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::spec::{Capability, Digest, Isolation, SandboxId};

    #[derive(Debug, Parser)]
    struct Exec {
        #[command(flatten)]
        args: ExecArgs,
    }

    fn meant(line: &str) -> Result<ProcessSpec, MeaningError> {
        let args = Exec::try_parse_from(["exec"].into_iter().chain(line.split_whitespace())).unwrap().args;
        let id = SandboxId::from_bytes([1; 6]);
        let process = ProcessSpec {
            args: vec!["server".into()],
            env: vec!["PATH=/p".into(), "A=1".into()],
            cwd: "/srv".into(),
            user: "ann".into(),
            terminal: Some(TerminalSize { rows: 1, columns: 1 }),
            stdin: true,
            capabilities: vec![Capability(3)],
            no_new_privileges: true,
            limits: Vec::new(),
        };
        let image = Digest::from_sha256([0; 32]);
        let sandbox = SandboxSpec {
            hostname: "box".into(),
            read_only: true,
            ..SandboxSpec::plain(id.clone(), Isolation::Container, image, process)
        };
        let caller = |name: &str| (name == "MINE").then(|| "m".to_owned());
        further(&args, &sandbox, &Surroundings { id, variable: &caller, env_files: &[], profile: None, terminal: None })
    }

    #[test]
    fn what_is_not_said_is_the_sandboxs() {
        let process = meant("box ls -l").unwrap();
        assert_eq!(process.args, ["ls", "-l"]);
        assert_eq!((process.cwd.as_str(), process.user.as_str()), ("/srv", "ann"));
        assert_eq!(process.env, ["PATH=/p", "HOSTNAME=box", "A=1"]);
        assert_eq!((process.terminal, process.stdin, process.no_new_privileges), (None, false, true));
        assert_eq!(process.capabilities, [Capability(3)]);
    }

    #[test]
    fn options_change_this_command_alone() {
        let process = meant("-it -u 0 -w /tmp -e A=2 -e MINE box sh -i").unwrap();
        assert_eq!(process.args, ["sh", "-i"]);
        assert_eq!((process.cwd.as_str(), process.user.as_str(), process.stdin), ("/tmp", "0", true));
        assert_eq!(process.env, ["PATH=/p", "HOSTNAME=box", "TERM=xterm", "A=2", "MINE=m"]);
        assert_eq!(process.terminal, Some(TerminalSize { rows: 24, columns: 80 }));
        assert!(!meant("-d -i box cat").unwrap().stdin, "nobody is there to type");
        assert!(matches!(meant("-w tmp box ls"), Err(MeaningError::Workdir(_))));
    }
}
