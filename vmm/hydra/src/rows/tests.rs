//! Each variable does what the table says of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::HydraError;
use crate::machine::{ArtifactLogin, Boots, Image, Machine};
use crate::setting::{Host, Platform, Profile, Source};
use crate::share::Missing;
use crate::variables::{Decision, VARIABLES};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
const USER: Host = Host { platform: Platform::LinuxUser, architecture: "amd64" };
const ROOT: Host = Host { platform: Platform::LinuxRoot, ..USER };
const MAC: Host = Host { platform: Platform::Darwin, architecture: "arm64" };
const OTHER: Host = Host { platform: Platform::Other, ..USER };

fn on(host: Host, profile: Profile, variables: &[(&str, &str)]) -> Result<Machine, HydraError> {
    let environment: BTreeMap<_, _> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Machine::read(&environment, profile, host)
}

#[track_caller]
fn machine(variables: &[(&str, &str)]) -> Machine {
    on(USER, Profile::Isolated, variables).unwrap()
}

fn image(machine: &Machine) -> &Image {
    let Boots::Image(image) = &machine.boots else { panic!("no image") };
    image
}

/// The values of a setting, with their sources.
fn shown(machine: &Machine, key: &str) -> Vec<String> {
    let rows = machine.rows().into_iter().filter(|row| row.key == key);
    rows.map(|row| format!("{} ({})", row.value, row.source)).collect()
}

#[track_caller]
fn is(machine: &Machine, key: &str, value: &str) {
    assert_eq!(shown(machine, key).join(" "), value, "{key}");
}

#[test]
fn without_variables_it_is_the_machine_of_the_scripts() {
    let plain = machine(&[]);
    for (key, value) in [
        ("cpus", "2 (default)"),
        ("memory", "2G (default)"),
        ("directory", "image (default)"),
        ("bare", "false (default)"),
        ("image", "debian-12-genericcloud-amd64-20250316-2053.qcow2 (default)"),
        ("image_url", "https://cloud.debian.org/images/cloud/bookworm/20250316-2053/ (default)"),
        ("disk_size", "3G (default)"),
        ("user", "hailhydra (default)"),
        ("password", "(hidden) (default)"),
        ("hostname", "vm-host (default)"),
        ("ssh_keys", "the first key in ~/.ssh that ssh tries (default)"),
        ("packages", ""),
        ("append", ""),
        ("ports", "127.0.0.1:5555:22 (default) 127.0.0.1:35000:35000 (default)"),
        ("shares", ""),
        ("network_prefix", "10.0.2.0/24 (default)"),
        ("device_ip", "10.0.2.15 (default)"),
        ("gateway_ip", "10.0.2.2 (default)"),
        ("dns_ip", "10.0.2.3 (default)"),
        ("dry_run", "false (default)"),
        ("background", "false (default)"),
        ("debug", "false (default)"),
    ] {
        is(&plain, key, value);
    }
    assert_eq!(plain.overlay().to_str(), Some("image/isolated-disk.qcow2"));
    assert_eq!(plain.ssh_port().unwrap().host, 5555);
    let told = plain.warnings.join("\n");
    assert!(told.contains("VM_PASSWORD") && image(&plain).containerd, "{told}");
    assert_eq!(plain.warnings.len(), 1, "{told}");
    is(
        &on(MAC, Profile::Isolated, &[]).unwrap(),
        "image",
        "debian-12-genericcloud-arm64-20250316-2053.qcow2 (default)",
    );
}

