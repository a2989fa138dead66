//! `nelly boot`: our kernel and Debian's, by every entry, with one vCPU and many; disks; the ways a
//! guest ends.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nelly_tests::{Done, nelly, program, run, top, wait};

use super::{Home, LIMIT};

/// An initramfs whose init runs `script` and resets; `modules` are a directory of them, and those
/// to load before (none named: what virtio-mmio machines need).
pub(crate) fn initramfs(home: &Home, script: Option<&str>, modules: Option<(&str, &[&str])>) -> PathBuf {
    let out = home.path().join("initramfs.cpio");
    let mut command = Command::new(top().join("tests/setup/test-initramfs"));
    command.arg(&out);
    if let Some(script) = script {
        let file = home.path().join("script");
        fs::write(&file, script).unwrap();
        command.arg("--init").arg(file);
    }
    if let Some((directory, names)) = modules {
        command.args(["--modules", directory]).args(names);
    }
    run(&mut command, b"", LIMIT).expect(0);
    out
}

/// Our kernel, its init running `script`, in a machine with `flags`, within `limit`: one emulated
/// processor takes turns with all of theirs.
pub(crate) fn ours(home: &Home, script: &str, flags: &[&str], limit: Duration) -> Done {
    let initrd = initramfs(home, Some(script), None);
    let vmlinux = nelly_tests::kernel();
    let (kernel, initrd) = (vmlinux.to_str().unwrap(), initrd.to_str().unwrap());
    let append = "console=ttyS0 quiet panic=-1 reboot=k";
    let words = [&["boot", "--kernel", kernel, "--initrd", initrd, "--append", append], flags].concat();
    run(&mut nelly(home.path(), &words), b"", limit)
}

/// What `tests/setup/stock-kernel` prints under `key`.
pub(crate) fn stock(key: &str) -> String {
    let done = run(&mut Command::new(top().join("tests/setup/stock-kernel")), b"", LIMIT);
    let out = done.expect(0).out();
    let line = out.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key} in {out}")).to_owned()
}

#[test]
fn our_kernel_runs_by_every_entry_and_ends_by_reset() {
    let home = Home::new();
    for protocol in ["elf64", "pvh"] {
        let done = ours(&home, "grep -c virtio /proc/cmdline; exit 3", &["--protocol", protocol], LIMIT);
        done.expect(0);
        assert!(done.out().contains("INIT-READY cpus=1"), "{protocol}: {}", done.out());
        assert!(done.out().contains("INIT-DONE 3"), "{protocol}: {}", done.out());
    }
}

#[test]
fn a_guest_is_shown_virtualisation_only_when_it_is_asked_for() {
    let home = Home::new();
    let count = "grep -cwE 'svm|vmx' /proc/cpuinfo";
    // The emulated host's processor has SVM, so the second guest sees it.
    for (flags, expected) in [(&[][..], "INIT-DONE 1"), (&["--nested"][..], "INIT-DONE 0")] {
        let done = ours(&home, count, flags, LIMIT);
        done.expect(0);
        assert!(done.out().contains(expected), "{flags:?}: {}", done.out());
    }
}

/// A file that boots: it says "." on the serial port and runs for ever.
fn tiny_kernel() -> Vec<u8> {
    use nelly_vmm::boot::testing::{Segment, elf};
    // mov dx, 0x3f8; mov al, '.'; out dx, al; jmp $
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xeb, 0xfe];
    elf(0x10_0000, &[Segment { address: 0x10_0000, bytes: &code, memory: 0x1000 }], &[], &[])
}

