//! A vCPU on Hypervisor.framework.

use std::sync::Arc;
use std::time::Duration;

use super::super::{HvError, Kicker, Vcpu, VcpuExit};
use super::framework::{Exit, Framework, Processor, Refusal, Register};
use super::psci::{Answer, Call, Power, Start};
use super::syndrome::{self, Access, Trap, Wait};
use super::timer;
use super::vm::{Machine, NO_SAVE};
use super::wakes::Kick;
use crate::arch::aarch64::{self, layout};
use crate::arch::{Address, BootState};
use crate::state::Sections;
use crate::sys::fits;
use crate::timeline::{GuestCounter, Moment};

/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;
/// SPSR: EL1 with its own stack pointer, all interrupts masked (Linux `booting.rst` for arm64).
const AT_ENTRY: u64 = 0b11_1100_0101;
/// MPIDR_EL1: reserved, always set.
const AFFINITY_RESERVED: u64 = 1 << 31;
/// ID_AA64PFR0_EL1: the interrupt controller's system registers, and that they are there.
const FEATURES_GIC: u64 = 0xf << 24;
const FEATURES_GIC_V3: u64 = 1 << 24;
/// The zero register, where a general register is named.
const ZERO_REGISTER: u8 = 31;
/// How long a wait for an interrupt lasts at most where there are other vCPUs. The framework's
/// controller is documented to wake a vCPU that waits by itself, without an exit; should one come
/// out all the same, a message from another vCPU would not be seen here.
const UNSEEN_MESSAGES: Duration = Duration::from_millis(10);

/// A vCPU, on its thread. Fields are dropped in order: kicks have ended, then the processor, then
/// (perhaps) the machine.
pub(super) struct HvfVcpu<F: Framework> {
    processor: F::Processor,
    kick: Arc<Kick<F>>,
    machine: Arc<Machine<F>>,
    /// When it was made: one end of the span over which the counter's speed is measured.
    made: Moment,
    index: usize,
    /// vCPUs of the machine.
    count: u32,
    /// How often a line had been raised when the guest was entered before its last wait.
    seen: u64,
    /// SCTLR_EL1 after reset.
    system_control: u64,
    /// A load that the monitor answers into `data`.
    loading: Option<Access>,
    data: [u8; 8],
    /// The framework masked the virtual timer.
    timer_masked: bool,
}

/// What of an exit the monitor must see.
enum Stop {
    /// It is to load or store at this address.
    Access(u64, Access),
    PowerOff,
    Reset,
    Fault(String),
}

impl<F: Framework> HvfVcpu<F> {
    pub(super) fn new(machine: &Arc<Machine<F>>, index: u32, count: u32) -> Result<Self, HvError> {
        let create = |refusal: Refusal| refusal.of("hv_vcpu_create");
        let mut processor = machine.framework.create_processor().map_err(create)?;
        let affinity = AFFINITY_RESERVED | u64::from(aarch64::affinity(index));
        set(&mut processor, Register::Affinity, affinity)?;
        // Without a controller there is none of its parts.
        if machine.controller.get().is_some() {
            let redistributor =
                processor.redistributor().map_err(|refusal| refusal.of("hv_gic_get_redistributor_base"))?;
            // Where the device tree says that they are.
            let len = u64::from(count) * layout::GIC_REDISTRIBUTOR_LEN;
            if !(layout::GIC_REDISTRIBUTOR..layout::GIC_REDISTRIBUTOR + len).contains(&redistributor) {
                return Err(HvError::Missing {
                    capability: "an interrupt controller laid out as the board says",
                });
            }
            let features = get(&processor, Register::Features)?;
            if features & FEATURES_GIC == 0 {
                set(&mut processor, Register::Features, features | FEATURES_GIC_V3)?;
            }
        }
        let offset = processor.set_timer_offset(machine.timer_offset);
        offset.map_err(|refusal| refusal.of("hv_vcpu_set_vtimer_offset"))?;
        let system_control = get(&processor, Register::SystemControl)?;
        let kick = Kick::new(Arc::clone(&machine.framework), Arc::clone(&machine.wakes), processor.id());
        let index = fits(index, "hosts of Nelly have 64 bits");
        machine.wakes.change(|state| state.cores.add(index));
        Ok(Self {
            processor,
            kick: Arc::new(kick),
            machine: Arc::clone(machine),
            made: Moment::now(|| machine.framework.counter()),
            index,
            count,
            seen: 0,
            system_control,
            loading: None,
            data: [0; 8],
            timer_masked: false,
        })
    }

