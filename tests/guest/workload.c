/*
 * The guest of the tests: /init, knobs and status.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Kernel command line: colo.ip= colo.mask= colo.gw= (static address of eth0),
 * colo.disk=/dev/vda, colo.disk2=/dev/sda (the same records), colo.region=MiB,
 * colo.read-only=/dev/sr0,/dev/vdb (numbered blocks), colo.dirty=MB/s, colo.check=MB/s,
 * colo.threads=N (memory threads), colo.diskrate=records/s, colo.run=N (stamped on disk
 * records), colo.draw=N (lines a second on the screen), colo.fs=1 (the disk holds an ext4),
 * colo.ata=0 (no ATA probing), colo.ipv6=1, colo.shell=1 (a shell on ttyS0).
 * With --local the services run as an ordinary process, for trying them without a guest.
 */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

Workload workload = {.error_taken = ATOMIC_FLAG_INIT};

static uint64_t start_us;
static int port_base; /* of --local: added to each port */

uint64_t now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000ull + ts.tv_nsec / 1000;
}

/* The first error is kept for STATUS; each is told on the console, a few a second. */
void note_error(const char *fmt, ...)
{
    static atomic_ullong last;
    char text[sizeof(workload.first_error)];
    uint64_t now = now_us();
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (!atomic_flag_test_and_set(&workload.error_taken)) {
        memcpy(workload.first_error, text, sizeof(text));
    } else if (now - last < 200000) {
        return;
    }
    last = now;
    printf("COLO-GUEST-ERROR %s\n", text);
}

typedef struct Start {
    void *(*fn)(void *);
    void *arg;
    int niceness;
} Start;

static void *thread_main(void *opaque)
{
    Start s = *(Start *)opaque;

    free(opaque);
    setpriority(PRIO_PROCESS, syscall(SYS_gettid), s.niceness);
    return s.fn(s.arg);
}

void start_thread(void *(*fn)(void *), void *arg, int niceness)
{
    Start *s = malloc(sizeof(*s));
    pthread_attr_t attr;
    pthread_t t;

    *s = (Start){fn, arg, niceness};
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 * 1024);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&t, &attr, thread_main, s)) {
        note_error("thread: %s", strerror(errno));
        free(s);
    }
    pthread_attr_destroy(&attr);
}

int listen_on(int port, int type)
{
    struct sockaddr_in sin = {.sin_family = AF_INET};
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    int one = 1;

    sin.sin_port = htons(port + port_base);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (fd < 0 || bind(fd, (void *)&sin, sizeof(sin)) ||
        ((type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) == SOCK_STREAM && listen(fd, 4096))) {
        printf("guest: port %d: %s\n", port, strerror(errno));
        exit(1);
    }
    return fd;
}

static size_t status(char *out, size_t size)
{
    Workload *w = &workload;

    return snprintf(out, size,
        "{\"uptime_ms\":%llu,\"dirty_mbs\":%llu,\"check_mbs\":%llu,\"disk_rate\":%llu,"
        "\"mem_written\":%llu,\"mem_checked\":%llu,\"mem_errors\":%llu,"
        "\"disk_size\":%llu,\"disk_written\":%llu,\"disk_checked\":%llu,"
        "\"disk_acked\":%llu,\"ro_checked\":%llu,\"disk_errors\":%llu,\"conns\":%llu,\"tcp_in\":%llu,"
        "\"tcp_out\":%llu,\"udp\":%llu,\"errors\":%llu,\"first_error\":\"%s\"}\n",
        (unsigned long long)(now_us() - start_us) / 1000,
        (unsigned long long)w->dirty_mbs, (unsigned long long)w->check_mbs,
        (unsigned long long)w->disk_rate, (unsigned long long)w->mem_written,
        (unsigned long long)w->mem_checked, (unsigned long long)w->mem_errors,
        (unsigned long long)w->disk_size, (unsigned long long)w->disk_written,
        (unsigned long long)w->disk_checked, (unsigned long long)w->disk_acked, (unsigned long long)w->ro_checked,
        (unsigned long long)w->disk_errors, (unsigned long long)w->conns,
        (unsigned long long)w->tcp_in, (unsigned long long)w->tcp_out,
        (unsigned long long)w->udp_count,
        (unsigned long long)(w->mem_errors + w->disk_errors), w->first_error);
}

