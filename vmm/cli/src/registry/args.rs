//! Arguments of the verbs for registries.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// When `run` pulls the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// If it is not in the local store
    #[default]
    Missing,
    /// Each time; what is there is not fetched again
    Always,
    /// Never
    Never,
}

/// `nelly image pull`.
#[derive(Debug, Args)]
#[command(
    after_help = "NAME is a name as docker spells it. Without a host it is on Docker Hub; without a tag, the tag is latest.\n\
    A URL, or a path that begins with / or ./, is the image of a disk, for nelly boot --image. It is fetched if it changed there, compared with --checksum, unpacked \
    (gzip, xz, zstd, bzip2, a file of a zip or tar archive) and kept under a name of its own, which is printed; no version is ever replaced. What came of an interrupted one is \
    gone on with. Its credentials are in --credentials FILE or $NELLY_CREDENTIALS: `bearer TOKEN`, `basic USER:PASSWORD` or `header NAME: VALUE`; they are shown to \
    the host of the URL alone.\n\n\
    Credentials come from nelly login, docker login and podman login. docs/registries.md tells about mirrors, proxies and certificates.\n\n\
    Examples:\n  \
    nelly image pull alpine\n  \
    nelly image pull quay.io/podman/hello:latest\n  \
    nelly image pull localhost:5000/app@sha256:4bcff6...\n  \
    nelly image pull --checksum sha512:9ac5... https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2\n  \
    nelly image pull -o disk.raw ./download.img.xz"
)]
pub(crate) struct PullArgs {
    /// Image to fetch: a name, or the URL or the path of a disk's image
    #[arg(value_name = "NAME|URL")]
    pub(crate) name: String,
    /// Fetch the image for this platform, linux/ARCHITECTURE [default: the host's]
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    #[command(flatten)]
    pub(crate) disk: DiskPullArgs,
    /// Print the digest only, of a disk the path
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// The flags of `nelly image pull` for the image of a disk.
#[derive(Debug, Default, Args)]
pub(crate) struct DiskPullArgs {
    /// Of a disk: write it to FILE, which must not exist, and not among the images that are kept
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Of a disk: what comes, before it is unpacked, must have this checksum
    #[arg(long, value_name = "sha256:HEX|sha512:HEX")]
    pub(crate) checksum: Option<String>,
    /// Of a disk: how it is packed, gz, xz, zst, bz2, zip, tar, tar.gz (and so on) or none
    /// [default: by the ending of its name, or by the first bytes of what a server sends]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) unpack: Option<String>,
    /// Of a disk in a zip or tar archive: the file in it [default: the only one]
    #[arg(long, value_name = "NAME")]
    pub(crate) member: Option<String>,
    /// Of a disk: raw or qcow2 [default: by what a server sends, or by the name of a file]
    #[arg(long, value_name = "FORMAT", conflicts_with = "output")]
    pub(crate) format: Option<String>,
    /// Of a disk: most bytes that come, and most that come out of it
    #[arg(long, value_name = "SIZE", default_value = "64G")]
    pub(crate) max_size: String,
    /// Of a disk: a file with what its server is shown (a terminal's list of processes would show
    /// it to others)
    #[arg(long, value_name = "FILE")]
    pub(crate) credentials: Option<PathBuf>,
}

/// `nelly image push`.
#[derive(Debug, Args)]
#[command(after_help = "Of an image for several platforms, that of this host is uploaded.\n\n\
    Examples:\n  \
    nelly image push localhost:5000/app:1.0\n  \
    nelly image push alpine registry.example/mirror/alpine:3.20")]
pub(crate) struct PushArgs {
    /// Image in the local store
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Where to upload it [default: where NAME is]
    #[arg(value_name = "TARGET")]
    pub(crate) target: Option<String>,
    /// Print the digest only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly login`.
#[derive(Debug, Args)]
#[command(
    after_help = "The password is checked, and then kept by the credential helper of docker's config.json, \
    or in that file ($REGISTRY_AUTH_FILE, else ~/.docker/config.json), where docker finds it as well.\n\n\
    Examples:\n  \
    nelly login\n  \
    pass registry | nelly login -u me --password-stdin registry.example"
)]
pub(crate) struct LoginArgs {
    /// Registry, HOST[:PORT]
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    pub(crate) registry: String,
    /// User name; asked for if it is not given
    #[arg(short, long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Read the password from standard input instead of asking for it
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

/// `nelly logout`.
#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// Registry, HOST[:PORT]
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    pub(crate) registry: String,
}
