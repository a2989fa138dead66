"""Runs a program under ptrace and makes one of its system calls fail, once.

The call that is to fail is replaced by getpid, which every list of system calls of ours allows, and its answer by the error: so the
program is the one that is shipped, with its filters, and these need no hole for the -1 that other tools put in the place of the
number. A call of `close` is made all the same, for the system closes a descriptor whatever it answers. A short read or write is a
real one: the call is made with fewer bytes.
"""
import ctypes
import os
import signal
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long

TRACEME, POKEUSER, SYSCALL, SETOPTIONS, GETEVENTMSG, GET_SYSCALL_INFO = 0, 6, 24, 0x4200, 0x4201, 0x420E
# SYSGOOD, FORK, VFORK, CLONE, EXEC, EXITKILL
OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x100000
EXEC = 4
WALL = 0x40000000
# Places in `struct user`: the answer, the third argument, the first, the number.
RAX, RDX, RDI, ORIG_RAX = 10 * 8, 12 * 8, 14 * 8, 15 * 8
GETPID = 39


class Info(ctypes.Structure):
    """struct ptrace_syscall_info at the entry of a call."""
    _fields_ = [("op", ctypes.c_uint8), ("pad", ctypes.c_uint8 * 3), ("arch", ctypes.c_uint32), ("ip", ctypes.c_uint64),
                ("sp", ctypes.c_uint64), ("number", ctypes.c_uint64), ("arguments", ctypes.c_uint64 * 6), ("rest", ctypes.c_uint64 * 2)]


def ptrace(request, pid, address=0, data=0):
    """The system call; a tracee that was killed meanwhile is no error."""
    if libc.ptrace(request, pid, address, data) < 0 and ctypes.get_errno() != 3:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")


class Call:
    """A system call as it is made: which program, thread and call, and how many of the same there were before."""

    def __init__(self, program, thread, name, nth, descriptor):
        self.key = (program, thread, name, nth)
        self.descriptor = descriptor


class Run:
    """What a run came to."""

    def __init__(self):
        self.status, self.failed_at, self.ended_at, self.hung, self.left = None, None, None, False, []
        self.calls = []


