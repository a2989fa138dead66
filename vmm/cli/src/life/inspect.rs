//! `nelly inspect`: all that is known of sandboxes.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow};
use nelly_image::LocalStore;
use nelly_sandbox::connect::{Connection, HealthResponse, PortsResponse, RelayReport, StateResponse};
use nelly_sandbox::spec::network::{Network, UserNetwork};
use nelly_sandbox::state::{Condition, SandboxDir, Timestamp};
use serde_json::{Value, json};

use super::args::NamesArgs;
use super::sandboxes;
use crate::context::Context;
use crate::fail::{self, Hint};
use crate::out;

/// Prints an array with an object for each of the named, in their order. One that cannot be shown
/// is told on standard error.
pub(crate) fn inspect(args: &NamesArgs, context: &Context) -> Result<ExitCode> {
    let sandboxes = sandboxes(context);
    let (mut objects, mut failed) = (Vec::new(), false);
    for word in &args.names {
        let found = match &sandboxes {
            Ok(all) => all.find(word).map_err(Error::from),
            Err(error) => Err(anyhow!("{error:#}")),
        };
        match found.map_err(|error| hinted(word, error, context)).and_then(|sandbox| object(&sandbox)) {
            Ok(object) => objects.push(object),
            Err(error) => {
                fail::report(&error, false, 1);
                failed = true;
            }
        }
    }
    out::json(format_args!("{:#}", Value::Array(objects)))?;
    Ok(ExitCode::from(u8::from(failed)))
}

/// An error of a word that names no sandbox, with a hint if it names an image.
fn hinted(word: &str, error: Error, context: &Context) -> Error {
    let images = LocalStore::open(context.places.images());
    match images.map(|images| images.look_up(word)) {
        Ok(Ok(_)) => Hint::error(
            format!("{error:#}"),
            format!("{word} is an image, which `nelly image inspect {word}` shows"),
        ),
        _ => error,
    }
}

/// How long a keeper may take to tell; one that hangs holds up nothing else.
const KEEPER: Duration = Duration::from_secs(1);

/// The execs that run, the health of the container, the network of the machine, the relays and what
/// the monitor shows of the machine, as its keeper tells; null if it does not.
fn told(sandbox: &SandboxDir, runtime_dir: Option<&Path>) -> [Value; 5] {
    let told = super::runtime().ok().zip(runtime_dir).and_then(|(runtime, place)| {
        let asked = async {
            let keeper = Connection::open(place).await.ok()?;
            let state = keeper.state().await.ok()?;
            // One of an older version does not know it.
            let health = if state.health.is_empty() { None } else { keeper.health().await.ok() };
            let health = health.map_or(Value::Null, health_object);
            let mut network = network_object(&state);
            if state.network == "up" {
                // A network that hangs holds up nothing else, and an older keeper does not know it.
                let ports = tokio::time::timeout(KEEPER, keeper.ports()).await;
                add_ports(&mut network, ports.ok().and_then(Result::ok));
            }
            // The same of a monitor.
            let monitor = tokio::time::timeout(KEEPER, keeper.monitor()).await;
            let monitor = monitor.ok().and_then(Result::ok);
            let monitor = monitor.and_then(|shown| serde_json::from_str(&shown).ok()).unwrap_or_default();
            Some([execs(&state), health, network, relays(&state), monitor])
        };
        runtime.block_on(async { tokio::time::timeout(3 * KEEPER, asked).await.ok().flatten() })
    });
    told.filter(|_| sandbox.is_locked().unwrap_or(false)).unwrap_or_default()
}

/// Health and the latest results of its check. What probes wrote is the guest's: the output escapes
/// it.
fn health_object(health: HealthResponse) -> Value {
    let log = health.results.into_iter().map(|one| {
        json!({ "started_at": Timestamp::from_unix_ns(one.started_unix_ns),
            "ended_at": Timestamp::from_unix_ns(one.ended_unix_ns), "code": one.code,
            "output": String::from_utf8_lossy(&one.output) })
    });
    json!({ "status": health.health, "failing_streak": health.failures, "log": log.collect::<Value>() })
}

