//! What keepers and their clients say to each other beside the calls of `nelly.sandbox.v1`.

pub mod frames;
pub mod holder;
pub mod order;
