//! The machine that the variables describe.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use nelly_seed::{HostName, PackageName, Password, PublicKey, Salt, SeedError, UserName};

use crate::containerd::PORT as CONTAINERD;
use crate::error::HydraError;
use crate::grammar;
use crate::k3s::{self, k3s};
use crate::setting::{Host, Platform, Profile, Reader, Setting, Source};
use crate::share::{Share, shares};

/// The port of sshd.
const SSH: u16 = 22;
/// Where the server of a bare machine's image listens.
const RIMD: u16 = 35001;
/// The port of diod, a server of 9P.
const DIOD: u16 = 564;

/// The machine that the variables describe: plain data, nothing of it is looked at on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Which of the environments it is.
    pub profile: Profile,
    /// vCPUs, 1 to 32.
    pub cpus: Setting<u32>,
    /// Bytes of memory.
    pub memory: Setting<u64>,
    /// The directory of images, kernels and disks.
    pub directory: Setting<PathBuf>,
    /// Whether it boots a kernel and an initrd, and no cloud image.
    pub bare: Setting<bool>,
    /// What it boots.
    pub boots: Boots,
    /// Words that are added to the kernel's command line; may be empty.
    pub append: Setting<String>,
    /// Ports of the host that lead to the guest.
    pub ports: Vec<Setting<Port>>,
    /// Directories of the host in the guest.
    pub shares: Vec<Setting<Share>>,
    /// The addresses of its network.
    pub network: Network,
    /// Whether only the command is shown.
    pub dry_run: Setting<bool>,
    /// Whether it runs in the background, with its profile's name.
    pub background: Setting<bool>,
    /// Whether details are logged.
    pub debug: Setting<bool>,
    /// What a user has to know, in whole sentences.
    pub warnings: Vec<String>,
}

/// What a machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boots {
    /// A cloud image.
    Image(Box<Image>),
    /// A kernel and an initrd.
    Bare(Box<Bare>),
}

/// A cloud image, and what its cloud-init is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The file, in the machine's directory: without the ending of what it may be packed with.
    pub file: Setting<PathBuf>,
    /// What it is called where it can be had, perhaps packed.
    pub packed: PathBuf,
    /// Where that is.
    pub url: Setting<String>,
    /// Bytes that the disk has at least.
    pub disk_size: Setting<u64>,
    /// The user who is made.
    pub user: Setting<UserName>,
    /// That user's password.
    pub password: Login,
    /// Who may log in by ssh.
    pub keys: Keys,
    /// The guest's host name.
    pub host_name: Setting<HostName>,
    /// The kernel that is installed in the guest, if another one than the image's is wanted.
    pub kernel: Option<Setting<PackageName>>,
    /// Whether containerd answers at a port of the guest.
    pub containerd: bool,
    /// The program of k3s on this host, if the guest gets it.
    pub k3s: Option<Setting<PathBuf>>,
}

/// A password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// What the guest is told.
    pub hash: Setting<Password>,
    /// The salt, if the password was given in plain.
    pub salt: Option<Setting<Salt>>,
}

impl Login {
    /// Whether it is the one of the Hydra scripts, which everybody knows. It is for the console
    /// alone: by ssh, whoever reaches a port of the host would be the guest's root, with the host's
    /// shared directories before them.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.hash.source == Source::Default
    }
}

/// Keys for ssh; those of all fields may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The keys themselves.
    pub lines: Option<Setting<Vec<PublicKey>>>,
    /// A file with keys.
    pub file: Option<Setting<PathBuf>>,
    /// Whether the first key that ssh of this user tries by itself is one of them.
    pub usual: bool,
}

/// A kernel and an initrd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bare {
    /// The kernel, in the machine's directory.
    pub kernel: Setting<PathBuf>,
    /// The initrd, in the same.
    pub initrd: Setting<PathBuf>,
    /// A disk in the same, which the guest writes. Unless a variable names it, it may be missing.
    pub disk: Setting<PathBuf>,
    /// An archive in the same that has these files; it is fetched if one of them is needed.
    pub artifact: Setting<PathBuf>,
    /// Where the archive can be had.
    pub artifact_url: Setting<String>,
    /// What its server is shown.
    pub artifact_login: Option<ArtifactLogin>,
}

