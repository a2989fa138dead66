// The heaviest uses of devices other than sockets: as much at once as the rings hold, each piece as large as it may be.
#include "load.h"

// Buffers of all requests: what they hold is of no account, so they all are the same.
#define BUFFER 0x100000ul
#define BUFFER_BYTES 0x40000u
// Descriptors of one request's table.
#define PIECES 64

static volatile struct desc tables[QS][PIECES] __attribute__((aligned(4096)));
static volatile u32 headers[QS][4];
static volatile u8 ends[QS];

static void finish(struct device *d, u32 queue, u16 count) {
    ring_bell(d, queue);
    for (u16 i = 0; i < count; i++) {
        while (rings[queue].used.idx == d->seen[queue]) {
        }
        d->seen[queue]++;
    }
}

// Writes although nobody has room: nothing is waited for.
void fill_serial(struct device *none, u32 bytes) {
    wait_for_go();
    for (u32 i = 0; i < bytes; i++) out8(0x3f8, 'x');
}

static void offer_table(struct device *d, u32 queue, u16 slot, u16 pieces) {
    put(queue, slot, address(tables[slot]), pieces * sizeof(struct desc), INDIRECT, 0);
    offer(d, queue, slot);
}

static void piece(u16 slot, u16 i, u64 addr, u32 len, u16 flags) {
    tables[slot][i].addr = addr;
    tables[slot][i].len = len;
    tables[slot][i].flags = flags;
    tables[slot][i].next = i + 1;
}

// Output that nobody reads, a GiB of it at once. It is not waited for.
void fill_console(struct device *d, u32 unused) {
    wait_for_go();
    for (u16 slot = 0; slot < d->size[1]; slot++) {
        for (u16 i = 0; i < PIECES; i++) piece(slot, i, BUFFER, BUFFER_BYTES, i == PIECES - 1 ? 0 : NEXT);
        offer_table(d, 1, slot, PIECES);
    }
    ring_bell(d, 1);
}

void take_random(struct device *d, u32 rounds) {
    wait_for_go();
    while (rounds--) {
        for (u16 slot = 0; slot < d->size[0]; slot++) {
            for (u16 i = 0; i < PIECES; i++) piece(slot, i, address(pages), 4096, i == PIECES - 1 ? WRITE : WRITE | NEXT);
            offer_table(d, 0, slot, PIECES);
        }
        finish(d, 0, d->size[0]);
    }
}

// Writes and reads as large as the device takes them, as many at once as the ring holds.
void move_sectors(struct device *d, u32 rounds) {
    wait_for_go();
    for (u32 kind = WRITE_SECTORS;; kind = READ_SECTORS) {
        for (u32 round = 0; round < rounds; round++) {
            for (u16 slot = 0; slot < d->size[0]; slot++) {
                u16 flags = kind == READ_SECTORS ? WRITE | NEXT : NEXT;
                headers[slot][0] = kind;
                headers[slot][2] = slot * 128;
                piece(slot, 0, address(headers[slot]), 16, NEXT);
                for (u16 i = 1; i < PIECES - 1; i++) piece(slot, i, address(pages), 4096, flags);
                piece(slot, PIECES - 1, address(&ends[slot]), 1, WRITE);
                ends[slot] = 0xff;
                offer_table(d, 0, slot, PIECES);
            }
            finish(d, 0, d->size[0]);
            for (u16 slot = 0; slot < d->size[0]; slot++)
                if (ends[slot] != 0) give_up("a request failed");
        }
        if (kind == READ_SECTORS) return;
    }
}
