/* profile.so: a plugin of the emulated host's QEMU that counts where a boot's instructions go.
 *
 *     qemu-system-x86_64 ... -plugin profile.so,out=FILE,boot=N
 *
 * Counts from the stopwatch's mark 0 to its mark 1, of boot number N (0 is the first), and writes
 * FILE: an array of `struct record`. A boot is cut into slices of SLICE instructions; a record says
 * how many instructions of a slice were executed in the block of code at an address. Counting adds
 * no instruction to what is emulated, so virtual time does not change.
 *
 * Host and guest are told apart by VMRUN: what is executed after it is the guest's, until the
 * instruction behind it is reached. This holds for one emulated processor with AMD-V, as
 * tests/emulated-host has it.
 *
 * The declarations below are of version 1 of the plugin interface (QEMU 4.2 to 9.0), whose header
 * Debian does not package.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*executed)(unsigned processor, void *data);
enum { NO_REGISTERS = 0, ADD_U64 = 0 };
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*)(uint64_t id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, executed, int flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, executed, int flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int operation, void *to, uint64_t value);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
__attribute__((visibility("default"))) int qemu_plugin_version = 1;

#define SLICE 20000

struct record {
  uint64_t address;
  uint32_t slice;
  uint32_t count : 31, guest : 1;
};

/* A translated block, and what was executed of it in this slice: by the host, by a guest. */
struct block {
  uint64_t address;
  bool enters_guest;
  uint32_t count[2];
  struct block *next; /* of those that were executed in this slice; itself at the end */
};

static const char *path;
static uint64_t instructions, charged; /* executed in all; those that a block was charged with */
static uint64_t begin, slice;          /* where the boot began; the slice that goes on */
static uint64_t resumes_at;            /* the instruction behind the host's VMRUN */
static struct block *running, *touched;
static bool counting, in_guest;
static int boots_before;
static FILE *out;

static void need(bool ok) {
  if (!ok) {
    perror("profile");
    abort();
  }
}

/* Writes what was executed in the slice that ends. */
static void flush(void) {
  while (touched) {
    struct block *block = touched;
    for (unsigned guest = 0; guest < 2; guest++) {
      struct record record = {block->address, slice, block->count[guest], guest};
      need(record.count == 0 || fwrite(&record, sizeof record, 1, out) == 1);
      block->count[guest] = 0;
    }
    touched = block->next == block ? NULL : block->next;
    block->next = NULL;
  }
}

/* Charges the block that ran with what was executed since the last call, which is less than all of
 * it when it was interrupted. */
static void charge(void) {
  uint64_t done = instructions - charged, now = (charged - begin) / SLICE;
  charged = instructions;
  if (!counting || !running || !done)
    return;
  if (now != slice) {
    flush();
    slice = now;
  }
  if (!running->next) {
    running->next = touched ? touched : running;
    touched = running;
  }
  running->count[in_guest] += done;
}

static void block_begins(unsigned processor, void *data) {
  struct block *block = data;
  charge();
  if (running && running->enters_guest)
    in_guest = true;
  if (in_guest && block->address == resumes_at)
    in_guest = false;
  running = block;
}

static void boot_begins(unsigned processor, void *data) {
  charge();
  if (boots_before-- != 0)
    return;
  need((out = fopen(path, "wb")) != NULL);
  counting = true;
  begin = instructions;
  slice = 0;
}

static void boot_ends(unsigned processor, void *data) {
  charge();
  if (!counting)
    return;
  counting = false;
  flush();
  need(fclose(out) == 0);
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb) {
  static const uint8_t vmrun[] = {0x0f, 0x01, 0xd8};
  /* nopl 0x6e656c00 + NUMBER(%rax), as stopwatch.c has it */
  static const uint8_t mark[] = {0x0f, 0x1f, 0x80}, tag[] = {0x6c, 0x65, 0x6e};
  struct block *block = calloc(1, sizeof *block);
  need(block != NULL);
  block->address = qemu_plugin_tb_vaddr(tb);
  for (size_t at = 0; at < qemu_plugin_tb_n_insns(tb); at++) {
    struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, at);
    const uint8_t *data = qemu_plugin_insn_data(insn);
    size_t size = qemu_plugin_insn_size(insn);
    qemu_plugin_register_vcpu_insn_exec_inline(insn, ADD_U64, &instructions, 1);
    if (size == sizeof vmrun && !memcmp(data, vmrun, size)) {
      block->enters_guest = true;
      resumes_at = qemu_plugin_insn_vaddr(insn) + size;
    }
    if (size == 7 && !memcmp(data, mark, 3) && !memcmp(data + 4, tag, 3))
      qemu_plugin_register_vcpu_insn_exec_cb(insn, data[3] ? boot_ends : boot_begins, NO_REGISTERS, NULL);
  }
  qemu_plugin_register_vcpu_tb_exec_cb(tb, block_begins, NO_REGISTERS, block);
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info, int count, char **arguments) {
  for (int at = 0; at < count; at++) {
    if (!strncmp(arguments[at], "out=", 4))
      path = strdup(arguments[at] + 4);
    if (!strncmp(arguments[at], "boot=", 5))
      boots_before = atoi(arguments[at] + 5);
  }
  if (!path) {
    fprintf(stderr, "profile: out=FILE is missing\n");
    return -1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  return 0;
}
