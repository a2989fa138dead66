//! Devices of the guest that a request names by their paths. The one look at the guest that a plan
//! takes: a device's numbers are what it has there.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use nelly_protocol::messages::Device;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::parse::{absolute, value};
use super::{DevicePlan, PlanError};

/// A device of the guest, which is looked at there, and the rule that lets the container use it.
pub(super) fn look_at(device: &Device) -> Result<(DevicePlan, LinuxDeviceCgroup), PlanError> {
    absolute("devices.source", &device.source)?;
    absolute("devices.path", &device.path)?;
    let refuse = |rule| Err(value("devices.source", &device.source, rule));
    let found = match fs::metadata(&device.source) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refuse("the guest has no such device");
        }
        Err(_) => return refuse("the guest cannot look at it"),
    };
    let (typ, kind) = match found.mode() & libc::S_IFMT {
        libc::S_IFCHR => (LinuxDeviceType::C, libc::S_IFCHR),
        libc::S_IFBLK => (LinuxDeviceType::B, libc::S_IFBLK),
        _ => return refuse("in the guest it is no device"),
    };
    let (major, minor) = (libc::major(found.rdev()), libc::minor(found.rdev()));
    let node = DevicePlan {
        path: device.path.clone(),
        mode: kind | found.mode() & 0o777,
        major,
        minor,
        uid: found.uid(),
        gid: found.gid(),
    };
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(typ))
        .set_major(Some(major.into()))
        .set_minor(Some(minor.into()))
        .set_access(Some(device.access.clone()));
    Ok((node, rule))
}
