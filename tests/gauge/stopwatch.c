/* stopwatch NAME BOOTS MARK CMD [ARG...]: runs CMD that many times, one after the other, and prints a line of JSON for each:
 *
 *     {"scenario":"NAME","start_ns":N,"marker_ns":N,"end_ns":N,"status":N,"result":...}
 *
 * start_ns is CLOCK_MONOTONIC just before the vfork, marker_ns and end_ns are the same clock at the mark and at the end of the process.
 * MARK is what ends the boot:
 *     stdout:N      the byte of value N on standard output
 *     unix:PATH     a byte over a connection to a Unix socket at PATH; the process is then sent SIGTERM
 *     end           nothing but the process's end
 * What CMD writes to descriptor 3 is JSON and becomes "result" (null when there is none). CMD finds start_ns in NELLY_ORIGIN_NS, and
 * otherwise the environment of this program. A plugin of QEMU sees start and end by the MARKs, which do nothing. GAUGE_SPIN_NS makes the child spin for so long before it becomes CMD: a deliberate
 * slow-down for tests.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PERIOD 100000000ull
/* An instruction without effect that profile.c knows by its address: nopl 0x6e656c00 + NUMBER(%rax). */
#define MARK(NUMBER) __asm__ volatile("nopl 0x6e656c0" NUMBER "(%rax)")

enum mark { STDOUT, UNIX, END };

static void need(int ok, const char *what) {
  if (!ok) {
    perror(what);
    exit(1);
  }
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* Every boot begins at the same place between two ticks of the clock, after a pause that lets the last one's remains go. */
static void wait_for_the_period(void) {
  uint64_t at = (now() / PERIOD + 2) * PERIOD + PERIOD / 100;
  struct timespec t = {at / 1000000000, at % 1000000000};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL))
    ;
}

static int listen_at(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  unlink(path);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  need(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 1) == 0, path);
  return fd;
}

/* Reads until `byte` has come (any byte, if it is negative); 0 at the stream's end. */
static int until(int fd, int byte) {
  unsigned char data[4096];
  for (;;) {
    ssize_t count = read(fd, data, sizeof data);
    if (count <= 0)
      return 0;
    if (byte < 0 || memchr(data, byte, count))
      return 1;
  }
}

/* Waits for a connection, or for the end of the process that should bring it about: then a negative number. */
static int connection(int listener, int out) {
  struct pollfd fds[2] = {{listener, POLLIN, 0}, {out, 0, 0}};
  while (poll(fds, 2, -1) < 0)
    ;
  return fds[0].revents ? accept4(listener, NULL, NULL, SOCK_CLOEXEC) : -1;
}

static void become(char **command, int out, int result, uint64_t spin) {
  dup2(out, 1);
  dup2(result, 3);
  for (uint64_t from = now(); spin && now() - from < spin;)
    ;
  execv(command[0], command);
  _exit(127);
}

int main(int argc, char **argv) {
  if (argc < 5) {
    fprintf(stderr, "usage: stopwatch NAME BOOTS stdout:BYTE|unix:PATH|end CMD [ARG...]\n");
    return 2;
  }
  enum mark mark = !strncmp(argv[3], "stdout:", 7) ? STDOUT : !strncmp(argv[3], "unix:", 5) ? UNIX : END;
  const char *spin = getenv("GAUGE_SPIN_NS");
  uint64_t spin_ns = spin ? strtoull(spin, NULL, 10) : 0;
  unsetenv("GAUGE_SPIN_NS");
  int listener = mark == UNIX ? listen_at(argv[3] + 5) : -1;
  /* Whatever is timed, the stopwatch runs the moment it is woken. */
  need(sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &(struct sched_param){.sched_priority = 1}) == 0, "SCHED_FIFO");
  for (int left = atoi(argv[2]); left > 0; left--) {
    int out[2], result[2], status = -1;
    char origin[32], answer[65536];
    /* above 3, which the child puts its own descriptor at */
    int spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    need(pipe2(out, O_CLOEXEC) == 0 && pipe2(result, O_CLOEXEC) == 0, "pipe");
    wait_for_the_period();
    uint64_t start = now(), marker = 0;
    MARK("0");
    snprintf(origin, sizeof origin, "%llu", (unsigned long long)start);
    setenv("NELLY_ORIGIN_NS", origin, 1);
    pid_t child = vfork();
    if (child == 0)
      become(argv + 4, out[1], result[1], spin_ns);
    close(out[1]);
    close(result[1]);
    if (mark == STDOUT && until(out[0], atoi(argv[3] + 7)))
      marker = now();
    if (mark == UNIX) {
      int guest = connection(listener, out[0]);
      if (guest >= 0 && until(guest, -1))
        marker = now();
      close(guest);
      kill(child, SIGTERM);
    }
    while (read(out[0], answer, sizeof answer) > 0)
      ;
    waitpid(child, &status, 0);
    uint64_t end = now();
    MARK("1");
    size_t length = 0;
    for (ssize_t count; (count = read(result[0], answer + length, sizeof answer - 1 - length)) > 0;)
      length += count;
    answer[length] = 0;
    for (char *c = answer; *c; c++)
      if (*c == '\n')
        *c = ' ';
    printf("{\"scenario\":\"%s\",\"start_ns\":%llu,\"marker_ns\":%llu,\"end_ns\":%llu,\"status\":%d,\"result\":%s}\n", argv[1],
           (unsigned long long)start, (unsigned long long)marker, (unsigned long long)end, status, length ? answer : "null");
    fflush(stdout);
    close(out[0]);
    close(result[0]);
    close(spare);
  }
  if (listener >= 0)
    unlink(argv[3] + 5);
}
