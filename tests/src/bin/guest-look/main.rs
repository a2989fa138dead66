//! Runs in a container: tells everything that a program can see of it, one line each, in an order
//! that does not depend on the file system. Names and values are escaped. Modes are octal.
//!
//! - `process WHAT VALUE`: arguments, environment, directory, user, groups, rights;
//! - `file PATH MODE UID GID SIZE LINKS SECONDS.NANOSECONDS [rdev MAJOR:MINOR] [-> TARGET]
//!   [same PATH] [sum SUM] [xattr NAME=VALUE]`: every file below the root. The size and the links
//!   of a directory depend on the file system: both are 0. `same` names the first path of that
//!   inode. /proc, /sys and /dev are not entered;
//! - `device PATH ...`: the same for what is below /dev, without times, for they are those of the
//!   start.
//!
//! `guest-look --process` tells of the process alone; other arguments are told, and mean nothing.
//! `guest-look --ask RESOLVER NAME KIND` asks a resolver, and prints its answer.
//! `guest-look --watch DIRECTORY...` prints what is told of changes in directories.

mod ask;
mod watch;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr, major, minor};

/// What is mounted there is not the image's.
const MOUNTED: [&str; 3] = ["/proc", "/sys", "/dev"];

fn main() -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    if let [_, flag, resolver, name, kind] = &words[..]
        && flag == "--ask"
    {
        writeln!(out, "{}", ask::ask(resolver, name, kind)?)?;
        return out.flush();
    }
    if let [_, flag, directories @ ..] = &words[..]
        && flag == "--watch"
    {
        return watch::watch(directories, &mut out);
    }
    process(&mut out)?;
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--process") {
        return out.flush();
    }
    let mut seen = HashMap::new();
    look(Path::new("/"), "file", &mut seen, &mut out)?;
    look(Path::new("/dev"), "device", &mut seen, &mut out)?;
    out.flush()
}

/// Bytes as one word without a control character.
fn word(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string().replace(' ', "\\x20")
}

fn process(out: &mut impl Write) -> io::Result<()> {
    for argument in std::env::args_os() {
        writeln!(out, "process argument {}", word(argument.as_bytes()))?;
    }
    let mut environment: Vec<_> = std::env::vars_os().collect();
    environment.sort();
    for (name, value) in environment {
        writeln!(out, "process environment {}={}", word(name.as_bytes()), word(value.as_bytes()))?;
    }
    writeln!(out, "process directory {}", word(std::env::current_dir()?.as_os_str().as_bytes()))?;
    // Uid, Gid and Groups as the kernel has them, real to file system's; rights.
    let wanted =
        ["Uid", "Gid", "Groups", "Umask", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"];
    for line in fs::read_to_string("/proc/self/status")?.lines() {
        if let Some((name, value)) = line.split_once(':')
            && wanted.contains(&name)
        {
            let mut values: Vec<_> = value.split_whitespace().collect();
            if name == "Groups" {
                values.sort_unstable();
            }
            writeln!(out, "process {name} {}", values.join(" "))?;
        }
    }
    Ok(())
}

/// Tells of `path` and of what is below it. `seen` holds the first path of each file that has
/// several.
fn look(
    path: &Path,
    what: &str,
    seen: &mut HashMap<(u64, u64), PathBuf>,
    out: &mut impl Write,
) -> io::Result<()> {
    write!(out, "{what} {}", word(path.as_os_str().as_bytes()))?;
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) => return writeln!(out, " {}", error.kind()),
    };
    let kind = metadata.file_type();
    let (size, links) = if kind.is_dir() { (0, 0) } else { (metadata.size(), metadata.nlink()) };
    write!(out, " {:o} {} {} {size} {links}", metadata.mode(), metadata.uid(), metadata.gid())?;
    if what == "file" {
        write!(out, " {}.{:09}", metadata.mtime(), metadata.mtime_nsec())?;
    }
    if kind.is_char_device() || kind.is_block_device() {
        write!(out, " rdev {}:{}", major(metadata.rdev()), minor(metadata.rdev()))?;
    }
    if kind.is_symlink() {
        write!(out, " -> {}", told(fs::read_link(path).map(|target| word(target.as_os_str().as_bytes()))))?;
    }
    if links > 1 {
        let first = seen.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.to_owned());
        write!(out, " same {}", word(first.as_os_str().as_bytes()))?;
    }
    if kind.is_file() {
        write!(out, " sum {}", told(sum(path).map(|sum| format!("{sum:016x}"))))?;
    }
    for name in xattrs(path) {
        let mut value = vec![0; 64 << 10];
        let value = lgetxattr(path, &name[..], &mut value[..])
            .map(|length| word(&value[..length]))
            .map_err(io::Error::from);
        write!(out, " xattr {}={}", word(&name), told(value))?;
    }
    writeln!(out)?;
    if kind.is_dir() && (what != "file" || !MOUNTED.iter().any(|mounted| path == Path::new(mounted))) {
        match fs::read_dir(path) {
            Ok(entries) => {
                let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
                paths.sort();
                for path in paths {
                    look(&path, what, seen, out)?;
                }
            }
            Err(error) => writeln!(out, "{what} {}/ {}", word(path.as_os_str().as_bytes()), error.kind())?,
        }
    }
    Ok(())
}

/// A value, or why there is none.
fn told(value: io::Result<String>) -> String {
    value.unwrap_or_else(|error| word(error.kind().to_string().as_bytes()))
}

/// The names of a file's extended attributes, in order.
fn xattrs(path: &Path) -> Vec<Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let length = llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut names: Vec<_> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    names.sort();
    names
}

/// A checksum of a file's bytes that is quick on an emulated processor. It detects differences by
/// accident, which a comparison is about.
fn sum(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 256 << 10];
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        for piece in buffer[..filled].chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        if filled < buffer.len() {
            return Ok(sum);
        }
    }
}
