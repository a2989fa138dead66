//! Pushing images of the local store.

use std::fs::File;
use std::io::{self, Read};

use nelly_image::{Descriptor, Document, ImageName, Limits, LocalError, LocalStore};

use crate::client::Client;
use crate::endpoint::Place;
use crate::error::RegistryError;
use crate::pull::TransferError;
use crate::transfer::{self, Step, Transfer, Watch};

/// An image that was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pushed {
    /// Its manifest, as the registry has it now.
    pub manifest: Descriptor,
    /// Number of layers.
    pub layers: usize,
    /// Bytes of its configuration and layers, as they are stored.
    pub size_bytes: u64,
    /// Bytes of these that the registry did not have.
    pub transferred_bytes: u64,
}

/// One push.
struct Push<'a> {
    client: &'a Client,
    store: &'a LocalStore,
    place: Place,
    name: String,
}

/// Pushes the image `name` of the store to a registry as `target`. Of an image for several
/// platforms that of this host is pushed.
///
/// # Errors
/// [`TransferError`]; the name in the registry is changed last.
pub fn push(
    client: &Client,
    store: &LocalStore,
    name: &ImageName,
    target: &ImageName,
    watch: &mut dyn Watch,
) -> Result<Pushed, TransferError> {
    let pushed = push_watched(client, store, name, target, watch);
    client.take_warnings().iter().for_each(|warning| watch.warn(warning));
    pushed
}

fn push_watched(
    client: &Client,
    store: &LocalStore,
    name: &ImageName,
    target: &ImageName,
    watch: &mut dyn Watch,
) -> Result<Pushed, TransferError> {
    let place = Place::new(target.domain(), target.path())?;
    let push = Push { client, store, place, name: name.familiar() };
    let found = store.find(name).map_err(|source| push.failed(source))?;
    let at = found.ok_or_else(|| TransferError::NotStored { name: push.name.clone() })?;
    let (manifest, bytes, config, layers) = push.documents(at)?;
    if let Some(digest) = target.digest().filter(|digest| **digest != manifest.digest) {
        let problem = "has a digest that is not that of the image; push to a tag";
        return Err(RegistryError::Name { word: digest.to_string(), problem }.into());
    }
    let mut blobs: Vec<Descriptor> = Vec::with_capacity(layers.len() + 1);
    for blob in layers.iter().chain([&config]) {
        if !blobs.iter().any(|known| known.digest == blob.digest) {
            blobs.push(blob.clone());
        }
    }
    // Before anything is sent.
    for blob in &blobs {
        push.open(blob)?;
    }
    let transfers: Vec<Transfer> = blobs.into_iter().map(Transfer::new).collect();
    transfer::all(&transfers, watch, |transfer, give_up| push.send(transfer, give_up))?;
    let digest = manifest.digest.to_string();
    let reference = target.tag().unwrap_or(if target.digest().is_some() { &digest } else { "latest" });
    client.put_manifest(&push.place, reference, &manifest.media_type, &bytes)?;
    let sum = |wanted: &dyn Fn(&Transfer) -> bool| {
        transfers.iter().filter(|transfer| wanted(transfer)).map(|transfer| transfer.blob.size).sum()
    };
    Ok(Pushed {
        manifest,
        layers: layers.len(),
        size_bytes: sum(&|_| true),
        transferred_bytes: sum(&|transfer| transfer.step() == Step::Done),
    })
}

/// A file that tells how far it was read, and ends when that is wanted.
struct Told<'a> {
    file: File,
    transfer: &'a Transfer,
    over: &'a dyn Fn() -> bool,
}

impl Read for Told<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.over)() {
            return Err(io::Error::other("given up"));
        }
        let got = self.file.read(buffer)?;
        self.transfer.at((self.transfer.done() + got as u64).min(self.transfer.blob.size));
        Ok(got)
    }
}

impl Push<'_> {
    fn failed(&self, source: LocalError) -> TransferError {
        TransferError::Store { dir: self.store.path().to_owned(), source }
    }

    fn not_whole(&self, blob: &Descriptor) -> TransferError {
        TransferError::NotWhole { name: self.name.clone(), missing: blob.digest.to_string() }
    }

    fn open(&self, blob: &Descriptor) -> Result<File, TransferError> {
        match self.store.blob(&blob.digest).map_err(|source| self.failed(source))? {
            Some((file, size)) if size == blob.size => Ok(file),
            _ => Err(self.not_whole(blob)),
        }
    }

    /// Follows indexes to the manifest; with its bytes, the configuration and the layers.
    fn documents(
        &self,
        mut at: Descriptor,
    ) -> Result<(Descriptor, Vec<u8>, Descriptor, Vec<Descriptor>), TransferError> {
        let limits = Limits::default();
        loop {
            let bytes = self.store.read_blob(&at.digest, limits.json_bytes);
            let bytes = bytes.map_err(|source| self.failed(source))?.ok_or_else(|| self.not_whole(&at))?;
            let document = Document::read(&at.media_type, &bytes, None, &limits)
                .map_err(|source| TransferError::Image { name: self.name.clone(), source })?;
            match document {
                Document::Image { config, layers } => return Ok((at, bytes, config, layers)),
                // An index cannot hold its own digest, so this ends.
                Document::Index(next) => at = next,
                _ => unreachable!("a document is an index or an image"),
            }
        }
    }

    /// Sends one blob, unless the registry has it.
    fn send(&self, transfer: &Transfer, give_up: &dyn Fn() -> bool) -> Result<(), TransferError> {
        let blob = &transfer.blob;
        if self.client.has_blob(&self.place, &blob.digest)? {
            transfer.begins(Step::There);
            return Ok(());
        }
        transfer.begins(Step::Running);
        let over = || give_up() || self.client.cancel().is_cancelled();
        let mut failed = None;
        let mut open = || {
            transfer.at(0);
            match self.open(blob) {
                Ok(file) => Some(Told { file, transfer, over: &over }),
                Err(error) => {
                    failed = Some(error);
                    None
                }
            }
        };
        let sent = self.client.upload_blob(&self.place, &blob.digest, blob.size, &mut open);
        if let Some(error) = failed {
            return Err(error);
        }
        sent?;
        transfer.begins(Step::Done);
        Ok(())
    }
}
