//! The start of what a [`Builder`] describes.

use std::path::PathBuf;

use nelly_image::{Config, Image, Reference, Silent, Store, StoreOptions};
use nelly_vmm::config::{Confine, CpuCount, MemorySize};
use nelly_vmm::machine::{Isolation, Resources};

use super::capture::collect;
use super::held::Held;
use super::nelly::LAST_WORDS;
use super::process::{Input, Pipes, report};
use super::{Builder, Error, Nelly, Output, Sandbox, Signal, blocking};
use crate::instance::{self, Guest};
use crate::network::{Attached, Site, attach, member};
use crate::spec::machine::IMAGE_DEVICE;
use crate::spec::network::{NetworkOption, SecretValues};
use crate::spec::{
    ContainerOptions, ContainerSpec, MachineSpec, MountRequest, Mounts, Network, ProcessSpec, Tmpfs, shares,
    volumes,
};
use crate::state::networks::NetworksLock;
use crate::state::record::{self, ImageRecord, MachineRecord};
use crate::state::{Exit, Hostname, Id, Name, SandboxDir, SandboxRecord, Sandboxes, StorageSize, Timestamp};

/// What was read and checked.
struct Prepared {
    id: Id,
    name: Name,
    reference: Reference,
    image: Image,
    container: ContainerSpec,
    machine: MachineRecord,
    signal: Signal,
}

/// A directory of the environment, for sockets of networks.
fn environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

impl Prepared {
    fn site(nelly: &Nelly) -> Site<'static> {
        Site { networks: nelly.places().networks(), environment: &environment }
    }

    /// Gives the machine its place on a network of machines, if it is to be on one.
    fn assign(&mut self, nelly: &Nelly) -> Result<Option<NetworksLock>, Error> {
        let sandboxes = nelly.places().sandboxes();
        Ok(member::assign(&Self::site(nelly), &sandboxes, &mut self.machine.network)?)
    }

    /// Makes the network of a machine of this process.
    fn attach(&mut self, nelly: &Nelly, resources: &mut Resources) -> Result<Attached, Error> {
        let lock = self.assign(nelly)?;
        let MachineRecord { network, usernet, .. } = &self.machine;
        let id = self.id.to_string();
        let who = (id.as_str(), self.name.as_str());
        let secrets = SecretValues::read(network, |name| std::env::var_os(name)).map_err(boxed);
        let secrets = secrets.map_err(Error::invalid("secret"))?;
        Ok(attach(network, usernet.as_deref(), who, resources, &secrets, (&Self::site(nelly), lock))?)
    }
}

/// The method that takes an option.
fn method(option: NetworkOption) -> &'static str {
    match option {
        NetworkOption::Net => "net",
        NetworkOption::Alias => "network_alias",
        NetworkOption::Publish => "publish",
        NetworkOption::Allow => "allow",
        NetworkOption::Deny => "deny",
        NetworkOption::Dns => "dns",
        NetworkOption::Search => "dns_search",
        NetworkOption::Log => "net_log",
        NetworkOption::Secret => "secret",
        NetworkOption::SecretCa => "secret_ca",
    }
}

impl Builder {
    /// Starts it in a machine that this process holds, and waits until its program runs. Dropping
    /// the future ends what was started.
    ///
    /// # Errors
    /// [`Error::Program`] when its program cannot be executed; every other but [`Error::Keeper`]
    /// and [`Error::Launch`].
    pub async fn start(self) -> Result<Sandbox, Error> {
        let (nelly, in_process, piped) = (self.nelly.clone(), self.in_process, self.piped);
        let (size, grace) = (self.size, self.stays.grace);
        let within = nelly.clone();
        let prepared = blocking(move || {
            let mut prepared = self.prepare()?;
            let mut resources = Resources::new();
            let attached = prepared.attach(&within, &mut resources)?;
            Ok::<_, Error>((prepared, resources, attached))
        });
        let (prepared, mut resources, attached) = prepared.await?;
        let Prepared { id, name, image, container, machine, signal, .. } = prepared;
        let spec = MachineSpec::installed(nelly.installation(), resources.add_all(image.disk));
        let spec =
            MachineSpec { memory: machine.memory_bytes, cpus: machine.cpus, nested: machine.nested, ..spec };
        let spec = MachineSpec { networks: attached.device.into_iter().collect(), ..spec };
        let (mut spec, shares) = (spec, &container.options.shares);
        let opened = shares::open(shares).map_err(|error| Error::invalid("volume")(error.into()))?;
        spec.share(shares, resources.add_all(opened));
        let config = spec.config().map_err(|error| Error::invalid("machine")(error.into()))?;
        let isolation = match in_process {
            true => Isolation::Thread,
            false => Isolation::Process { monitor: nelly.installation().monitor.clone() },
        };
        let guest = Guest {
            hostname: container.hostname.clone(),
            network: attached.guest,
            usernet: attached.usernet,
        };
        let running = instance::Sandbox::start(config, resources, isolation, guest).await?;
        let (text, first, terminal) = (id.to_string(), container.process.clone(), container.process.terminal);
        let held = Held { machine: running.into(), id: text, first, signal, grace };
        let streams = match held.machine.run(&held.id, &container, IMAGE_DEVICE, size).await {
            Ok(started) => started?,
            Err(error) => return Err(held.machine.explain(error).await.into()),
        };
        let pipes = Pipes::new(streams, terminal)?;
        let pipes = match piped {
            true => Some(pipes),
            false => {
                pipes.discard();
                None
            }
        };
        Ok(Sandbox::of_machine(id, name, held, pipes))
    }

