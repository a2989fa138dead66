//! What happens to sandboxes, told from their files: two looks at the state directory, and what
//! must have happened in between.
//!
//! Nobody writes events down. A sandbox's files hold when it was made, when its container last
//! started and ended, and how often it was started again: so what happens between two looks is told
//! by what changed, and only what came and went in between, such as a short pause, is not.

mod filters;
mod watch;

use std::collections::BTreeMap;
use std::fmt;

use super::directory::{Details, Listed};
use super::record::{Condition, ExitRecord, HealthRecord, HealthStatus, HolderRecord, NetworkState};
use super::{Id, Name, SandboxState, Status, Timestamp};
pub use filters::{FilterError, Filters};
pub use watch::watch;

/// Something that happened to a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It was made.
    Created,
    /// A command started it; its container does not run yet.
    Started,
    /// Its container runs.
    Running,
    /// Its container ended.
    Exited {
        /// The exit code, where it is known.
        code: Option<u8>,
        /// The reason, as in the state; or `unclean`: it ended with its keeper, which told nobody;
        /// or `unknown`: the files do not tell any more.
        reason: String,
    },
    /// Its policy starts it again; so often by now.
    Restarted(u32),
    /// Its machine was paused.
    Paused,
    /// Its machine runs on.
    Unpaused,
    /// Its health check found out something else than before: that it is healthy, or not.
    Health(HealthStatus),
    /// Something of its network is another than before.
    Network(NetworkChange),
    /// It was given another name; this was the old one.
    Renamed(Name),
    /// It was removed.
    Removed,
}

/// What happened to the network of a machine that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkChange {
    /// A port was published, `ADDRESS:PORT:GUEST/PROTOCOL`.
    PortAdded(String),
    /// A port is published no more.
    PortRemoved(String),
    /// Its process ended, and this is why; the machine goes on.
    Down(String),
}

impl NetworkChange {
    /// Its word in output.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::PortAdded(_) => "port_added",
            Self::PortRemoved(_) => "port_removed",
            Self::Down(_) => "down",
        }
    }
}

impl What {
    /// Every word.
    pub const WORDS: [&'static str; 11] = [
        "created",
        "started",
        "running",
        "exited",
        "restarted",
        "paused",
        "unpaused",
        "health_status",
        "network",
        "renamed",
        "removed",
    ];

    fn exited(exit: Option<&ExitRecord>) -> Self {
        let reason = exit.map_or("unknown", |exit| &exit.reason).to_owned();
        Self::Exited { code: exit.map(|exit| exit.code), reason }
    }

    fn unclean() -> Self {
        Self::Exited { code: None, reason: "unclean".to_owned() }
    }

    /// Its word in output and filters.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started => "started",
            Self::Running => "running",
            Self::Exited { .. } => "exited",
            Self::Restarted(_) => "restarted",
            Self::Paused => "paused",
            Self::Unpaused => "unpaused",
            Self::Health(_) => "health_status",
            Self::Network(_) => "network",
            Self::Renamed(_) => "renamed",
            Self::Removed => "removed",
        }
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it happened, where the files say so; else when it was seen.
    pub time: Timestamp,
    /// What happened.
    pub what: What,
    /// The sandbox.
    pub id: Id,
    /// Its name, after the event.
    pub name: Name,
    /// The reference of its image.
    pub image: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What a look at the state directory saw: the sandboxes whose files can be used.
#[derive(Clone, Debug, Default)]
pub struct Look(BTreeMap<Id, Seen>);

#[derive(Clone, Debug)]
struct Seen {
    name: Name,
    image: String,
    labels: BTreeMap<String, String>,
    created: Timestamp,
    condition: Condition,
    holder: Option<HolderRecord>,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    exit: Option<ExitRecord>,
    restarts: u32,
    health: Option<HealthRecord>,
    network: Option<NetworkState>,
}

impl Look {
    /// What a list shows. Of a sandbox whose files cannot be used now, `before` holds.
    #[must_use]
    pub fn new(listed: Vec<Listed>, before: &Self) -> Self {
        let seen = |one: Listed| match one.details {
            Ok(details) => {
                let seen = Seen::new(details);
                Some((one.id, before.0.get(&one.id).map_or(seen.clone(), |old| seen.after(old))))
            }
            Err(_) => before.0.get(&one.id).map(|seen| (one.id, seen.clone())),
        };
        Self(listed.into_iter().filter_map(seen).collect())
    }

