//! Containers and their processes: made, started, waited for, told.

use nelly_protocol::messages as wire;
use serde::Serialize;
use ttrpc::context::Context;

use super::{Agent, AgentError, CALL_NS, Token, context, failed, sentence};
use crate::spec::options::Device;
use crate::spec::{ContainerSpec, ProcessSpec, Share, Volume, oci, shares};

/// Time limit for making a container with volumes, in nanoseconds.
const FILL_NS: i64 = 900_000_000_000;

/// The largest exit code that a process has.
const EXIT_MOST: u32 = 255;

/// The largest number of a signal.
const SIGNAL_MOST: u32 = 64;

/// Why a program was not started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartFailure {
    /// 125, 126 or 127.
    pub code: u8,
    /// What was tried, on which path, and the error.
    pub message: String,
}

/// The streams of a process, with their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Standard input, or both directions of a terminal.
    pub stdin: Option<Token>,
    /// Standard output; none with a terminal.
    pub stdout: Option<Token>,
    /// Standard error; none with a terminal.
    pub stderr: Option<Token>,
}

/// The id of a process: a container's first process, or an exec.
#[derive(Clone, Copy, Debug)]
pub struct ProcessId<'a> {
    /// The container.
    pub container: &'a str,
    /// The exec; empty for the first process.
    pub exec: &'a str,
}

fn json(call: &'static str, object: &impl Serialize) -> Result<Vec<u8>, AgentError> {
    serde_json::to_vec(object).map_err(|source| AgentError::Request { call, source })
}

fn volume(volume: &Volume) -> wire::Volume {
    wire::Volume {
        name: volume.name.clone(),
        path: volume.path.clone(),
        read_only: volume.read_only,
        copy_up: volume.copy_up,
        ..Default::default()
    }
}

/// A share of this number.
fn share((number, share): (usize, &Share)) -> wire::Share {
    wire::Share {
        tag: shares::tag(number).as_str().to_owned(),
        path: share.path.clone(),
        read_only: share.read_only,
        file: share.file,
        ..Default::default()
    }
}

fn guest_device(device: &Device) -> wire::Device {
    wire::Device {
        source: device.source.clone(),
        path: device.path.clone(),
        access: device.access.clone(),
        ..Default::default()
    }
}

/// The streams of a process; `size` is the initial size of its terminal, rows and columns.
fn stdio(process: &ProcessSpec, size: Option<(u16, u16)>) -> wire::Stdio {
    // 0 selects the kernel's default size.
    let (rows, columns) = size.unwrap_or((0, 0));
    wire::Stdio {
        terminal: process.terminal,
        rows: rows.into(),
        columns: columns.into(),
        stdin: process.stdin || process.terminal,
        stdout: !process.terminal,
        stderr: !process.terminal,
        ..Default::default()
    }
}

/// The tokens in an answer, which must be those of the requested streams.
fn tokens(call: &'static str, asked: &wire::Stdio, given: wire::StreamTokens) -> Result<Tokens, AgentError> {
    let take = |asked: bool, given: Vec<u8>| match (asked, Token::try_from(given)) {
        (true, Ok(token)) => Ok(Some(token)),
        (false, Err(given)) if given.is_empty() => Ok(None),
        _ => Err(failed(call)(ttrpc::Error::Others(
            "the answer does not contain the tokens of the streams".into(),
        ))),
    };
    Ok(Tokens {
        stdin: take(asked.stdin, given.stdin)?,
        stdout: take(asked.stdout, given.stdout)?,
        stderr: take(asked.stderr, given.stderr)?,
    })
}

