//! Input that is wrong: a clear error within a second that names the file or flag, exit code 125,
//! nothing left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nelly_tests::{Done, nelly, program, run, scaled};

use super::{Home, LIMIT};

/// Far more than a second, for an emulated processor; what hangs takes longer.
const PROMPT: Duration = Duration::from_secs(20);

#[track_caller]
fn refused(home: &Home, words: &[&str], names: &[&str]) {
    refused_with(home, &[], words, names);
}

/// The same with variables in the environment.
#[track_caller]
fn refused_with(home: &Home, env: &[(&str, &Path)], words: &[&str], names: &[&str]) {
    let before = listing(home.path());
    let mut command = nelly(home.path(), words);
    let done = run(command.envs(env.iter().copied()), b"", LIMIT);
    done.expect(125);
    assert!(done.out().is_empty(), "stdout is the container's alone: {}", done.out());
    for name in names {
        assert!(done.err().contains(name), "{words:?} does not name {name:?}: {}", done.err());
    }
    assert!(done.took < scaled(PROMPT), "{words:?} took {:?}", done.took);
    assert!(!done.err().contains("panicked"), "{}", done.err());
    assert_eq!(listing(home.path()), before, "{words:?} left something behind");
}

/// Every path below `directory`, but for the locks and marks of an empty cache.
fn listing(directory: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            paths.extend(listing(&path));
        } else if !matches!(path.file_name().and_then(|name| name.to_str()), Some("version" | "lock")) {
            paths.push(path.display().to_string());
        }
    }
    paths.sort();
    paths
}

#[test]
fn flags_that_cannot_be() {
    let home = Home::new();
    for (words, names) in [
        (&["run", "--rm", "--cpus", "0", "--", "true"][..], &["--cpus"][..]),
        (&["run", "--rm", "--cpus", "10000", "--", "true"], &["--cpus", "10000"]),
        (&["run", "--rm", "-m", "512", "--", "true"], &["512M"]),
        (&["run", "--rm", "-m", "4K", "--", "true"], &["--memory"]),
        (&["run", "--rm", "-m", "1000T", "--", "true"], &["--memory"]),
        // Less than the most that a machine may have, more than any host of this test.
        (&["run", "--rm", "-m", "900G", "--", "true"], &["--memory"]),
        (&["run", "--rm", "--no-such-flag", "--", "true"], &["--no-such-flag"]),
        (&["run"], &["IMAGE"]),
        (&["run", "--rm", "--dry-run", "alpine"], &["alpine", "not in the local store"]),
        (&["run", "--rm", "Alpine"], &["Alpine", "oci:DIR"]),
        (&["run", "--rm", "--name", "Not A Name", "--", "true"], &["--name"]),
        (&["run", "--rm", "-w", "relative", "--", "true"], &["relative"]),
        (&["run", "--rm", "--tmpfs", "relative", "--", "true"], &["--tmpfs"]),
        (&["run", "--rm", "--timeout", "5x", "--", "true"], &["--timeout", "1m30s"]),
        (&["run", "--rm", "--env-file", "/nonexistent/env", "--", "true"], &["/nonexistent/env"]),
        (&["boot"], &["--kernel"]),
    ] {
        refused(&home, words, names);
    }
}

#[test]
fn a_command_that_is_an_empty_word_is_not_found() {
    let done = Home::new().nelly(&["run", "--rm", "--", "", "x"]);
    done.expect(127);
    assert!(done.err().contains("empty"), "{}", done.err());
}

