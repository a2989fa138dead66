/* firstbyte RUNS CMD [ARG...]: runs CMD that many times, one after the other, and prints how long it takes from the start of the
 * process (before vfork) to the first byte on its stdout, and to its end: median (least) of all runs, in milliseconds.
 *
 *     gcc -O2 -o firstbyte firstbyte.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static int rising(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  int runs = argc > 2 ? atoi(argv[1]) : 0;
  if (runs < 1) {
    fprintf(stderr, "usage: firstbyte RUNS CMD [ARG...]\n");
    return 2;
  }
  double *first = calloc(runs, sizeof *first), *end = calloc(runs, sizeof *end);
  for (int i = 0; i < runs; i++) {
    int out[2], status;
    char byte, rest[4096];
    if (pipe2(out, O_CLOEXEC))
      return perror("pipe"), 1;
    double start = now();
    pid_t child = vfork();
    if (child == 0) {
      dup2(out[1], 1);
      execvp(argv[2], argv + 2);
      _exit(127);
    }
    close(out[1]);
    if (read(out[0], &byte, 1) != 1)
      return fprintf(stderr, "firstbyte: no byte from %s\n", argv[2]), 1;
    first[i] = now() - start;
    while (read(out[0], rest, sizeof rest) > 0)
      ;
    waitpid(child, &status, 0);
    end[i] = now() - start;
    close(out[0]);
    usleep(20000);
  }
  qsort(first, runs, sizeof *first, rising);
  qsort(end, runs, sizeof *end, rising);
  printf("first byte %.2f (%.2f) ms, end %.2f (%.2f) ms, %d runs\n", first[runs / 2], first[0], end[runs / 2], end[0], runs);
}