#[test]
fn the_monitor_that_boot_becomes_has_nothing_of_its_caller() {
    let home = Home::new();
    let within = |name: &str| home.path().join(name);
    fs::write(within("kernel"), tiny_kernel()).unwrap();
    fs::write(within("stray"), "secret").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "exec 9<stray; exec \"$0\" boot --kernel kernel --result result"]);
    command.arg(program("nelly")).current_dir(home.path());
    command.env("NELLY_HOME", home.path()).env("AWS_SECRET_ACCESS_KEY", "secret");
    let mut monitor = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    // It has begun once its guest has spoken.
    monitor.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let process = PathBuf::from(format!("/proc/{}", monitor.id()));
    let environment = fs::read(process.join("environ")).unwrap();
    assert!(environment.iter().all(|&byte| byte == 0), "{}", String::from_utf8_lossy(&environment));
    assert_eq!(fs::read_link(process.join("cwd")).unwrap(), Path::new("/"));
    let files: Vec<_> = fs::read_dir(process.join("fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    assert!(files.contains(&within("result")) && !files.contains(&within("stray")), "{files:?}");
    run(Command::new("kill").arg(monitor.id().to_string()), b"", LIMIT).expect(0);
    assert_eq!(wait(&mut monitor, LIMIT).code(), Some(128 + 15));
    assert!(fs::read_to_string(within("result")).unwrap().contains("stopped"));
}

#[test]
fn our_kernel_brings_up_thirty_two_cpus() {
    let home = Home::new();
    let done = ours(&home, "cat /sys/devices/system/cpu/online", &["--cpus", "32"], 4 * LIMIT);
    done.expect(0);
    assert!(done.out().contains("INIT-READY cpus=32"), "{}", done.out());
    assert!(done.out().contains("0-31"), "{}", done.out());
}

/// The first of these machines ends below the devices' addresses, the second has 72 MiB above 4
/// GiB: it has them for itself.
#[test]
fn memory_above_four_gib_costs_no_bounce_buffers() {
    let home = Home::new();
    let total = |size: &str| -> u64 {
        let done = ours(&home, "grep MemTotal /proc/meminfo", &["-m", size], LIMIT);
        let out = done.expect(0).out();
        let line = out.lines().find(|line| line.contains("MemTotal")).unwrap_or_else(|| panic!("{out}"));
        line.split_whitespace().rev().nth(1).unwrap().parse().unwrap()
    };
    let (below, above) = (total("3328M"), total("3400M"));
    assert!(above > below + (60 << 10), "{below} and {above} KiB");
}

/// Types into the shell on the serial console and reads what it says.
fn stock_kernel_to_a_shell(kernel: &str, cpus: &str) {
    let home = Home::new();
    let initrd = initramfs(&home, None, Some((&stock("modules"), &[])));
    let mut command = nelly(
        home.path(),
        &[
            "boot",
            "--kernel",
            kernel,
            "--initrd",
            initrd.to_str().unwrap(),
            "--cpus",
            cpus,
            "--append",
            "console=ttyS0 quiet panic=-1",
            "--timeout",
            "300s",
        ],
    );
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().unwrap()).split(b'\n') {
        let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
        said.push_str(&line);
        said.push('\n');
        if line.contains("INIT-READY") {
            assert!(line.contains(&format!("cpus={cpus}")), "{said}");
            // The shell is about to read; what is typed early waits in the port.
            stdin.write_all(b"echo typed-$((6 * 7))\n").unwrap();
        }
        if line.contains("typed-42") {
            // Only now: the end of a terminal's session drops what its driver has not sent yet.
            stdin.write_all(b"exit 5\n").unwrap();
        }
    }
    let status = wait(&mut child, LIMIT);
    assert!(said.contains("typed-42"), "{said}");
    assert!(said.contains("INIT-DONE 5"), "{said}");
    assert_eq!(status.code(), Some(0), "{said}");
}

#[test]
fn debians_bzimage_comes_to_a_shell_with_one_cpu_and_with_four() {
    let kernel = stock("bzimage");
    stock_kernel_to_a_shell(&kernel, "1");
    stock_kernel_to_a_shell(&kernel, "4");
}

#[test]
fn debians_vmlinux_comes_to_a_shell() {
    stock_kernel_to_a_shell(&stock("vmlinux"), "1");
}