impl Agent {
    /// Creates a container on the read-only image `device`, without running its program. Returns
    /// the tokens of the streams of its first process. `size` is the size of its terminal, rows and
    /// columns, if it has one.
    ///
    /// # Errors
    /// The container cannot be created.
    pub async fn create(
        &self,
        id: &str,
        spec: &ContainerSpec,
        device: &str,
        size: Option<(u16, u16)>,
    ) -> Result<Tokens, AgentError> {
        let rootfs = wire::Rootfs {
            device: device.to_owned(),
            filesystem: "erofs".to_owned(),
            read_only: spec.read_only,
            upper_bytes: spec.upper_bytes,
            upper_device: spec.upper_device.clone().unwrap_or_default(),
            volumes: spec.options.volumes.iter().map(volume).collect(),
            shares: spec.options.shares.iter().enumerate().map(share).collect(),
            ..Default::default()
        };
        let stdio = stdio(&spec.process, size);
        let request = wire::CreateContainerRequest {
            id: id.to_owned(),
            spec: json("CreateContainer", &oci::container(spec))?,
            user: spec.process.user.clone(),
            additional_groups: spec.process.rights.groups.clone(),
            hosts: spec.options.hosts.iter().map(|host| format!("{} {}", host.address, host.name)).collect(),
            init: spec.options.init,
            devices: spec.options.devices.iter().map(guest_device).collect(),
            rootfs: Some(rootfs).into(),
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        // New volumes are filled, however much the image has for them.
        let limit = if spec.options.volumes.is_empty() { CALL_NS } else { FILL_NS };
        let response = self.client()?.create_container(ttrpc::context::with_timeout(limit), &request).await;
        let response = response.map_err(failed("CreateContainer"))?;
        tokens("CreateContainer", &stdio, response.streams.unwrap_or_default())
    }

    /// The number of a container's first process in the guest; `None` when it does not run.
    ///
    /// # Errors
    /// There is no such container, or the connection failed.
    pub async fn first_process(&self, container: &str) -> Result<Option<u32>, AgentError> {
        let request = wire::StateRequest { container_id: container.to_owned(), ..Default::default() };
        let response = self.client()?.state(context(), &request).await.map_err(failed("State"))?;
        let runs = |state: &&wire::ContainerState| {
            state.id == container && state.status == wire::container_state::Status::RUNNING.into()
        };
        let running = response.containers.iter().find(runs);
        Ok(running.map(|state| state.pid).filter(|process| *process != 0))
    }

    /// Starts a created container's process.
    ///
    /// # Errors
    /// The call failed. If the program cannot be executed, this is the inner error.
    pub async fn start(&self, container: &str) -> Result<Result<u32, StartFailure>, AgentError> {
        let request =
            wire::StartContainerRequest { container_id: container.to_owned(), ..Default::default() };
        let response =
            self.client()?.start_container(context(), &request).await.map_err(failed("StartContainer"))?;
        Ok(started(response))
    }

    /// Starts another process in a running container, otherwise as [`Agent::create`] and
    /// [`Agent::start`].
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn exec(
        &self,
        id: ProcessId<'_>,
        process: &ProcessSpec,
        size: Option<(u16, u16)>,
    ) -> Result<Result<Tokens, StartFailure>, AgentError> {
        let stdio = stdio(process, size);
        let request = wire::ExecRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            process: json("Exec", &oci::process(process))?,
            user: process.user.clone(),
            additional_groups: process.rights.groups.clone(),
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        let mut response = self.client()?.exec(context(), &request).await.map_err(failed("Exec"))?;
        let given = response.streams.take().unwrap_or_default();
        match started(response) {
            Ok(_) => tokens("Exec", &stdio, given).map(Ok),
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// Waits for the end of a process, without a time limit.
    ///
    /// # Errors
    /// There is no such process, the connection failed, or what came is no end of a process.
    pub async fn wait(&self, id: ProcessId<'_>) -> Result<wire::WaitResponse, AgentError> {
        let request = wire::WaitRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            ..Default::default()
        };
        let done = self.client()?.wait(Context::default(), &request).await.map_err(failed("Wait"))?;
        if done.exit_code > EXIT_MOST || done.signal > SIGNAL_MOST {
            let text = format!("it told of exit code {} and signal {}", done.exit_code, done.signal);
            return Err(failed("Wait")(ttrpc::Error::Others(text)));
        }
        Ok(done)
    }

    /// Deletes the result of an exec, which [`Agent::wait`] returns until then.
    ///
    /// # Errors
    /// There is no such exec, or it has not ended.
    pub async fn delete_exec(&self, container: &str, exec: &str) -> Result<(), AgentError> {
        let request = wire::DeleteExecRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.client()?.delete_exec(context(), &request).await.map_err(failed("DeleteExec"))?;
        Ok(())
    }

    /// Sends a signal, as a Linux signal number.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn signal(&self, id: ProcessId<'_>, signal: u32) -> Result<(), AgentError> {
        let request = wire::SignalRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            signal,
            ..Default::default()
        };
        self.client()?.signal(context(), &request).await.map_err(failed("Signal"))?;
        Ok(())
    }

