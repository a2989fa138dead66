//! Layers that images share in the cache.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nelly_image::Image;

use crate::support::image::{Layout, Pack, TestDir, Whole, contents_of};
use crate::support::tarball::{Tar, dir, file, hard_link, symlink};

/// A layer with one file of its own, and one that all of them have.
fn layer(number: usize) -> Vec<u8> {
    let own = format!("layers/{number}");
    Tar::default()
        .empty(dir("layers"))
        .add(file(&own), own.as_bytes())
        .add(file("last"), &number.to_le_bytes())
        .end()
}

fn layout(place: &TestDir, name: &str, layers: &[Vec<u8>]) -> Layout {
    let layers: Vec<_> = layers.iter().map(|tar| (tar.clone(), Pack::Gzip)).collect();
    Layout::with(&place.path(name), &layers, "{}")
}

fn resolve(place: &TestDir, name: &str, layers: &[Vec<u8>]) -> Image {
    place.resolve(&layout(place, name, layers).reference()).unwrap()
}

fn inodes(image: &Image) -> Vec<u64> {
    image.disk.iter().map(|file| file.metadata().unwrap().ino()).collect()
}

#[test]
fn images_share_the_files_of_their_common_layers_and_say_what_they_say_alone() {
    let place = TestDir::default();
    let base = Tar::default()
        .add(file("usr/lib/libc.so"), &[7; 100_000])
        .empty(symlink("lib", "usr/lib"))
        .add(file("etc/secret"), b"hidden later")
        .end();
    let tools = Tar::default().add(file("lib/tool"), b"through a link of the layer below").end();
    let hide = Tar::default().add(file("etc/.wh.secret"), b"").empty(hard_link("tool", "usr/lib/tool")).end();
    let one = resolve(&place, "one", &[base.clone(), tools.clone(), hide.clone()]);
    let two = resolve(&place, "two", &[base.clone(), tools.clone()]);
    // A layer whose path leads elsewhere above another base.
    let plain = Tar::default().add(file("lib/other"), b"a directory here").end();
    let three = resolve(&place, "three", &[plain, tools.clone()]);
    assert!(!one.cached && !two.cached && !three.cached);
    assert_eq!(inodes(&one)[1..3], inodes(&two)[1..3]);
    assert_eq!(inodes(&one)[2], inodes(&three)[2]);
    assert_ne!(inodes(&one)[0], inodes(&two)[0]);
    // The last layer of the first image has no contents, and so no file.
    assert_eq!((one.disk.len(), two.disk.len()), (3, 3));
    let names = |image: &Image| -> Vec<String> {
        let names = contents_of(image).into_keys().filter(|name| !name.is_empty());
        names.map(|name| String::from_utf8(name).unwrap()).collect()
    };
    assert_eq!(names(&one), ["etc", "lib", "tool", "usr", "usr/lib", "usr/lib/libc.so", "usr/lib/tool"]);
    assert_eq!(
        names(&two),
        ["etc", "etc/secret", "lib", "usr", "usr/lib", "usr/lib/libc.so", "usr/lib/tool"]
    );
    assert_eq!(names(&three), ["lib", "lib/other", "lib/tool"]);
    // What was made of kept changes is what is made of the archives.
    for (name, image, layers) in
        [("one", &one, vec![base.clone(), tools.clone(), hide]), ("two", &two, vec![base, tools])]
    {
        let fresh = TestDir::default();
        let again = resolve(&fresh, name, &layers);
        assert!(Whole::of(&again).bytes() == Whole::of(image).bytes(), "{name}");
    }
}

#[test]
fn a_hundred_and_twenty_layers_and_more_are_one_disk_of_few_files() {
    for count in [1, 100, 101, 120, 250] {
        let place = TestDir::default();
        let layers: Vec<_> = (0..count).map(layer).collect();
        let image = resolve(&place, "many", &layers);
        assert!(image.disk.len() <= 101, "{count} layers: {} files", image.disk.len());
        if count <= 100 {
            assert_eq!(image.disk.len(), count + 1);
        }
        let whole = Whole::of(&image);
        crate::support::fsck(whole.path());
        let tree = whole.reader().tree();
        for number in 0..count {
            let name = format!("layers/{number}");
            assert_eq!(tree[name.as_bytes()].data, name.as_bytes(), "{count}");
        }
        assert_eq!(tree[&b"last"[..]].data, (count - 1).to_le_bytes());
        assert_eq!(tree.len(), count + 3);
    }
}

