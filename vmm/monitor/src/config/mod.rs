//! `MachineConfig` and its parts: plain data that is checked where it is made.
