//! Layouts, archives and the cache: what is chosen, what is refused and how fast, what stays
//! behind.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::image::{ARCH, Layout, Pack, TestDir, chain, contents_of, gzip};
use crate::support::tarball::{Tar, dir, file, hard_link, symlink};
use nelly_image::{Digest, ImageError, ImageStage, Progress, Reference, Silent, Store, StoreOptions};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const NOTHING: [PathBuf; 0] = [];

fn layer(text: &str) -> Vec<u8> {
    Tar::default().empty(dir("etc")).add(file("etc/name"), text.as_bytes()).end()
}

/// What the image's `etc/name` says.
fn name_in(image: nelly_image::Image) -> String {
    let tree = contents_of(&image);
    String::from_utf8(tree[&b"etc/name"[..]].data.clone()).unwrap()
}

/// The refusal of a reference, which must come (at once, on a machine with nothing else to do) and
/// leave nothing.
fn refusal(place: &TestDir, reference: &Reference) -> String {
    let start = Instant::now();
    let error = place.resolve(reference).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}: {}", start.elapsed(), chain(&error));
    assert_eq!(place.leftovers(), NOTHING);
    chain(&error)
}

fn tagged(tag: &str) -> String {
    format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}"#)
}

fn platform(os: &str, arch: &str) -> String {
    format!(r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#)
}

#[test]
fn tags_platforms_and_nested_indexes() {
    let arch = *ARCH;
    let place = TestDir::default();
    let layout = Layout::new(&place.path("layout"));
    let image = |text: &str, more: &str| {
        let manifest = layout.manifest(&[(layer(text), Pack::Gzip)], "{}");
        layout.descriptor(MANIFEST, manifest.as_bytes(), more)
    };
    let nested = |manifests: &[String], more: &str| {
        let text =
            format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#, manifests.join(","));
        layout.descriptor(INDEX, text.as_bytes(), more)
    };
    let other = if *ARCH == "amd64" { "arm64" } else { "amd64" };
    let multi = nested(
        &[
            image("other", &platform("linux", other)),
            image("windows", &platform("windows", &ARCH)),
            image("host", &platform("linux", &ARCH)),
            image("attestation", &platform("unknown", "unknown")),
        ],
        &tagged("multi"),
    );
    let foreign = nested(&[image("s390x", &platform("linux", "s390x"))], &tagged("foreign"));
    layout.index(&[image("one", &tagged("one")), image("two", &tagged("two")), multi, foreign]);
    let tag = |tag: &str| Reference::OciLayout { dir: layout.dir.clone(), tag: Some(tag.to_owned()) };
    for (name, want) in [("one", "one"), ("two", "two"), ("multi", "host")] {
        assert_eq!(name_in(place.resolve(&tag(name)).unwrap()), want);
    }
    let other = TestDir::default();
    assert!(
        refusal(&other, &tag("three")).contains("no tag `three`; the tags are: foreign, multi, one, two")
    );
    assert!(
        refusal(&other, &layout.reference())
            .contains("several images; choose one by its tag: foreign, multi, one, two")
    );
    let message = refusal(&other, &tag("foreign"));
    assert!(
        message.contains(&format!(
            "no image for linux/{arch}, the platform of this host; the platforms are: linux/s390x"
        )),
        "{message}"
    );

    // One image under two tags needs none.
    layout.index(&[image("one", &tagged("a")), image("one", &tagged("b"))]);
    assert_eq!(name_in(place.resolve(&layout.reference()).unwrap()), "one");
    // An index that holds itself cannot be made, but a deep one can.
    let mut deep = image("deep", "");
    for _ in 0..6 {
        deep = nested(&[deep], "");
    }
    layout.index(&[deep]);
    assert!(refusal(&other, &layout.reference()).contains("nested more than"));
    layout.index(&[]);
    assert!(refusal(&other, &layout.reference()).contains("lists no image"));
}

#[test]
fn docker_media_types() {
    let place = TestDir::default();
    let layout = Layout::new(&place.path("layout"));
    let tar = layer("docker");
    let config = Layout::config(&[Digest::sha256(&tar)], r#"{"Cmd":null,"Env":null,"Volumes":null}"#);
    let config = layout.descriptor("application/vnd.docker.container.image.v1+json", config.as_bytes(), "");
    let data = layout.descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", &gzip(&tar), "");
    let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{data}]}}"#);
    let manifest =
        layout.descriptor("application/vnd.docker.distribution.manifest.v2+json", manifest.as_bytes(), "");
    let list = format!(r#"{{"schemaVersion":2,"manifests":[{manifest}]}}"#);
    let list =
        layout.descriptor("application/vnd.docker.distribution.manifest.list.v2+json", list.as_bytes(), "");
    layout.index(&[list]);
    assert_eq!(name_in(place.resolve(&layout.reference()).unwrap()), "docker");
}

