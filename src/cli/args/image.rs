//! Verbs of the image store.

use std::path::PathBuf;

use clap::Args;

use super::Format;

/// Fetch an image from a registry
#[derive(Args, Clone, Debug)]
pub(crate) struct PullArgs {
    /// Print the digest only
    #[arg(short, long)]
    pub quiet: bool,
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