/// Neither messages nor JSON may retitle a terminal, clear it, or forge a line.
#[test]
fn nothing_that_nelly_says_steers_a_terminal() {
    let home = Home::new();
    let name = "\x1b]0;t\x07\u{9b}2J\u{202e}x\nnelly: all is well";
    let plain = |text: &str| text.chars().all(|c| c == '\n' || nelly_vmm::text::is_plain(c));
    for words in [
        &["run", "--rm", &format!("oci:/nonexistent/{name}"), "true"][..],
        &["run", "--rm", "--name", name, "--", "true"],
        &["boot", "--kernel", &format!("/nonexistent/{name}")],
    ] {
        let done = home.nelly(words);
        done.expect(125);
        assert!(plain(&done.err()), "{:?}", done.err());
        assert!(done.err().contains(r"\u{202e}"), "{}", done.err());
    }
    let done = home.nelly(&["run", "--rm", &format!("--{name}"), "--", "true"]);
    assert!(plain(&done.expect(125).err()), "{:?}", done.err());
    let done = home.nelly(&["run", "--rm", "--dry-run", "-e", &format!("NAME={name}"), "--", "true"]);
    assert!(plain(&done.expect(0).out()), "{:?}", done.out());
    let object: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(object["container"]["process"]["env"].to_string().contains("all is well"));
}

/// One entry of a tar archive, of this type and linked to `link`.
fn entry(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\x000000000\x000000000\0");
    put(124, format!("{:011o}\x0000000000000\0        ", data.len()).as_bytes());
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(data);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

/// A docker archive with one layer, which its manifest calls `named`.
fn docker_archive(path: &Path, layer: &[u8], named: &str) -> String {
    let digest = nelly_image::Digest::sha256(layer).hex();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": null, "Layers": [named]}]);
    let config = serde_json::json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]}});
    let mut archive = entry("manifest.json", b'0', "", manifest.to_string().as_bytes());
    archive.extend(entry("config.json", b'0', "", config.to_string().as_bytes()));
    archive.extend(entry("layer.tar", b'0', "", layer));
    archive.resize(archive.len() + 1024, 0);
    fs::write(path, archive).unwrap();
    format!("docker-archive:{}", path.display())
}

/// Nor may the names in an image, on a terminal: those of layers, of what is in them, of what lies
/// in a directory.
#[test]
fn names_from_inside_an_image_do_not_steer_a_terminal() {
    let home = Home::new();
    let name = "\x1b]0;t\x07\u{9b}2J\u{202e}x\nnelly: all is well";
    let empty = vec![0; 1024];
    let hostile = [entry(name, b'1', &format!("no{name}"), b""), empty.clone()].concat();
    let root = home.path().join("root");
    fs::create_dir(&root).unwrap();
    // More than an image may hold.
    fs::File::create(root.join(name)).unwrap().set_len(1 << 40).unwrap();
    let place = |name: &str| home.path().join(name);
    let entries = docker_archive(&place("entries.tar"), &hostile, "layer.tar");
    let layers = docker_archive(&place("layers.tar"), &empty, name);
    let directory = format!("rootfs:{}", root.display());
    for (flags, image) in [("", &entries), ("", &layers), ("--dry-run", &layers), ("", &directory)] {
        let nelly = program("nelly");
        let typed = format!("{} run {flags} {image} true", nelly.display());
        let mut command = Command::new("script");
        command.args(["-qec", &typed, "/dev/null"]).env("NELLY_HOME", place("home")).env("TERM", "xterm");
        let done = run(&mut command, b"", LIMIT);
        // All that Nelly itself says to a terminal with more than text is its bar.
        let said = done.expect(125).out().replace("\r\x1b[K", "").replace("\r\n", "\n");
        assert!(said.chars().all(|c| c == '\n' || nelly_vmm::text::is_plain(c)), "{image}: {said:?}");
        assert!(said.contains(r"\u{202e}"), "{image}: {said:?}");
        assert!(!said.lines().any(|line| line.starts_with("nelly: all is well")), "{image}: {said:?}");
    }
}