/// A value that a variable has, and how it is shown of the machine where it has an effect.
const VALUES: &[(&str, &str, Host, &str, &str)] = &[
    ("ADDITIONAL_9P_MOUNTS", "/a|/b$/c d|/e", USER, "shares", "/a|/b /c d|/e"),
    ("ADDITIONAL_KERNEL_COMMANDLINE", "quiet x=1", USER, "append", "quiet x=1"),
    ("DEBUG", "1", USER, "debug", "true"),
    ("KVM_DAEMONIZE", "1", USER, "background", "true"),
    ("DEFAULT_DEVICE_IP", "10.0.2.77", USER, "device_ip", "10.0.2.77"),
    ("DEFAULT_DIR_IMAGE", "/var/images", USER, "directory", "/var/images"),
    (
        "DEFAULT_DIR_K3S_VAR_DARWIN",
        "/k",
        MAC,
        "shares",
        "/k/var/lib/kubelet|/var/lib/kubelet /k/var/log/pods|/var/log/pods",
    ),
    (
        "DEFAULT_DIR_K3S_VAR_LINUX_NON_ROOT",
        "k",
        USER,
        "shares",
        "k/var/lib/kubelet|/var/lib/kubelet k/var/log/pods|/var/log/pods",
    ),
    (
        "DEFAULT_DIR_K3S_VAR_LINUX_ROOT",
        "/k",
        ROOT,
        "shares",
        "/k/var/lib/kubelet|/var/lib/kubelet /k/var/log/pods|/var/log/pods",
    ),
    (
        "DEFAULT_DIR_K3S_VAR_OTHER",
        "/k",
        OTHER,
        "shares",
        "/k/var/lib/kubelet|/var/lib/kubelet /k/var/log/pods|/var/log/pods",
    ),
    ("DEFAULT_DNS_IP", "10.0.2.9", USER, "dns_ip", "10.0.2.9"),
    ("DEFAULT_GATEWAY_IP", "10.0.2.1", USER, "gateway_ip", "10.0.2.1"),
    ("DEFAULT_IMAGE", "debian.qcow2", USER, "image", "debian.qcow2"),
    ("DEFAULT_IMAGE_SOURCE_URL", "https://example.org/", USER, "image_url", "https://example.org/"),
    ("DEFAULT_KERNEL_VERSION", "6.12.12+bpo", USER, "packages", "linux-image-6.12.12+bpo-amd64"),
    ("DEFAULT_KVM_DARWIN_CPU", "4", MAC, "cpus", "4"),
    ("DEFAULT_KVM_DARWIN_MEMORY", "8", MAC, "memory", "8G"),
    ("DEFAULT_KVM_DISK_SIZE", "16", USER, "disk_size", "16G"),
    ("DEFAULT_KVM_HOST_CONTAINERD_PORT", "35009", USER, "ports", "127.0.0.1:35009:35000"),
    ("DEFAULT_KVM_HOST_DIOD_PORT", "564", USER, "ports", "127.0.0.1:564:564"),
    ("DEFAULT_KVM_HOST_RIMD_PORT", "35002", USER, "ports", "127.0.0.1:35002:35001"),
    ("DEFAULT_KVM_HOST_SSHD_PORT", "0.0.0.0:5556", USER, "ports", "0.0.0.0:5556:22"),
    ("DEFAULT_KVM_LINUX_CPU", "5", ROOT, "cpus", "5"),
    ("DEFAULT_KVM_LINUX_MEMORY", "512M", USER, "memory", "512M"),
    ("DEFAULT_KVM_PORTS_REDIRECT", "80:8080;81:8081", USER, "ports", "127.0.0.1:80:8080 127.0.0.1:81:8081"),
    ("DEFAULT_KVM_UNKNOWN_CPU", "6", OTHER, "cpus", "6"),
    ("DEFAULT_KVM_UNKNOWN_MEMORY", "7", OTHER, "memory", "7G"),
    ("DEFAULT_NETWORK_PREFIX", "10.7.7", USER, "network_prefix", "10.7.7.0/24"),
    ("DEFAULT_RIMD_ARTIFACT_FILENAME", "a.zip", USER, "artifact", "a.zip"),
    ("DEFAULT_RIMD_ARTIFACT_URL", "https://h.example/x", USER, "artifact_url", "https://h.example/x"),
    ("DEFAULT_RIMD_FILESYSTEM_FILENAME", "a/fs.qcow2", USER, "bare_disk", "a/fs.qcow2"),
    ("DEFAULT_RIMD_IMAGE_FILENAME", "initrd", USER, "initrd", "initrd"),
    ("DEFAULT_RIMD_KERNEL_FILENAME", "Image", USER, "kernel", "Image"),
    (
        "DIR_K3S_VAR",
        "/k",
        USER,
        "shares",
        "/k/var/lib/kubelet|/var/lib/kubelet /k/var/log/pods|/var/log/pods",
    ),
    ("DRY_RUN_ONLY", "1", USER, "dry_run", "true"),
    ("K3S_VERSION_INSTALL", "./bin/k3s", USER, "k3s", "./bin/k3s"),
    ("KERNEL_VERSION", "linux-image-rt-amd64", USER, "packages", "linux-image-rt-amd64"),
    ("KVM_CPU", "32", USER, "cpus", "32"),
    ("KVM_MEMORY", "1T", USER, "memory", "1T"),
    ("RUN_BARE_KERNEL", "2", USER, "bare", "true"),
    ("VM_HOSTNAME", "hydra-1.example", USER, "hostname", "hydra-1.example"),
    ("VM_PASSWORD", "secret", USER, "password", "(hidden)"),
    ("VM_PASSWORD_ENCRYPTED", "$6$salt$hash", USER, "password", "(hidden)"),
    ("VM_SSH_AUTHORIZED_KEY", KEY, USER, "ssh_keys", KEY),
    ("VM_SSH_KEY_FILENAME", "/me/id.pub", USER, "ssh_keys", "/me/id.pub"),
    ("VM_USERNAME", "ada", USER, "user", "ada"),
];

