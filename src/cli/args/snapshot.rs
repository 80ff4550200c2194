//! `duplex snapshot` and `duplex fork`.

use clap::{Args, Subcommand};

/// Saved machines, to go on from as often as wanted
#[derive(Args, Clone, Debug)]
pub(crate) struct SnapshotArgs {
    /// What to do
    #[command(subcommand)]
    pub verb: SnapshotVerb,
}

/// Verbs of snapshots.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    /// Save a microVM that runs: its memory, its processors and its devices. It goes on
    Create(SnapshotCreateArgs),
    /// List snapshots
    #[command(visible_alias = "list")]
    Ls(SnapshotLsArgs),
    /// Show all that is known of snapshots
    Inspect(SnapshotNamesArgs),
    /// Remove snapshots; sandboxes that run from them go on
    #[command(visible_alias = "remove")]
    Rm(SnapshotNamesArgs),
}

/// Save a microVM that runs: its memory, its processors and its devices. It goes on
#[derive(Args, Clone, Debug)]
pub(crate) struct SnapshotCreateArgs {
    /// Name or id of the sandbox
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Name of the snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub name: String,
}

/// List snapshots
#[derive(Args, Clone, Debug)]
pub(crate) struct SnapshotLsArgs {
    /// Print names only
    #[arg(short, long)]
    pub quiet: bool,
    /// table, json, or a text with {{.Name}}, {{.Image}}, {{.Sandbox}}, {{.Memory}}, {{.Size}}, {{.CreatedAt}}
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
}

/// Snapshots by name
#[derive(Args, Clone, Debug)]
pub(crate) struct SnapshotNamesArgs {
    /// Names
    #[arg(required = true, value_name = "SNAPSHOT")]
    pub snapshots: Vec<String>,
}

/// Make new sandboxes that go on from where a microVM is now, or was when it was saved
#[derive(Args, Clone, Debug)]
pub(crate) struct ForkArgs {
    /// How many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub number: u16,
    /// Name of the new sandbox; of several NAME-1, NAME-2 and so on
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Remove each when its command has ended
    #[arg(long)]
    pub rm: bool,
    /// Publish a port of each, as in 'run'; those of the original are not
    #[arg(short, long, value_name = "[ADDRESS:][HOST:]PORT[/udp]")]
    pub publish: Vec<String>,
    /// Name or id of a sandbox that runs, or name of a snapshot
    #[arg(value_name = "SANDBOX|SNAPSHOT")]
    pub source: String,
}
