//! What a container may not do to the machine that it is in, and what it may not take from it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nelly_sandbox::agent::{ProcessId, StartFailure};
use nelly_sandbox::instance::Sandbox;
use nelly_sandbox::spec::machine::IMAGE_DEVICE;
use nelly_sandbox::spec::{ContainerSpec, ProcessSpec, Seccomp};
use nelly_vmm::machine::{EndReason, Event};

use super::Home;
use super::machine::{container, out_of_process, process, root, sandbox};

/// The smallest program of 32 bits: it ends with 0.
fn small() -> Vec<u8> {
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2u16, 3].map(u16::to_le_bytes).as_flattened());
    elf.extend([1, 0x0804_8054, 52, 0, 0u32].map(u32::to_le_bytes).as_flattened());
    elf.extend([52u16, 32, 1, 0, 0, 0].map(u16::to_le_bytes).as_flattened());
    elf.extend(
        [1, 0, 0x0804_8000, 0x0804_8000, 0x60, 0x60, 5, 0x1000u32].map(u32::to_le_bytes).as_flattened(),
    );
    // mov $1, %eax; xor %ebx, %ebx; int $0x80
    elf.extend([0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80, 0, 0, 0]);
    elf
}

fn image(home: &Home) -> String {
    let root =
        root(home, &["sh", "cat", "dmesg", "grep", "ls", "mkdir", "mknod", "mount", "nc", "sleep", "tail"]);
    fs::write(root.join("bin/small"), small()).unwrap();
    fs::set_permissions(root.join("bin/small"), fs::Permissions::from_mode(0o755)).unwrap();
    // util-linux's unshare knows cgroup namespaces, with what it is linked against.
    let linked = Command::new("ldd").arg("/usr/bin/unshare").output().unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    for file in linked.split_whitespace().filter(|word| word.starts_with('/')).chain(["/usr/bin/unshare"]) {
        let place = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(file, place).unwrap();
    }
    format!("rootfs:{}", root.display())
}

/// As root of a container does it that has no filter: in namespaces of its own it mounts its
/// cgroups to write, tries the limits at their root, moves all that runs into a child, and hands
/// every controller down, so that its own cgroup takes no process any more.
const LIFT: &str = r#"
/usr/bin/unshare -UrmC sh -c '
    mount -t cgroup2 none /tmp && cd /tmp || exit
    for file in memory.max pids.max cgroup.max.descendants; do (echo 99999 > $file) 2>&1; done
    mkdir child
    while grep -q . cgroup.procs; do
        for pid in $(cat cgroup.procs); do (echo $pid > child/cgroup.procs) 2>/dev/null; done
    done
    for controller in memory pids; do echo +$controller > cgroup.subtree_control; done
    cat cgroup.subtree_control
    exec sleep 100000'"#;

/// Runs one process more in the container `c`: its exit code, its output and its errors.
async fn exec(
    sandbox: &Sandbox,
    name: &str,
    process: &ProcessSpec,
) -> Result<(u32, String, String), StartFailure> {
    exec_in(sandbox, "c", name, process).await
}

async fn exec_in(
    sandbox: &Sandbox,
    container: &str,
    name: &str,
    process: &ProcessSpec,
) -> Result<(u32, String, String), StartFailure> {
    let id = ProcessId { container, exec: name };
    let streams = sandbox.exec(id, process, None).await.unwrap()?;
    let end = sandbox.agent().wait(id).await.unwrap();
    let text = |stream: Option<std::os::unix::net::UnixStream>| {
        let mut text = String::new();
        stream.unwrap().read_to_string(&mut text).unwrap();
        text
    };
    Ok((end.exit_code, text(streams.stdout), text(streams.stderr)))
}

/// Output and errors of `sh -c SCRIPT` in the container `c`.
pub(crate) async fn sh(sandbox: &Sandbox, name: &str, user: &str, script: &str) -> String {
    let process = ProcessSpec { user: user.into(), ..process(&["sh", "-c", script]) };
    let (_, stdout, stderr) = exec(sandbox, name, &process).await.unwrap();
    format!("{stdout}{stderr}")
}

