//! Connections between the host and containers.

use std::os::unix::ffi::OsStrExt;

use nelly_protocol::messages as wire;
use ttrpc::context::Context;

use super::{Agent, AgentError, Token, context, failed};
use crate::spec::RelayAddress;

fn address(address: &RelayAddress) -> wire::ContainerAddress {
    match address {
        RelayAddress::Unix(path) => {
            wire::ContainerAddress { path: path.as_os_str().as_bytes().to_vec(), ..Default::default() }
        }
        RelayAddress::Tcp(port) => wire::ContainerAddress { port: (*port).into(), ..Default::default() },
    }
}

fn token(call: &'static str, given: Vec<u8>) -> Result<Token, AgentError> {
    let missing = "the answer does not contain the token of the connection";
    Token::try_from(given).map_err(|_| failed(call)(ttrpc::Error::Others(missing.into())))
}

impl Agent {
    /// Connects to an address of a container. Returns the token of the stream to it.
    ///
    /// # Errors
    /// The container does not run, or nobody accepts there.
    pub async fn connect(&self, container: &str, to: &RelayAddress) -> Result<Token, AgentError> {
        let request = wire::ConnectRequest {
            container_id: container.to_owned(),
            address: Some(address(to)).into(),
            ..Default::default()
        };
        let answer = self.client()?.connect(context(), &request).await.map_err(failed("Connect"))?;
        token("Connect", answer.token)
    }

    /// Listens at an address of a container, which need not have started. Returns the listener's
    /// number.
    ///
    /// # Errors
    /// It cannot listen there.
    pub async fn listen(&self, container: &str, at: &RelayAddress) -> Result<u32, AgentError> {
        let request = wire::ListenRequest {
            container_id: container.to_owned(),
            address: Some(address(at)).into(),
            ..Default::default()
        };
        Ok(self.client()?.listen(context(), &request).await.map_err(failed("Listen"))?.listener)
    }

    /// Waits for the next connection to a listener. Returns the token of the stream to it.
    ///
    /// # Errors
    /// There is no such listener, as after the container's end.
    pub async fn accept(&self, listener: u32) -> Result<Token, AgentError> {
        let request = wire::AcceptRequest { listener, ..Default::default() };
        let answer = self.client()?.accept(Context::default(), &request).await.map_err(failed("Accept"))?;
        token("Accept", answer.token)
    }
    /// Gives up a stream whose token is not going to be used: the container's end is closed.
    ///
    /// # Errors
    /// The agent is gone, or from before this call: then the token expires after a minute.
    pub async fn forget(&self, token: &Token) -> Result<(), AgentError> {
        let request = wire::ForgetRequest { token: token.to_vec(), ..Default::default() };
        self.client()?.forget(context(), &request).await.map_err(failed("Forget"))?;
        Ok(())
    }
}
