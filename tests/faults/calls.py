"""System calls: their names, and the errors that each is made to fail with.

The errors are those that its manual page names and that a correct program can meet: the state of the host, its limits, its policy,
an older kernel. Left out are those that only a wrong argument gives (EFAULT, EBADF, EINVAL where the arguments are fixed, ...).
EINTR, EAGAIN of a descriptor that never waits, and "short", are in AGAIN: the run must be as if nothing had been.
"""
import errno

NUMBERS = {
    0: "read", 1: "write", 2: "open", 3: "close", 4: "stat", 5: "fstat", 6: "lstat", 7: "poll", 8: "lseek", 9: "mmap", 10: "mprotect",
    11: "munmap", 12: "brk", 13: "rt_sigaction", 14: "rt_sigprocmask", 15: "rt_sigreturn", 16: "ioctl", 17: "pread64", 18: "pwrite64",
    19: "readv", 20: "writev", 21: "access", 22: "pipe", 24: "sched_yield", 25: "mremap", 26: "msync", 27: "mincore", 28: "madvise", 32: "dup",
    33: "dup2", 35: "nanosleep", 39: "getpid", 40: "sendfile", 41: "socket", 42: "connect", 43: "accept", 44: "sendto", 45: "recvfrom",
    46: "sendmsg", 47: "recvmsg", 48: "shutdown", 49: "bind", 50: "listen", 51: "getsockname", 52: "getpeername", 53: "socketpair",
    54: "setsockopt", 55: "getsockopt", 56: "clone", 57: "fork", 58: "vfork", 59: "execve", 60: "exit", 61: "wait4", 62: "kill", 63: "uname",
    72: "fcntl", 73: "flock", 74: "fsync", 75: "fdatasync", 76: "truncate", 77: "ftruncate", 79: "getcwd", 80: "chdir", 81: "fchdir",
    82: "rename", 83: "mkdir", 84: "rmdir", 85: "creat", 86: "link", 87: "unlink", 88: "symlink", 89: "readlink", 90: "chmod", 91: "fchmod",
    92: "chown", 93: "fchown", 95: "umask", 96: "gettimeofday", 97: "getrlimit", 98: "getrusage", 99: "sysinfo", 102: "getuid",
    104: "getgid", 107: "geteuid", 108: "getegid", 109: "setpgid", 110: "getppid", 112: "setsid", 125: "capget", 126: "capset",
    131: "sigaltstack", 137: "statfs", 138: "fstatfs", 157: "prctl", 158: "arch_prctl", 160: "setrlimit", 186: "gettid", 191: "getxattr",
    202: "futex", 203: "sched_setaffinity", 204: "sched_getaffinity", 213: "epoll_create", 217: "getdents64", 218: "set_tid_address",
    221: "fadvise64", 228: "clock_gettime", 229: "clock_getres", 230: "clock_nanosleep", 231: "exit_group", 232: "epoll_wait",
    233: "epoll_ctl", 234: "tgkill", 247: "waitid", 257: "openat", 258: "mkdirat", 259: "mknodat", 260: "fchownat", 262: "newfstatat",
    263: "unlinkat", 264: "renameat", 265: "linkat", 266: "symlinkat", 267: "readlinkat", 268: "fchmodat", 269: "faccessat", 270: "pselect6",
    271: "ppoll", 273: "set_robust_list", 280: "utimensat", 281: "epoll_pwait", 283: "timerfd_create", 285: "fallocate",
    286: "timerfd_settime", 287: "timerfd_gettime", 288: "accept4", 289: "signalfd4", 290: "eventfd2", 291: "epoll_create1", 292: "dup3",
    293: "pipe2", 294: "inotify_init1", 295: "preadv", 296: "pwritev", 302: "prlimit64", 307: "sendmmsg", 314: "sched_setattr",
    316: "renameat2", 317: "seccomp", 318: "getrandom", 319: "memfd_create", 322: "execveat", 324: "membarrier", 326: "copy_file_range",
    327: "preadv2", 328: "pwritev2", 332: "statx", 334: "rseq", 424: "pidfd_send_signal", 434: "pidfd_open", 435: "clone3",
    436: "close_range", 437: "openat2", 439: "faccessat2", 441: "epoll_pwait2", 444: "landlock_create_ruleset",
    445: "landlock_add_rule", 446: "landlock_restrict_self",
}