/// The command line of our kernel has space for about 50 of them.
#[test]
fn our_kernel_finds_sixty_four_devices() {
    let home = Home::new();
    let disk = home.path().join("disk.img");
    fs::write(&disk, vec![0x5a; 1 << 20]).unwrap();
    let disk = format!("{},ro", disk.display());
    // The entropy device is one, too.
    let flags = [["--disk", &disk]; 63].concat();
    let script = "
        echo devices=$(ls /sys/bus/virtio/devices | wc -l) words=$(grep -o virtio_mmio /proc/cmdline | wc -l)
        for disk in /sys/block/vd*; do dd if=/dev/${disk##*/} bs=4k count=1 2>/dev/null; done | tr -d Z | wc -c
        for disk in /sys/block/vd*; do dd if=/dev/${disk##*/} bs=4k count=1 2>/dev/null; done | wc -c
    ";
    let done = ours(&home, script, &flags, LIMIT);
    done.expect(0);
    let out = done.out();
    assert!(out.contains("devices=64 words=64"), "{out}");
    assert!(out.lines().any(|line| line.trim() == "0") && out.contains("258048"), "{out}");
}

#[test]
fn disks_and_directories_are_written_synced_discarded_and_kept_from_writing() {
    let home = Home::new();
    let disk = home.path().join("disk.img");
    let kept = home.path().join("kept.img");
    let before: Vec<u8> = (0..8u32 << 20).map(|n| (n % 251) as u8).collect();
    fs::write(&disk, &before).unwrap();
    fs::write(&kept, &before).unwrap();
    let script = "
        set -e
        printf nelly | dd of=/dev/vda bs=1 seek=1048576 conv=notrunc,fsync 2>/dev/null
        blkdiscard -o 4194304 -l 1048576 /dev/vda
        sync
        if printf x | dd of=/dev/vdb bs=1 conv=notrunc,fsync 2>/dev/null; then echo WROTE-READ-ONLY; fi
        dd if=/dev/vdb bs=1M 2>/dev/null | md5sum | cut -d' ' -f1
        cat /sys/block/vdb/ro
        mkdir /work /fixed
        mount -t virtiofs work /work
        mount -t virtiofs fixed /fixed
        echo said=$(cat /work/said)
        echo back >/work/back
        if echo x >/fixed/x 2>/dev/null; then echo WROTE-READ-ONLY; fi
        umount /work
        mount -t virtiofs work /work
        echo again=$(cat /work/back)
    ";
    let (work, fixed) = (home.path().join("work"), home.path().join("fixed"));
    fs::create_dir(&work).unwrap();
    fs::create_dir(&fixed).unwrap();
    fs::write(work.join("said"), "host").unwrap();
    let shares = [format!("work={}", work.display()), format!("fixed={}:ro", fixed.display())];
    let (writable, read_only) = (disk.to_str().unwrap(), format!("{},ro", kept.display()));
    let flags = ["--disk", writable, "--disk", &read_only, "--share", &shares[0], "--share", &shares[1]];
    let done = ours(&home, script, &flags, LIMIT);
    done.expect(0);
    let out = done.out();
    assert!(out.contains("INIT-DONE 0") && !out.contains("WROTE-READ-ONLY"), "{out}");
    assert!(out.contains("said=host") && out.contains("again=back"), "{out}");
    assert_eq!(fs::read_to_string(work.join("back")).unwrap(), "back\n");
    assert!(fs::read_dir(&fixed).unwrap().next().is_none());
    let sum = run(Command::new("md5sum").arg(&kept), b"", LIMIT).out();
    assert!(out.contains(sum.split(' ').next().unwrap()), "{out}");
    let after = fs::read(&disk).unwrap();
    let mut expected = before.clone();
    expected[1 << 20..(1 << 20) + 5].copy_from_slice(b"nelly");
    expected[4 << 20..5 << 20].fill(0);
    assert!(after == expected, "the disk's bytes are not what was written");
    assert!(fs::read(&kept).unwrap() == before, "a read-only disk changed");
}

#[test]
fn a_panic_a_reset_a_power_off_and_a_halt_are_told_apart() {
    let home = Home::new();
    let result = home.path().join("result");
    for (script, cpus, code, reason) in [
        ("echo c >/proc/sysrq-trigger; sleep 60", "1", 121, "panic"),
        ("reboot -f", "1", 0, "reset"),
        ("poweroff -f", "4", 0, "power_off"),
        ("halt -f", "4", 0, "halted"),
    ] {
        let flags = ["--cpus", cpus, "--result", result.to_str().unwrap()];
        let done = ours(&home, script, &flags, LIMIT);
        done.expect(code);
        let object: serde_json::Value = serde_json::from_slice(&fs::read(&result).unwrap()).unwrap();
        assert_eq!(object["reason"], reason, "{script}: {}", done.out());
    }
}
