//! `nelly ps`: what sandboxes there are. It reads files and asks for locks only, so no machine that
//! hangs can delay it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use nelly_sandbox::state::directory::Details;
use nelly_sandbox::state::record::{ContainerRecord, HealthStatus, NetworkState, SandboxState};
use nelly_sandbox::state::{Condition, Listed, Status, Timestamp};
use serde_json::{Value, json};

use super::args::PsArgs;
use crate::context::Context;
use crate::fail::{OfFlag as _, Usage};
use crate::{out, table};

/// How many characters of a command are shown.
const COMMAND: usize = 20;

/// Which sandboxes are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Status(Status),
    Health(Option<HealthStatus>),
    Name(String),
    Id(String),
    Label(String, Option<String>),
    Ancestor(String),
}

fn filter(word: &str) -> Result<Filter> {
    let Some((key, value)) = word.split_once('=') else {
        return Err(Usage::error(format!("--filter {word:?} does not have the form KEY=VALUE")));
    };
    let value = value.to_owned();
    Ok(match key {
        "status" => Filter::Status(value.parse().of_flag("--filter")?),
        "health" => Filter::Health(health(&value)?),
        "name" => Filter::Name(value),
        "id" => Filter::Id(value),
        "label" => match value.split_once('=') {
            Some((label, value)) => Filter::Label(label.to_owned(), Some(value.to_owned())),
            None => Filter::Label(value, None),
        },
        "ancestor" => Filter::Ancestor(value),
        _ => {
            return Err(Usage::error(format!(
                "--filter {word:?}: the filters are status, health, name, id, label and ancestor"
            )));
        }
    })
}

/// The status of a health filter; none for those without.
fn health(word: &str) -> Result<Option<HealthStatus>> {
    match HealthStatus::ALL.into_iter().find(|status| status.word() == word) {
        None if word != "none" => Err(Usage::error(format!(
            "--filter health={word}: the values are starting, healthy, unhealthy and none"
        ))),
        found => Ok(found),
    }
}

impl Filter {
    /// Whether it takes a sandbox. A damaged one has only its id and its name.
    fn takes(&self, one: &Listed) -> bool {
        let details = one.details.as_ref().ok();
        match self {
            Self::Status(status) => details.is_some_and(|details| details.condition.word() == status.word()),
            Self::Health(health) => {
                details.is_some_and(|details| details.state.health(details.condition) == *health)
            }
            Self::Name(part) => one.name.as_ref().is_some_and(|name| name.as_str().contains(part)),
            Self::Id(prefix) => one.id.to_string().starts_with(prefix),
            Self::Label(key, value) => details.is_some_and(|details| {
                let found = details.record.labels.get(key);
                found.is_some_and(|found| value.as_ref().is_none_or(|value| found == value))
            }),
            Self::Ancestor(image) => details.is_some_and(|details| {
                let Details { record, .. } = details;
                record.image.reference == *image || record.image.digest == *image
            }),
        }
    }
}

