// A guest that does to every virtio device what a driver must not, then resets it and uses it as it should be used. It speaks on
// COM1; its last line is the verdict. It needs no kernel, no interrupt and no vector unit, so it runs on a paravirtual KVM too.
//
// For each device: a broken thing, what it must come to, a reset, proper use. A device may break (it says NEEDS_RESET) or answer; it may
// not hang, die, or take the monitor along.
#include "virtio.h"

#define FIRST 0xd0000000ul
#define STRIDE 0x1000
#define SLOTS 19

enum expect { BREAKS, ANSWERS, SURVIVES };
static const char *const outcomes[] = {"nothing", "an answer", "needs reset"};
static const char *const expects[] = {"needs reset", "an answer", "anything"};

struct attack {
    const char *name;
    enum expect expect;
    void (*act)(struct device *d, u32 queue);
};

u64 ram_end;
static u32 attacks, failures;

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

static const char *name(struct device *d) {
    switch (d->id) {
    case NET: return "net";
    case MEM: return "mem";
    case FS: return "fs";
    case RNG: return "rng";
    case BALLOON: return "balloon";
    case BLK: return "blk";
    case CONSOLE: return "console";
    case VSOCK: return "vsock";
    }
    return "unknown";
}

void attacked(void) { attacks++; }

void failed(struct device *d, const char *attack, u32 queue, const char *what) {
    failures++;
    print("hostile: ");
    print(name(d));
    print(" queue ");
    number(queue);
    print(", ");
    print(attack);
    print(": ");
    print(what);
    print("\n");
}

// Chains. Each leaves one head on the queue; the device end meets it when it pops.

static void chain_itself(struct device *d, u32 q) { put(q, 0, address(pages[0]), 64, NEXT, 0), offer(d, q, 0); }
static void chain_two(struct device *d, u32 q) {
    put(q, 0, address(pages[0]), 64, NEXT, 1);
    put(q, 1, address(pages[0]), 64, NEXT, 0);
    offer(d, q, 0);
}
static void chain_all(struct device *d, u32 q) {
    for (u16 i = 0; i < d->size[q]; i++) put(q, i, address(pages[0]), 16, NEXT, (i + 1) % d->size[q]);
    offer(d, q, 0);
}
static void next_beyond(struct device *d, u32 q) { put(q, 0, address(pages[0]), 64, NEXT, d->size[q]), offer(d, q, 0); }
static void next_far(struct device *d, u32 q) { put(q, 0, address(pages[0]), 64, NEXT, 0xffff), offer(d, q, 0); }
static void head_beyond(struct device *d, u32 q) { offer(d, q, d->size[q]); }
static void head_far(struct device *d, u32 q) { offer(d, q, 0xffff); }
static void outside(struct device *d, u32 q) { put(q, 0, 1ul << 40, 64, WRITE, 0), offer(d, q, 0); }
static void outside_read(struct device *d, u32 q) { put(q, 0, 1ul << 40, 64, 0, 0), offer(d, q, 0); }
static void into_devices(struct device *d, u32 q) { put(q, 0, FIRST, 4096, WRITE, 0), offer(d, q, 0); }
static void over_the_end(struct device *d, u32 q) { put(q, 0, ram_end - 32, 64, WRITE, 0), offer(d, q, 0); }
static void wraps(struct device *d, u32 q) { put(q, 0, ~0ul - 15, 64, WRITE, 0), offer(d, q, 0); }
static void wraps_to_zero(struct device *d, u32 q) { put(q, 0, ~0ul - 63, 64, WRITE, 0), offer(d, q, 0); }
static void all_ones(struct device *d, u32 q) { put(q, 0, ~0ul, ~0u, WRITE, 0), offer(d, q, 0); }
static void read_after_write(struct device *d, u32 q) {
    put(q, 0, address(pages[0]), 64, NEXT | WRITE, 1);
    put(q, 1, address(pages[1]), 64, 0, 0);
    offer(d, q, 0);
}
static void index_jump(struct device *d, u32 q) { rings[q].avail.idx = d->size[q] + 1; }
static void index_back(struct device *d, u32 q) { rings[q].avail.idx = 0xffff; }