#[test]
fn damaged_layers_are_made_anew() {
    let place = TestDir::default();
    let layers = [layer(0), layer(1)];
    let good = Whole::of(&resolve(&place, "good", &layers)).bytes();
    let kept: Vec<PathBuf> =
        fs::read_dir(place.cache().join("layers")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 4);
    let write = |path: &PathBuf, bytes: &[u8]| {
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for path in &kept {
        let whole = fs::read(path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let changes = path.extension().is_some_and(|suffix| suffix == "changes");
        let mut damages =
            vec![Vec::new(), whole[..whole.len() - 1].to_vec(), [&whole[..], &[0; 4096]].concat()];
        if changes {
            damages.push(flipped);
        }
        for damage in damages {
            // The image of these layers, and another one that has them.
            for name in ["good", "longer"] {
                write(path, &damage);
                for entry in fs::read_dir(place.cache().join("images")).unwrap() {
                    fs::remove_file(entry.unwrap().path()).unwrap();
                }
                let more = [layers.as_slice(), &[layer(2)]].concat();
                let image = resolve(&place, name, if name == "good" { &layers } else { &more });
                if name == "good" {
                    assert!(Whole::of(&image).bytes() == good, "{}", path.display());
                }
                assert!(fs::read(path).unwrap() == whole, "{}", path.display());
            }
        }
        // One of the two is no layer.
        fs::remove_file(path).unwrap();
        fs::remove_dir_all(place.cache().join("images")).unwrap();
        resolve(&place, "good", &layers);
        assert!(fs::read(path).unwrap() == whole, "{}", path.display());
    }
    // A cached image without the contents of a layer is none.
    let data = kept.iter().find(|path| path.extension().is_some_and(|suffix| suffix == "data")).unwrap();
    fs::remove_file(data).unwrap();
    let again = resolve(&place, "good", &layers);
    assert!(!again.cached && Whole::of(&again).bytes() == good);
}

#[test]
fn limits_count_over_all_layers_kept_ones_too() {
    let layers: Vec<_> = (0..3).map(layer).collect();
    let mut place = TestDir::default();
    resolve(&place, "lower", &layers[..2]);
    let used = resolve(&place, "all", &layers).disk_bytes;
    for (limit, fits) in [(used, true), (used - 1, false)] {
        place.limits.disk_bytes = limit;
        fs::remove_dir_all(place.cache().join("images")).unwrap();
        let resolved = place.resolve(&layout(&place, "all", &layers).reference());
        assert_eq!(resolved.is_ok(), fits, "{limit}");
    }
    place.limits.disk_bytes = used;
    place.limits.entries = 4;
    let error = place.resolve(&layout(&place, "all", &layers).reference()).unwrap_err();
    let text = crate::support::image::chain(&error);
    assert!(text.contains("limit `entries`"), "{text}");
}

/// What is kept of a layer beside its contents has limits, also when nothing of it is in the image.
#[test]
fn entries_that_change_nothing_cost_as_others_do() {
    let root = format!("{}.", "./".repeat(1500));
    let mut place = TestDir::default();
    for (entry, limit) in [(dir(&root), "entries"), (dir(&root), "metadata_bytes")] {
        place.limits = nelly_image::Limits::default();
        match limit {
            "entries" => place.limits.entries = 50,
            _ => place.limits.metadata_bytes = 100_000,
        }
        let mut tar = Tar::default();
        for _ in 0..600 {
            tar.empty(entry.clone());
        }
        let error = place.resolve(&layout(&place, limit, &[layer(0), tar.end()]).reference()).unwrap_err();
        let text = crate::support::image::chain(&error);
        assert!(text.contains(&format!("limit `{limit}`")), "{text}");
        // Of an image that is refused nothing stays, not even its good layers.
        assert_eq!(fs::read_dir(place.cache().join("layers")).unwrap().count(), 0);
    }
}
