//! How a process of Linux gives up what it does not need: capabilities and being looked into
//! ([`privilege`]), its user and namespaces ([`apart`]), the file system ([`tree`]), and system
//! calls ([`program`], [`denied`]).
//!
//! What a process needs is for its own program to say: there is no policy here.

pub mod apart;
pub mod denied;
pub mod privilege;
pub mod program;
pub mod tree;
