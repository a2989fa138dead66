//! The command line of `nelly boot` that starts a machine of the Hydra scripts' variables.

use std::path::Path;

use nelly_hydra::{
    Bare, Boots, Image, Machine, Port, Share, Source, containerd_lines, k3s_lines, mount_lines, show_size,
};
use nelly_seed::PublicKey;

/// What a bare machine's kernel is told before the words of the user: its console, its address
/// (Documentation/admin-guide/nfs/nfsroot.rst of Linux), and what the scripts' initrd reads.
const ENABLE_SSH: &str = "ENABLE_SSH=true";

/// A command line, as it is and as it may be shown: without secrets, and for bash.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// The words after `nelly boot`.
    pub(crate) words: Vec<String>,
    /// Keys that may log in, for which there is no file.
    pub(crate) keys: Vec<PublicKey>,
    shown: Vec<String>,
}

/// What was found on the host for a machine.
#[derive(Debug, Default)]
pub(crate) struct Found<'a> {
    /// The shares, without those that are left out.
    pub(crate) shares: Vec<&'a Share>,
    /// The user's own key.
    pub(crate) key: Option<&'a Path>,
    /// Whether a bare machine's disk is there, or was asked for.
    pub(crate) disk: bool,
}

impl Line {
    /// The line of a machine. `rest` are flags of `nelly boot` that the user added.
    pub(crate) fn of(machine: &Machine, found: &Found<'_>, rest: &[String]) -> Self {
        let mut line = Self::default();
        let append = match &machine.boots {
            Boots::Image(image) => {
                line.image(machine, image, found);
                machine.append.value.clone()
            }
            Boots::Bare(bare) => {
                line.bare(machine, bare, found);
                let network = &machine.network;
                let (device, gateway) = (network.device.value, network.gateway.value);
                let ip = format!("ip={device}::{gateway}:255.255.255.0:rimd:eth0:off");
                format!("console=ttyS0 {ip} {ENABLE_SSH} {}", machine.append.value)
            }
        };
        line.flag("--cpus", &machine.cpus.value.to_string());
        line.flag("--memory", &show_size(machine.memory.value));
        if !append.is_empty() {
            line.flag("--append", append.trim_end());
        }
        line.flag("--net", &network(machine));
        for port in &machine.ports {
            line.flag("-p", &published(port.value));
        }
        for share in &found.shares {
            let reads = if share.read_only { ":ro" } else { "" };
            line.flag("--share", &format!("{}={}{reads}", share.tag, share.host.display()));
        }
        if machine.debug.value {
            line.flag("--log-level", "debug");
        }
        if machine.background.value {
            line.background(machine.profile.name(), rest);
        }
        for word in rest {
            line.shown.push(quoted(word));
            line.words.push(word.clone());
        }
        line
    }

    /// The whole command, for bash.
    pub(crate) fn command(&self) -> String {
        format!("nelly boot {}", self.shown.join(" "))
    }