#[test]
fn unknown_media_types_are_refused_by_name() {
    let place = TestDir::default();
    let layout = Layout::new(&place.path("layout"));
    let tar = layer("x");
    let config_type = "application/vnd.oci.image.config.v1+json";
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    for (config_type, layer_type, manifest_type, why) in [
        (
            "application/vnd.cncf.helm.config.v1+json",
            layer_type,
            MANIFEST,
            "a configuration has the unsupported",
        ),
        (
            config_type,
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            MANIFEST,
            "a layer has the unsupported",
        ),
        (
            config_type,
            layer_type,
            "application/vnd.docker.distribution.manifest.v1+json",
            "a manifest has the",
        ),
    ] {
        let config = Layout::config(&[Digest::sha256(&tar)], "{}");
        let config = layout.descriptor(config_type, config.as_bytes(), "");
        let data = layout.descriptor(layer_type, &tar, "");
        let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{data}]}}"#);
        layout.index(&[layout.descriptor(manifest_type, manifest.as_bytes(), "")]);
        let message = refusal(&place, &layout.reference());
        assert!(message.contains(why) && message.contains("application/vnd."), "{message}");
    }
}

/// Changes one blob in every bad way there is, and looks for the blob's name in the refusal.
fn damage_blob(place: &TestDir, layout: &Layout, digest: &Digest) {
    let path = layout.blob_path(digest);
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    let middle = good.len() / 2;
    flipped[middle] ^= 0x10;
    let longer = [&good[..], b"\0"].concat();
    for (what, bad) in [
        ("empty", &b""[..]),
        ("truncated", &good[..good.len() - 1]),
        ("flipped", &flipped),
        ("longer", &longer),
    ] {
        fs::write(&path, bad).unwrap();
        let message = refusal(place, &layout.reference());
        assert!(message.contains(&digest.hex()), "{what}: {message}");
        assert!(["corrupt", "empty"].iter().any(|word| message.contains(word)), "{what}: {message}");
    }
    fs::remove_file(&path).unwrap();
    assert!(refusal(place, &layout.reference()).contains("does not exist"));
    fs::create_dir(&path).unwrap();
    assert!(refusal(place, &layout.reference()).contains("not a regular file"));
    fs::remove_dir(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
    assert!(refusal(place, &layout.reference()).contains("not a regular file"));
    fs::remove_file(&path).unwrap();
    fs::write(&path, &good).unwrap();
}

#[test]
fn damaged_layouts() {
    for pack in [Pack::Plain, Pack::Gzip, Pack::Zstd] {
        let place = TestDir::default();
        let tar = Tar::default().add(file("etc/name"), b"good").add(file("big"), &vec![9; 300_000]).end();
        let layout = Layout::with(&place.path("layout"), &[(layer("lower"), pack), (tar, pack)], "{}");
        for entry in fs::read_dir(layout.dir.join("blobs/sha256")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            damage_blob(&place, &layout, &format!("sha256:{name}").parse().unwrap());
        }
        for name in ["index.json", "oci-layout"] {
            let path = layout.dir.join(name);
            let good = fs::read(&path).unwrap();
            for (bad, why) in [
                (&b""[..], "is empty"),
                (b"{", "is not valid JSON of the expected form"),
                (b"[1, 2]", "is not valid JSON of the expected form"),
                (br#"{"schemaVersion":1,"manifests":[],"imageLayoutVersion":"2.0"}"#, "version"),
                (&vec![b' '; 5 << 20], "over the limit of 4194304"),
            ] {
                fs::write(&path, bad).unwrap();
                let message = refusal(&place, &layout.reference());
                assert!(message.contains(why), "{name}: {message}");
            }
            fs::remove_file(&path).unwrap();
            let message = refusal(&place, &layout.reference());
            assert!(message.contains(name) && message.contains("does not exist"), "{message}");
            fs::write(&path, good).unwrap();
        }
        // And after all of that it still is the image that it was.
        assert_eq!(name_in(place.resolve(&layout.reference()).unwrap()), "good");
    }
    let place = TestDir::default();
    let missing = Reference::OciLayout { dir: place.path("no/such"), tag: None };
    assert!(refusal(&place, &missing).contains("no/such does not exist"));
    fs::write(place.path("file"), "x").unwrap();
    let not_dir = Reference::OciLayout { dir: place.path("file"), tag: None };
    assert!(refusal(&place, &not_dir).contains("not a directory"));
}

#[test]
fn a_configuration_that_does_not_fit() {
    let arch = *ARCH;
    let place = TestDir::default();
    let layout = Layout::new(&place.path("layout"));
    let tar = layer("x");
    let wrong = Digest::sha256(b"wrong");
    let id = Digest::sha256(&tar);
    let good = Layout::config(&[id], "{}");
    for (config, why) in [
        (Layout::config(&[wrong], "{}"), format!("the configuration lists {wrong}")),
        (Layout::config(&[], "{}"), "lists 0 layers, but the manifest lists 1".to_owned()),
        (Layout::config(&[id, id], "{}"), "lists 2 layers, but the manifest lists 1".to_owned()),
        (
            good.replace(*ARCH, "riscv64"),
            format!("no image for linux/{arch}, the platform of this host; the platforms are: linux/riscv64"),
        ),
        (good.replace("linux", "windows"), "the platforms are: windows/".to_owned()),
        (good.replace("sha256:", "sha256:../"), "malformed digest".to_owned()),
        ("{}".to_owned(), "not valid JSON".to_owned()),
    ] {
        let config = layout.descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes(), "");
        let data = layout.descriptor("application/vnd.oci.image.layer.v1.tar", &gzip(&tar), "");
        let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{data}]}}"#);
        layout.index(&[layout.descriptor(MANIFEST, manifest.as_bytes(), "")]);
        let message = refusal(&place, &layout.reference());
        assert!(message.contains(&why), "{message}");
    }
    // Digests become paths: what is none must not.
    layout
        .index(&[format!(r#"{{"mediaType":"{MANIFEST}","digest":"sha256:../../../etc/passwd","size":3}}"#)]);
    assert!(refusal(&place, &layout.reference()).contains("malformed digest"));
}

#[test]
fn damaged_streams_whose_digests_are_right() {
    let tar = layer("x");
    let packed = gzip(&tar);
    for (data, why) in [
        (packed[..packed.len() - 9].to_vec(), "gzip stream is corrupt"),
        ([&packed[..20], &[0xff; 60]].concat(), "gzip stream is corrupt"),
        ([&zstd::encode_all(&tar[..], 1).unwrap()[..20], &[0xff; 60]].concat(), "zstd stream is corrupt"),
        (tar[..700].to_vec(), "ends in the middle of an entry"),
        (tar[1..].to_vec(), "wrong checksum"),
        (b"BZh91AY&SY".to_vec(), "compressed with bzip2; only gzip"),
        (b"\xfd7zXZ\0\0".to_vec(), "compressed with xz"),
        (b"hello".to_vec(), "ends in the middle"),
    ] {
        let place = TestDir::default();
        let layout = Layout::new(&place.path("layout"));
        let config = Layout::config(&[Digest::sha256(&tar)], "{}");
        let config = layout.descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes(), "");
        let blob = layout.descriptor("application/vnd.oci.image.layer.v1.tar", &data, "");
        let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{blob}]}}"#);
        layout.index(&[layout.descriptor(MANIFEST, manifest.as_bytes(), "")]);
        let message = refusal(&place, &layout.reference());
        assert!(message.contains(why) && message.contains("layer 1 of 1"), "{message}");
    }
}

