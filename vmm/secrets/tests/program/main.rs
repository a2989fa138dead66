//! The program `nelly-secrets` between a guest and a host that are played, with real TLS on both
//! sides of it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod exchanges;
mod hostile;
mod stage;
