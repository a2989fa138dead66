//! One device of each kind, for the targets of what is the same for all of them.

use std::fs::File;
use std::sync::Arc;

use nelly_disk::{RawDisk, ReadBuffer, WriteBuffer};
use nelly_vmm::config::{
    DatagramLink, FileSource, MacAddress, NetworkConfig, NetworkId, NetworkLink, VsockConfig,
};
use nelly_vmm::memory::{Backing, Slot};
use nelly_vmm::virtio::balloon::Balloon;
use nelly_vmm::virtio::blk::Block;
use nelly_vmm::virtio::console::{Console, Ends};
use nelly_vmm::virtio::device::Device;
use nelly_vmm::virtio::fs::{FileServer, FileSystem};
use nelly_vmm::virtio::mem::MemoryDevice;
use nelly_vmm::virtio::net::Network;
use nelly_vmm::virtio::rng::Rng;
use nelly_vmm::virtio::vsock::Vsock;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// Kinds of devices.
pub(crate) const KINDS: u8 = 8;

/// A device of the kind that a byte chooses.
pub(crate) fn device(kind: u8) -> Box<dyn Device> {
    match kind % KINDS {
        0 => Box::new(Rng),
        1 => Box::new(Block::new(Box::new(RawDisk::new(file(4096), false).expect("a disk")), "fuzz")),
        2 => Box::new(Console::new(Ends { input: None, output: Some(file(0).into()) })),
        3 => {
            let slot = Slot::new(1, 1 << 27, 32 << 20, Backing::Anonymous, false).expect("a slot");
            let (device, control) = MemoryDevice::new(slot);
            control.request(4 << 20).expect("whole blocks");
            Box::new(device)
        }
        4 => Box::new(Vsock::new(&VsockConfig::default(), None).expect("a device").0),
        5 => Box::new(network()),
        7 => {
            let slot = Slot::new(1, 1 << 27, 32 << 20, Backing::Anonymous, false).expect("a slot");
            Box::new(Balloon::new(&[slot]).0)
        }
        _ => Box::new(FileSystem::new(Arc::new(Refusing), "fuzz", false)),
    }
}

/// A file in memory.
fn file(bytes: u64) -> File {
    let fd = rustix::fs::memfd_create("device", rustix::fs::MemfdFlags::CLOEXEC).expect("a memory file");
    let file = File::from(fd);
    file.set_len(bytes).expect("a memory file");
    file
}

/// A network device whose peer is gone.
fn network() -> Network {
    let flags = SocketFlags::CLOEXEC;
    let (near, _) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a pair");
    let socket = FileSource::Fd(0);
    let link = NetworkLink::Datagram(DatagramLink { socket, header: true });
    let id = NetworkId::new("fuzz").expect("an id");
    let config = NetworkConfig::new(id, MacAddress::from_seed("fuzz"), link);
    Network::new(&config, vec![near]).expect("a device").0
}

/// Answers every request of a guest to its file system with ENOSYS.
struct Refusing;

impl FileServer for Refusing {
    fn handle(&self, request: &dyn WriteBuffer, reply: &mut dyn ReadBuffer) -> usize {
        let mut header = [0; 40];
        request.copy_out(0, &mut header);
        // FORGET, INTERRUPT and BATCH_FORGET have no answer.
        if [2, 36, 42].contains(&header[4]) {
            return 0;
        }
        let [error, unique] = [(-38_i32).to_le_bytes(), [header[8], header[9], header[10], header[11]]];
        let answer = [&16_u32.to_le_bytes()[..], &error, &unique, &[0; 4]].concat();
        reply.copy_in(0, &answer);
        answer.len()
    }

    fn reset(&self) {}
}