/// A docker archive as the old `docker save` wrote it, with a layer shared by a link.
fn docker_archive(layers: &[(&str, &[u8])], ids: &[&[u8]], tags: &str) -> Tar {
    let ids: Vec<Digest> = ids.iter().map(|data| Digest::sha256(data)).collect();
    let config = Layout::config(&ids, "{}");
    let name = format!("{}.json", Digest::sha256(config.as_bytes()).hex());
    let paths: Vec<String> = layers.iter().map(|(path, _)| format!("\"{path}\"")).collect();
    let manifest = format!(r#"[{{"Config":"{name}","RepoTags":{tags},"Layers":[{}]}}]"#, paths.join(","));
    let mut tar = Tar::default();
    tar.add(file(&name), config.as_bytes());
    for (path, data) in layers {
        match data.strip_prefix(b"->") {
            Some(target) => tar.empty(symlink(path, std::str::from_utf8(target).unwrap())),
            None => tar.add(file(path), data),
        };
    }
    tar.add(file("manifest.json"), manifest.as_bytes());
    tar
}

#[test]
fn docker_archives() {
    let (lower, upper) = (layer("lower"), Tar::default().add(file("etc/name"), b"upper").end());
    let packed = gzip(&upper);
    let tar = docker_archive(
        &[("a/layer.tar", &lower), ("b/layer.tar", &packed), ("./c/layer.tar", b"->../a/layer.tar")],
        &[&lower, &upper, &lower],
        r#"["app:1"]"#,
    )
    .end();
    let place = TestDir::default();
    let path = place.path("image.tar");
    let reference = Reference::DockerArchive { file: path.clone(), tag: None };
    for data in [tar.clone(), gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap()] {
        fs::write(&path, data).unwrap();
        let fresh = TestDir::default();
        assert_eq!(name_in(fresh.resolve(&reference).unwrap()), "lower");
        assert!(fresh.resolve(&reference).unwrap().cached);
    }
    // Damage anywhere in the archive is found, or it is where nothing was.
    let mut found = 0;
    for at in (0..tar.len()).step_by(97) {
        let mut bad = tar.clone();
        bad[at] ^= 0x20;
        fs::write(&path, &bad).unwrap();
        let fresh = TestDir::default();
        match fresh.resolve(&reference) {
            Err(error) => {
                found += 1;
                assert_eq!(fresh.leftovers(), NOTHING);
                assert!(chain(&error).contains("image.tar"), "{}", chain(&error));
            }
            Ok(image) => assert_eq!(name_in(image), "lower"),
        }
    }
    assert!(found > 10, "{found}");
    for (data, why) in [
        (vec![], "is empty"),
        (b"not a tar at all".to_vec(), "not a usable tar archive"),
        (tar[..1000].to_vec(), "not a usable tar archive"),
        (gzip(&tar)[..200].to_vec(), "not a usable tar archive"),
        (b"BZh91AY&SY".to_vec(), "compressed with bzip2"),
        (vec![0; 1024], "`manifest.json` in"),
        (
            gzip(&Tar::default().add(file("manifest.json"), &vec![b'['; 5 << 20]).end()),
            "over the limit of 4194304",
        ),
        (gzip(&Tar::default().add(file("manifest.json"), b"no").end()), "is not JSON"),
        (Tar::default().add(file("manifest.json"), b"[]").end(), "lists no image"),
        (docker_archive(&[("gone", b"->nowhere")], &[&lower], "null").end(), "`gone` in"),
        (docker_archive(&[("a", b"->b"), ("b", b"->a")], &[&lower, &lower], "null").end(), "`a` in"),
        (docker_archive(&[("up", b"->../../x")], &[&lower], "null").end(), "`up` in"),
        (docker_archive(&[("a", &lower)], &[&upper], "null").end(), "the configuration lists"),
        (docker_archive(&[("a", &lower)], &[], "null").end(), "lists 0 layers, but the manifest lists 1"),
    ] {
        fs::write(&path, data).unwrap();
        let message = refusal(&TestDir::default(), &reference);
        assert!(message.contains(why), "{why}: {message}");
    }
    fs::remove_file(&path).unwrap();
    assert!(refusal(&place, &reference).contains("image.tar does not exist"));
}

#[test]
fn oci_archives() {
    let place = TestDir::default();
    let layout = place.layout(&[layer("archived")]);
    let path = place.path("image.tar");
    let reference = Reference::OciArchive { file: path.clone(), tag: Some("latest".to_owned()) };
    crate::support::run("tar", &["-C", layout.dir.to_str().unwrap(), "-cf", path.to_str().unwrap(), "."]);
    assert_eq!(name_in(place.resolve(&reference).unwrap()), "archived");
    // A whole layout by hard links, as deduplicating archivers write it.
    let mut tar = Tar::default();
    for name in ["oci-layout", "index.json"] {
        tar.add(file(&format!("x/{name}")), &fs::read(layout.dir.join(name)).unwrap());
        tar.empty(hard_link(name, &format!("x/{name}")));
    }
    for entry in fs::read_dir(layout.dir.join("blobs/sha256")).unwrap() {
        let entry = entry.unwrap();
        let name = format!("blobs/sha256/{}", entry.file_name().to_str().unwrap());
        tar.add(file(&name), &fs::read(entry.path()).unwrap());
    }
    fs::write(&path, tar.end()).unwrap();
    let fresh = TestDir::default();
    assert_eq!(name_in(fresh.resolve(&reference).unwrap()), "archived");
}

#[test]
fn the_cache_is_used_and_survives_damage() {
    let place = TestDir::default();
    let layout = place.layout(&[layer("a"), layer("b")]);
    let first = place.resolve(&layout.reference()).unwrap();
    let path = first.disk_paths[0].clone();
    assert!(!first.cached && path.starts_with(place.cache()));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o444);
    assert_eq!(place.leftovers(), std::slice::from_ref(&path));
    let inode = fs::metadata(&path).unwrap().ino();
    // Layers are not needed any more.
    let blobs: Vec<_> =
        fs::read_dir(layout.dir.join("blobs/sha256")).unwrap().map(|e| e.unwrap().path()).collect();
    let layers: Vec<_> = blobs.iter().filter(|path| fs::read(path).unwrap().starts_with(b"etc")).collect();
    assert_eq!(layers.len(), 2);
    let saved: Vec<Vec<u8>> = layers.iter().map(|path| fs::read(path).unwrap()).collect();
    layers.iter().for_each(|path| fs::remove_file(path).unwrap());
    let second = place.resolve(&layout.reference()).unwrap();
    assert!(second.cached);
    assert_eq!(second.disk[0].metadata().unwrap().ino(), inode);
    assert_eq!((second.digest, second.disk_bytes), (first.digest, first.disk_bytes));
    layers.iter().zip(saved).for_each(|(path, data)| fs::write(path, data).unwrap());

    // A truncated, an empty or a foreign file under the image's name is not taken for it.
    let good = fs::read(&path).unwrap();
    for bad in [&good[..good.len() - 4096], b"", &[0; 8192]] {
        fs::remove_file(&path).unwrap();
        fs::write(&path, bad).unwrap();
        let again = place.resolve(&layout.reference()).unwrap();
        assert!(!again.cached);
        assert!(fs::read(&path).unwrap() == good, "the same layers make the same bytes");
        assert_eq!(place.leftovers(), std::slice::from_ref(&path));
    }
    // The order of layers is part of what an image is.
    let swapped =
        Layout::with(&place.path("swapped"), &[(layer("b"), Pack::Plain), (layer("a"), Pack::Plain)], "{}");
    let swapped = place.resolve(&swapped.reference()).unwrap();
    assert!(!swapped.cached && swapped.disk_paths[0] != path);
    assert_eq!(name_in(swapped), "a");
}

