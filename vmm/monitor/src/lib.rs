//! The machine: hypervisor back ends, devices, boot, life cycle.
