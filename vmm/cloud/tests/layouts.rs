//! Disks laid out as distributions lay theirs out, made by mke2fs, mkfs.vfat and sfdisk of small
//! trees with the grammar of their files.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use nelly_cloud::{BootPlan, CloudError, DriverPlace, Image, Loader, Parts, find};
use nelly_disk::FileReader;
use tempfile::TempDir;

const ROOT_UUID: &str = "11111111-2222-3333-4444-555555555555";
const BOOT_UUID: &str = "66666666-7777-8888-9999-aaaaaaaaaaaa";

fn tool(program: &str, words: &[&str], input: &str) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut child = Command::new(program)
        .args(words)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make packages` installs it"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A kernel of so many bytes that says its release, as a bzImage does.
fn kernel(release: &str) -> Vec<u8> {
    let mut file = vec![0x90; 20_000];
    file[0x1f1..0x268].fill(0);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x20e..0x210].copy_from_slice(&0x3000_u16.to_le_bytes());
    let text = format!("{release} (builder@host) #1 SMP\0");
    file[0x3200..0x3200 + text.len()].copy_from_slice(text.as_bytes());
    file
}

/// An archive of newc with empty files of these names.
fn initrd(names: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names.iter().chain([&"TRAILER!!!"]) {
        out.extend_from_slice(b"070701");
        for index in 0..13 {
            let value = if index == 11 { name.len() + 1 } else { 0 };
            out.extend_from_slice(format!("{value:08x}").as_bytes());
        }
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

fn ready(release: &str) -> Vec<u8> {
    let of = |name: &str| format!("usr/lib/modules/{release}/kernel/{name}.ko.zst");
    initrd(&[&of("virtio_mmio"), &of("virtio_blk"), &of("ext4")])
}

/// A file system's source: paths and bytes.
type Tree<'a> = Vec<(&'a str, Vec<u8>)>;

fn text(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn write_tree(directory: &Path, tree: &Tree<'_>) {
    fs::create_dir_all(directory).unwrap();
    for (path, bytes) in tree {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if let Some(target) = bytes.strip_prefix(b"-> ") {
            std::os::unix::fs::symlink(std::str::from_utf8(target).unwrap(), path).unwrap();
        } else {
            fs::write(path, bytes).unwrap();
        }
    }
}

/// What fills a partition.
enum Fill<'a> {
    Ext(&'a str, &'a str, Tree<'a>),
    Fat(Tree<'a>),
    Raw(Vec<u8>),
}

fn fill(scratch: &Path, number: usize, fill: &Fill<'_>) -> Vec<u8> {
    let (image, tree) = (scratch.join(format!("part{number}")), scratch.join(format!("tree{number}")));
    let path = image.to_str().unwrap();
    match fill {
        Fill::Ext(uuid, label, files) => {
            write_tree(&tree, files);
            File::create(&image).unwrap();
            tool(
                "mke2fs",
                &[
                    "-q",
                    "-F",
                    "-t",
                    "ext4",
                    "-U",
                    uuid,
                    "-L",
                    label,
                    "-d",
                    tree.to_str().unwrap(),
                    path,
                    "8M",
                ],
                "",
            );
        }
        Fill::Fat(files) => {
            write_tree(&tree, files);
            File::create(&image).unwrap().set_len(4 << 20).unwrap();
            tool("mkfs.vfat", &["-n", "UEFI", "-i", "E5B0AAAA", path], "");
            for entry in fs::read_dir(&tree).unwrap() {
                tool("mcopy", &["-s", "-i", path, entry.unwrap().path().to_str().unwrap(), "::"], "");
            }
        }
        Fill::Raw(bytes) => fs::write(&image, bytes).unwrap(),
    }
    fs::read(&image).unwrap()
}

/// A disk with these partitions: number, type, what fills it.
fn disk(label: &str, parts: &[(u32, &str, Fill<'_>)]) -> Vec<u8> {
    let scratch = TempDir::new().unwrap();
    let image = scratch.path().join("disk");
    let mut file = File::options().create(true).truncate(true).read(true).write(true).open(&image).unwrap();
    file.set_len(48 << 20).unwrap();
    let (mut start, mut table, mut writes) = (2048, format!("label: {label}\n"), Vec::new());
    if label == "dos" {
        table.push_str("label-id: 0xc10d0001\n");
    }
    for (index, (number, kind, what)) in parts.iter().enumerate() {
        if *kind == "5" {
            table.push_str(&format!("{number}: start={start}, size={}, type=5\n", 90_000 - start));
            start += 2048;
            continue;
        }
        let bytes = fill(scratch.path(), index, what);
        table
            .push_str(&format!("{number}: start={start}, size={}, type={kind}\n", bytes.len().div_ceil(512)));
        writes.push((start * 512, bytes));
        start += (writes.last().unwrap().1.len().div_ceil(512) as u64 + 2048).next_multiple_of(2048);
    }
    tool("sfdisk", &["-q", image.to_str().unwrap()], &table);
    for (at, bytes) in writes {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&bytes).unwrap();
    }
    file.rewind().unwrap();
    let mut all = Vec::new();
    file.read_to_end(&mut all).unwrap();
    all
}

/// Finds out how a disk boots.
fn plan(disk: &Vec<u8>) -> BootPlan {
    let parts = Parts::read(disk).unwrap();
    let image = Image::open(&parts).unwrap();
    find(&image, Some("ttyS0")).unwrap_or_else(|error| panic!("{error}"))
}

const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
const ROOT_TYPE: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
const XBOOTLDR: &str = "bc13c2ff-59e6-4262-a352-b275fd6f7172";

/// Ubuntu's: /boot on partition 16, a stub on the EFI system partition, an entry without an initrd.
fn ubuntu(boot: Tree<'_>) -> Vec<u8> {
    let fstab = "LABEL=cloudimg-rootfs\t/\text4\tdiscard,commit=30,errors=remount-ro\t0 1\nLABEL=BOOT\t/boot\text4\tdefaults\t0 2\nLABEL=UEFI\t/boot/efi\tvfat\tumask=0077\t0 1\n";
    let modules =
        "kernel/drivers/virtio/virtio_mmio.ko\nkernel/drivers/block/virtio_blk.ko\nkernel/fs/ext4/ext4.ko\n";
    let root = vec![
        ("etc/fstab", text(fstab)),
        ("lib", text("-> usr/lib")),
        ("usr/lib/os-release", text("ID=ubuntu\n")),
        ("usr/lib/modules/6.8.0-45-generic/modules.builtin", text(modules)),
        ("usr/lib/modules/6.8.0-45-generic/modules.dep", text("kernel/fs/xfs/xfs.ko.zst:\n")),
        ("boot/vmlinuz-of-another-time", kernel("1.0")),
    ];
    let stub =
        format!("search.fs_uuid {BOOT_UUID} root\nset prefix=($root)'/grub'\nconfigfile $prefix/grub.cfg\n");
    disk(
        "gpt",
        &[
            (1, LINUX, Fill::Ext(ROOT_UUID, "cloudimg-rootfs", root)),
            (14, "21686148-6449-6e6f-744e-656564454649", Fill::Raw(vec![0; 1 << 20])),
            (15, ESP, Fill::Fat(vec![("EFI/ubuntu/grub.cfg", text(&stub))])),
            (16, XBOOTLDR, Fill::Ext(BOOT_UUID, "BOOT", boot)),
        ],
    )
}

const UBUNTU_CFG: &str = r#"if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${initrdfail}" = 2 ]; then
   set initrdfail=
elif [ "${initrdfail}" = 1 ]; then
   set next_entry="${prev_entry}"
   set initrdfail=2
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="0"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
fi
if [ "${recordfail}" != 1 ]; then
  if [ -e ${prefix}/gfxblacklist.txt ]; then
    if [ ${grub_platform} != pc ]; then
      set linux_gfx_mode=keep
    elif hwmatch ${prefix}/gfxblacklist.txt 3; then
      set linux_gfx_mode=text
    fi
  fi
fi
function recordfail {
  set recordfail=1
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
menuentry 'Ubuntu' --class ubuntu --class gnu-linux $menuentry_id_option 'gnulinux-simple' {
	recordfail
	load_video
	gfxmode $linux_gfx_mode
	search --no-floppy --fs-uuid --set=root 66666666-7777-8888-9999-aaaaaaaaaaaa
	if [ "${initrdfail}" = 1 ]; then
	  linux	/vmlinuz-6.8.0-45-generic root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0
	  initrd	/initrd.img-6.8.0-45-generic
	else
	  linux	/vmlinuz-6.8.0-45-generic root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0 panic=-1
	fi
	initrdfail
}
function load_video { true; }
function gfxmode { set gfxpayload="${1}"; }
"#;

#[test]
fn ubuntu_s_layout_has_boot_of_its_own() {
    let disk = ubuntu(vec![
        ("grub/grub.cfg", text(UBUNTU_CFG)),
        ("vmlinuz-6.8.0-45-generic", kernel("6.8.0-45-generic")),
        ("initrd.img-6.8.0-45-generic", ready("6.8.0-45-generic")),
    ]);
    let plan = plan(&disk);
    assert_eq!((plan.loader, plan.entries.len()), (Loader::Grub, 1), "{plan:?}");
    let entry = plan.entry();
    assert_eq!((entry.kernel.slot, entry.kernel.path.as_str()), (3, "/vmlinuz-6.8.0-45-generic"));
    assert_eq!(entry.initrds, []);
    assert_eq!(plan.command_line, "root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0 panic=-1");
    assert_eq!(plan.drivers.release.as_deref(), Some("6.8.0-45-generic"));
    assert!(
        plan.drivers.needed.iter().all(|driver| driver.place == DriverPlace::BuiltIn),
        "{:?}",
        plan.drivers
    );
    assert_eq!(plan.notes, Vec::<String>::new());
}

#[test]
fn an_image_whose_cloud_init_reads_no_seed_is_told() {
    let notes = |files: Tree<'_>, words: &str| {
        let mut tree = vec![
            ("etc/fstab", text("/dev/vda1 / ext4 rw 0 1\n")),
            ("boot/vmlinuz-1", kernel("1")),
            ("boot/initrd.img-1", ready("1")),
            ("lib/modules/1/modules.dep", text("")),
        ];
        let cfg = format!(
            "menuentry x {{ linux /boot/vmlinuz-1 root=/dev/vda1 {words}\n initrd /boot/initrd.img-1\n}}\n"
        );
        tree.push(("boot/grub/grub.cfg", text(&cfg)));
        tree.extend(files);
        let disk = disk("gpt", &[(1, LINUX, Fill::Ext(ROOT_UUID, "root", tree))]);
        let notes = plan(&disk).notes;
        notes.into_iter().filter(|note| note.contains("cloud-init")).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(notes(vec![], "ro"), "");
    assert!(notes(vec![], "ro cloud-init=disabled").contains("on the command line"));
    assert!(notes(vec![("etc/cloud/cloud-init.disabled", text(""))], "").contains("cloud-init.disabled"));
    let identify = notes(vec![("etc/cloud/ds-identify.cfg", text("policy: disabled\n"))], "");
    assert!(identify.contains("policy: disabled in /etc/cloud/ds-identify.cfg"), "{identify}");
    // The last file counts.
    let files = |last: &str| {
        vec![
            ("etc/cloud/cloud.cfg", text("datasource_list: [ NoCloud ]\n")),
            ("etc/cloud/cloud.cfg.d/05_x.cfg", text("datasource_list: [ Azure ]\n")),
            ("etc/cloud/cloud.cfg.d/90_dpkg.cfg", text(last)),
            ("etc/cloud/cloud.cfg.d/README", text("datasource_list: [ None ]\n")),
        ]
    };
    let azure = notes(files("# nothing\n"), "");
    assert!(azure.contains("asks only [ Azure ] (/etc/cloud/cloud.cfg.d/05_x.cfg)"), "{azure}");
    assert_eq!(notes(files("datasource_list: [ NoCloud, Ec2, None ]\n"), ""), "");
}

#[test]
fn without_a_configuration_the_newest_kernel_is_taken() {
    let disk = ubuntu(vec![
        ("vmlinuz-6.8.0-9-generic", kernel("6.8.0-9-generic")),
        ("vmlinuz-6.8.0-45-generic", kernel("6.8.0-45-generic")),
        ("initrd.img-6.8.0-45-generic", initrd(&["init"])),
        ("vmlinuz-0-rescue-x", kernel("9.9")),
        ("config-6.8.0-45-generic", text("CONFIG_VIRTIO_BLK=y\n")),
    ]);
    let plan = plan(&disk);
    let kernels: Vec<_> = plan.entries.iter().map(|entry| entry.title.as_str()).collect();
    assert_eq!(kernels, ["vmlinuz-6.8.0-45-generic", "vmlinuz-6.8.0-9-generic", "vmlinuz-0-rescue-x"]);
    assert_eq!(plan.loader, Loader::Newest);
    assert_eq!(plan.command_line, format!("root=UUID={ROOT_UUID} ro console=ttyS0"));
    assert_eq!(plan.entry().initrds[0].path, "/initrd.img-6.8.0-45-generic");
}

#[test]
fn fedora_s_layout_boots_though_its_root_is_btrfs() {
    let mut btrfs = vec![0; 1 << 20];
    btrfs[0x10040..0x10048].copy_from_slice(b"_BHRfS_M");
    let config = format!(
        "load_env -f ${{config_directory}}/grubenv\nset default=\"${{saved_entry}}\"\nsearch --no-floppy --fs-uuid --set=boot {BOOT_UUID}\ninsmod blscfg\nblscfg\n"
    );
    let entry = |version: &str| {
        text(&format!(
            "title Fedora Linux ({version})\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\ninitrd /intel-ucode.img\noptions root=UUID=ab ro rootflags=subvol=root $kernelopts\n"
        ))
    };
    let env = "# GRUB Environment Block\nsaved_entry=m-6.8.5-301.fc40.x86_64\nkernelopts=quiet\n";
    let boot = vec![
        ("grub2/grub.cfg", text(&config)),
        ("grub2/grubenv", text(env)),
        ("loader/entries/m-6.8.5-301.fc40.x86_64.conf", entry("6.8.5-301.fc40.x86_64")),
        ("loader/entries/m-6.10.1-200.fc40.x86_64.conf", entry("6.10.1-200.fc40.x86_64")),
        ("loader/entries/m-0-rescue.conf", entry("0-rescue-m")),
        ("vmlinuz-6.8.5-301.fc40.x86_64", kernel("6.8.5-301.fc40.x86_64")),
        ("vmlinuz-6.10.1-200.fc40.x86_64", kernel("6.10.1-200.fc40.x86_64")),
        ("initramfs-6.8.5-301.fc40.x86_64.img", initrd(&["usr/lib/modules/x/virtio_blk.ko.xz"])),
        ("initramfs-6.10.1-200.fc40.x86_64.img", ready("x")),
        ("intel-ucode.img", initrd(&["kernel/x86/microcode/GenuineIntel.bin"])),
        (
            "config-6.8.5-301.fc40.x86_64",
            text("CONFIG_VIRTIO_MMIO=m\nCONFIG_VIRTIO_BLK=m\nCONFIG_BTRFS_FS=y\n"),
        ),
    ];
    let disk = disk("gpt", &[(2, LINUX, Fill::Ext(BOOT_UUID, "", boot)), (3, ROOT_TYPE, Fill::Raw(btrfs))]);
    let plan = plan(&disk);
    assert_eq!(plan.loader, Loader::Bls);
    // The entry for repairs has no kernel here, so it is none.
    assert_eq!((plan.entries.len(), plan.chosen), (2, 1), "{plan:?}");
    assert_eq!(plan.entry().command_line, "root=UUID=ab ro rootflags=subvol=root quiet");
    let initrds: Vec<_> = plan.entry().initrds.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(
        initrds,
        ["/intel-ucode.img", "/initramfs-6.8.5-301.fc40.x86_64.img"],
        "microcode comes first"
    );
    // The chosen kernel could not find its disk, and it is said why.
    let missing: Vec<_> = plan.drivers.missing().map(|driver| driver.name.as_str()).collect();
    assert_eq!(missing, ["virtio_mmio"], "{:?}", plan.drivers);
    let parts = Parts::read(&disk).unwrap();
    let image = Image::open(&parts).unwrap();
    let mut out = Vec::new();
    let bytes = image.copy_initrds(plan.entry(), &mut out).unwrap();
    assert_eq!(bytes, out.len() as u64);
    let first = usize::try_from(plan.entry().initrds[0].bytes).unwrap().next_multiple_of(4);
    assert_eq!(&out[first..first + 6], b"070701");
}

#[test]
fn alpine_s_layout_has_no_partitions_and_extlinux() {
    let config = "DEFAULT virt\nPROMPT 0\nTIMEOUT 10\nLABEL virt\n  MENU LABEL Linux virt\n  LINUX vmlinuz-virt\n  INITRD initramfs-virt\n  APPEND root=UUID=11111111-2222-3333-4444-555555555555 modules=sd-mod,ext4 rootfstype=ext4\n";
    let tree = vec![
        ("etc/os-release", text("ID=alpine\n")),
        ("boot/extlinux.conf", text(config)),
        ("boot/vmlinuz-virt", kernel("6.6.31-0-virt")),
        ("boot/initramfs-virt", ready("6.6.31-0-virt")),
    ];
    let scratch = TempDir::new().unwrap();
    let mut disk = fill(scratch.path(), 0, &Fill::Ext(ROOT_UUID, "", tree));
    // Its boot sector has a signature and code where a table would be.
    disk[446..510].fill(0x90);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let plan = plan(&disk);
    assert_eq!((plan.loader, plan.entry().kernel.path.as_str()), (Loader::Syslinux, "/boot/vmlinuz-virt"));
    assert_eq!(
        plan.command_line,
        format!("root=UUID={ROOT_UUID} modules=sd-mod,ext4 rootfstype=ext4 console=ttyS0")
    );
    assert!(
        plan.drivers.needed.iter().all(|driver| driver.place == DriverPlace::Initrd),
        "{:?}",
        plan.drivers
    );
}

#[test]
fn mbr_with_a_submenu_s_default_and_systemd_boot_are_read() {
    let config = format!(
        "set default='1>0'\nmenuentry 'A' {{ search --fs-uuid --set=root {BOOT_UUID}; linux /none root=x }}\nsubmenu 'B' {{\n menuentry 'C' {{ search --fs-uuid --set=root {BOOT_UUID}; linux /k root=/dev/vda5; initrd /i }}\n}}\n"
    );
    let boot = || {
        Fill::Ext(
            BOOT_UUID,
            "boot",
            vec![("grub/grub.cfg", text(&config)), ("k", kernel("5.10")), ("i", ready("5.10"))],
        )
    };
    let root = || {
        Fill::Ext(
            ROOT_UUID,
            "",
            vec![(
                "etc/fstab",
                text("PARTUUID=c10d0001-05 / ext4 x 0 1\nPARTUUID=c10d0001-01 /boot ext4 x 0 2\n"),
            )],
        )
    };
    let found = plan(&disk("dos", &[(1, "83", boot()), (2, "5", boot()), (5, "83", root())]));
    assert_eq!(
        (found.entry().title.as_str(), found.command_line.as_str()),
        ("B>C", "root=/dev/vda5 console=ttyS0")
    );
    assert!(found.notes.is_empty(), "{:?}", found.notes);

    let entry = |kernel: &str| {
        text(&format!(
            "title T\nsort-key debian\nversion {kernel}\nlinux /m/{kernel}/linux\ninitrd /m/{kernel}/initrd\noptions root=UUID={ROOT_UUID} rw\n"
        ))
    };
    let esp = Fill::Fat(vec![
        ("loader/loader.conf", text("timeout 3\ndefault m-6.1*\n")),
        ("loader/entries/m-6.1.conf", entry("6.1")),
        ("loader/entries/m-6.12.conf", entry("6.12")),
        ("m/6.1/linux", kernel("6.1")),
        ("m/6.1/initrd", ready("6.1")),
        ("m/6.12/linux", kernel("6.12")),
        ("m/6.12/initrd", ready("6.12")),
    ]);
    let root = Fill::Ext(ROOT_UUID, "", vec![("etc/os-release", text("ID=debian\n"))]);
    let found = plan(&disk("gpt", &[(1, ESP, esp), (2, ROOT_TYPE, root)]));
    assert_eq!((found.loader, found.entries.len()), (Loader::Bls, 2));
    // `m-6.1*` matches both, and the newest is first.
    assert_eq!(found.entry().kernel.path, "/m/6.12/linux");
}

#[test]
fn what_is_missing_is_told_with_what_was_looked_for() {
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    let disk = disk(
        "gpt",
        &[(1, ROOT_TYPE, Fill::Raw(xfs)), (2, ESP, Fill::Fat(vec![("EFI/BOOT/BOOTX64.EFI", text("MZ"))]))],
    );
    let parts = Parts::read(&disk).unwrap();
    let image = Image::open(&parts).unwrap();
    let error = find(&image, None).unwrap_err();
    let said = error.to_string();
    for part in [
        "partition 1 has xfs",
        "nelly boot --kernel",
        "partition 2 has vfat",
        "EFI system partition",
        "extlinux.conf",
        "/boot is on partition 1",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // No disk, and disks that hold nothing.
    assert!(matches!(Parts::read(&Vec::new()), Err(CloudError::Empty)));
    for empty in [vec![0; 1], vec![0; 511], vec![0; 4 << 20], vec![0xff; 70_000]] {
        let parts = Parts::read(&empty).unwrap();
        let error = find(&Image::open(&parts).unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("the whole disk has nothing that is known"), "{error}");
    }
}

/// What a link of the image names is never a file of this host.
#[test]
fn links_stay_in_the_image() {
    let config = "menuentry x { linux /boot/k root=/dev/sda1; initrd /boot/out }\n";
    let tree = vec![
        ("etc/os-release", text("-> /../../../../etc/os-release-of-nobody")),
        ("etc/fstab", text("# empty\n")),
        ("boot/grub/grub.cfg", text(config)),
        ("boot/k", text("-> ../kernel")),
        ("kernel", kernel("6.1")),
        ("boot/out", text("-> /etc/hostname")),
    ];
    let scratch = TempDir::new().unwrap();
    let disk = fill(scratch.path(), 0, &Fill::Ext(ROOT_UUID, "", tree));
    let parts = Parts::read(&disk).unwrap();
    let image = Image::open(&parts).unwrap();
    let error = find(&image, None).unwrap_err().to_string();
    assert!(error.contains("no kernel was found"), "{error}");
    // The same by a file of the host, cut in its middle.
    let path = scratch.path().join("cut");
    fs::write(&path, &disk[..disk.len() / 2]).unwrap();
    let reader = FileReader::new(File::open(&path).unwrap()).unwrap();
    let parts = Parts::read(&reader).unwrap();
    let image = Image::open(&parts).unwrap();
    assert!(image.slots[0].why_not.as_deref().unwrap().contains("more than the partition has"));
}

/// The same disk as raw, as qcow2, compressed, and as an overlay; and what is no image.
#[test]
fn images_of_every_format_say_the_same_and_others_are_refused() {
    use nelly_disk::{Follow, Format, open_image};
    let scratch = TempDir::new().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let word = |name: &str| path(name).to_str().unwrap().to_owned();
    let boot = vec![("vmlinuz-6.1", kernel("6.1")), ("initrd.img-6.1", ready("6.1"))];
    fs::write(path("a.raw"), ubuntu(boot)).unwrap();
    let before = fs::read(path("a.raw")).unwrap();
    tool("qemu-img", &["convert", "-c", "-O", "qcow2", &word("a.raw"), &word("b.qcow2")], "");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", &word("c.qcow2")], "");
    std::os::unix::fs::symlink("c.qcow2", path("link.qcow2")).unwrap();
    let look = |name: &str, format| -> Result<BootPlan, String> {
        let disk =
            open_image(&path(name), format, true, Follow::Beside).map_err(|error| error.to_string())?;
        let parts = Parts::read(&*disk).map_err(|error| error.to_string())?;
        let image = Image::open(&parts).map_err(|error| error.to_string())?;
        find(&image, None).map_err(|error| error.to_string())
    };
    let raw = look("a.raw", Format::Raw).unwrap();
    assert_eq!(raw.command_line, format!("root=UUID={ROOT_UUID} ro"));
    for name in ["b.qcow2", "c.qcow2", "link.qcow2"] {
        assert_eq!(look(name, Format::Qcow2).unwrap(), raw, "{name}");
    }
    assert!(fs::read(path("a.raw")).unwrap() == before, "it is only read");
    File::create(path("empty")).unwrap();
    fs::write(path("cut"), &before[..20 << 20]).unwrap();
    fs::write(path("short"), [0; 100]).unwrap();
    std::os::unix::fs::symlink("nowhere", path("broken")).unwrap();
    for name in ["empty", "cut", "short", "broken", ".", "/dev/null", "/dev/full"] {
        let error = look(name, Format::Raw).unwrap_err();
        assert!(error.len() > 10, "{name}: {error}");
    }
}
