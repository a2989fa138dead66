//! Conversion of requests to plans. Everything that is invalid or not supported is an error that
//! names the field.

use nelly_protocol::messages::{CreateContainerRequest, Rootfs, Share, Stdio, Volume};
use oci_spec::runtime::{Linux, LinuxDeviceType, LinuxNamespaceType, PosixRlimitType};

use super::guest_devices;
use super::{
    ContainerPlan, ContainerRequest, DevicePlan, MountPlan, PlanError, ProcessPlan, RootfsPlan, StagePlan,
    Surroundings, UserPlan, VolumePlan, VolumeSource,
};
use crate::network::{Names, host_line};
use crate::spawn::caps::{self, CapabilitySets};
use crate::spawn::devices;
use crate::spawn::limits;
use crate::spawn::mount_options;
use crate::spawn::seccomp::{self, SeccompFilter};
use crate::spawn::spec::{OciProcess, Spec};

/// Checks an id, which must match `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}`.
///
/// # Errors
/// [`PlanError::Value`].
pub fn check_id(field: &'static str, id: &str) -> Result<(), PlanError> {
    let mut bytes = id.bytes();
    let good = bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && id.len() <= 128;
    if good {
        Ok(())
    } else {
        Err(value(field, id, "a letter or digit, then up to 127 letters, digits or _.-"))
    }
}

pub(super) fn value(field: &'static str, value: &str, rule: &'static str) -> PlanError {
    PlanError::Value { field, value: value.to_owned(), rule }
}

fn unsupported(what: &str) -> PlanError {
    PlanError::Unsupported(what.to_owned())
}

/// Checks that there is no NUL byte, which would truncate the string in system calls.
fn no_zero(field: &'static str, text: &str) -> Result<(), PlanError> {
    if text.contains('\0') { Err(value(field, text, "NUL bytes are not allowed")) } else { Ok(()) }
}

pub(super) fn absolute(field: &'static str, path: &str) -> Result<(), PlanError> {
    no_zero(field, path)?;
    if path.starts_with('/') { Ok(()) } else { Err(value(field, path, "an absolute path is needed")) }
}

/// Validates a request for a container.
///
/// # Errors
/// [`PlanError`] names the part that is wrong or cannot be enforced.
pub fn container(request: &CreateContainerRequest) -> Result<ContainerRequest, PlanError> {
    let CreateContainerRequest { id, user, additional_groups: more_groups, rootfs, stdio, .. } = request;
    check_id("id", id)?;
    let spec: Spec = serde_json::from_slice(&request.spec).map_err(|error| PlanError::Json("spec", error))?;
    if spec.hooks.values().any(|hooks| !hooks.is_empty()) {
        return Err(unsupported("hooks"));
    }
    let linux = spec.linux.unwrap_or_default();
    refuse_unsupported(&linux)?;
    let oci_process = spec.process.ok_or(PlanError::Missing("process"))?;
    let filter = linux.seccomp().as_ref().map(seccomp::compile).transpose().map_err(PlanError::Seccomp)?;
    let oom_score_adj = oom_score(&oci_process)?;
    let mut process = process(oci_process, user, more_groups, stdio)?;
    process.seccomp.clone_from(&filter);
    process.init = request.init;

    let (namespaces, joins, pid_namespace) = namespaces(&linux)?;
    for name in [&spec.hostname, &spec.domainname].into_iter().flatten() {
        if name.len() > 64 {
            return Err(value("hostname", name, "at most 64 bytes are allowed"));
        }
        if namespaces & libc::CLONE_NEWUTS == 0 {
            return Err(value("hostname", name, "a new UTS namespace is needed"));
        }
    }
    let resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    let mut nodes = device_nodes(&linux)?;
    for device in &request.devices {
        let (node, rule) = guest_devices::look_at(device)?;
        nodes.push(node);
        rules.push(rule);
    }
    let container = ContainerPlan {
        workdir: String::new(),
        rootfs: rootfs_plan(rootfs, spec.root.is_some_and(|root| root.readonly))?,
        joins,
        namespaces,
        mounts: mounts(&spec.mounts)?,
        devices: nodes,
        masked: paths("linux.maskedPaths", linux.masked_paths())?,
        readonly: paths("linux.readonlyPaths", linux.readonly_paths())?,
        sysctls: sysctls(&linux)?,
        hostname: spec.hostname,
        hosts: request.hosts.iter().map(|line| host(line)).collect::<Result<_, _>>()?,
        names: Names::default(),
        domainname: spec.domainname,
        propagation: match linux.rootfs_propagation().as_deref() {
            None | Some("") => libc::MS_PRIVATE | libc::MS_REC,
            Some(word) => mount_options::propagation(word).ok_or_else(|| {
                value("linux.rootfsPropagation", word, "private, slave, shared or unbindable is needed")
            })?,
        },
    };
    let surroundings = Surroundings {
        cgroup: cgroup_path(id, &linux)?,
        settings: limits::settings(&resources).map_err(PlanError::Limit)?,
        device_program: devices::compile(&rules).map_err(PlanError::DeviceRule)?,
        pid_namespace,
    };
    Ok(ContainerRequest {
        stage: StagePlan { container: Some(container), stays: false, process },
        surroundings,
        oom_score_adj,
        seccomp: filter,
    })
}