    /// Sets the registers of a processor that begins.
    fn begin(&mut self, start: Start) -> Result<(), HvError> {
        for register in 1..ZERO_REGISTER {
            self.set(Register::X(register), 0)?;
        }
        let system_control = self.system_control;
        self.set(Register::SystemControl, system_control)?;
        self.set(Register::TimerControl, 0)?;
        self.set(Register::X(0), start.context)?;
        self.set(Register::Cpsr, AT_ENTRY)?;
        self.set(Register::Pc, start.entry)
    }

    fn get(&self, register: Register) -> Result<u64, HvError> {
        get(&self.processor, register)
    }

    fn set(&mut self, register: Register, value: u64) -> Result<(), HvError> {
        set(&mut self.processor, register, value)
    }

    fn skip_instruction(&mut self) -> Result<(), HvError> {
        let pc = self.get(Register::Pc)?;
        self.set(Register::Pc, pc.wrapping_add(INSTRUCTION))
    }

    /// Takes the answer to the last load.
    fn complete(&mut self) -> Result<(), HvError> {
        match self.loading.take() {
            Some(access) if access.register != ZERO_REGISTER => {
                self.set(Register::X(access.register), access.loaded(self.data))
            }
            _ => Ok(()),
        }
    }

    /// How often a line was raised, if the processor is on. One that is off waits until it is
    /// switched on (`None` only when it was kicked, or after a long while).
    fn raises_if_on(&mut self) -> Result<Option<u64>, HvError> {
        let (index, kick) = (self.index, Arc::clone(&self.kick));
        let wakes = Arc::clone(&self.machine.wakes);
        let raises_if_on = || {
            let state = wakes.lock();
            (state.cores.power(index) == Power::On).then_some(state.raises)
        };
        if let Some(raises) = raises_if_on() {
            return Ok(Some(raises));
        }
        wakes.wait(None, |state| state.cores.power(index) == Power::Off && !kick.is_pending());
        // Nobody waits for a processor's beginning.
        let start = wakes.lock().cores.begin(index);
        if let Some(start) = start {
            self.begin(start)?;
        }
        Ok(raises_if_on())
    }

    /// Lets exits of the virtual timer through again once the guest has seen to the last one. The
    /// controller raises its interrupt by itself.
    fn unmask_timer(&mut self) -> Result<(), HvError> {
        if self.timer_masked && !timer::interrupts(self.get(Register::TimerControl)?) {
            let unmasked = self.processor.mask_timer(false);
            unmasked.map_err(|refusal| refusal.of("hv_vcpu_set_vtimer_mask"))?;
            self.timer_masked = false;
        }
        Ok(())
    }

    /// Waits until the virtual timer is due, a line was raised more often than `raises` times, or a
    /// kick.
    fn wait_for_interrupt(&mut self, raises: u64) -> Result<(), HvError> {
        // A line that was raised since then may be pending still: a guest that waits with
        // interrupts masked has not taken it, and nothing will raise it again.
        if std::mem::replace(&mut self.seen, raises) != raises {
            return Ok(());
        }
        let framework = &self.machine.framework;
        let control = self.get(Register::TimerControl)?;
        let deadline = self.get(Register::TimerDeadline)?;
        let counter = framework.counter().wrapping_sub(self.machine.timer_offset);
        let timer = timer::remaining(control, deadline, counter, framework.counter_hz());
        let most = if self.count == 1 { Duration::MAX } else { UNSEEN_MESSAGES };
        let limit = Some(timer.unwrap_or(Duration::MAX).min(most));
        self.machine.wakes.wait(limit, |state| state.raises == raises && !self.kick.is_pending());
        Ok(())
    }

