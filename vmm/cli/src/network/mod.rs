//! `nelly network`: networks that machines share.

pub(crate) mod args;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use args::{CreateArgs, InspectArgs, LsArgs, NetworkVerb, RmArgs};
use nelly_net::config::{Prefix4, Prefix6, UsernetConfig};
use nelly_sandbox::network::member::{self, Site, User};
use nelly_sandbox::network::subnets;
use nelly_sandbox::spec::network::{Network, Place, check_network_name};
use nelly_sandbox::state::networks::{NetworkRecord, Networks, NetworksError, NetworksLock};
use nelly_sandbox::state::{Id, RuntimeDir};
use serde_json::{Value, json};

use crate::context::Context;
use crate::fail::{OfFlag as _, Usage};
use crate::life::each;
use crate::{out, table};

/// Runs a verb.
pub(crate) fn run(verb: &NetworkVerb, context: &Context) -> Result<ExitCode> {
    match verb {
        NetworkVerb::Create(args) => create(args, context),
        NetworkVerb::Ls(args) => ls(args, context),
        NetworkVerb::Rm(args) => rm(args, context),
        NetworkVerb::Inspect(args) => inspect(args, context),
    }
}

/// An environment variable that names a directory.
pub(crate) fn environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(Into::into)
}

/// Where networks are.
pub(crate) fn site(context: &Context) -> Site<'static> {
    Site { networks: context.places.networks(), environment: &environment }
}

/// Gives a machine that is to be made its place on its network, if it is to be on one. The lock is
/// to be held until others can see that.
pub(crate) fn assign(network: &mut Network, context: &Context) -> Result<Option<NetworksLock>> {
    member::assign(&site(context), &context.places.sandboxes(), network).context("--network")
}

