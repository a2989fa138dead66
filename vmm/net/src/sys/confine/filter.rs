//! The system calls of each role, and with which arguments. Calls on the way of a guest's bytes
//! stand without arguments: the system decides those without running the program.

use std::io;

use nelly_confine::program::{Arguments, BpfProgram, Calls, Denial, Must, Ways, compile};

use super::Role;

/// A call, and in which ways it may be made; none: in every way.
type Entry = (i64, Vec<Arguments>);

/// The filter of a role.
///
/// # Errors
/// This architecture is none whose numbers are known.
pub(super) fn program(role: Role) -> io::Result<BpfProgram> {
    let mut entries = common();
    entries.extend(match role {
        Role::Network => network(),
        Role::Swapping => swapping(),
        Role::Secrets => secrets(),
        Role::Reader => reader(),
        Role::Switch => switch(),
    });
    let numbered = |(number, ways)| u32::try_from(number).map(|number| (number, Ways::from(ways)));
    let calls: Result<Calls, _> = entries.into_iter().map(numbered).collect();
    compile(&calls.map_err(io::Error::other)?, Denial::Signal)
}

/// A constant of the system, as an argument has it.
const fn bits(value: libc::c_int) -> u32 {
    value.cast_unsigned()
}

/// Memory, the end, and what the standard and C libraries do whatever a program is for.
fn common() -> Vec<Entry> {
    let anywhere = [
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_getrandom,
        libc::SYS_gettid,
        libc::SYS_madvise,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_ppoll,
        libc::SYS_read,
        libc::SYS_recvfrom,
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sched_yield,
        libc::SYS_sendto,
        libc::SYS_sigaltstack,
        libc::SYS_write,
    ];
    let mut entries: Vec<Entry> = anywhere.into_iter().map(|number| (number, Vec::new())).collect();
    // No memory becomes a program.
    let data = Must::BeWithin(bits(libc::PROT_READ | libc::PROT_WRITE));
    entries.push((libc::SYS_mmap, vec![vec![(2, data)]]));
    entries.push((libc::SYS_mprotect, vec![vec![(2, data)]]));
    // A panic ends this process by a signal to itself.
    let own = std::process::id();
    entries.push((libc::SYS_tgkill, vec![vec![(0, Must::Be(own))]]));
    // Who is told of a denied call hears the name of its thread.
    entries.push((libc::SYS_prctl, vec![vec![(0, Must::Be(bits(libc::PR_GET_NAME)))]]));
    // The standard library's own checks ask this of a file that is to be closed.
    entries.push((libc::SYS_fcntl, vec![vec![(1, Must::Be(bits(libc::F_GETFD)))]]));
    #[cfg(target_arch = "x86_64")]
    entries.push((libc::SYS_poll, Vec::new()));
    entries
}

/// Sockets of the Internet, and questions about the host's addresses. None of them can be made to
/// listen: those that do were made before, or come from whoever holds the machine.
fn network() -> Vec<Entry> {
    let anywhere = [
        libc::SYS_accept4,
        libc::SYS_connect,
        libc::SYS_dup3,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_getpeername,
        libc::SYS_getsockname,
        libc::SYS_readv,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_shutdown,
        libc::SYS_writev,
    ];
    let mut entries: Vec<Entry> = anywhere.into_iter().map(|number| (number, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    entries.push((libc::SYS_dup2, Vec::new()));
    let modes = bits(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    let socket = |family, kind, number| {
        vec![(0, Must::Be(bits(family))), (1, Must::BeBut(bits(kind), modes)), (2, Must::Be(bits(number)))]
    };
    let (four, six) = (libc::AF_INET, libc::AF_INET6);
    entries.push((
        libc::SYS_socket,
        vec![
            socket(four, libc::SOCK_STREAM, 0),
            socket(four, libc::SOCK_DGRAM, 0),
            socket(four, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
            socket(six, libc::SOCK_STREAM, 0),
            socket(six, libc::SOCK_DGRAM, 0),
            socket(six, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
            socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
        ],
    ));
    // An address of the system's own messages is so long; those of the Internet are longer.
    entries.push((libc::SYS_bind, vec![vec![(2, Must::Be(12))]]));
    let option = |level, name| vec![(1, Must::Be(bits(level))), (2, Must::Be(bits(name)))];
    entries.push((
        libc::SYS_setsockopt,
        vec![
            option(libc::IPPROTO_TCP, libc::TCP_NODELAY),
            option(libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            option(libc::SOL_SOCKET, libc::SO_LINGER),
            option(libc::SOL_SOCKET, libc::SO_OOBINLINE),
        ],
    ));
    entries.push((libc::SYS_getsockopt, vec![option(libc::SOL_SOCKET, libc::SO_ERROR)]));
    entries
}

/// The same, and pairs of streams of which each end is connected to the other for good.
fn swapping() -> Vec<Entry> {
    let mut entries = network();
    let modes = bits(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    entries.push((
        libc::SYS_socketpair,
        vec![vec![
            (0, Must::Be(bits(libc::AF_UNIX))),
            (1, Must::BeBut(bits(libc::SOCK_STREAM), modes)),
            (2, Must::Be(0)),
        ]],
    ));
    entries
}

/// Sockets that others connect and hand over.
fn secrets() -> Vec<Entry> {
    let anywhere = [
        libc::SYS_dup3,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_recvmsg,
        libc::SYS_shutdown,
    ];
    let mut entries = Vec::new();
    #[cfg(target_arch = "x86_64")]
    entries.push((libc::SYS_dup2, Vec::new()));
    entries.extend(anywhere.map(|number| (number, Vec::new())));
    entries
}

/// One file, to be read.
fn reader() -> Vec<Entry> {
    use rustix::fs::OFlags;
    // The only kind of access without a bit is that of reading.
    let modes = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::LARGEFILE;
    let open = vec![(2, Must::BeWithin(modes.bits()))];
    let mut entries = vec![(libc::SYS_openat, vec![open]), (libc::SYS_fstat, Vec::new())];
    #[cfg(target_arch = "x86_64")]
    entries.push((libc::SYS_newfstatat, Vec::new()));
    entries.push((libc::SYS_statx, Vec::new()));
    entries
}

/// Sockets that others connect, and one to be removed. None is made, and none connected.
fn switch() -> Vec<Entry> {
    let anywhere = [
        libc::SYS_accept4,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_flock,
        libc::SYS_geteuid,
        libc::SYS_sendmsg,
        libc::SYS_unlinkat,
    ];
    let mut entries: Vec<Entry> = anywhere.into_iter().map(|number| (number, Vec::new())).collect();
    let who = vec![(1, Must::Be(bits(libc::SOL_SOCKET))), (2, Must::Be(bits(libc::SO_PEERCRED)))];
    entries.push((libc::SYS_getsockopt, vec![who]));
    // Whether what it removes is its own.
    let link = vec![(3, Must::Be(bits(libc::AT_SYMLINK_NOFOLLOW)))];
    entries.push((libc::SYS_newfstatat, vec![link]));
    entries
}
