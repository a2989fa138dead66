//! `nelly ssh` and `nelly ssh-config`: how ssh leads into a machine of `nelly boot -d`. Which keys
//! and which user there are stands in the machine's record, which port leads to it in its state.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Error, Result, anyhow};
use nelly_net::config::{Protocol, Publish};
use nelly_sandbox::spec::Network;
use nelly_sandbox::state::record::{Condition, Status};
use nelly_sandbox::state::{Hostname, Name, SandboxDir, SandboxRecord, SandboxState, SshRecord};
use nelly_seed::UserName;
use nelly_vmm::text;

use crate::context::Context;
use crate::fail::{Hint, OfFlag as _};
use crate::life;
use crate::out;
use crate::ssh_args::{SshArgs, SshConfigArgs};
use crate::ssh_dir::{Login, SshDir};

/// The port of sshd.
pub(crate) const PORT: u16 = 22;

/// Becomes ssh.
pub(crate) fn ssh(args: &SshArgs, context: &Context) -> Result<ExitCode> {
    let (user, word) = match args.sandbox.rsplit_once('@') {
        Some((user, word)) => (Some(UserName::new(user).of_flag("USER@SANDBOX")?), word),
        None => (None, args.sandbox.as_str()),
    };
    let way = Way::into(&life::sandboxes(context)?.find(word)?, word)?;
    if user.is_none() && way.login.user.is_none() {
        return Err(Hint::error(
            format!("it is not known which user the guest of {word} has"),
            format!("`nelly ssh USER@{word}`; --user of nelly boot makes one"),
        ));
    }
    let config = way.keys.configure(&way.login)?;
    let mut command = Command::new("ssh");
    command.arg("-F").arg(config);
    if let Some(user) = &user {
        command.args(["-l", user.as_str()]);
    }
    // Another machine with the same directory of keys may write that file, too: words count more.
    if let Some(address) = way.login.address {
        command.arg("-o").arg(format!("HostName={}", address.ip()));
        command.arg("-o").arg(format!("Port={}", address.port()));
    }
    // Nothing behind is an option of ssh.
    command.args(["--", way.login.host.as_str()]).args(&args.command);
    let error = command.exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        return Err(Hint::error(
            "there is no program ssh in the directories of PATH",
            "install OpenSSH's client (openssh-client)",
        ));
    }
    Err(error).context("cannot execute ssh")
}