/// Validates a request for another process in a container with the given seccomp filter. Returns
/// the plan and the OOM score.
///
/// # Errors
/// [`PlanError`] names the part that is wrong or cannot be enforced.
pub fn exec(
    process_json: &[u8],
    user: &str,
    more_groups: &[String],
    stdio: &Stdio,
    filter: Option<SeccompFilter>,
) -> Result<(StagePlan, Option<i32>), PlanError> {
    let oci: OciProcess =
        serde_json::from_slice(process_json).map_err(|error| PlanError::Json("process", error))?;
    let oom_score_adj = oom_score(&oci)?;
    let mut process = process(oci, user, more_groups, stdio)?;
    process.seccomp = filter;
    Ok((StagePlan { container: None, stays: false, process }, oom_score_adj))
}

fn oom_score(process: &OciProcess) -> Result<Option<i32>, PlanError> {
    match process.oom_score_adj {
        Some(score) if !(-1000..=1000).contains(&score) => {
            Err(value("process.oomScoreAdj", &score.to_string(), "-1000 to 1000 are allowed"))
        }
        score => Ok(score),
    }
}

fn process(
    process: OciProcess,
    user: &str,
    more_groups: &[String],
    stdio: &Stdio,
) -> Result<ProcessPlan, PlanError> {
    for (name, label) in [
        ("process.apparmorProfile", &process.apparmor_profile),
        ("process.selinuxLabel", &process.selinux_label),
    ] {
        if label.as_deref().is_some_and(|label| !label.is_empty()) {
            return Err(unsupported(name));
        }
    }
    for (name, given) in [
        ("process.ioPriority", process.io_priority.is_some()),
        ("process.scheduler", process.scheduler.is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity.is_some()),
    ] {
        if given {
            return Err(unsupported(name));
        }
    }
    if process.args.first().is_none_or(String::is_empty) {
        return Err(PlanError::Missing("process.args"));
    }
    process.args.iter().try_for_each(|arg| no_zero("process.args", arg))?;
    process.env.iter().try_for_each(|entry| no_zero("process.env", entry))?;
    let cwd = if process.cwd.is_empty() { "/".to_owned() } else { process.cwd };
    absolute("process.cwd", &cwd)?;
    let sets = process.capabilities.unwrap_or_default();
    let bits = |names: &[String]| caps::bits(names).map_err(PlanError::Capability);
    let capabilities = CapabilitySets {
        bounding: bits(&sets.bounding)?,
        effective: bits(&sets.effective)?,
        permitted: bits(&sets.permitted)?,
        inheritable: bits(&sets.inheritable)?,
        ambient: bits(&sets.ambient)?,
    };
    if capabilities.effective & !capabilities.permitted != 0 {
        return Err(value("process.capabilities.effective", "", "it must be a subset of permitted"));
    }
    if capabilities.ambient & !(capabilities.permitted & capabilities.inheritable) != 0 {
        return Err(value(
            "process.capabilities.ambient",
            "",
            "it must be a subset of permitted and inheritable",
        ));
    }
    let size = |field, number: u32| {
        u16::try_from(number).map_err(|_| value(field, &number.to_string(), "0 to 65535 are allowed"))
    };
    let terminal = match stdio.terminal {
        true => Some((size("stdio.rows", stdio.rows)?, size("stdio.columns", stdio.columns)?)),
        false => None,
    };
    Ok(ProcessPlan {
        args: process.args,
        env: process.env,
        cwd,
        user: UserPlan {
            name: user.to_owned(),
            uid: process.user.uid,
            gid: process.user.gid,
            groups: process.user.additional_gids,
            more_groups: more_groups.to_vec(),
        },
        capabilities,
        no_new_privileges: process.no_new_privileges,
        rlimits: process
            .rlimits
            .iter()
            .map(|limit| {
                if limit.soft() > limit.hard() {
                    return Err(value(
                        "process.rlimits",
                        &limit.typ().to_string(),
                        "the soft limit exceeds the hard limit",
                    ));
                }
                Ok((resource(limit.typ()), limit.soft(), limit.hard()))
            })
            .collect::<Result<_, _>>()?,
        umask: process.user.umask,
        seccomp: None,
        init: false,
        terminal,
    })
}

fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

fn refuse_unsupported(linux: &Linux) -> Result<(), PlanError> {
    let filled = |name: &str, given: bool| if given { Err(unsupported(name)) } else { Ok(()) };
    filled("linux.uidMappings", linux.uid_mappings().as_ref().is_some_and(|all| !all.is_empty()))?;
    filled("linux.gidMappings", linux.gid_mappings().as_ref().is_some_and(|all| !all.is_empty()))?;
    filled("linux.netDevices", linux.net_devices().as_ref().is_some_and(|all| !all.is_empty()))?;
    filled("linux.mountLabel", linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()))?;
    filled("linux.intelRdt", linux.intel_rdt().is_some())?;
    filled("linux.memoryPolicy", linux.memory_policy().is_some())?;
    filled("linux.personality", linux.personality().is_some())?;
    filled("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|all| !all.is_empty()))
}

type Namespaces = (i32, Vec<(i32, String)>, Option<String>);

/// Flags of new namespaces, namespaces to join, and the PID namespace to join.
fn namespaces(linux: &Linux) -> Result<Namespaces, PlanError> {
    let (mut new, mut joins, mut pid) = (0, Vec::new(), None);
    for namespace in linux.namespaces().iter().flatten() {
        let flag = match namespace.typ() {
            LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
            LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
            LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
            LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
            LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
            LinuxNamespaceType::Network => libc::CLONE_NEWNET,
            LinuxNamespaceType::User => return Err(unsupported("linux.namespaces: user")),
            LinuxNamespaceType::Time => return Err(unsupported("linux.namespaces: time")),
        };
        let path = match namespace.path() {
            None => None,
            Some(path) => {
                let path = path.to_str().ok_or_else(|| unsupported("a namespace path that is not UTF-8"))?;
                absolute("linux.namespaces.path", path)?;
                Some(path.to_owned())
            }
        };
        match (flag, path) {
            (flag, None) => new |= flag,
            (libc::CLONE_NEWNS, Some(_)) => return Err(unsupported("joining a mount namespace by path")),
            (libc::CLONE_NEWPID, Some(path)) => pid = Some(path),
            (flag, Some(path)) => joins.push((flag, path)),
        }
    }
    // The root file system is mounted for the container; without a mount namespace this would
    // change the agent's own mounts.
    if new & libc::CLONE_NEWNS == 0 {
        return Err(PlanError::Missing("mount namespace"));
    }
    // Its processes must end with the first one, and must not see the agent.
    if new & libc::CLONE_NEWPID == 0 && pid.is_none() {
        return Err(PlanError::Missing("pid namespace"));
    }
    Ok((new, joins, pid))
}

fn rootfs_plan(rootfs: &Rootfs, mount_read_only: bool) -> Result<RootfsPlan, PlanError> {
    absolute("rootfs.device", &rootfs.device)?;
    if !["erofs", "squashfs", "ext4"].contains(&rootfs.filesystem.as_str()) {
        return Err(value("rootfs.filesystem", &rootfs.filesystem, "erofs, squashfs or ext4 is needed"));
    }
    let upper_device = Some(&rootfs.upper_device).filter(|device| !device.is_empty());
    upper_device.map_or(Ok(()), |device| absolute("rootfs.upper_device", device))?;
    Ok(RootfsPlan {
        device: rootfs.device.clone(),
        filesystem: rootfs.filesystem.clone(),
        read_only: rootfs.read_only,
        mount_read_only: mount_read_only || rootfs.read_only,
        upper_bytes: rootfs.upper_bytes,
        upper_device: upper_device.cloned(),
        volumes: rootfs
            .volumes
            .iter()
            .map(volume)
            .chain(rootfs.shares.iter().map(share))
            .collect::<Result<_, _>>()?,
    })
}

fn volume(volume: &Volume) -> Result<VolumePlan, PlanError> {
    check_id("rootfs.volumes.name", &volume.name)?;
    absolute("rootfs.volumes.path", &volume.path)?;
    let source = VolumeSource::Kept { name: volume.name.clone(), copy_up: volume.copy_up };
    Ok(VolumePlan { source, path: volume.path.clone(), read_only: volume.read_only })
}

