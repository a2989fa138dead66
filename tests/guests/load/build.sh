#!/bin/sh
# Builds the guest of the tests of load as a static ELF that a 64-bit entry starts: build.sh OUTPUT
set -eu
here=$(dirname "$0")
exec "${CC:-cc}" -std=gnu11 -O2 -Wall -Wno-unused-parameter -ffreestanding -fno-stack-protector -fno-pic -fno-pie -no-pie \
    -fcf-protection=none -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -mno-red-zone -mgeneral-regs-only \
    -nostdlib -static -Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,max-page-size=4096 -Wl,-Ttext-segment=0x200000 \
    "$here/start.c" "$here/ledger.c" "$here/fill.c" "$here/streams.c" "$here/report.c" "$here/share.c" "$here/requests.c" "$here/../hostile/driver.c" -o "$1"