    /// Runs it to its end: the first process's input is [`Builder::stdin`]'s, its output is held,
    /// and the machine is gone when this returns. Dropping the future ends it.
    ///
    /// # Errors
    /// As [`Builder::start`]; [`Error::TimedOut`].
    pub async fn output(mut self) -> Result<Output, Error> {
        self.piped = true;
        let input = Input::Bytes(std::mem::take(&mut self.input));
        let (limit, most) = (self.limit, self.most);
        let mut sandbox = self.start().await?;
        let pipes = sandbox.take_pipes().unwrap_or_default();
        let over = async {
            if let Some(held) = sandbox.machine() {
                held.machine().kill();
            }
            Ok(report(Exit { code: Signal::KILL.exit_code(), reason: "killed" }))
        };
        let output = collect(pipes, input, most, sandbox.wait(), limit, over).await;
        drop(sandbox);
        output
    }

    /// Starts it with a keeper: it outlives this process, and every `nelly` command finds it. The
    /// caller has a connection to it. A start that fails leaves nothing. Dropping the future does
    /// not end it.
    ///
    /// # Errors
    /// [`Error::Program`] when its program cannot be executed; every other.
    pub async fn keep(self) -> Result<Sandbox, Error> {
        Sandbox::kept(blocking(move || self.make(true)).await?).await
    }

    /// Makes what [`Builder::keep`] starts, as `nelly create` does, and returns its id.
    /// [`Nelly::start`] starts it.
    ///
    /// # Errors
    /// The image or the state directory cannot be used, or the name is taken.
    pub async fn create(self) -> Result<Id, Error> {
        Ok(blocking(move || self.make(false)).await?.1.id())
    }

    /// Makes a sandbox that stays, and starts it if that is wanted. Blocks.
    fn make(self, starts: bool) -> Result<(Sandboxes, SandboxDir), Error> {
        let (nelly, stays) = (self.nelly.clone(), self.stays.clone());
        let sandboxes = Sandboxes::make(&nelly.places().sandboxes())?;
        let store = self.store()?;
        // Nobody removes the image until the sandbox's record says that it is used.
        // Whoever embeds this has no terminal to be told on that another command removes images.
        let hold = store.hold(&mut |_| ())?;
        let mut prepared = self.prepare_in(&store)?;
        // Held until others can see what the machine was given.
        let given = prepared.assign(&nelly)?;
        let Prepared { id, name, reference, image, container, machine, signal } = prepared;
        let config = image.config.config().as_ref();
        let labels = record::labels(config.unwrap_or(&Config::default()), stays.labels.into_iter().collect());
        let needs_disk = !container.read_only || !container.options.volumes.is_empty();
        let mut record = SandboxRecord {
            id,
            name,
            created: Timestamp::now(),
            image: ImageRecord {
                reference: reference.to_string(),
                digest: image.digest.to_string(),
                disk_paths: image.disk_paths.clone(),
            },
            annotations: container.options.annotations.clone(),
            container,
            machine,
            restart: stays.restart,
            labels,
            auto_remove: stays.remove,
            stop_signal: signal.number(),
            stop_grace_ms: u64::try_from(stays.grace.as_millis())
                .map_err(|error| Error::invalid("stop_grace")(error.into()))?,
            storage_bytes: 0,
            boot: None,
        };
        let template = nelly.installation().storage.as_ref().filter(|_| needs_disk);
        let size = stays.storage.map(StorageSize::new).transpose()?;
        match template {
            Some(_) => record.set_storage(size.unwrap_or_default()),
            None if size.is_some() => {
                let why = "there is nothing to write to it, or the installation has no storage.ext4";
                return Err(Error::invalid("storage")(why.into()));
            }
            None => {}
        }
        let draft = sandboxes.draft(record)?;
        if let Some(template) = template {
            draft.make_disk(template)?;
        }
        let (sandbox, lock) = draft.publish()?;
        drop((hold, given));
        if starts && let Err(error) = nelly.launch(&sandboxes, &sandbox, lock, image.disk) {
            // What the caller knows nothing of must not stay; this error tells more than another.
            let lock = sandboxes.lock_ended(&sandbox, LAST_WORDS);
            let _removed = lock.and_then(|lock| sandboxes.remove(&sandbox, lock));
            return Err(error);
        }
        Ok((sandboxes, sandbox))
    }

