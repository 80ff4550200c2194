//! Verbs of sandboxes that have been defined.

use clap::Args;

use super::LimitArgs;
use crate::spec::Restart;

/// Start sandboxes that do not run
#[derive(Args, Clone, Debug)]
pub(crate) struct StartArgs {
    /// Show the command's output and pass signals on to it; one sandbox only
    #[arg(short, long)]
    pub attach: bool,
    /// Connect standard input too
    #[arg(short, long)]
    pub interactive: bool,
    /// Keys that leave an attached terminal without ending its command
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,
    /// Names or ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}

/// List sandboxes
#[derive(Args, Clone, Debug)]
pub(crate) struct PsArgs {
    /// Those that do not run too
    #[arg(short, long)]
    pub all: bool,
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten commands
    #[arg(long)]
    pub no_trunc: bool,
    /// The last N that were defined, whether they run or not
    #[arg(short = 'n', long, value_name = "N")]
    pub last: Option<usize>,
    /// The last one that was defined
    #[arg(short, long)]
    pub latest: bool,
    /// Only those with id=, name=, label=NAME[=VALUE], status=, health=, exited=CODE, ancestor=IMAGE or isolation=; again for more
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub filter: Vec<String>,
    /// table, json, or a text with {{.ID}}, {{.Image}}, {{.Isolation}}, {{.Command}}, {{.CreatedAt}}, {{.RunningFor}}, {{.Status}},
    /// {{.State}}, {{.Ports}}, {{.Names}}, {{.Labels}}
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
}

/// Tell where the ports of a sandbox are on this host
#[derive(Args, Clone, Debug)]
pub(crate) struct PortArgs {
    /// Name or id
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Only this port of the sandbox
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub port: Option<String>,
}

/// Show all that is known of sandboxes
#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// json, or a text with fields of it such as {{.State.Status}} or {{json .Config}}
    #[arg(short, long, value_name = "FORMAT", default_value = "json")]
    pub format: String,
    /// Names or ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}

/// Show what a sandbox has written
#[derive(Args, Clone, Debug)]
pub(crate) struct LogsArgs {
    /// Go on until the sandbox ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only what was written since: 2026-01-31T12:00:00Z, seconds since 1970, or a time ago such as 90s or 1h30m
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only what was written before
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only so many of the last lines, or all
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    pub tail: String,
    /// Print the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Name or id
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
}

/// Connect this terminal to a sandbox that runs
#[derive(Args, Clone, Debug)]
pub(crate) struct AttachArgs {
    /// Do not connect standard input
    #[arg(long)]
    pub no_stdin: bool,
    /// Keys that leave the terminal without ending its command
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,
    /// Pass signals on to the command
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
    /// Name or id
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
}

/// Ask sandboxes to end, and end them after a time
#[derive(Args, Clone, Debug)]
pub(crate) struct StopArgs {
    /// Signal that asks [default: the sandbox's own]
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// Seconds from that signal to SIGKILL [default: the sandbox's own]
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS")]
    pub time: Option<u32>,
    /// Names or ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}

/// Send sandboxes a signal
#[derive(Args, Clone, Debug)]
pub(crate) struct KillArgs {
    /// The signal
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub signal: String,
    /// Names or ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}

/// Wait for the end of sandboxes and print their exit codes
#[derive(Args, Clone, Debug)]
pub(crate) struct WaitArgs {
    /// Names or ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}

/// Remove sandboxes
#[derive(Args, Clone, Debug)]
pub(crate) struct RmArgs {
    /// End those that run, and do not mind those that are not there
    #[arg(short, long)]
    pub force: bool,
    /// Remove their volumes without a name too
    #[arg(short, long)]
    pub volumes: bool,
    /// Names or ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}

/// Change the limits and the restart policy of sandboxes, those that run included
#[derive(Args, Clone, Debug)]
#[command(after_help = "The machine of a microVM that runs stays as large as it is; what is above that is refused.")]
pub(crate) struct UpdateArgs {
    /// Limits
    #[command(flatten)]
    pub limits: LimitArgs,
    /// When they start again after their command has ended: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<Restart>,
    /// Names or ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub sandboxes: Vec<String>,
}

/// Give a sandbox another name
#[derive(Args, Clone, Debug)]
pub(crate) struct RenameArgs {
    /// Name or id
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Its new name
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Remove all sandboxes that have ended
#[derive(Args, Clone, Debug)]
pub(crate) struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only those with until=TIME (ended before) or label=NAME[=VALUE]; again for more
    #[arg(long, value_name = "NAME=VALUE")]
    pub filter: Vec<String>,
}
