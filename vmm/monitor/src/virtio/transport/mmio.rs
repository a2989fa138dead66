//! The registers of a virtio-mmio device, version 2 (virtio 1.2, 4.2.2).
//!
//! Registers below 0x100 are 32 bits wide and take no other access; the configuration space behind them takes any. A forbidden
//! access reads 0, changes nothing and is counted.

use super::core::Transport;
use super::window::Window;
use crate::bus::{BusDevice, Effect};
use crate::sys::Notifier;
use crate::virtio::spec::register;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"NELY");

/// What of the configuration space a window shows: more than any device here has; the rest of it reads 0 anyway.
const CONFIG_SHOWN: usize = 0x100;

/// The registers that a write may change, beside the device status.
const CHANGING: [u64; 3] = [register::DEVICE_FEATURES, register::QUEUE_NUM_MAX, register::QUEUE_READY];

/// Those that can be read, but for the three that [`Interrupt`](crate::virtio::interrupt::Interrupt) keeps in the window.
pub(super) const READABLE: [u64; 11] = [
    register::MAGIC,
    register::VERSION,
    register::DEVICE_ID,
    register::VENDOR_ID,
    register::DEVICE_FEATURES,
    register::QUEUE_NUM_MAX,
    register::QUEUE_READY,
    register::SHM_LEN_LOW,
    register::SHM_LEN_LOW + 4,
    register::SHM_BASE_HIGH - 4,
    register::SHM_BASE_HIGH,
];

/// A [`Transport`] on the MMIO bus. Its range takes at least 0x200 bytes.
pub struct MmioTransport(pub Transport, Option<Window>);

impl MmioTransport {
    /// Puts registers in front of a transport. With a `window`, which is on the page of its interrupt, a guest that reads one of them is
    /// shown all.
    #[must_use]
    pub fn new(transport: Transport, window: Option<Window>) -> Self {
        Self(transport, window)
    }

    /// Where the driver writes to notify a queue (4 bytes wide), what it writes, and what that must wake: offers for the hypervisor's
    /// short cut. Declined, a write arrives here and does the same.
    pub fn doorbells(&self) -> impl Iterator<Item = (u64, u32, &Notifier)> {
        self.0.doorbells().map(|(queue, bell)| (register::QUEUE_NOTIFY, queue, &**bell))
    }

    /// Writes into the window what `registers` and the device status tell now.
    fn publish(&mut self, registers: &[u64]) {
        for &offset in registers {
            let value = self.register(offset);
            if let Some(window) = &self.1 {
                window.put(offset, value);
            }
        }
        let status = self.0.status();
        self.0.interrupt().show_device_status(status);
    }

    fn publish_config(&mut self) {
        let Some(window) = &self.1 else { return };
        let mut config = [0; CONFIG_SHOWN];
        self.0.read_config(0, &mut config);
        let (words, _) = config.as_chunks();
        for (offset, word) in (register::CONFIG..).step_by(4).zip(words) {
            window.put(offset, u32::from_le_bytes(*word));
        }
    }

    /// After a read that exited: the next ones need not.
    fn show(&mut self) {
        if self.1.as_ref().is_some_and(|window| !window.is_settled()) && self.0.is_still() {
            self.publish(&READABLE);
            self.publish_config();
            if let Some(window) = &mut self.1 {
                window.show();
            }
        }
    }

    /// After a write: what the guest reads is as it left it.
    fn refresh(&mut self, offset: u64) {
        if !self.1.as_ref().is_some_and(Window::is_shown) || offset == register::QUEUE_NOTIFY {
            return;
        }
        if !self.0.is_still() {
            if let Some(window) = &mut self.1 {
                window.hide();
            }
            return;
        }
        self.publish(&CHANGING);
        if offset >= register::CONFIG {
            self.publish_config();
        }
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

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.0.select_device_features(value),
            register::DRIVER_FEATURES => self.0.set_driver_features(value),
            register::DRIVER_FEATURES_SEL => self.0.select_driver_features(value),
            register::QUEUE_SEL => self.0.select_queue(value),
            // A size that does not fit 16 bits is as bad as 0, which activation refuses.
            register::QUEUE_NUM => {
                self.0.configure_queue(|queue| queue.size = u16::try_from(value).unwrap_or(0))
            }
            register::QUEUE_READY => self.0.configure_queue(|queue| queue.ready = value & 1 != 0),
            register::QUEUE_NOTIFY => self.0.notify(value),
            register::INTERRUPT_ACK => self.0.interrupt().acknowledge(value),
            register::STATUS => match u8::try_from(value) {
                Ok(value) => self.0.set_status(value),
                Err(_) => self.0.ignore(),
            },
            0x080..=0x0a4 => self.set_address(offset, value),
            register::SHM_SEL => {}
            _ => self.0.ignore(),
        }
    }

    /// One half of a ring's address.
    fn set_address(&mut self, offset: u64, value: u32) {
        let high = match offset & 0xf {
            0 => false,
            4 => true,
            _ => return self.0.ignore(),
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
        });
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
        self.show();
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if offset >= register::CONFIG {
            self.0.write_config(offset - register::CONFIG, data);
        } else if offset.is_multiple_of(4)
            && let Ok(data) = <[u8; 4]>::try_from(data)
        {
            self.set_register(offset, u32::from_le_bytes(data));
        } else {
            self.0.ignore();
        }
        self.refresh(offset);
        Effect::None
    }
}
