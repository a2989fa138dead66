//! A program that runs, a host with a certificate, and a guest that trusts the program's authority.

use std::io::{BufRead, BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nelly_net::config::{Confine, Handover, PLACEHOLDER, Secret, SecretValue, SecretsConfig};
use nelly_net::sys::{message_pair, write_with_descriptors};
use nelly_secrets::authority::Authority;
use nelly_secrets::trust;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConnection, ServerConnection, StreamOwned};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nelly-secrets");
/// The host that has secrets.
pub(crate) const NAME: &str = "api.example";
/// Its port, as the guest knows it.
pub(crate) const PORT: u16 = 443;
/// What only the host may see.
pub(crate) const VALUE: &str = "the real value";
/// Nothing takes longer; what waits for ever is to fail.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Guest = StreamOwned<ClientConnection, UnixStream>;
pub(crate) type Host = StreamOwned<ServerConnection, TcpStream>;

/// The placeholder of a secret.
pub(crate) fn placeholder(name: &str) -> String {
    format!("{PLACEHOLDER}{name}-{}", "0123456789abcdef".repeat(2))
}

/// The program, with `KEY` for the host and `OTHER` for another one.
pub(crate) struct Stage {
    pub(crate) child: Child,
    pub(crate) confinement: Vec<String>,
    handovers: Option<OwnedFd>,
    authority: String,
    hosts: Authority,
    /// A certificate that is believed, and is for another name.
    other: Arc<rustls::ServerConfig>,
    log: std::fs::File,
    place: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::of(Path::new(PROGRAM), None)
    }

    /// Of this file, as this user if it is another one.
    pub(crate) fn of(program: &Path, user: Option<u32>) -> Self {
        let secret = |name: &str, value: &str, host: &str| Secret {
            name: name.to_owned(),
            placeholder: placeholder(name),
            value: SecretValue::new(value.to_owned()).unwrap(),
            hosts: vec![host.parse().unwrap()],
        };
        let hosts = Authority::new(["example"]).unwrap();
        let other = rcgen::generate_simple_self_signed(["other.example".to_owned()]).unwrap();
        let text = STANDARD.encode(other.cert.der());
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        let key = PrivatePkcs8KeyDer::from(other.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider);
        let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let other = Arc::new(server.with_single_cert(vec![other.cert.der().clone()], key.into()).unwrap());
        let config = SecretsConfig {
            schema: 1,
            secrets: vec![secret("KEY", VALUE, NAME), secret("OTHER", "never", "*.other.example")],
            authorities: vec![hosts.pem(), pem],
            confine: Confine::On,
        };
        let place = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(place.path().join("log")).unwrap();
        let (child, said, handovers) =
            start_as((program, user), &serde_json::to_vec(&config).unwrap(), Some(&log));
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).expect(&line);
        let words = ready["confinement"].as_array().unwrap().iter();
        Self {
            child,
            confinement: words.map(|word| word.as_str().unwrap().to_owned()).collect(),
            handovers: Some(handovers),
            authority: ready["authority"].as_str().unwrap().to_owned(),
            hosts,
            other,
            log,
            place,
        }
    }

    /// The guest's raw stream and the host's socket, of a connection to `name`.
    pub(crate) fn raw(&self, name: &str) -> (UnixStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let host = listener.accept().unwrap().0;
        let (guest, theirs) = UnixStream::pair().unwrap();
        let about = Handover {
            name: name.to_owned(),
            port: PORT,
            from: "10.0.2.15:40000".to_owned(),
            to: "192.0.2.1:443".to_owned(),
        };
        let text = serde_json::to_vec(&about).unwrap();
        self.tell(&text, &[theirs.into(), near.into()]);
        guest.set_read_timeout(Some(PATIENCE)).unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        (guest, host)
    }

    /// Says something on the socket of connections.
    pub(crate) fn tell(&self, text: &[u8], files: &[OwnedFd]) {
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut goes = SendAncillaryBuffer::new(&mut space);
        assert!(files.is_empty() || goes.push(SendAncillaryMessage::ScmRights(&files)));
        let parts = [std::io::IoSlice::new(text)];
        sendmsg(self.handovers.as_ref().unwrap(), &parts, &mut goes, SendFlags::empty()).unwrap();
    }

    /// A guest that trusts the machine's authority.
    pub(crate) fn guest(&self, stream: UnixStream, name: &str) -> Guest {
        let config = trust::client(b"", std::slice::from_ref(&self.authority)).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        StreamOwned::new(ClientConnection::new(config, name).unwrap(), stream)
    }

    /// A host whose certificate is for `name`.
    pub(crate) fn host(&mut self, stream: TcpStream, name: &str) -> Host {
        StreamOwned::new(ServerConnection::new(self.hosts.server(name).unwrap()).unwrap(), stream)
    }

    /// A host whose certificate is for another name, whatever it is asked for.
    pub(crate) fn other_host(&self, stream: TcpStream) -> Host {
        StreamOwned::new(ServerConnection::new(Arc::clone(&self.other)).unwrap(), stream)
    }

    /// A guest, and what `serve` does as the host; the host's own result comes at its end.
    pub(crate) fn both<T: Send + 'static>(
        &mut self,
        serve: impl FnOnce(&mut Host) -> T + Send + 'static,
    ) -> (Guest, mpsc::Receiver<T>) {
        let (guest, host) = self.raw(NAME);
        let mut host = self.host(host, NAME);
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let result = serve(&mut host);
            host.conn.send_close_notify();
            let _gone = host.flush();
            drop(host);
            let _gone = tell.send(result);
        });
        (self.guest(guest, NAME), told)
    }

    /// The lines of the log so far.
    pub(crate) fn log(&self) -> String {
        self.log.sync_all().unwrap();
        std::fs::read_to_string(self.place.path().join("log")).unwrap()
    }

    /// The lines of the log, with those about everything that anybody has heard of yet.
    pub(crate) fn whole_log(&self) -> String {
        // The program does one thing after the other, and ends this connection after its line.
        let (mut guest, _host) = self.raw("elsewhere.example");
        let _end = guest.read(&mut [0]);
        let log = self.log();
        log.lines()
            .filter(|line| !line.contains("elsewhere"))
            .fold(String::new(), |all, line| all + line + "\n")
    }

    /// Whoever hands connections over is gone: the program's exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        self.handovers = None;
        self.child.wait().unwrap().code()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ended = (self.child.kill(), self.child.wait());
    }
}

