// The honest half: finds, starts, uses and resets a device.
//
// A paravirtual KVM may emulate every instruction of a guest like this one, a microsecond each, so loops are kept short.
#include "virtio.h"

volatile struct ring rings[QUEUES];
volatile u8 pages[16][4096] __attribute__((aligned(4096)));

void *memset(void *to, int byte, u64 len) {
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(len) : "a"(byte) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, u64 len) {
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(len) : : "memory");
    return start;
}

// Only the indices and flags: the rest of a ring means nothing until they say so.
void clear_rings(struct device *d) {
    for (u32 q = 0; q < QUEUES; q++) {
        rings[q].avail.flags = rings[q].avail.idx = rings[q].avail.used_event = 0;
        rings[q].used.flags = rings[q].used.idx = rings[q].used.avail_event = 0;
        d->seen[q] = 0;
    }
}

// Asks for a reset and polls until the device says that it is done.
int reset(struct device *d) {
    set(d, STATUS, 0);
    for (u32 i = 0; i < 200000; i++)
        if (get(d, STATUS) == 0) return 1;
    return 0;
}

// Up to FEATURES_OK, with everything that is offered except event indices: this driver polls.
int negotiate(struct device *d) {
    set(d, STATUS, ACK);
    set(d, STATUS, ACK | DRIVER);
    for (u32 half = 0; half < 2; half++) {
        set(d, FEATURES_SEL, half);
        u32 offered = get(d, FEATURES);
        if (half == 0) offered &= ~(1u << 29);
        set(d, ACCEPT_SEL, half);
        set(d, ACCEPT, offered);
    }
    set(d, STATUS, ACK | DRIVER | FEATURES_OK);
    return get(d, STATUS) == (ACK | DRIVER | FEATURES_OK);
}

void describe(struct device *d, u32 queue, u32 size, u64 desc, u64 avail, u64 used) {
    set(d, QUEUE_SEL, queue);
    set(d, QUEUE_NUM, size);
    set(d, DESC, (u32)desc);
    set(d, DESC + 4, (u32)(desc >> 32));
    set(d, AVAIL, (u32)avail);
    set(d, AVAIL + 4, (u32)(avail >> 32));
    set(d, USED, (u32)used);
    set(d, USED + 4, (u32)(used >> 32));
    set(d, QUEUE_READY, 1);
}