# Requests of devices, without direction and size.
REQUESTS = {
    0xae00: "KVM_GET_API_VERSION", 0xae01: "KVM_CREATE_VM", 0xae02: "KVM_GET_MSR_INDEX_LIST", 0xae03: "KVM_CHECK_EXTENSION",
    0xae04: "KVM_GET_VCPU_MMAP_SIZE", 0xae05: "KVM_GET_SUPPORTED_CPUID", 0xae41: "KVM_CREATE_VCPU",
    0xae46: "KVM_SET_USER_MEMORY_REGION", 0xae47: "KVM_SET_TSS_ADDR", 0xae48: "KVM_SET_IDENTITY_MAP_ADDR", 0xae60: "KVM_CREATE_IRQCHIP",
    0xae61: "KVM_IRQ_LINE", 0xae62: "KVM_GET_IRQCHIP", 0xae63: "KVM_SET_IRQCHIP", 0xae6a: "KVM_SET_GSI_ROUTING", 0xae76: "KVM_IRQFD",
    0xae77: "KVM_CREATE_PIT2", 0xae79: "KVM_IOEVENTFD", 0xae7b: "KVM_SET_CLOCK", 0xae7c: "KVM_GET_CLOCK", 0xae80: "KVM_RUN",
    0xae81: "KVM_GET_REGS", 0xae82: "KVM_SET_REGS", 0xae83: "KVM_GET_SREGS", 0xae84: "KVM_SET_SREGS", 0xae88: "KVM_GET_MSRS",
    0xae89: "KVM_SET_MSRS", 0xae8c: "KVM_GET_FPU", 0xae8d: "KVM_SET_FPU", 0xae8e: "KVM_GET_LAPIC", 0xae8f: "KVM_SET_LAPIC",
    0xae90: "KVM_SET_CPUID2", 0xae98: "KVM_GET_MP_STATE", 0xae99: "KVM_SET_MP_STATE", 0xaea0: "KVM_SET_PIT2", 0xae9f: "KVM_GET_PIT2",
    0xaea2: "KVM_SET_TSC_KHZ", 0xaea3: "KVM_ENABLE_CAP", 0xaead: "KVM_KVMCLOCK_CTRL", 0x5401: "TCGETS", 0x5413: "TIOCGWINSZ",
    0x541b: "FIONREAD", 0x5421: "FIONBIO", 0x54d0: "TUNSETOFFLOAD", 0x54d2: "TUNGETIFF", 0x54ca: "TUNSETIFF",
}
COMMANDS = {0: "F_DUPFD", 1: "F_GETFD", 2: "F_SETFD", 3: "F_GETFL", 4: "F_SETFL", 36: "F_OFD_GETLK", 37: "F_OFD_SETLK", 1024: "F_SETLEASE", 1030: "F_DUPFD_CLOEXEC",
            1033: "F_ADD_SEALS", 1034: "F_GET_SEALS"}
OPERATIONS = {0: "WAIT", 1: "WAKE", 9: "WAIT", 10: "WAKE"}


def name_of(number, arguments):
    """The name of a call; where one call is many, with what it does."""
    name = NUMBERS.get(number, f"call {number}")
    if name == "ioctl":
        request = arguments[1] & 0xffff
        return f"ioctl {REQUESTS.get(request, hex(request))}"
    if name == "fcntl":
        return f"fcntl {COMMANDS.get(arguments[1], arguments[1])}"
    if name == "futex":
        return f"futex {OPERATIONS.get(arguments[1] & 15, arguments[1] & 15)}"
    return name


def _table(text):
    table = {}
    for line in text.strip().splitlines():
        calls, errors = line.split(":")
        for call in calls.split(","):
            table[call.strip().replace("_IOC", "ioctl")] = errors.split()
    return table


