//! Finding images by what a person writes, and removing them.

use std::collections::HashSet;
use std::path::PathBuf;

use super::adding::{lock_index, write_index};
use super::{LocalError, LocalStore, StoredImage, read_index};
use crate::digest::Digest;
use crate::name::{ImageName, NameError};

/// Fewest digits of an abbreviated id.
const PREFIX_MIN: usize = 4;

/// What kept sandboxes use, which is not removed: looked up after [`LocalStore::removing`].
#[derive(Clone, Debug, Default)]
pub struct InUse {
    /// The digests of their images: of manifests, or of what their names lead to.
    pub digests: HashSet<Digest>,
    /// The files of the cache of which their disks consist.
    pub paths: HashSet<PathBuf>,
}

/// The image that a word means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// The image, under the name that the word is, or else under any.
    pub image: StoredImage,
    /// Whether the word is a name, and not an id or the beginning of one.
    pub by_name: bool,
    /// How many names the image has.
    pub names: usize,
}

/// What a removal did to the list of images.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removal {
    /// Names that mean nothing any more.
    pub names: Vec<ImageName>,
    /// The image that no name leads to any more; `None` while it has another name.
    pub digest: Option<Digest>,
}

/// The digits of an id or of its beginning.
fn id_prefix(word: &str) -> Option<&str> {
    let digits = word.strip_prefix("sha256:").unwrap_or(word);
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (digits.len() >= PREFIX_MIN && digits.bytes().all(hex)).then_some(digits)
}

fn found(images: &[StoredImage], image: &StoredImage, by_name: bool) -> Found {
    let same =
        |other: &&StoredImage| other.name.is_some() && other.descriptor.digest == image.descriptor.digest;
    Found { image: image.clone(), by_name, names: images.iter().filter(same).count() }
}

fn look_up(images: &[StoredImage], word: &str) -> Result<Found, LocalError> {
    let none = || LocalError::NoImage(word.chars().take(160).collect());
    match word.parse::<ImageName>() {
        Ok(name) => {
            let canonical = name.canonical();
            let named = |image: &&StoredImage| {
                image.name.as_ref().is_some_and(|other| match name.digest() {
                    Some(digest) => {
                        image.descriptor.digest == *digest && other.repository() == name.repository()
                    }
                    None => other.canonical() == canonical,
                })
            };
            if let Some(image) = images.iter().find(named) {
                return Ok(found(images, image, true));
            }
        }
        Err(NameError::Id(_)) => {}
        Err(_) if id_prefix(word).is_none() => return Err(none()),
        Err(_) => {}
    }
    let prefix = id_prefix(word).ok_or_else(none)?;
    let meant = |image: &&StoredImage| image.descriptor.digest.hex().starts_with(prefix);
    let mut all = images.iter().filter(meant);
    let first = all.next().ok_or_else(none)?;
    if all.any(|image| image.descriptor != first.descriptor) {
        return Err(LocalError::SeveralImages(word.to_owned()));
    }
    Ok(found(images, first, false))
}

impl LocalStore {
    /// The image that `word` means: a name, or the first digits, at least four, of an image's
    /// digest.
    ///
    /// # Errors
    /// [`LocalError`]: there is none, there are several, or the list cannot be read.
    pub fn look_up(&self, word: &str) -> Result<Found, LocalError> {
        look_up(&self.list()?, word)
    }

    /// The digests by which a sandbox may use an image: its own, and those of its platforms.
    fn digests_of(&self, image: &StoredImage) -> Result<HashSet<Digest>, LocalError> {
        let mut digests = self.children(&image.descriptor.digest)?;
        digests.insert(image.descriptor.digest);
        Ok(digests)
    }

    fn is_used(&self, image: &StoredImage, in_use: &InUse) -> Result<bool, LocalError> {
        if in_use.digests.is_empty() {
            return Ok(false);
        }
        Ok(!self.digests_of(image)?.is_disjoint(&in_use.digests))
    }

