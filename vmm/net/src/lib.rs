//! The user-mode network of one guest: what the guest sends as frames becomes connections of
//! ordinary host sockets, without any privilege, and what these receive becomes frames.
//!
//! [`core`] is pure: frames, readiness of sockets and time go in, frames and actions come out. It
//! keeps every sequence number and no byte of a stream, but for the first ones where rules are
//! about names. [`shell`] is one thread around it that owns the sockets and their buffers. Below:
//! [`wire`] reads and writes the headers, [`link`] is what stands between a monitor and this
//! network, [`policy`] says what may be reached, [`addressee`] whom a stream is for, [`dns`] what
//! the resolver of the guest answers, [`config`] is what the program `nelly-usernet` is told,
//! [`control`] what it is asked while it runs, and [`holder`] the end of whoever asks.
//!
//! [`switch`] is the network that several machines share, a program of its own, `nelly-switch`, and
//! [`peers`] what stands between it and those on it.
//!
//! The guest is hostile: every length, address and transition from it is checked, and whatever it
//! sends, memory is bounded.

pub mod addressee;
pub mod config;
pub mod control;
pub mod core;
pub mod dns;
pub mod holder;
pub mod link;
pub mod number;
pub mod peers;
pub mod policy;
pub mod shell;
pub mod switch;
pub mod sys;
pub mod wire;
