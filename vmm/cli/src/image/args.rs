//! The arguments of `nelly image`.

use std::path::PathBuf;

use super::engine::Engine;
use clap::{Args, Subcommand, ValueEnum};

use crate::registry::args::{PullArgs, PushArgs};

/// The verbs of `nelly image`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Fetch an image from its registry into the local store
    Pull(PullArgs),
    /// Upload an image of the local store to a registry
    Push(PushArgs),
    /// List the images of the local store, and the fetched images of disks
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show the configuration, layers and cache of images, and what would run them
    Inspect(InspectArgs),
    /// Show how an image was made, the last step first
    History(HistoryArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Remove images by name or id, with the files that no other image needs, and fetched disks
    Rm(RmArgs),
    /// Remove images without a name, unfinished downloads and old cache files
    Prune(PruneArgs),
    /// Add the images of an OCI or docker archive to the local store
    Load(LoadArgs),
    /// Write images of the local store to an archive
    Save(SaveArgs),
}

impl ImageVerb {
    /// Whether errors are printed as JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Pull(args) => args.json,
            Self::Push(args) => args.json,
            Self::Ls(args) => args.json,
            Self::Inspect(args) => args.json,
            Self::History(args) => args.json,
            Self::Rm(args) => args.json,
            Self::Prune(args) => args.json,
            Self::Load(args) => args.json,
            Self::Tag(_) | Self::Save(_) => false,
        }
    }
}

/// `nelly image ls`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nelly image ls\n  \
    nelly image ls -q --filter dangling=true\n  \
    nelly image ls --filter 'reference=example.org/*' --filter label=stage=test --json")]
pub(crate) struct LsArgs {
    /// Print image ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print whole ids
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Show only images that fit: dangling=true|false, reference=PATTERN (* and ? stand for any
    /// characters), label=KEY[=VALUE]; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly image inspect`.
#[derive(Debug, Args)]
#[command(after_help = "IMAGE is as in nelly run, or the first digits of an id.\n\nExamples:\n  \
    nelly image inspect alpine:3.20\n  \
    nelly image inspect --json 3f2a91c04b7d oci:./image")]
pub(crate) struct InspectArgs {
    /// Images, by name, id or place
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly image history`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nelly image history alpine:3.20\n  nelly image history --no-trunc app")]
pub(crate) struct HistoryArgs {
    /// The image, by name, id or place
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Print whole commands
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly image tag`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nelly image tag app:test example.org/team/app:1.2")]
pub(crate) struct TagArgs {
    /// An image of the local store, by name or id
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// The new name
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) name: String,
}

/// `nelly image rm`.
#[derive(Debug, Args)]
#[command(
    after_help = "An image that a sandbox uses is not removed, and neither is a disk that a machine or an overlay needs which nelly boot was told of. \
    Overlays that other programs made are not known.\n\nExamples:\n  \
    nelly image rm app:test\n  \
    nelly image rm -f 3f2a91c04b7d    with all of its names\n  \
    nelly image rm debian-12-genericcloud-amd64.qcow2"
)]
pub(crate) struct RmArgs {
    /// Images of the local store, by name or id; fetched disks, by name, id or path
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
    /// Remove all names of an image that is given by its id; an image that does not exist is no
    /// error
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly image prune`.
#[derive(Debug, Args)]
#[command(after_help = "An image that a sandbox uses is not removed.\n\nExamples:\n  \
    nelly image prune       what lost its name, is unfinished, or is of an older version\n  \
    nelly image prune -a    every image that no sandbox uses, too")]
pub(crate) struct PruneArgs {
    /// Remove every image that no sandbox uses, and its cache
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly image load`.
#[derive(Debug, Args)]
#[command(
    after_help = "The archive may be compressed with gzip or zstd. Images keep the names that it gives them.\n\
    --from runs `docker save` or `podman save` as this user and reads what it writes.\n\n\
    Examples:\n  \
    docker save alpine | nelly image load\n  \
    nelly image load --from podman alpine localhost/app:test\n  \
    nelly image load -i image.tar.gz --name app:test"
)]
pub(crate) struct LoadArgs {
    /// With --from: the images, by their names there
    #[arg(value_name = "IMAGE", requires = "from")]
    pub(crate) images: Vec<String>,
    /// Take images out of the store of another engine, by its own command
    #[arg(long, value_name = "ENGINE", requires = "images", conflicts_with = "input")]
    pub(crate) from: Option<Engine>,
    /// The archive [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// The name of the image; the archive must hold one only
    #[arg(long, value_name = "NAME[:TAG]")]
    pub(crate) name: Option<String>,
    /// Print ids only, and no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// The value of `save --format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// An OCI image layout: every digest stays the same
    Oci,
    /// As docker save writes it
    Docker,
}

/// `nelly image save`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nelly image save app:test | zstd > app.tar.zst\n  \
    nelly image save --format docker -o app.tar app:test && docker load -i app.tar")]
pub(crate) struct SaveArgs {
    /// Images of the local store, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
    /// The archive [default: standard output, if it is not a terminal]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// The form of the archive
    #[arg(long, value_name = "FORM", default_value = "oci")]
    pub(crate) format: FormatArg,
    /// Print no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}
