//! The authorities that programs of a container trust: those of its image, and those that the host
//! adds.
//!
//! They are added to the lists that distributions have, in the container's writable layer; the
//! image stays as it is. What was added at an earlier start is replaced.

use std::fs;
use std::io::{self, Read as _};

use super::places::{self, TargetKind};
use super::{Named, StageError};

/// The list of Debian, Alpine and others, which a container has in any case; programs find it by
/// variables of their environment.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Lists of other distributions.
const OTHERS: [&str; 4] = [
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Between these lines stands what was added.
const BEGIN: &str = "# Added by nelly for this start: the authority of its proxy for secrets\n";
const END: &str = "# End of what nelly added\n";
/// No list is longer, in bytes.
const MOST: u64 = 16 << 20;

/// Adds certificates to the lists below `root`. Before any mount, as names are written. Without any
/// it reads nothing: a list is hundreds of kilobytes, which every start would pay for.
pub(super) fn write_authorities(root: &str, authorities: &str) -> Result<(), StageError> {
    if authorities.is_empty() {
        return Ok(());
    }
    let mut known = None;
    for path in OTHERS {
        if places::is_there(root, path)
            && let Some(list) = add(root, path, authorities).step(|| format!("add authorities to {path}"))?
        {
            known = known.or(Some(list));
        }
    }
    // An image may have its list elsewhere alone.
    let here = add(root, BUNDLE, authorities).step(|| format!("add authorities to {BUNDLE}"))?;
    if let (Some(list), Some(known)) = (here, known)
        && list.is_empty()
    {
        let place = places::make(root, BUNDLE, TargetKind::File).step(|| format!("find {BUNDLE}"))?;
        fs::write(place, with(&known, authorities)).step(|| format!("write {BUNDLE}"))?;
    }
    Ok(())
}

/// Adds to one list; answers what it has beside. `None`: it is no list.
fn add(root: &str, path: &str, authorities: &str) -> io::Result<Option<Vec<u8>>> {
    let place = places::make(root, path, TargetKind::File)?;
    let found = fs::symlink_metadata(&place)?;
    if !found.is_file() {
        return Ok(None);
    }
    if found.len() > MOST {
        return Err(io::Error::other("it is longer than 16 MiB"));
    }
    let mut text = Vec::new();
    fs::File::open(&place)?.take(MOST).read_to_end(&mut text)?;
    let own = without(&text);
    let wanted = with(&own, authorities);
    if wanted != text {
        fs::write(place, wanted)?;
    }
    Ok(Some(own))
}

/// A list with authorities behind it.
fn with(list: &[u8], authorities: &str) -> Vec<u8> {
    let gap = if list.is_empty() || list.ends_with(b"\n") { "" } else { "\n" };
    let end = if authorities.ends_with('\n') { "" } else { "\n" };
    [list, gap.as_bytes(), BEGIN.as_bytes(), authorities.as_bytes(), end.as_bytes(), END.as_bytes()].concat()
}

/// A list without what was added.
fn without(list: &[u8]) -> Vec<u8> {
    let find = |what: &str, from: usize| {
        let at = list[from..].windows(what.len()).position(|window| window == what.as_bytes())?;
        Some(from + at)
    };
    match find(BEGIN, 0).and_then(|begin| Some((begin, find(END, begin)? + END.len()))) {
        Some((begin, end)) => [&list[..begin], &list[end..]].concat(),
        None => list.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn authorities_are_added_once_and_taken_out_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().to_str().expect("UTF-8");
        let at = |path: &str| directory.path().join(path.trim_start_matches('/'));
        let read = |path: &str| fs::read_to_string(at(path)).expect(path);
        let added = |text: &str| format!("{BEGIN}{text}\n{END}");

        // An image without a list gets one.
        write_authorities(root, "").expect("written");
        assert!(!at(BUNDLE).exists() && !at(OTHERS[0]).exists());
        write_authorities(root, "ours").expect("written");
        assert_eq!(read(BUNDLE), added("ours"));
        assert!(!at(OTHERS[0]).exists());

        // One with a list keeps it, at every start.
        fs::write(at(BUNDLE), "theirs").expect("written");
        write_authorities(root, "ours").expect("written");
        assert_eq!(read(BUNDLE), format!("theirs\n{}", added("ours")));
        write_authorities(root, "anew\n").expect("written");
        assert_eq!(read(BUNDLE), format!("theirs\n{}", added("anew")));

        // One of another distribution is where programs look for it, too.
        fs::remove_dir_all(at("/etc")).expect("removed");
        fs::create_dir_all(at("/etc/pki/tls/certs")).expect("made");
        fs::create_dir_all(at("/etc/ssl")).expect("made");
        symlink("../pki/tls/certs", at("/etc/ssl/certs")).expect("linked");
        symlink("certs/../certs/ca-bundle.crt", at("/etc/ssl/cert.pem")).expect("linked");
        fs::write(at(OTHERS[0]), "theirs\n").expect("written");
        for _ in 0..2 {
            write_authorities(root, "ours").expect("written");
            for path in [BUNDLE, OTHERS[0], "/etc/ssl/cert.pem"] {
                assert_eq!(read(path), format!("theirs\n{}", added("ours")), "{path}");
            }
        }
    }

    #[test]
    fn links_of_an_image_lead_nowhere_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let outside = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("root");
        let secret = outside.path().join("list");
        fs::write(&secret, "outside").expect("written");
        fs::create_dir_all(root.join("etc/ssl/certs")).expect("made");
        fs::create_dir_all(root.join("etc/pki/tls/certs")).expect("made");
        symlink(&secret, root.join("etc/ssl/certs/ca-certificates.crt")).expect("linked");
        symlink(&secret, root.join("etc/pki/tls/certs/ca-bundle.crt")).expect("linked");
        let up = format!("../../../../../../..{}", secret.display());
        symlink(up, root.join("etc/ssl/cert.pem")).expect("linked");
        write_authorities(root.to_str().expect("UTF-8"), "ours").expect("written");
        assert_eq!(fs::read_to_string(&secret).expect("outside"), "outside");
        let inside = root.join(secret.strip_prefix("/").expect("absolute"));
        assert_eq!(fs::read_to_string(inside).expect("inside"), format!("{BEGIN}ours\n{END}"));

        // A directory, or a link to itself, is no list or an error of the start.
        fs::remove_dir_all(root.join("etc")).expect("removed");
        fs::create_dir_all(root.join("etc/ssl/certs/ca-certificates.crt")).expect("made");
        write_authorities(root.to_str().expect("UTF-8"), "ours").expect("no list");
        fs::remove_dir_all(root.join("etc/ssl/certs")).expect("removed");
        symlink("certs", root.join("etc/ssl/certs")).expect("linked");
        assert!(write_authorities(root.to_str().expect("UTF-8"), "ours").is_err());
    }
}
