//! Disk images behind `nelly boot`: qcow2 and its overlays, as qemu-img sees them afterwards.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nelly_tests::{nelly, run, wait};

use super::boot::{initramfs, ours};
use super::{Home, LIMIT};

const MIB: usize = 1 << 20;

#[track_caller]
fn qemu_img(words: &[&str]) {
    run(Command::new("qemu-img").args(words), b"", LIMIT).expect(0);
}

fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A raw image whose every 512 bytes tell their number.
fn base(path: &Path, mebibytes: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..mebibytes * MIB / 512)
        .flat_map(|number| [number as u8, (number >> 8) as u8, 0xb5, 0x5b].repeat(128))
        .collect();
    fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn a_base_stays_as_it_is_and_its_overlay_is_whole() {
    let home = Home::new();
    let path = |name: &str| home.path().join(name);
    let (raw, middle, overlay, wide) =
        (path("base.raw"), path("middle.qcow2"), path("over.qcow2"), path("wide.raw"));
    let before = base(&raw, 8);
    home.nelly(&["disk", "create", "--backing", word(&raw), "--backing-format", "raw", word(&middle)])
        .expect(0);
    let middle_before = fs::read(&middle).unwrap();
    File::create(&wide).unwrap().set_len(4 << 20).unwrap();
    let script = "
        set -e
        cat /sys/block/vda/size /sys/block/vdb/size /sys/block/vdc/queue/logical_block_size
        dd if=/dev/vda bs=1M count=8 2>/dev/null | md5sum
        dd if=/dev/vdb bs=1M count=8 2>/dev/null | md5sum
        for disk in a b; do
            printf nelly | dd of=/dev/vd$disk bs=1 seek=1048576 conv=notrunc 2>/dev/null
            blkdiscard -o 4194304 -l 1048576 /dev/vd$disk
            printf end | dd of=/dev/vd$disk bs=1 seek=16777213 conv=notrunc 2>/dev/null
        done
        dd if=/dev/zero bs=4096 count=1 2>/dev/null | tr '\\0' w | dd of=/dev/vdc bs=4096 seek=3 conv=notrunc 2>/dev/null
        sync
        echo 3 > /proc/sys/vm/drop_caches
        for disk in a b; do
            dd if=/dev/vd$disk bs=1 skip=1048576 count=5 2>/dev/null; echo
            dd if=/dev/vd$disk bs=1M skip=4 count=1 2>/dev/null | tr -d '\\0' | wc -c
        done
    ";
    let flags = [
        "--disk",
        &format!("{},overlay={},size=16M", middle.display(), overlay.display()),
        "--disk",
        &format!("{},ephemeral,size=16M,threads=2", middle.display()),
        "--disk",
        &format!("{},sectors=4096,iops=1000,bps=100M", wide.display()),
    ];
    let done = ours(&home, script, &flags, LIMIT);
    done.expect(0);
    let out = done.out();
    let lines: Vec<_> = out.lines().map(str::trim).skip_while(|line| *line != "32768").collect();
    let sum = run(Command::new("md5sum").arg(&raw), b"", LIMIT).out();
    let sum = format!("{}  -", sum.split(' ').next().unwrap());
    let expected = ["32768", "32768", "4096", &sum, &sum, "nelly", "0", "nelly", "0"];
    assert_eq!(lines[..9.min(lines.len())], expected, "{out}");

    // What the guest wrote is in the overlay, and nowhere else.
    assert!(
        fs::read(&raw).unwrap() == before && fs::read(&middle).unwrap() == middle_before,
        "a base changed"
    );
    qemu_img(&["check", "-f", "qcow2", word(&overlay)]);
    home.nelly(&["disk", "check", word(&overlay)]).expect(0);
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", word(&overlay), word(&path("whole.raw"))]);
    let mut whole = before;
    whole.resize(16 * MIB, 0);
    whole[MIB..MIB + 5].copy_from_slice(b"nelly");
    whole[4 * MIB..5 * MIB].fill(0);
    whole[16 * MIB - 3..].copy_from_slice(b"end");
    assert!(fs::read(path("whole.raw")).unwrap() == whole, "the overlay has other bytes");
    let wide = fs::read(&wide).unwrap();
    assert!(wide.iter().enumerate().all(|(at, byte)| *byte == if at / 4096 == 3 { b'w' } else { 0 }));
    // The ephemeral one has left nothing.
    let names: Vec<_> = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains("ephemeral")), "{names:?}");
}

