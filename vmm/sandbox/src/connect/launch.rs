//! Starts a keeper, and hears how the sandbox's first start went.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nelly_vmm::sys;
use nelly_vmm::sys::files::{self, Accept};
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::spec::network::{SecretError, SecretValues};
use crate::spec::{ShareError, shares};
use crate::state::{Id, SandboxDir, SandboxLock, SandboxRecord};
use crate::wire::order::{Answer, ClientEnds, ContainerFiles, Files, Last, MachineFiles, Order};

/// Why a sandbox was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program cannot be started.
    #[error("cannot start the program that holds the sandbox, {}", .program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It ended, or said what cannot be understood.
    #[error("the process that holds the sandbox ended before it said anything; `nelly inspect` may show why")]
    Silent(#[source] io::Error),
    /// A file of it cannot be opened.
    #[error("cannot open the sandbox's {what} {}", .path.display())]
    File {
        /// What it is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A directory or file of the host is not what it was.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The value of a secret cannot be had.
    #[error("{source}, and each start needs the value")]
    Secret {
        /// Which, and why.
        #[from]
        source: SecretError,
    },
    /// Its monitor is gone.
    #[error("the sandbox's monitor {} is missing", .0.display())]
    NoMonitor(PathBuf),
    /// The sandbox did not start: the exit code of the command, and why.
    #[error("{message}")]
    Refused {
        /// 125, 126 or 127.
        code: u8,
        /// Why.
        message: String,
    },
}

/// A sandbox whose container runs, and the socket over which its keeper tells of its end to a
/// client that has the container's streams.
#[derive(Debug)]
pub struct Launched(BufReader<UnixStream>);

impl Launched {
    /// Waits until the sandbox has ended for good. Only a client whose streams were among the files
    /// is told.
    ///
    /// # Errors
    /// The keeper ended before it said anything.
    pub fn ended(self) -> Result<Last, LaunchError> {
        line(&mut { self.0 }).map_err(LaunchError::Silent)
    }
}

/// Reads an answer.
fn line<T: DeserializeOwned>(from: &mut BufReader<UnixStream>) -> io::Result<T> {
    let mut said = String::new();
    from.take(64 << 10).read_line(&mut said)?;
    Ok(serde_json::from_str(&said)?)
}

/// Opens the files of a sandbox whose lock this process holds: what a start needs, with the `disks`
/// of its image and without the streams of a client. `values` are those of its secrets, if somebody
/// has read them for this start: a pipe has them once.
///
/// # Errors
/// [`LaunchError::File`], [`LaunchError::Share`], [`LaunchError::NoMonitor`].
pub fn open_files(
    sandbox: &SandboxDir,
    record: &SandboxRecord,
    lock: SandboxLock,
    disks: Vec<File>,
    values: Option<SecretValues>,
) -> Result<Files, LaunchError> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| LaunchError::File { what, path, source }
    };
    let open = |what, path: &Path| {
        files::open(path, File::options().read(true), Accept::Regular).map_err(failed(what, path))
    };
    let kernel = open("kernel", &record.machine.kernel)?;
    let initrd = open("initramfs", &record.machine.initrd)?;
    if !record.machine.monitor.is_file() {
        return Err(LaunchError::NoMonitor(record.machine.monitor.clone()));
    }
    let storage = match record.storage_bytes {
        0 => None,
        _ => {
            let path = sandbox.disk();
            Some(File::options().read(true).write(true).open(&path).map_err(failed("disk", &path))?)
        }
    };
    let shares = shares::open(&record.container.options.shares)?;
    let secrets = match values {
        Some(values) => values,
        None => SecretValues::read(&record.machine.network, |name| std::env::var_os(name))?,
    };
    let (lock, client) = (Some(lock.into_fd()), ClientEnds::default());
    let machine = MachineFiles::Container(ContainerFiles { kernel, initrd, disks, storage, shares });
    Ok(Files { lock, machine, client, secrets })
}

/// Starts the keeper `program` for the sandbox `id` of the state directory `sandboxes` with its
/// `files`, whose lock it takes over, and waits until the container runs. Whoever is killed while
/// it waits takes the attempt along. `size` is the first size of the container's terminal, rows and
/// columns.
///
/// # Errors
/// The container does not run.
pub fn launch(
    program: &Path,
    sandboxes: &Path,
    id: Id,
    files: Files,
    size: Option<(u16, u16)>,
) -> Result<Launched, LaunchError> {
    let failed = |source| LaunchError::Program { program: program.to_owned(), source };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut command = Command::new(program);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    // It is told the values, and its environment can be read for as long as it lives.
    for variable in files.secrets.variables() {
        command.env_remove(variable);
    }
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    drop(command);
    let mut child = child.map_err(failed)?;
    let mut files = files;
    let order = Order {
        schema: Order::SCHEMA,
        sandboxes: sandboxes.to_owned(),
        id,
        machine: files.machine.order(),
        client: files.client(),
        size,
        secrets: std::mem::take(&mut files.secrets),
    };
    let text = serde_json::to_string(&order).map_err(|error| LaunchError::Silent(error.into()))?;
    let text = Zeroizing::new(text + "\n");
    drop(order);
    let descriptors: Vec<BorrowedFd<'_>> = files.all().collect();
    let told = sys::send(ours.as_fd(), text.as_bytes(), &descriptors);
    drop(descriptors);
    // The keeper alone has its ends of the streams.
    drop(files);
    let mut ours = BufReader::new(ours);
    let answer = told.and_then(|()| line(&mut ours));
    match answer {
        Ok(Answer { code: 0, .. }) => Ok(Launched(ours)),
        Ok(Answer { code, message }) => {
            drop(ours);
            // It ends now; nobody else collects it.
            let _ended = child.wait();
            Err(LaunchError::Refused { code, message })
        }
        Err(error) => {
            // One that has no whole order waits for the rest until then.
            drop(ours);
            let _ended = child.wait();
            Err(LaunchError::Silent(error))
        }
    }
}
