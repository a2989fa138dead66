//! `nelly boot --image` and `nelly isolated`: an image with Debian's kernel boots by itself, and
//! what its guest makes of it is what boots next.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nelly_tests::{nelly, run, wait};

use super::boot::{initramfs, stock};
use super::{Home, LIMIT};

/// What the image's grub.cfg boots; `generation` tells who wrote it.
const GRUB: &str = "
menuentry 'Debian' { linux /boot/vmlinuz-1 root=/dev/vda ro quiet panic=-1 generation=1; initrd /boot/initrd.img-1 }
";

/// The first generation makes a second, and waits for its end.
const SCRIPT: &str = "
    set -e
    echo sectors=$(cat /sys/block/vda/size)
    echo seed=$(cat /sys/block/vdb/ro)-$(head -c 512 /dev/vdb | tr -d '\\000' | grep -c cidata)
    mount -t ext4 /dev/vda /mnt
    if grep -q generation=2 /proc/cmdline; then
        echo upgraded; umount /mnt; exit 0
    fi
    for name in vmlinuz initrd.img; do cp /mnt/boot/$name-1 /mnt/boot/$name-2; done
    sed -e s/-1/-2/g -e s/panic=-2/panic=-1/ -e s/generation=1/generation=2/ /mnt/boot/grub/grub.cfg >/mnt/boot/grub/new
    sync
    rm /mnt/boot/vmlinuz-1 /mnt/boot/initrd.img-1
    mv /mnt/boot/grub/new /mnt/boot/grub/grub.cfg
    sync
    echo written
    while :; do sleep 1000; done
";

/// An image `base.raw` of 96 MiB with Debian's kernel, whose init loads these modules and runs
/// `script`.
pub(crate) fn image(home: &Home, script: &str, modules: &[&str]) -> PathBuf {
    let (tree, image) = (home.path().join("tree"), home.path().join("base.raw"));
    fs::create_dir_all(tree.join("boot/grub")).unwrap();
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/fstab"), "/dev/vda / ext4 rw 0 1\n").unwrap();
    fs::write(tree.join("boot/grub/grub.cfg"), GRUB).unwrap();
    let initrd = initramfs(home, Some(script), Some((&stock("modules"), modules)));
    fs::copy(initrd, tree.join("boot/initrd.img-1")).unwrap();
    fs::copy(stock("bzimage"), tree.join("boot/vmlinuz-1")).unwrap();
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut make = Command::new("mke2fs");
    make.env("PATH", path).args(["-q", "-F", "-t", "ext4", "-d"]).args([&tree, &image]).arg("96M");
    run(&mut make, b"", LIMIT).expect(0);
    image
}

#[test]
fn an_image_boots_by_itself_and_its_upgrade_is_taken_after_a_kill() {
    let home = Home::new();
    let image = image(&home, SCRIPT, &["virtio_mmio", "virtio_blk", "ext4"]);
    let before = fs::read(&image).unwrap();

    // Once by the variables of the Hydra scripts, once by flags.
    let flags = ["--on-reset", "exit", "--timeout", "300s"];
    let mut first = nelly(home.path(), &[&["isolated", "--"], &flags[..]].concat());
    first.env("DEFAULT_DIR_IMAGE", home.path()).env("DEFAULT_IMAGE", "base.raw");
    first.env("DEFAULT_KVM_DISK_SIZE", "1").env("KVM_MEMORY", "512M").env("KVM_CPU", "1");
    let mut first = first.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    for line in BufReader::new(first.stdout.take().unwrap()).split(b'\n') {
        said.push_str(&String::from_utf8_lossy(&line.unwrap()));
        said.push('\n');
        if said.ends_with("written\r\n") {
            // Its file system is mounted, and what it wrote last is in the journal.
            first.kill().unwrap();
        }
    }
    assert_eq!(wait(&mut first, LIMIT).signal(), Some(9), "{said}");
    assert!(said.contains("sectors=2097152"), "{said}");
    // A seed for cloud-init behind it, which is only read.
    assert!(said.contains("seed=1-1"), "{said}");

    let overlay = home.path().join("isolated-disk.qcow2");
    let disk = format!("{},overlay={}", image.display(), overlay.display());
    let words = [&["boot", "--image", &disk], &flags[..]].concat();
    let second = run(&mut nelly(home.path(), &words), b"", LIMIT);
    let out = second.expect(0).out();
    assert!(out.contains("upgraded") && out.contains("INIT-DONE 0"), "{out}");
    assert!(fs::read(&image).unwrap() == before, "the base was written");
}

#[test]
fn a_bare_kernel_of_an_archive_boots_with_its_initrd_network_and_disk() {
    let home = Home::new();
    let script = "cat /proc/cmdline; ls /sys/class/net; nproc; echo sectors=$(cat /sys/block/vda/size);
        echo written by the guest >/dev/vda; sync";
    initramfs(&home, Some(script), None);
    let (top, images) = (home.path().join("final"), home.path().join("images"));
    fs::create_dir(&top).unwrap();
    fs::create_dir(&images).unwrap();
    fs::copy(nelly_tests::kernel(), top.join("vmlinux")).unwrap();
    fs::rename(home.path().join("initramfs.cpio"), top.join("initrd")).unwrap();
    let make = "qemu-img create -q -f qcow2 final/fs.qcow2 8M && tar -cf - ./final | gzip -1 >images/artifacts.zip && rm -r final";
    run(Command::new("sh").args(["-c", make]).current_dir(home.path()), b"", LIMIT).expect(0);
    let mut command = nelly(home.path(), &["isolated", "--bare", "--", "--timeout", "300s"]);
    for (name, value) in [
        ("DEFAULT_RIMD_KERNEL_FILENAME", "final/vmlinux"),
        ("DEFAULT_RIMD_IMAGE_FILENAME", "final/initrd"),
        ("DEFAULT_RIMD_FILESYSTEM_FILENAME", "final/fs.qcow2"),
        // Nobody is asked: the archive is there.
        ("DEFAULT_RIMD_ARTIFACT_URL", "http://127.0.0.1:1/artifacts"),
        ("ADDITIONAL_KERNEL_COMMANDLINE", "quiet panic=-1 reboot=k no-kvmapf"),
        ("KVM_CPU", "1"),
        ("KVM_MEMORY", "512M"),
        ("ENABLE_KRUNKIT", "1"),
    ] {
        command.env(name, value);
    }
    let done = run(command.env("DEFAULT_DIR_IMAGE", &images), b"", LIMIT);
    let (out, said) = (done.expect(0).out(), String::from_utf8_lossy(&done.stderr).into_owned());
    for part in ["INIT-READY cpus=1", "ENABLE_SSH=true quiet", "eth0", "sectors=16384", "INIT-DONE 0"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    for part in ["published 127.0.0.1:5555:22/tcp", "warning: ENABLE_KRUNKIT has no meaning here"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let read = "qemu-img convert -O raw images/final/fs.qcow2 fs.raw && head -n 1 fs.raw";
    let disk = run(Command::new("sh").args(["-c", read]).current_dir(home.path()), b"", LIMIT);
    assert_eq!(disk.expect(0).out(), "written by the guest\n");
}
