//! What a record says of a machine of `nelly boot`, which has no container.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nelly_vmm::config::{BootProtocol, OnReset};
use serde::{Deserialize, Serialize};

/// File name of the disk that such a machine writes to, in its directory.
pub const DISK: &str = "disk.qcow2";

/// Name of the directory of such a machine's own keys for ssh, in its directory.
pub const SSH: &str = "ssh";

/// A machine of `nelly boot`, beside what every machine has. All paths are absolute. What kernel,
/// initrds and command line the image has is found out anew at each start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// The disk image that it boots from, as a value of `--image`; none of a kernel alone. What is
    /// written goes to the disk `disk.qcow2` of the sandbox's directory, unless the value says
    /// otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The entry of the image's boot loader, if not its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// A kernel, instead of the image's if there is an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// An initramfs, the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Further disks, as values of `--disk`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
    /// Directories of the host, as values of `--share`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<String>,
    /// How the kernel is entered.
    #[serde(default)]
    pub protocol: BootProtocol,
    /// What a reset by the guest does.
    pub on_reset: OnReset,
    /// How long each start lives at most, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_limit_ms: Option<u64>,
    /// Whether it has a seed for cloud-init, the file `seed.img` of the sandbox's directory.
    #[serde(default)]
    pub seed: bool,
    /// Whether the seed brings an agent, which then is a service of the guest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub agent: bool,
    /// How ssh logs in; none if there are no keys for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshRecord>,
    /// The files whose bytes the disk `disk.qcow2` lies over, as they were when it was made: the
    /// image first, then its backing files. Block devices are left out: they do not tell when they
    /// were written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<BaseFile>,
}

/// How ssh logs in to a machine of `nelly boot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshRecord {
    /// The directory of its keys, if it is not [`SSH`] of the sandbox's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// The name by which ssh knows the machine's own key.
    pub alias: String,
    /// The user of the guest, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A regular file of this host below a disk, as it was at some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseFile {
    /// Where it was found.
    pub path: PathBuf,
    /// Its size, in bytes.
    pub bytes: u64,
    /// When it was last written: seconds since 1970.
    pub modified_s: i64,
    /// The nanoseconds of that second.
    pub modified_ns: i64,
    /// The number of its file system's device.
    pub device: u64,
    /// Its number in that file system.
    pub inode: u64,
}

impl BaseFile {
    /// What `meta` says of the file at `path`; `None` if it is no regular file.
    #[must_use]
    pub fn of(path: &Path, meta: &Metadata) -> Option<Self> {
        meta.is_file().then(|| Self {
            path: path.to_owned(),
            bytes: meta.len(),
            modified_s: meta.mtime(),
            modified_ns: meta.mtime_nsec(),
            device: meta.dev(),
            inode: meta.ino(),
        })
    }

    /// What differs between this file and the one that is there `now`, if that can have other
    /// bytes. A copy that kept size and time is as good as the file itself.
    #[must_use]
    pub fn difference(&self, now: &Self) -> Option<String> {
        if self.bytes != now.bytes {
            return Some(format!("it has {} bytes now, and had {}", now.bytes, self.bytes));
        }
        let modified = |file: &Self| (file.modified_s, file.modified_ns);
        if modified(self) == modified(now) {
            return None;
        }
        let same = (self.device, self.inode) == (now.device, now.inode);
        let what = if same { "it was written since" } else { "it is another file of the same size" };
        Some(what.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_another_size_or_time_is_another_base() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, "some bytes").unwrap();
        let now = || BaseFile::of(&path, &std::fs::metadata(&path).unwrap()).unwrap();
        let first = now();
        assert_eq!(first.difference(&now()), None);
        // By its own number: whether it can be told apart is for time and size to say.
        let copied = BaseFile { inode: first.inode + 1, ..first.clone() };
        assert_eq!(first.difference(&copied), None);
        let replaced = BaseFile { modified_ns: first.modified_ns ^ 1, ..copied };
        assert!(first.difference(&replaced).unwrap().contains("another file"));
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(first.difference(&now()).unwrap().contains("written since"));
        std::fs::write(&path, "fewer").unwrap();
        assert!(first.difference(&now()).unwrap().contains("5 bytes now, and had 10"));
        assert_eq!(BaseFile::of(directory.path(), &directory.path().metadata().unwrap()), None);
    }

    #[test]
    fn a_record_keeps_what_the_disk_lies_over() {
        let base = BaseFile {
            path: "/a.img".into(),
            bytes: 1 << 40,
            modified_s: -1,
            modified_ns: 999_999_999,
            device: u64::MAX,
            inode: 1,
        };
        let ssh = Some(SshRecord { directory: Some("/keys".into()), alias: "web".into(), user: None });
        let record = BootRecord { base: vec![base], agent: true, ssh, ..BootRecord::default() };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<BootRecord>(&text).unwrap(), record);
        let without: BootRecord = serde_json::from_str(r#"{"on_reset": "exit"}"#).unwrap();
        assert_eq!(without, BootRecord::default());
    }
}
