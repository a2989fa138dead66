//! The two JSON files of a sandbox, as plain data.
//!
//! Fields are only ever added, each with a default, so an older file is read as it is meant. A file
//! with another `schema`, or with a status that this build does not know, is refused: it is of a
//! newer version, which alone knows what may be done with it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use nelly_image::Config;
use nelly_vmm::config::{Confine, CpuCount, MemorySize, MonitorUser, Platform};
use serde::{Deserialize, Serialize};

use super::{BootRecord, Exit, Id, Name, StorageSize, Timestamp};
use crate::spec::machine::STORAGE_DEVICE;
use crate::spec::{ContainerSpec, Network};

/// The `schema` of both files.
pub const SCHEMA: u32 = 1;

/// The `schema` of the record of a machine of `nelly boot`: a version that does not know of them
/// would start a container, so it must not read the record.
pub const BOOT_SCHEMA: u32 = 2;

/// The labels of a sandbox: those of its image, and its own, which win.
#[must_use]
pub fn labels(image: &Config, own: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all: BTreeMap<_, _> = image.labels().clone().unwrap_or_default().into_iter().collect();
    all.extend(own);
    all
}

/// `sandbox.json`: everything that a start needs. Only the name, the restart policy and limits are
/// ever changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id; the first container has the same.
    pub id: Id,
    /// Its name; the first container has the same.
    pub name: Name,
    /// When it was created.
    pub created: Timestamp,
    /// The image of its first container.
    pub image: ImageRecord,
    /// Its first container.
    pub container: ContainerSpec,
    /// Its machine.
    pub machine: MachineRecord,
    /// When it is started again after its end.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Words of its image and of whoever made it, for filters.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Words for other programs.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// It is removed at its end.
    #[serde(default)]
    pub auto_remove: bool,
    /// The number of the signal that asks its first process to end, 1 to 64.
    #[serde(default = "sigterm")]
    pub stop_signal: u8,
    /// How long that process may take, in milliseconds, before it is killed.
    #[serde(default = "ten_seconds")]
    pub stop_grace_ms: u64,
    /// Size of the disk of the writable layer, in bytes; 0 means that it has none.
    #[serde(default)]
    pub storage_bytes: u64,
    /// It has no container and no agent: its machine boots from this. Then `container` says only
    /// that its serial port is its terminal, `image` names what boots, and `machine` has no kernel
    /// and no initramfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootRecord>,
}

impl SandboxRecord {
    /// The `schema` of its file.
    pub(super) fn schema(&self) -> u32 {
        if self.boot.is_some() { BOOT_SCHEMA } else { SCHEMA }
    }

    /// Says that the writable layer of its first container is on a disk of this size, which
    /// [`super::directory::Draft::make_disk`] makes.
    pub fn set_storage(&mut self, size: StorageSize) {
        self.storage_bytes = size.get();
        self.container.upper_device = Some(STORAGE_DEVICE.to_owned());
    }
}

fn sigterm() -> u8 {
    15
}

fn ten_seconds() -> u64 {
    10_000
}

/// The image that a sandbox was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The reference, as a person reads it.
    pub reference: String,
    /// The digest of its manifest.
    pub digest: String,
    /// The files of its disk, in order. They are kept as long as the sandbox is.
    pub disk_paths: Vec<PathBuf>,
}

/// The machine of a sandbox, its files by their paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Number of vCPUs.
    pub cpus: CpuCount,
    /// Guest memory size, in bytes.
    pub memory_bytes: MemorySize,
    /// Text appended to the kernel command line.
    #[serde(default)]
    pub append: String,
    /// Whether the processor's virtualisation is exposed to the guest.
    #[serde(default)]
    pub nested: bool,
    /// Whether the monitor gives up what the machine does not need.
    #[serde(default, skip_serializing_if = "Confine::is_default")]
    pub confine: Confine,
    /// The user that the monitor becomes, if root starts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor_user: Option<MonitorUser>,
    /// How many further containers can run at a time: each needs a slot for its image's disk.
    #[serde(default)]
    pub spare_slots: u8,
    /// Whether the host gets back what the guest has freed while it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub give_back: bool,
    /// How the hardware is described to the kernel.
    #[serde(default)]
    pub platform: Platform,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initrd: PathBuf,
    /// The `nelly-monitor` program.
    pub monitor: PathBuf,
    /// The `nelly-usernet` program, if it is installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usernet: Option<PathBuf>,
    /// Its network.
    #[serde(default)]
    pub network: Network,
}