/// Files below `place` that begin as kernels for the other processor do, and what that is called.
fn kernels_of_another_processor(place: &Path) -> (Vec<String>, &'static str) {
    let with = |parts: &[(usize, &[u8])]| {
        let mut bytes = vec![0; 8192];
        for (at, part) in parts {
            bytes[*at..*at + part.len()].copy_from_slice(part);
        }
        bytes
    };
    let elf = |machine: u8| with(&[(0, b"\x7fELF\x02\x01\x01"), (18, &[machine, 0])]);
    let (kernels, name) = if cfg!(target_arch = "aarch64") {
        let bzimage = with(&[(0, b"MZ"), (0x1fe, &[0x55, 0xaa]), (0x202, b"HdrS")]);
        (vec![("vmlinux", elf(62)), ("bzImage", bzimage)], "x86-64")
    } else {
        let image = with(&[(0, b"MZ"), (56, b"ARM\x64")]);
        let efi = with(&[(0, b"MZ\0\0zimg"), (60, &[0x40, 0, 0, 0]), (0x40, b"PE\0\0\x64\xaa")]);
        fs::write(place.join("unpacked"), &image).unwrap();
        let packed = Command::new("gzip").arg("-c").arg(place.join("unpacked")).output().unwrap().stdout;
        let kernels =
            vec![("Image", image), ("Image.gz", packed), ("vmlinuz.efi", efi), ("vmlinux", elf(183))];
        (kernels, "AArch64")
    };
    let write = |(file, bytes): (&str, Vec<u8>)| {
        let path = place.join(file);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    (kernels.into_iter().map(write).collect(), name)
}

/// An image for the other processor, by what its index says, below `place`; what this host's and
/// that one are called.
fn image_of_another_processor(place: &Path) -> (String, [String; 2]) {
    let (ours, theirs) = if cfg!(target_arch = "aarch64") { ("arm64", "amd64") } else { ("amd64", "arm64") };
    let layout = place.join("layout");
    let copied =
        Command::new("cp").arg("-r").arg(nelly_tests::asset("busybox")).arg(&layout).status().unwrap();
    assert!(copied.success());
    let index = layout.join("index.json");
    let text = fs::read_to_string(&index).unwrap();
    let changed = text.replace(&format!("\"{ours}\""), &format!("\"{theirs}\""));
    assert_ne!(text, changed);
    fs::write(&index, changed).unwrap();
    (format!("oci:{}", layout.display()), [ours, theirs].map(|name| format!("linux/{name}")))
}

/// By its name, and before anything starts: with a program in the monitor's place that tells.
#[test]
fn nothing_is_started_for_another_processor() {
    let home = Home::new();
    let files = tempfile::tempdir().unwrap();
    let (started, monitor) = (files.path().join("started"), files.path().join("monitor"));
    // A shell for this processor, which /bin/sh need not be where only static programs are for it.
    let path = std::env::var_os("PATH").unwrap();
    let shell =
        std::env::split_paths(&path).map(|place| place.join("sh")).find(|shell| shell.exists()).unwrap();
    let script = format!("#!{}\n: >'{}'\nexit 9\n", shell.display(), started.display());
    fs::write(&monitor, script).unwrap();
    fs::set_permissions(&monitor, fs::Permissions::from_mode(0o755)).unwrap();
    let env = [("NELLY_MONITOR", &*monitor)];
    let (kernels, name) = kernels_of_another_processor(files.path());
    for path in &kernels {
        refused_with(&home, &env, &["boot", "--kernel", path], &[path, name]);
        refused_with(&home, &env, &["run", "--rm", "--kernel", path, "--", "true"], &[path, name]);
        assert!(!started.exists(), "a monitor was started for {path}");
    }
    let (image, names) = image_of_another_processor(files.path());
    refused_with(&home, &env, &["run", "--rm", &image, "true"], &names.each_ref().map(String::as_str));
    assert!(!started.exists(), "a monitor was started for {image}");
    // What no beginning of a file tells is left to the monitor: this one would have told.
    let other = files.path().join("text");
    fs::write(&other, "no kernel at all\n").unwrap();
    let mut command = nelly(home.path(), &["boot", "--kernel", other.to_str().unwrap()]);
    run(command.envs(env), b"", LIMIT).expect(9);
    assert!(started.exists());
}

/// The monitor refuses by itself, too: it is given machines by others than `nelly`.
#[test]
fn what_is_for_another_processor_is_refused() {
    let home = Home::new();
    let files = tempfile::tempdir().unwrap();
    let (kernels, name) = kernels_of_another_processor(files.path());
    let machine = serde_json::json!({"schema": 1, "kernel": {"path": kernels[0]}, "memory_bytes": 128 << 20});
    let config = files.path().join("machine.json");
    fs::write(&config, machine.to_string()).unwrap();
    let done = run(Command::new(program("nelly-monitor")).arg("--config").arg(&config), b"", LIMIT);
    let said = done.expect(125).err();
    assert!(said.contains(&kernels[0]) && said.contains("is a kernel for"), "{said}");
    refused(&home, &["boot", "--kernel", &kernels[0]], &[&kernels[0], name]);
    let (image, names) = image_of_another_processor(files.path());
    refused(&home, &["run", "--rm", &image, "true"], &names.each_ref().map(String::as_str));
    // The image that is built in, and a kernel for the other one: the store is filled before.
    home.sh("true").expect(0);
    refused(&home, &["run", "--rm", "--kernel", &kernels[0], "--", "true"], &[&kernels[0], name]);
}

#[test]
fn kernels_that_are_none() {
    let home = Home::new();
    // The image is cached before: a good image stays, whatever the kernel is.
    home.sh("true").expect(0);
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = files.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let vmlinux = fs::read(nelly_tests::kernel()).unwrap();
    let mut foreign = vmlinux[..8192].to_vec();
    foreign[18..20].copy_from_slice(&183u16.to_le_bytes()); // EM_AARCH64
    let cases = [
        path("empty", b""),
        path("text", b"this is no kernel, whatever its name says\n"),
        path("truncated", &vmlinux[..vmlinux.len() / 3]),
        path("header-only", &vmlinux[..64]),
        path("foreign", &foreign),
        path("gzip", b"\x1f\x8b\x08\x00garbage that is no deflate stream at all"),
        path("zstd", b"\x28\xb5\x2f\xfdgarbage"),
        path("xz", b"\xfd7zXZ\x00garbage"),
    ];
    let oversized = &path("oversized", b"");
    fs::File::options().write(true).open(oversized).unwrap().set_len(1 << 40).unwrap();
    for kernel in &cases {
        refused(&home, &["boot", "--kernel", kernel], &[kernel]);
        refused(&home, &["run", "--rm", "--kernel", kernel, "--", "true"], &[kernel]);
    }
    refused(&home, &["boot", "--kernel", "/nonexistent/vmlinux"], &["/nonexistent/vmlinux"]);
    refused(&home, &["boot", "--kernel", "/"], &["--kernel", "directory"]);
    let good = nelly_tests::kernel();
    let good = good.to_str().unwrap();
    refused(&home, &["boot", "--kernel", good, "--initrd", "/nonexistent/initrd"], &["/nonexistent/initrd"]);
    refused(&home, &["boot", "--kernel", good, "--initrd", &cases[0]], &[&cases[0]]);
    refused(&home, &["boot", "--kernel", good, "--initrd", oversized], &[oversized]);
    refused(&home, &["boot", "--kernel", good, "--disk", "/nonexistent/disk"], &["/nonexistent/disk"]);
    refused(&home, &["boot", "--kernel", good, "--disk", &cases[0]], &[&cases[0]]);
    refused(&home, &["boot", "--kernel", good, "-m", "8M"], &["-m"]);
    // What nobody writes to is not waited for.
    let fifo = files.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let fifo = fifo.to_str().unwrap();
    refused(&home, &["boot", "--kernel", fifo], &["--kernel", fifo]);
    refused(&home, &["boot", "--kernel", good, "--initrd", fifo], &["--initrd", fifo]);
    refused(&home, &["boot", "--kernel", good, "--disk", fifo], &["--disk", fifo]);
    refused(&home, &["boot", "--kernel", good, "--disk", &format!("{fifo},ro")], &["--disk", fifo]);
    refused(&home, &["run", "--rm", "--kernel", fifo, "--", "true"], &["--kernel", fifo]);
    refused(&home, &["run", "--rm", "--initrd", fifo, "--", "true"], &["--initrd", fifo]);
    refused(&home, &["run", "--rm", "--env-file", fifo, "--", "true"], &["--env-file", fifo]);
    // Nor what nobody reads, which would be found when the container has ended.
    let unwritable = "/nonexistent/told";
    for target in [fifo, unwritable] {
        refused(&home, &["boot", "--kernel", good, "--result", target], &["--result", target]);
        refused(&home, &["run", "--rm", "--result", target, "--", "true"], &["--result", target]);
        refused(&home, &["run", "--rm", "--trace", target, "--", "true"], &["--trace", target]);
    }
    refused(&home, &["run", "--rm", "--result", "fd:99", "--", "true"], &["--result", "99"]);
    refused(&home, &["boot", "--kernel", good, "--append", &"x".repeat(70_000)], &["--append"]);
}

#[test]
fn images_that_are_none() {
    let home = Home::new();
    let files = tempfile::tempdir().unwrap();
    let empty = files.path().join("empty.tar");
    fs::write(&empty, b"").unwrap();
    let text = files.path().join("text.tar");
    fs::write(&text, "no archive".repeat(1000)).unwrap();
    let (empty, text) = (empty.to_str().unwrap(), text.to_str().unwrap());
    let directory = files.path().to_str().unwrap();
    for form in ["oci-archive", "docker-archive"] {
        for file in [empty, text, "/nonexistent/image.tar"] {
            refused(&home, &["run", "--rm", &format!("{form}:{file}"), "true"], &[file]);
        }
    }
    refused(&home, &["run", "--rm", &format!("oci:{directory}"), "true"], &[directory]);
    refused(&home, &["run", "--rm", "oci:/nonexistent/layout", "true"], &["/nonexistent/layout"]);
    refused(&home, &["run", "--rm", "rootfs:/nonexistent/tree", "true"], &["/nonexistent/tree"]);
    refused(&home, &["run", "--rm", "builtin:debian", "true"], &["builtin:busybox"]);
}

#[test]
fn a_corrupt_layer_is_refused_and_not_cached() {
    let home = Home::new();
    let files = tempfile::tempdir().unwrap();
    let layout = files.path().join("layout");
    copy(&nelly_tests::asset("busybox"), &layout);
    // The biggest blob is the layer.
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let layer = blobs.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&layer, &bytes).unwrap();
    let image = format!("oci:{}", layout.display());
    refused(&home, &["run", "--rm", &image, "true"], &[layer.file_name().unwrap().to_str().unwrap()]);
    fs::write(&layer, &bytes[..middle]).unwrap();
    refused(&home, &["run", "--rm", &image, "true"], &[]);
}

