//! The last steps in the container's first process: it is inside, has its user and capabilities, and becomes the command.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use duplex_wire::FailureKind;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use rustix::process::Signal;

use super::walls::Walls;

/// Becomes the command, or tells through a pipe why not. The pipe closes by itself when the command is executed.
#[derive(Clone)]
pub(super) struct Execute {
    arguments: Vec<CString>,
    environment: Vec<CString>,
    report: Arc<OwnedFd>,
    walls: Walls,
    init: bool,
    /// The file of the program, whatever the arguments call it.
    program: Option<Arc<OwnedFd>>,
}

/// Why the command was not executed.
pub(super) type Refusal = (FailureKind, String);

impl Execute {
    /// Arguments with NUL bytes are refused: no program could be given them.
    pub(super) fn new(
        arguments: &[String],
        environment: &[String],
        report: OwnedFd,
        walls: Walls,
    ) -> Result<Self, Refusal> {
        let strings = |texts: &[String]| -> Result<Vec<CString>, _> {
            texts.iter().map(|t| CString::new(t.as_bytes())).collect::<Result<_, _>>()
        };
        let refuse = |_| (FailureKind::CannotExecute, "An argument or variable contains a NUL byte".to_owned());
        let (arguments, environment) = (strings(arguments).map_err(refuse)?, strings(environment).map_err(refuse)?);
        if arguments.first().is_none_or(|a| a.is_empty()) {
            return Err((
                FailureKind::NotFound,
                "There is no command: the image has none and none was given".to_owned(),
            ));
        }
        Ok(Self { arguments, environment, report: Arc::new(report), walls, init: false, program: None })
    }

    /// By this file, which needs no interpreter.
    pub(super) fn by_file(self, program: Option<OwnedFd>) -> Self {
        Self { program: program.map(Arc::new), ..self }
    }

    /// As the child of an init, which this process becomes.
    pub(super) fn below_init(self, init: bool) -> Self {
        Self { init, ..self }
    }

    /// Returns only why it failed.
    pub(super) fn become_command(&self) -> Refusal {
        crate::sys::signals::default_all();
        if let Err(refusal) = self.walls.close() {
            return refusal;
        }
        let split = if self.init { duplex_init::split() } else { Ok(()) };
        match split {
            Ok(()) => self.execute(),
            Err(e) => (FailureKind::Other, format!("Cannot make the command's process: {e}")),
        }
    }

    fn execute(&self) -> Refusal {
        let Some(program) = self.arguments.first() else {
            return (FailureKind::NotFound, "There is no command".to_owned());
        };
        if let Some(file) = &self.program {
            return match nix::unistd::fexecve(file, &self.arguments, &self.environment) {
                Ok(never) => match never {},
                Err(errno) => refusal(program, errno),
            };
        }
        let mut worst = Errno::ENOENT;
        for candidate in candidates(program, &self.environment) {
            match nix::unistd::execve(&candidate, &self.arguments, &self.environment) {
                Ok(never) => match never {},
                Err(Errno::ENOENT | Errno::ENOTDIR) if !program.as_bytes().contains(&b'/') => {}
                Err(Errno::EACCES) => worst = Errno::EACCES,
                Err(errno) => return refusal(program, errno),
            }
        }
        refusal(program, worst)
    }
}

/// Where a program may be: itself if it has a slash, else below each folder of `PATH` (environ(7); an empty entry is the working folder).
fn candidates(program: &CStr, environment: &[CString]) -> Vec<CString> {
    if program.to_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = environment.iter().find_map(|e| e.to_bytes().strip_prefix(b"PATH=")).unwrap_or_default();
    let join = |folder: &[u8]| {
        let folder = if folder.is_empty() { b"." } else { folder };
        CString::new([folder, b"/", program.to_bytes()].concat()).ok()
    };
    path.split(|b| *b == b':').filter_map(join).collect()
}

/// Docker's distinction: what is not there is 127, what is there and does not run is 126.
fn refusal(program: &CStr, errno: Errno) -> Refusal {
    let name = program.to_string_lossy();
    match errno {
        Errno::ENOENT if name.contains('/') => (
            FailureKind::NotFound,
            format!("Cannot execute '{name}': it, or the interpreter that it names, does not exist"),
        ),
        Errno::ENOENT => (FailureKind::NotFound, format!("Cannot execute '{name}': not found in PATH")),
        errno => (FailureKind::CannotExecute, format!("Cannot execute '{name}': {}", errno.desc())),
    }
}

impl Executor for Execute {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let refusal = self.become_command();
        if let (Ok(bytes), Ok(pipe)) = (postcard::to_stdvec(&refusal), self.report.try_clone()) {
            let _ = File::from(pipe).write_all(&bytes);
        }
        Err(ExecutorError::Other(refusal.1))
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        // The last change of user is made: from here on the death of container-init is the death of the container.
        let set = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        set.map_err(|e| {
            ExecutorValidationError::ArgValidationError(format!("cannot be bound to the keeper's life: {e}"))
        })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(()) // given to execve, in the order of the spec
    }
}

/// Waits until the command is executed (`None`) or could not be.
pub(super) fn outcome(pipe: OwnedFd) -> std::io::Result<Option<Refusal>> {
    let mut bytes = Vec::new();
    File::from(pipe).take(64 << 10).read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    postcard::from_bytes(&bytes).map(Some).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use duplex_wire::ProcessSpec;

    use super::*;
    use crate::spec::Security;

    #[test]
    fn programs_are_looked_for_as_execvp_does() {
        let environment = [CString::new("A=PATH=/x").unwrap(), CString::new("PATH=/a::/b").unwrap()];
        let found = candidates(c"sh", &environment);
        assert_eq!(found, [c"/a/sh".to_owned(), c"./sh".to_owned(), c"/b/sh".to_owned()]);
        assert_eq!(candidates(c"./sh", &environment), [c"./sh".to_owned()]);
    }

    #[test]
    fn docker_tells_126_from_127() {
        assert_eq!(refusal(c"nope", Errno::ENOENT).0, FailureKind::NotFound);
        assert_eq!(refusal(c"/nope", Errno::ENOENT).0, FailureKind::NotFound);
        for errno in [Errno::EACCES, Errno::ENOEXEC, Errno::ENOTDIR, Errno::EISDIR] {
            let (kind, text) = refusal(c"/it", errno);
            assert_eq!(kind, FailureKind::CannotExecute);
            assert!(text.contains("/it"), "{text}");
        }
    }

    #[test]
    fn no_command_is_not_found() {
        let pipe = || rustix::pipe::pipe().unwrap().1;
        let walls = || Walls::of(&Security::default(), &ProcessSpec::default()).unwrap();
        assert_eq!(Execute::new(&[], &[], pipe(), walls()).err().unwrap().0, FailureKind::NotFound);
        assert_eq!(Execute::new(&["a\0b".into()], &[], pipe(), walls()).err().unwrap().0, FailureKind::CannotExecute);
    }
}
