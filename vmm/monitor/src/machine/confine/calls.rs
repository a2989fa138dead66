//! The system calls of each kind of thread, and with which arguments.
//!
//! What acts on the process itself, or on what it has open, stands without arguments where it is
//! on the way of a guest's bytes: the system decides such a call without running the program. What
//! reaches outside (names, sockets, threads, other processes) is listed where it is needed.

use std::io;

use nelly_confine::program::{Arguments, BpfProgram, Calls, Denial, MAKES_A_THREAD, Must, Ways, compile};

use super::Needs;
use crate::machine::threads::{Role, Work};

/// A call, and in which ways it may be made; none: in every way.
type Entry = (i64, Vec<Arguments>);

/// The filter of a thread that is all of these.
///
/// # Errors
/// This architecture is none whose numbers are known.
pub(super) fn program(roles: &[Role], needs: Needs, denial: Denial) -> io::Result<BpfProgram> {
    let mut entries = common();
    let mut requests = Vec::new();
    for role in roles {
        match role {
            Role::Loop => {
                event_loop(&mut entries, needs);
                requests.extend(loop_requests(needs));
            }
            Role::Vcpu(_) => requests.extend(vcpu_requests()),
            Role::Worker(_, Work::Share) => entries.extend(calls(FILES).chain(calls(FILES_OF_THIS_MACHINE))),
            Role::Worker(_, Work::Network | Work::Disk) | Role::Helper(..) => {}
        }
        let on_networks = matches!(role, Role::Loop | Role::Vcpu(_) | Role::Worker(_, Work::Network));
        if on_networks && needs.networks {
            requests.extend(network_requests());
        }
    }
    requests.extend(interrupts());
    entries.push((libc::SYS_ioctl, requests));
    let mut calls = Calls::new();
    for (number, ways) in entries {
        calls.insert(u32::try_from(number).map_err(io::Error::other)?, Ways::from(ways));
    }
    // These take names, also where an empty one is meant to be that of an open file. Libraries that
    // ask in passing (for how much there is to read) do without an answer.
    for number in [libc::SYS_newfstatat, libc::SYS_statx] {
        calls.entry(u32::try_from(number).map_err(io::Error::other)?).or_insert(Ways::Error(NOT_PERMITTED));
    }
    // The C library makes threads by the older call then, whose flags can be looked at.
    if roles.contains(&Role::Loop) && needs.again {
        calls.insert(u32::try_from(libc::SYS_clone3).map_err(io::Error::other)?, Ways::Error(NO_CALL));
    }
    compile(&calls, denial)
}

/// EPERM
const NOT_PERMITTED: u16 = 1;

/// ENOSYS
const NO_CALL: u16 = 38;

/// A constant of the system, as an argument has it.
const fn bits(value: libc::c_int) -> u32 {
    value.cast_unsigned()
}

fn calls(numbers: &[i64]) -> impl Iterator<Item = Entry> {
    numbers.iter().map(|&number| (number, Vec::new()))
}

/// On memory, time, signals of its own, and what is open. Nothing here gets anything new but
/// descriptors that lead nowhere else.
const OWN: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_write,
    libc::SYS_writev,
];

#[cfg(target_arch = "x86_64")]
const OWN_OF_THIS_MACHINE: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OWN_OF_THIS_MACHINE: &[i64] = &[];

/// Nobody needs these. They lead nowhere, and by its number on x86_64 each stands between others
/// that are allowed, so that the list is shorter with them.
const BETWEEN: &[i64] = &[
    libc::SYS_dup3,
    libc::SYS_getitimer,
    libc::SYS_getrusage,
    libc::SYS_inotify_init1,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_pipe2,
    libc::SYS_setitimer,
    libc::SYS_signalfd4,
];
#[cfg(target_arch = "x86_64")]
const BETWEEN_OF_THIS_MACHINE: &[i64] = &[libc::SYS_alarm, libc::SYS_eventfd, libc::SYS_signalfd];
#[cfg(not(target_arch = "x86_64"))]
const BETWEEN_OF_THIS_MACHINE: &[i64] = &[];

/// What a server of shared directories does, by names below their descriptors.
const FILES: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_getdents64,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_syncfs,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// The older form of one of these, by which a name that begins at the root is opened.
#[cfg(target_arch = "x86_64")]
const FILES_OF_THIS_MACHINE: &[i64] = &[libc::SYS_open];
#[cfg(not(target_arch = "x86_64"))]
const FILES_OF_THIS_MACHINE: &[i64] = &[];

