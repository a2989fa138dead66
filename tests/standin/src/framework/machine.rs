//! The process's machine.
#![allow(unsafe_code, reason = "memory of a guest is given by host addresses")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_bindings::{
    KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER, KVM_CAP_ARM_NISV_TO_USER, KVM_MEM_READONLY,
    kvm_device_attr, kvm_enable_cap, kvm_smccc_filter, kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};

use super::controller::Controller;
use super::failed;
use crate::answer::Answer;

/// Pages of the hosts that the framework knows.
const PAGE: u64 = 16 << 10;
/// Bits of a guest physical address where the caller does not say.
const ADDRESS_BITS: u32 = 36;
/// The most vCPUs of a machine.
const VCPUS: u32 = 64;
/// KVM_ARM_SET_COUNTER_OFFSET: `_IOW(0xae, 0xb5, struct kvm_arm_counter_offset)`.
const SET_COUNTER_OFFSET: libc::Ioctl = 0x4010_aeb5;
/// Calls of the firmware that are the caller's: all but those of the architecture, which KVM keeps
/// for itself. First and number.
const FIRMWARE: [(u32, u32); 3] = [(0, 0x8000_0000), (0x8001_0000, 0x3fff_0000), (0xc001_0000, 0x3fff_0000)];

/// See the module.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) fd: VmFd,
    address_bits: u32,
    pub(super) controller: OnceLock<Controller>,
    regions: Mutex<Vec<Region>>,
    /// vCPUs that were made, of which KVM forgets none, and that there are.
    vcpus: Mutex<(u32, u32)>,
    /// A vCPU has run.
    begun: AtomicBool,
    /// CNTVOFF_EL2 of all its vCPUs.
    offset: Mutex<Option<u64>>,
}

/// Memory of the guest.
#[derive(Clone, Copy, Debug)]
struct Region {
    guest: u64,
    len: u64,
    writable: bool,
}

static MACHINE: Mutex<Option<Arc<Machine>>> = Mutex::new(None);

fn process() -> MutexGuard<'static, Option<Arc<Machine>>> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process's machine.
pub(super) fn current() -> Result<Arc<Machine>, Answer> {
    process().clone().ok_or(Answer::NoDevice)
}

/// `/dev/kvm`, which stays open once it is: the framework opens no file, and who uses it may have
/// given up the right to.
fn open() -> Result<&'static Kvm, Answer> {
    static KVM: OnceLock<Kvm> = OnceLock::new();
    if let Some(kvm) = KVM.get() {
        return Ok(kvm);
    }
    let kvm = Kvm::new().map_err(failed("opening /dev/kvm"))?;
    Ok(KVM.get_or_init(|| kvm))
}

/// Whether there are virtual machines.
pub(super) fn supported() -> bool {
    open().is_ok()
}

/// The widest guest physical addresses.
pub(super) fn address_bits() -> Result<u32, Answer> {
    u32::try_from(open()?.get_host_ipa_limit()).map_err(|_| Answer::Unsupported)
}

/// The most vCPUs.
pub(super) fn most_vcpus() -> Result<u32, Answer> {
    let most = open()?.get_max_vcpus();
    Ok(u32::try_from(most).map_or(VCPUS, |most| most.min(VCPUS)))
}

/// Makes the process's machine.
pub(super) fn create(bits: Option<u32>) -> Result<(), Answer> {
    let mut process = process();
    if process.is_some() {
        return Err(Answer::Busy);
    }
    let address_bits = bits.unwrap_or(ADDRESS_BITS);
    let kvm = open()?;
    let fd = loop {
        match kvm.create_vm_with_ipa_size(address_bits) {
            Err(error) if error.errno() == libc::EINTR => {}
            made => break made.map_err(failed("KVM_CREATE_VM"))?,
        }
    };
    let told = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..kvm_enable_cap::default() };
    fd.enable_cap(&told).map_err(failed("KVM_CAP_ARM_NISV_TO_USER"))?;
    for (base, nr_functions) in FIRMWARE {
        let action = u8::try_from(kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER).expect("it is 2");
        let filter = kvm_smccc_filter { base, nr_functions, action, ..kvm_smccc_filter::default() };
        let attribute = kvm_device_attr {
            group: KVM_ARM_VM_SMCCC_CTRL,
            attr: KVM_ARM_VM_SMCCC_FILTER.into(),
            addr: std::ptr::from_ref(&filter).addr() as u64,
            flags: 0,
        };
        fd.set_device_attr(&attribute).map_err(failed("KVM_ARM_VM_SMCCC_FILTER (Linux 6.4 has it)"))?;
    }
    *process = Some(Arc::new(Machine {
        fd,
        address_bits,
        controller: OnceLock::new(),
        regions: Mutex::default(),
        vcpus: Mutex::default(),
        begun: AtomicBool::new(false),
        offset: Mutex::new(None),
    }));
    Ok(())
}

