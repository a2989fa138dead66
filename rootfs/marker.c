/* The init of `nelly bench boot`: writes a marker line to the console, waits until it is sent, says how long before that the kernel
 * and it began, and resets. No library.
 *
 * Words of the kernel's command line reach init as its environment. `delay_ms=N` makes it wait so long before the marker: a change of known
 * size, to try a comparison on. `hold_ms=N` makes it wait so long behind it: a guest that idles, to weigh its monitor.
 *
 * Some monitors tell of the serial port's interrupt only in tables that this kernel does not read. It then refuses the terminal's writes, or
 * keeps them in the queue; so the line is said by way of the kernel's log, which polls.
 */
enum { REBOOT_MAGIC1 = (int)0xfee1dead, REBOOT_MAGIC2 = 672274793, REBOOT_AUTOBOOT = 0x1234567, TCSBRK = 0x5409, TIOCOUTQ = 0x5411 };
enum { AT_FDCWD = -100, O_RDWR = 2, O_NONBLOCK = 04000, EPIPE = 32, CLOCK_MONOTONIC_RAW = 4 };

#if defined(__x86_64__)
enum { SYS_read = 0, SYS_write = 1, SYS_ioctl = 16, SYS_nanosleep = 35, SYS_reboot = 169, SYS_clock_gettime = 228, SYS_openat = 257 };
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
enum { SYS_ioctl = 29, SYS_openat = 56, SYS_read = 63, SYS_write = 64, SYS_nanosleep = 101, SYS_clock_gettime = 113, SYS_reboot = 142 };
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

/* The guest's clock that nobody slews, in nanoseconds. */
static long now(void)
{
    long time[2];
    call(SYS_clock_gettime, CLOCK_MONOTONIC_RAW, (long)time, 0);
    return time[0] * 1000000000 + time[1];
}

/* Says a line, which ends with a zero, and waits until it is sent. The three characters before it are free, for the kernel's log. */
static void say(char *line)
{
    int queued = 0;
    long size = 0;
    while (line[size])
        size++;
    long written = call(SYS_write, 1, (long)line, size);
    call(SYS_ioctl, 1, TIOCOUTQ, (long)&queued);
    if (written < 0 || queued) {
        line[-3] = '<', line[-2] = '0', line[-1] = '>';
        call(SYS_write, call(SYS_openat, AT_FDCWD, (long)"/dev/kmsg", O_RDWR), (long)line - 3, size + 3);
    }
    call(SYS_ioctl, 1, TCSBRK, 1);
}

/* What follows `words` in `text`, if it begins with them. */
static const char *after(const char *text, const char *words)
{
    while (*words)
        if (*text++ != *words++)
            return 0;
    return text;
}

static long number(const char *text)
{
    long value = 0, sign = *text == '-' ? -1 : 1;
    for (text += *text == '-'; *text >= '0' && *text <= '9'; text++)
        value = value * 10 + (*text - '0');
    return value * sign;
}

/* Adds " NAME=VALUE" at `end`; the new end. What is not known, or nonsense, is left out. */
static char *add(char *end, const char *name, long value)
{
    char digits[20];
    int count = 0;
    if (value <= 0)
        return end;
    while (*name)
        *end++ = *name++;
    for (; value; value /= 10)
        digits[count++] = '0' + value % 10;
    while (count)
        *end++ = digits[--count];
    *end = 0;
    return end;
}

static char record[8193], line[256];

/* "NELLY-STAMPS kernel_entry=NS init=NS init_main=NS": how long before `marked` the kernel's scheduler clock began, it executed init,
 * and init began (at `begun`). How the kernel's log tells that stands in docs/timeline.md; the agent reads it the same way.
 */
static void say_stamps(long begun, long marked)
{
    char *end = line + 3;
    for (const char *words = "NELLY-STAMPS"; *words; words++)
        *end++ = *words;
    long log = call(SYS_openat, AT_FDCWD, (long)"/dev/kmsg", O_RDWR | O_NONBLOCK), shift = 0, init = 0, size;
    long written = now();
    call(SYS_write, log, (long)"<7>NELLY-CLOCK\n", 15);
    while (log >= 0 && ((size = call(SYS_read, log, (long)record, sizeof record - 1)) > 0 || size == -EPIPE)) {
        const char *text = record, *found;
        if (size < 0)
            continue;
        record[size] = 0;
        long time = 0; /* "level,sequence,microseconds,flags;text": behind the second comma */
        for (int commas = 0; *text && *text != ';'; text++)
            if (*text == ',' && ++commas == 2)
                time = number(text + 1);
        text += *text == ';';
        if ((found = after(text, "sched_clock: Marking stable ("))) {
            for (; *found && *found != '\n'; found++)
                if (*found == ',')
                    shift = number(found + 2);
        } else if (after(text, "Run /")) {
            init = init ? init : time;
        } else if (after(text, "NELLY-CLOCK")) {
            end = add(end, " kernel_entry=", time * 1000 - shift - (written - marked));
            end = add(end, " init=", init ? (time - init) * 1000 - (written - marked) : 0);
            break;
        }
    }
    end = add(end, " init_main=", marked - begun);
    *end++ = '\n';
    *end = 0;
    say(line + 3);
}

__attribute__((used, noreturn)) void run(long *stack)
{
    static char marker[] = "   NELLY-INIT\n";
    char **environment = (char **)(stack + stack[0] + 2);
    long begun = now();
    wait_for(environment, "delay_ms=");
    say(marker + 3);
    say_stamps(begun, now());
    wait_for(environment, "hold_ms=");
    for (;;)
        call(SYS_reboot, REBOOT_MAGIC1, REBOOT_MAGIC2, REBOOT_AUTOBOOT);
}
