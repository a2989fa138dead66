//! The agent as a service of a guest that has an init of its own, as a cloud image does: systemd
//! starts it, again if it ends, and ends it. It sets nothing of the guest up and has no say over
//! the machine's end; what it starts is in the guest's own namespaces, in cgroups below its
//! service's.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nelly_agent::cgroup::{self, Cgroup};
use nelly_agent::service::{Config, GuestState};
use nelly_agent::spawn::launch::Launcher;
use nelly_agent::stdio::{Patience, Promises, connected};
use nelly_agent::timeline::Marks;
use nelly_agent::{mounts, sys};
use nelly_protocol::ports::{READY_PORT, SERVICE_PORT, SERVICE_STREAM_PORT};

use crate::serving::{OPEN_FILES, attend, dial, listen, log};

/// The word that asks for this.
pub(super) const WORD: &str = "--service";

/// Where systemd says that it is the init (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// How soon a host that does not call is told again that the agent is here.
const AGAIN: Duration = Duration::from_secs(10);

/// The guest's own init.
const INIT: i32 = 1;

/// Serves until the process is ended.
pub(super) fn run(marks: Arc<Marks>) -> anyhow::Result<Infallible> {
    let boot_ns = sys::boot_time_ns();
    if !Path::new(BOOTED).is_dir() {
        bail!("systemd is not the init of this guest: there is no {BOOTED}");
    }
    let own = cgroup::own().context("the guest has no cgroups of version 2, which the agent needs")?;
    // Whoever is there when the service is started again is not in the way.
    let name = format!("execs-{}", std::process::id());
    let cgroup = Cgroup::create(&own, &name).context("cannot make cgroups below the service's own")?;
    sys::set_not_dumpable().context("cannot make the agent undumpable")?;
    sys::set_resource_limit(libc::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        .context("cannot raise the limit of open files")?;
    let (calls, streams) = (listen(SERVICE_PORT)?, listen(SERVICE_STREAM_PORT)?);
    marks.listening();
    let ready_ns = sys::boot_time_ns();
    let signals = sys::signal_fd().context("cannot open a signalfd for SIGCHLD")?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let launcher = Launcher { workdir: mounts::WORKDIR.to_owned() };
        let cgroup_root = mounts::CGROUP_ROOT.into();
        let config = Config { launcher, cgroup_root, boot_ns, ready_ns, marks: marks.clone() };
        let promises = Promises::new(Patience::default());
        // Nobody asks it for the end: that is its init's to bring about.
        let (guest, _ends) = GuestState::new(config, promises.clone());
        guest.serve_machine(INIT, cgroup)?;
        attend(&guest, signals, calls, (streams, promises))?;
        // The host does not call by itself. It may not listen yet, or have lost its connection.
        let mut told = None;
        loop {
            if !guest.has_callers() {
                // The connection itself is the word: the host reads nothing of it.
                let tells = async { Ok::<_, anyhow::Error>(connected(dial(READY_PORT)?).await?) }.await;
                let failed = tells.err().map(|error| format!("{error:#}"));
                if let Some(error) = failed.as_ref().filter(|_| told != failed) {
                    log(&format!("nelly-agent: the host does not hear that the agent is here: {error}"));
                }
                told = failed;
                marks.ready();
            }
            tokio::time::sleep(AGAIN).await;
        }
    })
}
