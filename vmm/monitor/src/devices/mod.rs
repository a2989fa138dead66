//! Devices that are not virtio: the serial port, the clocks, the keyboard controller's leftovers,
//! reset and power registers.
//!
//! Each is a plain value behind [`crate::bus::BusDevice`] that knows neither machine nor host: what
//! it needs is a parameter.

pub mod i8042;
pub mod last_words;
pub mod pl031;
pub mod power;
pub mod rtc;
pub mod serial;