int start(struct device *d) {
    clear_rings(d);
    if (!negotiate(d)) return 0;
    for (u32 q = 0; q < d->queues; q++)
        describe(d, q, d->size[q], address(rings[q].desc), address(&rings[q].avail), address(&rings[q].used));
    set(d, STATUS, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
    return get(d, STATUS) == (ACK | DRIVER | FEATURES_OK | DRIVER_OK);
}

void put(u32 queue, u16 index, u64 addr, u32 len, u16 flags, u16 next) {
    volatile struct desc *desc = &rings[queue].desc[index];
    desc->addr = addr;
    desc->len = len;
    desc->flags = flags;
    desc->next = next;
}

void offer(struct device *d, u32 queue, u16 head) {
    u16 idx = rings[queue].avail.idx;
    rings[queue].avail.ring[idx % d->size[queue]] = head;
    barrier();
    rings[queue].avail.idx = idx + 1;
    barrier();
}

void ring_bell(struct device *d, u32 queue) { set(d, NOTIFY, queue); }

// Waits until the queue has an answer more or the device says that it is broken. A look at the status is an exit, so patience is
// counted in microseconds.
enum outcome await(struct device *d, u32 queue, u32 patience) {
    for (u32 i = 0; i < patience; i++) {
        if (rings[queue].used.idx != d->seen[queue]) {
            d->seen[queue]++;
            return ANSWERED;
        }
        if (get(d, STATUS) & NEEDS_RESET) return BROKEN;
    }
    return NOTHING;
}

#ifndef PATIENCE
#define PATIENCE 200000
#endif

static int answered(struct device *d, u32 queue) {
    ring_bell(d, queue);
    return await(d, queue, PATIENCE) == ANSWERED;
}

static u32 length(struct device *d, u32 queue) { return rings[queue].used.ring[(u16)(d->seen[queue] - 1) % d->size[queue]].len; }

static int use_rng(struct device *d) {
    put(0, 0, address(pages[0]), 32, WRITE, 0);
    offer(d, 0, 0);
    if (!answered(d, 0) || length(d, 0) != 32) return 0;
    u32 sum = 0;
    for (u32 i = 0; i < 32; i++) sum += pages[0][i];
    return sum != 0;
}

static int block(struct device *d, u32 kind, u64 sector, volatile u8 *data) {
    volatile u32 *header = (volatile u32 *)pages[0];
    header[0] = kind;
    header[1] = 0;
    header[2] = (u32)sector;
    header[3] = (u32)(sector >> 32);
    pages[1][0] = 0xff;
    put(0, 0, address(header), 16, NEXT, 1);
    put(0, 1, address(data), 512, NEXT | (kind == 0 ? WRITE : 0), 2);
    put(0, 2, address(pages[1]), 1, WRITE, 0);
    offer(d, 0, 0);
    return answered(d, 0) && pages[1][0] == 0;
}

static int use_blk(struct device *d) {
    static u8 pattern;
    pattern++;
    for (u32 i = 0; i < 512; i += 73) pages[2][i] = pattern + i;
    if (!block(d, 1, 1, pages[2]) || !block(d, 0, 1, pages[3])) return 0;
    for (u32 i = 0; i < 512; i += 73)
        if (pages[3][i] != (u8)(pattern + i)) return 0;
    return 1;
}

static int use_console(struct device *d) {
    static const char line[] = "console works\n";
    memcpy((void *)pages[0], line, sizeof line - 1);
    put(1, 0, address(pages[0]), sizeof line - 1, 0, 0);
    offer(d, 1, 0);
    return answered(d, 1);
}

// A stream to a host port where nobody listens: the host's answer is a reset of that stream.
static int use_vsock(struct device *d) {
    static u32 port = 1000;
    port++;
    volatile u32 *h = (volatile u32 *)pages[0];
    for (u32 i = 0; i < 11; i++) h[i] = 0;
    h[0] = get(d, CONFIG);
    h[2] = 2;
    h[4] = port;
    h[5] = 9;
    ((volatile u16 *)h)[14] = 1;
    ((volatile u16 *)h)[15] = 1;
    h[9] = 65536;
    for (u16 i = 0; i < 4; i++) {
        put(0, i, address(pages[4 + i]), 4096, WRITE, 0);
        offer(d, 0, i);
    }
    ring_bell(d, 0);
    put(1, 0, address(h), 44, 0, 0);
    offer(d, 1, 0);
    if (!answered(d, 1)) return 0;
    for (u32 i = 0; i < 4; i++) {
        if (await(d, 0, PATIENCE) != ANSWERED) return 0;
        volatile u8 *packet = pages[4 + rings[0].used.ring[(d->seen[0] - 1) % d->size[0]].id];
        if (((volatile u32 *)packet)[5] == port && ((volatile u16 *)packet)[15] == 3) return 1;
    }
    return 0;
}

// A frame, which a network without a link takes, too.
static int use_net(struct device *d) {
    for (u32 i = 0; i < 18; i++) ((volatile u32 *)pages[0])[i] = 0;
    put(1, 0, address(pages[0]), 72, 0, 0);
    offer(d, 1, 0);
    return answered(d, 1);
}

// What a driver says when it begins: nothing is plugged in.
static int use_mem(struct device *d) {
    volatile u16 *words = (volatile u16 *)pages[0];
    for (u32 i = 0; i < 12; i++) words[i] = 0;
    words[0] = 2;
    ((volatile u16 *)pages[1])[0] = 0xffff;
    put(0, 0, address(words), 24, NEXT, 1);
    put(0, 1, address(pages[1]), 10, WRITE, 0);
    offer(d, 0, 0);
    return answered(d, 0) && ((volatile u16 *)pages[1])[0] == 0;
}

// A page that is reported free comes back as zeros, and is memory as before.
static int use_balloon(struct device *d) {
    volatile u64 *page = (volatile u64 *)SPARE;
    for (u32 i = 0; i < 512; i++) page[i] = ~0ul;
    put(2, 0, SPARE, 4096, WRITE, 0);
    offer(d, 2, 0);
    if (!answered(d, 2)) return 0;
    for (u32 i = 0; i < 512; i++)
        if (page[i]) return 0;
    page[0] = 1;
    return page[0] == 1;
}

// FUSE_INIT.
static void hello(u64 unique) {
    volatile u32 *words = (volatile u32 *)pages[0];
    for (u32 i = 0; i < 26; i++) words[i] = 0;
    words[0] = 104;
    words[1] = 26;
    words[2] = (u32)unique;
    words[10] = 7;
    words[11] = 38;
    words[12] = 65536;
}

static int use_fs(struct device *d) {
    static u32 unique;
    hello(++unique);
    volatile u32 *answer = (volatile u32 *)pages[1];
    for (u32 i = 0; i < 4; i++) answer[i] = ~0u;
    put(1, 0, address(pages[0]), 104, NEXT, 1);
    put(1, 1, address(answer), 80, WRITE, 0);
    offer(d, 1, 0);
    return answered(d, 1) && answer[0] == 80 && answer[1] == 0 && answer[2] == unique;
}

// The queue that carries a device's requests.
u32 main_queue(struct device *d) { return d->id == BALLOON ? 2 : d->id == CONSOLE || d->id == VSOCK || d->id == NET || d->id == FS; }

// A proper request that begins at descriptor `at`, and how many it has: work for a device whose rings are rewritten meanwhile.
u32 request(struct device *d, u32 q, u16 at) {
    volatile u32 *words = (volatile u32 *)pages[0];
    u32 readable = 0, writable = 0;
    switch (d->id) {
    case RNG: writable = 2048; break;
    case BALLOON:
        // All four, though the chain is one: whoever rewrites their lengths gives none of the driver's own memory away.
        for (u32 i = 0; i < 4; i++) put(q, at + i, SPARE + 8192 * (at + i), 4096, WRITE, 0);
        return 1;
    case CONSOLE: pages[0][0] = '.', readable = 1; break;
    case NET: readable = 72; break;
    case MEM: words[0] = 2, readable = 24, writable = 10; break;
    case FS: hello(at), readable = 104, writable = 80; break;
    case VSOCK:
        for (u32 i = 0; i < 11; i++) words[i] = 0;
        words[0] = get(d, CONFIG), words[2] = 2, words[4] = 100 + at, words[5] = 9, words[7] = 1 << 16 | 1, words[9] = 65536;
        readable = 44;
        break;
    case BLK:
        for (u32 i = 0; i < 4; i++) words[i] = 0;
        put(q, at, address(words), 16, NEXT, at + 1);
        put(q, at + 1, address(pages[3]), 4096, NEXT | WRITE, at + 2);
        put(q, at + 2, address(pages[1]), 1, WRITE, 0);
        return 3;
    }
    u16 next = at;
    if (readable) put(q, next, address(words), readable, writable ? NEXT : 0, next + 1), next++;
    if (writable) put(q, next, address(pages[1]), writable, WRITE, 0), next++;
    return next - at;
}

// Proper use of a device that was just started.
int use(struct device *d) {
    switch (d->id) {
    case NET: return use_net(d);
    case MEM: return use_mem(d);
    case BALLOON: return use_balloon(d);
    case FS: return use_fs(d);
    case RNG: return use_rng(d);
    case BLK: return use_blk(d);
    case CONSOLE: return use_console(d);
    case VSOCK: return use_vsock(d);
    }
    return 0;
}