/// Starts the program with a configuration; gives what it says, and the socket of connections.
pub(crate) fn start(config: &[u8], log: Option<&std::fs::File>) -> (Child, UnixStream, OwnedFd) {
    start_as((Path::new(PROGRAM), None), config, log)
}

fn start_as(
    (program, user): (&Path, Option<u32>),
    config: &[u8],
    log: Option<&std::fs::File>,
) -> (Child, UnixStream, OwnedFd) {
    let (ours, theirs) = message_pair().unwrap();
    let (said, telling) = UnixStream::pair().unwrap();
    let mut command = Command::new(program);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    command.args(["--config", "fd:0", "--ready", "fd:0"]).env("SECRET_OF_CALLER", "in the environment");
    let complaints = telling.try_clone().unwrap();
    command.stdin(OwnedFd::from(telling)).stderr(OwnedFd::from(complaints));
    let child = command.spawn().unwrap();
    drop(command);
    let files: Vec<_> = [theirs.as_fd()].into_iter().chain(log.map(AsFd::as_fd)).collect();
    write_with_descriptors(&said, config, &files).unwrap();
    said.shutdown(std::net::Shutdown::Write).unwrap();
    said.set_read_timeout(Some(PATIENCE)).unwrap();
    (child, said, ours)
}

/// Reads to the end of a head, byte by byte: what follows stays.
pub(crate) fn head(stream: &mut impl Read) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            break;
        }
        text.extend(byte);
    }
    String::from_utf8(text).unwrap()
}

/// Reads so many bytes.
pub(crate) fn bytes(stream: &mut impl Read, len: usize) -> Vec<u8> {
    let mut all = vec![0; len];
    stream.read_exact(&mut all).unwrap();
    all
}

/// Reads to the end, and whether that was told.
pub(crate) fn rest(stream: &mut impl Read) -> (String, bool) {
    let mut all = Vec::new();
    let whole = stream.read_to_end(&mut all).is_ok();
    (String::from_utf8_lossy(&all).into_owned(), whole)
}