    /// Removes a name, or by an id the image with its one name or, with `force`, with all of them.
    /// Blobs stay until [`LocalStore::collect`].
    ///
    /// # Errors
    /// [`LocalError`]: there is no such image, a sandbox uses it and this is its last name, or it
    /// has several names and there is no `force`.
    pub fn remove(&self, word: &str, force: bool, in_use: &InUse) -> Result<Removal, LocalError> {
        let Some(dir) = &self.dir else { return Err(LocalError::NoImage(word.to_owned())) };
        let held = lock_index(dir)?;
        let found = self.look_up(word)?;
        let image = found.image;
        let mut index = read_index(dir)?;
        if !found.by_name && found.names > 1 && !force {
            return Err(LocalError::SeveralNames(word.to_owned()));
        }
        let canonical = image.name.as_ref().filter(|_| found.by_name).map(ImageName::canonical);
        let names = index.remove(canonical.as_deref(), &image.descriptor.digest);
        let gone = !index.has(&image.descriptor.digest);
        if gone && self.is_used(&image, in_use)? {
            return Err(LocalError::InUse(word.to_owned()));
        }
        write_index(dir, &index, &held)?;
        Ok(Removal { names, digest: gone.then_some(image.descriptor.digest) })
    }

    /// Removes images that have no name, or with `all` every image that no sandbox uses, from the
    /// list. Returns their digests.
    ///
    /// # Errors
    /// [`LocalError`]: the list cannot be read or written.
    pub fn remove_unused(&self, all: bool, in_use: &InUse) -> Result<Vec<Digest>, LocalError> {
        let Some(dir) = &self.dir else { return Ok(Vec::new()) };
        let held = lock_index(dir)?;
        let mut index = read_index(dir)?;
        let mut removed = Vec::new();
        for image in self.list()? {
            if (all || image.name.is_none()) && !self.is_used(&image, in_use)? {
                index.remove(None, &image.descriptor.digest);
                removed.push(image.descriptor.digest);
            }
        }
        if !removed.is_empty() {
            write_index(dir, &index, &held)?;
        }
        removed.sort();
        removed.dedup();
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::Descriptor;

    #[test]
    fn words_are_names_before_they_are_ids() {
        let image = |name: Option<&str>, text: &str| StoredImage {
            name: name.map(|name| name.parse().unwrap()),
            descriptor: Descriptor {
                media_type: String::new(),
                digest: Digest::sha256(text.as_bytes()),
                size: 1,
            },
        };
        let hex = Digest::sha256(b"one").hex();
        let (one, two, three) =
            (image(Some("app:1"), "one"), image(Some(&hex[..6]), "two"), image(None, "three"));
        let images = [one.clone(), two.clone(), three.clone(), image(Some("other"), "one")];
        let found = |word: &str| look_up(&images, word);
        let named = |image: &StoredImage, names| Found { image: image.clone(), by_name: true, names };
        assert_eq!(found("app:1").unwrap(), named(&one, 2));
        assert_eq!(found(&format!("app@{}", one.descriptor.digest)).unwrap(), named(&one, 2));
        assert_eq!(found(&hex[..6]).unwrap(), named(&two, 1));
        for id in [&hex[..8], &hex, &format!("sha256:{hex}"), &format!("sha256:{}", &hex[..4])] {
            assert_eq!(found(id).unwrap(), Found { by_name: false, ..named(&one, 2) }, "{id}");
        }
        let unnamed = found(&three.descriptor.digest.hex()[..12]).unwrap();
        assert_eq!(unnamed, Found { by_name: false, ..named(&three, 0) });
        for word in ["app", "abc", "ffffff", "", "Not a name", &hex[..3]] {
            assert!(matches!(found(word), Err(LocalError::NoImage(_))), "{word}");
        }
        let many: Vec<StoredImage> = (0..70_000).map(|n| image(None, &n.to_string())).collect();
        let prefix = &many[0].descriptor.digest.hex()[..4];
        assert!(matches!(look_up(&many, prefix), Err(LocalError::SeveralImages(_))));
    }
}