static volatile struct desc *table(void) { return (volatile struct desc *)pages[8]; }
static void entry(u32 i, u64 addr, u32 len, u16 flags, u16 next) {
    table()[i].addr = addr;
    table()[i].len = len;
    table()[i].flags = flags;
    table()[i].next = next;
}
static void indirect(struct device *d, u32 q, u64 addr, u32 len, u16 flags) { put(q, 0, addr, len, INDIRECT | flags, 1), offer(d, q, 0); }
static void indirect_empty(struct device *d, u32 q) { indirect(d, q, address(pages[8]), 0, 0); }
static void indirect_odd(struct device *d, u32 q) { indirect(d, q, address(pages[8]), 24, 0); }
static void indirect_huge(struct device *d, u32 q) { indirect(d, q, address(pages[8]), 0xfffffff0, 0); }
static void indirect_outside(struct device *d, u32 q) { indirect(d, q, 1ul << 40, 64, 0); }
static void indirect_wraps(struct device *d, u32 q) { indirect(d, q, ~0ul - 7, 32, 0); }
static void indirect_next(struct device *d, u32 q) {
    entry(0, address(pages[0]), 64, 0, 0);
    indirect(d, q, address(pages[8]), 16, NEXT);
}
static void indirect_nested(struct device *d, u32 q) {
    entry(0, address(pages[8]), 16, INDIRECT, 0);
    indirect(d, q, address(pages[8]), 16, 0);
}
static void indirect_loop(struct device *d, u32 q) {
    entry(0, address(pages[0]), 64, NEXT, 1);
    entry(1, address(pages[0]), 64, NEXT, 0);
    indirect(d, q, address(pages[8]), 32, 0);
}
static void indirect_beyond(struct device *d, u32 q) {
    entry(0, address(pages[0]), 64, NEXT, 2);
    indirect(d, q, address(pages[8]), 32, 0);
}
static void four_gigabytes(struct device *d, u32 q) {
    // The same memory again and again, 8 MiB a time.
    for (u32 i = 0; i < 256; i++) entry(i, 0x100000, 0x800000, WRITE | NEXT, i + 1);
    u64 more = address(pages[9]);
    for (u32 i = 0; i < 256; i++) {
        volatile struct desc *e = (volatile struct desc *)more + i;
        e->addr = 0x100000;
        e->len = 0x800000;
        e->flags = i == 255 ? WRITE : WRITE | NEXT;
        e->next = 257 + i;
    }
    indirect(d, q, address(pages[8]), 16 * 512, 0);
}

static const struct attack chains[] = {
    {"a chain to itself", BREAKS, chain_itself},
    {"a loop of two", BREAKS, chain_two},
    {"a loop of all", BREAKS, chain_all},
    {"next beyond the table", BREAKS, next_beyond},
    {"next far beyond", BREAKS, next_far},
    {"head beyond the table", BREAKS, head_beyond},
    {"head far beyond", BREAKS, head_far},
    {"writable outside memory", BREAKS, outside},
    {"readable outside memory", BREAKS, outside_read},
    {"into device registers", BREAKS, into_devices},
    {"over the end of memory", BREAKS, over_the_end},
    {"wrapping", BREAKS, wraps},
    {"wrapping to zero", BREAKS, wraps_to_zero},
    {"all ones", BREAKS, all_ones},
    {"readable after writable", BREAKS, read_after_write},
    {"index jump", BREAKS, index_jump},
    {"index backwards", BREAKS, index_back},
    {"empty indirect table", BREAKS, indirect_empty},
    {"odd indirect table", BREAKS, indirect_odd},
    {"huge indirect table", BREAKS, indirect_huge},
    {"indirect table outside memory", BREAKS, indirect_outside},
    {"wrapping indirect table", BREAKS, indirect_wraps},
    {"indirect with next", BREAKS, indirect_next},
    {"nested indirect", BREAKS, indirect_nested},
    {"loop in indirect table", BREAKS, indirect_loop},
    {"next beyond indirect table", BREAKS, indirect_beyond},
    {"a chain of four gigabytes", BREAKS, four_gigabytes},
};