/// Variables whose effect is another one than a value, each with a test of its own.
const SWITCHES: &[&str] = &[
    "DISABLE_9P_KUBELET_MOUNTS",
    "DISABLE_CONTAINERD_CSI_PROXY",
    "ENABLE_K3S_DIOD",
    "EXTERNAL_9P_KUBELET_MOUNTS",
    "RIMD_ARTIFACT_URL_PASS",
    "RIMD_ARTIFACT_URL_TOKEN",
    "RIMD_ARTIFACT_URL_USER",
    "VM_SALT",
];

#[test]
fn each_variable_sets_what_the_table_says() {
    for &(name, value, host, key, expected) in VALUES {
        let mut variables = vec![(name, value)];
        match name {
            "DEFAULT_KVM_HOST_DIOD_PORT" | "K3S_VERSION_INSTALL" => variables.push(("ENABLE_K3S_DIOD", "1")),
            name if name.contains("RIMD") => variables.push(("RUN_BARE_KERNEL", "1")),
            _ => {}
        }
        let machine = on(host, Profile::Isolated, &variables).unwrap();
        let rows = machine.rows();
        let ours: Vec<_> = rows.iter().filter(|row| row.source == Source::Variable(name)).collect();
        let of_key: Vec<_> = ours.iter().filter(|row| row.key == key).map(|row| &*row.value).collect();
        assert_eq!(of_key.join(" "), expected, "{name}");
        assert!(ours[0].variables().any(|variable| variable == name), "{name}");
        let told = machine.warnings.iter().any(|warning| warning.contains(&format!("{name} has no")));
        assert!(!told, "{name}: {:?}", machine.warnings);
        // An empty value says nothing, as in the scripts.
        let empty = on(host, Profile::Isolated, &[&[(name, "")], &variables[1..]].concat()).unwrap();
        let without = on(host, Profile::Isolated, &variables[1..]).unwrap();
        assert_eq!(empty, without, "{name}");
    }
    let mut tested: BTreeSet<_> = VALUES.iter().map(|value| value.0).collect();
    tested.extend(SWITCHES);
    let sets = VARIABLES.iter().filter(|variable| matches!(variable.decision, Decision::Sets(_)));
    assert_eq!(tested, sets.map(|variable| variable.name).collect());
}