    /// Serves a trap; `None` if the guest goes on. A line was raised `raises` times when the guest
    /// was entered.
    fn serve(&mut self, trap: Trap, address: u64, raises: u64) -> Result<Option<Stop>, HvError> {
        match trap {
            Trap::Wait(kind) => {
                self.skip_instruction()?;
                match kind {
                    Wait::Interrupt => self.wait_for_interrupt(raises)?,
                    // They may end at once, and nothing here sees what would end them.
                    Wait::Event | Wait::InterruptUntil | Wait::EventUntil => std::thread::yield_now(),
                }
            }
            Trap::Hvc(number) => return self.call(number, raises),
            Trap::Smc(number) => {
                self.skip_instruction()?;
                return self.call(number, raises);
            }
            Trap::SystemRegister(access) if access.name.is_of_the_controller() => {
                let name = access.name;
                return Ok(Some(Stop::Fault(format!(
                    "it used the interrupt controller's register {name}, which the framework does not serve"
                ))));
            }
            Trap::SystemRegister(access) => {
                self.skip_instruction()?;
                if let Some((register, value)) = self.machine.ignored.serve(access) {
                    self.set(Register::X(register), value)?;
                }
            }
            // The framework answers them itself. The bus, which knows nothing there, would answer
            // zeros, and the guest's interrupts would be gone without a word.
            Trap::Access(_) if is_of_the_controller(address, self.count) => {
                return self.fault(&format!(
                    "used the interrupt controller's register at {address:#x}, which the framework does not serve"
                ));
            }
            Trap::Access(access) => {
                if access.write {
                    let stored = match access.register {
                        ZERO_REGISTER => 0,
                        register => self.get(Register::X(register))?,
                    };
                    self.data = stored.to_le_bytes();
                } else {
                    self.data = [0; 8];
                    self.loading = Some(access);
                }
                self.skip_instruction()?;
                return Ok(Some(Stop::Access(address, access)));
            }
            Trap::CacheMaintenance => self.skip_instruction()?,
            Trap::Undescribed => {
                return self.fault(&format!(
                    "loaded or stored at {address:#x}, where no memory is, by an instruction that the processor does not \
                     describe (of a pair or a vector, or one that changes its address)"
                ));
            }
            Trap::TableWalk => {
                return self.fault(&format!("has page tables at {address:#x}, where no memory is"));
            }
            Trap::External => return self.fault(&format!("met a hardware error at {address:#x}")),
            Trap::Fetch => return self.fault(&format!("ran into {address:#x}, where no memory is")),
            Trap::Debug(what) => return self.fault(&format!("met {what}, which nobody set")),
            Trap::Unknown(class) => {
                return self
                    .fault(&format!("left for a reason that is not known (exception class {class:#x})"));
            }
        }
        Ok(None)
    }

    /// A fault of the guest, with what is known of where and why.
    fn fault(&self, what: &str) -> Result<Option<Stop>, HvError> {
        let pc = self.get(Register::Pc)?;
        Ok(Some(Stop::Fault(format!("the guest {what}, at instruction {pc:#x}{}", self.machine.ignored))))
    }

    /// Serves a call of the firmware.
    fn call(&mut self, number: u16, raises: u64) -> Result<Option<Stop>, HvError> {
        let [function, low, middle, high] = [0, 1, 2, 3].map(|register| self.get(Register::X(register)));
        let function = fits(function? & u64::from(u32::MAX), "32 bits of it");
        let call = Call { function, arguments: [low?, middle?, high?] };
        let index = self.index;
        let answer = if number == 0 {
            self.machine.wakes.change(|state| state.cores.call(index, call))
        } else {
            // Not the calling convention's.
            Answer::Return(-1)
        };
        match answer {
            Answer::Return(value) => self.set(Register::X(0), value.cast_unsigned())?,
            Answer::Started => self.set(Register::X(0), 0)?,
            Answer::Suspend => {
                self.set(Register::X(0), 0)?;
                self.wait_for_interrupt(raises)?;
            }
            Answer::Off => {}
            Answer::PowerOff => return Ok(Some(Stop::PowerOff)),
            Answer::Reset => return Ok(Some(Stop::Reset)),
        }
        Ok(None)
    }