class Tracer:
    """One run. `name_of(number, arguments)` names a call; `fault` is (key, how), where `how` is an errno, or "short"."""

    def __init__(self, name_of, fault, limit, after):
        self.name_of, self.fault, self.limit, self.after = name_of, fault, limit, after
        self.inside, self.pending, self.counts, self.threads, self.programs = {}, {}, {}, {}, {}
        # Programs, and threads of the standard library, whose own code has begun.
        self.begun, self.executed = set(), set()
        self.run = Run()
        self.info = Info()

    def program_of(self, pid):
        """The name of the program that a thread belongs to, and the thread's own."""
        if pid not in self.threads:
            try:
                with open(f"/proc/{pid}/status") as status:
                    lines = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
            except (OSError, ValueError):
                return "gone", "gone"
            group = int(lines["Tgid"])
            if group not in self.programs:
                try:
                    with open(f"/proc/{group}/comm") as comm:
                        self.programs[group] = comm.read().strip()
                except OSError:
                    self.programs[group] = "gone"
            self.threads[pid] = (self.programs[group], lines["Name"] if pid != group else "main")
        return self.threads[pid]

    def entry(self, pid):
        size = ctypes.sizeof(self.info)
        if libc.ptrace(GET_SYSCALL_INFO, pid, size, ctypes.addressof(self.info)) < 0:
            return
        number, arguments = self.info.number, self.info.arguments
        if number == 157 and arguments[0] == 15:
            # Its thread gets another name.
            self.pending[pid] = "renamed"
        program, thread = self.program_of(pid)
        name = self.name_of(number, arguments)
        count = (program, thread, name)
        if not self.has_begun(pid, program, name, arguments):
            return
        nth = self.counts.get(count, 0) + 1
        self.counts[count] = nth
        key = (program, thread, name, nth)
        if self.fault is None:
            self.run.calls.append((key, self.kind(pid, name, arguments), tuple(arguments)))
        elif key == self.fault[0] and self.run.failed_at is None and self.kind(pid, name, arguments)[0] == self.fault[2]:
            # Of another kind of file this time, the call could not meet this error: it was chosen for that kind.
            how = self.fault[1]
            self.run.failed_at = time.monotonic()
            self.run.name = name
            self.run.fault_kind, _ = self.kind(pid, name, arguments)
            signal.setitimer(signal.ITIMER_REAL, self.after)
            if how == "short":
                self.change(pid, RDX, max(1, arguments[2] // 2), arguments[2])
                return
            if name == "brk":
                # Its answer is where the heap ends, and no error.
                self.change(pid, RDI, 0, arguments[0])
                return
            if name != "close":
                ptrace(POKEUSER, pid, ORIG_RAX, GETPID)
            self.pending[pid] = -how

    def has_begun(self, pid, program, name, arguments):
        """Whether a thread does what the program says, by now. A C library asks for memory before, and ends a process that gets
        none; the monitor has no other beginning, and sets first what becomes of a signal. Elsewhere the standard library gives each
        thread a stack for signals, and gives up without one.
        """
        if pid in self.begun:
            return True
        if not program.startswith("nelly"):
            return False
        process = pid in self.programs
        if process and pid not in self.executed:
            # A copy of one that has begun, before it becomes another program.
            begins = True
        elif program == "nelly-monitor":
            begins = name == "rt_sigaction" or not process
        else:
            begins = name == "sigaltstack" and arguments[0] != 0
            if begins:
                self.begun.add(pid)
                return False
        if begins:
            self.begun.add(pid)
        return begins

    DESCRIPTORS = {"read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "recvfrom",
                   "recvmsg", "sendto", "sendmsg", "close", "accept4"}

    def kind(self, pid, name, arguments):
        """What kind of file a call reads or writes."""
        if name not in self.DESCRIPTORS:
            return None, False
        try:
            link = os.readlink(f"/proc/{pid}/fd/{arguments[0] & 0xffffffff}")
        except OSError:
            return "unknown", False
        try:
            with open(f"/proc/{pid}/fdinfo/{arguments[0] & 0xffffffff}") as info:
                flags = int(next(line for line in info if line.startswith("flags:")).split()[1], 8)
        except (OSError, StopIteration):
            flags = 0
        return self.file_kind(link), bool(flags & os.O_NONBLOCK)

    def file_kind(self, link):
        """The kind of file by what the system calls it."""
        if link.startswith("/"):
            return "memory" if link.startswith("/memfd:") else "file" if not link.startswith("/dev/") else "device"
        return link.split(":")[1].strip("[]") if link.startswith("anon_inode") else link.split(":")[0]

    def change(self, pid, register, value, before):
        """Makes a call with another argument. Its caller counts on it that the register is as it was."""
        ptrace(POKEUSER, pid, register, value)
        self.pending[pid] = (register, before)

    def exit(self, pid):
        answer = self.pending.pop(pid, None)
        if answer == "renamed":
            self.threads.pop(pid, None)
        elif isinstance(answer, tuple):
            ptrace(POKEUSER, pid, *answer)
        elif answer is not None:
            ptrace(POKEUSER, pid, RAX, answer & 0xFFFFFFFFFFFFFFFF)

    def go(self, start):
        """`start()` is called in the child: it sets the child up and gives the words and environment to execute."""
        first = os.fork()
        if first == 0:
            try:
                libc.ptrace(TRACEME, 0, 0, 0)
                words, environment = start()
                os.kill(os.getpid(), signal.SIGSTOP)
                os.execve(words[0], words, environment)
            finally:
                os._exit(99)
        os.waitpid(first, WALL)
        ptrace(SETOPTIONS, first, 0, OPTIONS)
        known = {first}
        ptrace(SYSCALL, first)

        class Over(Exception):
            pass

        def over(*_):
            raise Over
        signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, self.limit)
        try:
            while True:
                try:
                    pid, status = os.waitpid(-1, WALL)
                except ChildProcessError:
                    break
                if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                    known.discard(pid)
                    self.inside.pop(pid, None)
                    if pid == first:
                        self.run.status = os.waitstatus_to_exitcode(status)
                        self.run.ended_at = time.monotonic()
                        # What it started ends soon.
                        signal.setitimer(signal.ITIMER_REAL, self.after)
                    continue
                sig, event, forward = os.WSTOPSIG(status), status >> 16, 0
                if sig == signal.SIGTRAP | 0x80:
                    if self.inside.get(pid):
                        self.inside[pid] = False
                        self.exit(pid)
                    else:
                        self.inside[pid] = True
                        self.entry(pid)
                elif event == EXEC:
                    self.begun.discard(pid)
                    self.executed.add(pid)
                    self.threads.pop(pid, None)
                    self.programs.pop(pid, None)
                elif event:
                    pass
                elif pid not in known and sig == signal.SIGSTOP:
                    known.add(pid)
                else:
                    forward = sig
                known.add(pid)
                ptrace(SYSCALL, pid, 0, forward)
        except Over:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.run.hung = self.run.status is None
            self.run.left = [self.program_of(pid) for pid in known]
            self.end(known)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.run.ended_at is None:
            self.run.ended_at = time.monotonic()
        return self.run

    def end(self, known):
        """Kills what is still there, all of which was started here."""
        for pid in known:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        while True:
            try:
                os.waitpid(-1, WALL)
            except ChildProcessError:
                return
