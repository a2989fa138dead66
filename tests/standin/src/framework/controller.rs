//! The interrupt controller: KVM's GICv3, laid out as the framework's.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::failed;
use crate::answer::Answer;

/// Number of the first shared interrupt.
pub(super) const FIRST: u32 = 32;
/// How many there are: KVM has no more.
pub(super) const COUNT: u32 = 960;
/// What both places are multiples of: Arm's frames have this size.
const FRAME: u64 = 0x1_0000;
/// Each redistributor is two frames, and they lie one behind the other.
pub(super) const REDISTRIBUTOR: u64 = 2 * FRAME;
/// Their number, among the bits of where they are.
const COUNT_SHIFT: u32 = 52;

/// See the module.
#[derive(Debug)]
pub(super) struct Controller {
    device: DeviceFd,
    /// Where the redistributors begin.
    pub(super) redistributors: u64,
    /// KVM's can be initialised when every vCPU exists, and takes no interrupt before: these are
    /// high meanwhile. `None` once it is initialised.
    early: Mutex<Option<BTreeSet<u32>>>,
}

impl Controller {
    /// With its registers at these places, and redistributors for so many vCPUs.
    pub(super) fn new(vm: &VmFd, distributor: u64, redistributors: u64, vcpus: u32) -> Result<Self, Answer> {
        if [distributor, redistributors].iter().any(|place| !place.is_multiple_of(FRAME)) {
            return Err(Answer::BadArgument);
        }
        let mut device =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 };
        let device = vm.create_device(&mut device).map_err(failed("KVM_CREATE_DEVICE of a GICv3"))?;
        let controller = Self { device, redistributors, early: Mutex::new(Some(BTreeSet::new())) };
        controller.set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &distributor)?;
        let region = redistributors | u64::from(vcpus) << COUNT_SHIFT;
        controller.set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, &region)?;
        controller.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &(FIRST + COUNT))?;
        Ok(controller)
    }

    /// The kernel reads what `value` points to, whose size the attribute says.
    fn set<T>(&self, group: u32, attribute: u32, value: &T) -> Result<(), Answer> {
        let addr = std::ptr::from_ref(value).addr() as u64;
        let attribute = kvm_device_attr { group, attr: attribute.into(), addr, flags: 0 };
        self.device.set_device_attr(&attribute).map_err(failed("KVM_SET_DEVICE_ATTR of the GICv3"))
    }

    /// Initialises it, once, when every vCPU exists and none has run.
    pub(super) fn begin(&self, vm: &VmFd) -> Result<(), Answer> {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(high) = early.take() else { return Ok(()) };
        let attribute = kvm_device_attr {
            group: KVM_DEV_ARM_VGIC_GRP_CTRL,
            attr: KVM_DEV_ARM_VGIC_CTRL_INIT.into(),
            ..kvm_device_attr::default()
        };
        self.device.set_device_attr(&attribute).map_err(failed("KVM_DEV_ARM_VGIC_CTRL_INIT"))?;
        // After a reset every line is one of levels, so that edges before are nothing.
        high.into_iter().try_for_each(|number| line(vm, number, true))
    }

    /// Sets the level of a shared interrupt.
    pub(super) fn set_line(&self, vm: &VmFd, number: u32, high: bool) -> Result<(), Answer> {
        if !(FIRST..FIRST + COUNT).contains(&number) {
            return Err(Answer::BadArgument);
        }
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *early {
            None => {}
            Some(levels) if high => {
                levels.insert(number);
                return Ok(());
            }
            Some(levels) => {
                levels.remove(&number);
                return Ok(());
            }
        }
        drop(early);
        line(vm, number, high)
    }
}

fn line(vm: &VmFd, number: u32, high: bool) -> Result<(), Answer> {
    let line = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | number;
    vm.set_irq_line(line, high).map_err(failed("KVM_IRQ_LINE"))
}
