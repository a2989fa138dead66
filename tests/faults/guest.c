// A guest that uses every device that it finds once, says on COM1 how that went, and switches the machine off. Without
// interrupts and without a kernel: what its monitor does is the same each time, so that each of its system calls can be made to
// fail.
#include "../guests/hostile/driver.c"

#define FIRST 0xd0000000ul
#define STRIDE 0x1000
#define SLOTS 19
#ifndef FRAME_CYCLES
#define FRAME_CYCLES 12000000000ul
#endif

// The machine of `ways.py` has so much.
u64 ram_end = 16ul << 20;

void print(const char *text) {
    for (; *text; text++) {
        while (!(in8(0x3fd) & 0x20)) {
        }
        out8(0x3f8, *text);
    }
}

static const char *name(u32 id) {
    switch (id) {
    case NET: return "net";
    case BLK: return "blk";
    case CONSOLE: return "console";
    case RNG: return "rng";
    case BALLOON: return "balloon";
    case VSOCK: return "vsock";
    case MEM: return "mem";
    case FS: return "fs";
    }
    return "unknown";
}

__attribute__((noreturn)) static void off(void) {
    __asm__ volatile("outb %0, %1" : : "a"((u8)0x34), "d"((u16)0x600));
    for (;;) {
    }
}

static u64 clock_now(void) {
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

// An answer within a few seconds: a frame may be lost, and what waits for it is not to wait for long.
static int comes(struct device *d, u32 queue) {
    u64 start = clock_now();
    do {
        if (await(d, queue, 100) == ANSWERED) return 1;
    } while (clock_now() - start < FRAME_CYCLES);
    return 0;
}

// One frame out, and one in: the other end sends back what it gets.
static int echo_frame(struct device *d) {
    put(0, 0, address(pages[4]), 2048, WRITE, 0);
    offer(d, 0, 0);
    ring_bell(d, 0);
    for (u32 i = 0; i < 12 + 60; i++) pages[0][i] = i < 12 ? 0 : i;
    put(1, 0, address(pages[0]), 12 + 60, 0, 0);
    offer(d, 1, 0);
    ring_bell(d, 1);
    if (!comes(d, 1) || !comes(d, 0)) return 0;
    for (u32 i = 12; i < 12 + 60; i++)
        if (pages[4][i] != i) return 0;
    return 1;
}

// FUSE_INIT, which the server answers with what it can.
static int greet_server(struct device *d) {
    volatile u32 *h = (volatile u32 *)pages[0];
    for (u32 i = 0; i < 26; i++) h[i] = 0;
    h[0] = 104, h[1] = 26, h[2] = 1;
    h[10] = 7, h[11] = 38, h[12] = 65536;
    put(1, 0, address(h), 104, NEXT, 1);
    put(1, 1, address(pages[1]), 80, WRITE, 0);
    offer(d, 1, 0);
    ring_bell(d, 1);
    if (await(d, 1, PATIENCE) != ANSWERED) return 0;
    volatile u32 *answer = (volatile u32 *)pages[1];
    return answer[0] == 80 && answer[1] == 0;
}

// What was written is there, and a flush puts it on the disk.
static int use_disk(struct device *d) { return use(d) && block(d, 4, 0, pages[2]); }

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

static u8 stack[16384] __attribute__((aligned(16), used));

__attribute__((used, noreturn)) static void main(void) {
    struct device d;
    map_devices();
    for (u32 slot = 0; slot < SLOTS; slot++) {
        d.base = (volatile u8 *)FIRST + slot * STRIDE;
        if (get(&d, MAGIC) != 0x74726976) continue;
        d.id = get(&d, DEVICE_ID);
        if (!d.id) continue;
        d.queues = 0;
        print(name(d.id));
        for (u32 q = 0; q < QUEUES; q++) {
            set(&d, QUEUE_SEL, q);
            d.size[q] = get(&d, QUEUE_NUM_MAX);
            if (d.size[q] > QS) d.size[q] = QS;
            if (!d.size[q]) break;
            d.queues++;
        }
        const char *said = " works\n";
        if (!reset(&d) || !start(&d)) said = " does not start\n";
        else if (d.id == NET ? !echo_frame(&d) : d.id == FS ? !greet_server(&d) : d.id == BLK ? !use_disk(&d) : d.id != MEM && !use(&d)) said = " fails\n";
        print(said);
        // The next device has the same rings: one that still looked at them would see another's driver.
        reset(&d);
    }
    print("off\n");
    off();
}

__asm__(".globl _start\n_start:\n\tlea stack+16384(%rip), %rsp\n\txor %ebp, %ebp\n\tcall main\n\tud2\n");
