//! Kernels and what they are told: loaders, command line, tables. Turns memory + kernel + initrd + command line into a
//! [`crate::arch::BootState`]; knows no hypervisor.
