//! What this process may still ask of the system.

use std::io;

/// Takes from this process the way to more rights by running another program.
///
/// # Errors
/// The system does not have the call.
pub fn keep_privileges_down() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}
