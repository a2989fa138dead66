//! What a machine begins with: a kernel that is booted, or the state of a machine that was saved.
//! Fills its memory, and says what its vCPUs start from.

use std::fs::File;
use std::sync::PoisonError;

use nelly_disk::FileReader;

use super::assemble::{AssembleError, Assembly, lock};
use super::build::VmWithDevices;
use super::plan::Plan;
use super::snapshot::{self, RestoreError, Saved};
use super::vcpu::Registers;
use crate::boot::{self, BootRequest, Image};
use crate::config::FileSource;
use crate::memory::GuestRam;
use crate::state::{Sections, StateError, Stateful};
use crate::sys;
use crate::timeline::name;

/// What vCPUs begin with.
pub(super) struct Beginning {
    /// By their numbers.
    pub(super) vcpus: Vec<Registers>,
    /// What belongs to no vCPU, of a saved machine.
    pub(super) saved: Option<Sections>,
    /// What was booted says that it is a kernel.
    pub(super) says_kernel: bool,
    /// The guest was told of a power button.
    pub(super) has_button: bool,
}

/// The files that are booted, each with its name.
pub(super) struct Images {
    kernel: (File, String),
    initrd: Option<(File, String)>,
}

impl Images {
    pub(super) fn open<H>(assembly: &Assembly<'_, H>) -> Result<Self, AssembleError> {
        let open = |field: &str, source: &FileSource| -> Result<_, AssembleError> {
            Ok((assembly.files.get(field, source)?, assembly.files.name(source)))
        };
        let kernel = open("kernel", &assembly.config.kernel)?;
        let initrd = assembly.config.initrd.as_ref().map(|source| open("initrd", source)).transpose()?;
        Ok(Self { kernel, initrd })
    }
}

impl<H> Assembly<'_, H> {
    /// Loads the kernel.
    pub(super) fn boot(
        &self,
        plan: &Plan,
        ram: &GuestRam,
        images: &Images,
    ) -> Result<Beginning, AssembleError> {
        let config = self.config;
        let kernel = self.image(&images.kernel)?;
        let initrd = images.initrd.as_ref().map(|image| self.image(image)).transpose()?;
        let (seed, kernel_place) = seeds()?;
        let request = BootRequest {
            kernel: kernel.image(),
            initrd: initrd.as_ref().map(Bytes::image),
            command_line: config.command_line.as_str(),
            cpus: plan.cpus(),
            transports: &plan.transports(),
            platform: config.platform,
            protocol: config.boot_protocol,
            seed: Some(seed),
            kernel_place: Some(kernel_place),
        };
        let loaded = plan
            .board
            .load(ram, &request)
            .map_err(|source| AssembleError::Boot { file: images.kernel.1.clone(), source })?;
        self.recorder.stamp(name::KERNEL_LOADED);
        // The others wait for the boot processor's message.
        let others = (1..plan.cpus()).map(|_| Registers::Reset);
        let vcpus = std::iter::once(Registers::Entry(loaded.state)).chain(others).collect();
        let has_button = loaded.platform.name_a_power_button();
        Ok(Beginning { vcpus, saved: None, says_kernel: loaded.says_kernel, has_button })
    }

    /// Takes the memory of a saved machine back.
    pub(super) fn restore_memory(&self, ram: &GuestRam, image: &File) -> Result<(), AssembleError> {
        ram.read_image(image, self.wanted).map_err(RestoreError::Memory)?;
        self.recorder.stamp(name::MEMORY_RESTORED);
        Ok(())
    }

    fn image<'a>(&self, (file, name): &'a (File, String)) -> Result<Bytes<'a>, AssembleError> {
        let immutable = self.config.immutable_images || sys::anonymous::is_sealed(file);
        let bytes = boot::reader(name, file, immutable)
            .map_err(|source| AssembleError::Boot { file: name.clone(), source })?;
        Ok(Bytes { name, bytes })
    }
}

impl VmWithDevices {
    /// Gives the devices the state of those of a saved machine. They are paused then, as those
    /// were.
    pub(super) fn restore(&mut self, saved: Saved) -> Result<Beginning, StateError> {
        let Saved { says_kernel, has_button, vm, vcpus, devices: mut state, .. } = saved;
        for (name, device) in &self.board {
            device.lock().unwrap_or_else(PoisonError::into_inner).restore(name, &mut state)?;
        }
        for (number, transport) in self.transports.iter().enumerate() {
            lock(transport).restore(&snapshot::slot_name(number), &mut state)?;
        }
        for pump in &mut self.pumps {
            pump.restore_words(&mut state)?;
        }
        state.finish()?;
        let vcpus = vcpus.into_iter().map(Registers::Saved).collect();
        Ok(Beginning { vcpus, saved: Some(vm), says_kernel, has_button })
    }
}

/// A file that is booted, to be read.
struct Bytes<'a> {
    name: &'a str,
    bytes: FileReader<&'a File>,
}

impl Bytes<'_> {
    fn image(&self) -> Image<'_> {
        Image { name: self.name, bytes: &self.bytes }
    }
}

/// Every start of a guest has one of its own.
fn seeds() -> Result<([u8; 32], u64), AssembleError> {
    let mut bytes = [0; 40];
    sys::random(&mut bytes)
        .map_err(|error| AssembleError::Host("cannot read random bytes of the host", error))?;
    let (mut seed, mut place) = ([0; 32], [0; 8]);
    seed.copy_from_slice(&bytes[..32]);
    place.copy_from_slice(&bytes[32..]);
    Ok((seed, u64::from_ne_bytes(place)))
}