/// `nelly run -- true` behind a script that changes its mounts, in a mount namespace of its own;
/// root only.
fn run_behind(home: &Home, script: &str) -> Done {
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", &format!("{script}; exec \"$@\""), "sh"]);
    command.arg(program("nelly")).args(["run", "--rm", "--", "true"]).env("NELLY_HOME", home.path());
    run(&mut command, b"", LIMIT)
}

#[test]
fn a_host_without_kvm_and_a_full_disk() {
    if !rustix::process::getuid().is_root() {
        // Only root mounts; `make test` runs this as root in the emulated host.
        return;
    }
    let home = Home::new();
    let place = home.path().display();
    for (script, names) in [
        (
            "mount -t tmpfs none /dev; mknod /dev/null c 1 3; mknod /dev/urandom c 1 9".to_owned(),
            ["/dev/kvm", ""],
        ),
        // Less than the built-in image takes.
        (format!("mount -t tmpfs -o size=256k none {place}"), ["too little space", &place.to_string()]),
    ] {
        let done = run_behind(&home, &script);
        done.expect(125);
        assert!(names.iter().all(|name| done.err().contains(name)), "{script}: {}", done.err());
        assert!(
            done.out().is_empty() && done.took < scaled(PROMPT),
            "{script}: {:?} {}",
            done.took,
            done.out()
        );
        assert!(listing(home.path()).is_empty(), "{script} left {:?}", listing(home.path()));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
