// Requests of two disks beside each other: one guest keeps its disk as busy as its ring allows, the other says how long each of its
// own requests takes.
#include "load.h"

// Of one request's table, as in fill.c.
#define PIECES 64
// Places of 4 KiB on the disk that is measured, and the step from one to the next.
#define PLACES 16384
#define STEP 7919

static volatile struct desc tables[QS][PIECES] __attribute__((aligned(4096)));
static volatile u32 headers[QS][4];
static volatile u8 ends[QS];

static u64 ticks(void) {
    u32 low, high;
    __asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
    return (u64)high << 32 | low;
}

static void piece(u16 slot, u16 i, u64 addr, u32 len, u16 flags) {
    tables[slot][i].addr = addr;
    tables[slot][i].len = len;
    tables[slot][i].flags = flags;
    tables[slot][i].next = i + 1;
}

// A ring full of writes of 248 KiB, and a flush among them. Each that is done is asked for again, for as long as the machine lives.
void keep_full(struct device *d, u32 unused) {
    wait_for_go();
    for (u16 slot = 0; slot < d->size[0]; slot++) {
        u32 flush = slot == 0;
        headers[slot][0] = flush ? FLUSH : WRITE_SECTORS;
        headers[slot][2] = slot * 512;
        piece(slot, 0, address(headers[slot]), 16, NEXT);
        for (u16 i = 1; i < PIECES - 1 && !flush; i++) piece(slot, i, address(pages), 4096, NEXT);
        u16 last = flush ? 1 : PIECES - 1;
        piece(slot, last, address(&ends[slot]), 1, WRITE);
        ends[slot] = 0xff;
        put(0, slot, address(tables[slot]), (last + 1) * sizeof(struct desc), INDIRECT, 0);
        offer(d, 0, slot);
    }
    ring_bell(d, 0);
    for (;;) {
        while (rings[0].used.idx == d->seen[0]) {
        }
        u16 slot = rings[0].used.ring[d->seen[0]++ % d->size[0]].id;
        if (ends[slot] != 0) give_up("a request failed");
        ends[slot] = 0xff;
        offer(d, 0, slot);
        ring_bell(d, 0);
    }
}

static u64 ask(struct device *d, u32 kind, u64 sector) {
    headers[0][0] = kind;
    headers[0][1] = 0;
    headers[0][2] = (u32)sector;
    headers[0][3] = (u32)(sector >> 32);
    ends[0] = 0xff;
    u64 began = ticks();
    put(0, 0, address(headers[0]), 16, NEXT, kind == FLUSH ? 2 : 1);
    put(0, 1, address(pages[2]), 4096, NEXT | (kind == READ_SECTORS ? WRITE : 0), 2);
    put(0, 2, address(&ends[0]), 1, WRITE, 0);
    offer(d, 0, 0);
    ring_bell(d, 0);
    while (rings[0].used.idx == d->seen[0]) {
    }
    u64 took = ticks() - began;
    d->seen[0]++;
    if (ends[0] != 0) give_up("a request failed");
    return took;
}

static void say(const char *word, u64 value) {
    print(word);
    number(value);
    print("\n");
}

// So many times a read, a write and a flush, one after the other. Says what the counter showed before and after all of them, and
// between the two what each took.
void measure(struct device *d, u32 times) {
    static u64 took[4096][3];
    if (times > 4096) give_up("too many requests");
    wait_for_go();
    say("began ", ticks());
    for (u32 i = 0; i < times; i++) {
        u64 sector = (u64)i * STEP % PLACES * 8;
        took[i][0] = ask(d, READ_SECTORS, sector);
        took[i][1] = ask(d, WRITE_SECTORS, sector);
        took[i][2] = ask(d, FLUSH, 0);
    }
    say("ended ", ticks());
    for (u32 i = 0; i < times; i++) say("read ", took[i][0]), say("write ", took[i][1]), say("flush ", took[i][2]);
}
