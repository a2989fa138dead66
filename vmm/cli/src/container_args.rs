//! The flags that every verb has which makes a container: rights, limits, names. As docker's.

use anyhow::Result;
use clap::Args;
use nelly_sandbox::spec::{
    Capabilities, ContainerOptions, MountRequest, Mounts, Rights, options, process, quantity,
};

use crate::fail::{OfFlag as _, Usage};

/// Flags of docker's `run` and `create` that become a part of the container's specification.
#[derive(Debug, Default, Args)]
pub(crate) struct ContainerArgs {
    /// Add a capability, e.g. NET_ADMIN, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_drop: Vec<String>,
    /// Give all rights inside the machine: capabilities, system calls, devices, /sys and cgroups
    #[arg(long)]
    pub(crate) privileged: bool,
    /// Set a resource limit, e.g. nofile=1024:4096; -1 means no limit
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub(crate) ulimit: Vec<String>,
    /// Set a kernel parameter, e.g. net.ipv4.ip_forward=1
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) sysctl: Vec<String>,
    /// Size of /dev/shm, such as 64M (binary) [default: 64M, at most an eighth of the memory]
    #[arg(long, value_name = "SIZE")]
    pub(crate) shm_size: Option<String>,
    /// Maximum number of processes and threads; -1 means no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Add the user to a group, by name or number
    #[arg(long, value_name = "GROUP")]
    pub(crate) group_add: Vec<String>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub(crate) add_host: Vec<String>,
    /// Share a directory or a file of this host (HOST begins with / or ./), or mount a volume: a
    /// directory on the sandbox's own disk, or with --rm in the guest's memory. NAME is of this
    /// sandbox alone. A new volume is filled with what the image has at PATH. Options, separated by
    /// commas: ro (read-only), rw (the default), nocopy (a volume that is not filled)
    #[arg(short, long, value_name = "HOST:PATH|NAME:PATH|PATH[:OPTIONS]")]
    pub(crate) volume: Vec<String>,
    /// Share a directory or a file, or mount a volume or a tmpfs:
    /// type=bind,source=HOST,target=PATH[,readonly] or
    /// type=volume,source=NAME,target=PATH[,readonly][,volume-nocopy] or
    /// type=tmpfs,target=PATH[,readonly][,tmpfs-size=SIZE][,tmpfs-mode=MODE]
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub(crate) mount: Vec<String>,
    /// Run a small init as the container's first process, which forwards signals and reaps
    #[arg(long)]
    pub(crate) init: bool,
    /// Let the container use a device of the guest (not of this host), e.g. /dev/fuse
    #[arg(long, value_name = "PATH[:PATH][:rwm]")]
    pub(crate) device: Vec<String>,
    /// Annotation, for other programs
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) annotation: Vec<String>,
    /// Platform of the image; only that of this host can run
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
}

impl ContainerArgs {
    /// The rights of the container's processes.
    ///
    /// # Errors
    /// A word that is no capability or limit; the error names the flag.
    pub(crate) fn rights(&self) -> Result<Rights> {
        let capabilities = match self.privileged {
            true => Capabilities::EVERY,
            false => Capabilities::changed(&self.cap_add, &self.cap_drop).of_flag("--cap-add, --cap-drop")?,
        };
        self.group_add.iter().try_for_each(|group| process::check_group(group)).of_flag("--group-add")?;
        let limits = self.ulimit.iter().map(|text| text.parse()).collect::<Result<_, _>>();
        Ok(Rights { capabilities, limits: limits.of_flag("--ulimit")?, groups: self.group_add.clone() })
    }

    /// What else the container has.
    ///
    /// # Errors
    /// A value that is wrong, or another platform; the error names the flag.
    pub(crate) fn options(&self) -> Result<ContainerOptions> {
        if let Some(platform) = &self.platform {
            check_platform(platform)?;
        }
        let sysctls = self.sysctl.iter().map(|text| options::sysctl(text)).collect::<Result<_, _>>();
        let hosts = self.add_host.iter().map(|text| text.parse()).collect::<Result<_, _>>();
        let devices = self.device.iter().map(|text| text.parse()).collect::<Result<_, _>>();
        let annotations =
            self.annotation.iter().map(|text| options::annotation(text)).collect::<Result<_, _>>();
        let pids = self.pids_limit.filter(|limit| ![-1, 0].contains(limit)).map(u32::try_from).transpose();
        Ok(ContainerOptions {
            privileged: self.privileged,
            shm_bytes: self.shm_size.as_deref().map(quantity::bytes).transpose().of_flag("--shm-size")?,
            sysctls: sysctls.of_flag("--sysctl")?,
            pids_limit: pids.of_flag("--pids-limit: write a number, or 0 or -1 for no limit")?,
            hosts: hosts.of_flag("--add-host")?,
            memory_limit: None,
            volumes: Vec::new(),
            shares: Vec::new(),
            init: self.init,
            devices: devices.of_flag("--device")?,
            health: None,
            annotations: annotations.of_flag("--annotation")?,
            relays: Vec::new(),
        })
    }

