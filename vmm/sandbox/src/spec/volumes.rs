//! Volumes of a container: directories that are no part of its writable layer, spelled as docker's
//! flags. They belong to one sandbox, and last as long as it does. The same flags name directories
//! of the host ([`super::shares`]).

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ShareRequest, SpecError, Tmpfs, tmpfs};

/// A volume of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name, which no other volume of the sandbox has: a letter or digit, then up to 127
    /// letters, digits or `_.-`.
    pub name: String,
    /// Where it is mounted: absolute and without `.` and `..`.
    pub path: String,
    /// The container cannot write to it.
    #[serde(default)]
    pub read_only: bool,
    /// A new one is filled with what the image has at the path.
    #[serde(default = "yes")]
    pub copy_up: bool,
}

fn yes() -> bool {
    true
}

/// A volume that was asked for: `PATH` or `NAME:PATH[:OPTIONS]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRequest {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Where it is to be mounted, as in [`Volume`].
    pub path: String,
    /// As in [`Volume`].
    pub read_only: bool,
    /// As in [`Volume`].
    pub copy_up: bool,
}

/// What `--volume` or `--mount` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountRequest {
    /// `type=volume`.
    Volume(VolumeRequest),
    /// `type=tmpfs`.
    Tmpfs(Tmpfs),
    /// `type=bind`, or a volume whose name is a path of the host.
    Share(ShareRequest),
}

/// What several of them ask for, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// Volumes.
    pub volumes: Vec<VolumeRequest>,
    /// File systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Directories and files of the host.
    pub shares: Vec<ShareRequest>,
}

impl FromIterator<MountRequest> for Mounts {
    fn from_iter<I: IntoIterator<Item = MountRequest>>(requests: I) -> Self {
        let mut mounts = Self::default();
        for request in requests {
            match request {
                MountRequest::Volume(volume) => mounts.volumes.push(volume),
                MountRequest::Tmpfs(tmpfs) => mounts.tmpfs.push(tmpfs),
                MountRequest::Share(share) => mounts.shares.push(share),
            }
        }
        mounts
    }
}

const FORM: &str = "write PATH, NAME:PATH[:ro] or HOST:PATH[:ro], with an absolute path in the container";
const HOST: &str = "a directory of this host begins with / or ./, and a volume's name has no /";
const HOME: &str = "the shell replaces ~ at the beginning of a word alone; write the whole path";
const SHARED: &str =
    "of docker's options of a directory of the host, ro and rw are there; labels of SELinux are not changed";
const BIND: &str = "write type=bind,source=HOST,target=PATH[,readonly]";
const NAMES: &str = "the name of a volume is a letter or digit, then up to 127 letters, digits or _.-, and does not begin with \"anonymous.\"";
const OPTIONS: &str = "of docker's options of a volume, ro, rw and nocopy are there";
const PLACE: &str = "the path must be absolute, and neither / nor in /proc";
const MOUNT: &str = "write type=bind,source=HOST,target=PATH[,readonly], type=volume,source=NAME,target=PATH[,readonly][,volume-nocopy] or type=tmpfs,target=PATH[,tmpfs-size=SIZE][,tmpfs-mode=MODE]";

/// What volumes without a name are called.
const ANONYMOUS: &str = "anonymous.";

fn refuse(what: &'static str, text: &str, hint: &'static str) -> SpecError {
    SpecError::Flag { what, text: text.to_owned(), hint }
}

