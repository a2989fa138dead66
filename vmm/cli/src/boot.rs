//! `nelly boot`: executes `nelly-monitor` in place of this process, with the machine's
//! configuration in a memory file.

use std::ffi::{CString, OsStr};
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use nelly_sandbox::spec::Network;
use nelly_sandbox::state::Id;
use nelly_seed::Seed;
use nelly_vmm::config::FileSource;
use nelly_vmm::sys::anonymous::memory_file;
use nelly_vmm::timeline::{ORIGIN_VARIABLE, Recorder};

use crate::boot_args::BootArgs;
use crate::boot_disk::DiskFlag;
use crate::context::Context;
use crate::fail::{OfFlag as _, Usage};
use crate::result::ResultFile;
use crate::{assets, boot_image, boot_seed, machine, out};

/// The network that the flags ask for, or else `default`.
pub(crate) fn network(args: &BootArgs, default: Network) -> Result<Network> {
    let network = args.network.network(default)?;
    if network.configures_guest() {
        let what = "ip, gw, dns and search are what Nelly's agent tells its guest; a guest of `nelly boot` sets up its network itself";
        return Err(Usage::error(format!("--net {network}: {what}")));
    }
    if let Some(member) = network.member() {
        let what = "networks of machines are for nelly run, whose guests have Nelly's agent";
        return Err(Usage::error(format!("--net {}: {what}", member.network)));
    }
    Ok(network)
}

/// Whether the machine has a seed. An image is one for clouds, and one flag says that another guest
/// has cloud-init, too.
pub(crate) fn wants_seed(args: &BootArgs) -> bool {
    args.agent || args.seed.given().is_some() || (args.image.is_some() && !args.no_seed)
}

/// Runs the verb in the foreground: it returns only when the machine was not started.
pub(crate) fn run(args: &BootArgs, context: &Context, recorder: &Recorder) -> Result<ExitCode> {
    let network = network(args, Network::None)?;
    let image = args.image.as_deref().map(DiskFlag::image).transpose()?;
    // The image is the first disk, whatever else the machine has.
    let disks = image.iter().cloned().map(Ok).chain(args.disk.iter().map(|text| text.parse()));
    let disks = disks.collect::<Result<Vec<DiskFlag>>>()?;
    // Open until the monitor has them.
    let mut files = Vec::new();
    let common = machine::common(&args.machine, &context.settings)?;
    common.shares(!args.share.is_empty())?;
    let boot = boot_image::what_boots(args, image.as_ref(), common.memory, &mut files)?;
    let mut config = machine::boot(args, common, boot, &context.places.own())?;
    args.result.as_deref().map(ResultFile::parse).transpose().of_flag("--result")?;
    let monitor = assets::monitor(&context.search, &context.settings)?;
    let usernet = assets::usernet(&context.search, &network)?;
    let mut asked = wants_seed(args)
        .then(|| boot_seed::read(&args.seed, &network, None, args.machine.dry_run))
        .transpose()?;
    let seed = match &mut asked {
        Some(asked) => {
            let identity = boot_seed::identity(image.iter().chain(&disks))?;
            asked.settings.machine.clone_from(&identity);
            // Before disks are made and grown.
            Seed::new(&asked.settings, asked.texts.clone())?.disk()?;
            identity
        }
        None => Id::random().context("cannot create a random id")?.to_string(),
    };
    let mut attached = None;
    for (index, disk) in disks.iter().enumerate() {
        config.disks.push(disk.config(index, args.machine.dry_run, &mut files)?);
    }
    config.validate()?;
    if args.machine.dry_run {
        config.networks.extend(network.device(&seed, Some(FileSource::Fd(0))));
        config.validate()?;
    } else if !network.is_none() {
        attached = Some(machine::boot_network(&network, usernet.as_deref(), &seed, &mut config)?);
    }
    if let Some(asked) = asked {
        boot_seed::attach(asked, &network, args.machine.dry_run, &mut config, &mut files)?;
        config.validate()?;
    }
    if args.machine.dry_run {
        out::json(config.to_json())?;
        return Ok(ExitCode::SUCCESS);
    }
    // Not close-on-exec: the monitor reads it after the exec.
    let mut file = memory_file("nelly-config").context("cannot create a memory file")?;
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).context("cannot pass a descriptor on")?;
    file.write_all(config.to_json().as_bytes()).context("cannot write the machine's configuration")?;
    file.rewind().context("cannot seek in the machine's configuration")?;
    let config = format!("fd:{}", file.as_raw_fd());
    let mut words = vec!["nelly-monitor".as_ref(), "--config".as_ref(), OsStr::new(&config)];
    if let Some(result) = &args.result {
        words.extend(["--result".as_ref(), OsStr::new(result)]);
    }
    // The monitor needs nothing from the environment except the start time of this process, because
    // it continues in the same process.
    let origin = CString::new(format!("{ORIGIN_VARIABLE}={}", recorder.origin_ns()))?;
    // Not `exec` of the standard library, which is `execvp`: that gives a file which is no program
    // for this processor to the shell.
    let path = CString::new(monitor.path.as_os_str().as_bytes())?;
    let words: Vec<_> =
        words.into_iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?;
    let Err(error) = nix::unistd::execve(&path, &words, &[origin]);
    drop((attached, files));
    Err(error).with_context(|| format!("cannot execute {}", monitor.path.display()))
}
