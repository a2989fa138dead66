//! The description of a sandbox.

use std::path::PathBuf;
use std::time::Duration;

#[cfg(doc)]
use super::Sandbox;
use super::capture::HELD;
use super::{Nelly, Signal};
use crate::spec::network::NetworkOptions;
use crate::spec::{
    Capabilities, ContainerOptions, MountRequest, Overrides, Relay, Rights, Seccomp, ShareRequest,
};
use crate::state::record::RestartPolicy;

/// How long a process may take to end by its stop signal, if nobody says another time.
const GRACE: Duration = Duration::from_secs(10);

/// A sandbox to be started. What is not said is as of `nelly run`: the image's program, user and
/// environment, one vCPU, 512 MiB of memory, docker's default rights; but for the network, of which
/// there is none unless it is asked for.
#[derive(Clone, Debug)]
#[must_use = "nothing is started before `start`, `keep` or `output`"]
pub struct Builder {
    pub(super) nelly: Nelly,
    pub(super) image: String,
    pub(super) overrides: Overrides,
    pub(super) size: Option<(u16, u16)>,
    pub(super) name: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) memory: u64,
    pub(super) cpus: u64,
    pub(super) nested: bool,
    pub(super) read_only: bool,
    pub(super) tmpfs: Vec<String>,
    pub(super) volumes: Vec<String>,
    pub(super) shares: Vec<MountRequest>,
    pub(super) seccomp: Seccomp,
    pub(super) options: ContainerOptions,
    pub(super) network: NetworkOptions,
    pub(super) in_process: bool,
    pub(super) piped: bool,
    pub(super) input: Vec<u8>,
    pub(super) limit: Option<Duration>,
    pub(super) most: usize,
    pub(super) stays: Stays,
}

/// What only a sandbox that stays has, and how one is stopped.
#[derive(Clone, Debug)]
pub(super) struct Stays {
    pub(super) restart: RestartPolicy,
    pub(super) labels: Vec<(String, String)>,
    pub(super) signal: Option<Signal>,
    pub(super) grace: Duration,
    pub(super) storage: Option<u64>,
    pub(super) remove: bool,
}

impl Builder {
    pub(super) fn new(nelly: Nelly, image: String) -> Self {
        let stays = Stays {
            restart: RestartPolicy::No,
            labels: Vec::new(),
            signal: None,
            grace: GRACE,
            storage: None,
            remove: false,
        };
        Self {
            nelly,
            image,
            overrides: Overrides::default(),
            size: None,
            name: None,
            hostname: None,
            memory: 512 << 20,
            cpus: 1,
            nested: false,
            read_only: false,
            tmpfs: Vec::new(),
            volumes: Vec::new(),
            shares: Vec::new(),
            seccomp: Seccomp::Default,
            options: ContainerOptions::default(),
            network: NetworkOptions::default(),
            in_process: false,
            piped: false,
            input: Vec::new(),
            limit: None,
            most: HELD,
            stays,
        }
    }

