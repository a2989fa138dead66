//! PID 1 of the guest; with `--service`, a service of a guest that has an init of its own.

use std::fs::{self, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use nelly_agent::service::{Config, GuestState, ShutdownRequest};
use nelly_agent::spawn::launch::Launcher;
use nelly_agent::stdio::{Patience, Promises, connected};
use nelly_agent::timeline::Marks;
use nelly_agent::{arch, mounts, spawn, sys};
use nelly_protocol::ports::{
    AGENT_PORT, POWER_OFF, POWER_PANIC, POWER_PORT, POWER_REBOOT, READY_BYTE, READY_PORT, STREAM_PORT,
};
use nix::poll::{PollFd, PollFlags};

mod serving;
mod system_service;

use serving::{OPEN_FILES, attend, dial, listen, log};

/// How long to wait for the monitor to end the machine, in milliseconds.
const LAST_WORD_MS: u16 = 3000;

/// The connection to the power port. It is made before there is any container, because every
/// process of the guest could connect, and the monitor accepts only one connection.
static POWER: OnceLock<OwnedFd> = OnceLock::new();

fn main() {
    let began = arch::counter();
    if let Some(code) = spawn::init::asked() {
        std::process::exit(code);
    }
    let marks = Arc::new(Marks::new(began));
    if std::env::args_os().nth(1).is_some_and(|word| word == system_service::WORD) {
        let Err(error) = system_service::run(marks);
        log(&format!("nelly-agent: {error:#}"));
        std::process::exit(1);
    }
    if std::process::id() != 1 {
        eprintln!(
            "nelly-agent must run as PID 1 of a Nelly guest, or with --service under systemd in one; it does nothing elsewhere"
        );
        std::process::exit(2);
    }
    let boot_ns = sys::boot_time_ns();
    std::panic::set_hook(Box::new(|panic| {
        log(&format!("nelly-agent: bug: {panic}"));
        end_machine(POWER_PANIC);
    }));
    match run(boot_ns, marks) {
        Ok(ShutdownRequest { reboot: true, .. }) => end_machine(POWER_REBOOT),
        Ok(ShutdownRequest { reboot: false, .. }) => end_machine(POWER_OFF),
        Err(error) => {
            log(&format!("nelly-agent: {error:#}"));
            end_machine(POWER_PANIC);
        }
    }
}

/// Tells the monitor to end the machine and waits; if it does not, ends the machine by a reset.
fn end_machine(word: u8) -> ! {
    if word != POWER_PANIC {
        nix::unistd::sync();
    }
    if let Some(power) = POWER.get() {
        let wait = |what| {
            // Whatever is received, the machine is reset next.
            let _ = nix::poll::poll(&mut [PollFd::new(power.as_fd(), what)], LAST_WORD_MS);
        };
        // If the guest fails early, the monitor may not have accepted the connection yet.
        wait(PollFlags::POLLOUT);
        if sys::write(power.as_fd(), &[word]).is_ok() {
            wait(PollFlags::POLLIN);
        }
    }
    sys::reset_machine();
    std::process::exit(1)
}

fn run(boot_ns: u64, marks: Arc<Marks>) -> anyhow::Result<ShutdownRequest> {
    // The fast path: the host can connect before anything else is done, and its calls wait in the
    // accept queue.
    let (calls, streams) = (listen(AGENT_PORT)?, listen(STREAM_PORT)?);
    marks.listening();
    let ready_ns = sys::boot_time_ns();
    let power = dial(POWER_PORT)?;
    let begun = power.try_clone().context("cannot duplicate the connection to the power port")?;
    POWER.get_or_init(|| power);
    let ready = dial(READY_PORT)?;

    // New processes of containers begin as copies of this process, and must not be inspected by
    // others in the container.
    sys::set_not_dumpable().context("cannot make the agent undumpable")?;
    mounts::take_over().context("cannot set up the guest")?;
    // Otherwise a container could execute this program as /proc/self/exe or as an interpreter.
    fs::set_permissions("/proc/self/exe", Permissions::from_mode(0o400))
        .context("cannot take the execute permission from the agent's program")?;
    sys::loopback_up().context("cannot bring the loopback interface up")?;
    sys::set_resource_limit(libc::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        .context("cannot raise the limit of open files")?;
    let signals = sys::signal_fd().context("cannot open a signalfd for SIGCHLD")?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let end = runtime.block_on(async move {
        let launcher = Launcher { workdir: mounts::WORKDIR.to_owned() };
        let cgroup_root = mounts::CGROUP_ROOT.into();
        let config = Config { launcher, cgroup_root, boot_ns, ready_ns, marks: marks.clone() };
        let promises = Promises::new(Patience::default());
        let (guest, mut ends) = GuestState::new(config, promises.clone());
        attend(&guest, signals, calls, (streams, promises))?;
        // A monitor without a power port refuses the connection; the machine then ends by a reset.
        let _ = connected(begun).await;
        tell_ready(ready, &marks).await.context("cannot report to the host that the agent is ready")?;

        let end = ends.recv().await.context("the service has ended")?;
        // Gives the event loop time to send the answer to the call.
        for _ in 0..32 {
            tokio::task::yield_now().await;
        }
        guest.stop_containers(Duration::from_millis(end.grace_ms.into())).await;
        Ok(end)
    });
    // What is held of ended containers goes with the tasks: the disks of their writable layers are
    // unmounted here.
    drop(runtime);
    end
}

async fn tell_ready(socket: OwnedFd, marks: &Marks) -> anyhow::Result<()> {
    let socket = connected(socket).await?;
    marks.ready();
    sys::write(socket.as_fd(), &[READY_BYTE])?;
    Ok(())
}