#[test]
fn an_image_in_use_is_nobody_elses_and_what_was_flushed_survives_a_kill() {
    let home = Home::new();
    let image = home.path().join("disk.qcow2");
    home.nelly(&["disk", "create", word(&image), "64M"]).expect(0);
    // Each line says that so many blocks are flushed; then further ones are under way. No two
    // rounds write the same numbers: a block that is lost holds one of an earlier round.
    let script = "
        n=$(sed 's/.*first=//; s/ .*//' /proc/cmdline)
        while :; do
            i=0
            while [ $i -lt 4 ]; do
                printf '%08d' $n | dd of=/dev/vda bs=65536 seek=$(( n * 7 % 1000 )) conv=notrunc 2>/dev/null
                n=$(( n + 1 )); i=$(( i + 1 ))
            done
            # sync(2) tells a disk without a file system nothing.
            dd if=/dev/null of=/dev/vda conv=notrunc,fsync 2>/dev/null
            echo flushed $n
        done
    ";
    let initrd = initramfs(&home, Some(script), None);
    let rounds = std::env::var("NELLY_DISK_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(3);
    for round in 0..rounds {
        let first = 100_000 * (round + 1);
        let append = format!("console=ttyS0 quiet panic=-1 first={first}");
        let kernel = nelly_tests::kernel();
        let words = [
            "boot",
            "--kernel",
            word(&kernel),
            "--initrd",
            word(&initrd),
            "--append",
            &append,
            "--disk",
            word(&image),
        ];
        let mut child = nelly(home.path(), &words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut flushed = |wanted: u32| loop {
            let line = lines.next().expect("the guest goes on").unwrap();
            if let Some(count) = line.trim().strip_prefix("flushed ")
                && let Ok(count) = count.parse::<u32>()
                && count >= wanted
            {
                break count;
            }
        };
        flushed(first + 4);
        if round == 0 {
            for words in [&["disk", "resize", word(&image), "1G"][..], &["disk", "check", word(&image)]] {
                let refused = home.nelly(words);
                assert_eq!(refused.code, 1, "{words:?}");
                assert!(refused.err().contains("in use"), "{words:?}: {}", refused.err());
            }
            let refused =
                run(Command::new("qemu-img").args(["check", "-f", "qcow2", word(&image)]), b"", LIMIT);
            assert!(refused.code != 0 && refused.err().contains("lock"), "{}", refused.err());
        }
        let end = flushed(first + 16 + 4 * round);
        child.kill().unwrap();
        wait(&mut child, LIMIT);
        home.nelly(&["disk", "check", word(&image)]).expect(0);
        qemu_img(&["check", "-f", "qcow2", word(&image)]);
        let whole = home.path().join("whole.raw");
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", word(&image), word(&whole)]);
        let whole = File::open(&whole).unwrap();
        for number in first..end {
            let mut block = [0; 8];
            whole.read_exact_at(&mut block, u64::from(number * 7 % 1000) * 65536).unwrap();
            let found: u32 = std::str::from_utf8(&block).unwrap().parse().unwrap();
            // A later number may have been written to the same block.
            assert!(found >= number && found * 7 % 1000 == number * 7 % 1000, "{number}: {found}");
        }
    }
}

#[test]
fn a_full_host_makes_the_guest_wait_and_loses_nothing() {
    let home = Home::new();
    let small = home.path().join("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"]).arg(&small).status();
    assert!(mounted.unwrap().success(), "tests of machines run as root in the emulated host");
    let (image, filler) = (small.join("disk.qcow2"), small.join("filler"));
    home.nelly(&["disk", "create", word(&image), "64M"]).expect(0);
    fs::write(&filler, vec![1; 3 * MIB]).unwrap();
    let script = "
        set -e
        i=0
        while [ $i -lt 64 ]; do
            { printf '%08d' $i; head -c 65528 /dev/zero | tr '\\0' x; } |
                dd of=/dev/vda bs=65536 iflag=fullblock seek=$(( i * 3 )) conv=notrunc,fsync 2>/dev/null
            i=$(( i + 1 ))
        done
        echo all $i
    ";
    let initrd = initramfs(&home, Some(script), None);
    let kernel = nelly_tests::kernel();
    let words = [
        "boot",
        "--kernel",
        word(&kernel),
        "--initrd",
        word(&initrd),
        "--append",
        "console=ttyS0 quiet panic=-1",
        "--disk",
        word(&image),
    ];
    let mut child = nelly(home.path(), &words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The monitor says once that requests wait.
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.contains("file system is full")), "the host was never full");
    fs::remove_file(&filler).unwrap();
    let out: Vec<_> = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    assert_eq!(nelly_tests::code(wait(&mut child, LIMIT)), 0, "{out:?}");
    assert!(out.iter().any(|line| line.trim() == "all 64"), "{out:?}");
    qemu_img(&["check", "-f", "qcow2", word(&image)]);
    let whole = home.path().join("whole.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", word(&image), word(&whole)]);
    let whole = File::open(&whole).unwrap();
    for number in 0..64 {
        let mut block = [0; 8];
        whole.read_exact_at(&mut block, number * 3 * 65536).unwrap();
        assert_eq!(block, format!("{number:08}").as_bytes(), "{number}");
    }
    assert!(Command::new("umount").arg(&small).status().unwrap().success());
}