impl MachineRecord {
    /// How many further containers can run at a time in a sandbox that stays, if nobody says
    /// another number.
    pub const SPARE_SLOTS: u8 = 4;
}

/// When a sandbox is started again after its end, in docker's spelling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// After a failure, at most this many times in a row; 0 means any number.
    OnFailure(u32),
    /// Always, unless it was stopped by a command.
    Always,
    /// The same, and not after a reboot of the host if it was stopped before.
    UnlessStopped,
}

/// A text that is no restart policy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid restart policy {0:?}: use no, on-failure, on-failure:MAXIMUM, always or unless-stopped")]
pub struct RestartPolicyError(String);

impl FromStr for RestartPolicy {
    type Err = RestartPolicyError;

    fn from_str(text: &str) -> Result<Self, RestartPolicyError> {
        match (text, text.strip_prefix("on-failure:").map(str::parse)) {
            ("no", _) => Ok(Self::No),
            ("on-failure", _) => Ok(Self::OnFailure(0)),
            ("always", _) => Ok(Self::Always),
            ("unless-stopped", _) => Ok(Self::UnlessStopped),
            (_, Some(Ok(maximum))) => Ok(Self::OnFailure(maximum)),
            _ => Err(RestartPolicyError(text.to_owned())),
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure(0) => f.write_str("on-failure"),
            Self::OnFailure(maximum) => write!(f, "on-failure:{maximum}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = RestartPolicyError;

    fn try_from(text: String) -> Result<Self, RestartPolicyError> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

/// What a sandbox's holder last wrote of it. If nobody holds it any more, see [`Condition`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Status {
    /// It was never started.
    Created,
    /// The machine or the container is not there yet.
    Starting,
    /// The container runs.
    Running,
    /// The machine is paused.
    Paused,
    /// The container was asked to end, or the machine is being ended.
    Stopping,
    /// It ended, and its result is known.
    Exited,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 6] =
        [Self::Created, Self::Starting, Self::Running, Self::Paused, Self::Stopping, Self::Exited];

    /// Its word in files and filters.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
        }
    }
}

/// A word that is no status of this version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown status {0:?}; this version knows created, starting, running, paused, stopping and exited")]
pub struct StatusError(String);

impl FromStr for Status {
    type Err = StatusError;

    fn from_str(text: &str) -> Result<Self, StatusError> {
        Self::ALL.into_iter().find(|status| status.word() == text).ok_or_else(|| StatusError(text.to_owned()))
    }
}

impl TryFrom<String> for Status {
    type Error = StatusError;

    fn try_from(text: String) -> Result<Self, StatusError> {
        text.parse()
    }
}

impl From<Status> for String {
    fn from(status: Status) -> Self {
        status.word().to_owned()
    }
}

/// How the first container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Its exit code, as in [`Exit`].
    pub code: u8,
    /// The reason, as in [`Exit`].
    pub reason: String,
}

impl From<Exit> for ExitRecord {
    fn from(exit: Exit) -> Self {
        Self { code: exit.code, reason: exit.reason.to_owned() }
    }
}

/// Whether a container works, by its health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// It is not known yet.
    Starting,
    /// The latest probes succeeded, or not enough of them failed.
    Healthy,
    /// So many probes failed in a row as the check says.
    Unhealthy,
}

impl HealthStatus {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::Starting, Self::Healthy, Self::Unhealthy];

    /// Its word in files and filters.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// The health of a container that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthRecord {
    /// What its check says.
    pub status: HealthStatus,
    /// Since when.
    pub since: Timestamp,
}

impl HealthRecord {
    /// With a status that is new.
    #[must_use]
    pub fn now(status: HealthStatus) -> Self {
        Self { status, since: Timestamp::now() }
    }
}

/// The process that holds a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderRecord {
    /// Its process id. Another process may have it later.
    pub pid: u32,
    /// When it started, in clock ticks since the host's boot (`/proc/PID/stat`): together with the
    /// pid this is one process only, until the host is booted again.
    pub start_ticks: u64,
}

/// A further container in the machine of a sandbox, as `nelly run --in` starts one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: Id,
    /// Its name, which no other container of the sandbox has.
    pub name: Name,
    /// Its image.
    pub image: ImageRecord,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `starting`, `running` or `exited`.
    pub status: Status,
    /// When it was asked for.
    pub created: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitRecord>,
    /// What went wrong, where the exit alone does not tell.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// The user-mode network of a machine that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// Its published ports, each as `ADDRESS:PORT:GUEST/PROTOCOL`.
    #[serde(default)]
    pub published: Vec<String>,
    /// Since when its process has been dead, and why. The machine goes on without its link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<NetworkDown>,
}

