//! `nelly disk seed`: a seed for cloud-init as a disk image, for any machine.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use nelly_disk::{ImageError, NewFile};
use nelly_seed::{MacAddress, Seed};
use serde_json::json;

use super::{advised, show};
use crate::fail::OfFlag as _;
use crate::out;
use crate::seed_args::SeedArgs;
use crate::ssh_dir::Login;

/// `nelly disk seed`.
#[derive(Debug, Args)]
#[command(
    after_help = "The image is raw, and a file system with the label cidata, which cloud-init in the guest finds (data source NoCloud) on whichever disk it is; \
    attach it read-only, as the last disk. It may hold a private key and a password's hash, so only you can read it. Equal flags make equal images; \
    a changed one has another instance-id, with which cloud-init does again what it does at a first start. Files of the guest are not lost by that.\n\n\
    Examples:\n  \
    nelly disk seed --ssh-key ~/.ssh/id_ed25519.pub --hostname web seed.img\n  \
    nelly disk seed --user ada --ssh-dir web.keys --package curl --runcmd 'systemctl enable --now app' seed.img\n  \
    nelly disk seed --user-data cloud-config.yaml seed.img && qemu-system-x86_64 ... -drive file=seed.img,format=raw,if=virtio,readonly=on"
)]
pub(crate) struct SeedImageArgs {
    /// The image to create
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Let the interface with this address ask for its own (DHCP), and none without the flag
    /// [default: as the image has it]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) mac: Vec<String>,
    #[command(flatten)]
    pub(crate) seed: SeedArgs,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs the verb.
pub(super) fn run(args: &SeedImageArgs) -> Result<ExitCode> {
    let mut asked = args.seed.read(false)?;
    let addresses = args.mac.iter().map(|text| text.parse::<MacAddress>());
    asked.settings.interfaces = addresses.collect::<Result<_, _>>().of_flag("--mac")?;
    let seed = Seed::new(&asked.settings, asked.texts)?;
    let disk = seed.disk()?;
    let path = args.file.display();
    let create = |source| advised(ImageError::Create { path: path.to_string(), source });
    let file = NewFile::private(&args.file).map_err(create)?;
    let failed = || format!("cannot create {path}");
    file.file().write_all(&disk).with_context(failed)?;
    file.finish().with_context(failed)?;
    if let (Some(ssh), Some(user)) = (&asked.ssh, &asked.settings.user) {
        let name = asked.settings.host_name.as_ref().map_or("machine", |name| name.as_str());
        let (host, alias) = (name.to_owned(), name.to_owned());
        let login = Login { host, alias, user: Some(user.clone()), address: None };
        let config = ssh.configure(&login)?;
        out::message(format_args!(
            "ssh -F {} -o HostName=ADDRESS {name} logs in, once the machine has an address",
            config.display()
        ));
    }
    if args.json {
        out::json(json!({ "schema": 1, "path": path.to_string(), "size_bytes": disk.len() }))?;
    } else {
        out::line(format_args!("created {path}, a seed for cloud-init, {}", show::size(disk.len() as u64)))?;
    }
    Ok(ExitCode::SUCCESS)
}