    /// What must have happened between `before` and this look, which was taken at `now`; in the
    /// order of time.
    #[must_use]
    pub fn since(&self, before: &Self, now: Timestamp) -> Vec<Event> {
        let mut events = Vec::new();
        for (id, seen) in &self.0 {
            let fresh = Seen::unseen(seen);
            if !before.0.contains_key(id) {
                events.push(seen.event(*id, seen.created, What::Created));
            }
            seen.changes(*id, before.0.get(id).unwrap_or(&fresh), now, &mut events);
        }
        for (id, seen) in &before.0 {
            if !self.0.contains_key(id) {
                seen.gone(*id, now, &mut events);
            }
        }
        events.sort_by_key(|event| event.time);
        events
    }

    /// This look with a later state of one of its sandboxes, which is not listed any more.
    #[must_use]
    pub fn with_last(&self, id: Id, state: SandboxState) -> Self {
        let mut look = self.clone();
        if let Some(seen) = look.0.get_mut(&id) {
            let old = seen.clone();
            seen.condition = state.condition(true);
            seen.take_state(state);
            *seen = seen.clone().after(&old);
        }
        look
    }

    /// Whether this sandbox was seen.
    #[must_use]
    pub fn has(&self, id: Id) -> bool {
        self.0.contains_key(&id)
    }

    /// What these files say of the time before: when each sandbox was made, when its container
    /// last started, when and how it last ended, when its health last changed, and when its network
    /// went down. In the order of time.
    #[must_use]
    pub fn past(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (id, seen) in &self.0 {
            events.push(seen.event(*id, seen.created, What::Created));
            let ended = seen.finished_at.map(|time| (time, What::exited(seen.exit.as_ref())));
            let ran = seen.started_at.map(|time| (time, What::Running));
            let health = seen.told_health().filter(|_| seen.condition.is_live());
            let down = seen.network.as_ref().and_then(|network| network.down.as_ref());
            let down = down.filter(|_| seen.condition.is_live());
            let down = down.map(|down| (down.since, What::Network(NetworkChange::Down(down.reason.clone()))));
            for (time, what) in [ran, ended, health, down].into_iter().flatten() {
                events.push(seen.event(*id, time, what));
            }
        }
        events.sort_by_key(|event| event.time);
        events
    }
}

impl Seen {
    fn new(details: Details) -> Self {
        let Details { record, state, condition } = details;
        let mut seen = Self {
            name: record.name,
            image: record.image.reference,
            labels: record.labels,
            created: record.created,
            condition,
            holder: None,
            started_at: None,
            finished_at: None,
            exit: None,
            restarts: 0,
            health: None,
            network: None,
        };
        seen.take_state(state);
        seen
    }

    /// The same, seen after `old`: what ended uncleanly does not live again because a command holds
    /// its lock, as `rm` does; a new life has a new holder.
    fn after(mut self, old: &Self) -> Self {
        let same = (self.holder, self.started_at) == (old.holder, old.started_at);
        if same && old.condition == Condition::Unclean && self.condition.is_live() {
            self.condition = Condition::Unclean;
        }
        self
    }

    fn take_state(&mut self, state: SandboxState) {
        self.holder = state.holder;
        self.started_at = state.started_at;
        self.finished_at = state.finished_at;
        self.exit = state.exit;
        self.restarts = state.restarts;
        self.health = state.health;
        self.network = state.network;
    }

    /// What its health check found out, and when; nothing before that.
    fn told_health(&self) -> Option<(Timestamp, What)> {
        let found = self.health.filter(|health| health.status != HealthStatus::Starting);
        found.map(|health| (health.since, What::Health(health.status)))
    }

    /// The same sandbox when it was made.
    fn unseen(seen: &Self) -> Self {
        Self {
            condition: Condition::Status(Status::Created),
            holder: None,
            started_at: None,
            finished_at: None,
            exit: None,
            restarts: 0,
            health: None,
            network: None,
            ..seen.clone()
        }
    }

