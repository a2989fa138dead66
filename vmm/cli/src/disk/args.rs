//! Arguments of `nelly disk`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// The verbs of `nelly disk`.
#[derive(Debug, Subcommand)]
pub(crate) enum DiskVerb {
    /// Create an empty disk image, or one that is a change of another
    Create(CreateArgs),
    /// Show what an image says of itself
    Info(InfoArgs),
    /// Make the disk of an image larger
    Resize(ResizeArgs),
    /// Copy a disk into a new image of another format, without its zeroes
    Convert(ConvertArgs),
    /// Check the metadata of a qcow2 image
    Check(CheckArgs),
    /// List what of a disk is data, and where it lies
    Map(MapArgs),
    /// Show how a cloud image boots: kernel, initrd and command line of each entry
    BootEntries(super::boot_entries::BootEntriesArgs),
    /// Create a seed for cloud-init: user, keys, host name and more for a cloud image
    Seed(Box<super::seed::SeedImageArgs>),
}

impl DiskVerb {
    /// Whether errors are printed as JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Create(args) => args.json,
            Self::Info(args) => args.json,
            Self::Resize(args) => args.json,
            Self::Convert(args) => args.json,
            Self::Check(args) => args.json,
            Self::Map(args) => args.json,
            Self::BootEntries(args) => args.json,
            Self::Seed(args) => args.json,
        }
    }
}

/// The format of an image. It is never found out from what the image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// The disk byte for byte
    Raw,
    /// QEMU's format, version 2 or 3
    Qcow2,
}

/// `nelly disk create`.
#[derive(Debug, Args)]
#[command(
    after_help = "Where a file exists, nothing is created. With --backing the image holds what differs from BASE, which must not change any more; \
    its size is BASE's unless SIZE is given. BASE is named relative to the image if it lies beside or below it, otherwise by its whole path.\n\n\
    Examples:\n  \
    nelly disk create data.qcow2 20G\n  \
    nelly disk create data.raw 512M\n  \
    nelly disk create --backing debian.img --backing-format qcow2 web.qcow2\n  \
    nelly disk create --backing base.raw --backing-format raw web.qcow2 40G"
)]
pub(crate) struct CreateArgs {
    /// The image to create
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Size of the disk, such as 512M or 20G (binary)
    #[arg(value_name = "SIZE", required_unless_present = "backing")]
    pub(crate) size: Option<String>,
    /// Format of the image [default: by the ending .qcow2 or .raw of its name]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatArg>,
    /// Size of the clusters of qcow2, 512 bytes (0.5K) to 2M, a power of two
    #[arg(long, value_name = "SIZE", default_value = "64K")]
    pub(crate) cluster_size: String,
    /// The image that the new one is a change of
    #[arg(long, value_name = "BASE", requires = "backing_format")]
    pub(crate) backing: Option<PathBuf>,
    /// Format of BASE
    #[arg(long, value_name = "FORMAT", requires = "backing")]
    pub(crate) backing_format: Option<FormatArg>,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly disk info`.
#[derive(Debug, Args)]
#[command(after_help = "The image may be in use. Its backing file is named, not opened.\n\nExamples:\n  \
    nelly disk info web.qcow2\n  \
    nelly disk info --json --format qcow2 debian.img | jq .size_bytes")]
pub(crate) struct InfoArgs {
    /// The image
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Format of the image [default: by the ending .qcow2 or .raw of its name]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatArg>,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly disk resize`.
#[derive(Debug, Args)]
#[command(
    after_help = "What is added reads as zeroes. A disk is never made smaller. The image must not be in use.\n\n\
    Examples:\n  \
    nelly disk resize web.qcow2 40G\n  \
    nelly disk resize --format raw disk.img 10G"
)]
pub(crate) struct ResizeArgs {
    /// The image
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// New size of the disk, such as 40G (binary)
    #[arg(value_name = "SIZE")]
    pub(crate) size: String,
    /// Format of the image [default: by the ending .qcow2 or .raw of its name]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatArg>,
    /// Open backing files that lie outside of the directory of the image that names them, too
    #[arg(long)]
    pub(crate) backing_anywhere: bool,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly disk convert`.
#[derive(Debug, Args)]
#[command(
    after_help = "The new image has all of the disk, what lies in backing files too. It has its name when it is whole; where a file exists, nothing is written.\n\n\
    Examples:\n  \
    nelly disk convert debian.qcow2 debian.raw\n  \
    nelly disk convert --format qcow2 --to raw download.img disk.img"
)]
pub(crate) struct ConvertArgs {
    /// The image to copy
    #[arg(value_name = "SOURCE")]
    pub(crate) source: PathBuf,
    /// The image to create
    #[arg(value_name = "TARGET")]
    pub(crate) target: PathBuf,
    /// Format of SOURCE [default: by the ending .qcow2 or .raw of its name]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatArg>,
    /// Format of TARGET [default: by the ending .qcow2 or .raw of its name]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: Option<FormatArg>,
    /// Size of the clusters of qcow2, 512 bytes (0.5K) to 2M, a power of two
    #[arg(long, value_name = "SIZE", default_value = "64K")]
    pub(crate) cluster_size: String,
    /// Open backing files that lie outside of the directory of the image that names them, too
    #[arg(long)]
    pub(crate) backing_anywhere: bool,
    /// Print no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly disk check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Leaks take space and are harmless; corruptions can lose data, and end the command with code 1. The image is only read, \
    and must not be in use.\n\n\
    Examples:\n  \
    nelly disk check web.qcow2\n  \
    nelly disk check --json web.qcow2 | jq .leaks"
)]
pub(crate) struct CheckArgs {
    /// A qcow2 image, whatever its name
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Print no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly disk map`.
#[derive(Debug, Args)]
#[command(
    after_help = "One line a range: where it begins and its bytes, what it is (data, compressed, zero), how many backing files below the \
    image it lies, and where in that file. The image must not be in use.\n\n\
    Examples:\n  \
    nelly disk map web.qcow2\n  \
    nelly disk map --json web.qcow2 | jq '[.[] | select(.kind == \"data\").len_bytes] | add'"
)]
pub(crate) struct MapArgs {
    /// The image
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Format of the image [default: by the ending .qcow2 or .raw of its name]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatArg>,
    /// Open backing files that lie outside of the directory of the image that names them, too
    #[arg(long)]
    pub(crate) backing_anywhere: bool,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}
