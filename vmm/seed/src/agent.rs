//! An agent that the seed brings. cloud-init takes the file `vendor-data` beside the user's own
//! data and says nothing of it in the instance: so what the user gives stays as it is, and an agent
//! of another build makes no new instance.

/// The name of the agent's file in the volume.
pub(crate) const FILE: &str = "nelly-agent";

/// Bytes of an agent at most.
pub(crate) const AGENT_MAX: usize = 16 << 20;

/// What cloud-init runs at each start of the machine, as root, once the user's data is read: a
/// boothook is for every start, and not for the first alone. The agent's program is copied each
/// time: a seed with another one has the last word. Nothing else stays in the guest, and without
/// the seed nothing is started.
pub(crate) const VENDOR_DATA: &str = r#"#cloud-boothook
#!/bin/sh
# Nelly's agent comes with the seed of this machine, and runs as a service of systemd's.
set -u
place=/run/nelly-seed
program=/usr/local/sbin/nelly-agent
unit=/run/systemd/system/nelly-agent.service
fail() {
  echo "nelly: the agent is not started: $*" | tee /dev/console >&2
  exit 1
}
[ -d /run/systemd/system ] || fail "systemd is not the init of this guest"
seed=/dev/disk/by-id/virtio-seed
[ -e "$seed" ] || seed=$(blkid -L cidata) || fail "no disk has the seed"
mkdir -p "$place" "${program%/*}" || fail "no directory for it can be made"
mount -t vfat -o ro,nosuid,nodev,noexec "$seed" "$place" || fail "the seed $seed cannot be mounted"
cp "$place/nelly-agent" "$program.new" && chmod 0700 "$program.new" && mv -f "$program.new" "$program"
copied=$?
umount "$place" && rmdir "$place"
[ "$copied" = 0 ] || fail "it cannot be copied to $program"
if command -v restorecon >/dev/null; then restorecon "$program"; fi
modprobe -q vmw_vsock_virtio_transport || true
cat >"$unit" <<'UNIT' || fail "$unit cannot be written"
[Unit]
Description=Nelly's agent, which this machine's host calls
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/local/sbin/nelly-agent --service
Restart=always
RestartSec=1
Delegate=yes
TasksMax=infinity
OOMPolicy=continue
LimitNOFILE=1048576
UNIT
systemctl daemon-reload && systemctl --no-block start nelly-agent.service || fail "systemd does not start it"
"#;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::{Command, Output};

    use super::*;

    /// Runs the script as cloud-init does, in the place of a guest's root: a shell that is told
    /// where that is, and programs that write down what they were told.
    fn run(root: &Path) -> Output {
        let text = VENDOR_DATA.strip_prefix("#cloud-boothook\n").expect("a boothook");
        let there = |text: &str, directory: &str| {
            text.replace(&format!("={directory}"), &format!("={}{directory}", root.display()))
                .replace(&format!("-d {directory}"), &format!("-d {}{directory}", root.display()))
                .replace(&format!("tee {directory}"), &format!("tee {}{directory}", root.display()))
        };
        let text = ["/run/", "/usr/local/", "/dev/"]
            .iter()
            .fold(text.replace("ExecStart=", "ExecStart:"), |text, directory| there(&text, directory))
            .replace("ExecStart:", "ExecStart=");
        let script = root.join("script");
        fs::write(&script, text).unwrap();
        Command::new("sh")
            .arg(&script)
            .env("PATH", format!("{}:/usr/bin:/bin", root.join("bin").display()))
            .output()
            .unwrap()
    }

    fn program(root: &Path, name: &str, script: &str) {
        let path = root.join("bin").join(name);
        fs::write(
            &path,
            format!("#!/bin/sh\necho \"{name} $*\" >>'{}'\n{script}\n", root.join("said").display()),
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A guest with a seed that has an agent.
    fn guest() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in ["bin", "run/systemd/system", "dev/disk/by-id", "usr"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        fs::write(root.path().join("dev/disk/by-id/virtio-seed"), "the agent's program").unwrap();
        program(root.path(), "blkid", "exit 2");
        // The seed and the place are the last two words.
        program(root.path(), "mount", "while [ $# -gt 2 ]; do shift; done; cp \"$1\" \"$2/nelly-agent\"");
        program(root.path(), "umount", "rm \"$1/nelly-agent\"");
        for name in ["systemctl", "modprobe", "restorecon"] {
            program(root.path(), name, "");
        }
        root
    }

    #[test]
    fn the_agent_is_copied_out_of_the_seed_and_started() {
        let root = guest();
        for by_label in [false, true] {
            if by_label {
                let (by_id, other) =
                    (root.path().join("dev/disk/by-id/virtio-seed"), root.path().join("dev/vdz"));
                fs::rename(by_id, &other).unwrap();
                program(root.path(), "blkid", &format!("echo {}", other.display()));
            }
            let done = run(root.path());
            assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
            let program = root.path().join("usr/local/sbin/nelly-agent");
            assert_eq!(fs::read_to_string(&program).unwrap(), "the agent's program");
            assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o700);
            assert!(!root.path().join("run/nelly-seed").exists(), "nothing else stays");
            let unit =
                fs::read_to_string(root.path().join("run/systemd/system/nelly-agent.service")).unwrap();
            assert!(unit.contains("\nExecStart=/usr/local/sbin/nelly-agent --service\n"), "{unit}");
            let said = fs::read_to_string(root.path().join("said")).unwrap();
            assert!(said.contains("mount -t vfat -o ro,"), "{said}");
            assert!(
                said.ends_with("systemctl daemon-reload\nsystemctl --no-block start nelly-agent.service\n"),
                "{said}"
            );
        }
    }

    #[test]
    fn what_is_missing_is_told_on_the_console() {
        let took = |what: &str, change: fn(&Path)| {
            let root = guest();
            change(root.path());
            let done = run(root.path());
            let console = fs::read_to_string(root.path().join("dev/console")).unwrap();
            assert_eq!(done.status.code(), Some(1), "{done:?}");
            assert!(
                console.starts_with("nelly: the agent is not started: ") && console.contains(what),
                "{console}"
            );
        };
        took("systemd is not the init", |root| fs::remove_dir(root.join("run/systemd/system")).unwrap());
        took("no disk has the seed", |root| {
            fs::remove_file(root.join("dev/disk/by-id/virtio-seed")).unwrap()
        });
        took("cannot be mounted", |root| program(root, "mount", "exit 1"));
        took("cannot be copied", |root| program(root, "mount", ""));
        took("systemd does not start it", |root| program(root, "systemctl", "exit 1"));
    }
}
