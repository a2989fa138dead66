// A freestanding virtio-mmio driver that can be honest or not: registers, rings, requests. No interrupts: it polls.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum { MAGIC = 0x000, VERSION = 0x004, DEVICE_ID = 0x008, FEATURES = 0x010, FEATURES_SEL = 0x014, ACCEPT = 0x020,
       ACCEPT_SEL = 0x024, QUEUE_SEL = 0x030, QUEUE_NUM_MAX = 0x034, QUEUE_NUM = 0x038, QUEUE_READY = 0x044, NOTIFY = 0x050,
       IRQ_STATUS = 0x060, IRQ_ACK = 0x064, STATUS = 0x070, DESC = 0x080, AVAIL = 0x090, USED = 0x0a0, CONFIG = 0x100 };
enum { ACK = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 0x40 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { NET = 1, BLK = 2, CONSOLE = 3, RNG = 4, BALLOON = 5, VSOCK = 19, MEM = 24, FS = 26 };

#define QS 64

// The host holds the other processors back, before they begin and in a read of this port, until a write to it lets each of them go once;
// it says in the next one how many there are.
#define GATE 0x510
#define QUEUES 5

struct desc {
    u64 addr;
    u32 len;
    u16 flags, next;
};

// One page each, so that a ring can be pointed anywhere.
struct ring {
    struct desc desc[QS] __attribute__((aligned(4096)));
    struct {
        u16 flags, idx, ring[QS], used_event;
    } avail __attribute__((aligned(4096)));
    struct {
        u16 flags, idx;
        struct {
            u32 id, len;
        } ring[QS];
        u16 avail_event;
    } used __attribute__((aligned(4096)));
};

struct device {
    volatile u8 *base;
    u32 id;
    u32 queues;
    // The size of each queue: what it offers, at most QS.
    u32 size[QUEUES];
    u16 seen[QUEUES];
};

// What an attack or a request came to.
enum outcome { NOTHING, ANSWERED, BROKEN };

extern volatile struct ring rings[QUEUES];
extern volatile u8 pages[16][4096];
extern u64 ram_end;
// The last 8 MiB of memory, which nothing here needs: a balloon may have them.
#define SPARE (ram_end - 0x800000)

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 in8(u16 port) {
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline void barrier(void) { __asm__ volatile("mfence" : : : "memory"); }
// Plain moves, so that every hypervisor can emulate them.
static inline u32 get(struct device *d, u32 at) {
    u32 value;
    __asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(d->base + at) : "memory");
    return value;
}
static inline void set(struct device *d, u32 at, u32 value) {
    __asm__ volatile("movl %0, (%1)" : : "r"(value), "r"(d->base + at) : "memory");
}
static inline u64 address(const volatile void *p) { return (u64)p; }

void print(const char *text);
void number(u64 value);

void clear_rings(struct device *d);
int reset(struct device *d);
int negotiate(struct device *d);
void describe(struct device *d, u32 queue, u32 size, u64 desc, u64 avail, u64 used);
int start(struct device *d);
void put(u32 queue, u16 index, u64 addr, u32 len, u16 flags, u16 next);
void offer(struct device *d, u32 queue, u16 head);
void ring_bell(struct device *d, u32 queue);
enum outcome await(struct device *d, u32 queue, u32 patience);
int use(struct device *d);
u32 main_queue(struct device *d);
u32 request(struct device *d, u32 queue, u16 at);

// What attacks need of each other.
void attacked(void);
void failed(struct device *d, const char *attack, u32 queue, const char *what);
void must_work(struct device *d, const char *attack, u32 queue);
void tricks(struct device *d);
void race(struct device *d);
void racer(u32 cpu);
