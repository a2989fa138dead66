// Files of a shared directory: as many names as the job says are looked up and opened, none is forgotten or closed, and one is read
// by all requests that the ring holds at once. Frames of a network, as many and as large as the ring takes.
#include "load.h"

enum { LOOKUP = 1, OPEN = 14, READ = 15, ROOT = 1, REQUESTS = 1 };
enum { IN_HEADER = 40, OUT_HEADER = 16, PIECES = 64, READ_BYTES = (PIECES - 2) * 4096 };

struct in {
    u32 len, op;
    u64 unique, node;
    u32 user, group, process, more;
    u64 body[5];
};

static volatile struct in ins[QS];
static volatile u8 outs[QS][256] __attribute__((aligned(256)));
static volatile struct desc tables[QS][PIECES] __attribute__((aligned(4096)));
static u64 unique = 100;

static void ask(u16 slot, u32 op, u64 node, u32 body) {
    ins[slot].len = IN_HEADER + body;
    ins[slot].op = op;
    ins[slot].unique = unique++;
    ins[slot].node = node;
}

// Waits for one answer; its error, 0 for none.
static u32 exchange(struct device *d, u32 room) {
    put(REQUESTS, 0, address(&ins[0]), ins[0].len, NEXT, 1);
    put(REQUESTS, 1, address(outs[0]), room, WRITE, 0);
    offer(d, REQUESTS, 0);
    ring_bell(d, REQUESTS);
    while (rings[REQUESTS].used.idx == d->seen[REQUESTS]) {
    }
    d->seen[REQUESTS]++;
    return ((volatile u32 *)outs[0])[1];
}

// The name of a file: a letter and four digits.
static u64 name(u32 number) {
    u64 text = 'n';
    for (u32 i = 0; i < 4; i++, number /= 10) text |= (u64)('0' + number % 10) << (8 * (4 - i));
    return text;
}

void use_share(struct device *d, u32 names) {
    if (!use(d)) give_up("the share does not begin");
    wait_for_go();
    u64 node = 0, handle = 0;
    u32 opened = 0;
    for (u32 i = 0; i < names; i++) {
        ask(0, LOOKUP, ROOT, 6);
        ins[0].body[0] = name(i);
        if (exchange(d, OUT_HEADER + 128)) give_up("a name is not found");
        node = *(volatile u64 *)(outs[0] + OUT_HEADER);
        ask(0, OPEN, node, 8);
        ins[0].body[0] = 0;
        // There is a bound of files that are open.
        if (exchange(d, OUT_HEADER + 16)) continue;
        handle = *(volatile u64 *)(outs[0] + OUT_HEADER);
        opened++;
        for (u16 slot = 0; slot < d->size[REQUESTS] && i == 0; slot++) {
            ask(slot, READ, node, 40);
            ins[slot].body[0] = handle;
            ins[slot].body[1] = 0;
            ins[slot].body[2] = READ_BYTES;
            ins[slot].body[3] = ins[slot].body[4] = 0;
            for (u16 piece = 0; piece < PIECES; piece++) {
                u32 last = piece == PIECES - 1;
                tables[slot][piece].addr = piece == 0 ? address(&ins[slot]) : piece == 1 ? address(outs[slot]) : address(pages);
                tables[slot][piece].len = piece == 0 ? IN_HEADER + 40 : piece == 1 ? OUT_HEADER : 4096;
                tables[slot][piece].flags = (piece ? WRITE : 0) | (last ? 0 : NEXT);
                tables[slot][piece].next = piece + 1;
            }
            put(REQUESTS, slot, address(tables[slot]), sizeof tables[slot], INDIRECT, 0);
            offer(d, REQUESTS, slot);
        }
        if (i) continue;
        ring_bell(d, REQUESTS);
        for (u16 slot = 0; slot < d->size[REQUESTS]; slot++) {
            while (rings[REQUESTS].used.idx == d->seen[REQUESTS]) {
            }
            d->seen[REQUESTS]++;
        }
        for (u16 slot = 0; slot < d->size[REQUESTS]; slot++)
            if (((volatile u32 *)outs[slot])[0] != OUT_HEADER + READ_BYTES) give_up("a read is short");
    }
    print("opened ");
    number(opened);
    print("\n");
}

// Frames that nobody takes, with the header of a network device, and buffers for frames that come. It is not waited for.
void send_frames(struct device *d, u32 bytes) {
    static volatile u8 frame[65536] __attribute__((aligned(4096)));
    static volatile u8 room[QS][65536] __attribute__((aligned(4096)));
    wait_for_go();
    for (u32 i = 12; i < bytes + 12; i++) frame[i] = i;
    for (u16 slot = 0; slot < d->size[0]; slot++) {
        put(0, slot, address(room[slot]), sizeof room[slot], WRITE, 0);
        offer(d, 0, slot);
    }
    ring_bell(d, 0);
    for (u16 slot = 0; slot < d->size[1]; slot++) {
        put(1, slot, address(frame), bytes + 12, 0, 0);
        offer(d, 1, slot);
    }
    ring_bell(d, 1);
    // Each that comes back is sent again, for as long as any does.
    for (;;) {
        while (rings[1].used.idx == d->seen[1]) {
        }
        u16 slot = rings[1].used.ring[d->seen[1]++ % d->size[1]].id;
        offer(d, 1, slot);
        ring_bell(d, 1);
    }
}