/// What every thread may.
fn common() -> Vec<Entry> {
    let tables = [OWN, OWN_OF_THIS_MACHINE, BETWEEN, BETWEEN_OF_THIS_MACHINE];
    let mut entries: Vec<Entry> = tables.into_iter().flat_map(calls).collect();
    // No memory becomes a program.
    let data = Must::BeWithin(bits(libc::PROT_READ | libc::PROT_WRITE));
    entries.push((libc::SYS_mmap, vec![vec![(2, data)]]));
    entries.push((libc::SYS_mprotect, vec![vec![(2, data)]]));
    // Kicks of vCPUs, and the end of this process in a panic.
    entries.push((libc::SYS_tgkill, vec![vec![(0, Must::Be(std::process::id()))]]));
    // What a descriptor is, another for the same, and locks of files.
    let commands = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_GET_SEALS,
        libc::F_ADD_SEALS,
        libc::F_OFD_GETLK,
        libc::F_OFD_SETLK,
    ];
    let mut commands: Vec<Arguments> = commands.map(|command| vec![(1, Must::Be(bits(command)))]).into();
    // Whose input or output has signals sent, those may be others' processes.
    let silent = Must::BeBut(0, !bits(libc::O_ASYNC));
    commands.push(vec![(1, Must::Be(bits(libc::F_SETFL))), (2, silent)]);
    entries.push((libc::SYS_fcntl, commands));
    entries.push((libc::SYS_prctl, vec![vec![(0, Must::Be(bits(libc::PR_GET_NAME)))]]));
    // Limits of its own.
    entries.push((libc::SYS_prlimit64, vec![vec![(0, Must::Be(0))]]));
    // By a datagram socket, other sockets would be reached by their names.
    let modes = bits(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    let stream = Must::BeBut(bits(libc::SOCK_STREAM), modes);
    entries.push((libc::SYS_socketpair, vec![vec![(0, Must::Be(bits(libc::AF_UNIX))), (1, stream)]]));
    // Both kinds of each: that of 64 bits everywhere (SO_RCVTIMEO_NEW, SO_SNDTIMEO_NEW) is tried
    // first.
    let option = |name| vec![(1, Must::Be(bits(libc::SOL_SOCKET))), (2, Must::Be(bits(name)))];
    let times = [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO, 66, 67];
    entries.push((libc::SYS_setsockopt, times.map(option).into()));
    entries
}