#[test]
fn a_plan_writes_nothing() {
    let place = TestDir::default();
    let layout = place.layout(&[layer("a")]);
    let plan = place.store().plan(&layout.reference()).unwrap();
    assert!(!plan.cached && !place.cache().exists());
    assert_eq!(plan.layers.len(), 1);
    assert_eq!(plan.layers[0].diff_id, Digest::sha256(&layer("a")));
    assert_eq!(plan.layers[0].size, layer("a").len() as u64);
    let image = place.resolve(&layout.reference()).unwrap();
    let plan = place.store().plan(&layout.reference()).unwrap();
    assert!(plan.cached);
    assert_eq!((plan.disk_paths, plan.digest), (image.disk_paths, image.digest));
    // What would fail at once fails in the plan, too.
    let missing = TestDir::default();
    fs::remove_file(layout.blob_path(&Digest::sha256(&layer("a")))).unwrap();
    assert!(chain(&missing.store().plan(&layout.reference()).unwrap_err()).contains("does not exist"));
    let rootfs = Reference::Rootfs { dir: place.path("none") };
    assert!(missing.store().plan(&rootfs).is_err());
    assert!(!missing.cache().exists());
}

/// A watcher that keeps what it hears and can end it.
#[derive(Default)]
struct Heard {
    phases: Vec<(ImageStage, u64, Option<u64>)>,
    end_at: Option<u64>,
}