/// What the server of an archive is shown.
#[derive(Clone, PartialEq, Eq)]
pub enum ArtifactLogin {
    /// A token, which the scripts send as `PRIVATE-TOKEN`.
    Token(Setting<String>),
    /// A name and a password.
    User(Setting<String>, String),
}

impl std::fmt::Debug for ArtifactLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ArtifactLogin(..)")
    }
}

/// A TCP port of the host that leads to one of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The address that it has on the host: loopback, unless somebody said otherwise.
    pub bind: Ipv4Addr,
    /// The port of the host.
    pub host: u16,
    /// The port of the guest.
    pub guest: u16,
}

/// The addresses of a machine's network, which has 256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The first of them.
    pub prefix: Setting<Ipv4Addr>,
    /// The guest's.
    pub device: Setting<Ipv4Addr>,
    /// The gateway's.
    pub gateway: Setting<Ipv4Addr>,
    /// The resolver's.
    pub dns: Setting<Ipv4Addr>,
}

impl Machine {
    /// Reads the variables of `environment`. What only another platform's variables say is left
    /// out; a variable without meaning is named in [`Machine::warnings`].
    ///
    /// # Errors
    /// A value that a variable cannot have, or two that are in each other's way; the error names
    /// them.
    pub fn read(
        environment: &BTreeMap<String, String>,
        profile: Profile,
        host: Host,
    ) -> Result<Self, HydraError> {
        let mut reader = Reader::new(environment, profile, host);
        let os = match host.platform {
            Platform::Darwin => ["DEFAULT_KVM_DARWIN_CPU", "DEFAULT_KVM_DARWIN_MEMORY"],
            Platform::LinuxRoot | Platform::LinuxUser => {
                ["DEFAULT_KVM_LINUX_CPU", "DEFAULT_KVM_LINUX_MEMORY"]
            }
            Platform::Other => ["DEFAULT_KVM_UNKNOWN_CPU", "DEFAULT_KVM_UNKNOWN_MEMORY"],
        };
        let cpus = reader.parsed(reader.first_of("KVM_CPU", os[0]), grammar::cpus)?;
        let memory = reader.parsed(reader.first_of("KVM_MEMORY", os[1]), grammar::size)?;
        let directory = reader.text("DEFAULT_DIR_IMAGE");
        let directory = directory.with(PathBuf::from(&directory.value));
        let bare = reader.parsed("RUN_BARE_KERNEL", grammar::switch)?;
        let boots = if bare.value {
            Boots::Bare(Box::new(read_bare(&mut reader)?))
        } else {
            Boots::Image(Box::new(read_image(&mut reader)?))
        };
        let ports = ports(&mut reader, bare.value)?;
        let mut shares = shares(&mut reader, bare.value)?;
        if let Boots::Image(image) = &boots {
            shares.extend(image.k3s.as_ref().map(k3s::share));
        }
        let network = network(&reader)?;
        // Other programs have a variable of this name, with other values.
        let debug = reader.parsed("DEBUG", grammar::switch).unwrap_or_else(|error| {
            reader.warn(format!("{error}; it is left out"));
            Setting { value: false, source: Source::Default }
        });
        Ok(Self {
            profile,
            cpus,
            memory,
            directory,
            bare,
            boots,
            append: reader.text("ADDITIONAL_KERNEL_COMMANDLINE"),
            ports,
            shares,
            network,
            dry_run: reader.parsed("DRY_RUN_ONLY", grammar::switch)?,
            background: reader.parsed("KVM_DAEMONIZE", grammar::switch)?,
            debug,
            warnings: reader.warnings,
        })
    }

