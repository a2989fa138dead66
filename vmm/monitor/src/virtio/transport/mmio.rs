//! The registers of a virtio-mmio device, version 2 (virtio 1.2, 4.2.2).
//!
//! Registers below 0x100 are 32 bits wide and take no other access; the configuration space behind
//! them takes any. A forbidden access reads 0, changes nothing and is counted.

use super::core::Transport;
use crate::bus::{BusDevice, Effect};
use crate::state::{Sections, StateError, Stateful};
use crate::sys::Notifier;
use crate::virtio::spec::register;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"NELY");

/// A [`Transport`] on the MMIO bus. Its range takes at least 0x200 bytes.
pub struct MmioTransport(pub Transport);

impl MmioTransport {
    /// Where the driver writes to notify a queue (4 bytes wide), what it writes, and what that must
    /// wake: offers for the hypervisor's short cut. Declined, a write arrives here and does the
    /// same.
    pub fn doorbells(&self) -> impl Iterator<Item = (u64, u32, &Notifier)> {
        self.0.doorbells().map(|(queue, bell)| (register::QUEUE_NOTIFY, queue, &**bell))
    }

    fn register(&mut self, offset: u64) -> u32 {
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.0.device_id(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => self.0.device_features(),
            register::QUEUE_NUM_MAX => self.0.queue().map_or(0, |queue| u32::from(queue.max_size)),
            register::QUEUE_READY => self.0.queue().map_or(0, |queue| u32::from(queue.ready)),
            register::INTERRUPT_STATUS => self.0.interrupt().status(),
            register::STATUS => u32::from(self.0.status()),
            register::CONFIG_GENERATION => self.0.interrupt().generation(),
            // No device here has a shared memory region (4.2.2.1).
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            _ => {
                self.0.ignore();
                0
            }
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) -> Effect {
        match offset {
            register::DEVICE_FEATURES_SEL => self.0.select_device_features(value),
            register::DRIVER_FEATURES => return self.0.set_driver_features(value),
            register::DRIVER_FEATURES_SEL => self.0.select_driver_features(value),
            register::QUEUE_SEL => self.0.select_queue(value),
            // A size that does not fit 16 bits is as bad as 0, which activation refuses.
            register::QUEUE_NUM => {
                return self.0.configure_queue(|queue| queue.size = u16::try_from(value).unwrap_or(0));
            }
            register::QUEUE_READY => return self.0.configure_queue(|queue| queue.ready = value & 1 != 0),
            register::QUEUE_NOTIFY => self.0.notify(value),
            register::INTERRUPT_ACK => self.0.interrupt().acknowledge(value),
            register::STATUS => match u8::try_from(value) {
                Ok(value) => return self.0.set_status(value),
                Err(_) => self.0.ignore(),
            },
            0x080..=0x0a4 => return self.set_address(offset, value),
            register::SHM_SEL => {}
            _ => self.0.ignore(),
        }
        Effect::None
    }

    /// One half of a ring's address.
    fn set_address(&mut self, offset: u64, value: u32) -> Effect {
        let high = match offset & 0xf {
            0 => false,
            4 => true,
            _ => {
                self.0.ignore();
                return Effect::None;
            }
        };
        self.0.configure_queue(|queue| {
            let address = match offset & 0xf0 {
                register::QUEUE_DESC_LOW => &mut queue.descriptors,
                register::QUEUE_DRIVER_LOW => &mut queue.available,
                _ => &mut queue.used,
            };
            *address = if high {
                *address & 0xffff_ffff | u64::from(value) << 32
            } else {
                *address & !0xffff_ffff | u64::from(value)
            };
        })
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= register::CONFIG {
            self.0.read_config(offset - register::CONFIG, data);
        } else if offset.is_multiple_of(4)
            && let Ok(data) = <&mut [u8; 4]>::try_from(data)
        {
            *data = self.register(offset).to_le_bytes();
        } else {
            self.0.ignore();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if offset >= register::CONFIG {
            self.0.write_config(offset - register::CONFIG, data);
        } else if offset.is_multiple_of(4)
            && let Ok(data) = <[u8; 4]>::try_from(data)
        {
            return self.set_register(offset, u32::from_le_bytes(data));
        } else {
            self.0.ignore();
        }
        Effect::None
    }
}

/// As that of the [`Transport`]: the registers are decoded and not kept.
impl Stateful for MmioTransport {
    fn save(&self, name: &str, state: &mut Sections) {
        self.0.save(name, state);
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        self.0.restore(name, state)
    }
}
