//! Archives of images that are refused.

use nelly_image::Digest;

use super::image::{Layout, gzip};
use super::tarball::{Tar, file};

/// Hostile and damaged archives, and a part of what is said of each.
pub fn archives() -> Vec<(Vec<u8>, &'static str)> {
    let layer = |text: &str| Tar::default().add(file("name"), text.as_bytes()).end();
    let archive = |items: &str, layer: &[u8], id: &[u8]| {
        let config = Layout::config(&[Digest::sha256(id)], "{}");
        let mut tar = Tar::default();
        tar.add(file("c.json"), config.as_bytes()).add(file("l.tar"), layer);
        tar.add(file("manifest.json"), items.as_bytes()).end()
    };
    let item = r#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":["l.tar"]}]"#;
    let good = archive(item, &layer("x"), &layer("x"));
    let (short, cut) = (gzip(&good), gzip(&good));
    // One layer is in the store already when the next one turns out to be another.
    let half = {
        let config = Layout::config(&[Digest::sha256(&layer("x")), Digest::sha256(&layer("y"))], "{}");
        let item = r#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":["l.tar","m.tar"]}]"#;
        let mut tar = Tar::default();
        tar.add(file("c.json"), config.as_bytes()).add(file("l.tar"), &layer("x"));
        tar.add(file("m.tar"), &layer("z")).add(file("manifest.json"), item.as_bytes()).end()
    };
    vec![
        (half, "they are corrupt"),
        (archive(item, &layer("x"), &layer("y")), "they are corrupt"),
        (
            archive(&item.replace("app:1", "../../etc"), &layer("x"), &layer("x")),
            "names an image `../../etc`",
        ),
        (archive(&item.replace("l.tar", "../../../etc/passwd"), &layer("x"), &layer("x")), "does not exist"),
        (archive(&item.replace("l.tar", "none.tar"), &layer("x"), &layer("x")), "none.tar"),
        (archive("[]", &layer("x"), &layer("x")), "lists no image"),
        (archive("{", &layer("x"), &layer("x")), "not valid JSON"),
        (good[..700].to_vec(), "not a usable tar archive"),
        (short[..short.len() / 2].to_vec(), "cannot read the archive"),
        ([&cut[..20], &[0xff; 40], &cut[60..]].concat(), "cannot read the archive"),
        (b"no archive".to_vec(), "not a usable tar archive"),
        (Vec::new(), "is empty"),
        (b"BZh91AY".to_vec(), "bzip2"),
    ]
}