// Requests whose chain is sound and whose content is not.

static void blk_request(struct device *d, u32 kind, u64 sector, u32 out, u32 in) {
    volatile u32 *header = (volatile u32 *)pages[0];
    header[0] = kind;
    header[1] = 0xffffffff;
    header[2] = (u32)sector;
    header[3] = (u32)(sector >> 32);
    u16 at = 0;
    put(0, at, address(header), 16, NEXT, 1);
    at++;
    if (out) put(0, at, address(pages[2]), out, NEXT, at + 1), at++;
    if (in) put(0, at, address(pages[3]), in, NEXT | WRITE, at + 1), at++;
    put(0, at, address(pages[1]), 1, WRITE, 0);
    offer(d, 0, 0);
}
static void blk_far(struct device *d, u32 q) { blk_request(d, 0, ~0ul, 0, 512); }
static void blk_far_write(struct device *d, u32 q) { blk_request(d, 1, ~0ul / 512, 512, 0); }
static void blk_over_end(struct device *d, u32 q) { blk_request(d, 0, 1ul << 55, 0, 4096); }
static void blk_odd(struct device *d, u32 q) { blk_request(d, 0, 0, 0, 511); }
static void blk_no_data(struct device *d, u32 q) { blk_request(d, 0, 0, 0, 0); }
static void blk_unknown(struct device *d, u32 q) { blk_request(d, 0xdeadbeef, 0, 512, 512); }
static void blk_discard_none(struct device *d, u32 q) { blk_request(d, 11, 0, 0, 0); }
static void blk_discard_odd(struct device *d, u32 q) { blk_request(d, 11, 0, 17, 0); }
static void blk_zero_garbage(struct device *d, u32 q) {
    for (u32 i = 0; i < 64; i++) pages[2][i] = 0xff;
    blk_request(d, 13, 0, 64, 0);
}
static void blk_tiny_id(struct device *d, u32 q) { blk_request(d, 8, 0, 0, 1); }
static void blk_write_only(struct device *d, u32 q) { put(0, 0, address(pages[0]), 600, WRITE, 0), offer(d, 0, 0); }
static void blk_no_status(struct device *d, u32 q) { put(0, 0, address(pages[0]), 600, 0, 0), offer(d, 0, 0); }
static void blk_short(struct device *d, u32 q) {
    put(0, 0, address(pages[0]), 15, NEXT, 1);
    put(0, 1, address(pages[1]), 1, WRITE, 0);
    offer(d, 0, 0);
}
static void blk_same_head(struct device *d, u32 q) {
    blk_request(d, 0, 0, 0, 512);
    for (u32 i = 1; i < QS; i++) offer(d, 0, 0);
}

static const struct attack blk[] = {
    {"a sector at the end of numbers", ANSWERS, blk_far},
    {"a write whose offset overflows", ANSWERS, blk_far_write},
    {"beyond the disk", ANSWERS, blk_over_end},
    {"no whole sector", ANSWERS, blk_odd},
    {"no data", ANSWERS, blk_no_data},
    {"an unknown request", ANSWERS, blk_unknown},
    {"discard without a range", ANSWERS, blk_discard_none},
    {"discard with an odd range", ANSWERS, blk_discard_odd},
    {"write zeroes with garbage", ANSWERS, blk_zero_garbage},
    {"a tiny buffer for the name", ANSWERS, blk_tiny_id},
    {"the same head 64 times", ANSWERS, blk_same_head},
    {"nothing to read", BREAKS, blk_write_only},
    {"nothing to write", BREAKS, blk_no_status},
    {"a short header", BREAKS, blk_short},
};

