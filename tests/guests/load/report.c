// Reports of free memory, and requests of the memory device: much at once, again and again.
#include "load.h"

#define MIB 0x100000ul
#define REPORTS 2
// Everything of the guest's own lies below.
#define FREE (16 * MIB)

static void finish(struct device *d, u32 queue, u16 count) {
    ring_bell(d, queue);
    for (u16 i = 0; i < count; i++) {
        while (rings[queue].used.idx == d->seen[queue]) {
        }
        d->seen[queue]++;
    }
}

// All memory from FREE on, in as many chains as the ring holds.
static void report_all(struct device *d) {
    u64 piece = (ram_end - FREE) / d->size[REPORTS] & ~0xffful;
    for (u16 slot = 0; slot < d->size[REPORTS]; slot++) {
        put(REPORTS, slot, FREE + slot * piece, (u32)piece, WRITE, 0);
        offer(d, REPORTS, slot);
    }
    finish(d, REPORTS, d->size[REPORTS]);
}

// Gives all back, says so, waits for a byte, uses all of it again, says so, and gives all back once more.
void give_back(struct device *d, u32 unused) {
    wait_for_go();
    report_all(d);
    for (u64 at = FREE; at < ram_end; at += 4096)
        if (*(volatile u64 *)at) give_up("a page that was reported is not empty");
    // To look at it made none: the host has one page of zeros for all.
    report_all(d);
    print("given\n");
    wait_for_byte();
    for (u64 at = FREE; at < ram_end; at += 4096) *(volatile u64 *)at = at;
    print("used\n");
    wait_for_byte();
    for (u64 at = FREE; at < ram_end; at += 4096)
        if (*(volatile u64 *)at != at) give_up("memory does not keep what is written to it");
    report_all(d);
}

// The same memory, so many times.
void report(struct device *d, u32 rounds) {
    wait_for_go();
    while (rounds--) report_all(d);
}

// Plugs blocks in and out: each a request, and the state between them.
void plug(struct device *d, u32 rounds) {
    static volatile struct {
        u64 kind, block, count;
    } requests[QS];
    static volatile u16 answers[QS][8];
    wait_for_go();
    u64 region = (u64)get(d, CONFIG + 16) | (u64)get(d, CONFIG + 20) << 32;
    for (u32 round = 0; round < rounds; round++) {
        u16 count = d->size[0] / 2;
        for (u16 i = 0; i < count; i++) {
            // Of one half of them each, in turn.
            requests[i].kind = round & 1;
            requests[i].block = region + i * 2 * MIB;
            requests[i].count = 1;
            answers[i][0] = 0xffff;
            put(0, 2 * i, address(&requests[i]), 24, NEXT, 2 * i + 1);
            put(0, 2 * i + 1, address(answers[i]), 10, WRITE, 0);
            offer(d, 0, 2 * i);
        }
        finish(d, 0, count);
        for (u16 i = 0; i < count; i++)
            if (answers[i][0] != 0) give_up("a request of memory was refused");
    }
}