#[test]
fn the_login_of_an_archive_is_a_token_or_a_user_and_hidden() {
    let bare = |variables: &[(&str, &str)]| {
        let machine = on(USER, Profile::IsolatedBare, variables).unwrap();
        let Boots::Bare(bare) = machine.boots.clone() else { panic!("no kernel") };
        let told = machine.warnings.join("\n");
        assert!(!format!("{machine:?}").contains("sesame") && !told.contains("sesame"), "{told}");
        (bare.artifact_login, shown(&machine, "artifact_login").join(" "), told)
    };
    let user = ("RIMD_ARTIFACT_URL_USER", "ada");
    let password = ("RIMD_ARTIFACT_URL_PASS", "sesame");
    let token = ("RIMD_ARTIFACT_URL_TOKEN", "sesame");
    let (login, row, told) = bare(&[token]);
    assert!(matches!(login, Some(ArtifactLogin::Token(token)) if token.value == "sesame"));
    assert_eq!((&row[..], &told[..]), ("(hidden) ($RIMD_ARTIFACT_URL_TOKEN)", ""));
    let (login, row, _) = bare(&[user, password]);
    assert!(matches!(login, Some(ArtifactLogin::User(_, password)) if password == "sesame"));
    assert_eq!(row, "(hidden) ($RIMD_ARTIFACT_URL_USER)");
    let (login, _, told) = bare(&[user, password, token]);
    assert!(matches!(login, Some(ArtifactLogin::Token(_))));
    assert_eq!(told.matches("has no effect, since RIMD_ARTIFACT_URL_TOKEN is set").count(), 2, "{told}");
    let (login, row, told) = bare(&[password]);
    assert!(login.is_none() && row.is_empty() && told.contains("without RIMD_ARTIFACT_URL_USER"), "{told}");
    assert_eq!(bare(&[]).0, None);
}

#[test]
fn a_packed_image_is_called_without_what_it_is_packed_with() {
    for (name, file) in [
        ("d.qcow2.xz", "d.qcow2"),
        ("a/d.img.gz", "a/d.img"),
        ("d.qcow2", "d.qcow2"),
        ("debian.tar.xz", "debian"),
        ("d.qcow2.tgz", "d.qcow2"),
        ("d.raw.tar", "d.raw"),
    ] {
        let machine = machine(&[("DEFAULT_IMAGE", name)]);
        let found = image(&machine);
        assert_eq!((found.file.value.to_str(), found.packed.to_str()), (Some(file), Some(name)));
    }
}

#[test]
fn each_variable_without_meaning_is_named_in_one_warning() {
    for variable in VARIABLES {
        let Some(reason) = variable.decision.reason() else { continue };
        let machine =
            machine(&[(variable.name, "1"), ("DISABLE_CONTAINERD_CSI_PROXY", "1"), ("VM_PASSWORD", "a")]);
        let [warning] = &machine.warnings[..] else { panic!("{}: {:?}", variable.name, machine.warnings) };
        let not_yet = matches!(variable.decision, Decision::Later(_));
        let says = if not_yet { "has no effect yet" } else { "has no meaning here" };
        assert_eq!(*warning, format!("{} {says}: {reason}", variable.name));
        let off = self::machine(&[
            (variable.name, "0"),
            ("DISABLE_CONTAINERD_CSI_PROXY", "1"),
            ("VM_PASSWORD", "a"),
        ]);
        assert_eq!(off.warnings.is_empty(), variable.default == "0", "{}", variable.name);
    }
    let odd = machine(&[("DEFAULT_KVM_LINUX_MEM", "8"), ("PATH", "/bin"), ("NELLY_CPUS", "1")]);
    let odd: Vec<_> = odd.warnings.iter().filter(|warning| warning.contains("is no variable")).collect();
    assert!(matches!(&odd[..], [one] if one.contains("DEFAULT_KVM_LINUX_MEM")), "{odd:?}");
}