    /// What `--volume` and `--mount` ask for.
    ///
    /// # Errors
    /// A value that is wrong; the error names the flag.
    pub(crate) fn mounts(&self) -> Result<Mounts> {
        let volumes = self.volume.iter().map(|text| MountRequest::of_volume(text));
        let volumes = volumes.collect::<Result<Vec<_>, _>>().of_flag("--volume")?;
        let mounts = self.mount.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>();
        Ok(volumes.into_iter().chain(mounts.of_flag("--mount")?).collect())
    }
}

/// A guest has the processor of its host.
fn check_platform(platform: &str) -> Result<()> {
    let ours = match std::env::consts::ARCH {
        "x86_64" => ["amd64", "x86_64"],
        "aarch64" => ["arm64", "aarch64"],
        other => [other, other],
    };
    let lower = platform.to_ascii_lowercase();
    let mut words = lower.split('/');
    let (os, arch, variant) = (words.next(), words.next(), words.next());
    let variants: &[Option<&str>] = if ours[0] == "arm64" { &[None, Some("v8")] } else { &[None] };
    let fits = os == Some("linux")
        && arch.is_some_and(|arch| ours.contains(&arch))
        && variants.contains(&variant)
        && words.next().is_none();
    if fits {
        return Ok(());
    }
    Err(Usage::error(format!("--platform {platform}: this host runs images of linux/{} only", ours[0])))
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn parsed(words: &[&str]) -> ContainerArgs {
        let command = ContainerArgs::augment_args(Command::new("nelly").no_binary_name(true));
        ContainerArgs::from_arg_matches(&command.get_matches_from(words)).unwrap()
    }

    #[test]
    fn flags_become_what_they_say() {
        let none = parsed(&[]);
        assert_eq!(none.rights().unwrap(), Rights::default());
        assert_eq!(none.options().unwrap(), ContainerOptions::default());
        let args = parsed(&[
            "--cap-drop",
            "ALL",
            "--cap-add",
            "net_admin",
            "--ulimit",
            "nofile=7",
            "--group-add",
            "audio",
            "--sysctl",
            "a.b=1",
            "--shm-size",
            "1M",
            "--pids-limit",
            "9",
            "--add-host",
            "db:10.0.0.2",
            "--init",
            "--device",
            "/dev/fuse:r",
            "--annotation",
            "a=b",
            "-v",
            "data:/data",
            "--mount",
            "type=tmpfs,target=/t",
            "-v",
            "./here:/there:ro",
        ]);
        let (rights, options) = (args.rights().unwrap(), args.options().unwrap());
        assert_eq!(rights.capabilities.names(), ["CAP_NET_ADMIN"]);
        assert_eq!((rights.limits.len(), rights.groups), (1, vec!["audio".to_owned()]));
        assert_eq!((options.shm_bytes, options.pids_limit), (Some(1 << 20), Some(9)));
        assert_eq!((options.sysctls["a.b"].as_str(), options.hosts.len()), ("1", 1));
        assert!(options.init && options.devices[0].access == "r" && options.annotations["a"] == "b");
        let Mounts { volumes, tmpfs, shares } = args.mounts().unwrap();
        assert_eq!((volumes[0].path.as_str(), tmpfs[0].path.as_str()), ("/data", "/t"));
        assert!(shares[0].path == "/there" && shares[0].read_only);
        for unlimited in ["-1", "0"] {
            assert_eq!(parsed(&["--pids-limit", unlimited]).options().unwrap().pids_limit, None);
        }
        let privileged = parsed(&["--privileged", "--cap-drop", "ALL"]);
        assert_eq!(privileged.rights().unwrap().capabilities, Capabilities::EVERY);
    }

    #[test]
    fn a_wrong_value_names_its_flag() {
        for (flag, value) in [
            ("--cap-add", "NOTHING"),
            ("--cap-drop", "NOTHING"),
            ("--ulimit", "nofile"),
            ("--sysctl", "x"),
            ("--shm-size", "64"),
            ("--pids-limit", "-2"),
            ("--add-host", "db"),
            ("--device", "fuse"),
            ("--annotation", "=x"),
            ("--volume", "a/b:/guest"),
            ("--mount", "type=bind,target=/b"),
            ("--platform", "linux/s390x"),
            ("--platform", "windows/amd64"),
            ("--platform", ""),
        ] {
            let args = parsed(&[flag, value]);
            let error = args.rights().map(drop).and(args.options().map(drop));
            let error = error.and(args.mounts().map(drop)).unwrap_err();
            assert!(format!("{error:#}").contains(flag), "{error:#}");
        }
        let ours = if std::env::consts::ARCH == "x86_64" { "linux/amd64" } else { "linux/arm64" };
        assert!(parsed(&["--platform", ours]).options().is_ok());
    }
}
