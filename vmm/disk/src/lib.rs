//! The files and formats behind block devices and loaders.
//!
//! Bytes are transferred between a file and memory that its owner describes with [`ReadBuffer`] or
//! [`WriteBuffer`]: a slice of host memory, or ranges of guest memory, which the system fills
//! directly. This crate never handles memory addresses, so it needs no `unsafe`. It maps no files,
//! so a file that is truncated while it is in use causes an error and not a signal.
//!
//! [`ReadAt`] can be read, a [`Disk`] can also be written.

mod buffer;
mod chain;
mod concat;
mod convert;
mod file;
pub mod fs;
mod image;
mod info;
mod le;
mod new_file;
pub mod number;
mod overlay;
pub mod partitions;
pub mod qcow2;
mod raw;
mod read_only;
mod store;
pub mod sys;
#[cfg(test)]
mod testing;
mod traits;

pub use buffer::{ReadBuffer, Within, WriteBuffer};
pub use chain::{ChainFile, Follow, Format, ImageError, alone, disk_of_chain, open_chain};
pub use concat::{Concat, ConcatBuilder, ConcatError};
pub use convert::{Converted, convert};
pub use file::{FileReader, OpenError};
pub use image::{NewImage, create_image, open_image, resize_image};
pub use info::{ImageInfo, check_image, image_info};
pub use new_file::NewFile;
pub use overlay::{ephemeral_overlay, grow_chain, open_overlay, open_overlay_to_read};
pub use raw::{DiskError, RawDisk};
pub use read_only::ReadOnly;
pub use store::Store;
pub use traits::{BYTES_MAX, Disk, Extent, ExtentKind, Mappable, ReadAt, SECTOR};
