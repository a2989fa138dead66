//! Arguments of `nelly ssh` and `nelly ssh-config`.

use clap::Args;

/// `nelly ssh`.
#[derive(Debug, Args)]
#[command(
    override_usage = "nelly ssh [USER@]SANDBOX [COMMAND [ARG...]]",
    after_help = "For machines of nelly boot -d that have keys for ssh: with a seed, which an image has unless there is --no-seed, nelly boot -d makes them and publishes a free port \
    of loopback, unless --user-data or --meta-data is given; --ssh-dir and -p PORT:22 choose others. The ssh program of this host is started in place of nelly, with the machine's own key, and takes no other host key than the one \
    that the seed gave the guest: exit code and streams are those of ssh, and of the command. A failure of nelly has the code 125.\n\
    Words of COMMAND are joined with blanks and read by the guest's shell, as those of ssh are. Where it is not known which user the guest has, say USER@SANDBOX.\n\n\
    Examples:\n  \
    nelly boot -d --name dev --image debian.qcow2 -m 1G\n  \
    nelly ssh dev\n  \
    nelly ssh dev uname -a\n  \
    nelly ssh ada@dev -- systemctl --failed\n  \
    tar c ./src | nelly ssh dev tar x"
)]
pub(crate) struct SshArgs {
    /// The machine, by name, id or the beginning of an id, perhaps with a user of the guest before
    /// it: USER@SANDBOX
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: String,
    /// A command for the guest's shell, instead of a login
    #[arg(value_name = "COMMAND [ARG...]", trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
}

/// `nelly ssh-config`.
#[derive(Debug, Args)]
#[command(
    after_help = "So ssh, scp, rsync and editors find the machine by its name: in a file that is written anew after each start, for the port is then another one unless -p chose it, and that \
    ~/.ssh/config names in its first line (Include nelly.config).\n\n\
    Examples:\n  \
    nelly ssh-config >~/.ssh/nelly.config\n  \
    nelly ssh-config dev >dev.config && scp -F dev.config dev:/etc/hostname ."
)]
pub(crate) struct SshConfigArgs {
    /// The machine, by name, id or the beginning of an id [default: all that run and have keys and
    /// a port]
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: Option<String>,
}