fn share(share: &Share) -> Result<VolumePlan, PlanError> {
    check_id("rootfs.shares.tag", &share.tag)?;
    absolute("rootfs.shares.path", &share.path)?;
    let source = VolumeSource::Shared { tag: share.tag.clone(), file: share.file };
    Ok(VolumePlan { source, path: share.path.clone(), read_only: share.read_only })
}

/// A line for /etc/hosts.
fn host(line: &str) -> Result<String, PlanError> {
    host_line(line).ok_or_else(|| value("hosts", line, "an address, a space and a name are needed"))
}

fn mounts(mounts: &[oci_spec::runtime::Mount]) -> Result<Vec<MountPlan>, PlanError> {
    let mut plans = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let destination = mount.destination().to_string_lossy().into_owned();
        absolute("mounts.destination", &destination)?;
        let mapped = [mount.uid_mappings(), mount.gid_mappings()];
        if mapped.into_iter().flatten().any(|mappings| !mappings.is_empty()) {
            return Err(unsupported("mounts.uidMappings"));
        }
        let words = mount.options().as_deref().unwrap_or_default();
        let options =
            mount_options::parse(words).map_err(|error| PlanError::Mount(destination.clone(), error))?;
        let source =
            mount.source().as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let kind = mount.typ().clone().unwrap_or_default();
        no_zero("mounts.source", &source)?;
        no_zero("mounts.type", &kind)?;
        no_zero("mounts.options", &options.data)?;
        let bind = options.flags & libc::MS_BIND != 0 || kind == "bind";
        if bind {
            absolute("mounts.source", &source)?;
        } else if kind.is_empty() {
            return Err(value("mounts.type", &destination, "a mount that is not a bind mount needs a type"));
        }
        let kind = match kind.as_str() {
            _ if bind => "bind".to_owned(),
            "cgroup" => "cgroup2".to_owned(),
            _ => kind,
        };
        let mut options = options;
        if bind {
            options.flags |= libc::MS_BIND;
        }
        plans.push(MountPlan { destination, kind, source, options });
    }
    Ok(plans)
}

fn device_nodes(linux: &Linux) -> Result<Vec<DevicePlan>, PlanError> {
    let mut nodes = Vec::new();
    for device in linux.devices().iter().flatten() {
        let path = device.path().to_string_lossy().into_owned();
        absolute("linux.devices.path", &path)?;
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
            LinuxDeviceType::B => libc::S_IFBLK,
            LinuxDeviceType::P => libc::S_IFIFO,
            LinuxDeviceType::A => return Err(value("linux.devices.type", "a", "c, b, u or p is needed")),
        };
        let number = |number: i64| {
            u32::try_from(number)
                .map_err(|_| value("linux.devices", &number.to_string(), "0 to 4294967295 are allowed"))
        };
        nodes.push(DevicePlan {
            path,
            mode: kind | (device.file_mode().unwrap_or(0o666) & 0o7777),
            major: number(device.major())?,
            minor: number(device.minor())?,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        });
    }
    Ok(nodes)
}

fn paths(field: &'static str, paths: &Option<Vec<String>>) -> Result<Vec<String>, PlanError> {
    let paths = paths.clone().unwrap_or_default();
    paths.iter().try_for_each(|path| absolute(field, path))?;
    Ok(paths)
}

fn sysctls(linux: &Linux) -> Result<Vec<(String, String)>, PlanError> {
    let mut sysctls: Vec<_> =
        linux.sysctl().iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect();
    sysctls.sort();
    for (name, _) in &sysctls {
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte));
        if !plain || name.split(['.', '/']).any(|part| part.is_empty()) {
            return Err(value("linux.sysctl", name, "a dotted name is needed"));
        }
    }
    Ok(sysctls)
}

fn cgroup_path(id: &str, linux: &Linux) -> Result<String, PlanError> {
    let Some(path) = linux.cgroups_path() else { return Ok(id.to_owned()) };
    let path = path.to_string_lossy();
    let trimmed = path.trim_matches('/');
    if trimmed.is_empty() {
        return Ok(id.to_owned());
    }
    no_zero("linux.cgroupsPath", trimmed)?;
    if trimmed.contains(':') {
        return Err(value("linux.cgroupsPath", &path, "a path is needed; there is no systemd in the guest"));
    }
    if trimmed.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(value("linux.cgroupsPath", &path, "a path without . and .. is needed"));
    }
    Ok(trimmed.to_owned())
}

#[cfg(test)]
mod tests;