    fn store(&self) -> Result<Store, Error> {
        let mut options = StoreOptions::new(&self.nelly.places().cache);
        options.local_dir = Some(self.nelly.places().images());
        options.builtin = Some(self.nelly.installation().builtin.clone());
        options.unpacker = Some(self.nelly.installation().unpacker());
        Ok(Store::open(options)?)
    }

    fn prepare(self) -> Result<Prepared, Error> {
        let store = self.store()?;
        self.prepare_in(&store)
    }

    /// Checks every value, and reads the image. Blocks.
    fn prepare_in(self, store: &Store) -> Result<Prepared, Error> {
        let id = Id::random().map_err(Error::host("read random bytes"))?;
        let name: Name = match &self.name {
            Some(name) => name.parse().map_err(|error| Error::invalid("name")(boxed(error)))?,
            None => id.name(),
        };
        let hostname: Hostname = match &self.hostname {
            Some(name) => name.parse().map_err(|error| Error::invalid("hostname")(boxed(error)))?,
            None => name.clone().into(),
        };
        let memory = MemorySize::new(self.memory).map_err(|error| Error::invalid("memory")(error.into()))?;
        let cpus = CpuCount::new(self.cpus).map_err(|error| Error::invalid("cpus")(error.into()))?;
        let tmpfs: Result<Vec<Tmpfs>, _> = self.tmpfs.iter().map(|text| text.parse()).collect();
        let tmpfs = tmpfs.map_err(|error| Error::invalid("tmpfs")(boxed(error)))?;
        let mounts: Result<Vec<_>, _> =
            self.volumes.iter().map(|text| MountRequest::of_volume(text)).collect();
        let mounts = mounts.map_err(|error| Error::invalid("volume")(boxed(error)))?;
        let Mounts { volumes: asked, shares, tmpfs: _ } = mounts.into_iter().chain(self.shares).collect();
        let reference: Reference =
            self.image.parse().map_err(|error| Error::invalid("image")(boxed(error)))?;
        let image = store.resolve(&reference, &mut Silent)?;
        let config = image.config.config().clone().unwrap_or_default();
        let network = self.network.network(Network::None);
        let mut network = network.map_err(|error| Error::invalid(method(error.option()))(boxed(error)))?;
        let mut overrides = self.overrides;
        if let Some(user) = network.user_mut() {
            overrides.env = [user.environment(), overrides.env].concat();
        }
        let process = ProcessSpec::merge(&config, &overrides, hostname.as_str())
            .map_err(|error| Error::invalid("command")(error.into()))?;
        let declared = config.volumes().as_deref().unwrap_or_default();
        let volumes = volumes::combine(&asked, declared, &tmpfs, &shares)
            .map_err(|error| Error::invalid("volume")(error.into()))?;
        let shares = shares::resolve(&shares, &self.nelly.places().own())
            .map_err(|error| Error::invalid("volume")(error.into()))?;
        let installation = self.nelly.installation();
        let usernet = match (&network, installation.usernet()) {
            (Network::User(_), Err(error)) => return Err(error.into()),
            (_, usernet) => usernet.ok(),
        };
        Ok(Prepared {
            id,
            name,
            reference,
            signal: self.stays.signal.unwrap_or_else(|| Signal::stops(&config)),
            image,
            container: ContainerSpec {
                read_only: self.read_only,
                tmpfs,
                seccomp: self.seccomp,
                options: ContainerOptions { volumes, shares, ..self.options },
                in_machine_network: !network.is_none(),
                ..ContainerSpec::new(process, hostname.as_str())
            },
            machine: MachineRecord {
                cpus,
                memory_bytes: memory,
                append: String::new(),
                nested: self.nested,
                confine: Confine::On,
                monitor_user: None,
                spare_slots: MachineRecord::SPARE_SLOTS,
                give_back: true,
                platform: installation.platform,
                kernel: installation.kernel.clone(),
                initrd: installation.initramfs.clone(),
                monitor: installation.monitor.clone(),
                usernet,
                network,
            },
        })
    }
}

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(error)
}