#[test]
fn the_stronger_variable_wins() {
    let both = [("KVM_CPU", "3"), ("DEFAULT_KVM_LINUX_CPU", "4"), ("DEFAULT_KVM_DARWIN_CPU", "5")];
    is(&machine(&both), "cpus", "3 ($KVM_CPU)");
    is(&machine(&both[1..]), "cpus", "4 ($DEFAULT_KVM_LINUX_CPU)");
    is(&machine(&both[2..]), "cpus", "2 (default)");
    is(&on(MAC, Profile::Isolated, &both[1..]).unwrap(), "cpus", "5 ($DEFAULT_KVM_DARWIN_CPU)");
    let kernels = [("KERNEL_VERSION", "linux-image-a"), ("DEFAULT_KERNEL_VERSION", "b")];
    is(&machine(&kernels), "packages", "linux-image-a ($KERNEL_VERSION)");
    let moved = machine(&[("DEFAULT_NETWORK_PREFIX", "10.9.8"), ("DEFAULT_DNS_IP", "10.9.8.53")]);
    is(&moved, "device_ip", "10.9.8.15 ($DEFAULT_NETWORK_PREFIX)");
    is(&moved, "dns_ip", "10.9.8.53 ($DEFAULT_DNS_IP)");
}

#[test]
fn a_password_is_hashed_and_never_shown() {
    let plain = machine(&[("VM_PASSWORD", "open sesame"), ("VM_SALT", "abc")]);
    let hash = image(&plain).password.hash.value.as_str().to_owned();
    assert!(hash.starts_with("$6$abc$"), "{hash}");
    assert!(!format!("{plain:?}").contains("sesame") && !format!("{:?}", plain.rows()).contains("$6$"));
    assert!(plain.warnings.iter().all(|warning| !warning.contains("VM_PASSWORD")), "{:?}", plain.warnings);
    let other = machine(&[("VM_PASSWORD", "open sesame")]);
    assert!(image(&other).password.hash.value.as_str().starts_with("$6$123456$"));
    let hashed = machine(&[("VM_PASSWORD_ENCRYPTED", "$y$j9T$a$b"), ("VM_PASSWORD", "x"), ("VM_SALT", "y")]);
    assert_eq!(image(&hashed).password.hash.value.as_str(), "$y$j9T$a$b");
    assert_eq!(image(&hashed).password.salt, None);
    let told = hashed.warnings.join("\n");
    assert!(told.contains("VM_PASSWORD has no effect") && told.contains("VM_SALT has no effect"), "{told}");
    for (name, value) in [
        ("VM_PASSWORD", "two\nlines"),
        ("VM_PASSWORD_ENCRYPTED", "in plain"),
        ("VM_SSH_AUTHORIZED_KEY", "-----BEGIN OPENSSH PRIVATE KEY-----"),
    ] {
        let error = on(USER, Profile::Isolated, &[(name, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name}: ")) && !error.contains(value), "{error}");
    }
}

#[test]
fn the_keys_of_root_are_let_in_only_by_name() {
    assert!(image(&machine(&[])).keys.usual);
    assert!(!image(&on(ROOT, Profile::Isolated, &[]).unwrap()).keys.usual);
    let two = format!("{KEY} me@here\n{KEY}\n");
    let both = machine(&[("VM_SSH_AUTHORIZED_KEY", &two), ("VM_SSH_KEY_FILENAME", "k.pub")]);
    let keys = &image(&both).keys;
    assert!(!keys.usual && keys.file.is_some());
    assert_eq!(keys.lines.as_ref().unwrap().value.len(), 2);
    assert!(!format!("{:?}", both.rows()).contains("me@here"));
}

#[test]
fn the_kubelets_directories_are_shared_by_root_unless_somebody_says_otherwise() {
    let shares = |host, variables: &[(&str, &str)]| {
        let machine = on(host, Profile::Isolated, variables).unwrap();
        machine.shares.into_iter().map(|share| (share.value.tag, share.value.missing)).collect::<Vec<_>>()
    };
    let two = |missing| vec![("host0".to_owned(), missing), ("host1".to_owned(), missing)];
    assert_eq!(shares(ROOT, &[]), two(Missing::Skip));
    assert_eq!(shares(USER, &[]), []);
    assert_eq!(shares(ROOT, &[("DISABLE_9P_KUBELET_MOUNTS", "1")]), []);
    assert_eq!(shares(ROOT, &[("RUN_BARE_KERNEL", "1")]), []);
    assert_eq!(shares(ROOT, &[("DISABLE_9P_KUBELET_MOUNTS", "0")]), two(Missing::Refuse));
    assert_eq!(shares(USER, &[("DISABLE_9P_KUBELET_MOUNTS", "0")]), two(Missing::Create));
    assert_eq!(shares(ROOT, &[("DEFAULT_DIR_K3S_VAR_LINUX_ROOT", "/k")]), two(Missing::Create));
    assert_eq!(shares(ROOT, &[("DEFAULT_DIR_K3S_VAR_OTHER", "/k")]), two(Missing::Skip));
    let external = [("EXTERNAL_9P_KUBELET_MOUNTS", "1")];
    assert_eq!(shares(ROOT, &external), []);
    let told = on(ROOT, Profile::Isolated, &external).unwrap().warnings.join("\n");
    assert!(told.contains("EXTERNAL_9P_KUBELET_MOUNTS is not possible yet"), "{told}");
    let more = [("ADDITIONAL_9P_MOUNTS", "/srv|/data")];
    let more = shares(ROOT, &more);
    assert_eq!(more[2], ("host100".to_owned(), Missing::Refuse));
    let clash = [("ADDITIONAL_9P_MOUNTS", "/srv|/data$/a|/var/log/pods")];
    let error = on(ROOT, Profile::Isolated, &clash).unwrap_err().to_string();
    assert!(error.contains("both put a directory at /var/log/pods"), "{error}");
}

#[test]
fn ports_are_those_of_what_the_machine_has() {
    let ports = |variables: &[(&str, &str)]| {
        let machine = machine(variables);
        machine.ports.iter().map(|port| port.value.guest).collect::<Vec<_>>()
    };
    assert_eq!(ports(&[]), [22, 35000]);
    assert_eq!(ports(&[("DISABLE_CONTAINERD_CSI_PROXY", "1")]), [22]);
    assert_eq!(ports(&[("ENABLE_K3S_DIOD", "1")]), [22, 35000, 564]);
    assert_eq!(ports(&[("RUN_BARE_KERNEL", "1")]), [22, 35000, 35001]);
    let unused = machine(&[("DEFAULT_KVM_HOST_RIMD_PORT", "9")]).warnings.join("\n");
    assert!(unused.contains("DEFAULT_KVM_HOST_RIMD_PORT has no effect"), "{unused}");
    for (variables, says) in [
        (
            &[("DEFAULT_KVM_PORTS_REDIRECT", "5555:80")][..],
            "DEFAULT_KVM_PORTS_REDIRECT and DEFAULT_KVM_HOST_SSHD_PORT both want port 5555",
        ),
        (&[("DEFAULT_KVM_HOST_SSHD_PORT", "0.0.0.0:35000")], "both want port 35000"),
        (&[("DEFAULT_KVM_PORTS_REDIRECT", "80:1;80:2")], "both want port 80"),
    ] {
        let error = on(USER, Profile::Isolated, variables).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(ports(&[("DEFAULT_KVM_PORTS_REDIRECT", "127.0.0.2:5555:80")]), [80, 22, 35000]);
}

#[test]
fn a_profile_is_weaker_than_the_environment() {
    let host = on(USER, Profile::Host, &[("DEFAULT_KVM_DISK_SIZE", "30")]).unwrap();
    is(&host, "directory", "image-host (profile host)");
    is(&host, "disk_size", "30G ($DEFAULT_KVM_DISK_SIZE)");
    assert_eq!(host.overlay().to_str(), Some("image-host/host-disk.qcow2"));
    assert!(shown(&host, "ports").contains(&"127.0.0.1:6443:6443 (profile host)".to_owned()));
    let told = host.warnings.join("\n");
    assert!(told.contains("k3s and diod are not installed") && !told.contains("containerd"), "{told}");
    assert_eq!(on(ROOT, Profile::Host, &[]).unwrap().shares, []);
    // k3s comes where its program is given, read-only, and a version is none.
    let k3s = on(ROOT, Profile::Host, &[("K3S_VERSION_INSTALL", "/opt/k3s")]).unwrap();
    assert_eq!(shown(&k3s, "shares"), ["/opt/k3s|/opt/nelly/k3s ($K3S_VERSION_INSTALL)"]);
    assert!(k3s.shares[0].value.read_only && k3s.warnings.join("\n").contains("diod is not installed"));
    let version = on(ROOT, Profile::Host, &[("K3S_VERSION_INSTALL", "v1.32.6+k3s1")]).unwrap();
    assert!(version.shares.is_empty() && version.warnings.join("\n").contains("names the version"));
    let without = on(USER, Profile::Isolated, &[("K3S_VERSION_INSTALL", "/opt/k3s")]).unwrap();
    assert!(image(&without).k3s.is_none() && without.warnings.join("\n").contains("without ENABLE_K3S_DIOD"));
    let bare = on(USER, Profile::IsolatedBare, &[("VM_USERNAME", "ada")]).unwrap();
    is(&bare, "kernel", "final_artifact/Image.gz (default)");
    is(&bare, "directory", "image-hydra-isolated-bare (profile isolated-bare)");
    assert!(bare.warnings.join("\n").contains("VM_USERNAME has no meaning for a bare kernel"));
    let none = on(USER, Profile::IsolatedBare, &[("RUN_BARE_KERNEL", "0")]).unwrap();
    assert!(matches!(none.boots, Boots::Image(_)));
    for profile in [Profile::Host, Profile::Isolated, Profile::IsolatedBare] {
        for (name, _) in profile.variables() {
            assert!(VARIABLES.iter().any(|variable| variable.name == *name), "{name}");
        }
    }
}

#[test]
fn a_wrong_value_names_its_variable() {
    for (name, value, what) in [
        ("KVM_CPU", "many", "1 to 32"),
        ("KVM_MEMORY", "lots", "GiB"),
        ("DEFAULT_KVM_DISK_SIZE", "0", "at least 1"),
        ("DEFAULT_KVM_HOST_SSHD_PORT", "ssh", "1 to 65535"),
        ("DEFAULT_KVM_PORTS_REDIRECT", "80", "HOST:GUEST"),
        ("ADDITIONAL_9P_MOUNTS", "/srv", "HOST|GUEST"),
        ("DISABLE_9P_KUBELET_MOUNTS", "yes", "such as 1"),
        ("DRY_RUN_ONLY", "true", "such as 1"),
        ("RUN_BARE_KERNEL", "-1", "such as 1"),
        ("VM_USERNAME", "Ada L", "small letters"),
        ("VM_HOSTNAME", "a_b", "hyphens"),
        ("VM_SALT", "a$b", "letters"),
        ("DEFAULT_IMAGE", "../x", "DEFAULT_DIR_IMAGE"),
        ("DEFAULT_NETWORK_PREFIX", "10", "three bytes"),
        ("DEFAULT_DEVICE_IP", "10.1.1.1", "10.0.2.0/24"),
        ("KERNEL_VERSION", "-x", "package"),
    ] {
        let error = on(USER, Profile::Isolated, &[(name, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name}={value}: ")) && error.contains(what), "{error}");
    }
    let long = "x".repeat(1000);
    assert!(on(USER, Profile::Isolated, &[("KVM_CPU", &long)]).unwrap_err().to_string().len() < 200);
    let same = on(USER, Profile::Isolated, &[("DEFAULT_DEVICE_IP", "10.0.2.2")]).unwrap_err().to_string();
    assert_eq!(same, "DEFAULT_DEVICE_IP and DEFAULT_GATEWAY_IP are both 10.0.2.2");
    let debug = machine(&[("DEBUG", "app:*")]);
    assert!(!debug.debug.value && debug.warnings.join("\n").contains("DEBUG=app:*"), "{:?}", debug.warnings);
}