/// Prints what ssh has to be told of one machine, or of all that run.
pub(crate) fn config(args: &SshConfigArgs, context: &Context) -> Result<ExitCode> {
    if let Some(word) = &args.sandbox {
        let sandbox = life::sandboxes(context)?.find(word)?;
        out::line(block(&sandbox, word)?.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let all = life::opened(context)?;
    let mut blocks = Vec::new();
    for sandbox in all.map(|all| all.directories()).transpose()?.unwrap_or_default() {
        // Damage is for the commands that concern this sandbox.
        let (Ok(record), Ok(condition)) = (sandbox.record(), sandbox.condition()) else { continue };
        if condition.is_live() && record.boot.is_some_and(|boot| boot.ssh.is_some()) {
            match block(&sandbox, record.name.as_str()) {
                Ok(block) => blocks.push(block),
                Err(error) => out::message(format_args!("left out: {}", text::chain(error.as_ref()))),
            }
        }
    }
    if blocks.is_empty() {
        out::message("no machine runs that has keys for ssh and a port; `nelly boot -d` makes both");
        return Ok(ExitCode::SUCCESS);
    }
    out::line(blocks.join("\n").trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// The lines of one machine, by its name.
fn block(sandbox: &SandboxDir, word: &str) -> Result<String> {
    let way = Way::into(sandbox, word)?;
    // The file of known hosts is one of those that this writes.
    way.keys.configure(&way.login)?;
    way.keys.block(&Login { host: sandbox.record()?.name.to_string(), ..way.login })
}

/// How ssh leads into a machine that runs.
struct Way {
    keys: SshDir,
    login: Login,
}

impl Way {
    /// `word` is what a person calls the machine.
    fn into(sandbox: &SandboxDir, word: &str) -> Result<Self> {
        let record = sandbox.record()?;
        let Some(boot) = &record.boot else {
            return Err(Hint::error(
                format!("sandbox {word} has a container, and ssh is for machines of nelly boot"),
                format!("`nelly exec -it {word} sh` runs a shell in it"),
            ));
        };
        let name = &record.name;
        let Some(ssh) = &boot.ssh else {
            return Err(Hint::error(
                format!("machine {word} has no keys for ssh"),
                format!(
                    "it was made without a seed, or with user or meta data of its own: once it is stopped, `nelly boot -d --name {name}` \
                     with --image and without --no-seed, --user-data and --meta-data makes them"
                ),
            ));
        };
        let state = sandbox.state()?;
        let (what, hint) = match sandbox.condition()? {
            Condition::Status(Status::Running) => (None, String::new()),
            Condition::Status(Status::Paused) => {
                (Some("is paused"), format!("`nelly unpause {word}` lets it run on"))
            }
            Condition::Status(Status::Starting) => {
                (Some("is being started"), "say it again in a moment".to_owned())
            }
            Condition::Status(Status::Stopping) => {
                (Some("is being stopped"), format!("`nelly start {word}` then starts it"))
            }
            _ => (Some("does not run"), format!("`nelly start {word}` starts it")),
        };
        if let Some(what) = what {
            return Err(Hint::error(format!("machine {word} {what}"), hint));
        }
        if let Some(down) = state.network.as_ref().and_then(|network| network.down.as_ref()) {
            return Err(Hint::error(
                format!("the network of machine {word} has ended: {}", down.reason),
                format!("`nelly restart {word}` starts the machine again, with a new one"),
            ));
        }
        let path = ssh.directory.clone().unwrap_or_else(|| sandbox.ssh_keys());
        if SshDir::can_be_at(&path) && SshDir::lacks_keys(&path) {
            return Err(Hint::error(
                format!("machine {word}: its keys for ssh, {}, are gone", path.display()),
                format!(
                    "stop it and remove that directory; `nelly boot -d --name {name}` with its flags then makes others"
                ),
            ));
        }
        let keys = SshDir::read(&path).with_context(|| format!("machine {word}: its keys for ssh"))?;
        // What stands in a file is believed no more than what somebody typed.
        let alias = ssh.alias.parse::<Hostname>();
        let alias = alias.map_err(|why| anyhow!("the record of machine {word}: {why}"))?;
        let user = ssh.user.as_deref().map(UserName::new).transpose();
        let user = user.with_context(|| format!("the record of machine {word}"))?;
        let login = Login { host: host(ssh, name), alias: alias.to_string(), user, address: address(&state) };
        if login.address.is_none() {
            return Err(no_way(&record, word, &keys, &login));
        }
        Ok(Self { keys, login })
    }
}

/// Why nothing leads to port 22 of a machine, and what would.
fn no_way(record: &SandboxRecord, word: &str, keys: &SshDir, login: &Login) -> Error {
    let what = format!("machine {word} has no way to its port 22");
    match &record.machine.network {
        Network::User(_) => Hint::error(
            what,
            format!(
                "`nelly port add {word} 0:22` makes one now; start it with -p 2222:22 for one that stays"
            ),
        ),
        Network::None => Hint::error(
            what,
            format!(
                "it has --net none: once it is stopped, `nelly boot -d --name {}` with -p 2222:22 in the place of that gives it one",
                record.name
            ),
        ),
        other => {
            let by_hand = keys
                .configure(login)
                .map(|path| format!("; `{}` goes to an address of the guest", by_address(&path, login)));
            let by_hand = by_hand.unwrap_or_default();
            Hint::error(what, format!("its network ({}) publishes no ports{by_hand}", other.word()))
        }
    }
}

/// What a machine is called where one says `ssh`: by its name, or in a directory of the user's as
/// it was made.
pub(crate) fn host(ssh: &SshRecord, name: &Name) -> String {
    if ssh.directory.is_some() { ssh.alias.clone() } else { name.to_string() }
}

/// How ssh is told to go to an address that only the user knows.
pub(crate) fn by_address(config: &Path, login: &Login) -> String {
    let user = if login.user.is_some() { "" } else { "USER@" };
    format!("ssh -F {} -o HostName=ADDRESS {user}{}", config.display(), login.host)
}

/// Where the ssh of a machine is reached by its published ports.
pub(crate) fn address(state: &SandboxState) -> Option<SocketAddr> {
    life::port::published(state, PORT)
}

/// Whether a port leads to the guest's sshd.
pub(crate) fn is_of_ssh(port: &Publish) -> bool {
    port.guest == PORT && port.protocol == Protocol::Tcp
}

/// A network with a way to the guest's sshd: a free port of loopback, unless there is one or the
/// network publishes none.
pub(crate) fn with_port(mut network: Network) -> Network {
    if let Network::User(user) = &mut network
        && !user.publish.iter().any(is_of_ssh)
    {
        let bind = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        user.publish.push(Publish { bind, guest: PORT, protocol: Protocol::Tcp });
    }
    network
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(published: &[&str]) -> SandboxState {
        let mut state = SandboxState::created();
        let published: Vec<_> = published.iter().map(|port| (*port).to_owned()).collect();
        state.network = serde_json::from_value(serde_json::json!({ "published": published })).unwrap();
        state
    }

    #[test]
    fn the_way_is_the_first_tcp_port_that_leads_to_ssh() {
        for (published, expected) in [
            (&["127.0.0.1:8080:80/tcp", "127.0.0.1:40000:22/tcp"][..], Some("127.0.0.1:40000")),
            (&["0.0.0.0:2222:22/tcp"], Some("127.0.0.1:2222")),
            (&["[::]:2222:22/tcp"], Some("[::1]:2222")),
            (&["192.0.2.7:2222:22/tcp"], Some("192.0.2.7:2222")),
            (&["127.0.0.1:2222:22/udp", "127.0.0.1:0:22/tcp", "x\n", ""], None),
            (&[], None),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(address(&state(published)), expected, "{published:?}");
        }
        assert_eq!(address(&SandboxState::created()), None);
        let other = life::port::published(&state(&["127.0.0.1:40000:22/tcp", "127.0.0.1:8080:80/tcp"]), 80);
        assert_eq!(other, Some("127.0.0.1:8080".parse().unwrap()));
    }

    #[test]
    fn a_free_port_is_added_where_none_leads_to_ssh() {
        let ports = |network: Network| match with_port(network) {
            Network::User(user) => user.publish.iter().map(ToString::to_string).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let user = |publish: &[&str]| {
            let publish = publish.iter().map(|port| port.parse().unwrap()).collect();
            Network::User(Box::new(nelly_sandbox::spec::network::UserNetwork {
                publish,
                ..Default::default()
            }))
        };
        assert_eq!(ports(user(&[])), ["127.0.0.1:0:22/tcp"]);
        assert_eq!(ports(user(&["2222:22"])), ["127.0.0.1:2222:22/tcp"]);
        assert_eq!(ports(user(&["53:22/udp"])), ["127.0.0.1:53:22/udp", "127.0.0.1:0:22/tcp"]);
        assert!(with_port(Network::None).is_none());
    }
}