    /// The disk that keeps what a machine of a cloud image writes, in its directory: always the
    /// same one, so that the same variables find the same disk.
    #[must_use]
    pub fn overlay(&self) -> PathBuf {
        self.directory.value.join(format!("{}-disk.qcow2", self.profile.name()))
    }

    /// The port of the host that leads to the guest's sshd.
    #[must_use]
    pub fn ssh_port(&self) -> Option<Port> {
        self.ports.iter().map(|port| port.value).find(|port| port.guest == SSH)
    }
}

fn read_bare(reader: &mut Reader<'_>) -> Result<Bare, HydraError> {
    // What cloud-init is told, and what of an image.
    for name in [
        "DEFAULT_IMAGE",
        "DEFAULT_IMAGE_SOURCE_URL",
        "DEFAULT_KERNEL_VERSION",
        "DEFAULT_KVM_DISK_SIZE",
        "KERNEL_VERSION",
        "VM_HOSTNAME",
        "VM_PASSWORD",
        "VM_PASSWORD_ENCRYPTED",
        "VM_SALT",
        "VM_SSH_AUTHORIZED_KEY",
        "VM_SSH_KEY_FILENAME",
        "VM_USERNAME",
    ] {
        if reader.given(name).is_some() {
            reader.warn(format!("{name} has no meaning for a bare kernel, which has no cloud image"));
        }
    }
    let file = |name: &'static str| reader.parsed(name, grammar::file_name);
    Ok(Bare {
        kernel: file("DEFAULT_RIMD_KERNEL_FILENAME")?,
        initrd: file("DEFAULT_RIMD_IMAGE_FILENAME")?,
        disk: file("DEFAULT_RIMD_FILESYSTEM_FILENAME")?,
        artifact: file("DEFAULT_RIMD_ARTIFACT_FILENAME")?,
        artifact_url: reader.text("DEFAULT_RIMD_ARTIFACT_URL"),
        artifact_login: artifact_login(reader),
    })
}

/// As in the scripts, the token is for the server, whatever else is set.
fn artifact_login(reader: &mut Reader<'_>) -> Option<ArtifactLogin> {
    let user = reader.some("RIMD_ARTIFACT_URL_USER");
    let password = reader.some("RIMD_ARTIFACT_URL_PASS");
    if let Some(token) = reader.some("RIMD_ARTIFACT_URL_TOKEN") {
        for (name, given) in
            [("RIMD_ARTIFACT_URL_USER", user.is_some()), ("RIMD_ARTIFACT_URL_PASS", password.is_some())]
        {
            if given {
                reader.warn(format!("{name} has no effect, since RIMD_ARTIFACT_URL_TOKEN is set"));
            }
        }
        return Some(ArtifactLogin::Token(token));
    }
    if user.is_none() && password.is_some() {
        reader.warn("RIMD_ARTIFACT_URL_PASS has no effect without RIMD_ARTIFACT_URL_USER".to_owned());
    }
    let password = password.map(|password| password.value).unwrap_or_default();
    user.map(|user| ArtifactLogin::User(user, password))
}

/// The name of a file without the ending of what it is packed with, which the scripts unpack.
fn without_packing(file: &Path) -> PathBuf {
    let ending = |file: &Path| file.extension().and_then(|ending| ending.to_str()).map(str::to_owned);
    match ending(file).as_deref() {
        Some("gz" | "xz" | "zst" | "bz2") => {
            let inner = file.with_extension("");
            if ending(&inner).as_deref() == Some("tar") { inner.with_extension("") } else { inner }
        }
        Some("zip" | "tar" | "tgz" | "txz" | "tzst" | "tbz2") => file.with_extension(""),
        _ => file.to_owned(),
    }
}

