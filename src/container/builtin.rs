//! The built-in runtime: `libcontainer` over the bundle.

use std::os::fd::OwnedFd;
use std::path::Path;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::process::Pid;

use super::console::{Console, ConsoleError};
use super::execute::{self, Execute, Refusal};
use super::orders::Orders;
use super::walls::Walls;

/// A container that waits for its start.
pub(super) struct Builtin {
    container: Container,
    refusals: OwnedFd,
}

/// Why the built-in runtime failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuiltinError {
    #[error("The container cannot be created")]
    Create(#[source] LibcontainerError),
    #[error("The container cannot be started")]
    Start(#[source] LibcontainerError),
    #[error("The container has no first process")]
    NoProcess,
    #[error("Cannot hear from the container's first process")]
    Pipe(#[source] std::io::Error),
    #[error(transparent)]
    Console(#[from] ConsoleError),
}

/// Its first process, and the terminal's master side if it has one.
type Made = (Builtin, Pid, Option<OwnedFd>);

/// Creates the container of `folder/bundle`; its state is kept in `folder/oci` and nowhere else.
pub(super) fn create(
    orders: &Orders,
    environment: &[String],
    stdio: [OwnedFd; 3],
    walls: Walls,
) -> Result<Result<Made, Refusal>, BuiltinError> {
    let folder: &Path = &orders.folder;
    let (refusals, report) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| BuiltinError::Pipe(e.into()))?;
    let executor = match Execute::new(&orders.spec.process.args, environment, report, walls) {
        Ok(executor) => executor.below_init(orders.spec.init),
        Err(refusal) => return Ok(Err(refusal)),
    };
    let builder = ContainerBuilder::new(orders.spec.id.to_string(), SyscallType::default()).with_executor(executor);
    let builder = builder.with_root_path(folder.join("oci")).map_err(BuiltinError::Create)?;
    let console = orders.terminal().map(|_| Console::listen(folder)).transpose()?;
    let builder = match &console {
        Some(console) => builder.with_console_socket(Some(console.path())),
        None => {
            let [stdin, stdout, stderr] = stdio;
            builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr)
        }
    };
    let init = builder.as_init(folder.join("bundle")).with_systemd(false).with_detach(true);
    let container = init.build().map_err(BuiltinError::Create)?;
    let pid = container.pid().and_then(|p| Pid::from_raw(p.as_raw())).ok_or(BuiltinError::NoProcess)?;
    let terminal = console.map(Console::take).transpose()?;
    Ok(Ok((Builtin { container, refusals }, pid, terminal)))
}

impl Builtin {
    /// Returns when the command is executed, or with the reason why it could not be.
    pub(super) fn start(mut self) -> Result<Option<Refusal>, BuiltinError> {
        self.container.start().map_err(BuiltinError::Start)?;
        execute::outcome(self.refusals).map_err(BuiltinError::Pipe)
    }
}
