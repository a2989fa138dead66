//! The device tree of a machine: what the board has, as Linux's bindings name it.

use super::fdt::{self, FdtNode};
use crate::arch::aarch64::{self, layout};
use crate::boot::MmioSlot;

/// Numbers by which nodes name each other.
const INTERRUPTS: u32 = 1;
const CLOCK: u32 = 2;

/// Kinds and triggers of an interrupt (arm,gic-v3).
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const RISING_EDGE: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// Private interrupts of the generic timer: secure, non-secure, virtual, hypervisor.
const TIMER: [u32; 4] = [13, 14, 11, 10];
/// Ticks a second of the clock that the real-time clock hangs on. It has no use for them.
const CLOCK_HZ: u32 = 24_000_000;
/// The clock of a PC's serial port.
const SERIAL_HZ: u32 = 1_843_200;

/// What is described beside what every board has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Described<'a> {
    /// First byte and end of each range of memory.
    pub(super) memory: &'a [(u64, u64)],
    pub(super) cpus: u32,
    pub(super) transports: &'a [MmioSlot],
    pub(super) command_line: &'a str,
    /// First byte and length.
    pub(super) initrd: Option<(u64, u64)>,
    pub(super) seed: Option<[u8; 32]>,
    pub(super) kernel_place: Option<u64>,
}

/// The tree.
pub(super) fn write(machine: &Described<'_>) -> Vec<u8> {
    fdt::tree(|root| {
        root.cells("#address-cells", &[2]);
        root.cells("#size-cells", &[2]);
        root.texts("compatible", &["linux,dummy-virt"]);
        root.texts("model", &["Nelly microVM"]);
        root.cells("interrupt-parent", &[INTERRUPTS]);
        chosen(root, machine);
        for &(start, end) in machine.memory {
            root.node(&format!("memory@{start:x}"), |memory| {
                memory.texts("device_type", &["memory"]);
                memory.wide("reg", &[start, end - start]);
            });
        }
        cpus(root, machine.cpus);
        controller(root, machine.cpus);
        root.node("timer", |timer| {
            timer.texts("compatible", &["arm,armv8-timer"]);
            let interrupts = TIMER.iter().flat_map(|number| [PRIVATE, *number, LEVEL_HIGH]);
            timer.cells("interrupts", &interrupts.collect::<Vec<_>>());
            timer.flag("always-on");
        });
        root.node("psci", |psci| {
            psci.texts("compatible", &["arm,psci-1.0", "arm,psci-0.2"]);
            psci.texts("method", &["hvc"]);
        });
        platform(root);
        for transport in machine.transports {
            root.node(&format!("virtio_mmio@{:x}", transport.address), |node| {
                node.texts("compatible", &["virtio,mmio"]);
                node.wide("reg", &[transport.address, layout::VIRTIO_STRIDE]);
                node.cells("interrupts", &[SHARED, transport.line.number(), RISING_EDGE]);
                node.flag("dma-coherent");
            });
        }
    })
}

fn chosen(root: &mut FdtNode<'_>, machine: &Described<'_>) {
    root.node("chosen", |chosen| {
        chosen.texts("bootargs", &[machine.command_line]);
        chosen.texts("stdout-path", &[&format!("/{}", serial_name())]);
        if let Some((start, len)) = machine.initrd {
            chosen.wide("linux,initrd-start", &[start]);
            chosen.wide("linux,initrd-end", &[start + len]);
        }
        if let Some(seed) = machine.seed {
            chosen.bytes("rng-seed", &seed);
        }
        if let Some(place) = machine.kernel_place {
            chosen.wide("kaslr-seed", &[place]);
        }
    });
}

fn cpus(root: &mut FdtNode<'_>, count: u32) {
    root.node("cpus", |cpus| {
        cpus.cells("#address-cells", &[1]);
        cpus.cells("#size-cells", &[0]);
        for index in 0..count {
            let affinity = aarch64::affinity(index);
            cpus.node(&format!("cpu@{affinity:x}"), |cpu| {
                cpu.texts("device_type", &["cpu"]);
                cpu.texts("compatible", &["arm,armv8"]);
                cpu.cells("reg", &[affinity]);
                cpu.texts("enable-method", &["psci"]);
            });
        }
    });
}

/// The interrupt controller, GICv3 without a translation service.
fn controller(root: &mut FdtNode<'_>, cpus: u32) {
    root.node(&format!("interrupt-controller@{:x}", layout::GIC_DISTRIBUTOR), |node| {
        node.texts("compatible", &["arm,gic-v3"]);
        node.cells("#interrupt-cells", &[3]);
        node.cells("#address-cells", &[2]);
        node.cells("#size-cells", &[2]);
        node.flag("interrupt-controller");
        let redistributors = u64::from(cpus) * layout::GIC_REDISTRIBUTOR_LEN;
        node.wide(
            "reg",
            &[
                layout::GIC_DISTRIBUTOR,
                layout::GIC_DISTRIBUTOR_LEN,
                layout::GIC_REDISTRIBUTOR,
                redistributors,
            ],
        );
        node.cells("phandle", &[INTERRUPTS]);
    });
}

/// Serial port and clock.
fn platform(root: &mut FdtNode<'_>) {
    root.node(&serial_name(), |serial| {
        serial.texts("compatible", &["ns16550a"]);
        serial.wide("reg", &[layout::SERIAL, layout::SERIAL_LEN]);
        serial.cells("interrupts", &[SHARED, layout::SERIAL_LINE.number(), RISING_EDGE]);
        serial.cells("clock-frequency", &[SERIAL_HZ]);
    });
    root.node("apb-pclk", |clock| {
        clock.texts("compatible", &["fixed-clock"]);
        clock.cells("#clock-cells", &[0]);
        clock.cells("clock-frequency", &[CLOCK_HZ]);
        clock.cells("phandle", &[CLOCK]);
    });
    root.node(&format!("rtc@{:x}", layout::RTC), |clock| {
        clock.texts("compatible", &["arm,pl031", "arm,primecell"]);
        clock.wide("reg", &[layout::RTC, layout::RTC_LEN]);
        clock.cells("clocks", &[CLOCK]);
        clock.texts("clock-names", &["apb_pclk"]);
    });
}

fn serial_name() -> String {
    format!("serial@{:x}", layout::SERIAL)
}
