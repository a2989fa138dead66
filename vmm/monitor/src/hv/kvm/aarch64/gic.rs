//! The interrupt controller that the kernel plays: a GICv3.

use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::super::super::{HvError, IrqchipPlan};
use super::super::inner::failed;
use crate::arch::aarch64::layout;
use crate::sys::fits;

/// Interrupts that each processor has for itself; shared ones count from here.
const PRIVATE: u32 = 32;
/// The kernel takes so many interrupts at a time, two times at least, the private ones included.
const STEP: u32 = 32;
/// The redistributors' number, among the bits of where they are.
const COUNT_SHIFT: u32 = 52;

/// One in the kernel.
#[derive(Debug)]
pub(super) struct Gic(DeviceFd);

impl Gic {
    /// Creates it where the board's map has it.
    pub(super) fn new(vm: &VmFd, plan: IrqchipPlan) -> Result<Self, HvError> {
        let mut device =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 };
        let gic = vm.create_device(&mut device).map_err(refused)?;
        let gic = Self(gic);
        let (place, count) = (layout::GIC_DISTRIBUTOR, interrupts(plan.lines));
        gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &place)
            .map_err(failed("KVM_DEV_ARM_VGIC_GRP_ADDR of the distributor"))?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, &redistributors(plan.vcpus))
            .map_err(failed("KVM_DEV_ARM_VGIC_GRP_ADDR of the redistributors"))?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &count).map_err(failed("KVM_DEV_ARM_VGIC_GRP_NR_IRQS"))?;
        Ok(gic)
    }

    /// Ready for guests. Once, when every vCPU exists.
    pub(super) fn begin(&self) -> Result<(), HvError> {
        let attribute = kvm_device_attr {
            group: KVM_DEV_ARM_VGIC_GRP_CTRL,
            attr: KVM_DEV_ARM_VGIC_CTRL_INIT.into(),
            ..kvm_device_attr::default()
        };
        self.0.set_device_attr(&attribute).map_err(failed("KVM_DEV_ARM_VGIC_CTRL_INIT"))
    }

    /// The kernel reads what `value` points to, whose size the attribute says.
    fn set<T>(&self, group: u32, attribute: u32, value: &T) -> Result<(), kvm_ioctls::Error> {
        let address = fits(std::ptr::from_ref(value).addr(), "no host has more than 64 bits");
        self.0.set_device_attr(&kvm_device_attr { group, attr: attribute.into(), addr: address, flags: 0 })
    }
}

/// Why the kernel makes none.
fn refused(error: kvm_ioctls::Error) -> HvError {
    match error.errno() {
        libc::ENODEV => HvError::Missing {
            capability: "an interrupt controller for guests (GICv3): the host's is older, and cannot serve guests as one",
        },
        _ => failed("KVM_CREATE_DEVICE of a GICv3")(error),
    }
}

/// What the kernel is told of a controller with these shared lines: a number of interrupts.
fn interrupts(lines: u32) -> u32 {
    (PRIVATE + lines.max(1)).next_multiple_of(STEP)
}

/// Where so many redistributors are: one region.
fn redistributors(vcpus: u8) -> u64 {
    layout::GIC_REDISTRIBUTOR | u64::from(vcpus) << COUNT_SHIFT
}

/// What KVM_IRQ_LINE calls a shared interrupt.
pub(super) fn irq(line: u32) -> u32 {
    KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (PRIVATE + line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::aarch64;

    #[test]
    fn a_controller_has_its_lines_and_no_fewer_than_the_kernel_takes() {
        assert_eq!([1, 32, 33, 96].map(interrupts), [64, 64, 96, 128]);
        let last = aarch64::line(layout::SHARED_INTERRUPTS - 1).unwrap();
        assert!(PRIVATE + last.number() < interrupts(layout::SHARED_INTERRUPTS));
    }

    #[test]
    fn a_host_without_such_a_controller_is_told_apart_from_one_that_fails() {
        let said = |errno| refused(kvm_ioctls::Error::new(errno)).to_string();
        assert!(said(libc::ENODEV).contains("(GICv3): the host's is older"), "{}", said(libc::ENODEV));
        assert!(said(libc::ENOMEM).starts_with("KVM_CREATE_DEVICE of a GICv3"), "{}", said(libc::ENOMEM));
    }

    #[test]
    fn lines_and_places_have_the_kernels_form() {
        assert_eq!(irq(1), 0x0100_0021);
        assert_eq!(redistributors(8), 0x0080_0000_080a_0000);
        assert_eq!(redistributors(32), 0x0200_0000_080a_0000);
        assert_eq!(layout::GIC_REDISTRIBUTOR % 0x1_0000, 0);
    }
}
