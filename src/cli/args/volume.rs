//! `duplex volume`.

use clap::{Args, Subcommand};

use crate::spec::MemorySize;

/// Disks that outlive sandboxes
#[derive(Args, Clone, Debug)]
pub(crate) struct VolumeArgs {
    /// What to do
    #[command(subcommand)]
    pub verb: VolumeVerb,
}

/// Verbs of volumes.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum VolumeVerb {
    /// Make a volume; one of this name that is there stays as it is
    Create(VolumeCreateArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(VolumeLsArgs),
    /// Show all that is known of volumes
    Inspect(VolumeInspectArgs),
    /// Remove volumes that no sandbox has
    #[command(visible_alias = "remove")]
    Rm(VolumeRmArgs),
    /// Remove the volumes without a name that no sandbox has
    Prune(VolumePruneArgs),
}

/// Make a volume; one of this name that is there stays as it is
#[derive(Args, Clone, Debug)]
pub(crate) struct VolumeCreateArgs {
    /// Size of its file system, of which only what is written takes space [default: 10g]
    #[arg(short, long, value_name = "SIZE")]
    pub size: Option<MemorySize>,
    /// Set a label
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// Its name [default: a random one]
    #[arg(value_name = "VOLUME")]
    pub name: Option<String>,
}

/// List volumes
#[derive(Args, Clone, Debug)]
pub(crate) struct VolumeLsArgs {
    /// Print names only
    #[arg(short, long)]
    pub quiet: bool,
    /// Only those with name=, label=NAME[=VALUE] or dangling=true|false (no sandbox has it); again for more
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub filter: Vec<String>,
    /// table, json, or a text with {{.Name}}, {{.Driver}}, {{.Size}}, {{.Used}}, {{.CreatedAt}}, {{.Mountpoint}}, {{.Labels}}
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
}

/// Show all that is known of volumes
#[derive(Args, Clone, Debug)]
pub(crate) struct VolumeInspectArgs {
    /// json, or a text with fields of it such as {{.Mountpoint}}
    #[arg(short, long, value_name = "FORMAT", default_value = "json")]
    pub format: String,
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    pub volumes: Vec<String>,
}

/// Remove volumes that no sandbox has
#[derive(Args, Clone, Debug)]
pub(crate) struct VolumeRmArgs {
    /// Do not mind those that are not there
    #[arg(short, long)]
    pub force: bool,
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    pub volumes: Vec<String>,
}

/// Remove the volumes without a name that no sandbox has
#[derive(Args, Clone, Debug)]
pub(crate) struct VolumePruneArgs {
    /// Those with a name too
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}