/// An absolute path without `.`, `..` and empty parts; nothing if it is no place for a volume.
fn clean(path: &str) -> Option<String> {
    if !path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let mut parts = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => drop(parts.pop()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    let good = parts.first().is_some_and(|first| *first != "proc");
    good.then(|| format!("/{}", parts.join("/")))
}

fn named(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && name.len() <= 128
        && !name.starts_with(ANONYMOUS)
}

/// Whether the first part of a volume is a path of the host and no name, as docker has it.
fn is_path(word: &str) -> bool {
    word.starts_with('/') || [".", ".."].contains(&word) || word.starts_with("./") || word.starts_with("../")
}

impl MountRequest {
    /// Parses `PATH`, `NAME:PATH[:OPTIONS]` or `HOST:PATH[:OPTIONS]`.
    ///
    /// # Errors
    /// It has another form.
    pub fn of_volume(text: &str) -> Result<Self, SpecError> {
        let refuse = |hint| refuse("volume", text, hint);
        let words: Vec<&str> = text.split(':').collect();
        let (name, path, options) = match words[..] {
            [path] if path.starts_with('/') => (None, path, ""),
            [name, path] => (Some(name), path, ""),
            [name, path, options] => (Some(name), path, options),
            _ => return Err(refuse(FORM)),
        };
        if let Some(source) = name.filter(|name| is_path(name) && !name.contains('\0')) {
            let path = clean(path).ok_or_else(|| refuse(PLACE))?;
            let mut share = ShareRequest { source: source.into(), path, read_only: false };
            for option in options.split(',').filter(|option| !option.is_empty()) {
                match option {
                    "ro" => share.read_only = true,
                    "rw" => {}
                    _ => return Err(refuse(SHARED)),
                }
            }
            return Ok(Self::Share(share));
        }
        if name.is_some_and(|name| name.starts_with('~')) {
            return Err(refuse(HOME));
        }
        if name.is_some_and(|name| name.contains('/')) {
            return Err(refuse(HOST));
        }
        if name.is_some_and(|name| !named(name)) {
            return Err(refuse(NAMES));
        }
        let path = clean(path).ok_or_else(|| refuse(PLACE))?;
        let name = name.map(str::to_owned);
        let mut request = VolumeRequest { name, path, read_only: false, copy_up: true };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => request.read_only = true,
                "rw" => {}
                "nocopy" => request.copy_up = false,
                _ => return Err(refuse(OPTIONS)),
            }
        }
        Ok(Self::Volume(request))
    }
}

impl FromStr for MountRequest {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse = |hint| refuse("mount", text, hint);
        let mut words = BTreeMap::new();
        for word in text.split(',') {
            let (key, value) = word.split_once('=').unwrap_or((word, "true"));
            let key = match key {
                "src" => "source",
                "dst" | "destination" => "target",
                "ro" => "readonly",
                key => key,
            };
            if words.insert(key, value).is_some() {
                return Err(refuse(MOUNT));
            }
        }
        let kind = words.remove("type").unwrap_or("volume");
        let target = words.remove("target").ok_or_else(|| refuse(MOUNT))?;
        let path = clean(target).ok_or_else(|| refuse(PLACE))?;
        let mut truth = |key| match words.remove(key) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(_) => Err(refuse(MOUNT)),
        };
        let read_only = truth("readonly")?;
        let request = match kind {
            "volume" => {
                let copy_up = !truth("volume-nocopy")?;
                let name = words.remove("source").filter(|name| !name.is_empty());
                if name.is_some_and(|name| !named(name)) {
                    return Err(refuse(NAMES));
                }
                Self::Volume(VolumeRequest { name: name.map(str::to_owned), path, read_only, copy_up })
            }
            "bind" => match words.remove("source") {
                Some(source) if is_path(source) && !source.contains('\0') => {
                    Self::Share(ShareRequest { source: source.into(), path, read_only })
                }
                Some(source) if source.starts_with('~') => return Err(refuse(HOME)),
                Some(source) if !source.is_empty() => return Err(refuse(HOST)),
                _ => return Err(refuse(BIND)),
            },
            "tmpfs" => {
                let mut options = Vec::new();
                for (key, option) in [("tmpfs-size", "size"), ("tmpfs-mode", "mode")] {
                    let option = words.remove(key).map(|value| tmpfs::option(&format!("{option}={value}")));
                    options.extend(option.transpose()?);
                }
                options.extend(read_only.then(|| "ro".to_owned()));
                Self::Tmpfs(Tmpfs { path, options })
            }
            _ => return Err(refuse(MOUNT)),
        };
        if words.is_empty() { Ok(request) } else { Err(refuse(MOUNT)) }
    }
}