fn read_image(reader: &mut Reader<'_>) -> Result<Image, HydraError> {
    for name in [
        "DEFAULT_RIMD_ARTIFACT_FILENAME",
        "DEFAULT_RIMD_ARTIFACT_URL",
        "DEFAULT_RIMD_FILESYSTEM_FILENAME",
        "DEFAULT_RIMD_IMAGE_FILENAME",
        "DEFAULT_RIMD_KERNEL_FILENAME",
        "RIMD_ARTIFACT_URL_PASS",
        "RIMD_ARTIFACT_URL_TOKEN",
        "RIMD_ARTIFACT_URL_USER",
    ] {
        if reader.given(name).is_some() {
            reader.warn(format!("{name} is for a bare kernel, and has no effect without RUN_BARE_KERNEL=1"));
        }
    }
    let containerd = !reader.parsed("DISABLE_CONTAINERD_CSI_PROXY", grammar::switch)?.value;
    let k3s = k3s(reader)?;
    let named = reader.parsed("DEFAULT_IMAGE", grammar::file_name)?;
    Ok(Image {
        file: named.with(without_packing(&named.value)),
        packed: named.value,
        url: reader.text("DEFAULT_IMAGE_SOURCE_URL"),
        disk_size: reader.parsed("DEFAULT_KVM_DISK_SIZE", grammar::size)?,
        user: reader.parsed("VM_USERNAME", UserName::new)?,
        password: password(reader)?,
        keys: keys(reader)?,
        host_name: reader.parsed("VM_HOSTNAME", HostName::new)?,
        kernel: kernel(reader)?,
        containerd,
        k3s,
    })
}

/// The hashed password wins over the plain one.
fn password(reader: &mut Reader<'_>) -> Result<Login, HydraError> {
    let secret = |name| move |reason: SeedError| HydraError::Secret { name, reason };
    const HASHED: &str = "VM_PASSWORD_ENCRYPTED";
    if let Some(text) = reader.some(HASHED) {
        let hash = Password::hashed(&text.value).map_err(secret(HASHED))?;
        for name in ["VM_PASSWORD", "VM_SALT"] {
            if reader.given(name).is_some() {
                reader.warn(format!("{name} has no effect, since {HASHED} is set"));
            }
        }
        return Ok(Login { hash: text.with(hash), salt: None });
    }
    let salt = reader.parsed("VM_SALT", Salt::new)?;
    let text = reader.text("VM_PASSWORD");
    if text.source == Source::Default {
        reader.warn(
            "the password is the one that everybody knows from the Hydra scripts, so ssh does not take it; set VM_PASSWORD or VM_PASSWORD_ENCRYPTED, or let a key in by VM_SSH_KEY_FILENAME or VM_SSH_AUTHORIZED_KEY"
                .to_owned(),
        );
    }
    let hash = Password::hash(&text.value, &salt.value).map_err(secret("VM_PASSWORD"))?;
    Ok(Login { hash: text.with(hash), salt: Some(salt) })
}

/// As in the scripts, root's own keys are let in only if somebody names them.
fn keys(reader: &Reader<'_>) -> Result<Keys, HydraError> {
    const LINES: &str = "VM_SSH_AUTHORIZED_KEY";
    let lines = match reader.some(LINES) {
        Some(text) => {
            let keys =
                PublicKey::lines(&text.value).map_err(|reason| HydraError::Secret { name: LINES, reason })?;
            Some(text.with(keys))
        }
        None => None,
    };
    let file = reader.some("VM_SSH_KEY_FILENAME").map(|text| text.with(PathBuf::from(&text.value)));
    let own = matches!(reader.host.platform, Platform::Darwin | Platform::LinuxUser);
    let usual = lines.is_none() && file.is_none() && own;
    Ok(Keys { lines, file, usual })
}

/// The package of a kernel; that of a version is called after the architecture, too.
fn kernel(reader: &Reader<'_>) -> Result<Option<Setting<PackageName>>, HydraError> {
    let (name, text) = match (reader.some("KERNEL_VERSION"), reader.some("DEFAULT_KERNEL_VERSION")) {
        (Some(text), _) => ("KERNEL_VERSION", text),
        (None, Some(text)) => {
            let package = format!("linux-image-{}-{}", text.value, reader.host.architecture);
            ("DEFAULT_KERNEL_VERSION", text.with(package))
        }
        (None, None) => return Ok(None),
    };
    let package =
        PackageName::new(&text.value).map_err(|reason| HydraError::value(name, &text.value, reason))?;
    Ok(Some(text.with(package)))
}

