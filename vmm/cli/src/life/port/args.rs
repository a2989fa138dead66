//! Arguments of `nelly port`.

use clap::{Args, Subcommand};

/// The verbs of `nelly port`.
#[derive(Debug, Subcommand)]
pub(crate) enum PortVerb {
    /// List the published ports of a sandbox that runs
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Publish ports of a sandbox that runs
    Add(AddArgs),
    /// Publish ports of a sandbox no more
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

impl PortVerb {
    /// Whether errors are printed as JSON.
    pub(crate) fn json(&self) -> bool {
        matches!(self, Self::Ls(args) if args.json)
    }
}

/// `nelly port ls`.
#[derive(Debug, Args)]
#[command(
    after_help = "One line a port: where it listens on this host, where it leads to in the guest, connections that were accepted (of UDP: peers that were heard \
    of), and those that were turned away because there were too many. Ports of all sandboxes are a column of nelly ps.\n\n\
    Examples:\n  \
    nelly port ls web\n  \
    nelly port ls --json web | jq -r '.[].published'"
)]
pub(crate) struct LsArgs {
    /// The sandbox, by name, id or the beginning of an id
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: String,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly port add`.
#[derive(Debug, Args)]
#[command(
    after_help = "The grammar is that of run -p: on loopback unless BIND is given, HOST 0 is a free port, HOST and GUEST may be ranges. Each port that is \
    published is printed, with its number; the first that cannot be ends the command with code 1, and those that were printed stay published.\n\
    What is added stays until the machine ends: a start or restart publishes what run -p named. Any sandbox with --net user or on a network of \
    machines can have ports added; what has --net none, tap, unix or vhost-user cannot (nelly proxy reaches a container over vsock; a machine of nelly boot has none).\n\n\
    Examples:\n  \
    nelly port add web 8080:80\n  \
    nelly port add web 0:443 0.0.0.0:9000-9009:9000-9009 5353:53/udp"
)]
pub(crate) struct AddArgs {
    /// The sandbox, by name, id or the beginning of an id
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: String,
    /// A port of this host, and the one of the guest that it leads to
    #[arg(required = true, value_name = "[BIND:]HOST:GUEST[/udp]")]
    pub(crate) ports: Vec<String>,
}

/// `nelly port rm`.
#[derive(Debug, Args)]
#[command(
    after_help = "Nobody can connect to a port that was removed; connections that were accepted go on, and peers of a UDP port are forgotten. A port of \
    run -p can be removed, too: the next start publishes it again.\n\n\
    Examples:\n  \
    nelly port rm web 8080:80\n  \
    nelly port rm web $(nelly port ls --json web | jq -r '.[].published')"
)]
pub(crate) struct RmArgs {
    /// The sandbox, by name, id or the beginning of an id
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: String,
    /// A port as nelly port add and run -p have it, with the number that it listens at
    #[arg(required = true, value_name = "[BIND:]HOST:GUEST[/udp]")]
    pub(crate) ports: Vec<String>,
}