#[test]
fn a_container_stays_within_its_bounds() {
    let home = Home::new();
    let image = image(&home);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let sandbox = sandbox(&home, out_of_process(), Some(&image)).await;
        let mut events = sandbox.machine().events().unwrap();
        let forever = sandbox.run("c", &container(&["sleep", "100000"]), IMAGE_DEVICE, None).await.unwrap().unwrap();

        // To the host: not by its own sockets. (Under no filter it may dial, and the other end must
        // not believe it.)
        let (code, _, stderr) = exec(&sandbox, "dial", &process(&["guest-vsock", "dial", "7000", "1"])).await.unwrap();
        assert!(code != 0 && stderr.contains("Operation not permitted"), "{code} {stderr}");
        let listener = sandbox.machine().vsock().listen(7000).unwrap();
        let lifted = ContainerSpec { seccomp: Seccomp::Unconfined, ..container(&["guest-vsock", "dial", "7000", "1"]) };
        let lifted = sandbox.run("u", &lifted, IMAGE_DEVICE, None).await.unwrap().unwrap();
        let mut stream = listener.accept().unwrap();
        let mut number = [0; 8];
        stream.read_exact(&mut number).unwrap();
        stream.write_all(&(u64::from_le_bytes(number) + 1).to_le_bytes()).unwrap();
        assert_eq!(sandbox.agent().wait(ProcessId { container: "u", exec: "" }).await.unwrap().exit_code, 0);
        drop(lifted);

        let lifting = ContainerSpec { seccomp: Seccomp::Unconfined, ..container(&["sh", "-c", LIFT]) };
        let lifting = sandbox.run("l", &lifting, IMAGE_DEVICE, None).await.unwrap().unwrap();
        let said: Vec<_> =
            BufReader::new(lifting.stdout.unwrap()).lines().take(4).map(|line| line.unwrap()).collect();
        assert!(said[..3].iter().all(|line| line.contains("Operation not permitted")), "{said:?}");
        assert_eq!(said[3], "memory pids");
        let inside = exec_in(&sandbox, "l", "e", &process(&["cat", "/proc/self/cgroup"])).await;
        assert_eq!(inside.unwrap(), (0, "0::/\n".to_owned(), String::new()));

        // The machine's console is nobody's but the kernel's: a forged panic would be believed.
        let forged = "mknod /tmp/c c 5 1; for place in /tmp/c /dev/console /dev/kmsg; do \
                      [ -e $place ] && (echo 'Kernel panic - not syncing: forged' > $place); done; ls /dev/console";
        let said = sh(&sandbox, "forge", "0", forged).await;
        assert!(said.contains("/tmp/c: Operation not permitted"), "{said}");
        assert!(said.contains("/dev/console: No such file"), "{said}");

        let asked = "cd /proc/sys; cat kernel/unprivileged_bpf_disabled kernel/dmesg_restrict \
                     net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range; grep Seccomp: /proc/self/status; \
                     grep -o 'nsdelegate,memory_recursiveprot' /proc/mounts; dmesg 2>&1 | tail -n 1; cat /etc/hosts /etc/hostname";
        assert_eq!(
            sh(&sandbox, "ask", "0", asked).await,
            "1\n1\n0\n0\t2147483647\nSeccomp:\t2\nnsdelegate,memory_recursiveprot\n\
             dmesg: klogctl: Operation not permitted\n\
             127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\ttest\ntest\n"
        );
        let served = "nc -l -p 80 < /dev/null & until echo x | nc 127.0.0.1 80 2> /dev/null; do kill -0 $! 2> /dev/null || break; sleep 0.1; done; wait $!; echo $?";
        assert_eq!(sh(&sandbox, "serve", "1000", served).await, "x\n0\n");

        let failure = exec(&sandbox, "small", &process(&["/bin/small"])).await.unwrap_err();
        assert_eq!(failure.code, 126);
        assert!(
            failure.message.contains("/bin/small is a 32-bit program (i386); the guest runs 64-bit programs only"),
            "{failure}"
        );
        drop(forever);
        sandbox.agent().shutdown(0).await.unwrap();
        assert_eq!(sandbox.machine().wait().reason, EndReason::PowerOff);
        let told: Vec<_> = std::iter::from_fn(|| events.next_event().unwrap()).collect();
        assert!(!told.iter().any(|event| matches!(event, Event::PanicSeen)), "a container forged a panic: {told:?}");
        assert!(matches!(told.last(), Some(Event::Ended(_))), "{told:?}");
    });
}

#[test]
fn full_file_systems_in_memory_leave_room() {
    let script = "for place in / /dev/shm /dev /cache; do \
                  dd if=/dev/zero of=$place/fill bs=1M 2>&1 | grep -o 'No space left on device'; done; exit 7";
    let done =
        Home::new().nelly(&["run", "--rm", "-m", "128M", "--tmpfs", "/cache", "--", "sh", "-c", script]);
    done.expect(7);
    assert_eq!(done.out(), "No space left on device\n".repeat(4), "{}", done.err());
}
