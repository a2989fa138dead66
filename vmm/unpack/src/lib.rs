//! What the program `nelly-unpack` gives up before it reads an image: everything but reading that
//! image and writing to the cache. Of a packed file that was fetched, it reads one open file and
//! writes another.

pub mod confine;
pub mod stream;
