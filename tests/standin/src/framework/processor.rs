//! A vCPU, on its thread.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::{KVM_ARM_VCPU_PSCI_0_2, kvm_vcpu_init};
use kvm_ioctls::VcpuFd;

use super::controller::REDISTRIBUTOR;
use super::kick::Receiver;
use super::machine::{self, Machine};
use super::{failed, page, registers};
use crate::answer::Answer;
use crate::syndrome::{self, Access};
use crate::transfer::{self, Registers};

/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;

/// `hv_vcpu_exit_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Exit {
    /// HV_EXIT_REASON_CANCELED 0, EXCEPTION 1, VTIMER_ACTIVATED 2, UNKNOWN 3.
    pub reason: u32,
    /// ESR_EL2.
    pub syndrome: u64,
    /// FAR_EL2, which KVM does not tell.
    pub virtual_address: u64,
    /// Guest physical address of an abort.
    pub physical_address: u64,
}

impl Exit {
    const fn of(reason: u32) -> Self {
        Self { reason, syndrome: 0, virtual_address: 0, physical_address: 0 }
    }

    const fn exception(syndrome: u64, physical_address: u64) -> Self {
        Self { reason: 1, syndrome, virtual_address: 0, physical_address }
    }
}

/// See the module. Fields are dropped in order: nobody forces exits any more, then it ends.
#[derive(Debug)]
pub(super) struct Processor {
    handle: u64,
    receiver: Receiver,
    fd: VcpuFd,
    machine: Arc<Machine>,
    /// The how manieth of the machine it is.
    number: u32,
    /// Its affinity was set.
    placed: bool,
}

thread_local! {
    static PROCESSOR: RefCell<Option<Processor>> = const { RefCell::new(None) };
}

/// Makes the calling thread's vCPU, and gives its handle.
pub(super) fn create() -> Result<u64, Answer> {
    PROCESSOR.with_borrow_mut(|processor| {
        if processor.is_some() {
            return Err(Answer::Busy);
        }
        let made = Processor::new(machine::current()?)?;
        let handle = made.handle;
        *processor = Some(made);
        Ok(handle)
    })
}

/// Ends it.
pub(super) fn destroy(handle: u64) -> Result<(), Answer> {
    // No other call is under way: it would be this thread's.
    with(handle, |_| Ok(()))?;
    drop(PROCESSOR.take());
    Ok(())
}

/// Does something with a vCPU, which must be that of the calling thread.
pub(super) fn with<T>(
    handle: u64,
    act: impl FnOnce(&mut Processor) -> Result<T, Answer>,
) -> Result<T, Answer> {
    PROCESSOR.with_borrow_mut(|processor| match processor {
        Some(processor) if processor.handle == handle => act(processor),
        _ => Err(Answer::BadArgument),
    })
}

/// Takes a vCPU out of the machine's count when it could not be made, or when it ends.
struct Counted(Arc<Machine>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.remove_vcpu();
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        self.machine.remove_vcpu();
    }
}

impl Processor {
    fn new(machine: Arc<Machine>) -> Result<Self, Answer> {
        let number = machine.add_vcpu();
        let counted = Counted(Arc::clone(&machine));
        let fd = machine.fd.create_vcpu(number.into()).map_err(failed("KVM_CREATE_VCPU"))?;
        let mut target = kvm_vcpu_init::default();
        machine.fd.get_preferred_target(&mut target).map_err(failed("KVM_ARM_PREFERRED_TARGET"))?;
        target.features[0] = 1 << KVM_ARM_VCPU_PSCI_0_2;
        fd.vcpu_init(&target).map_err(failed("KVM_ARM_VCPU_INIT"))?;
        let handle = machine::handle();
        let receiver = Receiver::new(handle, lend(&fd))?;
        std::mem::forget(counted);
        Ok(Self { handle, receiver, fd, machine, number, placed: false })
    }

    fn read(&self, register: u64, len: usize) -> Result<u64, Answer> {
        let mut value = [0; 8];
        self.fd.get_one_reg(register, &mut value[..len]).map_err(failed("KVM_GET_ONE_REG"))?;
        Ok(u64::from_le_bytes(value))
    }

    fn write(&self, register: u64, len: usize, value: u64) -> Result<(), Answer> {
        self.fd.set_one_reg(register, &value.to_le_bytes()[..len]).map_err(failed("KVM_SET_ONE_REG"))?;
        Ok(())
    }

    /// A register of `hv_reg_t`.
    pub(super) fn get(&self, register: u32) -> Result<u64, Answer> {
        let (register, len) = registers::general(register).ok_or(Answer::BadArgument)?;
        self.read(register, len)
    }

    /// Sets one.
    pub(super) fn set(&self, register: u32, value: u64) -> Result<(), Answer> {
        let (register, len) = registers::general(register).ok_or(Answer::BadArgument)?;
        self.write(register, len, value)
    }

