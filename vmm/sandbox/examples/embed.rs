//! Two containers, each in a machine of its own, held by one process: the shape of a daemon that
//! embeds Nelly.
//!
//!     cargo run -p nelly-sandbox --example embed -- DIR
//!
//! DIR is an installation as `make build` leaves it in target/nelly: bin/nelly-monitor and
//! share/nelly.

use std::error::Error;
use std::io::Read;
use std::path::PathBuf;

use nelly_image::{Reference, Silent, Store, StoreOptions};
use nelly_sandbox::agent::ProcessId;
use nelly_sandbox::instance::Sandbox;
use nelly_sandbox::spec::machine::IMAGE_DEVICE;
use nelly_sandbox::spec::{ContainerSpec, Installation, MachineSpec, Overrides, ProcessSpec};
use nelly_sandbox::state::Places;
use nelly_vmm::config::MemorySize;
use nelly_vmm::machine::{Isolation, Resources};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: embed DIR")?);
    let installation = Installation::at(&directory)?;
    let monitor = Isolation::Process { monitor: installation.monitor.clone() };
    // The same handle, out of process and in threads of this one.
    let (first, second) = tokio::join!(
        hello(&installation, monitor, "first"),
        hello(&installation, Isolation::Thread, "second")
    );
    print!("{}{}", first?, second?);
    Ok(())
}

/// Runs `echo` in a container in a machine, and returns what it wrote. Everything is gone
/// afterwards.
async fn hello(
    installation: &Installation,
    isolation: Isolation,
    name: &str,
) -> Result<String, Box<dyn Error>> {
    // The user's own cache. A name below /tmp that others can guess is one that others can make
    // first.
    let places = Places::from_env(|name| std::env::var_os(name).map(Into::into))?;
    let mut options = StoreOptions::new(places.cache);
    options.builtin = Some(installation.builtin.clone());
    let image = Store::open(options)?.resolve(&Reference::BuiltinBusybox, &mut Silent)?;

    let mut resources = Resources::new();
    let mut spec = MachineSpec::installed(installation, resources.add_all(image.disk));
    spec.memory = MemorySize::new(256 << 20)?;

    let sandbox = Sandbox::start(spec.config()?, resources, isolation, name).await?;
    let command = ["sh", "-c", "echo hello from $(hostname)"].map(str::to_owned).to_vec();
    let overrides = Overrides { command, ..Overrides::default() };
    let process = ProcessSpec::merge(&image.config.config().clone().unwrap_or_default(), &overrides, name)?;
    let container = ContainerSpec::new(process, name);
    let streams = sandbox.run(name, &container, IMAGE_DEVICE, None).await??;
    let end = sandbox.agent().wait(ProcessId { container: name, exec: "" }).await?;
    let mut text = String::new();
    if let Some(mut stdout) = streams.stdout {
        stdout.read_to_string(&mut text)?;
    }
    if end.exit_code == 0 { Ok(text) } else { Err(format!("{name} ended with {}", end.exit_code).into()) }
}
