//! Names of what an agent can do beyond bare v1. A host names in `Hello` those that it needs; an
//! agent that lacks one refuses by that name, so that nothing is ever silently skipped.

/// Containers: `CreateContainer`, `StartContainer`, `Exec`, `Signal`, `Wait`, `State`.
pub const CONTAINERS: &str = "containers";

/// Terminals: `Stdio.terminal` and `ResizePty`.
pub const TERMINAL: &str = "terminal";

/// `Stats`, of a container and of the guest.
pub const STATS: &str = "stats";

/// `linux.seccomp` of the runtime spec is enforced.
pub const SECCOMP: &str = "seccomp";

/// `linux.resources.devices` of the runtime spec is enforced.
pub const DEVICE_CGROUP: &str = "device-cgroup";

/// Root file systems: a read-only block device below a writable layer in the guest's memory.
pub const OVERLAY_TMPFS: &str = "overlay-tmpfs";

/// `Rootfs.upper_device`: the writable layer on a disk.
pub const OVERLAY_DISK: &str = "overlay-disk";

/// `Rootfs.volumes`: directories that are no overlay.
pub const VOLUMES: &str = "volumes";

/// `Rootfs.shares`: directories and files of the host.
pub const SHARES: &str = "shares";

/// `CreateContainerRequest.init`: a small init as the container's first process.
pub const INIT: &str = "init";

/// `CreateContainerRequest.devices`: devices of the guest by their paths.
pub const GUEST_DEVICES: &str = "guest-devices";

/// `CreateContainerRequest.hosts`: names beside the container's own.
pub const HOSTS: &str = "hosts";

/// `Timeline`: the guest's stamps.
pub const TIMELINE: &str = "timeline";

/// `ProbeDevices` and `ReleaseDevice`: disks that come and go.
pub const DEVICES: &str = "devices";

/// The record of an exec outlives its first `Wait`; `DeleteExec`.
pub const EXEC_RECORDS: &str = "exec-records";

/// `Processes`: what runs in a container.
pub const PROCESSES: &str = "processes";

/// `Changes`: how the files of a container differ from its image.
pub const CHANGES: &str = "changes";

/// `UpdateContainer`: limits of a container that runs.
pub const UPDATE: &str = "update";

/// `CopyOut` and `CopyIn`: files of a container.
pub const COPY: &str = "copy";

/// `HelloRequest.network`: interfaces, addresses, routes, names.
pub const NETWORK: &str = "network";

/// `Connect`, `Listen`, `Accept` and `Forget`: connections between the host and a container.
pub const RELAYS: &str = "relays";

/// `Touch`: changes of the host in a shared directory.
pub const TOUCH: &str = "touch";

/// Every feature of the agent built from this tree.
pub const ALL: &[&str] = &[
    CONTAINERS,
    TERMINAL,
    STATS,
    SECCOMP,
    DEVICE_CGROUP,
    OVERLAY_TMPFS,
    OVERLAY_DISK,
    VOLUMES,
    SHARES,
    INIT,
    GUEST_DEVICES,
    HOSTS,
    TIMELINE,
    DEVICES,
    EXEC_RECORDS,
    PROCESSES,
    CHANGES,
    UPDATE,
    COPY,
    NETWORK,
    RELAYS,
    TOUCH,
];
