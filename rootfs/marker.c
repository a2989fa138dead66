/* The init of `nelly bench boot`: writes a marker line to the console, waits until it is sent, and resets. No library.
 *
 * Words of the kernel's command line reach init as its environment. `delay_ms=N` makes it wait so long before the marker: a change of known
 * size, to try a comparison on. `hold_ms=N` makes it wait so long behind it: a guest that idles, to weigh its monitor.
 *
 * Some monitors tell of the serial port's interrupt only in tables that this kernel does not read. It then refuses the terminal's writes, or
 * keeps them in the queue; so the line is said by way of the kernel's log, which polls.
 */
enum { REBOOT_MAGIC1 = (int)0xfee1dead, REBOOT_MAGIC2 = 672274793, REBOOT_AUTOBOOT = 0x1234567, TCSBRK = 0x5409, TIOCOUTQ = 0x5411 };
enum { AT_FDCWD = -100, O_WRONLY = 1 };

#if defined(__x86_64__)
enum { SYS_write = 1, SYS_ioctl = 16, SYS_nanosleep = 35, SYS_reboot = 169, SYS_openat = 257 };
static long call(long number, long a, long b, long c)
{
    long result;
    register long d __asm__("r10") = 0;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(d) : "rcx", "r11", "memory");
    return result;
}
/* The stack at entry is the argument; the call aligns it. */
__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call run\n");
#elif defined(__aarch64__)
enum { SYS_write = 64, SYS_ioctl = 29, SYS_openat = 56, SYS_nanosleep = 101, SYS_reboot = 142 };
static long call(long number, long a, long b, long c)
{
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = 0;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
__asm__(".globl _start\n_start: mov x29, #0\n mov x0, sp\n bl run\n");
#else
#error "no system calls for this machine"
#endif

/* Waits for the milliseconds behind `name` in the environment, if it is there. */
static void wait_for(char **environment, const char *name)
{
    for (; *environment; environment++) {
        int at = 0;
        while (name[at] && (*environment)[at] == name[at])
            at++;
        if (name[at])
            continue;
        long value = 0;
        for (const char *digit = *environment + at; *digit >= '0' && *digit <= '9' && value < 1000000; digit++)
            value = value * 10 + (*digit - '0');
        long time[2] = { value / 1000, value % 1000 * 1000000 };
        call(SYS_nanosleep, (long)time, 0, 0);
    }
}

__attribute__((used, noreturn)) void run(long *stack)
{
    static const char marker[] = "NELLY-INIT\n", loud[] = "<0>NELLY-INIT\n";
    int queued = 0;
    char **environment = (char **)(stack + stack[0] + 2);
    wait_for(environment, "delay_ms=");
    long written = call(SYS_write, 1, (long)marker, sizeof marker - 1);
    call(SYS_ioctl, 1, TIOCOUTQ, (long)&queued);
    if (written < 0 || queued)
        call(SYS_write, call(SYS_openat, AT_FDCWD, (long)"/dev/kmsg", O_WRONLY), (long)loud, sizeof loud - 1);
    call(SYS_ioctl, 1, TCSBRK, 1);
    wait_for(environment, "hold_ms=");
    for (;;)
        call(SYS_reboot, REBOOT_MAGIC1, REBOOT_MAGIC2, REBOOT_AUTOBOOT);
}