    fn event(&self, id: Id, time: Timestamp, what: What) -> Event {
        let (name, image, labels) = (self.name.clone(), self.image.clone(), self.labels.clone());
        Event { time, what, id, name, image, labels }
    }

    /// What happened since `before`. Times of the files are believed; what has none happened `now`.
    fn changes(&self, id: Id, before: &Self, now: Timestamp, events: &mut Vec<Event>) {
        let mut add = |time, what| events.push(self.event(id, time, what));
        if self.name != before.name {
            add(now, What::Renamed(before.name.clone()));
        }
        let other_holder = self.holder.is_some() && self.holder != before.holder;
        let ran = self.started_at.filter(|_| self.started_at != before.started_at);
        let ended = self.finished_at.filter(|_| self.finished_at != before.finished_at);
        // A life that began and ended between two looks leaves its end alone, and maybe its start.
        let began = other_holder || (ran.is_some() && !before.condition.is_live());
        let start = ran.map_or(now, |ran| now.min(ran));
        if began && before.condition.is_live() && ended.is_none() {
            add(start, What::exited(None));
        }
        if began {
            add(start, What::Started);
        } else if self.restarts > before.restarts {
            add(start, What::Restarted(self.restarts));
        }
        if let Some(ran) = ran {
            add(ran, What::Running);
        }
        match (ended, &self.condition) {
            (Some(ended), _) => add(ended, What::exited(self.exit.as_ref())),
            (None, Condition::Unclean) if before.condition.is_live() || ran.is_some() => {
                add(now, What::unclean());
            }
            _ => {}
        }
        if self.health != before.health
            && let Some((since, health)) = self.told_health()
        {
            add(since, health);
        }
        let same_life = !other_holder && ran.is_none();
        let old = before.network.as_ref().filter(|_| same_life);
        for (time, change) in network_changes(old, self.network.as_ref(), now) {
            add(time, What::Network(change));
        }
        let paused = Condition::Status(Status::Paused);
        if self.condition == paused && before.condition != paused {
            add(now, What::Paused);
        }
        if before.condition == paused && self.condition.is_live() && self.condition != paused {
            add(now, What::Unpaused);
        }
    }

    /// It is not there any more.
    fn gone(&self, id: Id, now: Timestamp, events: &mut Vec<Event>) {
        if self.condition.is_live() {
            // Its last state went with it.
            events.push(self.event(id, now, What::exited(None)));
        }
        events.push(self.event(id, now, What::Removed));
    }
}

/// What happened to a network since `before`, which is none if this is another life of its machine:
/// ports that a machine begins with are not told.
fn network_changes(
    before: Option<&NetworkState>,
    after: Option<&NetworkState>,
    now: Timestamp,
) -> Vec<(Timestamp, NetworkChange)> {
    let Some(after) = after else { return Vec::new() };
    let mut changes = Vec::new();
    if let Some(before) = before {
        let gone = before.published.iter().filter(|port| !after.published.contains(port));
        changes.extend(gone.map(|port| (now, NetworkChange::PortRemoved(port.clone()))));
        let new = after.published.iter().filter(|port| !before.published.contains(port));
        changes.extend(new.map(|port| (now, NetworkChange::PortAdded(port.clone()))));
    }
    if let Some(down) = &after.down
        && before.is_none_or(|before| before.down.is_none())
    {
        changes.push((down.since, NetworkChange::Down(down.reason.clone())));
    }
    changes
}

impl fmt::Display for Event {
    /// One line: the time, the event, the sandbox's short id and its name, and what there is to
    /// say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.time, self.what.word(), self.id.short(), self.name)?;
        match &self.what {
            What::Exited { code: Some(code), reason } => write!(f, " code={code} reason={reason}"),
            What::Exited { code: None, reason } => write!(f, " reason={reason}"),
            What::Restarted(restarts) => write!(f, " restarts={restarts}"),
            What::Renamed(old) => write!(f, " from={old}"),
            What::Health(status) => write!(f, " health={}", status.word()),
            What::Network(change) => match change {
                NetworkChange::PortAdded(port) | NetworkChange::PortRemoved(port) => {
                    write!(f, " change={} port={port}", change.word())
                }
                NetworkChange::Down(reason) => write!(f, " change={} reason={reason}", change.word()),
            },
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
