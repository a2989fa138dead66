//! The runtime spec as this agent reads it: the types of `oci-spec` where they serve, own ones
//! where those would cost the static binary a regular-expression engine or would lose what a
//! message has to name.

use std::collections::HashMap;

use oci_spec::runtime::{Linux, Mount, PosixRlimit};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// `config.json`.
#[derive(Debug, Deserialize)]
pub struct Spec {
    /// The first process.
    pub process: Option<OciProcess>,
    /// Only `readonly` counts: where the root comes from is told by the request.
    pub root: Option<Root>,
    /// Host name in the container's UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name in the container's UTS namespace.
    pub domainname: Option<String>,
    /// Mounts, in order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Programs to run outside of the container: refused when there are any.
    #[serde(default)]
    pub hooks: HashMap<String, Vec<IgnoredAny>>,
    /// Everything Linux.
    pub linux: Option<Linux>,
}

/// `root`.
#[derive(Debug, Deserialize)]
pub struct Root {
    /// Mount the root read-only for the container.
    #[serde(default)]
    pub readonly: bool,
}

/// `process`, of a container or of an exec.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OciProcess {
    /// Has a terminal; the request's `Stdio` says the same.
    pub terminal: bool,
    /// User and groups by number.
    pub user: User,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment, `NAME=value` each.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// The five sets, by name.
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    pub rlimits: Vec<PosixRlimit>,
    /// Sets the bit of prctl(2).
    pub no_new_privileges: bool,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Not enforced by this agent, therefore refused when not empty.
    pub apparmor_profile: Option<String>,
    /// Not enforced by this agent, therefore refused when not empty.
    pub selinux_label: Option<String>,
    /// Not enforced by this agent, therefore refused.
    pub io_priority: Option<IgnoredAny>,
    /// Not enforced by this agent, therefore refused.
    pub scheduler: Option<IgnoredAny>,
    /// Not enforced by this agent, therefore refused.
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Option<IgnoredAny>,
}

/// `process.user`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// `process.capabilities`, names such as `CAP_KILL`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Upper bound of what exec can grant.
    pub bounding: Vec<String>,
    /// The capabilities that are checked.
    pub effective: Vec<String>,
    /// The capabilities that may be made effective.
    pub permitted: Vec<String>,
    /// The capabilities that file capabilities may grant after exec.
    pub inheritable: Vec<String>,
    /// The capabilities that an exec of an ordinary program keeps.
    pub ambient: Vec<String>,
}
