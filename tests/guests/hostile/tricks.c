// What a guest does while a device works: rings rewritten under the worker, buffers that lie on the rings, registers in any order,
// storms of notifications, resets with requests in flight, and several processors at one device. Whatever a device makes of it, after a
// reset it has to work.
//
// The dice are the same ones in each run.
#include "virtio.h"

// Rounds of each trick, with other dice.
#define ROUNDS 2
// Writes in a round. Each is an instruction or an exit, a microsecond or some.
#define WRITES 200

static u32 roll(u32 *dice) {
    *dice = *dice * 1664525 + 1013904223;
    return *dice >> 8;
}
static u32 dice;
static u32 any(void) { return roll(&dice); }

// As many proper requests as fit.
static void busy(struct device *d, u32 q) {
    for (u32 at = 0; at + 4 <= d->size[q]; at += 4) request(d, q, at), offer(d, q, at);
    ring_bell(d, q);
}

// What is attacked takes whole pages away: none of the driver's own may be named to it.
static int takes_pages;

static u64 place(void) {
    u32 where = any() & 7;
    if (takes_pages && (where == 0 || where > 4)) return SPARE + (any() & 0x7fffff);
    switch (where) {
    case 0: return address(pages[any() & 15]) + (any() & 0xfff);
    case 1: return ram_end - (any() & 0x1fff);
    case 2: return ~0ul - (any() & 0xffff);
    case 3: return 0xd0000000ul + (any() & 0xffff);
    case 4: return 1ul << (any() & 63);
    case 5: return address(rings[any() & 3].desc) + (any() & 0xfff);
    case 6: return address(&rings[any() & 3].used) + (any() & 0xff);
    }
    return address(&rings[any() & 3].avail) + (any() & 0xff);
}

static void rewrite(volatile struct desc *e, u32 entries) {
    switch (any() & 3) {
    case 0: e->addr = place(); break;
    case 1: e->len = any() & 1 ? any() & 0xfff : 1u << (any() & 31); break;
    case 2: e->flags = any() & 7; break;
    case 3: e->next = any() % (entries + 2); break;
    }
}

static void descriptors(struct device *d, u32 q) {
    busy(d, q);
    for (u32 i = 0; i < WRITES; i++) {
        rewrite(&rings[q].desc[any() % d->size[q]], d->size[q]);
        if (i % 32 == 0) ring_bell(d, q);
    }
}

static void available(struct device *d, u32 q) {
    busy(d, q);
    for (u32 i = 0; i < WRITES; i++) {
        rings[q].avail.ring[any() % d->size[q]] = any() & 1 ? any() % d->size[q] : any();
        if (i % 16 == 0) rings[q].avail.idx += any() % 5, ring_bell(d, q);
        if (i % 64 == 63) rings[q].avail.idx = any();
        rings[q].avail.flags = any() & 1;
    }
}

static void used(struct device *d, u32 q) {
    busy(d, q);
    for (u32 i = 0; i < WRITES; i++) {
        u32 at = any() % d->size[q];
        rings[q].used.ring[at].id = any();
        rings[q].used.ring[at].len = any();
        rings[q].used.idx = any();
        rings[q].used.flags = any();
        if (i % 16 == 0) offer(d, q, any() % d->size[q]), ring_bell(d, q);
    }
}

// Tables of requests that were sound when they were offered.
static void tables(struct device *d, u32 q) {
    volatile struct desc *table = (volatile struct desc *)pages[8];
    u32 count = request(d, q, 0);
    for (u32 i = 0; i < count; i++) {
        table[i].addr = rings[q].desc[i].addr;
        table[i].len = rings[q].desc[i].len;
        table[i].flags = rings[q].desc[i].flags;
        table[i].next = i + 1;
    }
    table[count].addr = SPARE;
    for (u16 at = 0; at < d->size[q]; at++) put(q, at, address(table), 16 * count, INDIRECT, 0), offer(d, q, at);
    ring_bell(d, q);
    for (u32 i = 0; i < WRITES; i++) {
        rewrite(&table[any() % (count + 1)], count);
        if (i % 32 == 0) put(q, any() % d->size[q], address(table), 16 * (any() & 7), INDIRECT | (any() & 3), any() & 3);
    }
}

// The device reads its rings as data, and writes data over them.
static void on_rings(struct device *d, u32 q) {
    const u64 places[] = {address(&rings[q].used), address(&rings[q].avail), address(rings[q].desc), address(&rings[q].used) + 2};
    u32 head = 0;
    for (u32 i = 0; i < 4 && head + 4 <= d->size[q]; i++, head += 4) {
        u32 count = request(d, q, head);
        // The last buffer, or that of the data, is on the ring.
        u32 on = head + (count == 3 ? 1 : count - 1);
        put(q, on, places[(i + any()) & 3], 4096, rings[q].desc[on].flags, rings[q].desc[on].next);
        offer(d, q, head);
    }
    ring_bell(d, q);
    await(d, q, 20);
    offer(d, q, 0);
    ring_bell(d, q);
}

static void storm(struct device *d, u32 q) {
    busy(d, q);
    for (u32 i = 0; i < 3 * WRITES; i++) set(d, NOTIFY, i & 7 ? q : i % (d->queues + 1));
}

