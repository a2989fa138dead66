//! How each monitor is told to boot a guest: plain data out of plain data. The serial console is
//! its standard output.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nelly_vmm::config::{CommandLine, Endpoint, FileSource, MachineConfig};
use serde_json::json;

use crate::plan::{GuestSetup, Peer, Vmm};

/// A process that boots the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Files to write before, outside the measured time.
    pub files: Vec<(PathBuf, String)>,
    /// Where it writes a JSON object about itself at its end.
    pub result: Option<PathBuf>,
    /// It is one of ours, and understands `NELLY_ORIGIN_NS`.
    pub ours: bool,
    /// It ends by itself when the guest resets.
    pub ends_itself: bool,
    /// It takes no standard input but a terminal.
    pub terminal: bool,
}

impl Launch {
    /// The command as a person would type it.
    #[must_use]
    pub fn command(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
        let quote = |word: &str| match !word.is_empty() && word.chars().all(plain) {
            true => word.to_owned(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        };
        let words = [self.program.display().to_string()];
        let words: Vec<String> = words.iter().chain(&self.arguments).map(|word| quote(word)).collect();
        words.join(" ")
    }
}

/// Finds a peer's program: the path that was given, or on PATH.
///
/// # Errors
/// A sentence that says where it is not.
pub fn find(peer: &Peer) -> Result<PathBuf, String> {
    let runs = |path: &Path| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if let Some(path) = &peer.program {
        return match path.canonicalize() {
            Ok(found) if runs(&found) => Ok(found),
            Ok(found) => Err(format!("{} is not a program", found.display())),
            Err(error) => Err(format!("cannot use {}: {error}", path.display())),
        };
    }
    let name = peer.vmm.program();
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths::<OsStr>(&path).map(|place| place.join(name)).find(|path| runs(path));
    found.ok_or_else(|| format!("{name} is not on PATH; give its path with --vs {}=PATH", peer.vmm))
}

/// How `vmm`, whose program is `program`, boots `guest`; files it needs lie in `scratch`.
#[must_use]
pub fn launch(vmm: Vmm, program: &Path, guest: &GuestSetup, scratch: &Path) -> Launch {
    let launch = Launch { program: program.to_owned(), ends_itself: true, ..Launch::default() };
    match vmm {
        Vmm::Nelly => nelly(launch, guest, scratch),
        Vmm::Firecracker => firecracker(launch, guest, scratch),
        Vmm::CloudHypervisor => cloud_hypervisor(launch, guest),
        Vmm::Qemu => qemu(launch, guest),
        Vmm::Alioth => alioth(launch, guest),
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn mebibytes(guest: &GuestSetup) -> u64 {
    guest.memory.get() >> 20
}

fn nelly(mut launch: Launch, guest: &GuestSetup, scratch: &Path) -> Launch {
    let mut config = MachineConfig::new(FileSource::Path(guest.kernel.clone()));
    config.initrd = guest.initrd.clone().map(FileSource::Path);
    config.cpus = guest.cpus;
    config.memory_bytes = guest.memory;
    config.command_line = CommandLine::new(&guest.command_line).unwrap_or_default();
    config.platform = guest.platform;
    config.serial = Endpoint::Stdio;
    let (machine, result) = (scratch.join("nelly.json"), scratch.join("nelly-result.json"));
    launch.arguments = words(["--config", &text(&machine), "--result", &text(&result)]);
    launch.files.push((machine, config.to_json()));
    launch.result = Some(result);
    launch.ours = true;
    launch
}

fn firecracker(mut launch: Launch, guest: &GuestSetup, scratch: &Path) -> Launch {
    let mut source = json!({ "kernel_image_path": guest.kernel, "boot_args": guest.command_line });
    if let Some(initrd) = &guest.initrd {
        source["initrd_path"] = json!(initrd);
    }
    let config = json!({
        "boot-source": source,
        "drives": [],
        "machine-config": { "vcpu_count": guest.cpus.get(), "mem_size_mib": mebibytes(guest) },
    });
    let path = scratch.join("firecracker.json");
    // Its log goes where the guest's console does, between any two bytes of it.
    launch.arguments = words(["--no-api", "--level", "Off", "--config-file", &text(&path)]);
    launch.files.push((path, config.to_string()));
    launch
}

fn cloud_hypervisor(mut launch: Launch, guest: &GuestSetup) -> Launch {
    launch.arguments = words(["--kernel", &text(&guest.kernel), "--cmdline", &guest.command_line]);
    if let Some(initrd) = &guest.initrd {
        launch.arguments.extend(words(["--initramfs", &text(initrd)]));
    }
    let (cpus, memory) = (format!("boot={}", guest.cpus.get()), format!("size={}M", mebibytes(guest)));
    let rest = ["--cpus", &cpus, "--memory", &memory, "--serial", "tty", "--console", "off"];
    launch.arguments.extend(words(rest));
    // A guest's reset starts its machine again.
    launch.ends_itself = false;
    launch
}

/// The `microvm` machine without what a guest of this kind does not use, by KVM, with the host's
/// processor.
fn qemu(mut launch: Launch, guest: &GuestSetup) -> Launch {
    let memory = format!("{}M", mebibytes(guest));
    launch.arguments = words([
        "-M",
        "microvm,acpi=off,pit=off,pic=off,rtc=off,x-option-roms=off",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-smp",
        &guest.cpus.get().to_string(),
        "-m",
        &memory,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "stdio",
        "-kernel",
        &text(&guest.kernel),
        "-append",
        &guest.command_line,
    ]);
    if let Some(initrd) = &guest.initrd {
        launch.arguments.extend(words(["-initrd", &text(initrd)]));
    }
    launch
}

/// An ELF goes in by its PVH note, anything else as a bzImage. The spellings are those that old and
/// new releases know; `--mem-size` is one, too, but chooses shared memory, which is slower.
fn alioth(mut launch: Launch, guest: &GuestSetup) -> Launch {
    let kernel = if is_elf(&guest.kernel) { "--pvh" } else { "--kernel" };
    launch.arguments = words(["run", kernel, &text(&guest.kernel), "--cmd-line", &guest.command_line]);
    if let Some(initrd) = &guest.initrd {
        launch.arguments.extend(words(["--initramfs", &text(initrd)]));
    }
    let (cpus, memory) = (guest.cpus.get().to_string(), format!("size={}M", mebibytes(guest)));
    launch.arguments.extend(words(["--num-cpu", &cpus, "--memory", &memory]));
    launch.terminal = true;
    launch
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

#[cfg(test)]
mod tests {
    use nelly_vmm::config::{CpuCount, MemorySize, Platform};

    use super::*;

    fn guest(kernel: &Path) -> GuestSetup {
        GuestSetup {
            kernel: kernel.to_owned(),
            initrd: Some("/i.cpio".into()),
            command_line: "console=ttyS0 quiet".into(),
            cpus: CpuCount::new(2).unwrap(),
            memory: MemorySize::new(256 << 20).unwrap(),
            platform: Platform::Mptable,
        }
    }

    /// The value behind a flag.
    fn after<'a>(launch: &'a Launch, flag: &str) -> &'a str {
        let at = launch.arguments.iter().position(|word| word == flag);
        &launch.arguments[at.unwrap_or_else(|| panic!("no {flag} in {}", launch.command())) + 1]
    }

    #[test]
    fn everyone_gets_the_same_guest() {
        let scratch = Path::new("/scratch");
        let guest = guest(Path::new("/vmlinux"));
        let qemu = launch(Vmm::Qemu, Path::new("/q"), &guest, scratch);
        assert_eq!((after(&qemu, "-m"), after(&qemu, "-smp"), after(&qemu, "-accel")), ("256M", "2", "kvm"));
        assert_eq!((after(&qemu, "-kernel"), after(&qemu, "-initrd")), ("/vmlinux", "/i.cpio"));
        assert_eq!(after(&qemu, "-append"), "console=ttyS0 quiet");
        let cloud = launch(Vmm::CloudHypervisor, Path::new("/c"), &guest, scratch);
        assert_eq!((after(&cloud, "--memory"), after(&cloud, "--cpus")), ("size=256M", "boot=2"));
        assert_eq!((after(&cloud, "--initramfs"), after(&cloud, "--serial")), ("/i.cpio", "tty"));
        assert!(!cloud.ends_itself);
        let alioth = launch(Vmm::Alioth, Path::new("/a"), &guest, scratch);
        assert_eq!((after(&alioth, "--memory"), after(&alioth, "--num-cpu")), ("size=256M", "2"));
        assert_eq!(after(&alioth, "--kernel"), "/vmlinux");
        for launch in [qemu, cloud, alioth] {
            assert!(launch.files.is_empty() && launch.result.is_none() && !launch.ours);
        }
    }

    #[test]
    fn those_with_a_config_file_read_the_same_guest_there() {
        let scratch = Path::new("/scratch");
        let guest = guest(Path::new("/vmlinux"));
        let ours = launch(Vmm::Nelly, Path::new("/m"), &guest, scratch);
        let (path, config) = &ours.files[0];
        assert_eq!(after(&ours, "--config"), path.to_str().unwrap());
        let config = MachineConfig::from_json(config.as_bytes()).unwrap();
        assert_eq!((config.cpus, config.memory_bytes), (guest.cpus, guest.memory));
        assert_eq!(config.command_line.as_str(), guest.command_line);
        assert_eq!(config.virtio_devices(), 0);
        assert_eq!(ours.result.as_deref().and_then(Path::to_str), Some(after(&ours, "--result")));

        let theirs = launch(Vmm::Firecracker, Path::new("/f"), &guest, scratch);
        let (path, config) = &theirs.files[0];
        assert_eq!(after(&theirs, "--config-file"), path.to_str().unwrap());
        let config: serde_json::Value = serde_json::from_str(config).unwrap();
        assert_eq!(config["machine-config"]["mem_size_mib"], 256);
        assert_eq!(config["machine-config"]["vcpu_count"], 2);
        assert_eq!(config["boot-source"]["initrd_path"], "/i.cpio");
        let bare = GuestSetup { initrd: None, ..guest };
        let theirs = launch(Vmm::Firecracker, Path::new("/f"), &bare, scratch);
        assert!(!theirs.files[0].1.contains("initrd_path"));
    }

    #[test]
    fn an_elf_reaches_alioth_by_its_note() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("vmlinux");
        std::fs::write(&kernel, b"\x7fELF and more").unwrap();
        let alioth = launch(Vmm::Alioth, Path::new("/a"), &guest(&kernel), directory.path());
        assert_eq!(after(&alioth, "--pvh"), kernel.to_str().unwrap());
    }

    #[test]
    fn a_program_is_found_or_the_sentence_says_where_it_is_not() {
        let peer = |text: &str| find(&text.parse().unwrap());
        assert!(peer("qemu=/bin/sh").is_ok());
        assert!(peer("firecracker=/no/such").unwrap_err().contains("/no/such"));
        assert!(peer("alioth=/etc/passwd").unwrap_err().contains("not a program"));
        assert!(peer("alioth").unwrap_err().contains("--vs alioth=PATH"));
    }

    #[test]
    fn a_command_can_be_typed_again() {
        let launch =
            Launch { program: "/bin/x".into(), arguments: words(["-a", "b c", "it's"]), ..Launch::default() };
        assert_eq!(launch.command(), r"/bin/x -a 'b c' 'it'\''s'");
    }
}
