//! Converts flags to a machine's configuration. Errors name the flag.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, anyhow, bail};
use nelly_sandbox::network::{NetworkError, Usernet, open_log};
use nelly_sandbox::spec::quantity::{self, Time};
use nelly_sandbox::spec::{Network, ShareRequest};
use nelly_vmm::boot::refuse_foreign;
use nelly_vmm::config::{
    BootProtocol, CommandLine, Confine, CpuCount, FileSource, MachineConfig, MemorySize, MonitorUser,
    OnReset, Platform, ShareConfig, ShareTag,
};
use nelly_vmm::sys::files::{self, Accept};

use crate::fail::{OfFlag as _, Usage};
use crate::settings::{SettingSource, Settings};
use crate::vcpus;
use crate::{boot_args, boot_paths, machine_args, monitor_user, out};

/// The options that `run` and `boot` have in common.
pub(crate) struct MachineOptions {
    pub(crate) cpus: CpuCount,
    pub(crate) memory: MemorySize,
    pub(crate) nested: bool,
    pub(crate) confine: Confine,
    pub(crate) monitor_user: Option<MonitorUser>,
    pub(crate) append: CommandLine,
    pub(crate) timeout: Option<std::time::Duration>,
}

impl MachineOptions {
    /// Refuses what a user of the monitor's own could not do.
    pub(crate) fn shares(&self, any: bool) -> Result<()> {
        if self.monitor_user.is_some() && any {
            return Err(Usage::error(
                "--monitor-user: not with directories of the host (-v, --mount, --share), in which a guest acts on files of all users",
            ));
        }
        Ok(())
    }
}

/// Evaluates the common flags and their settings.
pub(crate) fn common(args: &machine_args::MachineArgs, settings: &Settings) -> Result<MachineOptions> {
    let cpus = args.cpus.map(|cpus| cpus.to_string());
    let (cpus, source) = settings.get("cpus", cpus.as_deref());
    let count = vcpus::whole(&cpus).and_then(|cpus| CpuCount::new(u64::from(cpus)));
    let cpus = count.map_err(|reason| refused("cpus", &source, reason))?;
    let (memory, source) = settings.get("memory", args.memory.as_deref());
    let bytes = quantity::bytes(&memory).map_err(|reason| refused("memory", &source, reason))?;
    let what = format!("memory {memory}");
    let memory_size = MemorySize::new(bytes).map_err(|reason| refused(&what, &source, reason))?;
    // The monitor checks this as well, but only after the image was unpacked.
    if let Ok(host) = nelly_vmm::sys::host::memory_bytes()
        && bytes > host
    {
        return Err(refused(&what, &source, format_args!("this host has only {} MiB", host >> 20)));
    }
    let (append, source) = settings.get("append", args.append.as_deref());
    let append = CommandLine::new(append).map_err(|reason| refused("append", &source, reason))?;
    let timeout =
        args.timeout.as_deref().map(|text| Time::LIMIT.parse(text)).transpose().of_flag("--timeout")?;
    let confine = match args.confine {
        Some(machine_args::ConfineArg::Strict) => Confine::Strict,
        Some(machine_args::ConfineArg::On) | None => Confine::On,
        Some(machine_args::ConfineArg::Off) => {
            out::message(
                "warning: --confine off: nelly-monitor keeps all rights of this user, for a guest that takes it over",
            );
            Confine::Off
        }
    };
    let monitor_user = args.monitor_user.as_deref().map(monitor_user::of).transpose()?;
    if monitor_user.is_some() && confine == Confine::Off {
        return Err(Usage::error("--monitor-user: not with --confine off, which keeps all of root's rights"));
    }
    let nested = args.nested;
    Ok(MachineOptions { cpus, memory: memory_size, nested, confine, monitor_user, append, timeout })
}

/// Why the value of a setting cannot be. That of a flag is an error of how the command was used.
fn refused(what: &str, source: &SettingSource, reason: impl Display) -> Error {
    let sentence = format!("{what} (from {source}): {reason}");
    match source {
        SettingSource::Flag(_) => Usage::error(sentence),
        _ => Error::msg(sentence),
    }
}

/// Opens a file that is named by a flag, and checks before the start that it exists, is not empty
/// and has the right type.
pub(crate) fn open(flag: &str, path: &Path, accept: Accept) -> Result<File> {
    let file = files::open(path, OpenOptions::new().read(true), accept)
        .with_context(|| format!("{flag}: cannot use {}", path.display()))?;
    let meta = file.metadata().with_context(|| format!("{flag}: cannot use {}", path.display()))?;
    if meta.is_file() && meta.len() == 0 {
        bail!("{flag}: {} is empty", path.display());
    }
    Ok(file)
}

