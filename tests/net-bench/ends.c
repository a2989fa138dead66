/* ends serve PORT | crr ADDRESS PORT COUNT | work ADDRESS PORT
 *
 * What tests/net-bench/run has on both sides of a network:
 *   serve  takes connections at a port of every address, one after another: reads a byte, writes a byte, closes
 *   crr    COUNT times: connects, writes a byte, reads a byte, waits for the end
 *   work   asks for a line of a shell over a connection, runs it, writes its output back and closes; for ever
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static struct sockaddr_in place(const char *address, const char *port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1) {
        fprintf(stderr, "ends: %s is no address\n", address);
        exit(2);
    }
    return to;
}

static int dial(const struct sockaddr_in *to)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket");
    if (connect(fd, (const struct sockaddr *)to, sizeof *to)) {
        close(fd);
        return -1;
    }
    return fd;
}

static void serve(const char *port)
{
    struct sockaddr_in at = place("0.0.0.0", port);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 128))
        fail("listen");
    for (;;) {
        char byte;
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            fail("accept");
        if (read(fd, &byte, 1) == 1 && write(fd, &byte, 1) != 1)
            perror("write");
        close(fd);
    }
}

static void crr(const struct sockaddr_in *to, int count)
{
    for (int turn = 0; turn < count; turn++) {
        char byte = 'x';
        int fd = dial(to);
        if (fd < 0)
            fail("connect");
        if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 0) {
            fprintf(stderr, "ends: turn %d was cut\n", turn);
            exit(1);
        }
        close(fd);
    }
    printf("{\"turns\": %d}\n", count);
}

static void work(const struct sockaddr_in *to)
{
    for (;;) {
        char line[1024], command[1200];
        ssize_t length = 0, got;
        int fd = dial(to);
        if (fd < 0) {
            usleep(100000);
            continue;
        }
        while ((got = read(fd, line + length, sizeof line - 1 - length)) > 0 && !memchr(line, '\n', length += got))
            ;
        line[length] = 0;
        line[strcspn(line, "\n")] = 0;
        snprintf(command, sizeof command, "%s", line);
        if (dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
            fail("dup2");
        close(fd);
        if (system(command))
            printf("ends: %s failed\n", command);
        fflush(stdout);
        /* The end of the answer. */
        if (!freopen("/dev/console", "w", stdout) || !freopen("/dev/console", "w", stderr))
            exit(1);
    }
}

int main(int count, char **words)
{
    if (count == 3 && !strcmp(words[1], "serve"))
        serve(words[2]);
    if (count == 5 && !strcmp(words[1], "crr")) {
        struct sockaddr_in to = place(words[2], words[3]);
        crr(&to, atoi(words[4]));
        return 0;
    }
    if (count == 4 && !strcmp(words[1], "work")) {
        struct sockaddr_in to = place(words[2], words[3]);
        work(&to);
    }
    fprintf(stderr, "usage: ends serve PORT | crr ADDRESS PORT COUNT | work ADDRESS PORT\n");
    return 2;
}