# Of a name that begins with what stands here, the longest counts.
ERRORS = _table("""
read: EINTR EAGAIN short EIO EISDIR
readv, preadv, preadv2, pread64: EINTR EAGAIN short EIO ENXIO
write: EINTR EAGAIN short EIO ENOSPC EDQUOT EFBIG EPIPE EPERM
writev, pwritev, pwritev2, pwrite64: EINTR EAGAIN short EIO ENOSPC EDQUOT EFBIG EPERM
recvfrom, recvmsg: EINTR EAGAIN ENOMEM ECONNREFUSED ECONNRESET
sendto, sendmsg: EINTR EAGAIN ENOMEM ENOBUFS EPIPE ECONNRESET ENOTCONN
open, openat, openat2: EINTR EACCES EPERM EMFILE ENFILE ENOENT ENOMEM ELOOP ENOTDIR EIO ENOSPC EROFS ENXIO ENODEV EBUSY ETXTBSY EDQUOT EOVERFLOW
close: EINTR EIO ENOSPC EDQUOT
close_range: ENOSYS EMFILE ENOMEM
stat, lstat, newfstatat, statx: EACCES ENOENT ENOMEM ELOOP ENOTDIR EIO
fstat: EIO ENOMEM EOVERFLOW
statfs, fstatfs: EINTR EIO ENOSYS ENOMEM
readlink, readlinkat: EACCES EIO ELOOP ENOENT ENOMEM ENOTDIR EINVAL
getdents64: ENOENT EIO
access, faccessat, faccessat2: EACCES ENOENT EIO ENOMEM
chdir, fchdir: EACCES EIO ENOENT ENOMEM
getcwd: ENOENT ENOMEM EACCES
mkdir, mkdirat: EACCES EDQUOT EEXIST EMLINK ENOENT ENOMEM ENOSPC EROFS EPERM
rename, renameat, renameat2: EACCES EPERM EDQUOT ENOENT ENOMEM ENOSPC EROFS EXDEV EBUSY EIO
link, linkat: EACCES EPERM EDQUOT EEXIST EMLINK ENOENT ENOMEM ENOSPC EROFS EXDEV EIO
unlink, unlinkat, rmdir: EACCES EPERM EBUSY EIO ENOENT ENOMEM EROFS
chmod, fchmod, fchmodat, chown, fchown, fchownat, utimensat: EPERM EIO EROFS ENOMEM
symlink, symlinkat: EACCES EDQUOT EEXIST ENOMEM ENOSPC EROFS
lseek: ESPIPE ENXIO EOVERFLOW EINVAL
flock: EINTR EWOULDBLOCK ENOLCK
fsync, fdatasync: EINTR EIO ENOSPC EDQUOT EROFS EINVAL
ftruncate, truncate: EINTR EFBIG EIO EPERM ENOSPC
fallocate: EINTR EFBIG EIO ENOSPC EOPNOTSUPP ENOSYS EPERM
copy_file_range: EIO ENOMEM ENOSPC EXDEV EOPNOTSUPP EPERM ENOSYS
fadvise64: EINVAL
mmap: ENOMEM EAGAIN ENFILE ENODEV EACCES EPERM
munmap: ENOMEM
mprotect: ENOMEM EACCES
mremap: ENOMEM EAGAIN
madvise: EAGAIN ENOMEM EIO EINVAL
brk: ENOMEM
memfd_create: EMFILE ENFILE ENOMEM
clone, clone3: EAGAIN ENOMEM ENOSYS EPERM
fork, vfork: EAGAIN ENOMEM ENOSYS
execve, execveat: EACCES EAGAIN EIO EMFILE ENFILE ENOENT ENOMEM ETXTBSY ENOEXEC
wait4, waitid: EINTR
eventfd2, timerfd_create, signalfd4, epoll_create1, inotify_init1: EMFILE ENFILE ENOMEM ENODEV
epoll_ctl: ENOMEM ENOSPC EPERM
epoll_wait, epoll_pwait, epoll_pwait2: EINTR
poll, ppoll, pselect6: EINTR ENOMEM
timerfd_settime: ECANCELED
futex WAIT: EINTR EAGAIN
nanosleep, clock_nanosleep: EINTR
pipe, pipe2, dup, dup2, dup3: EMFILE ENFILE
socket: EACCES EAFNOSUPPORT EMFILE ENFILE ENOBUFS ENOMEM
socketpair: EAFNOSUPPORT EMFILE ENFILE ENOMEM
bind: EACCES EADDRINUSE ENOENT ENOMEM ENOTDIR EROFS ELOOP
listen: EADDRINUSE
connect: EINTR EACCES EPERM EAGAIN ECONNREFUSED ENOENT
accept, accept4: EINTR EAGAIN ECONNABORTED EMFILE ENFILE ENOBUFS ENOMEM EPERM
shutdown: ENOTCONN
getsockopt, setsockopt: ENOPROTOOPT ENOMEM ENOBUFS
getsockname, getpeername: ENOBUFS ENOTCONN
fcntl F_DUPFD_CLOEXEC: EMFILE
fcntl F_SETLEASE: EACCES EAGAIN EBUSY
fcntl F_OFD_SETLK: EAGAIN EACCES ENOLCK EINTR
fcntl F_OFD_GETLK: EINTR EINVAL
fcntl F_ADD_SEALS: EBUSY EPERM EINVAL
fcntl F_GET_SEALS: EINVAL
fcntl F_SETFL: EPERM
getrandom: EINTR
prlimit64, setrlimit, getrlimit: EPERM
prctl: EINVAL EPERM
capget, capset: EPERM EINVAL
seccomp: EINVAL ENOMEM ESRCH EACCES EOPNOTSUPP
landlock_create_ruleset, landlock_add_rule, landlock_restrict_self: EOPNOTSUPP ENOSYS ENOMEM EPERM E2BIG
tgkill, kill, pidfd_send_signal: EAGAIN ESRCH EPERM
pidfd_open: EMFILE ENFILE ENODEV ENOMEM ESRCH ENOSYS
rt_sigtimedwait: EINTR
sched_getaffinity: ESRCH
setsid, setpgid: EPERM
ioctl KVM_RUN: EINTR EAGAIN EIO ENOMEM
ioctl KVM: EIO ENOMEM EINVAL ENXIO EBUSY EPERM
ioctl KVM_CREATE: EMFILE ENFILE ENOMEM EEXIST EINTR
ioctl TCGETS: ENOTTY EIO
ioctl: ENOTTY EINVAL EIO
""")
NUMBERS[128] = "rt_sigtimedwait"