impl Progress for Heard {
    fn update(&mut self, phase: ImageStage, done: u64, total: Option<u64>) {
        self.phases.push((phase, done, total));
    }

    fn cancelled(&mut self) -> bool {
        self.end_at.is_some_and(|at| self.phases.last().is_some_and(|last| last.1 >= at))
    }
}

#[test]
fn progress_and_cancellation() {
    let mut seed: u32 = 1;
    let mut random = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed.to_le_bytes()[3]
    };
    let noise: Vec<u8> = (0..12 << 20).map(|_| random()).collect();
    let tar = Tar::default().add(file("noise"), &noise).end();
    let place = TestDir::default();
    let layout = Layout::with(&place.path("layout"), &[(layer("a"), Pack::Gzip), (tar, Pack::Gzip)], "{}");
    let mut heard = Heard { end_at: Some(3 << 20), ..Heard::default() };
    let error = place.store().resolve(&layout.reference(), &mut heard).unwrap_err();
    assert!(matches!(error, ImageError::Cancelled), "{error:?}");
    assert_eq!(place.leftovers(), NOTHING);
    let mut heard = Heard::default();
    place.store().resolve(&layout.reference(), &mut heard).unwrap();
    let second = ImageStage::Layer { number: 2, count: 2 };
    let of_second: Vec<u64> = heard.phases.iter().filter(|p| p.0 == second).map(|p| p.1).collect();
    assert!(of_second.len() > 8, "{of_second:?}");
    assert!(of_second.is_sorted() && of_second[0] == 0);
    assert_eq!(
        heard.phases.iter().rfind(|p| p.0 == second).map(|p| Some(p.1)),
        Some(heard.phases.iter().rfind(|p| p.0 == second).unwrap().2)
    );
    let order: Vec<ImageStage> = heard.phases.iter().map(|p| p.0).fold(Vec::new(), |mut order, phase| {
        if order.last() != Some(&phase) {
            order.push(phase);
        }
        order
    });
    // The first layer is there already: it is read for its digest alone, and not synced again.
    let first = ImageStage::Layer { number: 1, count: 2 };
    assert_eq!(order, [first, second, ImageStage::Sync, ImageStage::Metadata, ImageStage::Sync]);
    let mut silent = Heard::default();
    assert!(place.store().resolve(&layout.reference(), &mut silent).unwrap().cached);
    assert_eq!(silent.phases, []);
}

