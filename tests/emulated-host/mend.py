"""One fault of QEMU's emulation of SVM, mended in the memory of a QEMU that runs.

Its VMRUN notes the vector of an injected interrupt as the processor's pending exception (`cs->exception_index`, in
`helper_vmrun`), delivers it, and lets the note stand. If the emulation leaves its loop before the guest exits, it delivers the
interrupt once more, enabled or not: docs/emulated-host.md, "A hang". The delivery does not need the note, so the instruction that
makes it is overwritten by one that does nothing. Programs of other compilers may have no such place. Then nothing is changed.
"""
import mmap
import re

# What the compiler made of the lines before the call, whose fields are CPUX86State's (rbx): bytes, how many, and the call.
PLACE = re.compile(
    rb"\x44\x89\xab..\x00\x00"  # error_code = event_inj_err
    rb"(\x89\xb3..\xff\xff)"  # cs->exception_index = vector
    rb"\xc7\x83..\x00\x00\x00\x00\x00\x00"  # exception_is_int = 0
    rb"\x48\xc7\x83..\x00\x00\xff\xff\xff\xff"  # exception_next_eip = -1
    rb"\xf6\x05.{4}\x02\x0f\x85.{4}"  # unless it logs
    rb"$",
    re.DOTALL,
)
BEFORE = 47
# do_interrupt_x86_hardirq(env, vector, 1)
CALL = b"\xba\x01\x00\x00\x00\x48\x89\xdf\xe8"
NOTHING = b"\x66\x0f\x1f\x44\x00\x00"


def places(program):
    """The offsets in a program's file of the instructions that make the note, and their bytes."""
    with open(program, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found, call = [], data.find(CALL, BEFORE)
        while call >= 0:
            before = PLACE.match(data[call - BEFORE:call])
            if before:
                found.append((call - BEFORE + before.start(1), before.group(1)))
            call = data.find(CALL, call + 1)
        return found


def address(maps, offset):
    """Where an offset of the first file of /proc/PID/maps is mapped for running, if it is."""
    for line in maps:
        span, rights, begins, *_ = line.split()
        first, end = (int(word, 16) for word in span.split("-"))
        begins = int(begins, 16)
        if rights[2] == "x" and begins <= offset < begins + end - first:
            return first + offset - begins
    return None


def mend(pid):
    """Mends a QEMU that has just been started; whether it could."""
    found = places(f"/proc/{pid}/exe")
    if len(found) != 1:
        return False
    offset, bytes_there = found[0]
    with open(f"/proc/{pid}/maps") as lines:
        maps = lines.read().splitlines()
    # Its own file comes first.
    own = maps[0].split()[4]
    at = address([line for line in maps if line.split()[4] == own], offset)
    if at is None:
        return False
    try:
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(at)
            if memory.read(len(bytes_there)) != bytes_there:
                return False
            memory.seek(at)
            return memory.write(NOTHING) == len(NOTHING)
    except OSError:
        return False