    /// Program and arguments, in the place of the image's command. They follow the image's
    /// entrypoint, if it has one.
    pub fn command<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.overrides.command = words.into_iter().map(Into::into).collect();
        self
    }

    /// The entrypoint, in the place of the image's; an empty word means none.
    pub fn entrypoint(mut self, program: impl Into<String>) -> Self {
        self.overrides.entrypoint = Some(program.into());
        self
    }

    /// With this variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.overrides.env.push(format!("{name}={value}"));
        self
    }

    /// In this directory, an absolute path, in the place of the image's.
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.overrides.cwd = Some(directory.into());
        self
    }

    /// As this user, in the place of the image's: `name|uid[:group|gid]`.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.overrides.user = Some(user.into());
        self
    }

    /// The sandbox's name; two words if nobody says one. Among those that stay it is unique.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The host name in the container; the sandbox's name if nobody says another.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = Some(name.into());
        self
    }

    /// The guest's memory in bytes, in whole mebibytes.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// The number of vCPUs, at least 1.
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count.into();
        self
    }

    /// The guest can use the processor's virtualisation.
    pub fn nested(mut self) -> Self {
        self.nested = true;
        self
    }

    /// No writable layer: the root is the image itself.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// A file system in memory, as `PATH[:OPTIONS]`.
    pub fn tmpfs(mut self, text: impl Into<String>) -> Self {
        self.tmpfs.push(text.into());
        self
    }

    /// A volume, as `[NAME:]PATH[:ro]`: on the disk of a sandbox that stays, else in the guest's
    /// memory. `HOST:PATH[:ro]`, where HOST begins with `/` or `.`, is a directory or a file of the
    /// host, see [`Builder::share`].
    pub fn volume(mut self, text: impl Into<String>) -> Self {
        self.volumes.push(text.into());
        self
    }

    /// A directory or a file of the host at an absolute path in the container. A relative `source`
    /// is one from the current directory. What is to be written may neither contain Nelly's own
    /// files nor be one of them. A sandbox that stays opens it again at each start.
    pub fn share(mut self, source: impl Into<PathBuf>, path: impl Into<String>, read_only: bool) -> Self {
        let (source, path) = (source.into(), path.into());
        self.shares.push(MountRequest::Share(ShareRequest { source, path, read_only }));
        self
    }

    /// Capabilities, limits and further groups, in the place of docker's default.
    pub fn rights(mut self, rights: Rights) -> Self {
        self.overrides.rights = rights;
        self
    }

    /// The filter of system calls, in the place of the default one.
    pub fn seccomp(mut self, seccomp: Seccomp) -> Self {
        self.seccomp = seccomp;
        self
    }

    /// All rights inside the machine, as `nelly run --privileged`.
    pub fn privileged(mut self) -> Self {
        self.options.privileged = true;
        self.overrides.rights.capabilities = Capabilities::EVERY;
        self.seccomp = Seccomp::Unconfined;
        self
    }

    /// Changes what else the container has: kernel parameters, hosts, devices, an init. Volumes are
    /// [`Builder::volume`]'s.
    pub fn options(mut self, change: impl FnOnce(&mut ContainerOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// The first process has a terminal of this size; its output is one stream.
    pub fn terminal(mut self, rows: u16, columns: u16) -> Self {
        self.overrides.terminal = true;
        self.size = Some((rows, columns));
        self
    }

    /// What [`Builder::output`] gives to the first process as its standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self.open_stdin()
    }

    /// The first process has a standard input: that of [`Sandbox::take_pipes`], or of an attachment
    /// to a sandbox that stays.
    pub fn open_stdin(mut self) -> Self {
        self.overrides.stdin = true;
        self
    }

    /// [`Builder::start`] gives the first process's streams to the caller, see
    /// [`Sandbox::take_pipes`]. Without this its output is read and forgotten. That of a sandbox
    /// that stays is in its log.
    pub fn piped(mut self) -> Self {
        self.piped = true;
        self
    }

    /// [`Builder::output`] waits no longer than this for the first process, then kills the machine.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// As [`super::Exec::hold_at_most`], for [`Builder::output`].
    pub fn hold_at_most(mut self, bytes: usize) -> Self {
        self.most = bytes;
        self
    }

    /// The machine runs in threads of this process, not in a process of its own. Of
    /// [`Builder::start`] and [`Builder::output`]; a keeper has a process of its own.
    pub fn in_process(mut self) -> Self {
        self.in_process = true;
        self
    }

    /// What [`Sandbox::stop`] asks the first process to end with, in the place of the image's.
    pub fn stop_signal(mut self, signal: Signal) -> Self {
        self.stays.signal = Some(signal);
        self
    }

    /// How long the first process may take to end by that, before it is killed.
    pub fn stop_grace(mut self, grace: Duration) -> Self {
        self.stays.grace = grace;
        self
    }

    /// A connection between the host and the container that needs no network:
    /// [`Relay::inward`](crate::spec::Relay::inward) and
    /// [`Relay::outward`](crate::spec::Relay::outward) parse one.
    pub fn relay(mut self, relay: Relay) -> Self {
        self.options.relays.push(relay);
        self
    }

    /// The machine's network, as `nelly run --net` has it: `none`, `user`, `user,default=deny`,
    /// `tap=NAME`, `unix=PATH`, `vhost-user=PATH`, or the name of a network of machines, with their
    /// options. None if nobody says one, nor a port, a rule, a resolver or a log, which mean
    /// `user`.
    pub fn net(mut self, network: impl Into<String>) -> Self {
        self.network.net = Some(network.into());
        self
    }

    /// A further name of the machine on its network of machines.
    pub fn network_alias(mut self, name: impl Into<String>) -> Self {
        self.network.aliases.push(name.into());
        self
    }

    /// A port of this host that leads to one of the guest, `[BIND:]HOST:GUEST[/udp]`, or a range;
    /// on loopback if no BIND is given. [`Sandbox::ports`] tells which a free one (HOST 0) is.
    pub fn publish(mut self, port: impl Into<String>) -> Self {
        self.network.publish.push(port.into());
        self
    }

    /// Lets the guest reach what is refused otherwise: `host:8080`, `10.0.0.0/8`,
    /// `example.org:443`.
    pub fn allow(mut self, rule: impl Into<String>) -> Self {
        self.network.allow.push(rule.into());
        self
    }

    /// Does not let the guest reach this.
    pub fn deny(mut self, rule: impl Into<String>) -> Self {
        self.network.deny.push(rule.into());
        self
    }

    /// A resolver at which the guest's names are looked up, `ADDRESS[:PORT]`; those of this host if
    /// none is said.
    pub fn dns(mut self, resolver: impl Into<String>) -> Self {
        self.network.dns.push(resolver.into());
        self
    }

    /// A domain in which the guest looks up short names.
    pub fn dns_search(mut self, domain: impl Into<String>) -> Self {
        self.network.search.push(domain.into());
        self
    }

    /// A file that gets a line of JSON for every connection, datagram flow, ping and name that the
    /// guest asks for.
    pub fn net_log(mut self, file: impl Into<PathBuf>) -> Self {
        self.network.log = Some(file.into());
        self
    }

    /// A secret that the container never has, `NAME[=env:VARIABLE|=file:PATH]@HOST[:PORT]`: a
    /// placeholder is in its variable NAME, and a process of this host puts the value in its place
    /// in requests to HOST by TLS. The value is read at each start, of this process's environment
    /// or of a file.
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        self.network.secrets.push(secret.into());
        self
    }

    /// A file with certificates of authorities that hosts of secrets are checked with, beside those
    /// of this host.
    pub fn secret_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.network.secret_ca = Some(file.into());
        self
    }

    /// Of a sandbox that stays: when it is started again after its end.
    pub fn restart(mut self, policy: RestartPolicy) -> Self {
        self.stays.restart = policy;
        self
    }

    /// Of a sandbox that stays: a word for filters of `nelly ps`, in place of one of the image with
    /// this name.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.stays.labels.push((name.into(), value.into()));
        self
    }

    /// Of a sandbox that stays: the size of the disk of its writable layer and volumes in bytes, 64
    /// MiB to 16 TiB in whole mebibytes, by default 8 GiB. It takes what is written.
    pub fn storage(mut self, bytes: u64) -> Self {
        self.stays.storage = Some(bytes);
        self
    }

    /// Of a sandbox that stays: it is removed at its end.
    pub fn remove_at_end(mut self) -> Self {
        self.stays.remove = true;
        self
    }
}