impl NetworkState {
    /// The published ports that somebody serves: none of a dead network.
    #[must_use]
    pub fn serving(&self) -> &[String] {
        if self.down.is_none() { &self.published } else { &[] }
    }
}

/// The end of a network's process before that of its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDown {
    /// When it was seen.
    pub since: Timestamp,
    /// Its last words, or how the system has it.
    pub reason: String,
}

/// `state.json`, written by the holder of the sandbox's lock alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    /// Where it is in its life.
    pub status: Status,
    /// Who holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<HolderRecord>,
    /// When the container last started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// How it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitRecord>,
    /// How often the restart policy started it again.
    #[serde(default)]
    pub restarts: u32,
    /// The directory of its sockets. Other sessions of the same user may have another
    /// `XDG_RUNTIME_DIR`, so it stands here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_dir: Option<PathBuf>,
    /// The process of its machine, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<HolderRecord>,
    /// Why it last ended, where the exit alone does not tell.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// A command ended it on purpose, so that no policy starts it again.
    #[serde(default)]
    pub stopped_by_command: bool,
    /// The container's health, while it runs and has a health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthRecord>,
    /// A process in the foreground holds it, whose terminal or pipes the container's streams are;
    /// it has no log, and is removed at its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub foreground: bool,
    /// The further containers in its machine, those that run and the latest that ended, since its
    /// last start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerRecord>,
    /// The user-mode network of its machine, while its container runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkState>,
}

impl SandboxState {
    /// A sandbox that was never started.
    #[must_use]
    pub fn created() -> Self {
        Self {
            status: Status::Created,
            holder: None,
            started_at: None,
            finished_at: None,
            exit: None,
            restarts: 0,
            runtime_dir: None,
            monitor: None,
            detail: String::new(),
            stopped_by_command: false,
            health: None,
            foreground: false,
            containers: Vec::new(),
            network: None,
        }
    }

    /// The further container that a word means: its name, its id, or at least four characters that
    /// its id begins with. One that has not ended goes before those that have.
    #[must_use]
    pub fn container(&self, word: &str) -> Option<&ContainerRecord> {
        let means = |one: &&ContainerRecord| {
            one.name.as_str() == word || (word.len() >= 4 && one.id.to_string().starts_with(word))
        };
        let found = self.containers.iter().rev().filter(means);
        found.min_by_key(|one| one.status == Status::Exited)
    }

    /// The health of the first container, given what is the case; `None` if it does not run or has
    /// no health check.
    #[must_use]
    pub fn health(&self, condition: Condition) -> Option<HealthStatus> {
        let runs = matches!(condition, Condition::Status(Status::Running | Status::Paused));
        self.health.filter(|_| runs).map(|health| health.status)
    }

    /// What is the case, given whether somebody holds the sandbox's lock.
    #[must_use]
    pub fn condition(&self, locked: bool) -> Condition {
        match self.status {
            Status::Created | Status::Exited => Condition::Status(self.status),
            _ if !locked => Condition::Unclean,
            status => Condition::Status(status),
        }
    }
}

/// What is the case with a sandbox: what its holder wrote, or that its holder ended without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// As written.
    Status(Status),
    /// It ended together with its holder: killed, or the host was booted again. No exit code is
    /// known, and it can be started again.
    Unclean,
}

