/* The floor: the least a monitor must do from its first instruction to the guest's first byte.
 *
 * One machine with 128 MiB in one slot, local APICs in the kernel, one vCPU with the host's CPUID leaves, and a
 * guest of a few instructions that writes a byte to COM1 in 64-bit mode and faults three times. The byte goes to stdout as it is
 * written. The ioctls are those that nelly-monitor makes, in the same order, without what a real monitor must do beside them
 * (files, devices, threads, confinement).
 *
 *     gcc -O2 -static -o minimal minimal.c
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM (128ul << 20)
#define CODE 0x100000
#define TABLES 0x9000

static void need(int ok, const char *what) {
  if (!ok) {
    perror(what);
    exit(1);
  }
}

static struct {
  struct kvm_cpuid2 head;
  struct kvm_cpuid_entry2 entries[256];
} cpuid = {{256, 0}};

static struct {
  struct kvm_msrs head;
  struct kvm_msr_entry entries[2];
} msrs = {{2, 0}, {{0x2ff, 0, 0x806}, {0x1a0, 0, 1}}};

/* mov al, 'N'; mov dx, 0x3f8; out dx, al; push 0; push 0; lidt [rsp]; ud2 */
static const uint8_t code[] = {0xb0, 'N', 0x66, 0xba, 0xf8, 0x03, 0xee, 0x6a, 0, 0x6a, 0, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b};

int main(void) {
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  need(kvm >= 0, "/dev/kvm");
  need(ioctl(kvm, KVM_GET_API_VERSION, 0) == 12, "KVM_GET_API_VERSION");
  int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  need(vm >= 0, "KVM_CREATE_VM");
  int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  need(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) == 0, "KVM_GET_SUPPORTED_CPUID");

  uint8_t *ram = mmap(0, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  need(ram != MAP_FAILED, "mmap");
  struct kvm_userspace_memory_region slot = {0, 0, 0, RAM, (uintptr_t)ram};
  need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
  uint64_t identity = 0xfffbc000;
  ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000);
  ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity);
#ifdef FULL /* the kernel's own I/O APIC and PIC: the start costs the same, the end 12 ms more */
  need(ioctl(vm, KVM_CREATE_IRQCHIP, 0) == 0, "KVM_CREATE_IRQCHIP");
#else
  struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
  need(ioctl(vm, KVM_ENABLE_CAP, &split) == 0, "KVM_CAP_SPLIT_IRQCHIP");
#endif

  memcpy(ram + CODE, code, sizeof code);
  uint64_t *table = (uint64_t *)(ram + TABLES);
  table[0] = (TABLES + 0x1000) | 3;
  table[512] = (TABLES + 0x2000) | 3;
  for (uint64_t page = 0; page < 512; page++)
    table[1024 + page] = page << 21 | 0x83;
  uint64_t *gdt = (uint64_t *)(ram + 0x500);
  gdt[2] = 0x00af9b000000ffff;
  gdt[3] = 0x00cf93000000ffff;

  int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  need(vcpu >= 0, "KVM_CREATE_VCPU");
  struct kvm_run *run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  need(run != MAP_FAILED, "mmap kvm_run");
  for (unsigned i = 0; i < cpuid.head.nent; i++)
    if (cpuid.entries[i].function == 1)
      cpuid.entries[i].ecx |= 1u << 31 | 1u << 24 | 1u << 21;
  need(ioctl(vcpu, KVM_SET_CPUID2, &cpuid) == 0, "KVM_SET_CPUID2");
  need(ioctl(vcpu, KVM_SET_MSRS, &msrs) >= 0, "KVM_SET_MSRS");
  struct kvm_segment text = {0, 0xffffffff, 0x10, 11, 1, 0, 0, 1, 1, 1, 0, 0, 0};
  struct kvm_segment data = {0, 0xffffffff, 0x18, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0};
  struct kvm_segment task = {0, 0x67, 0x20, 11, 1, 0, 0, 0, 0, 0, 0, 0, 0};
  struct kvm_sregs sregs = {.cs = text, .ds = data, .es = data, .fs = data, .gs = data, .ss = data, .tr = task,
                            .ldt = {.type = 2, .unusable = 1}, .gdt = {.base = 0x500, .limit = 39},
                            .cr0 = 0x80000011, .cr3 = TABLES, .cr4 = 0x20, .efer = 0x500, .apic_base = 0xfee00900};
  need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
  struct kvm_regs regs = {.rip = CODE, .rsp = 0x8ff0, .rflags = 2};
  need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");

  for (;;) {
    need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
    if (run->exit_reason == KVM_EXIT_IO && run->io.port == 0x3f8)
      need(write(1, (char *)run + run->io.data_offset, 1) == 1, "write");
    else if (run->exit_reason == KVM_EXIT_SHUTDOWN)
      _exit(0);
    else
      need(0, "unexpected exit");
  }
}
