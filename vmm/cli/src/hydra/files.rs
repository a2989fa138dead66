//! The files of a machine that are not there: fetched, and taken out of an archive.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use nelly_fetch::{FetchError, Packing, Source, Wanted, archive_packing};
use nelly_hydra::{ArtifactLogin, Bare, Boots, Image, Machine};
use nelly_registry::FileCredentials;

use crate::context::Context;
use crate::fail::Hint;
use crate::fetch::{self, Fetching};

/// The header of the scripts' token.
const TOKEN: &str = "PRIVATE-TOKEN";

/// Has what a machine boots there, as far as `makes` says that something may be made.
///
/// # Errors
/// It is not there, and cannot be fetched.
pub(super) fn needed(machine: &Machine, makes: bool, context: &Context) -> Result<()> {
    let directory = &machine.directory.value;
    match &machine.boots {
        Boots::Image(image) => the_image(directory, image, makes, context),
        Boots::Bare(bare) => the_kernel(directory, bare, makes, context),
    }
}

fn the_image(directory: &Path, image: &Image, makes: bool, context: &Context) -> Result<()> {
    let path = directory.join(&image.file.value);
    if path.exists() {
        return Ok(());
    }
    let missing =
        format!("there is no image {} (DEFAULT_DIR_IMAGE and DEFAULT_IMAGE name it)", path.display());
    if !makes {
        return Err(Hint::error(missing, "without --dry-run, it is fetched"));
    }
    let url = format!("{}/{}", image.url.value.trim_end_matches('/'), image.packed.display());
    let source = fetch::source(&url, context).with_context(|| {
        format!("{missing}, and DEFAULT_IMAGE_SOURCE_URL does not say where it can be had")
    })?;
    let saved = Fetching::new(context, false).save(&fetch::wanted(&source), &fetch::room_for(&path)?);
    match saved {
        // Somebody else was faster.
        Ok(()) | Err(FetchError::Exists(_)) => Ok(()),
        Err(error) => {
            // What nothing came into was made for it.
            let _ = path.parent().map(std::fs::remove_dir);
            Err(fetch::failed(error, &source).context(missing))
        }
    }
}

fn the_kernel(directory: &Path, bare: &Bare, makes: bool, context: &Context) -> Result<()> {
    let files = [
        ("kernel", "DEFAULT_RIMD_KERNEL_FILENAME", &bare.kernel),
        ("initrd", "DEFAULT_RIMD_IMAGE_FILENAME", &bare.initrd),
    ];
    let missing = files.into_iter().find(|(.., file)| !directory.join(&file.value).exists());
    let Some((what, variable, file)) = missing else { return Ok(()) };
    let path = directory.join(&file.value);
    let missing = format!("there is no {what} {} (DEFAULT_DIR_IMAGE and {variable} name it)", path.display());
    if !makes {
        return Err(Hint::error(missing, "without --dry-run, the archive that has it is fetched"));
    }
    let archive = directory.join(&bare.artifact.value);
    let mut fetching = Fetching::new(context, false);
    if !archive.exists() {
        let failed =
            || format!("{missing}, and the archive that has it (DEFAULT_RIMD_ARTIFACT_URL) was not fetched");
        let source = fetch::source(&bare.artifact_url.value, context).with_context(failed)?;
        let credentials = credentials(bare)?;
        let wanted = Wanted {
            credentials: credentials.as_ref(),
            packing: Some(Packing::None),
            disk: false,
            ..fetch::wanted(&source)
        };
        match fetching.save(&wanted, &fetch::room_for(&archive)?) {
            Ok(()) | Err(FetchError::Exists(_)) => {}
            Err(error) => {
                let _ = archive.parent().map(std::fs::remove_dir);
                return Err(login(error, &source).context(failed()));
            }
        }
    }
    let optional = bare.disk.source == nelly_hydra::Source::Default;
    for (file, optional) in [(&bare.kernel, false), (&bare.initrd, false), (&bare.disk, optional)] {
        take_out(&mut fetching, &archive, directory, &file.value, optional)?;
    }
    Ok(())
}

/// Takes a file out of an archive, unless it is there.
fn take_out(
    fetching: &mut Fetching,
    archive: &Path,
    directory: &Path,
    name: &Path,
    optional: bool,
) -> Result<()> {
    let target = directory.join(name);
    if target.exists() {
        return Ok(());
    }
    let source = Source::File(archive.to_owned());
    let member = name.to_str().ok_or_else(|| anyhow!("{} is no text in UTF-8", name.display()))?;
    let failed = |error: FetchError| {
        let hint = format!(
            "zip and tar archives are unpacked here; with its files below {}, none is needed",
            directory.display()
        );
        let what = format!("cannot take {member} out of {}", archive.display());
        Hint::error(format!("{what}: {}", nelly_vmm::text::chain(&error)), hint)
    };
    // One that is neither is unpacked as zip, which says what is wrong with it.
    let packing = archive_packing(archive).map_err(failed)?.unwrap_or(Packing::Zip);
    let wanted =
        Wanted { packing: Some(packing), member: Some(member), disk: false, ..fetch::wanted(&source) };
    match fetching.save(&wanted, &fetch::room_for(&target)?) {
        Ok(()) | Err(FetchError::Exists(_)) => Ok(()),
        Err(FetchError::NoMember { .. }) if optional => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// What the archive's server is shown.
fn credentials(bare: &Bare) -> Result<Option<FileCredentials>> {
    let (credentials, names) = match &bare.artifact_login {
        None => return Ok(None),
        Some(ArtifactLogin::Token(token)) => {
            // A line's end in it would be another header.
            (FileCredentials::parse(&format!("header {TOKEN}: {}", token.value)), "RIMD_ARTIFACT_URL_TOKEN")
        }
        Some(ArtifactLogin::User(user, password)) => {
            let basic = FileCredentials::Basic { user: user.value.clone(), password: password.clone() };
            (Some(basic).filter(|_| !user.value.contains(':')), "RIMD_ARTIFACT_URL_USER")
        }
    };
    credentials.map(Some).ok_or_else(|| anyhow!("{names} has characters that cannot be sent"))
}

fn login(error: FetchError, source: &Source) -> anyhow::Error {
    if error.code() == "registry_denied" {
        let hint = "RIMD_ARTIFACT_URL_TOKEN, or RIMD_ARTIFACT_URL_USER and RIMD_ARTIFACT_URL_PASS, are what it is shown";
        return Hint::error(nelly_vmm::text::chain(&error), hint);
    }
    fetch::failed(error, source)
}