/// Ends it.
pub(super) fn destroy() -> Result<(), Answer> {
    let mut process = process();
    let machine = process.as_ref().ok_or(Answer::NoDevice)?;
    if machine.vcpus().1 > 0 {
        return Err(Answer::Busy);
    }
    *process = None;
    Ok(())
}

impl Machine {
    fn vcpus(&self) -> MutexGuard<'_, (u32, u32)> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the guest memory of this process.
    ///
    /// # Safety
    /// `host` is mapped for `len` bytes until the machine is gone.
    pub(super) unsafe fn map(&self, host: u64, guest: u64, len: u64, writable: bool) -> Result<(), Answer> {
        // SAFETY: asks for nothing.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let host_page = u64::try_from(page).map_err(|_| Answer::Error)?;
        if len == 0 || !(guest | len).is_multiple_of(PAGE) || !host.is_multiple_of(host_page) {
            return Err(Answer::BadArgument);
        }
        if guest.checked_add(len).is_none_or(|end| end > 1 << self.address_bits) {
            return Err(Answer::BadArgument);
        }
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        let region = kvm_userspace_memory_region {
            slot: u32::try_from(regions.len()).map_err(|_| Answer::NoResources)?,
            flags: if writable { 0 } else { KVM_MEM_READONLY },
            guest_phys_addr: guest,
            memory_size: len,
            userspace_addr: host,
        };
        // SAFETY: the caller keeps it mapped.
        let mapped = unsafe { self.fd.set_user_memory_region(region) };
        mapped.map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        regions.push(Region { guest, len, writable });
        Ok(())
    }

    /// Whether memory is here that may only be read.
    pub(super) fn is_read_only(&self, address: u64) -> bool {
        let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = |region: &&Region| address.wrapping_sub(region.guest) < region.len;
        regions.iter().find(holds).is_some_and(|region| !region.writable)
    }

    /// Makes its interrupt controller: before any vCPU.
    pub(super) fn create_controller(&self, distributor: u64, redistributors: u64) -> Result<(), Answer> {
        let vcpus = self.vcpus();
        if vcpus.0 > 0 || self.controller.get().is_some() {
            return Err(Answer::Error);
        }
        let controller = Controller::new(&self.fd, distributor, redistributors, most_vcpus()?)?;
        self.controller.get_or_init(|| controller);
        Ok(())
    }

    /// A number for one more vCPU, in the order in which they are made.
    pub(super) fn add_vcpu(&self) -> u32 {
        let mut vcpus = self.vcpus();
        let number = vcpus.0;
        *vcpus = (number + 1, vcpus.1 + 1);
        number
    }

    /// One of them has ended.
    pub(super) fn remove_vcpu(&self) {
        self.vcpus().1 -= 1;
    }

    /// A vCPU is about to run.
    pub(super) fn begin(&self) -> Result<(), Answer> {
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(controller) = self.controller.get() {
            controller.begin(&self.fd)?;
        }
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    /// What is subtracted from the host's counter. KVM has one for all vCPUs, which is set while
    /// nobody uses any of them.
    pub(super) fn set_offset(&self, ticks: u64) -> Result<(), Answer> {
        let mut offset = self.offset.lock().unwrap_or_else(PoisonError::into_inner);
        match *offset {
            Some(known) if known == ticks => return Ok(()),
            Some(_) => return Err(Answer::Unsupported),
            None => {}
        }
        let request = kvm_bindings::kvm_arm_counter_offset { counter_offset: ticks, reserved: 0 };
        loop {
            // SAFETY: the kernel reads this structure.
            let set = unsafe {
                libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&self.fd), SET_COUNTER_OFFSET, &raw const request)
            };
            if set == 0 {
                *offset = Some(ticks);
                return Ok(());
            }
            let error = kvm_ioctls::Error::last();
            // Another thread is at one of the machine's vCPUs for a moment; none runs yet.
            if error.errno() != libc::EBUSY || self.begun.load(Ordering::Acquire) {
                return Err(failed("KVM_ARM_SET_COUNTER_OFFSET")(error));
            }
            std::thread::yield_now();
        }
    }
}

/// A handle that no vCPU of this process ever had.
pub(super) fn handle() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