/// `NAME[=VALUE]` of `--label`.
fn label(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err(Usage::error(format!("--label {text:?} has no name; write NAME=VALUE")));
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn create(args: &CreateArgs, context: &Context) -> Result<ExitCode> {
    check_network_name(&args.name).map_err(Usage::error)?;
    member::supported()?;
    let subnet: Option<Prefix4> =
        args.subnet.as_deref().map(str::parse).transpose().map_err(anyhow::Error::msg).of_flag("--subnet")?;
    let subnet6: Option<Prefix6> = args
        .subnet6
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(anyhow::Error::msg)
        .of_flag("--subnet6")?;
    let labels = args.label.iter().map(|text| label(text)).collect::<Result<_>>()?;
    let networks = Networks::make(&context.places.networks())?;
    let lock = networks.lock()?;
    let others = networks.list()?;
    let id = Id::random().context("cannot create a random id")?;
    let subnet = match subnet {
        Some(subnet) => subnet,
        None => subnets::free_subnet(others.iter().map(|other| other.subnet))
            .context("every prefix of 10.89.0.0/16, 172.29.0.0/16 and 192.168.128.0/17 is taken by a network or a route of this host: name one with --subnet")?,
    };
    let subnet6 = match subnet6 {
        Some(subnet6) => subnet6,
        None => local_prefix(&id),
    };
    check(&args.name, subnet, subnet6)?;
    if let Some(other) = others.iter().find(|other| subnets::overlap(other.subnet, subnet)) {
        return Err(Usage::error(format!(
            "--subnet {subnet} overlaps that of network {}, {}",
            other.name, other.subnet
        )));
    }
    if let Some(other) = others.iter().find(|other| other.subnet6 == subnet6) {
        return Err(Usage::error(format!("--subnet6 {subnet6} is that of network {}", other.name)));
    }
    let mut record = NetworkRecord::new(id, args.name.clone(), subnet, subnet6, args.isolated);
    record.labels = labels;
    networks.create(&lock, &record)?;
    out::line(&args.name)?;
    Ok(ExitCode::SUCCESS)
}

/// The IPv6 prefix that belongs to an id (RFC 4193).
fn local_prefix(id: &Id) -> Prefix6 {
    let digits = id.to_string();
    let number =
        u128::from_str_radix(&digits[..10], 16).unwrap_or_else(|_| unreachable!("an id is of digits"));
    Prefix6 { address: std::net::Ipv6Addr::from_bits(0xfd << 120 | number << 80), len: 64 }
}

/// Whether a machine can have these prefixes.
fn check(name: &str, subnet: Prefix4, subnet6: Prefix6) -> Result<()> {
    let mut network: Network = name.parse().of_flag("NAME")?;
    let Some(user) = network.user_mut() else { return Ok(()) };
    if let Some(member) = &mut user.member {
        member.place = Some(Place::new(String::new(), (subnet, subnet6), false, 3));
    }
    let config: UsernetConfig = user.config("check");
    config.check().map_err(|error| {
        let flag = if error.field.ends_with('6') { "--subnet6" } else { "--subnet" };
        Usage::error(format!("{flag}: {}", error.what))
    })
}

/// A condition of `--filter`.
enum Filter {
    Name(String),
    Id(String),
    Label(String, Option<String>),
}

fn filter(word: &str) -> Result<Filter> {
    match word.split_once('=') {
        Some(("name", part)) => Ok(Filter::Name(part.to_owned())),
        Some(("id", part)) => Ok(Filter::Id(part.to_owned())),
        Some(("label", label)) => Ok(match label.split_once('=') {
            Some((key, value)) => Filter::Label(key.to_owned(), Some(value.to_owned())),
            None => Filter::Label(label.to_owned(), None),
        }),
        _ => Err(Usage::error(format!(
            "--filter {word:?} is none of name=PART, id=PREFIX and label=KEY[=VALUE]"
        ))),
    }
}

impl Filter {
    fn takes(&self, record: &NetworkRecord) -> bool {
        match self {
            Self::Name(part) => record.name.contains(part.as_str()),
            Self::Id(part) => record.id.to_string().starts_with(part.as_str()),
            Self::Label(key, value) => {
                record.labels.get(key).is_some_and(|found| value.as_ref().is_none_or(|value| found == value))
            }
        }
    }
}

/// A network as JSON shows it.
fn object(record: &NetworkRecord) -> Value {
    json!({ "schema": 1, "id": record.id.to_string(), "name": record.name, "created": record.created,
        "subnet": record.subnet, "subnet6": record.subnet6, "isolated": record.isolated, "labels": record.labels })
}

fn ls(args: &LsArgs, context: &Context) -> Result<ExitCode> {
    let filters = args.filter.iter().map(|word| filter(word)).collect::<Result<Vec<_>>>()?;
    let mut records = Vec::new();
    if let Some(networks) = Networks::open(&context.places.networks())? {
        for name in networks.names()? {
            match networks.find(&name) {
                Ok(record) if filters.iter().all(|filter| filter.takes(&record)) => records.push(record),
                Ok(_) | Err(NetworksError::Missing(_)) => {}
                Err(error) => {
                    out::message(format_args!("network {name}: {}", nelly_vmm::text::chain(&error)))
                }
            }
        }
    }
    if args.json {
        out::json_array(records.iter().map(object))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.quiet {
        records.iter().try_for_each(|record| out::line(&record.name))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["NETWORK ID", "NAME", "SUBNET", "SUBNET6", "ISOLATED"].map(str::to_owned)];
    rows.extend(records.iter().map(|record| {
        let isolated = if record.isolated { "yes" } else { "no" };
        let (subnet, subnet6) = (record.subnet.to_string(), record.subnet6.to_string());
        [record.id.short(), record.name.clone(), subnet, subnet6, isolated.to_owned()]
    }));
    for line in table::aligned(&rows) {
        out::line(line)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn rm(args: &RmArgs, context: &Context) -> Result<ExitCode> {
    each(&args.names, |word| {
        let missing = || NetworksError::Missing(word.to_owned());
        let nothing = || Ok(Some(String::new()));
        let Some(networks) = Networks::open(&context.places.networks())? else {
            return if args.force { nothing() } else { Err(missing().into()) };
        };
        let lock = networks.lock()?;
        let record = match networks.find(word) {
            Err(NetworksError::Missing(_)) if args.force => return nothing(),
            // Nobody can be on what cannot be read.
            Err(NetworksError::Damaged { .. }) => {
                networks.remove(&lock, word)?;
                return Ok(None);
            }
            found => found?,
        };
        let mut users: Vec<String> = member::users(&context.places.sandboxes(), &record, true)
            .context("cannot tell which sandboxes are on the network")?
            .into_iter()
            .map(|user| user.name)
            .collect();
        // Machines in the foreground have no record in their first moments.
        let shown = member::show(&record)?.into_iter().flatten();
        users.extend(shown.filter_map(|shown| shown.machine.names.first().cloned()));
        users.sort();
        users.dedup();
        if !users.is_empty() {
            let many = if users.len() == 1 { "sandbox" } else { "sandboxes" };
            bail!("network {word} is that of {many} {}: remove them first, with nelly rm", users.join(", "));
        }
        if let Some(path) = &record.runtime_dir {
            RuntimeDir::remove(path, record.id)?;
        }
        networks.remove(&lock, word)?;
        Ok(None)
    })
}

fn inspect(args: &InspectArgs, context: &Context) -> Result<ExitCode> {
    let networks = Networks::open(&context.places.networks())?;
    let mut all = Vec::new();
    let mut failed = false;
    for word in &args.names {
        let shown = || -> Result<Value> {
            let networks = networks.as_ref().ok_or_else(|| NetworksError::Missing(word.clone()))?;
            let record = networks.find(word)?;
            let mut object = object(&record);
            object["machines"] = machines(&record, context)?;
            Ok(object)
        };
        match shown() {
            Ok(object) => all.push(object),
            Err(error) => {
                crate::fail::report(&error, false, 1);
                failed = true;
            }
        }
    }
    out::json_array(all.into_iter())?;
    Ok(ExitCode::from(u8::from(failed)))
}

/// Who is on a network, or has a place on it: those that run with what was counted of them.
fn machines(record: &NetworkRecord, context: &Context) -> Result<Value> {
    let users = member::users(&context.places.sandboxes(), record, false)
        .context("cannot tell which sandboxes are on the network")?;
    let mut running = member::show(record)?.unwrap_or_default();
    let mut all = Vec::new();
    for User { id, name, place } in users {
        let at = running.iter().position(|shown| shown.machine.id == id);
        let shown = at.map(|at| running.remove(at));
        all.push(json!({ "id": id, "name": name, "joined": shown.is_some(),
            "names": shown.as_ref().map(|shown| &shown.machine.names),
            "address4": place.as_ref().map(|place| place.address4),
            "address6": place.as_ref().map(|place| place.address6),
            "counters": shown.as_ref().map(|shown| shown.counters) }));
    }
    // Machines in the foreground have no record in their first moments.
    all.extend(running.into_iter().map(|shown| {
        json!({ "id": shown.machine.id, "name": shown.machine.names.first(), "joined": true, "names": shown.machine.names,
            "address4": shown.machine.address4, "address6": shown.machine.address6, "counters": shown.counters })
    }));
    Ok(Value::Array(all))
}

/// Removes the directories of switches that were killed.
pub(crate) fn gc(context: &Context) -> Result<()> {
    let Some(networks) = Networks::open(&context.places.networks())? else { return Ok(()) };
    let lock = networks.lock()?;
    for record in networks.list()? {
        if member::clean(&record, &lock)? {
            out::line(format_args!(
                "removed the socket of network {}, whose switch was killed",
                record.name
            ))?;
        }
    }
    Ok(())
}