/// Beyond what every thread may: connections of others, and what a machine needs that reaches
/// files while it runs, or is made again.
fn event_loop(entries: &mut Vec<Entry>, needs: Needs) {
    entries.push((libc::SYS_accept4, Vec::new()));
    if needs.names || needs.again {
        entries.extend(calls(&[
            libc::SYS_newfstatat,
            libc::SYS_openat,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_statx,
        ]));
        #[cfg(target_arch = "x86_64")]
        entries.extend(calls(&[libc::SYS_lstat, libc::SYS_stat, libc::SYS_open]));
    }
    if needs.sockets {
        let modes = bits(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
        let stream = Must::BeBut(bits(libc::SOCK_STREAM), modes);
        entries.push((libc::SYS_socket, vec![vec![(0, Must::Be(bits(libc::AF_UNIX))), (1, stream)]]));
        entries.extend(calls(&[libc::SYS_bind, libc::SYS_connect, libc::SYS_listen, libc::SYS_unlinkat]));
        #[cfg(target_arch = "x86_64")]
        entries.extend(calls(&[libc::SYS_unlink]));
    }
    if needs.again {
        entries.push((libc::SYS_clone, vec![vec![(0, MAKES_A_THREAD)]]));
        entries.extend(calls(&[libc::SYS_memfd_create, libc::SYS_rseq, libc::SYS_set_robust_list]));
        // The names of threads, and filters of their own: these hold beside this one.
        entries.push((libc::SYS_seccomp, vec![vec![(0, Must::Be(libc::SECCOMP_SET_MODE_FILTER))]]));
        let own = [libc::PR_GET_NAME, libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS];
        entries.push((libc::SYS_prctl, own.map(|option| vec![(0, Must::Be(bits(option)))]).into()));
        if needs.shares {
            entries.extend(calls(FILES).chain(calls(FILES_OF_THIS_MACHINE)));
        }
    }
}

/// A request of a device, whatever its direction and size: the kind of device, and the number.
const fn request(kind: u32, number: u32) -> (u8, Must) {
    (1, Must::BeBut(kind << 8 | number, 0xffff_0000))
}

const KVM: u32 = 0xae;
const VHOST: u32 = 0xaf;
const TERMINAL: u32 = 0x54;

/// Interrupts, and what makes exits short.
fn interrupts() -> Vec<Arguments> {
    // KVM_IRQ_LINE, KVM_SIGNAL_MSI, KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD
    [0x61, 0xa5, 0x6a, 0x76, 0x79].map(|number| vec![request(KVM, number)]).into()
}

/// Running, and reading what a vCPU is: what it is was set before its guest runs. A machine that
/// starts again sets it by its loop's requests.
fn vcpu_requests() -> Vec<Arguments> {
    // KVM_RUN; KVM_GET_REGS, SREGS, MSRS, LAPIC, MP_STATE, VCPU_EVENTS, DEBUGREGS, XSAVE, XCRS,
    // ONE_REG, XSAVE2; KVM_KVMCLOCK_CTRL, KVM_GET_MSR_INDEX_LIST, KVM_CHECK_EXTENSION,
    // KVM_*_DEVICE_ATTR
    let numbers = [
        0x80, 0x81, 0x83, 0x88, 0x8e, 0x98, 0x9f, 0xa1, 0xa4, 0xa6, 0xab, 0xcf, 0xad, 0x02, 0x03, 0xe1, 0xe2,
        0xe3,
    ];
    numbers.iter().chain(OF_THE_STANDIN).map(|&number| vec![request(KVM, number)]).collect()
}

/// KVM_SET_ONE_REG, by which tests' stand-in for another hypervisor serves all.
#[cfg(feature = "standin")]
const OF_THE_STANDIN: &[u32] = &[0xac];
#[cfg(not(feature = "standin"))]
const OF_THE_STANDIN: &[u32] = &[];

/// Queues of taps and of vhost.
fn network_requests() -> Vec<Arguments> {
    // TUNSETOFFLOAD, TUNGETIFF, TUNSETVNETHDRSZ, TUNSETQUEUE
    let taps = [0xd0, 0xd2, 0xd8, 0xd9].map(|number| vec![request(TERMINAL, number)]);
    // VHOST_GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_VRING_NUM, ADDR,
    // BASE, GET_VRING_BASE, SET_VRING_KICK, CALL, ERR, VHOST_NET_SET_BACKEND
    let vhost = [0x00, 0x01, 0x02, 0x03, 0x10, 0x11, 0x12, 0x20, 0x21, 0x22, 0x30];
    taps.into_iter().chain(vhost.map(|number| vec![request(VHOST, number)])).collect()
}

/// The machine's state, a terminal's, and all that makes a machine if one is made again.
fn loop_requests(needs: Needs) -> Vec<Arguments> {
    // FIONREAD, FIONBIO
    let mut requests: Vec<Arguments> = [0x1b, 0x21].map(|number| vec![request(TERMINAL, number)]).into();
    if needs.terminal {
        // TCGETS, TCSETS, TCSETSW, TCSETSF and the same with a 2, TIOCGWINSZ
        let terminal = [0x01, 0x02, 0x03, 0x04, 0x2a, 0x2b, 0x2c, 0x2d, 0x13];
        requests.extend(terminal.map(|number| vec![request(TERMINAL, number)]));
    }
    if needs.again {
        requests.push(vec![(1, Must::BeBut(KVM << 8, 0xffff_00ff))]);
    } else {
        // KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, KVM_SET_CLOCK, KVM_GET_CLOCK, KVM_CHECK_EXTENSION,
        // KVM_SET_USER_MEMORY_REGION, KVM_GET_PIT2, KVM_SET_PIT2, KVM_*_DEVICE_ATTR
        let machine = [0x62, 0x63, 0x7b, 0x7c, 0x03, 0x46, 0x9f, 0xa0, 0xe1, 0xe2, 0xe3];
        requests.extend(machine.map(|number| vec![request(KVM, number)]));
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_fits_the_system() {
        let every = [
            Role::Loop,
            Role::Vcpu(0),
            Role::Worker(0, Work::Disk),
            Role::Worker(0, Work::Network),
            Role::Worker(0, Work::Share),
            Role::Helper(0, 1),
        ];
        for roles in every.chunks(1).chain([&every[..]]) {
            for all in [false, true] {
                let needs =
                    Needs { names: all, sockets: all, terminal: all, networks: all, shares: all, again: all };
                let program = program(roles, needs, Denial::Signal).unwrap();
                // BPF_MAXINSNS
                assert!((100..4096).contains(&program.len()), "{roles:?}: {}", program.len());
            }
        }
    }
}
