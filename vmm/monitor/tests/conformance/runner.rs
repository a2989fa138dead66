//! A vCPU that is run to its next exit, and what it said.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nelly_vmm::arch::Address;
use nelly_vmm::hv::{Kicker, Vcpu, VcpuExit};

/// Where a guest without ports speaks. No slot is here.
pub(crate) const MOUTH: u64 = 0x0900_0000;

/// An exit that owns its data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Out(u16, u8, Vec<u8>),
    Read(u64, usize),
    Write(u64, Vec<u8>),
    In(u16, u8, usize),
    Halted,
    Kicked,
    TripleFault,
    PowerOff,
    Reset,
    Fault(String),
}

/// A vCPU that cannot hang a test: after 20 s a kick gets it out, and the test fails for want of
/// the exit it waits for.
pub(crate) struct Runner<V: Vcpu> {
    pub(crate) vcpu: V,
    done: Option<Sender<()>>,
    guard: Option<JoinHandle<()>>,
}

impl<V: Vcpu> Runner<V> {
    pub(crate) fn new(vcpu: V) -> Self {
        let kicker: Arc<dyn Kicker> = vcpu.kicker();
        let (done, wait) = channel();
        let guard = std::thread::spawn(move || {
            let mut patience = Duration::from_secs(20);
            while wait.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                kicker.kick();
                patience = Duration::from_millis(100);
            }
        });
        Self { vcpu, done: Some(done), guard: Some(guard) }
    }

    /// Runs to the next exit; reads are answered with `answer`, repeated as often as needed.
    pub(crate) fn answer(&mut self, answer: &[u8]) -> Seen {
        match self.vcpu.run().unwrap() {
            VcpuExit::Write { address: Address::Port(port), width, data } => {
                Seen::Out(port, width, data.to_vec())
            }
            VcpuExit::Read { address: Address::Port(port), width, data } => {
                data.iter_mut().zip(answer.iter().cycle()).for_each(|(byte, answer)| *byte = *answer);
                Seen::In(port, width, data.len())
            }
            VcpuExit::Write { address: Address::Memory(address), data, .. } => {
                Seen::Write(address, data.to_vec())
            }
            VcpuExit::Read { address: Address::Memory(address), data, .. } => {
                data.iter_mut().zip(answer.iter().cycle()).for_each(|(byte, answer)| *byte = *answer);
                Seen::Read(address, data.len())
            }
            VcpuExit::Halted => Seen::Halted,
            VcpuExit::Kicked => Seen::Kicked,
            VcpuExit::TripleFault => Seen::TripleFault,
            VcpuExit::PowerOff => Seen::PowerOff,
            VcpuExit::Reset => Seen::Reset,
            VcpuExit::Fault(text) => Seen::Fault(text),
        }
    }

    /// Runs to the next exit, which must not be a read.
    pub(crate) fn next(&mut self) -> Seen {
        self.answer(&[])
    }

    /// Runs to the next exit, by which the guest must say this many bytes, in port 1 or at
    /// [`MOUTH`].
    fn said<const N: usize>(&mut self) -> [u8; N] {
        match self.next() {
            Seen::Out(1, _, data) | Seen::Write(MOUTH, data) if data.len() == N => data.try_into().unwrap(),
            other => panic!("the guest was to say {N} bytes and did {other:x?}"),
        }
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let [byte] = self.said();
        byte
    }

    pub(crate) fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.said())
    }

    #[cfg_attr(target_arch = "x86_64", expect(dead_code, reason = "ports are no wider than 32 bits"))]
    pub(crate) fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.said())
    }
}

impl<V: Vcpu> Drop for Runner<V> {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(guard) = self.guard.take() {
            guard.join().unwrap();
        }
    }
}
