//! A bare kernel in a machine held by this process: no agent, no container, no tokio.
//!
//!     cargo run -p nelly-vmm --example boot -- KERNEL [INITRD]
//!
//! Prints what the kernel says on its serial port, and how the machine ended.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};

use nelly_vmm::config::{CommandLine, Endpoint, MachineConfig};
use nelly_vmm::machine::{Isolation, Machine, Resources};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let kernel = arguments.next().ok_or("usage: boot KERNEL [INITRD]")?;
    let mut resources = Resources::new();
    let mut config = MachineConfig::new(resources.add(File::open(kernel)?));
    if let Some(initrd) = arguments.next() {
        config.initrd = Some(resources.add(File::open(initrd)?));
    }
    config.command_line = CommandLine::new("console=ttyS0 panic=-1 reboot=t")?;
    config.serial = Endpoint::Stream;

    let machine = Machine::start(&config, resources, &Isolation::Thread)?;
    let mut serial = machine.serial()?;
    let mut buffer = [0; 4096];
    // The stream ends with the machine.
    loop {
        match serial.read(&mut buffer)? {
            0 => break,
            count => std::io::stdout().write_all(&buffer[..count])?,
        }
    }
    let outcome = machine.wait();
    println!("{}, after {} exits", outcome.reason, outcome.exits.total());
    Ok(())
}
