//! Verbs about what is inside sandboxes that run.

use std::ffi::OsString;

use clap::Args;

use super::run::ProcessArgs;

/// Run a further command in a sandbox that runs
#[derive(Args, Clone, Debug)]
#[command(after_help = "Exit codes: the command's own; 1 Duplex failed, 126 the command cannot be executed, \
    127 it was not found, 128+n signal n ended it.")]
pub(crate) struct ExecArgs {
    /// Go on in the background
    #[arg(short, long)]
    pub detach: bool,
    /// What connects the command
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Working folder inside, which must be there [default: the sandbox's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User and group inside, by name or number [default: the sandbox's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Name or id
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Copy files out of a sandbox that runs, or into one
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "One of SOURCE and DESTINATION is SANDBOX:PATH. A SOURCE that ends with /. means what is in the folder. \
    '-' as SOURCE reads a tar archive from standard input, '-' as DESTINATION writes one to standard output."
)]
pub(crate) struct CpArgs {
    /// Keep owners, set-user-ID and set-group-ID [default: all belongs to whom the other end runs as: root inside, the caller outside]
    #[arg(short, long)]
    pub archive: bool,
    /// Copy what the symbolic link SOURCE leads to, in place of the link
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Say nothing when it is done
    #[arg(short, long)]
    pub quiet: bool,
    /// SANDBOX:PATH, a path of this host, or -
    #[arg(value_name = "SOURCE", allow_hyphen_values = true)]
    pub source: OsString,
    /// SANDBOX:PATH, a path of this host, or -
    #[arg(value_name = "DESTINATION", allow_hyphen_values = true)]
    pub destination: OsString,
}

/// List the processes of a sandbox
#[derive(Args, Clone, Debug)]
pub(crate) struct TopArgs {
    /// Name or id
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
}

/// Show what sandboxes use, every second
#[derive(Args, Clone, Debug)]
pub(crate) struct StatsArgs {
    /// Show it once
    #[arg(long)]
    pub no_stream: bool,
    /// table, json, or a text with {{.ID}}, {{.Name}}, {{.Isolation}}, {{.CPUPerc}}, {{.MemUsage}}, {{.MemPerc}}, {{.NetIO}}, {{.BlockIO}},
    /// {{.PIDs}}, {{.HostCPUPerc}}, {{.HostMem}}
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// Names or ids [default: all that run]
    #[arg(value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}

/// Stop all processes of sandboxes where they are, or let them go on
#[derive(Args, Clone, Debug)]
pub(crate) struct PauseArgs {
    /// Names or ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}
