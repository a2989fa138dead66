//! What the program `nelly-unpack` gives up before it reads an image: everything but reading that
//! image and writing to the cache.

pub mod confine;
