//! The flags of `nelly isolated`, `nelly host` and `nelly config show`.

use clap::{Args, ValueEnum};
use nelly_hydra::Profile;

/// `nelly isolated`.
#[derive(Debug, Args)]
#[command(
    after_help = "The machine is described by the environment variables of the Hydra scripts, of which docs/hydra-variables.md is the table; \
        nelly config show isolated prints what they say. It boots the image in DEFAULT_DIR_IMAGE (image), which is not written: its disk is isolated-disk.qcow2 \
        beside it, so that the same command finds the same disk again. ssh is at port 5555 of loopback.\n\n\
        Examples:\n  \
        KVM_MEMORY=4 VM_USERNAME=ada VM_SSH_KEY_FILENAME=ada.pub nelly isolated\n  \
        DRY_RUN_ONLY=1 nelly isolated                    the command of nelly boot that does the same\n  \
        nelly isolated --bare                            a kernel and an initrd instead of an image\n  \
        nelly isolated -- --timeout 1h -p 8080:80        with flags of nelly boot"
)]
pub(crate) struct IsolatedArgs {
    /// Boot a kernel and an initrd instead of an image, as with RUN_BARE_KERNEL=1; they are in
    /// image-hydra-isolated-bare unless DEFAULT_DIR_IMAGE says otherwise
    #[arg(long)]
    pub(crate) bare: bool,
    #[command(flatten)]
    pub(crate) common: HydraArgs,
}

/// `nelly host`.
#[derive(Debug, Args)]
#[command(
    after_help = "The machine is described by the environment variables of the Hydra scripts, of which docs/hydra-variables.md is the table; \
        nelly config show host prints what they say. It boots the image in DEFAULT_DIR_IMAGE (image-host), which is not written: its disk is host-disk.qcow2 \
        beside it. k3s is not installed in it yet.\n\n\
        Examples:\n  \
        DEFAULT_KVM_HOST_SSHD_PORT=5556 nelly host      beside nelly isolated, which has port 5555\n  \
        nelly host --dry-run"
)]
pub(crate) struct HostArgs {
    #[command(flatten)]
    pub(crate) common: HydraArgs,
}

/// What both have.
#[derive(Debug, Args)]
pub(crate) struct HydraArgs {
    /// Print the command of nelly boot that does the same, and make nothing, as with DRY_RUN_ONLY=1
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Further flags of nelly boot
    #[arg(last = true, value_name = "FLAGS")]
    pub(crate) boot: Vec<String>,
}

/// `nelly config show`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nelly config show\n  \
    nelly config show isolated                       what the variables of the Hydra scripts say\n  \
    nelly config show host --json | jq -r '.[] | select(.key == \"ports\").value'")]
pub(crate) struct ShowArgs {
    /// Print the settings of nelly isolated (--bare: isolated-bare) or nelly host, which the
    /// variables of the Hydra scripts say
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: Option<MachineArg>,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// A machine that variables describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MachineArg {
    /// That of nelly isolated
    Isolated,
    /// That of nelly isolated --bare
    IsolatedBare,
    /// That of nelly host
    Host,
}

impl MachineArg {
    /// The profile.
    pub(crate) fn profile(self) -> Profile {
        match self {
            Self::Isolated => Profile::Isolated,
            Self::IsolatedBare => Profile::IsolatedBare,
            Self::Host => Profile::Host,
        }
    }
}
