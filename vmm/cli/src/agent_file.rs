//! The agent's program, as the installed initramfs has it.

use anyhow::{Context as _, Result, anyhow, bail};
use nelly_sandbox::spec::installation::Search;

use crate::advice;
use crate::assets;
use crate::fail::Hint;

/// Bytes of a member's header, and what it begins with.
const HEADER: usize = 110;
const MAGIC: &[u8] = b"070701";

/// The agent's name in the initramfs, as the kernel starts it.
const INIT: &[u8] = b"init";

/// The program, which is the first of the installed initramfs.
///
/// # Errors
/// The installation has no initramfs, or that one no program.
pub(crate) fn read(search: &Search) -> Result<Vec<u8>> {
    let (directory, manifest) = assets::manifest(search)?;
    let path = directory.join(&manifest.initramfs);
    let archive = std::fs::read(&path);
    let archive = archive.with_context(|| format!("cannot read the agent from {}", path.display()))?;
    program(&archive)
        .map(<[u8]>::to_vec)
        .map_err(|why| Hint::error(format!("{} has no agent: {why}", path.display()), advice::install()))
}

/// The program in an archive of the form "newc" (cpio(5)).
fn program(mut archive: &[u8]) -> Result<&[u8]> {
    let cut = || anyhow!("it is cut");
    loop {
        let header = archive.get(..HEADER).ok_or_else(cut)?;
        if !header.starts_with(MAGIC) {
            bail!("it is no archive of the kind that Nelly makes");
        }
        let number = |field: usize| {
            let digits = std::str::from_utf8(&header[6 + 8 * field..][..8]).ok();
            digits.and_then(|digits| usize::from_str_radix(digits, 16).ok()).ok_or_else(cut)
        };
        let (size, name) = (number(6)?, number(11)?);
        let from = (HEADER + name).next_multiple_of(4);
        let to = from.checked_add(size).ok_or_else(cut)?;
        let name = archive.get(HEADER..HEADER + name).ok_or_else(cut)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let data = archive.get(from..to).ok_or_else(cut)?;
        if name.strip_prefix(b"/").unwrap_or(name) == INIT {
            if !data.starts_with(b"\x7fELF") {
                bail!("its init is no program");
            }
            return Ok(data);
        }
        if name == b"TRAILER!!!" {
            bail!("it has no init");
        }
        archive = archive.get(to.next_multiple_of(4)..).ok_or_else(cut)?;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// An archive as the product's is made.
    fn archive(init: &[u8], place: &Path) -> Vec<u8> {
        let agent = place.join("agent");
        std::fs::write(&agent, init).unwrap();
        std::fs::set_permissions(&agent, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rootfs/build-initramfs");
        let made = Command::new(script).arg(&agent).arg(place.join("out")).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        std::fs::read(place.join("out")).unwrap()
    }

    #[test]
    fn the_program_is_found_and_damage_is_told() {
        let place = tempfile::tempdir().unwrap();
        let agent = [b"\x7fELF".as_slice(), &[7; 9001]].concat();
        let whole = archive(&agent, place.path());
        assert_eq!(program(&whole).unwrap(), agent);
        // Every cut is an error, and none a panic.
        for end in (0..whole.len()).step_by(97).take_while(|end| end + 256 < whole.len()) {
            if let Ok(found) = program(&whole[..end]) {
                assert_eq!(found, agent, "{end}");
            }
        }
        assert!(program(&whole[..whole.len() - 9400]).unwrap_err().to_string().contains("cut"));
        let script = archive(b"#!/bin/sh\n", place.path());
        assert!(program(&script).unwrap_err().to_string().contains("no program"));
        let mut other = whole.clone();
        other[..6].copy_from_slice(b"070702");
        assert!(program(&other).unwrap_err().to_string().contains("no archive"));
        let at = whole.windows(4).position(|bytes| bytes == INIT).unwrap();
        let mut none = whole;
        none[at..at + 4].copy_from_slice(b"tini");
        assert!(program(&none).unwrap_err().to_string().contains("no init"));
        let huge = [b"070701".as_slice(), &[b'F'; 104]].concat();
        assert!(program(&huge).is_err());
    }
}
