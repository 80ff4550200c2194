//! Verbs of the image store.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::Format;
use crate::image::layer::Budget;
use crate::spec::MemorySize;

/// Fetch an image from a registry
#[derive(Args, Clone, Debug)]
pub(crate) struct PullArgs {
    /// Print the digest only
    #[arg(short, long)]
    pub quiet: bool,
    /// Seconds without progress after which the registry has stalled
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub stall: u64,
    #[command(flatten)]
    pub budget: BudgetArgs,
    /// NAME[:TAG][@DIGEST]
    pub image: String,
}

/// Take in an image archive: docker-archive, OCI archive or OCI layout folder
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// The archive or layout folder [default: an archive on standard input]
    #[arg(short, long, value_name = "PATH")]
    pub input: Option<PathBuf>,
    /// Print the names only
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub budget: BudgetArgs,
}

/// What an image may cost.
#[derive(Args, Clone, Debug)]
pub(crate) struct BudgetArgs {
    /// Another limit of what the image may cost, by the name that errors give it: time=60, data_bytes=1g; again for more
    #[arg(long = "limit", value_name = "NAME=VALUE", long_help = budget_help())]
    pub limits: Vec<BudgetLimit>,
}

/// One limit and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BudgetLimit {
    pub(crate) name: String,
    pub(crate) value: u64,
}

impl FromStr for BudgetLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("it is not NAME=VALUE")?;
        if Budget::default().get(name).is_none() {
            return Err(format!(
                "no limit has this name; there are {}",
                Budget::names().collect::<Vec<_>>().join(", ")
            ));
        }
        let value = match value.parse() {
            Ok(value) => value,
            Err(_) => value.parse::<MemorySize>().map_err(|_| "the value is not a number, or a size such as 64m")?.0,
        };
        let too_high = |most| format!("the highest value is {most}");
        Budget::default().set(name, value).map_err(too_high)?;
        Ok(Self { name: name.to_owned(), value })
    }
}

fn budget_help() -> String {
    let budget = Budget::default();
    let all = Budget::names().map(|name| format!("{name}={}", budget.get(name).unwrap_or_default()));
    format!(
        "Another limit of what the image may cost, by the name that errors give it; again for more. Sizes are bytes (k, m and g are known), \
         'time' is seconds. If not given: {}",
        all.collect::<Vec<_>>().join(", ")
    )
}

/// List the images of the store
#[derive(Args, Clone, Debug)]
pub(crate) struct ImagesArgs {
    /// Print digests only
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten digests
    #[arg(long)]
    pub no_trunc: bool,
    /// How the list is printed
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Remove images from the store
#[derive(Args, Clone, Debug)]
pub(crate) struct RmiArgs {
    /// The images, by name or digest
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}
