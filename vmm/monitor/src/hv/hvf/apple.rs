//! The calls to Hypervisor.framework, and nothing else.

#![allow(unsafe_code, reason = "every call of the framework is foreign")]

use std::ffi::{c_char, c_int, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

use applevisor_sys as hv;
// What is linked in the framework's place.
#[cfg(target_os = "linux")]
use nelly_standin as _;

use super::super::HvError;
use super::framework::{Controller, Exit, Framework, Processor, Refusal, Register};
use crate::memory::Slot;
use crate::sys::fits;

/// The framework of this process.
#[derive(Debug)]
pub(super) struct Apple(());

/// Asks the system whether it has virtual machines.
///
/// # Errors
/// [`HvError::Unsupported`] where it has none.
pub(super) fn open() -> Result<Arc<Apple>, HvError> {
    let mut supported: c_int = 0;
    let mut len = size_of::<i32>();
    // SAFETY: the name ends with a NUL, and the system writes at most `len` bytes of one integer.
    let result = unsafe {
        sysctlbyname(
            c"kern.hv_support".as_ptr(),
            (&raw mut supported).cast(),
            &raw mut len,
            std::ptr::null_mut(),
            0,
        )
    };
    if result == 0 && supported != 0 { Ok(Arc::new(Apple(()))) } else { Err(super::unsupported()) }
}

fn check(result: hv::hv_return_t) -> Result<(), Refusal> {
    if result == 0 { Ok(()) } else { Err(Refusal(result.cast_unsigned())) }
}

/// An object of the system's, given back when it is dropped.
struct Owned(*mut c_void);

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by the framework for this owner, who gives it back once.
            unsafe { hv::os_release(self.0) };
        }
    }
}

impl Framework for Apple {
    type Processor = AppleProcessor;

    fn create_vm(&self) -> Result<u32, Refusal> {
        let mut bits = 0;
        // SAFETY: writes one integer.
        check(unsafe { hv::hv_vm_config_get_max_ipa_size(&raw mut bits) })?;
        // SAFETY: no condition; the object is released by its owner.
        let config = Owned(unsafe { hv::hv_vm_config_create() });
        // SAFETY: a configuration that lives.
        check(unsafe { hv::hv_vm_config_set_ipa_size(config.0, bits) })?;
        // SAFETY: as above; the framework keeps nothing of it.
        check(unsafe { hv::hv_vm_create(config.0) })?;
        Ok(bits)
    }

    fn destroy_vm(&self) {
        // SAFETY: no condition. It can only refuse what is no machine.
        unsafe { hv::hv_vm_destroy() };
    }

    unsafe fn map(&self, slot: &Slot) -> Result<(), Refusal> {
        let write = if slot.is_read_only() { 0 } else { hv::HV_MEMORY_WRITE };
        let flags = hv::HV_MEMORY_READ | hv::HV_MEMORY_EXEC | write;
        let len = fits(slot.len(), "it is mapped on this host");
        // SAFETY: the range is mapped as long as the slot is held, which the caller does until the
        // machine has ended. Nobody holds Rust references into it.
        check(unsafe { hv::hv_vm_map(slot.host().cast_const().cast(), slot.guest(), len, flags) })
    }

    fn create_controller(&self, distributor: u64, redistributors: u64) -> Result<Controller, Refusal> {
        // SAFETY: no condition; the object is released by its owner.
        let config = Owned(unsafe { hv::hv_gic_config_create() });
        // SAFETY: a configuration that lives.
        check(unsafe { hv::hv_gic_config_set_distributor_base(config.0, distributor) })?;
        // SAFETY: as above.
        check(unsafe { hv::hv_gic_config_set_redistributor_base(config.0, redistributors) })?;
        // SAFETY: as above; the framework keeps nothing of it.
        check(unsafe { hv::hv_gic_create(config.0) })?;
        let (mut first, mut count) = (0, 0);
        // SAFETY: writes two integers.
        check(unsafe { hv::hv_gic_get_spi_interrupt_range(&raw mut first, &raw mut count) })?;
        Ok(Controller { first, count })
    }

    fn set_interrupt(&self, number: u32, high: bool) -> Result<(), Refusal> {
        // SAFETY: no condition; the framework checks the number.
        check(unsafe { hv::hv_gic_set_spi(number, high) })
    }

    fn most_processors(&self) -> Result<u32, Refusal> {
        let mut most = 0;
        // SAFETY: writes one integer.
        check(unsafe { hv::hv_vm_get_max_vcpu_count(&raw mut most) })?;
        Ok(most)
    }

    fn create_processor(&self) -> Result<AppleProcessor, Refusal> {
        let (mut id, mut exit) = (0, std::ptr::null());
        // SAFETY: writes a handle and an address; without a configuration it is the default.
        check(unsafe { hv::hv_vcpu_create(&raw mut id, &raw mut exit, std::ptr::null_mut()) })?;
        Ok(AppleProcessor { id, exit, thread: PhantomData })
    }

    fn force_exit(&self, processor: u64) -> Result<(), Refusal> {
        // SAFETY: reads one handle; it may be called from any thread.
        check(unsafe { hv::hv_vcpus_exit(&raw const processor, 1) })
    }

    fn counter(&self) -> u64 {
        // SAFETY: no condition.
        unsafe { mach_absolute_time() }
    }

