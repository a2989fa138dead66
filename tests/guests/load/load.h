// What the jobs of the guest of load share.
#pragma once
#include "../hostile/virtio.h"

enum { READ_SECTORS = 0, WRITE_SECTORS = 1, FLUSH = 4 };

// Jobs. Each gets the first device of its kind, started, and a number; it returns when it is done, if ever.
void ledger(struct device *d, u32 unused);
void fill_serial(struct device *none, u32 bytes);
void fill_console(struct device *d, u32 unused);
void take_random(struct device *d, u32 rounds);
void move_sectors(struct device *d, u32 rounds);
void fill_streams(struct device *d, u32 count);
void give_back(struct device *d, u32 unused);
void report(struct device *d, u32 rounds);
void plug(struct device *d, u32 rounds);
void use_share(struct device *d, u32 names);
void send_frames(struct device *d, u32 bytes);
void keep_full(struct device *d, u32 unused);
void measure(struct device *d, u32 times);

// Has the guest's memory all in use, says `ready` and waits for a byte on COM1.
void wait_for_go(void);
void wait_for_byte(void);

// Says why the job cannot go on, and resets the machine.
__attribute__((noreturn)) void give_up(const char *why);
