//! Commands that add images to the local store and unpack them into the cache, several at once,
//! and are killed: what has a name there is whole, and the next command goes on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use nelly_image::Digest;
use nelly_tests::random::Numbers;
use nelly_tests::{Done, Watchdog, nelly, run, wait};
use rustix::process::Pid;
use serde_json::{Value, json};

use crate::{LIMIT, TEST_LIMIT, alone, moments, processes};

/// Images, which share their lowest layer.
const IMAGES: usize = 4;

/// Bytes of the file in each of their layers.
const LAYER: usize = 1 << 20;

/// A place for images and sandboxes.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn ask(&self, words: &[&str]) -> Done {
        run(&mut nelly(self.path(), words), b"", LIMIT)
    }

    #[track_caller]
    fn out(&self, words: &[&str]) -> String {
        self.ask(words).expect(0).out().trim_end().to_owned()
    }

    /// Names and bytes of the files in a directory, which need not be there.
    fn files(&self, directory: &str) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.path().join(directory)).into_iter().flatten();
        entries
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
            })
            .collect()
    }
}

/// Writes an OCI archive of an image, and says where.
fn archive(place: &Path, number: usize, random: &mut Numbers) -> PathBuf {
    let layout = place.join(format!("layout{number}"));
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let digest = Digest::sha256(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": bytes.len() })
    };
    let mut layers = Vec::new();
    for layer in 0..3 {
        // The lowest one is the same in all.
        let name = if layer == 0 { "shared".to_owned() } else { format!("{number}-{layer}") };
        let tar = place.join(format!("{name}.tar"));
        if !tar.exists() {
            let bytes: Vec<u8> = (0..LAYER / 8).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect();
            fs::write(place.join(&name), bytes).unwrap();
            let mut command = std::process::Command::new("tar");
            command.arg("-C").arg(place).arg("-cf").arg(&tar).arg(&name);
            run(&mut command, b"", LIMIT).expect(0);
        }
        layers.push(blob(&fs::read(tar).unwrap(), "layer.v1.tar"));
    }
    let diffs: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({ "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/init"] },
        "rootfs": { "type": "layers", "diff_ids": diffs } });
    let config = blob(config.to_string().as_bytes(), "config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": format!("app{number}:1") });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let tar = place.join(format!("app{number}.tar"));
    let mut command = std::process::Command::new("tar");
    command.arg("-C").arg(&layout).arg("-cf").arg(&tar).arg(".");
    run(&mut command, b"", LIMIT).expect(0);
    tar
}

/// The directories of the cache in which a name says that a file is whole.
const CACHE: [&str; 2] = ["cache/images", "cache/layers"];

/// What a store without any trouble makes of the images.
struct Reference(Vec<BTreeMap<String, Vec<u8>>>);

impl Reference {
    fn of(archives: &[PathBuf]) -> Self {
        let home = Home::new();
        for (number, archive) in archives.iter().enumerate() {
            home.out(&["image", "load", "-q", "-i", archive.to_str().unwrap()]);
            home.out(&["create", &format!("--name=box{number}"), &format!("app{number}:1")]);
        }
        let made = Self(CACHE.map(|directory| home.files(directory)).to_vec());
        assert!(made.0.iter().all(|files| files.len() >= IMAGES), "the cache is somewhere else");
        made
    }

    /// Asserts that whatever has a name is whole.
    fn check(&self, home: &Home, what: &str) {
        for (name, bytes) in home.files("data/images/blobs/sha256") {
            assert_eq!(Digest::sha256(&bytes).hex(), name, "{what}");
        }
        for (directory, whole) in CACHE.iter().zip(&self.0) {
            for (name, bytes) in home.files(directory) {
                assert!(whole.get(&name) == Some(&bytes), "{what}: {directory}/{name} is not what it was");
            }
        }
    }
}

/// Starts what adds or removes an image.
fn act(home: &Home, archives: &[PathBuf], random: &mut Numbers, moment: u64) -> (String, Child) {
    let number = usize::try_from(random.below(IMAGES as u64)).unwrap();
    let (path, name) = (archives[number].display().to_string(), format!("app{number}:1"));
    let sandbox = format!("--name=box{moment}-{}", random.below(1 << 30));
    let words: Vec<&str> = match random.below(10) {
        0..4 => vec!["image", "load", "-q", "-i", &path],
        4..8 => vec!["create", &sandbox, &name],
        8 => vec!["image", "rm", "-f", &name],
        _ => vec!["image", "prune", "-a"],
    };
    let mut command = nelly(home.path(), &words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    (format!("{} {number}", words[..2].join(" ")), command.spawn().unwrap())
}

#[test]
fn what_has_a_name_in_store_and_cache_is_whole() {
    let _alone = alone();
    let _clock = Watchdog::new(TEST_LIMIT);
    let mut random = Numbers::seeded("NELLY_KILLS_SEED");
    let place = tempfile::tempdir().unwrap();
    let archives: Vec<_> = (0..IMAGES).map(|number| archive(place.path(), number, &mut random)).collect();
    let reference = Reference::of(&archives);
    let home = Home::new();
    let mut killed = 0;
    for moment in 0..moments(3) {
        let several = 1 + random.below(4);
        let (names, mut children): (Vec<_>, Vec<_>) =
            (0..several).map(|_| act(&home, &archives, &mut random, moment)).unzip();
        let delay = Duration::from_millis(random.below(60));
        let what = format!("moment {moment}: {names:?} after {delay:?}");
        println!("{what}");
        thread::sleep(delay);
        // The first one, or all of them.
        let victims = if random.below(3) == 0 { children.len() } else { 1 };
        for child in &mut children[..victims] {
            killed += u64::from(child.try_wait().unwrap().is_none());
            processes::kill(Pid::from_child(child));
        }
        for child in &mut children {
            wait(child, LIMIT);
        }
        processes::none_is_left(&what);
        reference.check(&home, &what);
        // What was half done is done again, by the same means; what is listed is there.
        let number = usize::try_from(random.below(IMAGES as u64)).unwrap();
        home.out(&["image", "load", "-q", "-i", archives[number].to_str().unwrap()]);
        home.out(&["create", &format!("--name=again{moment}"), &format!("app{number}:1")]);
        for name in home.out(&["image", "ls", "--json"]).parse::<Value>().unwrap().as_array().unwrap() {
            let saved = home.path().join("saved.tar");
            home.out(&["image", "save", "-o", saved.to_str().unwrap(), name["name"].as_str().unwrap()]);
            fs::remove_file(saved).unwrap();
        }
        for box_name in home.out(&["ps", "-aq"]).lines() {
            home.out(&["rm", "-f", box_name]);
        }
        reference.check(&home, &what);
    }
    // In the end all is there, and what was begun is nowhere.
    for (number, archive) in archives.iter().enumerate() {
        home.out(&["image", "load", "-q", "-i", archive.to_str().unwrap()]);
        home.out(&["create", &format!("--name=box{number}"), &format!("app{number}:1")]);
    }
    for (directory, whole) in CACHE.iter().zip(&reference.0) {
        assert!(&home.files(directory) == whole, "{directory}");
    }
    for directory in ["data/images/partial", "cache/scratch", "cache/locks"] {
        assert_eq!(home.files(directory).keys().collect::<Vec<_>>(), Vec::<&String>::new(), "{directory}");
    }
    println!("load: {} moments of images: {killed} commands were killed before their end", moments(3));
    assert!(killed > 0);
}
