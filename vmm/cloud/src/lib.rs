//! How a cloud image boots, found out on the host, from its disk alone: which kernel, which
//! initrds and which command line its own boot loader would take.
//!
//! The image is only read, through [`nelly_disk::ReadAt`] and so through qcow2 with its backing
//! files, too. Nothing of it is trusted: every table is checked, every file bounded, every script
//! ends. [`find`] gives a [`BootPlan`], which is plain data; [`Image::copy`] takes a file out.
//!
//! A program has that done by a process of its own that can do nothing else: a [`Reader`] asks, and
//! a [`Reading`] is what that process answers.

mod answering;
mod asking;
pub mod bls;
mod cloud_init;
mod drivers;
mod entry;
mod error;
mod files;
pub mod fstab;
pub mod grub;
pub mod grubenv;
mod initrd;
mod layout;
mod loaders;
mod passed;
mod plan;
mod said;
pub mod syslinux;
mod unpack;
mod user;
pub mod version;

pub use answering::Reading;
pub use asking::{AskError, Reader};
pub use drivers::{Driver, DriverPlace, Drivers};
pub use entry::{BootEntry, FileRef, Loader};
pub use error::CloudError;
pub use files::{INITRD_MAX, KERNEL_MAX};
pub use layout::{Image, Parts, Slot};
pub use plan::{BootPlan, COMMAND_LINE_MAX, find, find_entry};
pub use said::{Found, Place, Wanted};