    /// Runs up to what the monitor must see; `None` when kicked.
    fn advance(&mut self) -> Result<Option<Stop>, HvError> {
        loop {
            let on = self.raises_if_on()?;
            if self.kick.take() {
                return Ok(None);
            }
            let Some(raises) = on else { continue };
            self.unmask_timer()?;
            let stop = match self.processor.run().map_err(|refusal| refusal.of("hv_vcpu_run"))? {
                // The kick, which the loop's start takes; or one that was taken before.
                Exit::Canceled => None,
                Exit::TimerActivated => {
                    self.timer_masked = true;
                    None
                }
                Exit::Exception { syndrome, address } => {
                    self.serve(syndrome::decode(syndrome), address, raises)?
                }
                Exit::Unknown(reason) => {
                    self.fault(&format!("left for a reason that the framework does not know ({reason})"))?
                }
            };
            if stop.is_some() {
                return Ok(stop);
            }
        }
    }
}

impl<F: Framework> Drop for HvfVcpu<F> {
    fn drop(&mut self) {
        self.kick.end();
    }
}

/// Whether an address is one of the interrupt controller's in a machine of so many vCPUs.
fn is_of_the_controller(address: u64, count: u32) -> bool {
    let redistributors = u64::from(count) * layout::GIC_REDISTRIBUTOR_LEN;
    (layout::GIC_DISTRIBUTOR..layout::GIC_DISTRIBUTOR + layout::GIC_DISTRIBUTOR_LEN).contains(&address)
        || (layout::GIC_REDISTRIBUTOR..layout::GIC_REDISTRIBUTOR + redistributors).contains(&address)
}

fn get(processor: &impl Processor, register: Register) -> Result<u64, HvError> {
    processor.get(register).map_err(|refusal| refusal.of("reading a register of a vCPU"))
}

fn set(processor: &mut impl Processor, register: Register, value: u64) -> Result<(), HvError> {
    processor.set(register, value).map_err(|refusal| refusal.of("writing a register of a vCPU"))
}

impl<F: Framework> Vcpu for HvfVcpu<F> {
    fn load(&mut self, state: &BootState) -> Result<(), HvError> {
        let BootState::Arm64(state) = state else {
            return Err(HvError::Unsupported { what: "a kernel for another architecture" });
        };
        // A kernel that finds no such pages stands still at once, without a word.
        if let Some(granule) = state.granule
            && !granule.is_served(self.get(Register::MemoryModel)?)
        {
            return Err(HvError::Missing { capability: granule.name() });
        }
        self.begin(Start { entry: state.pc, context: state.device_tree })?;
        let index = self.index;
        self.machine.wakes.change(|state| state.cores.boot(index));
        Ok(())
    }

    fn run(&mut self) -> Result<VcpuExit<'_>, HvError> {
        self.complete()?;
        Ok(match self.advance()? {
            None => VcpuExit::Kicked,
            Some(Stop::Access(address, access)) => {
                let (address, width) = (Address::Memory(address), access.width);
                let data = &mut self.data[..usize::from(width)];
                if access.write {
                    VcpuExit::Write { address, width, data }
                } else {
                    VcpuExit::Read { address, width, data }
                }
            }
            Some(Stop::PowerOff) => VcpuExit::PowerOff,
            Some(Stop::Reset) => VcpuExit::Reset,
            Some(Stop::Fault(what)) => VcpuExit::Fault(what),
        })
    }

    fn complete_pending(&mut self) -> Result<VcpuExit<'_>, HvError> {
        self.complete()?;
        Ok(VcpuExit::Kicked)
    }

    fn save(&mut self) -> Result<Sections, HvError> {
        Err(NO_SAVE)
    }

    fn restore(&mut self, _: Sections) -> Result<(), HvError> {
        Err(NO_SAVE)
    }

    fn counter(&mut self) -> Option<GuestCounter> {
        let (framework, offset) = (&self.machine.framework, self.machine.timer_offset);
        let guest = || Some(framework.counter().wrapping_sub(offset));
        self.made.counter(framework.counter_hz() / 1000, || framework.counter(), guest)
    }

    fn sleeps_for_good(&mut self) -> bool {
        self.machine.wakes.lock().cores.power(self.index) == Power::Off
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        let kick: Arc<Kick<F>> = Arc::clone(&self.kick);
        kick
    }
}