/// Runs the verb.
pub(crate) fn ps(args: &PsArgs, context: &Context) -> Result<ExitCode> {
    let filters = args.filter.iter().map(|word| filter(word)).collect::<Result<Vec<_>>>()?;
    let all = args.all || filters.iter().any(|filter| matches!(filter, Filter::Status(_)));
    let listed = match super::opened(context)? {
        Some(sandboxes) => sandboxes.list()?,
        None => Vec::new(),
    };
    let live = |one: &Listed| match &one.details {
        Ok(details) => details.condition.is_live(),
        Err(_) => one.locked,
    };
    let shown = listed.into_iter().filter(|one| all || live(one));
    let shown: Vec<Listed> = shown.filter(|one| filters.iter().all(|filter| filter.takes(one))).collect();
    if args.json {
        out::json(Value::Array(shown.iter().map(object).collect()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let id = |one: &Listed| if args.no_trunc { one.id.to_string() } else { one.id.short() };
    if args.quiet {
        shown.iter().try_for_each(|one| out::line(id(one)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = Timestamp::now();
    let mut rows = vec![["ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS"].map(str::to_owned)];
    for one in &shown {
        let name = one.name.as_ref().map_or("-", |name| name.as_str()).to_owned();
        rows.push(match &one.details {
            Ok(details) => {
                let record = &details.record;
                let command = command(&record.container.process.args, args.no_trunc);
                let created = format!("{} ago", words(now.since(record.created)));
                let (image, ports) = (record.image.reference.clone(), ports(details, args.no_trunc));
                let row = [id(one), name, image, command, created, status(details, now), ports];
                rows.push(row);
                rows.extend(containers(args, details, now));
                continue;
            }
            Err(error) => {
                let unknown = || "-".to_owned();
                let status = if error.is_of_newer_version() { "Newer version" } else { "Damaged" };
                [id(one), name, unknown(), unknown(), unknown(), status.to_owned(), String::new()]
            }
        });
    }
    table::aligned(&rows).into_iter().try_for_each(out::line)?;
    Ok(ExitCode::SUCCESS)
}

/// Rows of the further containers in the machine of a sandbox: those that run, or all.
fn containers(
    args: &PsArgs,
    Details { record, state, condition }: &Details,
    now: Timestamp,
) -> Vec<[String; 7]> {
    if !condition.is_live() {
        return Vec::new();
    }
    let shown = state.containers.iter().filter(|one| args.all || one.status != Status::Exited);
    let row = |one: &ContainerRecord| {
        let since = |time: Timestamp| words(now.since(time));
        let status = match (&one.exit, one.finished_at) {
            (Some(exit), Some(time)) => format!("Exited ({}) {} ago", exit.code, since(time)),
            _ if one.status == Status::Starting => "Starting".to_owned(),
            _ => format!("Up {}", since(one.created)),
        };
        let id = if args.no_trunc { one.id.to_string() } else { one.id.short() };
        let (name, image) = (format!("{}/{}", record.name, one.name), one.image.reference.clone());
        let (command, created) = (command(&one.args, args.no_trunc), format!("{} ago", since(one.created)));
        // Published ports are the machine's.
        [id, name, image, command, created, status, String::new()]
    };
    shown.map(row).collect()
}

/// The user-mode network of a machine that runs.
fn network_of<'a>(state: &'a SandboxState, condition: &Condition) -> Option<&'a NetworkState> {
    state.network.as_ref().filter(|_| condition.is_live())
}

/// The published ports of a machine that runs, or that nobody serves them any more.
fn ports(Details { state, condition, .. }: &Details, whole: bool) -> String {
    match network_of(state, condition) {
        None => String::new(),
        Some(NetworkState { down: Some(_), .. }) => "network down".to_owned(),
        Some(NetworkState { published, .. }) => super::port::column(published, whole),
    }
}

/// A sandbox as JSON, by its main facts; `nelly inspect` has all.
fn object(one: &Listed) -> Value {
    let name = one.name.as_ref().map(|name| name.as_str());
    let id = one.id.to_string();
    match &one.details {
        Ok(Details { record, state, condition }) => json!({ "schema": 1, "id": id, "name": name,
            "image": record.image.reference, "image_digest": record.image.digest,
            "command": record.container.process.args, "created": record.created, "status": condition.word(),
            "unclean": *condition == Condition::Unclean, "exit": state.exit, "started_at": state.started_at,
            "finished_at": state.finished_at, "restarts": state.restarts,
            "health": state.health(*condition).map(HealthStatus::word), "labels": record.labels,
            "network": record.machine.network.to_string(),
            "ports": network_of(state, condition).map_or(&[][..], NetworkState::serving),
            "network_down": network_of(state, condition).and_then(|network| network.down.as_ref()),
            "containers": if condition.is_live() { json!(state.containers) } else { json!([]) } }),
        Err(error) => json!({ "schema": 1, "id": id, "name": name,
            "status": if error.is_of_newer_version() { "newer" } else { "damaged" }, "error": nelly_vmm::text::chain(error) }),
    }
}

/// A command in a column.
pub(super) fn command(args: &[String], whole: bool) -> String {
    let command = args.join(" ");
    if whole || command.chars().count() <= COMMAND {
        return command;
    }
    let begins: String = command.chars().take(COMMAND - 1).collect();
    format!("{begins}…")
}

/// The status of a sandbox, as docker words it.
fn status(details: &Details, now: Timestamp) -> String {
    let state = &details.state;
    let since = |time: Option<Timestamp>| words(now.since(time.unwrap_or(now)));
    let code = state.exit.as_ref().map_or(0, |exit| exit.code);
    match details.condition {
        Condition::Unclean => "Exited (unclean)".to_owned(),
        Condition::Status(Status::Created) => "Created".to_owned(),
        Condition::Status(Status::Starting) if state.exit.is_some() => {
            format!("Restarting ({code}) {} ago", since(state.finished_at))
        }
        Condition::Status(Status::Starting) => "Starting".to_owned(),
        Condition::Status(Status::Running) => {
            let health = match state.health(details.condition) {
                None => "",
                Some(HealthStatus::Starting) => " (health: starting)",
                Some(HealthStatus::Healthy) => " (healthy)",
                Some(HealthStatus::Unhealthy) => " (unhealthy)",
            };
            format!("Up {}{health}", since(state.started_at))
        }
        Condition::Status(Status::Paused) => format!("Up {} (Paused)", since(state.started_at)),
        Condition::Status(Status::Stopping) => "Stopping".to_owned(),
        Condition::Status(Status::Exited) => format!("Exited ({code}) {} ago", since(state.finished_at)),
    }
}

/// A duration in words, rounded down to its largest unit.
pub(super) fn words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match (seconds, minutes, hours) {
        (0, ..) => "less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "about a minute".to_owned(),
        (_, ..60, _) => format!("{minutes} minutes"),
        (.., 1) => "about an hour".to_owned(),
        (.., ..48) => format!("{hours} hours"),
        (.., ..336) => format!("{} days", hours / 24),
        (.., ..1440) => format!("{} weeks", hours / 168),
        (.., ..17_520) => format!("{} months", hours / 720),
        _ => format!("{} years", hours / 8760),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_words_of_their_largest_unit() {
        let (minute, hour, day) = (60, 3600, 86_400);
        for (seconds, expected) in [
            (0, "less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (119, "about a minute"),
            (59 * minute, "59 minutes"),
            (2 * hour - 1, "about an hour"),
            (47 * hour, "47 hours"),
            (13 * day, "13 days"),
            (14 * day, "2 weeks"),
            (60 * day, "2 months"),
            (730 * day, "2 years"),
        ] {
            assert_eq!(words(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn filters_are_parsed_or_say_what_there_is() {
        assert_eq!(filter("status=running").unwrap(), Filter::Status(Status::Running));
        assert_eq!(filter("label=a=b=c").unwrap(), Filter::Label("a".into(), Some("b=c".into())));
        assert_eq!(filter("label=a").unwrap(), Filter::Label("a".into(), None));
        assert_eq!(filter("health=healthy").unwrap(), Filter::Health(Some(HealthStatus::Healthy)));
        assert_eq!(filter("health=none").unwrap(), Filter::Health(None));
        for bad in ["running", "status=melting", "colour=red", "health=", "health=ill"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_long_command_is_cut_between_characters() {
        assert_eq!(
            command(&["sh".into(), "-c".into(), "ä".repeat(40)], false),
            format!("sh -c {}…", "ä".repeat(13))
        );
        assert_eq!(command(&["sleep".into(), "1".into()], false), "sleep 1");
        assert_eq!(command(&["x".repeat(40)], true).len(), 40);
    }
}