    /// The same for the process group that a process leads: every process is started as the leader
    /// of a session of its own.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn signal_group(&self, id: ProcessId<'_>, signal: u32) -> Result<(), AgentError> {
        let request = wire::SignalRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            signal,
            group: true,
            ..Default::default()
        };
        self.client()?.signal(context(), &request).await.map_err(failed("Signal"))?;
        Ok(())
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// There is no such process, or it has no terminal.
    pub async fn resize(&self, id: ProcessId<'_>, rows: u16, columns: u16) -> Result<(), AgentError> {
        let request = wire::ResizePtyRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            rows: rows.into(),
            columns: columns.into(),
            ..Default::default()
        };
        self.client()?.resize_pty(context(), &request).await.map_err(failed("ResizePty"))?;
        Ok(())
    }

    /// Resource use of a container, or of the guest if `container` is empty.
    ///
    /// # Errors
    /// There is no such container.
    pub async fn stats(&self, container: &str) -> Result<wire::StatsResponse, AgentError> {
        let request = wire::StatsRequest { container_id: container.to_owned(), ..Default::default() };
        self.client()?.stats(context(), &request).await.map_err(failed("Stats"))
    }

    /// Sets the limit of a container's memory in bytes, or removes it.
    ///
    /// # Errors
    /// The container does not run or uses more, the agent does not know the call, or the connection
    /// failed.
    pub async fn limit_memory(&self, container: &str, limit: Option<u64>) -> Result<(), AgentError> {
        let request = wire::UpdateContainerRequest {
            container_id: container.to_owned(),
            memory_limit_bytes: limit.unwrap_or(0),
            ..Default::default()
        };
        let answer = self.client()?.update_container(context(), &request).await;
        answer.map(drop).map_err(failed("UpdateContainer"))
    }
}

fn started(response: wire::StartResponse) -> Result<u32, StartFailure> {
    use wire::start_failure::Kind;
    match response.failure.into_option() {
        None => Ok(response.pid),
        Some(failure) => {
            let code = match failure.kind.enum_value() {
                Ok(Kind::NOT_FOUND) => crate::state::outcome::NOT_FOUND,
                Ok(Kind::NOT_EXECUTABLE) => crate::state::outcome::NOT_EXECUTABLE,
                Ok(Kind::OTHER) | Err(_) => crate::state::outcome::FAILED,
            };
            let message = match failure.message {
                // Whoever is to read it should not look at an empty line.
                empty if empty.trim().is_empty() => {
                    "the guest's agent started no process, and did not say why".into()
                }
                said => sentence(said),
            };
            Err(StartFailure { code, message })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_tokens_of_the_streams_and_no_other() {
        let asked = wire::Stdio { stdout: true, ..Default::default() };
        let given = |stdin: usize, stdout: usize| wire::StreamTokens {
            stdin: vec![1; stdin],
            stdout: vec![2; stdout],
            ..Default::default()
        };
        let right = tokens("Exec", &asked, given(0, 16)).unwrap();
        assert_eq!(right, Tokens { stdout: Some([2; 16]), ..Tokens::default() });
        for (stdin, stdout) in [(0, 0), (0, 15), (0, 17), (16, 16), (1, 16)] {
            assert!(tokens("Exec", &asked, given(stdin, stdout)).is_err(), "{stdin} {stdout}");
        }
    }
}
