//! Arguments of `nelly network`.

use clap::{Args, Subcommand};

/// The verbs of `nelly network`.
#[derive(Debug, Subcommand)]
pub(crate) enum NetworkVerb {
    /// Make a network that machines can join
    Create(CreateArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Remove networks that no sandbox is on
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Show networks and the machines on them, as JSON (schema 1)
    Inspect(InspectArgs),
}

impl NetworkVerb {
    /// Whether errors are printed as JSON.
    pub(crate) fn json(&self) -> bool {
        matches!(self, Self::Ls(args) if args.json)
    }
}

/// `nelly network create`.
#[derive(Debug, Args)]
#[command(
    after_help = "Prints the name. Machines join with nelly run --network NAME, and reach each other by address, by name and by alias. The first two addresses \
    of a network are those of the gateway and of the resolver, which each machine has for itself.\n\n\
    Examples:\n  \
    nelly network create dev\n  \
    nelly network create --isolated --label stage=test lab\n  \
    nelly network create --subnet 10.7.0.0/24 --subnet6 fd07::/64 fixed\n  \
    nelly run -d --name db --network dev,alias=store postgres:17"
)]
pub(crate) struct CreateArgs {
    /// IPv4 prefix, /8 to /29 [default: the first free /24 of 10.89.0.0/16, then of 172.29.0.0/16
    /// and 192.168.128.0/17]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) subnet: Option<String>,
    /// IPv6 prefix, a /64 [default: one of fd00::/8 that belongs to the network's id]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) subnet6: Option<String>,
    /// Let no machine of it reach anything but the others, and ask for no other names
    #[arg(long, visible_alias = "internal")]
    pub(crate) isolated: bool,
    /// Label for filters; may be repeated
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) label: Vec<String>,
    /// Its name: letters in small, digits, and _ . -
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// `nelly network ls`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nelly network ls\n  \
    nelly network ls -q --filter label=stage=test | xargs -r nelly network rm")]
pub(crate) struct LsArgs {
    /// Print names only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// List only networks that fit: name=PART, id=PREFIX, label=KEY[=VALUE]; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// Print JSON (schema 1)
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,
}

/// `nelly network rm`.
#[derive(Debug, Args)]
#[command(
    after_help = "A network that a sandbox is on, running or not, is not removed: remove the sandbox first.\n\n\
    Examples:\n  \
    nelly network rm dev\n  \
    nelly rm -f web db && nelly network rm -f dev lab"
)]
pub(crate) struct RmArgs {
    /// A network that is not there is no error
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Networks, by name
    #[arg(required = true, value_name = "NETWORK")]
    pub(crate) names: Vec<String>,
}

/// `nelly network inspect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Of each machine that runs, frames and bytes are counted, and those that were dropped, by reason.\n\n\
    Example:\n  nelly network inspect dev"
)]
pub(crate) struct InspectArgs {
    /// Networks, by name
    #[arg(required = true, value_name = "NETWORK")]
    pub(crate) names: Vec<String>,
}