    fn image(&mut self, machine: &Machine, image: &Image, found: &Found<'_>) {
        let file = machine.directory.value.join(&image.file.value);
        let size = show_size(image.disk_size.value);
        let value = format!("{},overlay={},size={size}", commas(&file), commas(&machine.overlay()));
        self.flag("--image", &value);
        self.flag("--user", image.user.value.as_str());
        self.password(image);
        if let Some(lines) = &image.keys.lines {
            self.keys.clone_from(&lines.value);
            self.shown.push(r#"--ssh-key <(printf '%s\n' "$VM_SSH_AUTHORIZED_KEY")"#.to_owned());
        }
        let file = image.keys.file.as_ref().map(|file| &*file.value);
        for file in file.into_iter().chain(found.key) {
            self.flag("--ssh-key", &file.display().to_string());
        }
        self.flag("--hostname", image.host_name.value.as_str());
        if let Some(kernel) = &image.kernel {
            self.flag("--package", kernel.value.as_str());
        }
        for mount in mount_lines(found.shares.iter().copied()) {
            self.flag("--runcmd", &mount);
        }
        let containerd = if image.containerd { containerd_lines() } else { Vec::new() };
        let k3s = if image.k3s.is_some() { k3s_lines() } else { Vec::new() };
        for line in containerd.iter().chain(&k3s) {
            self.flag("--runcmd", line);
        }
    }

    fn bare(&mut self, machine: &Machine, bare: &Bare, found: &Found<'_>) {
        let file = |file: &Path| machine.directory.value.join(file);
        self.flag("--kernel", &file(&bare.kernel.value).display().to_string());
        self.flag("--initrd", &file(&bare.initrd.value).display().to_string());
        if found.disk {
            self.flag("--disk", &commas(&file(&bare.disk.value)));
        }
    }

    /// The machine is started with the hash. Who reads the line finds the variable in its place.
    fn password(&mut self, image: &Image) {
        let login = &image.password;
        self.words.extend(["--password-hash".to_owned(), login.hash.value.as_str().to_owned()]);
        let Some(salt) = &login.salt else {
            self.shown.push(r#"--password-hash "$VM_PASSWORD_ENCRYPTED""#.to_owned());
            return;
        };
        let plain = match login.hash.source {
            Source::Variable(name) => format!(r#""${name}""#),
            // That of the scripts, which is no secret.
            Source::Profile(_) | Source::Default => {
                nelly_hydra::variable("VM_PASSWORD").expect("it is one of the table").default.to_owned()
            }
        };
        self.shown.push(format!("--password-file <(printf %s {plain})"));
        self.shown.push(format!("--salt {}", quoted(salt.value.as_str())));
        if login.is_known() {
            self.words.push("--no-ssh-password".to_owned());
            self.shown.push("--no-ssh-password".to_owned());
        }
    }

    /// In the background, with this name, unless the user's own flags say so.
    fn background(&mut self, name: &str, rest: &[String]) {
        if !rest.iter().any(|word| word == "-d" || word == "--detach") {
            self.words.push("-d".to_owned());
            self.shown.push("-d".to_owned());
        }
        if !rest.iter().any(|word| word == "--name" || word.starts_with("--name=")) {
            self.flag("--name", name);
        }
    }

    fn flag(&mut self, flag: &str, value: &str) {
        if value.starts_with('-') {
            // Else it would be taken for a flag.
            self.shown.push(quoted(&format!("{flag}={value}")));
            self.words.push(format!("{flag}={value}"));
        } else {
            self.shown.push(format!("{flag} {}", quoted(value)));
            self.words.extend([flag.to_owned(), value.to_owned()]);
        }
    }
}

/// The network, with the addresses that are not Nelly's own.
fn network(machine: &Machine) -> String {
    let network = &machine.network;
    let own = |host: u8| {
        let [first, second, third, _] = network.prefix.value.octets();
        std::net::Ipv4Addr::new(first, second, third, host)
    };
    let mut word = "user".to_owned();
    if network.prefix.source != Source::Default {
        word += &format!(",prefix={}/24", network.prefix.value);
    }
    for (name, value, host) in
        [("ip", &network.device, 15), ("gw", &network.gateway, 2), ("dns", &network.dns, 3)]
    {
        if value.value != own(host) {
            word += &format!(",{name}={}", value.value);
        }
    }
    word
}

fn published(port: Port) -> String {
    if port.bind.is_loopback() && port.bind == std::net::Ipv4Addr::LOCALHOST {
        format!("{}:{}", port.host, port.guest)
    } else {
        format!("{}:{}:{}", port.bind, port.host, port.guest)
    }
}

/// A path with its commas written twice, as `--image` and `--disk` read them.
fn commas(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A word for a shell.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nelly_hydra::{Host, Platform, Profile};

    use super::*;
    use crate::args::{Cli, Verb};

    fn machine(profile: Profile, variables: &[(&str, &str)]) -> Machine {
        let environment: BTreeMap<_, _> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let host = Host { platform: Platform::LinuxUser, architecture: "amd64" };
        Machine::read(&environment, profile, host).unwrap()
    }

    /// The command line of these variables, whose words `nelly boot` takes.
    fn line(profile: Profile, variables: &[(&str, &str)]) -> Line {
        let machine = machine(profile, variables);
        let shares = machine.shares.iter().map(|share| &share.value).collect();
        let found = Found { shares, key: Some(Path::new("/me/.ssh/id_ed25519.pub")), disk: true };
        let line = Line::of(&machine, &found, &["--timeout".to_owned(), "1h".to_owned()]);
        let mut words = vec!["nelly".to_owned(), "boot".to_owned()];
        words.extend(line.words.iter().cloned());
        assert!(matches!(Cli::from_words(&words).unwrap().verb, Verb::Boot(_)), "{words:?}");
        line
    }

    #[test]
    fn the_command_is_that_of_boot() {
        let image =
            line(Profile::Isolated, &[("DEFAULT_IMAGE", "a,b.qcow2"), ("DISABLE_CONTAINERD_CSI_PROXY", "1")]);
        assert_eq!(
            image.command(),
            "nelly boot --image image/a,,b.qcow2,overlay=image/isolated-disk.qcow2,size=3G --user hailhydra \
             --password-file <(printf %s hailhydra) --salt 123456 --no-ssh-password --ssh-key /me/.ssh/id_ed25519.pub --hostname vm-host \
             --cpus 2 --memory 2G --net user -p 5555:22 --timeout 1h"
        );
        let bare = line(
            Profile::IsolatedBare,
            &[
                ("ADDITIONAL_KERNEL_COMMANDLINE", "quiet"),
                ("DEFAULT_KVM_HOST_SSHD_PORT", "0.0.0.0:22"),
                ("DEBUG", "1"),
            ],
        );
        let top = "image-hydra-isolated-bare/final_artifact";
        assert_eq!(
            bare.command(),
            format!(
                "nelly boot --kernel {top}/Image.gz --initrd {top}/initramfs.linux_arm64.cpio --disk {top}/something.qcow2 \
                 --cpus 2 --memory 2G --append \
                 'console=ttyS0 ip=10.0.2.15::10.0.2.2:255.255.255.0:rimd:eth0:off ENABLE_SSH=true quiet' \
                 --net user -p 0.0.0.0:22:22 -p 35000:35000 -p 35001:35001 --log-level debug --timeout 1h"
            )
        );
        assert!(line(Profile::Host, &[]).command().contains("size=25G"));
        let k3s = line(Profile::Host, &[("K3S_VERSION_INSTALL", "./k3s")]).command();
        for part in [
            "--share k3s=./k3s:ro",
            "virtiofs ro,nofail,x-nelly.share",
            "--runcmd 'install -D -m 755 /opt/nelly/k3s/file /usr/local/bin/k3s'",
            "systemctl enable k3s.service",
        ] {
            assert!(k3s.contains(part), "{part}: {k3s}");
        }
    }

    #[test]
    fn a_machine_in_the_background_has_its_profiles_name_unless_it_is_given_one() {
        for (profile, name) in [(Profile::Isolated, "isolated"), (Profile::IsolatedBare, "isolated-bare")] {
            let machine = machine(profile, &[("KVM_DAEMONIZE", "1")]);
            let ends = |rest: &[&str]| {
                let rest: Vec<_> = rest.iter().map(|word| (*word).to_owned()).collect();
                let line = Line::of(&machine, &Found::default(), &rest);
                let mut words = vec!["nelly".to_owned(), "boot".to_owned()];
                words.extend(line.words.iter().cloned());
                let Verb::Boot(boot) = Cli::from_words(&words).unwrap().verb else { panic!("{words:?}") };
                assert!(boot.detach, "{words:?}");
                let command = line.command();
                (boot.name.unwrap(), command.split_once("-p 5555:22 ").unwrap().1.to_owned())
            };
            let (named, shown) = ends(&[]);
            assert!(named == name && shown.ends_with(&format!("-d --name {name}")), "{named}: {shown}");
            assert_eq!(ends(&["--name=mine"]).0, "mine");
            assert_eq!(ends(&["-d", "--name", "mine"]).0, "mine");
            assert_eq!(ends(&["--detach"]).0, name);
        }
    }

    #[test]
    fn secrets_are_variables_in_what_is_shown() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
        let plain = line(Profile::Isolated, &[("VM_PASSWORD", "sesame"), ("VM_SSH_AUTHORIZED_KEY", key)]);
        let shown = plain.command();
        assert!(shown.contains(r#"--password-file <(printf %s "$VM_PASSWORD") --salt 123456"#), "{shown}");
        assert!(shown.contains(r#"--ssh-key <(printf '%s\n' "$VM_SSH_AUTHORIZED_KEY")"#), "{shown}");
        assert!(!shown.contains("sesame") && !shown.contains("$6$") && plain.keys.len() == 1, "{shown}");
        assert!(plain.words.iter().any(|word| word.starts_with("$6$123456$")));
        let hashed = line(Profile::Isolated, &[("VM_PASSWORD_ENCRYPTED", "$6$a$b")]);
        let shown = hashed.command();
        assert!(
            shown.contains(r#"--password-hash "$VM_PASSWORD_ENCRYPTED""#) && !shown.contains("$6$"),
            "{shown}"
        );
        assert!(hashed.words.iter().any(|word| word == "$6$a$b"));
    }

    #[test]
    fn shares_and_addresses_become_flags() {
        let shared = line(
            Profile::Isolated,
            &[
                ("ADDITIONAL_9P_MOUNTS", "/srv/my data|/data"),
                ("DEFAULT_NETWORK_PREFIX", "10.9.8"),
                ("DEFAULT_GATEWAY_IP", "10.9.8.1"),
                ("ADDITIONAL_KERNEL_COMMANDLINE", "-x"),
                ("KERNEL_VERSION", "linux-image-rt"),
            ],
        );
        let shown = shared.command();
        for part in [
            "--share 'host100=/srv/my data'",
            "--runcmd 'mkdir -p '\\''/data'\\'' && ",
            "--net user,prefix=10.9.8.0/24,gw=10.9.8.1 ",
            "--append=-x",
            "--package linux-image-rt",
            "--runcmd 'systemctl daemon-reload && systemctl enable --now nelly-containerd.socket'",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}
