//! The flags of `nelly boot`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::machine_args::MachineArgs;
use crate::network_args::NetworkArgs;
use crate::relay_args::BootRelayArgs;
use crate::seed_args::{SEED_FLAGS, SeedArgs};

/// The value of `--on-reset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnResetArg {
    /// End with exit code 0
    Exit,
    /// Start the machine again
    Reboot,
}

/// The value of `--protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProtocolArg {
    /// Chosen by the type of the file
    Auto,
    /// An ELF file, at Linux's 64-bit entry point
    Elf64,
    /// An ELF file, at its PVH entry point
    Pvh,
    /// A bzImage, at its 64-bit entry point
    Bzimage,
}

/// The value of `--platform`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlatformArg {
    /// Chosen by the configuration embedded in the kernel, if there is one
    Auto,
    /// An MP table, and virtio-mmio devices on the command line
    Mptable,
    /// Hardware-reduced ACPI
    Acpi,
}

/// `nelly boot`.
#[derive(Clone, Debug, Args)]
#[command(
    override_usage = "nelly boot [OPTIONS] --kernel <FILE>\n       nelly boot [OPTIONS] --image <FILE|URL[,OPTION...]>",
    after_help = "The machine's serial port is connected to stdin and stdout. On a terminal, Ctrl-A x stops the machine.\n\n\
    Examples:\n  \
    nelly boot --image debian.qcow2 -m 1G                                 a cloud image, without firmware; nothing stays\n  \
    nelly boot --image debian.qcow2,overlay=web.qcow2,size=20G -m 1G       what it writes is kept in web.qcow2\n  \
    nelly boot -d --name web --image debian.qcow2,size=20G -m 1G           in the background, with a disk of its own\n  \
    nelly boot -d --name web --image debian.qcow2 -m 1G --agent            then: nelly exec -it web bash, nelly cp web:/etc/fstab .\n  \
    nelly boot -d --name web --image debian.qcow2 -m 1G --agent --relay ./containerd.sock=/run/containerd/containerd.sock\n  \
    nelly boot --image debian.qcow2 --append systemd.unit=rescue.target    words added to the image's command line\n  \
    nelly boot --kernel vmlinux --initrd initramfs.cpio --append 'console=ttyS0'\n  \
    nelly boot --kernel bzImage --disk root.img --append 'console=ttyS0 root=/dev/vda rw' -m 2G\n  \
    nelly boot --kernel bzImage --disk root.img --append 'console=ttyS0 root=/dev/vda rw' --net user -p 2222:22    DHCP; ssh by port 2222 of this host\n  \
    nelly boot --kernel bzImage --disk root.img --append 'console=ttyS0 root=/dev/vda rw' --share work=./project    in the guest: mount -t virtiofs work /mnt\n  \
    nelly boot --kernel bzImage --disk debian.qcow2,overlay=web.qcow2,size=20G --append 'console=ttyS0 root=/dev/vda1 rw'\n  \
    nelly boot --image debian.qcow2,overlay=web.qcow2 -m 1G --net user --user ada --ssh-dir web.keys -p 2222:22\n\n\
    --image boots what the image's boot loader would: its partition table, file systems and grub.cfg, loader/entries or extlinux.conf are read on this host. \
    nelly disk boot-entries shows what is found. The image of a URL is fetched once, as nelly image pull does, and is never written. Without rw, overlay or ephemeral, the image is not written and nothing stays.\n\n\
    With -d the machine lives as a sandbox does: nelly attach is its console, nelly stop presses its power button, nelly start boots the same disk again, which lies in \
    the machine's directory until nelly rm. Without --agent, nelly exec, cp, top, stats and others do not reach into it. With a seed, and without --user-data and \
--meta-data, it gets keys of its own and a free port of loopback that leads to its port 22, for nelly ssh (--net none leaves the port out).\n\n\
    --image, and any flag for cloud-init, attaches a seed as the last disk. In the foreground it is in memory only. With -d it is also a file in the machine's directory, with \
    password hashes and host key, until nelly rm or a start with --no-seed. nelly disk seed makes the same one as a file. \
    Unless passwords, keys or user data are given, ssh's usual keys of yours (~/.ssh/id_*.pub) are let in.\n\n\
    Options of --disk and --image:\n  \
    ro, readonly       the guest may only read it\n  \
    rw                 what the guest writes goes into FILE (the default of --disk)\n  \
    overlay=PATH       FILE stays as it is: what the guest writes goes into the qcow2 image PATH, which is created if it is not there\n  \
    ephemeral          FILE stays as it is: what the guest writes is gone when the machine ends (the default of --image)\n  \
    size=SIZE          make the disk at least so large before the start, such as 20G\n  \
    format=FORMAT      raw or qcow2; it is never found out from what FILE holds\n  \
    bps=SIZE, iops=N   at most so many bytes, such as 50M, and so many requests in a second\n  \
    threads=N          serve so many requests at once that wait for this host, 1 to 16 (default 4, from the ninth disk on 1)\n  \
    sectors=BYTES      sectors of 512 (the default) or 4096 bytes\n  \
    backing-anywhere   open backing files outside of the directory of the image that names them, too\n  \
    checksum=SUM       of a URL: what comes has this checksum, sha256:HEX or sha512:HEX\n\
    A comma in FILE is written twice."
)]
pub(crate) struct BootArgs {
    /// Kernel to boot: vmlinux (ELF) or bzImage, or one of these compressed by gzip, zstd, lz4 or
    /// xz; with --image, instead of the image's
    #[arg(long, value_name = "FILE", required_unless_present = "image")]
    pub(crate) kernel: Option<PathBuf>,
    /// Initramfs for the kernel; with --image, instead of the image's
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// Boot a cloud image, which is the first disk, with the kernel, initrds and command line that
    /// its boot loader would take; with the options of --disk after commas, see below
    #[arg(long, value_name = "FILE|URL[,OPTION...]")]
    pub(crate) image: Option<String>,
    /// Boot another entry of the image's boot loader than its default: a title or a kernel as nelly
    /// disk boot-entries shows them, or the loader's id
    #[arg(long, value_name = "ENTRY", requires = "image")]
    pub(crate) entry: Option<String>,
    /// Attach a disk image or block device (the first one is /dev/vda, or /dev/vdb behind
    /// --image), with options after commas:
    /// format=raw|qcow2 (default: qcow2 if the name ends so, else raw), ro, rw, overlay=PATH,
    /// ephemeral, size=SIZE, bps=SIZE, iops=N and others, see below
    #[arg(long, value_name = "FILE[,OPTION...]")]
    pub(crate) disk: Vec<String>,
    /// Share a directory or a file of this host, which the guest mounts by its TAG (`mount -t
    /// virtiofs TAG PLACE`); :ro makes it read-only
    #[arg(long, value_name = "TAG=HOST[:ro]")]
    pub(crate) share: Vec<String>,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Write one JSON object {reason, hint, timeline, exits, starts, faults, confinement} to FILE
    /// or file descriptor N
    #[arg(long, value_name = "FILE|fd:N")]
    pub(crate) result: Option<String>,
    /// What to do when the guest resets the machine [default: exit; with --image, reboot]
    #[arg(long, value_name = "WHAT")]
    pub(crate) on_reset: Option<OnResetArg>,
    /// Boot protocol of the kernel
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub(crate) protocol: ProtocolArg,
    /// How the kernel is told about its hardware
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub(crate) platform: PlatformArg,
    /// Attach no seed to an image, which has one of its own or no cloud-init
    #[arg(long, requires = "image", conflicts_with_all = SEED_FLAGS)]
    pub(crate) no_seed: bool,
    #[command(flatten)]
    pub(crate) seed: SeedArgs,
    /// Bring Nelly's agent to a guest with cloud-init and systemd, which starts it as a service at
    /// each boot: nelly exec, cp, top, stats and relays then reach into the machine, its clock is
    /// set, and nelly stop asks the guest
    #[arg(long, requires = "detach", conflicts_with = "no_seed")]
    pub(crate) agent: bool,
    #[command(flatten)]
    pub(crate) relay: BootRelayArgs,
    /// Boot in the background, and print the id: the machine lives on as a sandbox does (nelly ps,
    /// attach, logs, stop, start, rm). An image is then written in a disk of the machine's own,
    /// which nelly rm removes
    #[arg(short, long, conflicts_with = "dry_run")]
    pub(crate) detach: bool,
    /// Name of the machine; with that of one that does not run, its disk is booted again, with
    /// these flags [default: two words]
    #[arg(long, value_name = "NAME", requires = "detach")]
    pub(crate) name: Option<String>,
}