impl Condition {
    /// Its word in filters and JSON; an unclean end is `exited` too.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Status(status) => status.word(),
            Self::Unclean => Status::Exited.word(),
        }
    }

    /// Whether there is a machine, or will be one in a moment.
    #[must_use]
    pub fn is_live(self) -> bool {
        !matches!(self, Self::Unclean | Self::Status(Status::Created | Status::Exited))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::{ProcessSpec, Seccomp};

    /// A record with as few words as there can be.
    pub(crate) fn example(name: &str) -> SandboxRecord {
        let process = ProcessSpec { args: vec!["sh".into()], cwd: "/".into(), ..ProcessSpec::default() };
        SandboxRecord {
            id: Id::random().unwrap(),
            name: name.parse().unwrap(),
            created: Timestamp::now(),
            image: ImageRecord {
                reference: "builtin:busybox".into(),
                digest: "sha256:00".into(),
                disk_paths: vec!["/cache/a.erofs".into()],
            },
            container: ContainerSpec::new(process, name),
            machine: MachineRecord {
                cpus: CpuCount::default(),
                memory_bytes: MemorySize::default(),
                append: String::new(),
                nested: false,
                confine: Confine::On,
                monitor_user: None,
                spare_slots: 0,
                give_back: false,
                platform: Platform::Auto,
                kernel: "/k".into(),
                initrd: "/i".into(),
                monitor: "/m".into(),
                usernet: None,
                network: Network::None,
            },
            restart: RestartPolicy::No,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            auto_remove: false,
            stop_signal: 15,
            stop_grace_ms: 10_000,
            storage_bytes: 0,
            boot: None,
        }
    }

    #[test]
    fn own_labels_win_over_those_of_the_image() {
        let own: BTreeMap<_, _> =
            [("stage", "own"), ("by", "own")].map(|(name, value)| (name.into(), value.into())).into();
        let image: Config =
            serde_json::from_value(json!({ "Labels": { "stage": "image", "of": "image" } })).unwrap();
        let found = labels(&image, own.clone());
        let expected = [("by", "own"), ("of", "image"), ("stage", "own")];
        assert!(found.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(expected), "{found:?}");
        assert_eq!(labels(&Config::default(), own.clone()), own);
    }

    #[test]
    fn what_is_written_is_read_and_what_is_absent_has_its_default() {
        let mut record = example("web");
        record.restart = RestartPolicy::OnFailure(3);
        let profile =
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#;
        record.container.seccomp = Seccomp::from_json(profile, &[]).unwrap();
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<SandboxRecord>(&text).unwrap(), record);
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["restart"], &value["machine"]["cpus"]), (&json!("on-failure:3"), &json!(1)));
        for later in ["restart", "labels", "annotations", "auto_remove", "stop_signal", "stop_grace_ms"] {
            value.as_object_mut().unwrap().remove(later);
        }
        value["of_a_later_version"] = json!({"x": 1});
        let read: SandboxRecord = serde_json::from_value(value).unwrap();
        assert_eq!(read, SandboxRecord { restart: RestartPolicy::No, ..record });
        let state = SandboxState::created();
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<SandboxState>(&text).unwrap(), state);
        assert_eq!(serde_json::from_str::<SandboxState>(r#"{"status":"created"}"#).unwrap(), state);
    }

    #[test]
    fn an_unknown_status_or_policy_is_refused_by_name() {
        let error = serde_json::from_str::<SandboxState>(r#"{"status":"melting"}"#).unwrap_err().to_string();
        assert!(error.contains("\"melting\"") && error.contains("stopping"), "{error}");
        for policy in ["no", "on-failure", "on-failure:7", "always", "unless-stopped"] {
            assert_eq!(policy.parse::<RestartPolicy>().unwrap().to_string(), policy);
        }
        for bad in ["", "yes", "on-failure:", "on-failure:-1", "on-failure:x", "always:1"] {
            assert!(bad.parse::<RestartPolicy>().is_err(), "{bad}");
        }
    }

    #[test]
    fn health_is_that_of_a_container_that_runs() {
        for status in Status::ALL {
            for health in HealthStatus::ALL {
                let health_record = Some(HealthRecord::now(health));
                let state = SandboxState { status, health: health_record, ..SandboxState::created() };
                let text = serde_json::to_string(&state).unwrap();
                assert!(text.contains(&format!("\"status\":\"{}\"", health.word())), "{text}");
                assert_eq!(serde_json::from_str::<SandboxState>(&text).unwrap(), state);
                let runs = matches!(status, Status::Running | Status::Paused);
                assert_eq!(state.health(state.condition(true)), runs.then_some(health));
                assert_eq!(state.health(state.condition(false)), None);
            }
        }
    }

    #[test]
    fn without_a_holder_what_ran_has_ended_uncleanly() {
        for status in Status::ALL {
            let state = SandboxState { status, ..SandboxState::created() };
            assert_eq!(state.condition(true), Condition::Status(status));
            let ended = state.condition(false);
            match status {
                Status::Created | Status::Exited => assert_eq!(ended, Condition::Status(status)),
                _ => assert_eq!((ended, ended.word()), (Condition::Unclean, "exited")),
            }
            assert!(!ended.is_live());
        }
    }
}