# These fail for wrong arguments alone, or for nothing.
NEVER = {
    "exit", "exit_group", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend", "sigaltstack", "restart_syscall", "arch_prctl",
    "set_tid_address", "set_robust_list", "rseq", "getpid", "gettid", "getppid", "getuid", "geteuid", "getgid", "getegid", "umask", "uname",
    "clock_gettime", "clock_getres", "gettimeofday", "getrusage", "sysinfo", "sched_yield", "timerfd_gettime", "membarrier", "futex WAKE",
    "fcntl F_GETFD", "fcntl F_SETFD", "fcntl F_GETFL",
}
AGAIN = {"EINTR", "short"}
# What reading and writing of each kind of file can come to, where its own manual page says less than those of the calls: a
# descriptor of the kernel's that counts (eventfd) is full or empty, or the wait is interrupted, and nothing else. Its EAGAIN of a
# write is left out: it says that the counter is full, so that whoever reads it wakes all the same.
OF_KIND = {
    "eventfd": ({"EINTR", "EAGAIN"}, {"EINTR"}),
    "timerfd": ({"EINTR", "EAGAIN"}, set()),
    "signalfd": ({"EINTR", "EAGAIN"}, set()),
    "pipe": ({"EINTR", "EAGAIN", "short"}, {"EINTR", "EAGAIN", "short", "EPIPE"}),
    "socket": ({"EINTR", "EAGAIN", "short", "ECONNRESET", "ENOMEM"},
               {"EINTR", "EAGAIN", "short", "EPIPE", "ECONNRESET", "ENOBUFS", "ENOMEM", "ENOTCONN"}),
    "file": ({"EINTR", "short", "EIO", "EISDIR", "ENXIO"}, {"EINTR", "short", "EIO", "ENOSPC", "EDQUOT", "EFBIG"}),
    "memory": ({"EINTR", "short"}, {"EINTR", "short", "ENOSPC"}),
    "device": ({"EINTR", "EAGAIN", "short", "EIO"}, {"EINTR", "EAGAIN", "short", "EIO"}),
}
READS = {"read", "readv", "pread64", "preadv", "preadv2", "recvfrom", "recvmsg"}
WRITES = {"write", "writev", "pwrite64", "pwritev", "pwritev2", "sendto", "sendmsg"}


def errors_of(name, kind=None):
    """The errors of a call by its name, and by the kind of file that it is for: none of one that is not to fail."""
    if kind in OF_KIND and name in READS | WRITES:
        able = OF_KIND[kind][name in WRITES]
        return [error for error in ERRORS[name] if error in able]
    if name in ERRORS:
        return ERRORS[name]
    fits = [begin for begin in ERRORS if " " in begin and name.startswith(begin) or begin == name.split(" ")[0] == "ioctl"]
    return ERRORS[max(fits, key=len)] if fits else []


def number_of(error):
    """The errno of a name."""
    return getattr(errno, error)
