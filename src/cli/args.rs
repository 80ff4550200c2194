//! The command line as it is typed. What it means is `meaning`'s business.
#![allow(rustdoc::broken_intra_doc_links, reason = "square brackets are usage texts that clap prints")]

mod compare;
mod health;
mod host;
mod image;
mod inside;
mod life;
mod rates;
mod run;
mod snapshot;
mod volume;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(super) use compare::CompareArgs;
pub(super) use health::HealthArgs;
pub(super) use host::{DoctorArgs, LabArgs, LabVerb};
pub(super) use image::{BudgetArgs, ImagesArgs, LoadArgs, PullArgs, RmiArgs};
pub(super) use inside::{CpArgs, ExecArgs, PauseArgs, StatsArgs, TopArgs};
pub(super) use life::{
    AttachArgs, InspectArgs, KillArgs, LogsArgs, PortArgs, PruneArgs, PsArgs, RenameArgs, RmArgs, StartArgs, StopArgs,
    UpdateArgs, WaitArgs,
};
pub(super) use rates::RateArgs;
pub(super) use run::{LimitArgs, PullPolicy, RunArgs, Users};
pub(super) use snapshot::{
    ForkArgs, SnapshotArgs, SnapshotCreateArgs, SnapshotLsArgs, SnapshotNamesArgs, SnapshotVerb,
};
pub(super) use volume::{
    VolumeArgs, VolumeCreateArgs, VolumeInspectArgs, VolumeLsArgs, VolumePruneArgs, VolumeRmArgs, VolumeVerb,
};

/// Runs any OCI image as a microVM or as a container, and measures the difference.
#[derive(Clone, Debug, Parser)]
#[command(name = "duplex", version, arg_required_else_help = true, disable_help_subcommand = true)]
pub(super) struct DuplexArgs {
    /// Options of every verb.
    #[command(flatten)]
    pub everywhere: EverywhereArgs,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options that every verb takes.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EverywhereArgs {
    /// Folder of the image store [default: /var/lib/duplex for root, else $XDG_DATA_HOME/duplex; environment: DUPLEX_ROOT]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    pub root: Option<PathBuf>,
    /// Fail rather than work in the lab where this host lacks something [environment: DUPLEX_NO_LAB=1]
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub no_lab: bool,
}

/// The verbs.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum Verb {
    /// Run an image as a microVM or as a container
    Run(Box<RunArgs>),
    /// Define a sandbox as 'run' would, without starting it
    Create(Box<RunArgs>),
    /// Start sandboxes that do not run
    Start(StartArgs),
    /// List sandboxes
    Ps(PsArgs),
    /// Tell where the ports of a sandbox are on this host
    Port(PortArgs),
    /// Show all that is known of sandboxes
    Inspect(InspectArgs),
    /// Show what a sandbox has written
    Logs(LogsArgs),
    /// Connect this terminal to a sandbox that runs
    Attach(AttachArgs),
    /// Run a further command in a sandbox that runs
    Exec(ExecArgs),
    /// Copy files out of a sandbox that runs, or into one
    Cp(CpArgs),
    /// List the processes of a sandbox
    Top(TopArgs),
    /// Show what sandboxes use, every second
    Stats(StatsArgs),
    /// Stop all processes of sandboxes where they are
    Pause(PauseArgs),
    /// Let paused sandboxes go on
    Unpause(PauseArgs),
    /// Ask sandboxes to end, and end them after a time
    Stop(StopArgs),
    /// Stop sandboxes and start them again
    Restart(StopArgs),
    /// Send sandboxes a signal
    Kill(KillArgs),
    /// Wait for the end of sandboxes and print their exit codes
    Wait(WaitArgs),
    /// Remove sandboxes
    Rm(RmArgs),
    /// Change the limits and the restart policy of sandboxes, those that run included
    Update(UpdateArgs),
    /// Give a sandbox another name
    Rename(RenameArgs),
    /// Remove all sandboxes that have ended
    Prune(PruneArgs),
    /// Disks that outlive sandboxes
    Volume(VolumeArgs),
    /// Saved machines, to go on from as often as wanted
    Snapshot(SnapshotArgs),
    /// Make new sandboxes that go on from where a microVM is now, or was when it was saved
    Fork(ForkArgs),
    /// Run one image both ways, taking turns, and measure what the difference costs
    Compare(Box<CompareArgs>),
    /// Fetch an image from a registry
    Pull(PullArgs),
    /// Take in an image archive: docker-archive, OCI archive or OCI layout folder
    Load(LoadArgs),
    /// List the images of the store
    Images(ImagesArgs),
    /// Remove images from the store
    Rmi(RmiArgs),
    /// Say what this host can do, and how to mend what it cannot
    Doctor(DoctorArgs),
    /// The emulated KVM host for machines without usable KVM
    Lab(LabArgs),
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        DuplexArgs::command().debug_assert();
    }

    #[derive(Debug, Parser)]
    #[command(disable_help_flag = true)]
    struct Run {
        #[command(flatten)]
        args: RunArgs,
    }

    fn run(words: &[&str]) -> RunArgs {
        Run::try_parse_from(["run"].iter().chain(words)).unwrap().args
    }

    #[test]
    fn options_behind_the_image_belong_to_the_command() {
        for (words, expected) in [
            (vec!["image", "-e", "A=1"], vec!["image", "-e", "A=1"]),
            (vec!["image", "--rm", "--help"], vec!["image", "--rm", "--help"]),
            (vec!["-i", "image", "sh", "-c", "exit 1"], vec!["image", "sh", "-c", "exit 1"]),
            (vec!["--", "image", "cat"], vec!["image", "cat"]),
            (vec!["image", "--", "cat"], vec!["image", "--", "cat"]),
        ] {
            assert_eq!(run(&words).image_and_command, expected, "{words:?}");
        }
    }

    #[test]
    fn short_options_bundle_as_docker_users_type_them() {
        let args = run(&["-it", "-eA=1", "-m512m", "-h", "name", "image"]);
        assert!(args.process.interactive && args.process.tty);
        assert_eq!((args.process.env, args.hostname), (vec!["A=1".to_owned()], Some("name".to_owned())));
    }

    #[test]
    fn a_run_needs_an_image() {
        assert!(Run::try_parse_from(["run", "--rm"]).is_err());
    }
}