    fn counter_hz(&self) -> u64 {
        let hz: u64;
        // SAFETY: every process may read this register, and reading it changes nothing.
        unsafe {
            std::arch::asm!("mrs {}, cntfrq_el0", out(reg) hz, options(nomem, nostack, preserves_flags))
        };
        hz
    }
}

// libc has the second for macOS alone.
unsafe extern "C" {
    /// Ticks of the system's counter, which the guests' counters are made of.
    fn mach_absolute_time() -> u64;

    /// Reads a variable of the system's by its name.
    fn sysctlbyname(
        name: *const c_char,
        old: *mut c_void,
        old_len: *mut usize,
        new: *mut c_void,
        new_len: usize,
    ) -> c_int;
}

/// A vCPU of the framework, on its thread.
#[derive(Debug)]
pub(super) struct AppleProcessor {
    id: hv::hv_vcpu_t,
    /// Written by each run.
    exit: *const hv::hv_vcpu_exit_t,
    thread: PhantomData<*const ()>,
}

impl Drop for AppleProcessor {
    fn drop(&mut self) {
        // SAFETY: it is this thread's, and is not used again.
        unsafe { hv::hv_vcpu_destroy(self.id) };
    }
}

impl Processor for AppleProcessor {
    fn id(&self) -> u64 {
        self.id
    }

    fn run(&mut self) -> Result<Exit, Refusal> {
        // SAFETY: it is this thread's.
        check(unsafe { hv::hv_vcpu_run(self.id) })?;
        // SAFETY: the framework's structure lives as long as the vCPU, and is still between runs.
        // The reason is read as a number: one that these bindings do not know is no value of
        // theirs.
        let reason = unsafe { (&raw const (*self.exit).reason).cast::<u32>().read() };
        Ok(match reason {
            0 => Exit::Canceled,
            1 => {
                // SAFETY: as above; plain integers.
                let exception = unsafe { (&raw const (*self.exit).exception).read() };
                Exit::Exception { syndrome: exception.syndrome, address: exception.physical_address }
            }
            2 => Exit::TimerActivated,
            other => Exit::Unknown(other),
        })
    }

    fn get(&self, register: Register) -> Result<u64, Refusal> {
        let mut value = 0;
        let result = match place(register) {
            // SAFETY: it is this thread's; writes one integer.
            Place::General(register) => unsafe { hv::hv_vcpu_get_reg(self.id, register, &raw mut value) },
            // SAFETY: as above.
            Place::System(register) => unsafe { hv::hv_vcpu_get_sys_reg(self.id, register, &raw mut value) },
        };
        check(result)?;
        Ok(value)
    }

    fn set(&mut self, register: Register, value: u64) -> Result<(), Refusal> {
        check(match place(register) {
            // SAFETY: it is this thread's.
            Place::General(register) => unsafe { hv::hv_vcpu_set_reg(self.id, register, value) },
            // SAFETY: as above.
            Place::System(register) => unsafe { hv::hv_vcpu_set_sys_reg(self.id, register, value) },
        })
    }

    fn mask_timer(&mut self, masked: bool) -> Result<(), Refusal> {
        // SAFETY: it is this thread's.
        check(unsafe { hv::hv_vcpu_set_vtimer_mask(self.id, masked) })
    }

    fn set_timer_offset(&mut self, ticks: u64) -> Result<(), Refusal> {
        // SAFETY: it is this thread's.
        check(unsafe { hv::hv_vcpu_set_vtimer_offset(self.id, ticks) })
    }

    fn redistributor(&self) -> Result<u64, Refusal> {
        let mut base = 0;
        // SAFETY: it is this thread's; writes one integer.
        check(unsafe { hv::hv_gic_get_redistributor_base(self.id, &raw mut base) })?;
        Ok(base)
    }
}

/// A register as the framework names it.
enum Place {
    General(hv::hv_reg_t),
    System(hv::hv_sys_reg_t),
}

fn place(register: Register) -> Place {
    use hv::hv_reg_t as general;
    use hv::hv_sys_reg_t as system;
    const NUMBERED: [general; 31] = [
        general::X0,
        general::X1,
        general::X2,
        general::X3,
        general::X4,
        general::X5,
        general::X6,
        general::X7,
        general::X8,
        general::X9,
        general::X10,
        general::X11,
        general::X12,
        general::X13,
        general::X14,
        general::X15,
        general::X16,
        general::X17,
        general::X18,
        general::X19,
        general::X20,
        general::X21,
        general::X22,
        general::X23,
        general::X24,
        general::X25,
        general::X26,
        general::X27,
        general::X28,
        general::X29,
        general::X30,
    ];
    match register {
        Register::X(number) => Place::General(
            *NUMBERED.get(usize::from(number)).expect("syndromes name X0 to X30, and 31 is no register"),
        ),
        Register::Pc => Place::General(general::PC),
        Register::Cpsr => Place::General(general::CPSR),
        Register::Affinity => Place::System(system::MPIDR_EL1),
        Register::SystemControl => Place::System(system::SCTLR_EL1),
        Register::Features => Place::System(system::ID_AA64PFR0_EL1),
        Register::MemoryModel => Place::System(system::ID_AA64MMFR0_EL1),
        Register::TimerControl => Place::System(system::CNTV_CTL_EL0),
        Register::TimerDeadline => Place::System(system::CNTV_CVAL_EL0),
    }
}