fn ports(reader: &mut Reader<'_>, bare: bool) -> Result<Vec<Setting<Port>>, HydraError> {
    const REDIRECT: &str = "DEFAULT_KVM_PORTS_REDIRECT";
    let containerd = !reader.parsed("DISABLE_CONTAINERD_CSI_PROXY", grammar::switch)?.value;
    let diod = reader.parsed("ENABLE_K3S_DIOD", grammar::switch)?.value;
    let mut ports: Vec<(&'static str, Setting<Port>)> = Vec::new();
    if let Some(text) = reader.some(REDIRECT) {
        let redirects = grammar::redirects(&text.value)
            .map_err(|reason| HydraError::value(REDIRECT, &text.value, reason))?;
        let port = |(bind, host, guest)| (REDIRECT, text.with(Port { bind, host, guest }));
        ports.extend(redirects.into_iter().map(port));
    }
    for (wanted, name, guest) in [
        (true, "DEFAULT_KVM_HOST_SSHD_PORT", SSH),
        (containerd, "DEFAULT_KVM_HOST_CONTAINERD_PORT", CONTAINERD),
        (diod, "DEFAULT_KVM_HOST_DIOD_PORT", DIOD),
        (bare, "DEFAULT_KVM_HOST_RIMD_PORT", RIMD),
    ] {
        let port = reader.parsed(name, grammar::host_port)?;
        if wanted {
            let (bind, host) = port.value;
            ports.push((name, port.with(Port { bind, host, guest })));
        } else if reader.given(name).is_some() {
            reader.warn(format!("{name} has no effect: the machine has nothing at that port"));
        }
    }
    for (index, (second, port)) in ports.iter().enumerate() {
        let clash = |other: &&(&str, Setting<Port>)| {
            let (one, two) = (other.1.value, port.value);
            one.host == two.host
                && (one.bind == two.bind || one.bind.is_unspecified() || two.bind.is_unspecified())
        };
        if let Some((first, _)) = ports[..index].iter().find(clash) {
            let what = format!("both want port {} of this host", port.value.host);
            return Err(HydraError::Together { first, second, what });
        }
    }
    Ok(ports.into_iter().map(|(_, port)| port).collect())
}

fn network(reader: &Reader<'_>) -> Result<Network, HydraError> {
    let prefix = reader.parsed("DEFAULT_NETWORK_PREFIX", grammar::prefix)?;
    let address = |name: &'static str| {
        let text = reader.text(name);
        let [first, second, third, _] = prefix.value.octets();
        let whole = text.value.replace("PREFIX", &format!("{first}.{second}.{third}"));
        let value = grammar::address(&whole, prefix.value)
            .map_err(|reason| HydraError::value(name, &text.value, reason))?;
        // One that only follows from the prefix comes from where the prefix does.
        let source = if text.source == Source::Default { prefix.source } else { text.source };
        Ok::<_, HydraError>(Setting { value, source })
    };
    let (device, gateway) = (address("DEFAULT_DEVICE_IP")?, address("DEFAULT_GATEWAY_IP")?);
    let dns = address("DEFAULT_DNS_IP")?;
    for (first, second, one, two) in [
        ("DEFAULT_DEVICE_IP", "DEFAULT_GATEWAY_IP", &device, &gateway),
        ("DEFAULT_DEVICE_IP", "DEFAULT_DNS_IP", &device, &dns),
    ] {
        if one.value == two.value {
            return Err(HydraError::Together { first, second, what: format!("are both {}", one.value) });
        }
    }
    Ok(Network { prefix, device, gateway, dns })
}
