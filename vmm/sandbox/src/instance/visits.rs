//! An agent that is a service of a guest with an init of its own: it comes late in the guest's
//! boot, goes with its end, and comes again with the next.

use std::io;
use std::time::Duration;

use nelly_protocol::{MACHINE, ports};
use nelly_vmm::machine::VsockListener;

use super::relays::Relays;
use super::waits::{accept, answered};
use super::{Sandbox, SandboxError, entropy, host, now_unix_ns, what};
use crate::agent::Agent;
use crate::spec::relay::{Relay, Side};

/// How long an agent may take to be connected and to answer its first call.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long nobody listens to hints after one. Every process of the guest can give one, and each
/// costs a connection.
const PAUSE: Duration = Duration::from_millis(500);

impl Sandbox {
    /// Greets the guest's agent whenever it has come, and lets `relays` lead to the guest while it
    /// is there, until the machine ends. Those that listen on this host do so all the time, so that
    /// nobody else takes their addresses. Comes back at once if the guest has none that comes and
    /// goes.
    ///
    /// # Errors
    /// The monitor does not listen for it, or has ended.
    pub async fn meet(&self, relays: &[Relay]) -> Result<(), SandboxError> {
        if !self.agent.comes_and_goes() {
            return Ok(());
        }
        let (inward, outward): (Vec<_>, Vec<_>) =
            relays.iter().cloned().partition(|relay| relay.listens == Side::Host);
        self.lead(&inward).await;
        let stay = self.served().len();
        let mut hints = self.during(self.hints()).await?;
        loop {
            // What was said is not looked at: whoever it was, the agent's own port is asked.
            let hint = self.during(async { Ok::<_, SandboxError>(accept(&mut hints).await) }).await?;
            match hint.map(drop) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(host("cannot listen for the agent")(error));
                }
                // Without a descriptor that one is lost, and others come.
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Ok(()) => {}
            }
            // One that is there has not come again, and those who wait for it go on.
            if self.agent.is_there() {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            // Those of the agent that is gone.
            self.served().truncate(stay);
            let met = tokio::time::timeout(PATIENCE, self.greet_service()).await;
            // One that does not answer, or is none, may come later.
            if let Ok(Ok(agent)) = met {
                self.agent.come(&agent);
                self.lead(&outward).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Where the guest says that there may be an agent.
    async fn hints(&self) -> Result<VsockListener, SandboxError> {
        let hints = async {
            let (hints, listening) = self.machine.vsock().begin_listen(ports::READY_PORT)?;
            answered(listening).await?.done()?;
            Ok(hints)
        };
        hints.await.map_err(what("cannot listen for the agent"))
    }

    async fn greet_service(&self) -> Result<Agent, SandboxError> {
        let connected =
            async { answered(self.machine.vsock().begin_connect(ports::SERVICE_PORT)?).await?.stream() };
        let stream = self.during(async { connected.await.map_err(what("cannot connect to the agent")) });
        let agent = Agent::new(stream.await?)?;
        let entropy = entropy().map_err(host("cannot read random bytes"))?;
        self.during(agent.hello_again(now_unix_ns(), entropy)).await?;
        Ok(agent)
    }

    /// Serves `relays`. One that cannot listen does not keep the others from it, and its state says
    /// why: those of this host were tried before the machine started.
    async fn lead(&self, relays: &[Relay]) {
        for relay in relays {
            let one = std::slice::from_ref(relay);
            let listening = self.during(self.carrier(MACHINE).listen(one)).await;
            let relays = match listening {
                Ok(listening) => listening.serve(),
                Err(error) => Relays::deaf(relay.clone(), &error),
            };
            self.served().push(relays);
        }
    }
}