static void rng_readable(struct device *d, u32 q) { put(0, 0, address(pages[0]), 64, 0, 0), offer(d, 0, 0); }
static void rng_nothing(struct device *d, u32 q) { put(0, 0, address(pages[0]), 0, WRITE, 0), offer(d, 0, 0); }
// Room of 8 MiB, most of which the device must leave alone: it is the top of memory.
static void rng_everything(struct device *d, u32 q) { put(0, 0, ram_end - 0x800000, 0x800000, WRITE, 0), offer(d, 0, 0); }
static void rng_same_head(struct device *d, u32 q) {
    put(0, 0, address(pages[0]), 64, WRITE, 0);
    for (u32 i = 0; i < QS; i++) offer(d, 0, 0);
}

static const struct attack rng[] = {
    {"nothing to write", ANSWERS, rng_readable},
    {"an empty buffer", ANSWERS, rng_nothing},
    {"a huge buffer", ANSWERS, rng_everything},
    {"the same head 64 times", ANSWERS, rng_same_head},
};

static void balloon_readable(struct device *d, u32 q) { put(q, 0, SPARE, 4096, 0, 0), offer(d, q, 0); }
static void balloon_nothing(struct device *d, u32 q) { put(q, 0, SPARE, 0, WRITE, 0), offer(d, q, 0); }
static void balloon_odd(struct device *d, u32 q) { put(q, 0, SPARE + 1, 12287, WRITE, 0), offer(d, q, 0); }
static void balloon_everything(struct device *d, u32 q) { put(q, 0, SPARE, 0x800000, WRITE, 0), offer(d, q, 0); }
static void balloon_twice(struct device *d, u32 q) {
    put(q, 0, SPARE, 0x800000, NEXT | WRITE, 1);
    put(q, 1, SPARE + 4096, 0x100000, WRITE, 0);
    offer(d, q, 0);
}
static void balloon_same_head(struct device *d, u32 q) {
    put(q, 0, SPARE, 0x800000, WRITE, 0);
    for (u32 i = 0; i < d->size[q]; i++) offer(d, q, 0);
}
// Numbers of pages to inflate the balloon with, which nobody has asked for: the page that they stand in, the first, the last there can be.
static void balloon_numbers(struct device *d, u32 q) {
    volatile u32 *numbers = (volatile u32 *)pages[0];
    numbers[0] = address(pages[0]) >> 12, numbers[1] = 0, numbers[2] = ~0u;
    put(q, 0, address(numbers), 12, 0, 0);
    offer(d, q, 0);
}

static const struct attack balloon[] = {
    {"a report of nothing to write", ANSWERS, balloon_readable},
    {"an empty report", ANSWERS, balloon_nothing},
    {"a report of parts of pages", ANSWERS, balloon_odd},
    {"a report of 8 MiB", ANSWERS, balloon_everything},
    {"a report of the same memory twice", ANSWERS, balloon_twice},
    {"the same report in the whole ring", ANSWERS, balloon_same_head},
    {"numbers of pages", ANSWERS, balloon_numbers},
};

static void console_writable(struct device *d, u32 q) { put(1, 0, address(pages[0]), 64, WRITE, 0), offer(d, 1, 0); }
static void console_nothing(struct device *d, u32 q) { put(1, 0, address(pages[0]), 0, 0, 0), offer(d, 1, 0); }
static void console_same_head(struct device *d, u32 q) {
    pages[0][0] = '.';
    put(1, 0, address(pages[0]), 1, 0, 0);
    for (u32 i = 0; i < QS; i++) offer(d, 1, 0);
}

static const struct attack console[] = {
    {"output without bytes to read", ANSWERS, console_writable},
    {"empty output", ANSWERS, console_nothing},
    {"the same head 64 times", ANSWERS, console_same_head},
};