/// Opens the kernel of `--kernel` as [`open`] does, and refuses one for another processor than this
/// host's: the monitor would, too, but is a process that has begun by then.
pub(crate) fn kernel(path: &Path) -> Result<File> {
    let file = open("--kernel", path, Accept::Regular)?;
    refuse_foreign(&path.display().to_string(), &file, std::env::consts::ARCH)?;
    Ok(file)
}

/// What a machine boots.
#[derive(Debug)]
pub(crate) struct Boot {
    /// The kernel.
    pub(crate) kernel: FileSource,
    /// All of the initrds.
    pub(crate) initrd: Option<FileSource>,
    /// The command line, to which `--append` adds.
    pub(crate) command_line: String,
    /// Whether a disk image says so.
    pub(crate) of_image: bool,
}

/// The command line of an image with what `--append` adds.
fn appended(image: &str, append: CommandLine) -> Result<CommandLine> {
    let words: Vec<&str> = [image, append.as_str()].into_iter().filter(|words| !words.is_empty()).collect();
    CommandLine::new(words.join(" "))
        .map_err(|reason| anyhow!("the command line of the image with that of --append: {reason}"))
}

/// The configuration of the machine of `nelly boot`; its disks are not in it yet. `own` are
/// directories that no guest may write to.
pub(crate) fn boot(
    args: &boot_args::BootArgs,
    common: MachineOptions,
    boot: Boot,
    own: &[PathBuf],
) -> Result<MachineConfig> {
    let mut config = MachineConfig::new(boot.kernel);
    config.initrd = boot.initrd;
    config.memory_bytes = common.memory;
    config.cpus = common.cpus;
    config.nested = common.nested;
    config.confine = common.confine;
    config.monitor_user = common.monitor_user;
    config.command_line = appended(&boot.command_line, common.append)?;
    config.boot_protocol = match args.protocol {
        boot_args::ProtocolArg::Auto => BootProtocol::Auto,
        boot_args::ProtocolArg::Elf64 => BootProtocol::Elf64,
        boot_args::ProtocolArg::Pvh => BootProtocol::Pvh,
        boot_args::ProtocolArg::Bzimage => BootProtocol::Bzimage,
    };
    config.platform = match args.platform {
        // Kernels of distributions are made for it.
        boot_args::PlatformArg::Auto if boot.of_image => Platform::Acpi,
        boot_args::PlatformArg::Auto => Platform::Auto,
        boot_args::PlatformArg::Mptable => Platform::Mptable,
        boot_args::PlatformArg::Acpi => Platform::Acpi,
    };
    config.on_reset = match args.on_reset {
        Some(boot_args::OnResetArg::Exit) => OnReset::Exit,
        Some(boot_args::OnResetArg::Reboot) => OnReset::Reboot,
        None if boot.of_image => OnReset::Reboot,
        None => OnReset::Exit,
    };
    for text in &args.share {
        config.shares.push(share(text, own)?);
    }
    config.rng = true;
    config.serial = nelly_vmm::config::Endpoint::Stdio;
    let milliseconds =
        |limit: std::time::Duration| u64::try_from(limit.as_millis()).expect("a year at most was parsed");
    config.time_limit_ms = common.timeout.map(milliseconds);
    config.validate()?;
    Ok(config)
}

/// Adds the network of `nelly boot`, and starts its user-mode network. The descriptor of its link
/// is inherited by the monitor, which this process becomes; the process of the network is its child
/// then. What is answered must live until that.
pub(crate) fn boot_network(
    network: &Network,
    usernet: Option<&Path>,
    seed: &str,
    config: &mut MachineConfig,
) -> Result<(Option<Usernet>, Option<OwnedFd>)> {
    let (usernet, link) = match network {
        Network::User(user) => {
            let program = usernet.ok_or(NetworkError::NoProgram)?;
            let (usernet, link) = Usernet::start(program, &user.config(seed), open_log(user)?, None, None)?;
            usernet.wait_ready()?;
            for port in usernet.published() {
                out::message(format_args!("published {port}"));
            }
            rustix::io::fcntl_setfd(&link, rustix::io::FdFlags::empty())
                .context("cannot pass a descriptor on")?;
            (Some(usernet), Some(link))
        }
        Network::None | Network::Tap(_) | Network::Unix(_) | Network::VhostUser(_) => (None, None),
    };
    let number = link.as_ref().map(|link| FileSource::Fd(link.as_raw_fd().cast_unsigned()));
    config.networks.extend(network.device(seed, number));
    config.validate()?;
    Ok((usernet, link))
}