#[test]
fn many_at_once_build_once() {
    let place = TestDir::default();
    let layout = place.layout(&[Tar::default().add(file("etc/name"), &vec![b'n'; 3 << 20]).end()]);
    let built: usize = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| usize::from(!place.resolve(&layout.reference()).unwrap().cached)))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).sum()
    });
    assert_eq!(built, 1);
    assert_eq!(place.leftovers().len(), 1);
}

#[test]
fn the_builtin_image_is_a_layout_of_the_caller() {
    let place = TestDir::default();
    let mut options = StoreOptions::new(place.cache());
    let store = Store::open(options.clone()).unwrap();
    let error = store.resolve(&Reference::BuiltinBusybox, &mut Silent).unwrap_err();
    assert!(matches!(error, ImageError::NoBuiltin));
    options.builtin = Some(place.layout(&[layer("builtin")]).dir);
    let store = Store::open(options).unwrap();
    assert_eq!(name_in(store.resolve(&Reference::BuiltinBusybox, &mut Silent).unwrap()), "builtin");
}

#[test]
fn a_directory_that_cannot_be_read() {
    let place = TestDir::default();
    let root = place.path("root");
    let reference = Reference::Rootfs { dir: root.clone() };
    assert!(refusal(&place, &reference).contains("root"));
    fs::write(&root, "x").unwrap();
    assert!(refusal(&place, &reference).contains("is not a directory"));
    fs::remove_file(&root).unwrap();
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/b/secret"), "x").unwrap();
    if !crate::support::is_root() {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(root.join("a/b/secret"), fs::Permissions::from_mode(0o000)).unwrap();
        assert!(
            refusal(&place, &reference).contains("cannot open")
                && refusal(&place, &reference).contains("a/b/secret")
        );
    }
    // What is mounted in it stays out: here nothing is, so everything is in.
    if crate::support::is_root() {
        let tree = contents_of(&place.resolve(&reference).unwrap());
        assert_eq!(tree[&b"a/b/secret"[..]].data, b"x");
    }
}

