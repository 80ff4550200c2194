//! Verbs about this host: `doctor` and `lab`.

use clap::{Args, Subcommand};

use super::Format;
use crate::spec::MemorySize;

/// Say what this host can do, and how to mend what it cannot
#[derive(Args, Clone, Debug)]
pub(crate) struct DoctorArgs {
    /// How the findings are printed
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    /// Look at what weakens the walls between sandboxes: flaws of the processor, settings and age of the kernel
    #[arg(long)]
    pub security: bool,
}

/// The emulated KVM host for machines without usable KVM
#[derive(Args, Clone, Debug)]
pub(crate) struct LabArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub verb: LabVerb,
}

/// What to do with the lab.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum LabVerb {
    /// Start it, or find the one that runs
    Start(LabStartArgs),
    /// Stop it
    Stop,
    /// Say whether it runs
    Status(LabStatusArgs),
    /// Run a command in it; starts it if need be
    Run {
        /// The command
        #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
}

/// Say whether it runs
#[derive(Args, Clone, Debug)]
pub(crate) struct LabStatusArgs {
    /// How it is printed
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Start it, or find the one that runs
#[derive(Args, Clone, Debug)]
pub(crate) struct LabStartArgs {
    /// It stops by itself after this many seconds without a command [default: 900]
    #[arg(long, value_name = "SECONDS")]
    pub idle: Option<u64>,
    /// Its memory [default: 6g, or half of what is free]
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,
}
