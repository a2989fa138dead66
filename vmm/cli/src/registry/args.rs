//! Arguments of the verbs for registries.

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
    Credentials come from nelly login, docker login and podman login. docs/registries.md tells about mirrors, proxies and certificates.\n\n\
    Examples:\n  \
    nelly image pull alpine\n  \
    nelly image pull quay.io/podman/hello:latest\n  \
    nelly image pull localhost:5000/app@sha256:4bcff6..."
)]
pub(crate) struct PullArgs {
    /// Image to fetch
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Fetch the image for this platform, linux/ARCHITECTURE [default: the host's]
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Print the digest only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
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
