//! From a request to a running process: the plan (pure), and the pre-exec stage that carries it out.

pub mod caps;
pub mod devices;
pub mod limits;
pub mod mount_options;
pub mod plan;
pub mod seccomp;
pub mod spec;
pub mod users;
