// PID 1 of the emulated host: a Linux under QEMU's software CPU, with AMD-V and so a mainstream /dev/kvm.
//
// It mounts, loads modules, says READY on the control port and waits. Here its state is saved; every run resumes
// from it. Then one job arrives: the build machine's root (9P, read-only) is mounted under a writable overlay,
// becomes the root, and the job's command runs in it. Its output travels on two ports, its input and the terminal's
// size in frames on the control port; the last word is "RC code stdout-bytes stderr-bytes".
//
// Control port, towards us: frames of type (1 byte), length (4 bytes, little endian), data.
//   J  the job: NUL-terminated strings "key=value" (see take_setting)    I  standard input    E  end of input
//   W  window size, "rows columns"    C  before the job: what is the time?
// Control port, from us: lines "READY", "CLOCK nanoseconds" (CLOCK_MONOTONIC), "STARTED", "ALIVE" every few seconds if
// asked for, "RC ...".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CONTROL_PORT "/dev/vport0p1"
#define OUT_PORT "/dev/vport0p2"
#define ERR_PORT "/dev/vport0p3"
#define MAX_LIST 8192
#define BEAT_SECONDS 5

struct job {
    char *argv[MAX_LIST], *env[MAX_LIST], *shares[8], *binds[64];
    int argc, envc, sharec, bindc, tty, beat;
    char *cwd, *modules;
    struct winsize size;
};

// Bytes on their way from one descriptor to another; both non-blocking, -1 when closed.
struct pump {
    int from, to;
    size_t start, end;
    uint64_t total;
    char data[65536];
};

static int control;
static struct job job;
static struct pump out_pump, err_pump;
static char *input;             // what the job has not read yet
static size_t input_len, input_cap, input_start;
static int input_ended;

static void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "emulated host: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, ": %s\n", strerror(errno));
    va_end(args);
    if (getpid() == 1)
        for (;;)
            pause();            // the console shows why; run gives up waiting, or ends us
    _exit(126);
}

static void say(const char *format, ...)
{
    char line[128];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    for (int done = 0; done < length;) {
        ssize_t n = write(control, line + done, length - done);
        if (n > 0)
            done += n;
        else if (n < 0 && errno != EAGAIN && errno != EINTR)
            die("control port");
    }
}

static void must_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
    mkdir(target, 0755);
    if (mount(source, target, type, flags, data))
        die("mount %s on %s", type ? type : source, target);
}

static void try_write(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (write(fd, text, strlen(text)) < 0) {}
    close(fd);
}

static void load_modules(void)
{
    char name[128], path[160];
    FILE *order = fopen("/m/order", "re");
    if (!order)
        die("/m/order");
    while (fscanf(order, "%127s", name) == 1) {
        snprintf(path, sizeof path, "/m/%s.ko", name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
            fprintf(stderr, "emulated host: module %s: %s\n", name, strerror(errno));
        close(fd);
        unlink(path);
    }
    fclose(order);
}

static void loopback_up(void)
{
    struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
        die("loopback");
    close(fd);
}

static int open_port(const char *path, int flags)
{
    for (int i = 0; i < 500; i++) {
        int fd = open(path, flags | O_CLOEXEC);
        if (fd >= 0)
            return fd;
        usleep(10000);
    }
    die("%s", path);
    return -1;
}

static void set_up(void)
{
    must_mount("proc", "/proc", "proc", 0, NULL);
    must_mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);     // may be there already
    must_mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666");
    must_mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    must_mount("up", "/up", "tmpfs", 0, "size=90%,nr_inodes=0");
    must_mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mkdir("/up/u", 0755);
    mkdir("/up/w", 0755);
    try_write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +memory +io +pids +cpuset");
    load_modules();
    loopback_up();
    unlink("/dev/ptmx");
    if (symlink("pts/ptmx", "/dev/ptmx")) {}
    static const char *links[][2] = { { "/proc/self/fd", "/dev/fd" }, { "/proc/self/fd/0", "/dev/stdin" },
        { "/proc/self/fd/1", "/dev/stdout" }, { "/proc/self/fd/2", "/dev/stderr" } };
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlink(links[i][0], links[i][1])) {}
    chmod("/dev/kvm", 0666);
    chmod("/dev/net/tun", 0666);
    chmod("/dev/vhost-vsock", 0666);
    chmod("/dev/vhost-net", 0666);
    if (sethostname("emulated-host", 13)) {}
    char byte;
    int fd = open("/dev/random", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, &byte, 1) != 1)
        die("/dev/random");
    close(fd);
}

