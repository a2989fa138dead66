//! Devices that are not virtio: serial port, clock, reset and power.