/// The volumes of a container: those that were asked for, and the image's where nothing else was
/// asked for at the same path.
///
/// # Errors
/// Two mounts at one path, or a path of the image that is no place for a volume.
pub fn combine(
    asked: &[VolumeRequest],
    image: &[String],
    tmpfs: &[Tmpfs],
    shares: &[ShareRequest],
) -> Result<Vec<Volume>, SpecError> {
    let mut volumes: BTreeMap<String, Option<VolumeRequest>> =
        tmpfs.iter().filter_map(|tmpfs| Some((clean(&tmpfs.path)?, None))).collect();
    let taken = "something else is mounted at the same path";
    for share in shares {
        let path = clean(&share.path).ok_or_else(|| refuse("volume", &share.path, PLACE))?;
        if volumes.insert(path, None).is_some() {
            return Err(refuse("volume", &share.path, taken));
        }
    }
    for request in asked {
        if volumes.insert(request.path.clone(), Some(request.clone())).is_some() {
            return Err(refuse("volume", &request.path, taken));
        }
    }
    for text in image {
        let path = clean(text).ok_or_else(|| refuse("volume of the image", text, PLACE))?;
        let request = VolumeRequest { name: None, path: path.clone(), read_only: false, copy_up: true };
        volumes.entry(path).or_insert(Some(request));
    }
    let mut anonymous = 0;
    let mut numbered = || {
        anonymous += 1;
        format!("{ANONYMOUS}{anonymous}")
    };
    let volume = |VolumeRequest { name, path, read_only, copy_up }| Volume {
        name: name.unwrap_or_else(&mut numbered),
        path,
        read_only,
        copy_up,
    };
    Ok(volumes.into_values().flatten().map(volume).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: Option<&str>, path: &str, read_only: bool, copy_up: bool) -> VolumeRequest {
        VolumeRequest { name: name.map(str::to_owned), path: path.to_owned(), read_only, copy_up }
    }

    #[test]
    fn volumes_are_spelled_as_dockers() {
        for (text, expected) in [
            ("/data", request(None, "/data", false, true)),
            ("data:/var/lib/db", request(Some("data"), "/var/lib/db", false, true)),
            ("data:/a/./b//../c/:ro", request(Some("data"), "/a/c", true, true)),
            ("data:/../../d:rw,nocopy", request(Some("data"), "/d", false, false)),
        ] {
            assert_eq!(MountRequest::of_volume(text).unwrap(), MountRequest::Volume(expected), "{text}");
        }
        for (text, source, path, read_only) in [
            ("/host:/guest", "/host", "/guest", false),
            ("./host:/guest:ro", "./host", "/guest", true),
            ("../a b:/x/../guest:rw", "../a b", "/guest", false),
            (".:/work", ".", "/work", false),
            ("..:/work", "..", "/work", false),
            ("/:/host:ro", "/", "/host", true),
        ] {
            let share = ShareRequest { source: source.into(), path: path.into(), read_only };
            assert_eq!(MountRequest::of_volume(text).unwrap(), MountRequest::Share(share), "{text}");
        }
        for (text, words) in [
            ("", "write PATH"),
            ("data", "write PATH"),
            ("a:/b:ro:x", "write PATH"),
            ("~/host:/guest", "the shell replaces"),
            ("a/b:/guest", "begins with / or ./"),
            (".hidden:/guest", "the name"),
            ("/host:/guest:z", "SELinux"),
            ("/host:/guest:nocopy", "ro and rw"),
            ("/host:guest", "absolute"),
            ("/host:/", "absolute"),
            ("/host:/proc/x", "/proc"),
            (":/guest", "the name"),
            ("-a:/guest", "the name"),
            ("anonymous.1:/guest", "the name"),
            ("a:guest", "absolute"),
            ("a:/", "absolute"),
            ("a:/x/..", "absolute"),
            ("a:/proc/sys", "/proc"),
            ("/proc", "/proc"),
            ("a:/b:z", "ro, rw and nocopy"),
        ] {
            let error = MountRequest::of_volume(text).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(&format!("{text:?}")), "{text}: {error}");
        }
        assert!(MountRequest::of_volume(&format!("{}:/x", "a".repeat(128))).is_ok());
        assert!(MountRequest::of_volume(&format!("{}:/x", "a".repeat(129))).is_err());
    }

    #[test]
    fn mounts_are_spelled_as_dockers() {
        let tmpfs = |path: &str, options: &[&str]| {
            let options = options.iter().map(|option| (*option).to_owned()).collect();
            MountRequest::Tmpfs(Tmpfs { path: path.to_owned(), options })
        };
        let share = |source: &str, read_only| {
            MountRequest::Share(ShareRequest { source: source.into(), path: "/d".into(), read_only })
        };
        let volume =
            |name, path, read_only, copy_up| MountRequest::Volume(request(name, path, read_only, copy_up));
        for (text, expected) in [
            ("type=volume,source=data,target=/d", volume(Some("data"), "/d", false, true)),
            ("src=data,dst=/d,readonly", volume(Some("data"), "/d", true, true)),
            ("destination=/d,ro=false,volume-nocopy=true", volume(None, "/d", false, false)),
            ("type=bind,source=/a:b,target=/d", share("/a:b", false)),
            ("type=bind,src=./a,dst=/d,readonly", share("./a", true)),
            ("type=tmpfs,target=/t", tmpfs("/t", &[])),
            (
                "type=tmpfs,target=/t,tmpfs-mode=0700,tmpfs-size=1m,ro",
                tmpfs("/t", &["size=1m", "mode=0700", "ro"]),
            ),
        ] {
            assert_eq!(text.parse::<MountRequest>().unwrap(), expected, "{text}");
        }
        for (text, words) in [
            ("", "type=volume"),
            ("type=volume,source=data", "type=volume"),
            ("type=bind,target=/b", "source=HOST"),
            ("type=bind,source=a,target=/b", "begins with / or ./"),
            ("type=bind,source=~/a,target=/b", "the shell replaces"),
            ("type=bind,source=/a,target=/b,bind-propagation=shared", "type=bind"),
            ("type=volume,source=/a,target=/b", "the name"),
            ("type=volume,target=b", "absolute"),
            ("type=npipe,target=/b", "type=volume"),
            ("target=/b,target=/c", "type=volume"),
            ("target=/b,readonly=perhaps", "type=volume"),
            ("target=/b,volume-driver=x", "type=volume"),
            ("type=tmpfs,source=a,target=/b", "type=volume"),
        ] {
            let error = text.parse::<MountRequest>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_was_asked_for_replaces_the_images() {
        let asked = [request(Some("data"), "/data", true, true), request(None, "/own", false, true)];
        let image = ["/data/", "/cache", "/log"].map(str::to_owned);
        let tmpfs = [Tmpfs { path: "/cache/".to_owned(), options: Vec::new() }];
        let volumes = combine(&asked, &image, &tmpfs, &[]).unwrap();
        let shown: Vec<_> = volumes.iter().map(|one| (one.name.as_str(), one.path.as_str())).collect();
        assert_eq!(shown, [("data", "/data"), ("anonymous.1", "/log"), ("anonymous.2", "/own")]);
        assert!(volumes[0].read_only && !volumes[1].read_only);
        let twice = [request(Some("a"), "/data", false, true), request(Some("b"), "/data", false, true)];
        assert!(combine(&twice, &[], &[], &[]).is_err());
        assert!(combine(&[request(None, "/cache", false, true)], &[], &tmpfs, &[]).is_err());
        let share = |path: &str| ShareRequest { source: "/a".into(), path: path.into(), read_only: false };
        let volumes = combine(&[], &image, &[], &[share("/data"), share("/log/")]).unwrap();
        assert_eq!(volumes.iter().map(|one| one.path.as_str()).collect::<Vec<_>>(), ["/cache"]);
        assert!(combine(&asked, &[], &[], &[share("/own")]).is_err());
        assert!(combine(&[], &[], &tmpfs, &[share("/cache")]).is_err());
        assert!(combine(&[], &[], &[], &[share("/a"), share("/a/")]).is_err());
        assert!(combine(&[], &[], &[], &[share("a")]).is_err());
        for bad in ["/", "data", "/proc/x", "/a/.."] {
            let error = combine(&[], &[bad.to_owned()], &[], &[]).unwrap_err().to_string();
            assert!(error.contains("volume of the image"), "{error}");
        }
    }
}