static void read_all(void *to, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = read(control, (char *)to + done, length - done);
        if (n > 0)
            done += n;
        else if (n == 0)
            usleep(1000);       // nobody at the other end yet
        else if (errno != EINTR)
            die("control port");
    }
}

static void take_setting(char *text)
{
    char *value = strchr(text, '=');
    if (!value)
        return;
    *value++ = 0;
    if (!strcmp(text, "arg") && job.argc < MAX_LIST - 1)
        job.argv[job.argc++] = value;
    else if (!strcmp(text, "env") && job.envc < MAX_LIST - 1)
        job.env[job.envc++] = value;
    else if (!strcmp(text, "share") && job.sharec < 8)
        job.shares[job.sharec++] = value;
    else if (!strcmp(text, "bind") && job.bindc < 64)
        job.binds[job.bindc++] = value;
    else if (!strcmp(text, "cwd"))
        job.cwd = value;
    else if (!strcmp(text, "modules"))
        job.modules = value;
    else if (!strcmp(text, "beat"))
        job.beat = 1;
    else if (!strcmp(text, "tty"))
        job.tty = 1, sscanf(value, "%hu %hu", &job.size.ws_row, &job.size.ws_col);
    else if (!strcmp(text, "time")) {
        struct timeval now = { 0 };
        sscanf(value, "%ld.%ld", &now.tv_sec, &now.tv_usec);
        settimeofday(&now, NULL);
    } else if (!strcmp(text, "entropy")) {  // a saved state resumed twice must not give the same random bytes twice
        struct { struct rand_pool_info info; char data[64]; } pool = { .info = { .entropy_count = 256, .buf_size = 64 } };
        memcpy(pool.data, value, strnlen(value, sizeof pool.data));
        int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
        ioctl(fd, RNDADDENTROPY, &pool);
        ioctl(fd, RNDRESEEDCRNG);
        close(fd);
    }
}

static void receive_job(void)
{
    unsigned char head[5];
    while (read_all(head, sizeof head), head[0] == 'C') {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        say("CLOCK %lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
    }
    uint32_t length = head[1] | head[2] << 8 | head[3] << 16 | (uint32_t)head[4] << 24;
    char *data = malloc((size_t)length + 1);
    if (head[0] != 'J' || !data)
        errno = EPROTO, die("job");
    read_all(data, length);
    data[length] = 0;
    for (char *at = data; at < data + length;) {
        size_t step = strlen(at) + 1;
        take_setting(at);
        at += step;
    }
}

static void make_directories(const char *path)
{
    char copy[4096];
    snprintf(copy, sizeof copy, "%.4095s", path);
    for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(copy, 0755);
        *slash = '/';
    }
    mkdir(copy, 0755);
}

#define NINE "trans=virtio,version=9p2000.L,msize=512000"