    /// A register of `hv_sys_reg_t`.
    pub(super) fn get_system(&self, register: u16) -> Result<u64, Answer> {
        self.read(registers::system(register), 8)
    }

    /// Sets one.
    pub(super) fn set_system(&mut self, register: u16, value: u64) -> Result<(), Answer> {
        self.write(registers::system(register), 8, value)?;
        self.placed |= register == registers::MPIDR_EL1;
        Ok(())
    }

    /// Where its redistributor is: its affinity must be set.
    pub(super) fn redistributor(&self) -> Result<u64, Answer> {
        let controller = self.machine.controller.get().ok_or(Answer::NoDevice)?;
        if !self.placed {
            return Err(Answer::Error);
        }
        // KVM's lie in the order in which their vCPUs were made.
        Ok(controller.redistributors + u64::from(self.number) * REDISTRIBUTOR)
    }

    /// CNTVOFF_EL2.
    pub(super) fn set_offset(&self, ticks: u64) -> Result<(), Answer> {
        self.machine.set_offset(ticks)
    }

    /// Runs the guest up to an exit.
    pub(super) fn run(&mut self) -> Result<Exit, Answer> {
        self.machine.begin()?;
        loop {
            if self.receiver.take() {
                return Ok(Exit::of(0));
            }
            match self.fd.run().map(drop) {
                Ok(()) => {}
                Err(error) if error.errno() == libc::EINTR => {
                    self.receiver.consume();
                    continue;
                }
                Err(error) if error.errno() == libc::EAGAIN => continue,
                Err(error) => return Err(failed("KVM_RUN")(error)),
            }
            let exit = page::exit(self.fd.get_kvm_run());
            return match exit {
                page::Exit::Mmio { address, data, width, write: true } => self.store(address, data, width),
                page::Exit::Mmio { address, width, write: false, .. } => self.load(address, width),
                page::Exit::Undescribed { address, fields } => {
                    Ok(Exit::exception(syndrome::undescribed(fields), address))
                }
                page::Exit::Firmware { monitor: false } => {
                    Ok(Exit::exception(syndrome::hypervisor_call(), 0))
                }
                page::Exit::Firmware { monitor: true } => {
                    let behind = self.get(registers::PC)?;
                    self.set(registers::PC, behind.wrapping_sub(INSTRUCTION))?;
                    Ok(Exit::exception(syndrome::monitor_call(), 0))
                }
                page::Exit::Again => continue,
                page::Exit::Other(reason) => {
                    eprintln!("stand-in for Hypervisor.framework: KVM left the guest for reason {reason}");
                    Ok(Exit::of(3))
                }
            };
        }
    }

    /// Lets KVM complete the access that it reported, without an entry into the guest.
    fn complete(&mut self) -> Result<(), Answer> {
        self.fd.set_kvm_immediate_exit(1);
        let completed = self.fd.run().map(drop);
        self.fd.set_kvm_immediate_exit(0);
        match completed {
            Err(error) if error.errno() == libc::EINTR => Ok(()),
            Err(error) => Err(failed("KVM_RUN with immediate_exit")(error)),
            Ok(()) => Err(Answer::Error),
        }
    }

    fn store(&mut self, address: u64, data: u64, width: u8) -> Result<Exit, Answer> {
        let register = transfer::stored(|number| self.get(number.into()), data, width)?;
        let register = register.ok_or(Answer::Error)?;
        let place = self.get(registers::PC)?;
        self.complete()?;
        self.set(registers::PC, place)?;
        let permission = self.machine.is_read_only(address);
        let access = Access { write: true, width, signed: false, wide: width == 8, register, permission };
        Ok(Exit::exception(access.syndrome(), address))
    }

    fn load(&mut self, address: u64, width: u8) -> Result<Exit, Answer> {
        let place = self.get(registers::PC)?;
        let before = self.registers()?;
        let marker = transfer::marker(&before, width);
        page::answer(self.fd.get_kvm_run(), marker);
        self.complete()?;
        let load = transfer::loaded(&before, &self.registers()?, marker, width).ok_or(Answer::Error)?;
        if let Some(value) = before.get(usize::from(load.register)) {
            self.set(load.register.into(), *value)?;
        }
        self.set(registers::PC, place)?;
        let transfer::Load { register, signed, wide } = load;
        let access = Access { write: false, width, signed, wide, register, permission: false };
        Ok(Exit::exception(access.syndrome(), address))
    }

    fn registers(&self) -> Result<Registers, Answer> {
        let mut registers = [0; 31];
        for (number, register) in (0..).zip(&mut registers) {
            *register = self.get(number)?;
        }
        Ok(registers)
    }
}

fn lend(fd: &VcpuFd) -> BorrowedFd<'_> {
    // SAFETY: it is open as long as it is borrowed.
    #[allow(unsafe_code, reason = "kvm-ioctls lends a number alone")]
    unsafe {
        BorrowedFd::borrow_raw(fd.as_raw_fd())
    }
}