/// The user-mode network; null of any other.
fn network_object(state: &StateResponse) -> Value {
    match state.network.as_str() {
        "" => Value::Null,
        link => {
            let mut network = json!({ "link": link, "published": state.published,
                "confinement": state.network_confinement });
            if state.network_process != 0 {
                network["process"] = json!(state.network_process);
            }
            // The process is null if it has ended.
            if !state.secrets_confinement.is_empty() {
                let process = (state.secrets_process != 0).then_some(state.secrets_process);
                network["secrets"] = json!({ "process": process, "confinement": state.secrets_confinement });
                if !state.secrets_reason.is_empty() {
                    network["secrets"]["reason"] = json!(state.secrets_reason);
                }
            }
            if !state.network_reason.is_empty() {
                network["reason"] = json!(state.network_reason);
            }
            network
        }
    }
}

/// The addresses of a user-mode network, whether they were asked for or not.
fn addresses(user: &UserNetwork) -> Value {
    let config = user.config("");
    json!({ "prefix4": config.prefix4, "gateway4": config.gateway4, "dns4": config.dns4, "guest4": config.guest4,
        "prefix6": config.prefix6, "gateway6": config.gateway6, "dns6": config.dns6, "guest6": config.guest6 })
}

/// Adds the counters of ports and of rules, where they are known.
fn add_ports(network: &mut Value, told: Option<PortsResponse>) {
    if let Some(told) = told {
        network["ports"] = super::port::objects(&told);
        network["traffic"] = json!({ "allowed": told.allowed, "denied": told.denied,
            "names_allowed": told.names_allowed, "names_denied": told.names_denied });
    }
}

/// What became of connections of relays. Why one failed may be the guest's word: the output escapes
/// it.
fn relays(state: &StateResponse) -> Value {
    let relay = |one: &RelayReport| {
        json!({ "listens": one.listens, "listen": one.listen, "connect": one.connect, "connections": one.connections,
            "failed": one.failed, "last_failure": one.last_failure })
    };
    state.relays.iter().map(relay).collect()
}

fn execs(state: &StateResponse) -> Value {
    state.execs.iter().map(super::exec::object).collect()
}

/// The record of a sandbox, and beside it what is the case.
fn object(sandbox: &SandboxDir) -> Result<Value> {
    let (record, state, condition) = (sandbox.record()?, sandbox.state()?, sandbox.condition()?);
    let mut object = serde_json::to_value(&record).context("cannot show the record")?;
    object["schema"] = json!(1);
    object["status"] = json!(condition.word());
    object["unclean"] = json!(condition == Condition::Unclean);
    object["directory"] = json!(sandbox.dir().path());
    if condition.is_live() {
        let [execs, health, network, relays, monitor] = told(sandbox, state.runtime_dir.as_deref());
        object["execs"] = execs;
        object["health"] = health;
        object["network"] = network;
        if let (Network::User(user), true) = (&record.machine.network, object["network"].is_object()) {
            object["network"]["addresses"] = addresses(user);
        }
        object["relays"] = relays;
        object["monitor"] = monitor;
    }
    object["state"] = serde_json::to_value(&state).context("cannot show the state")?;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_runs_says_which_process_serves_it() {
        let shown = |link: &str, process| {
            network_object(&StateResponse {
                network: link.to_owned(),
                network_process: process,
                ..Default::default()
            })
        };
        assert_eq!((&shown("up", 77)["process"], shown("", 0)), (&json!(77), Value::Null));
        assert_eq!(shown("down", 0).get("process"), None);
    }

    #[test]
    fn addresses_are_those_that_the_guest_has() {
        let addresses = |text: &str| match text.parse() {
            Ok(Network::User(user)) => addresses(&user),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(addresses("user")["guest4"], "10.0.2.15");
        let own = addresses("user,prefix=10.77.0.0/24,dns=10.77.0.53,prefix=fd77::/64");
        assert_eq!((&own["prefix4"], &own["guest4"]), (&json!("10.77.0.0/24"), &json!("10.77.0.15")));
        assert_eq!((&own["dns4"], &own["gateway4"]), (&json!("10.77.0.53"), &json!("10.77.0.2")));
        assert_eq!((&own["prefix6"], &own["guest6"]), (&json!("fd77::/64"), &json!("fd77::15")));
    }
}
