//! `nelly events`: what happens to sandboxes, as it happens.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context as _, Error, Result};
use nelly_sandbox::spec::quantity::Time;
use nelly_sandbox::state::events::{Event, Filters, NetworkChange, What, watch};
use nelly_sandbox::state::{Sandboxes, Timestamp};
use nelly_vmm::text;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::args::EventsArgs;
use super::logs::{POINTS, point, since};
use crate::context::Context;
use crate::fail::OfFlag as _;

/// Prints events until Ctrl-C or `--until`.
pub(crate) fn events(args: &EventsArgs, context: &Context) -> Result<ExitCode> {
    let filters = Filters::parse(&args.filter).of_flag("--filter")?;
    let begin = args.since.as_deref().map(since).transpose().of_flag("--since")?;
    let end = args.until.as_deref().map(until).transpose().of_flag("--until")?;
    // It is made, so that the first sandbox of all can be told of.
    let sandboxes = Sandboxes::make(&context.places.sandboxes())?;
    let as_json = args.json;
    let runtime = super::runtime()?;
    let told = runtime.block_on(async {
        let mut interrupts = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        let tells =
            tokio::task::spawn_blocking(move || {
                watch(&sandboxes, begin, end, |event| {
                    if filters.take(event) { print(event, as_json) } else { Ok(()) }
                })
            });
        tokio::select! {
            told = tells => told.context("the watching thread panicked")?,
            _ = interrupts.recv() => Ok(()),
        }
    });
    // The thread waits for changes; it ends with the process.
    runtime.shutdown_background();
    match told {
        // The reader has gone.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        told => told.map(|()| ExitCode::SUCCESS),
    }
}

/// A point in time, or how long from now.
fn until(text: &str) -> Result<Timestamp> {
    if let Some(time) = point(text) {
        return Ok(time);
    }
    let later = Time::DELAY
        .parse(text)
        .with_context(|| format!("{text:?} is neither a time, {POINTS}, nor a duration from now"))?;
    Ok(Timestamp::now().after(later))
}

fn is_broken_pipe(error: &Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn print(event: &Event, as_json: bool) -> Result<()> {
    let said = if as_json { object(event).to_string() } else { event.to_string() };
    let line = if as_json { text::json(&said) } else { text::line(&said) };
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// An event as JSON. What only one kind of event has is absent from the others.
fn object(event: &Event) -> Value {
    let mut object = json!({ "schema": 1, "time": event.time, "event": event.what.word(),
        "id": event.id.to_string(), "name": event.name.as_str(), "image": event.image, "labels": event.labels });
    match &event.what {
        What::Exited { code, reason } => {
            object["code"] = json!(code);
            object["reason"] = json!(reason);
        }
        What::Restarted(restarts) => object["restarts"] = json!(restarts),
        What::Renamed(from) => object["from"] = json!(from.as_str()),
        What::Health(status) => object["health"] = json!(status.word()),
        What::Network(change) => {
            object["change"] = json!(change.word());
            match change {
                NetworkChange::PortAdded(port) | NetworkChange::PortRemoved(port) => {
                    object["port"] = json!(port)
                }
                NetworkChange::Down(reason) => object["reason"] = json!(reason),
            }
        }
        _ => {}
    }
    object
}

#[cfg(test)]
mod tests {
    use nelly_sandbox::state::record::HealthStatus;

    use super::*;

    #[test]
    fn until_takes_a_time_or_a_duration_from_now() {
        assert_eq!(until("2026-01-31T12:00:00Z").unwrap().to_string(), "2026-01-31T12:00:00.000000000Z");
        let later = until("10m").unwrap().since(Timestamp::now()).as_secs();
        assert!((500..=600).contains(&later), "{later}");
        assert!(until("0s").unwrap().since(Timestamp::now()).is_zero());
        for bad in ["", "tomorrow", "10", "-5s"] {
            assert!(until(bad).unwrap_err().to_string().contains("neither a time"), "{bad}");
        }
    }

    #[test]
    fn json_has_what_there_is_to_say() {
        let event = |what| Event {
            time: Timestamp::from_unix_ns(0),
            what,
            id: "0123456789abcdef".repeat(4).parse().unwrap(),
            name: "web".parse().unwrap(),
            image: "alpine".to_owned(),
            labels: [("a".to_owned(), "b".to_owned())].into(),
        };
        let exited = object(&event(What::Exited { code: Some(3), reason: "exited".to_owned() }));
        assert_eq!(
            (&exited["event"], &exited["code"], &exited["reason"]),
            (&json!("exited"), &json!(3), &json!("exited"))
        );
        assert_eq!(
            (&exited["time"], &exited["labels"]["a"]),
            (&json!("1970-01-01T00:00:00.000000000Z"), &json!("b"))
        );
        let unclean = object(&event(What::Exited { code: None, reason: "unclean".to_owned() }));
        assert_eq!((&unclean["code"], &unclean["reason"]), (&Value::Null, &json!("unclean")));
        assert_eq!(object(&event(What::Restarted(2)))["restarts"], 2);
        assert_eq!(object(&event(What::Renamed("old".parse().unwrap())))["from"], "old");
        assert_eq!(object(&event(What::Health(HealthStatus::Healthy)))["health"], "healthy");
        let added = object(&event(What::Network(NetworkChange::PortAdded("127.0.0.1:1:2/tcp".to_owned()))));
        assert_eq!(
            (&added["event"], &added["change"], &added["port"]),
            (&json!("network"), &json!("port_added"), &json!("127.0.0.1:1:2/tcp"))
        );
        let down = object(&event(What::Network(NetworkChange::Down("killed".to_owned()))));
        assert_eq!((&down["change"], &down["reason"]), (&json!("down"), &json!("killed")));
        assert!(object(&event(What::Paused)).get("code").is_none());
    }
}