/// The value of a `--share` with an absolute path.
///
/// # Errors
/// It has no tag, or its path cannot be resolved, is of this process only, or is no text in UTF-8.
pub(crate) fn absolute_share(text: &str) -> Result<String> {
    let (tag, rest) = text
        .split_once('=')
        .ok_or_else(|| Usage::error(format!("--share {text}: write TAG=DIRECTORY or TAG=DIRECTORY:ro")))?;
    let (source, mode) = match rest.strip_suffix(":ro") {
        Some(source) => (source, ":ro"),
        None => (rest.strip_suffix(":rw").unwrap_or(rest), ""),
    };
    let source = boot_paths::lasting("--share", Path::new(source))?;
    let source = source
        .to_str()
        .with_context(|| format!("--share {text}: the path of the current directory is no text in UTF-8"))?;
    Ok(format!("{tag}={source}{mode}"))
}

/// Parses `TAG=HOST[:ro]`, and looks whether it can be shared.
pub(crate) fn share(text: &str, own: &[PathBuf]) -> Result<ShareConfig> {
    const FORM: &str =
        "write TAG=DIRECTORY or TAG=DIRECTORY:ro; the guest mounts it with `mount -t virtiofs TAG PLACE`";
    let wrong = |why: &str| Usage::error(format!("--share {text}: {why}"));
    let (tag, source) = text.split_once('=').ok_or_else(|| wrong(FORM))?;
    let (source, read_only) = match source.strip_suffix(":ro") {
        Some(source) => (source, true),
        None => (source.strip_suffix(":rw").unwrap_or(source), false),
    };
    if source.is_empty() {
        return Err(wrong(FORM));
    }
    let tag = ShareTag::new(tag).map_err(|reason| wrong(&reason))?;
    let request = ShareRequest { source: source.into(), path: "/".to_owned(), read_only };
    let share = request.resolve(own).context("--share")?;
    Ok(ShareConfig::new(tag, FileSource::Path(share.source), read_only))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_cannot_be_names_whoever_gave_it() {
        use clap::FromArgMatches;
        use clap::{Args, Command};
        let refusal = |variable: &str, value: &str, words: &[&str]| {
            let command = machine_args::MachineArgs::augment_args(Command::new("nelly").no_binary_name(true));
            let args = machine_args::MachineArgs::from_arg_matches(&command.get_matches_from(words)).unwrap();
            let get = |name: &str| (name == variable).then(|| value.to_owned());
            let settings = Settings::load(None, get).unwrap();
            format!("{:#}", common(&args, &settings).err().unwrap())
        };
        for (variable, value) in [
            ("NELLY_CPUS", "99"),
            ("NELLY_CPUS", "many"),
            ("NELLY_MEMORY", "512"),
            ("NELLY_MEMORY", "4K"),
            ("NELLY_MEMORY", "900G"),
            ("NELLY_APPEND", "a\nb"),
        ] {
            let error = refusal(variable, value, &[]);
            assert!(error.contains(&format!("(from ${variable})")) && !error.contains("--"), "{error}");
        }
        for words in [["--cpus", "99"], ["--memory", "4K"], ["--memory", "900G"], ["--append", "a\nb"]] {
            let error = refusal("", "", &words);
            assert!(error.contains(&format!("(from {})", words[0])), "{error}");
        }
    }

    #[test]
    fn what_is_no_file_is_refused_at_once_and_names_its_flag() {
        let directory = tempfile::tempdir().unwrap();
        let (fifo, empty) = (directory.path().join("fifo"), directory.path().join("empty"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        std::fs::write(&empty, "").unwrap();
        for (path, what) in [
            (fifo.as_path(), "FIFO"),
            (empty.as_path(), "is empty"),
            (directory.path(), "a directory"),
            (Path::new("/nonexistent/file"), "No such file"),
        ] {
            for (flag, accept) in [("--kernel", Accept::Regular), ("--disk", Accept::Disk)] {
                let error = format!("{:#}", open(flag, path, accept).unwrap_err());
                let named = error.starts_with(flag) && error.contains(&*path.to_string_lossy());
                assert!(named && error.contains(what), "{error}");
            }
        }
    }
}
