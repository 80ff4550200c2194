//! Words: plain data that every other module shares. No I/O happens here.

mod definition;
mod digest;
mod health;
mod id;
mod limits;
mod machine;
mod mounts;
mod network;
mod process;
mod rates;
mod sandbox;
mod security;
mod stats;
mod trace;

pub use definition::{Definition, LogLimits, Restart, RestartError, SIGTERM, Standing, Status};
pub use digest::{Digest, DigestError};
pub use health::{Checked, GoTime, HealthLog, HealthStatus, Healthcheck, LEAST_HEALTH_TIME};
pub use id::{IdError, SandboxId};
pub use limits::{Cpus, LimitChange, Limits, LimitsError, MIB, MemorySize, MemorySwap};
pub use machine::{
    DiskSpec, EXIT_PORT, ExtentSpec, MachineEvent, MachineExit, MachineSize, MachineSpec, NetBackend, NetDeviceSpec,
    READY_PORT, RequestToMonitor, ShareSpec, SpecFd, TemplateSpec, VsockSpec, VsockStream, guest_exit,
};
pub use mounts::{MountSource, MountSpec};
pub use network::{
    Attachment, BridgeAttachment, BridgeName, HostAddress, MOST_PUBLISHED, NetworkChoice, NetworkError, NetworkMode,
    NetworkSpec, Protocol, Publish,
};
pub use process::{Capability, DEFAULT_CAPABILITIES, ProcessLimit, ProcessSpec, Sysctl, TerminalSize, Tmpfs};
pub use process::{Transfer, Wanted};
pub use rates::{DeviceRate, DeviceValue, NetRate, RateError};
pub use sandbox::{Exit, Installation, Isolation, Outcome, ProgramOf, SandboxSpec, State, Usage};
pub use security::{Seccomp, Security, UserNamespace};
pub use stats::{Counters, ProcessEntry, Stats};
pub use trace::{Moment, Moments, Phase};