struct packet {
    u64 src_cid, dst_cid;
    u32 src_port, dst_port, len;
    u16 type, op;
    u32 flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

static volatile struct packet *packet(struct device *d, u16 op) {
    volatile struct packet *p = (volatile struct packet *)pages[0];
    for (u32 i = 0; i < 8; i++) ((volatile u64 *)pages[0])[i] = 0;
    p->src_cid = get(d, CONFIG);
    p->dst_cid = 2;
    p->src_port = 77;
    p->dst_port = 9;
    p->type = 1;
    p->op = op;
    p->buf_alloc = 65536;
    return p;
}
static void send(struct device *d, u32 len) {
    for (u16 i = 8; i < 16; i++) put(0, i, address(pages[i]), 4096, WRITE, 0), offer(d, 0, i);
    ring_bell(d, 0);
    put(1, 0, address(pages[0]), len, 0, 0), offer(d, 1, 0);
}
static void vsock_short(struct device *d, u32 q) { packet(d, 1), send(d, 20); }
static void vsock_byte(struct device *d, u32 q) { packet(d, 1), send(d, 1); }
static void vsock_no_bytes(struct device *d, u32 q) { put(1, 0, address(pages[0]), 64, WRITE, 0), offer(d, 1, 0); }
static void vsock_long(struct device *d, u32 q) { packet(d, 5)->len = 0xffffffff, send(d, 44); }
static void vsock_longer(struct device *d, u32 q) { packet(d, 5)->len = 100, send(d, 60); }
static void vsock_too_long(struct device *d, u32 q) { packet(d, 5)->len = 4, send(d, 4096); }
static void vsock_op(struct device *d, u32 q) { packet(d, 0), send(d, 44); }
static void vsock_ops(struct device *d, u32 q) { packet(d, 0xffff), send(d, 44); }
static void vsock_type(struct device *d, u32 q) { packet(d, 1)->type = 77, send(d, 44); }
static void vsock_seqpacket(struct device *d, u32 q) { packet(d, 1)->type = 2, send(d, 44); }
static void vsock_from(struct device *d, u32 q) { packet(d, 1)->src_cid = ~0ul, send(d, 44); }
static void vsock_to(struct device *d, u32 q) { packet(d, 1)->dst_cid = 5, send(d, 44); }
static void vsock_stray(struct device *d, u32 q) { packet(d, 5)->len = 16, send(d, 60); }
static void vsock_response(struct device *d, u32 q) { packet(d, 2), send(d, 44); }
static void vsock_credit(struct device *d, u32 q) {
    volatile struct packet *p = packet(d, 6);
    p->buf_alloc = 0xffffffff;
    p->fwd_cnt = 0xffffffff;
    send(d, 44);
}
static void vsock_shutdown(struct device *d, u32 q) { packet(d, 4)->flags = 0xffffffff, send(d, 44); }
static void vsock_storm(struct device *d, u32 q) {
    packet(d, 1);
    put(1, 0, address(pages[0]), 44, 0, 0);
    for (u32 i = 0; i < QS; i++) offer(d, 1, 0);
}
// The answer to a sound request has to go into a broken chain.
static void vsock_bad_room(struct device *d, u32 q) {
    packet(d, 1);
    chain_itself(d, 0);
    put(1, 0, address(pages[0]), 44, 0, 0), offer(d, 1, 0);
    ring_bell(d, 1);
}
static void vsock_tiny_room(struct device *d, u32 q) {
    packet(d, 1);
    put(0, 0, address(pages[8]), 10, WRITE, 0), offer(d, 0, 0);
    put(1, 0, address(pages[0]), 44, 0, 0), offer(d, 1, 0);
    ring_bell(d, 1);
}

static const struct attack vsock[] = {
    {"a short header", SURVIVES, vsock_short},
    {"one byte", SURVIVES, vsock_byte},
    {"nothing to read", SURVIVES, vsock_no_bytes},
    {"a length of four gigabytes", SURVIVES, vsock_long},
    {"more promised than sent", SURVIVES, vsock_longer},
    {"more sent than promised", SURVIVES, vsock_too_long},
    {"operation 0", SURVIVES, vsock_op},
    {"operation 65535", SURVIVES, vsock_ops},
    {"an unknown type", SURVIVES, vsock_type},
    {"a type that was not negotiated", SURVIVES, vsock_seqpacket},
    {"somebody else's address", SURVIVES, vsock_from},
    {"to another machine", SURVIVES, vsock_to},
    {"data without a stream", SURVIVES, vsock_stray},
    {"a response to nothing", SURVIVES, vsock_response},
    {"credit without a stream", SURVIVES, vsock_credit},
    {"shutdown with all flags", SURVIVES, vsock_shutdown},
    {"the same request 64 times", SURVIVES, vsock_storm},
};

// What the device meets when it answers.
static const struct attack vsock_rooms[] = {
    {"no sound room for the answer", BREAKS, vsock_bad_room},
    {"too little room for the answer", SURVIVES, vsock_tiny_room},
};

// Proper use after a reset: the point of it all.
void must_work(struct device *d, const char *attack, u32 queue) {
    if (!reset(d)) return failed(d, attack, queue, "no reset afterwards");
    if (!start(d)) return failed(d, attack, queue, "no start afterwards");
    if (!use(d)) return failed(d, attack, queue, "no proper use afterwards");
}

// A device pops these queues only when it has something to say, so a broken chain may lie there unseen.
static int lazy(struct device *d, const struct attack *a, u32 queue) {
    if (a->act == vsock_bad_room) return 0;
    return ((d->id == CONSOLE || d->id == NET) && queue == 0) || (d->id == VSOCK && queue != 1);
}

static void attack(struct device *d, const struct attack *a, u32 queue) {
    attacks++;
    if (!reset(d) || !start(d)) return failed(d, a->name, queue, "no start before");
    a->act(d, queue);
    ring_bell(d, queue);
    u32 waits = lazy(d, a, queue) && a->expect == BREAKS;
    enum expect expect = waits ? SURVIVES : a->expect;
    enum outcome outcome = await(d, queue, expect == SURVIVES ? 20 : 200000);
    if ((expect == BREAKS && outcome != BROKEN) || (expect == ANSWERS && outcome != ANSWERED)) {
        failed(d, a->name, queue, "the outcome is wrong");
        print("  wanted ");
        print(expects[expect]);
        print(", got ");
        print(outcomes[outcome]);
        print("\n");
    }
    must_work(d, a->name, queue);
}

// Rings that must be refused when the driver says that it is ready.
static void bad_rings(struct device *d) {
    u64 desc = address(rings[0].desc), avail = address(&rings[0].avail), used = address(&rings[0].used);
    const struct {
        const char *name;
        u32 size;
        u64 desc, avail, used;
    } cases[] = {
        {"size 0", 0, desc, avail, used},
        {"size 3", 3, desc, avail, used},
        {"size 65536", 65536, desc, avail, used},
        {"size 32768", 32768, desc, avail, used},
        {"table not aligned", QS, desc + 8, avail, used},
        {"available ring not aligned", QS, desc, avail + 1, used},
        {"used ring not aligned", QS, desc, avail, used + 2},
        {"table outside memory", QS, 1ul << 40, avail, used},
        {"available ring in device registers", QS, desc, FIRST, used},
        {"used ring outside memory", QS, desc, avail, ~0ul & ~3ul},
        {"table over the end of memory", QS, ram_end - 512, avail, used},
        {"available ring over the end of memory", QS, desc, ram_end - 64, used},
        {"used ring over the end of memory", QS, desc, avail, ram_end - 256},
    };
    for (u32 i = 0; i < sizeof cases / sizeof *cases; i++) {
        attacks++;
        clear_rings(d);
        if (!reset(d) || !negotiate(d)) {
            failed(d, cases[i].name, 0, "no negotiation before");
            continue;
        }
        for (u32 q = 1; q < d->queues; q++)
            describe(d, q, d->size[q], address(rings[q].desc), address(&rings[q].avail), address(&rings[q].used));
        describe(d, 0, cases[i].size, cases[i].desc, cases[i].avail, cases[i].used);
        set(d, STATUS, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
        if (!(get(d, STATUS) & NEEDS_RESET)) failed(d, cases[i].name, 0, "was not refused");
        ring_bell(d, 0);
        must_work(d, cases[i].name, 0);
    }
}

static void touch(volatile u8 *at, u32 width, u64 value, int write) {
    switch (width | (write ? 16 : 0)) {
    case 1: __asm__ volatile("movb (%0), %%al" : : "r"(at) : "rax", "memory"); break;
    case 2: __asm__ volatile("movw (%0), %%ax" : : "r"(at) : "rax", "memory"); break;
    case 4: __asm__ volatile("movl (%0), %%eax" : : "r"(at) : "rax", "memory"); break;
    case 8: __asm__ volatile("movq (%0), %%rax" : : "r"(at) : "rax", "memory"); break;
    case 17: __asm__ volatile("movb %b1, (%0)" : : "r"(at), "r"(value) : "memory"); break;
    case 18: __asm__ volatile("movw %w1, (%0)" : : "r"(at), "r"(value) : "memory"); break;
    case 20: __asm__ volatile("movl %k1, (%0)" : : "r"(at), "r"(value) : "memory"); break;
    case 24: __asm__ volatile("movq %1, (%0)" : : "r"(at), "r"(value) : "memory"); break;
    }
}

// Every offset, every width, read and written, while the device runs; before that every register as it should be accessed.
static void registers(struct device *d) {
    static const u64 values[] = {~0ul, 0x5a5a5a5a5a5a5a5aul};
    for (u32 state = 0; state < 3; state++) {
        attacks++;
        reset(d);
        if (state == 1) negotiate(d);
        if (state == 2) start(d);
        for (u32 at = 0; at < 0x120; at += state == 2 ? 1 : 4) {
            for (u32 width = state == 2 ? 1 : 4; width <= (state == 2 ? 8 : 4); width *= 2) {
                touch(d->base + at, width, 0, 0);
                touch(d->base + at, width, values[(at ^ width) & 1], 1);
            }
        }
        must_work(d, "every register", state);
    }
    attacks++;
    for (u32 status = 0; status < 256; status++) {
        set(d, STATUS, status);
        set(d, STATUS, status ^ 0x5f);
    }
    must_work(d, "every status", 0);
    attacks++;
    start(d);
    for (u32 i = 0; i < 200; i++) set(d, NOTIFY, i * 0x01000193);
    must_work(d, "bells of queues that are not there", 0);
}

// Resets while requests are under way, and does not look whether the reset is done: as Linux does, it disables the queues and takes
// their memory back.
static void hasty(struct device *d) {
    attacks++;
    u32 q = main_queue(d);
    for (u32 round = 0; round < 8; round++) {
        if (!reset(d) || !start(d)) return failed(d, "hasty reset", q, "no start before");
        for (u16 i = 0; i < QS; i++) put(q, i, address(pages[0]), 64, q || d->id != RNG ? 0 : WRITE, 0), offer(d, q, i);
        ring_bell(d, q);
        set(d, STATUS, 0);
        for (u32 i = 0; i < d->queues; i++) {
            set(d, QUEUE_SEL, i);
            set(d, QUEUE_READY, 0);
            if (get(d, QUEUE_READY)) return failed(d, "hasty reset", i, "a queue is still ready");
        }
        if (!start(d)) return failed(d, "hasty reset", q, "no start without a look");
        if (!use(d)) return failed(d, "hasty reset", q, "no proper use");
    }
}

static void all(struct device *d, const struct attack *list, u32 count, u32 queue) {
    for (u32 i = 0; i < count; i++) attack(d, &list[i], queue);
}
#define ALL(d, list, queue) all(d, list, sizeof list / sizeof *list, queue)

static void one(struct device *d) {
    for (d->queues = 0; d->queues < QUEUES; d->queues++) {
        set(d, QUEUE_SEL, d->queues);
        u32 max = get(d, QUEUE_NUM_MAX);
        if (max == 0) break;
        d->size[d->queues] = max < QS ? max : QS;
    }
    attacks++;
    must_work(d, "nothing yet", 0);
    registers(d);
    bad_rings(d);
    for (u32 q = 0; q < d->queues; q++) ALL(d, chains, q);
    switch (d->id) {
    case RNG: ALL(d, rng, 0); break;
    case BLK: ALL(d, blk, 0); break;
    case CONSOLE: ALL(d, console, 1); break;
    case BALLOON:
        for (u32 q = 0; q < d->queues; q++) ALL(d, balloon, q);
        break;
    case VSOCK: ALL(d, vsock, 1), ALL(d, vsock_rooms, 0); break;
    }
    hasty(d);
    tricks(d);
    race(d);
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

static void run(const u8 *zero_page) {
    ram_end = find_ram_end(zero_page);
    u32 devices = 0;
    for (u32 slot = 0; slot < SLOTS; slot++) {
        struct device d = {.base = (volatile u8 *)(FIRST + slot * STRIDE)};
        if (get(&d, MAGIC) != 0x74726976 || get(&d, VERSION) != 2) break;
        d.id = get(&d, DEVICE_ID);
        if (d.id == 0) {
            attacks++;
            for (u32 at = 0; at < 0x140; at += 4) set(&d, at, ~0u), set(&d, at, at);
            if (get(&d, DEVICE_ID) != 0) failed(&d, "an empty slot", 0, "became a device");
            continue;
        }
        devices++;
        u32 before = attacks;
        one(&d);
        print("hostile: ");
        print(name(&d));
        print(" took ");
        number(attacks - before);
        print(" attacks\n");
    }
    print(failures || devices == 0 || ram_end == 0 ? "hostile: FAILED " : "hostile: PASSED ");
    number(devices);
    print(" devices, ");
    number(attacks);
    print(" attacks, ");
    number(failures);
    print(" failures\n");
}

// The entry maps RAM; devices lie above. Adds the 2 MiB page they are in to the tables that the entry made.
static void map_devices(void) {
    static volatile u64 directory[512] __attribute__((aligned(4096)));
    // All processors have the same tables.
    volatile u64 *top;
    __asm__ volatile("mov %%cr3, %0" : "=r"(top));
    volatile u64 *pointers = (volatile u64 *)(top[0] & ~0xffful);
    directory[FIRST >> 21 & 511] = FIRST | 0x83;
    pointers[FIRST >> 30] = address(directory) | 3;
    __asm__ volatile("mov %0, %%cr3" : : "r"(top) : "memory");
}

// Of the processors, which all begin here, each in its turn.
static u8 stacks[4 * 32768] __attribute__((aligned(16), used));
static volatile u32 turn __attribute__((used));

__attribute__((used, noreturn)) static void main(const u8 *zero_page, u32 cpu) {
    map_devices();
    if (cpu == 0) out8(GATE, 1), run(zero_page);
    else racer(cpu);
    // Reset by the keyboard controller.
    for (;;) out8(0x64, 0xfe);
}

__asm__(".globl _start\n_start:\n\tmov $1, %eax\n\tlock xadd %eax, turn(%rip)\n\tmov %rsi, %rdi\n\tmov %eax, %esi\n\tand $3, %esi\n"
        "\tlea stacks+32768(%rip), %rsp\n\tmov %esi, %eax\n\tshl $15, %eax\n\tadd %rax, %rsp\n\txor %ebp, %ebp\n\tcall main\n\tud2\n");
