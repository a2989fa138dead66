// Dials many streams and sends on each for as long as it has credit, to a host that reads nothing: the most that a monitor keeps for
// them. How many streams follows the job's word: `streams 96`.
#include "load.h"

enum { REQUEST = 1, RESPONSE = 2, RST = 3, RW = 5, CREDIT_UPDATE = 6, CREDIT_REQUEST = 7 };
enum { RX = 0, TX = 1, MOST = 1024, PORT = 5, FIRST_PORT = 2000, PAYLOAD = 32768 };

struct header {
    u64 src_cid, dst_cid;
    u32 src_port, dst_port, len;
    u16 type, op;
    u32 flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

static struct stream {
    u32 open, sent, alloc, forwarded;
} streams[MOST];

static u8 payload[PAYLOAD];

// Gives the device a buffer for a packet. They hold no payload: nobody sends any.
static void give(struct device *d, u16 i) {
    put(RX, i, address(pages[i]), 4096, WRITE, 0);
    offer(d, RX, i);
}

// Takes note of what the host has said.
static void hear(struct device *d) {
    while (rings[RX].used.idx != d->seen[RX]) {
        u16 i = rings[RX].used.ring[d->seen[RX]++ % d->size[RX]].id;
        volatile struct header *h = (volatile struct header *)pages[i];
        u32 index = h->dst_port - FIRST_PORT;
        if (h->op == RST) give_up("a stream was reset");
        if (index < MOST) {
            streams[index].open = 1;
            streams[index].alloc = h->buf_alloc;
            streams[index].forwarded = h->fwd_cnt;
        }
        give(d, i);
        ring_bell(d, RX);
    }
}

static void say(struct device *d, u32 index, u16 op, u32 len) {
    static volatile struct header h;
    h.src_cid = 3, h.dst_cid = 2;
    h.src_port = FIRST_PORT + index, h.dst_port = PORT;
    h.len = len, h.type = 1, h.op = op, h.flags = 0, h.buf_alloc = 4096, h.fwd_cnt = 0;
    put(TX, 0, address(&h), sizeof h, len ? NEXT : 0, 1);
    put(TX, 1, address(payload), len, 0, 0);
    offer(d, TX, 0);
    ring_bell(d, TX);
    while (rings[TX].used.idx == d->seen[TX]) hear(d);
    d->seen[TX]++;
}

void fill_streams(struct device *d, u32 count) {
    if (count > MOST) give_up("more streams than there is room for");
    wait_for_go();
    for (u16 i = 0; i < 16; i++) give(d, i);
    ring_bell(d, RX);
    for (u32 i = 0; i < count; i++) {
        say(d, i, REQUEST, 0);
        while (!streams[i].open) hear(d);
    }
    u32 idle = 0;
    // Credit grows while the kernel's own buffers of a stream have room, and then no more.
    while (idle < 3) {
        u32 sent = 0;
        for (u32 i = 0; i < count; i++) {
            hear(d);
            u32 room = streams[i].alloc - (streams[i].sent - streams[i].forwarded);
            u32 len = room < PAYLOAD ? room : PAYLOAD;
            if (len) say(d, i, RW, len), streams[i].sent += len, sent = 1;
            else say(d, i, CREDIT_REQUEST, 0);
        }
        idle = sent ? 0 : idle + 1;
    }
}
