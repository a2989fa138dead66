//! The interface of the Hydra scripts: what their environment variables mean for a machine of
//! Nelly.
//!
//! Pure: the environment as a map, the host and a profile become plain data, each value with its
//! source, and warnings. Nothing is looked at on the host and nothing is made.
//! `docs/hydra-variables.md` is the table of all variables.

mod containerd;
mod error;
mod grammar;
mod k3s;
mod machine;
mod rows;
mod setting;
mod share;
mod variables;

pub use containerd::containerd_lines;
pub use error::HydraError;
pub use grammar::show_size;
pub use k3s::{K3S, k3s_lines};
pub use machine::{ArtifactLogin, Bare, Boots, Image, Keys, Login, Machine, Network, Port};
pub use rows::Row;
pub use setting::{Host, Platform, Profile, Setting, Source};
pub use share::{Missing, Share, mount_lines};
pub use variables::{Decision, VARIABLES, Variable, variable};