#[test]
fn an_unusable_cache_directory() {
    let place = TestDir::default();
    let layout = place.layout(&[layer("a")]);
    fs::write(place.cache(), "a file").unwrap();
    let error = Store::open(StoreOptions::new(place.cache())).unwrap_err();
    assert!(chain(&error).contains("cache is not a directory"), "{}", chain(&error));
    fs::remove_file(place.cache()).unwrap();
    let store = place.store();
    fs::write(place.cache(), "a file").unwrap();
    let error = store.resolve(&layout.reference(), &mut Silent).unwrap_err();
    assert!(matches!(error, ImageError::Cache { .. }), "{error:?}");
    fs::remove_file(place.cache()).unwrap();
    fs::create_dir(place.cache()).unwrap();
    fs::write(place.cache().join("version"), "nelly-cache 99\n").unwrap();
    let error = Store::open(StoreOptions::new(place.cache())).unwrap_err();
    assert!(chain(&error).contains("nelly-cache 99"), "{}", chain(&error));
}

/// A small file system of its own, which ends with the test.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk() {
    // Only root can mount one; others meet the same code through the limits.
    if !crate::support::is_root() {
        eprintln!("not root: no small file system to fill");
        return;
    }
    let place = TestDir::default();
    fs::create_dir(place.cache()).unwrap();
    crate::support::run(
        "mount",
        &["-t", "tmpfs", "-o", "size=2m,mode=700", "none", place.cache().to_str().unwrap()],
    );
    let small = Small(place.cache());
    let noise: Vec<u8> =
        (0..6_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
    let layout = place.layout(&[Tar::default().add(file("noise"), &noise).end()]);
    let archive = place.path("image.tar.gz");
    crate::support::run("tar", &["-C", layout.dir.to_str().unwrap(), "-czf", archive.to_str().unwrap(), "."]);
    let root = place.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("noise"), &noise).unwrap();
    for reference in [
        layout.reference(),
        Reference::OciArchive { file: archive, tag: None },
        Reference::Rootfs { dir: root },
    ] {
        let error = place.resolve(&reference).unwrap_err();
        // Before the disk is full for others, too.
        assert!(matches!(error, ImageError::DiskFull { .. }), "{}", chain(&error));
        assert!(chain(&error).contains("all but a sixteenth of what is free"), "{}", chain(&error));
        assert_eq!(error.code(), "disk_full");
        assert_eq!(place.leftovers(), NOTHING);
        // A process that another test makes at this moment holds our descriptors until its exec,
        // and with them what is deleted.
        let given_back = (0..600).any(|_| {
            let free = rustix::fs::statvfs(&small.0).unwrap();
            let enough = free.f_bavail * free.f_frsize > 2_000_000;
            if !enough {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            enough
        });
        assert!(given_back, "the space is given back");
    }
}

