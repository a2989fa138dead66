//! The flags of `nelly isolated`, `nelly host` and `nelly config show`.

use clap::{Args, ValueEnum};
use nelly_hydra::Profile;

/// `nelly isolated`.
#[derive(Debug, Args)]
#[command(
    after_help = "The environment variables of the Hydra scripts describe the machine. docs/hydra-variables.md lists them; nelly config show isolated prints what they say.\n\
        Image: a file in DEFAULT_DIR_IMAGE (image). If it is not there, it is fetched from DEFAULT_IMAGE_SOURCE_URL, once.\n\
        Login: ssh -p 5555 VM_USERNAME@localhost with a key; the console takes the password. The default one works on the console alone.\n\
        Stop: sudo poweroff in the guest. Ctrl-A x ends the machine at once, as a loss of power does.\n\
        Disk: the image is never written. isolated-disk.qcow2 beside it keeps what the guest writes; remove that file to begin anew.\n\n\
        Examples:\n  \
        KVM_MEMORY=4 VM_USERNAME=ada VM_SSH_KEY_FILENAME=ada.pub nelly isolated\n  \
        DRY_RUN_ONLY=1 nelly isolated                    the command of nelly boot that does the same\n  \
        nelly isolated -- -d --name dev                  in the background; nelly attach dev is its console\n  \
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
    after_help = "The environment variables of the Hydra scripts describe the machine. docs/hydra-variables.md lists them; nelly config show host prints what they say. \
        k3s is installed where ENABLE_K3S_DIOD=1 and K3S_VERSION_INSTALL names its program on this host.\n\
        Image: a file in DEFAULT_DIR_IMAGE (image-host). If it is not there, it is fetched from DEFAULT_IMAGE_SOURCE_URL, once.\n\
        Login: ssh -p 5555 VM_USERNAME@localhost with a key; the console takes the password. The default one works on the console alone.\n\
        Stop: sudo poweroff in the guest. Ctrl-A x ends the machine at once, as a loss of power does.\n\
        Disk: the image is never written. host-disk.qcow2 beside it keeps what the guest writes; remove that file to begin anew.\n\n\
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
    /// Print the settings of nelly isolated, isolated --bare or nelly host, as the variables of
    /// the Hydra scripts set them
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
