//! `nelly port`: the published ports of a sandbox that runs.

pub(crate) mod args;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Result, bail};
use args::{AddArgs, LsArgs, PortVerb, RmArgs};
use nelly_net::config::{Protocol, Publish};
use nelly_sandbox::connect::{Connection, PortsResponse};
use nelly_sandbox::spec::network::Network;
use nelly_sandbox::state::{SandboxDir, SandboxState};
use serde_json::{Value, json};

use super::{connect, runtime, sandboxes};
use crate::context::Context;
use crate::fail::OfFlag as _;
use crate::{out, table};

/// Runs a verb.
pub(crate) fn run(verb: &PortVerb, context: &Context) -> Result<ExitCode> {
    match verb {
        PortVerb::Ls(args) => ls(args, context),
        PortVerb::Add(AddArgs { sandbox, ports }) => change(sandbox, ports, context, true),
        PortVerb::Rm(RmArgs { sandbox, ports }) => change(sandbox, ports, context, false),
    }
}

/// Where a TCP port of a guest is reached by its published ports.
pub(crate) fn published(state: &SandboxState, guest: u16) -> Option<SocketAddr> {
    let published = state.network.as_ref()?.serving();
    let mut ports = published.iter().filter_map(|text| text.parse::<Publish>().ok());
    let leads = |port: &Publish| port.guest == guest && port.protocol == Protocol::Tcp;
    let port = ports.find(|port| leads(port) && port.bind.port() != 0)?;
    let ip = match port.bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Some(SocketAddr::new(ip, port.bind.port()))
}

/// Why a sandbox with this network publishes no ports.
fn no_ports(network: &Network) -> Option<&'static str> {
    match network {
        Network::User(_) => None,
        Network::None => Some(
            "has no network (--net none), so no port of it can be published: nelly proxy joins one connection with \
             its container, and run --relay a port, over vsock",
        ),
        Network::Tap(_) => Some(
            "is on a tap (--net tap), whose network is this host's: connect to the guest's address, or let the host forward a port",
        ),
        Network::Unix(_) => {
            Some("has its network from another program (--net unix): ports are published by that program")
        }
        Network::VhostUser(_) => Some(
            "has its network from another program (--net vhost-user): ports are published by that program, if it has any",
        ),
    }
}

/// The sandbox, if it runs and can have ports.
fn found(word: &str, context: &Context) -> Result<SandboxDir> {
    let sandbox = sandboxes(context)?.find(word)?;
    if let Some(why) = no_ports(&sandbox.record()?.machine.network) {
        bail!("sandbox {word} {why}");
    }
    if !sandbox.condition()?.is_live() {
        bail!("sandbox {word} does not run: `nelly start {word}` starts it, with the ports of its -p");
    }
    Ok(sandbox)
}

/// Adds or removes ports, one after the other, and prints each.
fn change(word: &str, ports: &[String], context: &Context, add: bool) -> Result<ExitCode> {
    let ports = ports.iter().map(|text| Publish::all(text)).collect::<Result<Vec<_>, _>>();
    let ports = ports.map_err(anyhow::Error::msg).of_flag("[BIND:]HOST:GUEST")?.concat();
    let sandbox = found(word, context)?;
    runtime()?.block_on(async {
        let keeper: Connection = connect(&sandbox).await?;
        for port in &ports {
            let done = if add { keeper.add_port(port).await? } else { keeper.remove_port(port).await? };
            out::line(done)?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn ls(args: &LsArgs, context: &Context) -> Result<ExitCode> {
    let sandbox = found(&args.sandbox, context)?;
    let told = runtime()?.block_on(async { anyhow::Ok(connect(&sandbox).await?.ports().await?) })?;
    if args.json {
        out::json(format_args!("{:#}", objects(&told)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["HOST", "GUEST", "CONNECTIONS", "REFUSED"].map(str::to_owned)];
    rows.extend(told.ports.iter().map(|port| {
        let (host, guest) = port.published.rsplit_once(':').unwrap_or((&port.published, ""));
        [host.to_owned(), guest.to_owned(), port.connections.to_string(), port.refused.to_string()]
    }));
    table::aligned(&rows).into_iter().try_for_each(out::line)?;
    Ok(ExitCode::SUCCESS)
}

/// Ports with their counters as JSON.
pub(crate) fn objects(told: &PortsResponse) -> Value {
    let port = |port: &nelly_sandbox::connect::PortState| {
        let parsed: Option<Publish> = port.published.parse().ok();
        json!({ "schema": 1, "published": port.published,
            "host_address": parsed.map(|port| port.bind.ip().to_string()), "host_port": parsed.map(|port| port.bind.port()),
            "guest_port": parsed.map(|port| port.guest), "protocol": parsed.map(|port| port.protocol.to_string()),
            "connections": port.connections, "refused": port.refused })
    };
    told.ports.iter().map(port).collect()
}

/// Ports as a column has them, `127.0.0.1:8080->80/tcp`: all of them, or the first three.
pub(crate) fn column(published: &[String], whole: bool) -> String {
    /// How many are shown.
    const SHOWN: usize = 3;
    let arrow = |port: &String| match port.rsplit_once(':') {
        Some((host, guest)) => format!("{host}->{guest}"),
        None => port.clone(),
    };
    let shown = if whole { published.len() } else { SHOWN };
    let mut words: Vec<String> = published.iter().take(shown).map(arrow).collect();
    if let Some(more @ 1..) = published.len().checked_sub(words.len()) {
        words.push(format!("{more} more"));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_has_the_first_ports_or_all() {
        let ports = |count: u16| -> Vec<String> {
            (0..count).map(|port| format!("[::1]:{}:{}/udp", 8000 + port, 80 + port)).collect()
        };
        assert_eq!(column(&[], false), "");
        assert_eq!(column(&ports(1), false), "[::1]:8000->80/udp");
        assert_eq!(column(&ports(3), false), "[::1]:8000->80/udp, [::1]:8001->81/udp, [::1]:8002->82/udp");
        assert!(column(&ports(5), false).ends_with("[::1]:8002->82/udp, 2 more"));
        assert!(column(&ports(5), true).ends_with("[::1]:8004->84/udp"));
    }

    #[test]
    fn a_network_without_ports_says_why() {
        for (text, words) in [
            ("none", Some("--net none")),
            ("tap=t0", Some("--net tap")),
            ("unix=/x", Some("--net unix")),
            ("user", None),
            ("dev", None),
        ] {
            let why = no_ports(&text.parse().unwrap());
            assert_eq!(why.map(|why| why.contains(words.unwrap_or_default())), words.map(|_| true), "{text}");
        }
    }
}
