//! The core between a guest that is played segment by segment, a host that is played byte by byte,
//! and a clock that is set.

mod dhcp;
mod hostile;
mod neighbours;
mod played;
mod routers;
mod rules;
mod secrets;
mod streams;
mod talks;
