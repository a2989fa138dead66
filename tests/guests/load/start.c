// A guest with one job, which the first word of its command line names: the tests of load give it a device and much to do. It needs
// no kernel, no interrupt and no vector unit, so it runs on a paravirtual KVM too. It speaks on COM1.
#include "load.h"

#define FIRST 0xd0000000ul
#define STRIDE 0x1000
#define SLOTS 19

u64 ram_end;

static const struct job {
    const char *word;
    // 0: none.
    u32 device;
    void (*run)(struct device *d, u32 amount);
} jobs[] = {
    {"ledger", BLK, ledger},        {"serial", 0, fill_serial},       {"console", CONSOLE, fill_console},
    {"random", RNG, take_random},   {"disk", BLK, move_sectors},      {"streams", VSOCK, fill_streams},
    {"give", BALLOON, give_back},   {"report", BALLOON, report},      {"plug", MEM, plug},
    {"share", FS, use_share},       {"frames", NET, send_frames},     {"full", BLK, keep_full},
    {"measure", BLK, measure},
};

void print(const char *text) {
    for (; *text; text++) {
        while (!(in8(0x3fd) & 0x20)) {
        }
        out8(0x3f8, *text);
    }
}

void number(u64 value) {
    char text[24];
    u32 at = 23;
    text[at] = 0;
    do {
        text[--at] = '0' + value % 10;
        value /= 10;
    } while (value);
    print(text + at);
}

__attribute__((noreturn)) static void restart(void) {
    // Reset by the keyboard controller.
    for (;;) out8(0x64, 0xfe);
}

void give_up(const char *why) {
    print("load: ");
    print(why);
    print("\n");
    restart();
}

// What follows the word that the line begins with, or nothing.
static const char *after(const char *line, const char *word) {
    for (; *word; line++, word++)
        if (*line != *word) return 0;
    return *line == 0 || *line == ' ' ? line : 0;
}

static u32 amount(const char *text) {
    u32 value = 0;
    for (; *text == ' '; text++) {
    }
    for (; *text >= '0' && *text <= '9'; text++) value = value * 10 + *text - '0';
    return value;
}

// Writes to each page that there is, so that what memory the monitor has more of from here on is its own; then says so and waits
// for a byte.
void wait_for_go(void) {
    for (u64 at = 0x100000; at < ram_end; at += 4096) {
        volatile u8 *page = (volatile u8 *)at;
        *page = *page;
    }
    print("ready\n");
    wait_for_byte();
}

void wait_for_byte(void) {
    // Clear to send.
    out8(0x3fc, 3);
    while (!(in8(0x3fd) & 1)) {
    }
    in8(0x3f8);
}

// The end of the memory that holds 1 MiB, by the zero page's table.
static u64 find_ram_end(const u8 *zero_page) {
    u32 entries = zero_page[0x1e8];
    for (u32 i = 0; i < entries; i++) {
        const u8 *entry = zero_page + 0x2d0 + 20 * i;
        u64 start = *(const u64 *)entry, len = *(const u64 *)(entry + 8);
        if (start <= 0x100000 && start + len > 0x100000) return start + len;
    }
    return 0;
}

// Finds a device by its id and starts it with queues of at most QS entries.
static int find(struct device *d, u32 id) {
    for (u32 slot = 0; slot < SLOTS; slot++) {
        *d = (struct device){.base = (volatile u8 *)(FIRST + slot * STRIDE)};
        if (get(d, MAGIC) != 0x74726976 || get(d, VERSION) != 2) return 0;
        d->id = get(d, DEVICE_ID);
        if (d->id != id) continue;
        for (d->queues = 0; d->queues < QUEUES; d->queues++) {
            set(d, QUEUE_SEL, d->queues);
            u32 max = get(d, QUEUE_NUM_MAX);
            if (max == 0) break;
            d->size[d->queues] = max < QS ? max : QS;
        }
        return reset(d) && start(d);
    }
    return 0;
}

// The entry maps RAM; devices lie above. Adds the 2 MiB page they are in to the tables that the entry made.
static void map_devices(void) {
    static volatile u64 directory[512] __attribute__((aligned(4096)));
    volatile u64 *top;
    __asm__ volatile("mov %%cr3, %0" : "=r"(top));
    volatile u64 *pointers = (volatile u64 *)(top[0] & ~0xffful);
    directory[FIRST >> 21 & 511] = FIRST | 0x83;
    pointers[FIRST >> 30] = address(directory) | 3;
    __asm__ volatile("mov %0, %%cr3" : : "r"(top) : "memory");
}

static u8 stack[32768] __attribute__((aligned(16), used));

__attribute__((used, noreturn)) static void main(const u8 *zero_page) {
    const char *line = (const char *)(u64) * (const u32 *)(zero_page + 0x228);
    map_devices();
    ram_end = find_ram_end(zero_page);
    for (u32 i = 0; i < sizeof jobs / sizeof *jobs; i++) {
        struct device d;
        const char *rest = after(line, jobs[i].word);
        if (!rest) continue;
        if (jobs[i].device && !find(&d, jobs[i].device)) give_up("the job's device is not there");
        jobs[i].run(&d, amount(rest));
        print("done\n");
        for (;;) __asm__ volatile("cli\n\thlt");
    }
    give_up("the command line names no job");
}

__asm__(".globl _start\n_start:\n\tlea stack+32768(%rip), %rsp\n\txor %ebp, %ebp\n\tmov %rsi, %rdi\n\tcall main\n\tud2\n");