static void in_flight(struct device *d, u32 q) {
    for (u32 i = 0; i < 6; i++) {
        busy(d, q);
        set(d, STATUS, 0);
        // The memory is the driver's again, and it uses it.
        for (u32 n = 0; n < 16; n++) rewrite(&rings[q].desc[any() % d->size[q]], d->size[q]);
        if (any() & 1) start(d);
        else negotiate(d);
    }
}

// Every register, as a driver could write it, in no order.
static void no_order(struct device *d, u32 q) {
    static const u16 registers[] = {FEATURES_SEL, ACCEPT, ACCEPT_SEL, QUEUE_SEL, QUEUE_NUM, QUEUE_READY, NOTIFY, IRQ_ACK, STATUS,
                                    DESC, DESC + 4, AVAIL, AVAIL + 4, USED, USED + 4, 0x0ac, 0x0b0, CONFIG, CONFIG + 8};
    static const u8 states[] = {0, ACK, ACK | DRIVER, ACK | DRIVER | FEATURES_OK, ACK | DRIVER | FEATURES_OK | DRIVER_OK, DRIVER_OK, 128, 0x40};
    busy(d, q);
    for (u32 i = 0; i < WRITES; i++) {
        u32 at = registers[any() % (sizeof registers / sizeof *registers)], value = any();
        switch (at) {
        case STATUS: value = states[value & 7]; break;
        case QUEUE_SEL: value %= d->queues + 1; break;
        case QUEUE_NUM: value = value & 1 ? d->size[0] : value & 0x7f; break;
        case QUEUE_READY: value &= 1; break;
        case FEATURES_SEL:
        case ACCEPT_SEL: value &= 3; break;
        case DESC:
        case AVAIL:
        case USED: value = place(); break;
        case DESC + 4:
        case AVAIL + 4:
        case USED + 4: value &= value & 0x700 ? 0 : ~0u; break;
        }
        set(d, at, value);
    }
}

static const struct {
    const char *name;
    void (*act)(struct device *d, u32 q);
} all[] = {
    {"descriptors rewritten", descriptors},
    {"the available ring rewritten", available},
    {"the used ring rewritten", used},
    {"indirect tables rewritten", tables},
    {"buffers on the rings", on_rings},
    {"a storm of notifications", storm},
    {"resets in flight", in_flight},
    {"registers in no order", no_order},
};

// The same fault again and again, which the host tells once and counts.
static void flood(struct device *d, u32 q) {
    attacked();
    for (u32 i = 0; i < 60; i++) {
        if (!reset(d) || !start(d)) return failed(d, "a flood of faults", q, "no start before");
        offer(d, q, d->size[q]);
        ring_bell(d, q);
        if (await(d, q, 200000) != BROKEN) return failed(d, "a flood of faults", q, "no fault");
    }
    must_work(d, "a flood of faults", q);
}

void tricks(struct device *d) {
    u32 q = main_queue(d);
    // Of one device, for the others do no more.
    if (d->id == RNG) flood(d, q);
    for (u32 i = 0; i < sizeof all / sizeof *all; i++) {
        for (u32 round = 0; round < ROUNDS; round++) {
            attacked();
            dice = (d->id << 16) + (i << 8) + round;
            takes_pages = d->id == BALLOON;
            if (!reset(d) || !start(d)) return failed(d, all[i].name, q, "no start before");
            all[i].act(d, q);
            must_work(d, all[i].name, q);
        }
    }
}

// Processors at one device.
static volatile struct device *raced;
static volatile u32 at_work, over;

// Whatever a processor can do to the device that is raced for, until it is over.
void racer(u32 cpu) {
    u32 mine = cpu;
    for (;;) {
        in8(GATE);
        struct device *d = (struct device *)raced;
        u32 q = main_queue(d);
        while (!over) {
            u32 value = roll(&mine);
            switch (roll(&mine) & 15) {
            case 0: set(d, STATUS, value & 7 ? ACK | DRIVER | FEATURES_OK | DRIVER_OK : 0); break;
            case 1: set(d, QUEUE_SEL, value % (d->queues + 1)); break;
            case 2: set(d, QUEUE_READY, value & 1); break;
            case 3: set(d, IRQ_ACK, 3); break;
            case 4: set(d, DESC, value); break;
            case 5: set(d, QUEUE_NUM, value & 0x7f); break;
            case 6:
                if (d->id != BALLOON) rings[q].desc[value % d->size[q]].len = value;
                break;
            case 7: rings[q].desc[value % d->size[q]].flags = value & 7; break;
            case 8: rings[q].avail.idx += value & 3; break;
            case 9: rings[q].avail.ring[value % d->size[q]] = value; break;
            case 10: get(d, CONFIG + (value & 0x1c)); break;
            case 11: get(d, IRQ_STATUS); break;
            default: ring_bell(d, value & 1 ? q : value % d->queues);
            }
        }
        __atomic_fetch_sub(&at_work, 1, __ATOMIC_SEQ_CST);
    }
}

void race(struct device *d) {
    u32 others = in8(GATE + 1);
    if (others == 0 || others > 3) return;
    attacked();
    raced = d;
    over = 0;
    at_work = others;
    out8(GATE, 1);
    u32 q = main_queue(d);
    for (u32 round = 0; round < 20; round++) {
        // Others reset it, too, so that nothing of this need come to anything.
        set(d, STATUS, 0);
        start(d);
        busy(d, q);
        await(d, q, 10);
    }
    over = 1;
    // A read of a port, so that the host sees a machine that hangs here.
    while (at_work) in8(0x3fd);
    must_work(d, "several processors", q);
}
