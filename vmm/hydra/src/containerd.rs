//! containerd at a port of the guest.

/// Where it listens in an image of Debian's.
const SOCKET: &str = "/run/containerd/containerd.sock";
/// Where the scripts' proxy listens in the guest.
pub(crate) const PORT: u16 = 35000;
/// The directory of units that no package owns.
const UNITS: &str = "/etc/systemd/system";

/// Lines for the shell of a guest with cloud-init and systemd, which make containerd answer at the
/// port, now and at each later start: by systemd's own proxy, which passes on what it gets. It is
/// installed where it is not there.
#[must_use]
pub fn containerd_lines() -> Vec<String> {
    let proxy = "/lib/systemd/systemd-socket-proxyd";
    let unit = |name: &str, lines: &[&str]| {
        let words: Vec<String> = lines.iter().map(|line| format!("'{line}'")).collect();
        format!("printf '%s\\n' {} >{UNITS}/{name}", words.join(" "))
    };
    vec![
        "command -v containerd >/dev/null || { apt-get update && apt-get install -y --no-install-recommends containerd; }"
            .to_owned(),
        unit(
            "nelly-containerd.socket",
            &["[Socket]", &format!("ListenStream={PORT}"), "[Install]", "WantedBy=sockets.target"],
        ),
        unit(
            "nelly-containerd.service",
            &[
                "[Unit]",
                "Requires=nelly-containerd.socket",
                "After=nelly-containerd.socket containerd.service",
                "[Service]",
                &format!("ExecStart={proxy} {SOCKET}"),
            ],
        ),
        "systemctl daemon-reload && systemctl enable --now nelly-containerd.socket".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_writes_the_units() {
        let lines = containerd_lines();
        assert_eq!(lines.len(), 4);
        let written = |line: &str| {
            let line = line.split(" >/etc").next().expect("a file is written");
            let done = Command::new("sh").args(["-c", line]).output().expect("there is a shell");
            String::from_utf8(done.stdout).expect("it is text")
        };
        assert_eq!(written(&lines[1]), "[Socket]\nListenStream=35000\n[Install]\nWantedBy=sockets.target\n");
        assert_eq!(
            written(&lines[2]),
            "[Unit]\nRequires=nelly-containerd.socket\nAfter=nelly-containerd.socket containerd.service\n[Service]\n\
             ExecStart=/lib/systemd/systemd-socket-proxyd /run/containerd/containerd.sock\n"
        );
        for line in &lines {
            let checked = Command::new("sh").args(["-n", "-c", line]).status().expect("there is a shell");
            assert!(checked.success(), "{line}");
        }
    }
}