static void enter_root(void)
{
    char path[4200], source[4200];
    must_mount("hostroot", "/low", "9p", MS_RDONLY, NINE ",cache=loose");
    must_mount("root", "/new", "overlay", 0, "lowerdir=/low,upperdir=/up/u,workdir=/up/w");
    must_mount("tmp", "/t", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=75%,nr_inodes=0");
    for (int i = 0; i < job.bindc; i++) {   // what the job names below /tmp stays visible
        snprintf(source, sizeof source, "/new%s", job.binds[i]);
        snprintf(path, sizeof path, "/t%s", job.binds[i] + strlen("/tmp"));
        struct stat info;
        if (stat(source, &info))
            continue;
        if (S_ISDIR(info.st_mode))
            mkdir(path, 0755);
        else
            close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
        if (mount(source, path, NULL, MS_BIND, NULL))
            die("bind %s", source);
    }
    static const char *moved[] = { "proc", "sys", "dev" };
    must_mount("/t", "/new/tmp", NULL, MS_MOVE, NULL);
    for (size_t i = 0; i < 3; i++) {
        snprintf(source, sizeof source, "/%s", moved[i]);
        snprintf(path, sizeof path, "/new/%s", moved[i]);
        must_mount(source, path, NULL, MS_MOVE, NULL);
    }
    must_mount("run", "/new/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
    for (int i = 0; i < job.sharec; i++) {  // "tag:/path", writable
        char *at = strchr(job.shares[i], ':');
        *at++ = 0;
        snprintf(path, sizeof path, "/new%s", at);
        make_directories(path);
        must_mount(job.shares[i], path, "9p", 0, NINE ",cache=none");
    }
    if (job.modules) {
        mkdir("/new/lib/modules", 0755);
        snprintf(path, sizeof path, "/new/lib/modules/%s", strrchr(job.modules, '/') + 1);
        if (symlink(job.modules, path)) {}
    }
    if (chdir("/new") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        die("change of root");
}

static void child(int in, int out, int err)
{
    struct rlimit files = { 1024, 1048576 };
    setrlimit(RLIMIT_NOFILE, &files);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setsid();
    dup2(in, 0);
    dup2(out, 1);
    dup2(err, 2);
    if (job.tty)
        ioctl(0, TIOCSCTTY, 0);
    for (int fd = 3; fd < 64; fd++)
        close(fd);
    if (chdir(job.cwd ? job.cwd : "/"))
        die("cannot enter %s", job.cwd);
    environ = job.env;
    execvp(job.argv[0], job.argv);
    fprintf(stderr, "emulated host: cannot run %s: %s\n", job.argv[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

// Moves what it can without waiting; true while it made progress.
static int pump_step(struct pump *pump)
{
    int moved = 0;
    if (pump->from >= 0 && pump->start == pump->end) {
        ssize_t n = read(pump->from, pump->data, sizeof pump->data);
        pump->start = pump->end = 0;
        if (n > 0)
            pump->end = n, moved = 1;
        else if (n == 0 || (errno != EAGAIN && errno != EINTR))
            close(pump->from), pump->from = -1;     // a terminal whose last user left says EIO
    }
    if (pump->start < pump->end) {
        ssize_t n = write(pump->to, pump->data + pump->start, pump->end - pump->start);
        if (n > 0)
            pump->start += n, pump->total += n, moved = 1;
    }
    return moved;
}

// Frames from the control port, as far as they are there.
static void control_step(int terminal)
{
    static unsigned char head[5], data[65536];
    static size_t have;
    if (have < 5) {
        ssize_t n = read(control, head + have, 5 - have);
        if (n <= 0)
            return;
        have += n;
        if (have < 5)
            return;
    }
    uint32_t length = head[1] | head[2] << 8 | head[3] << 16 | (uint32_t)head[4] << 24;
    while (have - 5 < length) {
        ssize_t n = read(control, data + have - 5, length - (have - 5));
        if (n <= 0)
            return;
        have += n;
    }
    have = 0;
    if (head[0] == 'I') {
        if (input_start == input_len)
            input_start = input_len = 0;
        if (input_len + length > input_cap)
            input = realloc(input, input_cap = input_len + length + sizeof data);
        memcpy(input + input_len, data, length);
        input_len += length;
    } else if (head[0] == 'E') {
        input_ended = 1;
    } else if (head[0] == 'W' && terminal >= 0) {
        struct winsize size = { 0 };
        data[length] = 0;
        sscanf((char *)data, "%hu %hu", &size.ws_row, &size.ws_col);
        ioctl(terminal, TIOCSWINSZ, &size);
    }
}

static int input_step(int *to)
{
    if (*to < 0)
        return 0;
    if (input_start < input_len) {
        ssize_t n = write(*to, input + input_start, input_len - input_start);
        if (n > 0)
            return input_start += n, 1;
        if (n < 0 && errno == EPIPE)
            return close(*to), *to = -1, 0;
    } else if (input_ended && !job.tty) {
        close(*to);
        *to = -1;
    }
    return 0;
}

static volatile sig_atomic_t child_changed;
static void on_child(int signal) { (void)signal; child_changed = 1; }

// Tells a host that works from one that stands still: whoever waits for a slow command can wait for this.
static void beat(void)
{
    static time_t last;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!job.beat || now.tv_sec < last + BEAT_SECONDS)
        return;
    last = now.tv_sec;
    say("ALIVE\n");
}

static void tick(int terminal, int *in)
{
    beat();
    struct pollfd fds[4] = {
        // no more input is taken than the job reads: at most a few frames wait here
        { .fd = input_len - input_start < 262144 ? control : -1, .events = POLLIN },
        { .fd = *in, .events = input_start < input_len ? POLLOUT : 0 },
        { .fd = out_pump.start < out_pump.end ? out_pump.to : out_pump.from,
          .events = out_pump.start < out_pump.end ? POLLOUT : POLLIN },
        { .fd = err_pump.start < err_pump.end ? err_pump.to : err_pump.from,
          .events = err_pump.start < err_pump.end ? POLLOUT : POLLIN },
    };
    sigset_t none;
    sigemptyset(&none);
    if (fds[1].fd >= 0 && !fds[1].events)
        fds[1].fd = -1;
    if (ppoll(fds, 4, &(struct timespec){ .tv_sec = 1 }, &none) <= 0)
        return;
    if (fds[0].revents & POLLIN)
        control_step(terminal);
    pump_step(&out_pump);
    pump_step(&err_pump);
}

static int run_job(void)
{
    int in[2], out[2], err[2], terminal = -1, side = -1;
    if (job.tty) {
        terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (terminal < 0 || grantpt(terminal) || unlockpt(terminal) || (side = open(ptsname(terminal), O_RDWR | O_NOCTTY)) < 0)
            die("pseudo-terminal");
        ioctl(terminal, TIOCSWINSZ, &job.size);
        in[0] = out[1] = err[1] = side;
        in[1] = out[0] = terminal;
        err[0] = -1;
    } else if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) {
        die("pipe");
    }
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCHLD);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    sigaction(SIGCHLD, &(struct sigaction){ .sa_handler = on_child }, NULL);
    signal(SIGPIPE, SIG_IGN);
    say("STARTED\n");
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0)
        child(in[0], out[1], err[1]);
    if (job.tty) {
        close(side);
    } else {
        close(in[0]), close(out[1]), close(err[1]);
    }
    fcntl(in[1], F_SETFL, O_NONBLOCK);
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    if (err[0] >= 0)
        fcntl(err[0], F_SETFL, O_NONBLOCK);
    fcntl(control, F_SETFL, O_NONBLOCK);
    out_pump.from = job.tty ? dup(out[0]) : out[0];
    err_pump.from = err[0];
    int code = -1;
    while (code < 0) {
        while (input_step(&in[1])) {}
        tick(terminal, &in[1]);
        child_changed = 0;
        int status;
        for (pid_t gone; (gone = waitpid(-1, &status, WNOHANG)) > 0;)
            if (gone == pid)
                code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    kill(-1, SIGKILL);          // whoever still holds the output ends, so that it comes to an end
    close(in[1]);
    while (out_pump.from >= 0 || err_pump.from >= 0 || out_pump.start < out_pump.end || err_pump.start < err_pump.end) {
        int none_in = -1;
        tick(-1, &none_in);
        while (waitpid(-1, NULL, WNOHANG) > 0) {}
    }
    return code;
}

int main(void)
{
    set_up();
    control = open_port(CONTROL_PORT, O_RDWR);
    out_pump.to = open_port(OUT_PORT, O_WRONLY | O_NONBLOCK);
    err_pump.to = open_port(ERR_PORT, O_WRONLY | O_NONBLOCK);
    say("READY\n");
    receive_job();
    enter_root();
    int code = run_job();
    sync();
    say("RC %d %llu %llu\n", code, (unsigned long long)out_pump.total, (unsigned long long)err_pump.total);
    for (;;)
        pause();
}