size_t control_command(char *line, char *out, size_t size)
{
    unsigned long long value;
    char key[32];

    if (!strcmp(line, "STATUS")) {
        return status(out, size);
    }
    if (!strcmp(line, "CLOCK")) {
        return snprintf(out, size, "%llu\n", (unsigned long long)now_us());
    }
    if (!strcmp(line, "POWEROFF")) {
        return snprintf(out, size, "OK\n");
    }
    if (!strncmp(line, "SLEEP", 5)) {
        FILE *how = fopen("/sys/power/mem_sleep", "w"), *f = fopen("/sys/power/state", "w");

        if (how) {
            fputs("deep", how);
            fclose(how);
        }
        int bad = f ? fputs("mem", f) < 0 : 1;
        bad |= f ? fclose(f) != 0 : 1; /* here it sleeps */
        return snprintf(out, size, bad ? "ERROR no sleep\n" : "OK\n");
    }
    if (!strncmp(line, "REBOOT", 6)) {
        /* The kernel shuts its devices down while threads still run: their requests would fail. */
        disk_rest();
        sync();
        reboot(RB_AUTOBOOT);
    }
    if (sscanf(line, "SET %31[a-z]=%llu", key, &value) == 2) {
        if (!strcmp(key, "dirty")) {
            workload.dirty_mbs = value;
        } else if (!strcmp(key, "check")) {
            workload.check_mbs = value;
        } else if (!strcmp(key, "diskrate")) {
            workload.disk_rate = value;
        } else if (!strcmp(key, "draw")) {
            workload.draw_rate = value;
        } else {
            return snprintf(out, size, "ERROR SET knows dirty, check, diskrate, draw\n");
        }
        return snprintf(out, size, "OK\n");
    }
    return snprintf(out, size,
                    "ERROR commands: STATUS, CLOCK, SET key=value, SLEEP, REBOOT, POWEROFF\n");
}

static void configure(void)
{
    workload.region_mib = boot_arg_number("colo.region", 64);
    workload.dirty_mbs = boot_arg_number("colo.dirty", 0);
    workload.check_mbs = boot_arg_number("colo.check", 20);
    workload.dirty_threads = boot_arg_number("colo.threads", 1);
    workload.disk_rate = boot_arg_number("colo.diskrate", 0);
    workload.draw_rate = boot_arg_number("colo.draw", 0);
    workload.run = boot_arg_number("colo.run", 1);
    boot_arg("colo.disk", workload.disk, sizeof(workload.disk));
    boot_arg("colo.disk2", workload.disk2, sizeof(workload.disk2));
    boot_arg("colo.read-only", workload.read_only, sizeof(workload.read_only));
    workload.fs = boot_arg_number("colo.fs", 0);
    if (workload.dirty_threads < 1 || workload.dirty_threads > 64) {
        workload.dirty_threads = 1;
    }
}

static void start_shell(void)
{
    if (fork() == 0) {
        setsid();
        execl("/bin/busybox", "sh", (char *)NULL);
        _exit(127);
    }
}

static void *reaper_thread(void *unused)
{
    for (;;) {
        if (waitpid(-1, NULL, 0) < 0) {
            sleep(1);
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    bool local = argc > 1 && !strcmp(argv[1], "--local");
    int fd;

    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    start_us = now_us();
    if (local) {
        port_base = argc > 2 ? atoi(argv[2]) : 10000;
        if (argc > 3) {
            printf("guest: --local takes one argument, the offset of the ports\n");
            return 1;
        }
        workload.region_mib = 16;
        workload.check_mbs = 20;
        workload.dirty_mbs = 20;
        workload.dirty_threads = 1;
    } else {
        if (getpid() != 1) {
            printf("guest: to be run as /init of a test guest, or with --local\n");
            return 1;
        }
        if (!boot_mounts()) {
            boot_poweroff();
        }
        fd = open("/dev/ttyAMA0", O_RDWR); /* arm64's, else x86's */
        fd = fd >= 0 ? fd : open("/dev/ttyS0", O_RDWR);
        if (fd >= 0) {
            dup2(fd, 0);
            dup2(fd, 1);
            dup2(fd, 2);
        }
        configure();
        boot_modules();
        start_thread(reaper_thread, NULL, 0);
        if (boot_arg_number("colo.shell", 0)) {
            start_shell();
        }
        if (!boot_network() || !disk_start()) {
            printf("COLO-GUEST-FAILED\n");
        }
    }
    memory_start();
    screen_start();
    disk_serve(listen_on(PORT_DISK, SOCK_STREAM));
    services_run();
}
