// Writes entries to a disk one after the other and flushes each. What is flushed is said on COM1: who kills the machine at any
// moment may hold the disk against it. `tests/tests/killed` reads both.
//
// An entry is a sector at the beginning of one of PLACES clusters of 64 KiB, in an order in which neighbours are far from each other,
// so that an image that grows has to allocate for each. It has the number of this life and its own, and the two again in every pair
// of words, so that half an entry is none.
#include "load.h"

#define PLACES 1024
#define STEP 7919
#define CLUSTER_SECTORS 128

// The sector after the first entry counts the lives.
#define LIFE_SECTOR 1

static void ask(struct device *d, u32 kind, u64 sector) {
    volatile u32 *header = (volatile u32 *)pages[0];
    header[0] = kind;
    header[1] = 0;
    header[2] = (u32)sector;
    header[3] = (u32)(sector >> 32);
    pages[1][0] = 0xff;
    put(0, 0, address(header), 16, NEXT, kind == FLUSH ? 2 : 1);
    put(0, 1, address(pages[2]), 512, NEXT | (kind == READ_SECTORS ? WRITE : 0), 2);
    put(0, 2, address(pages[1]), 1, WRITE, 0);
    offer(d, 0, 0);
    ring_bell(d, 0);
    while (rings[0].used.idx == d->seen[0]) {
    }
    d->seen[0]++;
    if (pages[1][0] != 0) give_up("the disk failed");
}

void ledger(struct device *d, u32 unused) {
    volatile u64 *words = (volatile u64 *)pages[2];
    ask(d, READ_SECTORS, LIFE_SECTOR);
    u64 life = words[0] + 1;
    words[0] = life;
    ask(d, WRITE_SECTORS, LIFE_SECTOR);
    ask(d, FLUSH, 0);
    print("life ");
    number(life);
    print("\n");
    for (u64 n = 1;; n++) {
        for (u32 i = 0; i < 64; i += 2) words[i] = life, words[i + 1] = n;
        ask(d, WRITE_SECTORS, n * STEP % PLACES * CLUSTER_SECTORS);
        ask(d, FLUSH, 0);
        number(n);
        print("\n");
    }
}