/// The other half of the test below: run by it in a process of its own, to be killed.
#[test]
fn helper_resolve() {
    let Some(dir) = std::env::var_os("NELLY_IMAGE_TEST_DIR") else { return };
    let dir = Path::new(&dir);
    let store = Store::open(StoreOptions::new(dir.join("cache"))).unwrap();
    let reference = Reference::OciLayout { dir: dir.join("layout"), tag: None };
    std::io::stderr().write_all(b"ready\n").unwrap();
    store.resolve(&reference, &mut Silent).unwrap();
}

#[test]
fn killed_at_any_moment() {
    use std::process::{Command, Stdio};
    let place = TestDir::default();
    let noise: Vec<u8> =
        (0..8_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
    let layout = place.layout(&[Tar::default().add(file("etc/name"), &noise).end()]);
    for round in 0..12_u64 {
        // The layer as well: it is the longest to write.
        for directory in ["images", "layers"] {
            let _ = fs::remove_dir_all(place.cache().join(directory));
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["helper_resolve", "--exact", "--nocapture"])
            .env("NELLY_IMAGE_TEST_DIR", place.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(round * 12));
        child.kill().unwrap();
        child.wait().unwrap();
        for left in place.leftovers() {
            let name = left.display().to_string();
            // A lock's name may stay; it holds nothing and the next run takes it. So may contents
            // whose list of changes did not come to be published; they are no layer. What is
            // published is whole.
            let whole = match left.extension().and_then(|suffix| suffix.to_str()) {
                Some("data") => left.metadata().unwrap().len() >= 8 << 20,
                Some("erofs") => true,
                _ => name.contains("/locks/") && left.metadata().unwrap().len() == 0,
            };
            assert!(whole, "{name}");
        }
        let image = place.resolve(&layout.reference()).unwrap();
        assert_eq!(name_in_bytes(image), noise.len());
        assert_eq!(place.leftovers().len(), 1, "{:?}", place.leftovers());
    }
}

fn name_in_bytes(image: nelly_image::Image) -> usize {
    contents_of(&image)[&b"etc/name"[..]].data.len()
}
