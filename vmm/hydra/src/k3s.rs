//! k3s in the guest, whose program is one of this host's.

use std::path::PathBuf;

use crate::error::HydraError;
use crate::grammar;
use crate::setting::{Reader, Setting};
use crate::share::{Missing, Share};

/// What shares the kubelet's directories of this host with a machine.
const SHARES: &str = "DISABLE_9P_KUBELET_MOUNTS=0, and the same DIR_K3S_VAR for each";
/// The tag of the share with the program.
pub const K3S: &str = "k3s";
/// Where the share with the program is in the guest.
const SHARED: &str = "/opt/nelly/k3s";
/// What a share of one file calls it.
const FILE: &str = "file";
/// Where the program is in the guest, as where k3s installs itself.
const PROGRAM: &str = "/usr/local/bin/k3s";

/// The program of k3s, if there is to be one: the path that `K3S_VERSION_INSTALL` names.
///
/// # Errors
/// A switch has a value that it cannot have.
pub(crate) fn k3s(reader: &mut Reader<'_>) -> Result<Option<Setting<PathBuf>>, HydraError> {
    const INSTALL: &str = "K3S_VERSION_INSTALL";
    let switch = reader.parsed("ENABLE_K3S_DIOD", grammar::switch)?;
    let given = reader.some(INSTALL);
    if !switch.value {
        if given.is_some() {
            reader.warn(format!("{INSTALL} has no effect without ENABLE_K3S_DIOD=1"));
        }
        return Ok(None);
    }
    let path = given.as_ref().filter(|given| given.value.contains('/'));
    let missing = match (path, &given) {
        (Some(_), _) => "diod is not installed in the machine".to_owned(),
        (None, Some(version)) => format!(
            "k3s and diod are not installed in the machine: {INSTALL} names the version {:?}, and here it is the path of k3s' program on this host",
            version.value
        ),
        (None, None) => format!(
            "k3s and diod are not installed in the machine: {INSTALL} may name the path of k3s' program on this host"
        ),
    };
    reader.warn(format!(
        "{missing}; ENABLE_K3S_DIOD (from {}) asks for both. In the place of diod, machines can share the same directories of this host: {SHARES}",
        switch.source
    ));
    Ok(path.map(|path| path.with(PathBuf::from(&path.value))))
}

/// The share by which the program comes into the guest.
pub(crate) fn share(program: &Setting<PathBuf>) -> Setting<Share> {
    program.with(Share {
        tag: K3S.to_owned(),
        host: program.value.clone(),
        guest: SHARED.to_owned(),
        read_only: true,
        missing: Missing::Refuse,
    })
}

/// Lines for the shell of a guest with cloud-init and systemd, where the share is mounted: they
/// install the program and a unit that starts it, now and at each later start.
#[must_use]
pub fn k3s_lines() -> Vec<String> {
    let unit = [
        "[Unit]",
        "Wants=network-online.target",
        "After=network-online.target",
        "[Service]",
        "Type=exec",
        // Its containers outlive it, and are in groups of its own.
        "KillMode=process",
        "Delegate=yes",
        "LimitNOFILE=1048576",
        "TasksMax=infinity",
        "Restart=always",
        "RestartSec=5",
        "ExecStartPre=-/sbin/modprobe br_netfilter",
        "ExecStartPre=-/sbin/modprobe overlay",
        &format!("ExecStart={PROGRAM} server"),
        "[Install]",
        "WantedBy=multi-user.target",
    ];
    let words: Vec<String> = unit.iter().map(|line| format!("'{line}'")).collect();
    vec![
        format!("install -D -m 755 {SHARED}/{FILE} {PROGRAM}"),
        format!("printf '%s\\n' {} >/etc/systemd/system/k3s.service", words.join(" ")),
        "systemctl daemon-reload && systemctl enable k3s.service && systemctl restart k3s.service".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_installs_the_program_and_writes_its_unit() {
        let lines = k3s_lines();
        assert_eq!(lines[0], "install -D -m 755 /opt/nelly/k3s/file /usr/local/bin/k3s");
        let prints = lines[1].split(" >/etc").next().expect("a file is written");
        let done = Command::new("sh").args(["-c", prints]).output().expect("there is a shell");
        let unit = String::from_utf8(done.stdout).expect("it is text");
        assert!(unit.starts_with("[Unit]\n") && unit.ends_with("WantedBy=multi-user.target\n"), "{unit}");
        assert!(unit.contains("\nExecStart=/usr/local/bin/k3s server\n"), "{unit}");
        for line in &lines {
            let checked = Command::new("sh").args(["-n", "-c", line]).status().expect("there is a shell");
            assert!(checked.success(), "{line}");
        }
    }
}
