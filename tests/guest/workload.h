/*
 * The guest of the tests: what its parts share.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef GUEST_WORKLOAD_H
#define GUEST_WORKLOAD_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PORT_LINES = 7000,
    PORT_ECHO = 7001,
    PORT_UPLOAD = 7002,
    PORT_STREAM = 7003,
    PORT_UDP = 7004,
    PORT_CONTROL = 7005,
    PORT_DISK = 7006,
    PORT_DIAL = 7007,
    PORT_HTTP = 80,
};

/*
 * Knobs (set on the kernel command line or by SET on the control port) and counters.
 * Written by one thread, read by others: relaxed atomics are enough.
 */
typedef struct Workload {
    /* knobs */
    atomic_ullong dirty_mbs;   /* MB/s of guest memory rewritten */
    atomic_ullong check_mbs;   /* MB/s of guest memory verified */
    atomic_ullong disk_rate;   /* background disk records a second */
    atomic_ullong draw_rate;   /* lines a second on the screen */
    /* fixed at start */
    uint64_t region_mib;
    unsigned dirty_threads;
    uint64_t run;
    char disk[64], disk2[64];  /* the second has each record of the first, right after it */
    char read_only[64];        /* device,device,...: blocks that say which they are */
    bool fs;                   /* it holds a file system (fs.c) */
    uint64_t disk_size;        /* 0: no disk */
    /* counters */
    atomic_ullong mem_written, mem_checked, mem_errors;
    atomic_ullong disk_written, disk_checked, disk_errors, disk_acked, ro_checked;
    atomic_ullong conns, tcp_in, tcp_out, udp_count;
    char first_error[160];
    atomic_flag error_taken;
} Workload;

extern Workload workload; /* the program's state: there is one guest */

/* boot.c: what /init of a small system does. Each returns false after it told why. */
bool boot_mounts(void);
void boot_modules(void);
bool boot_network(void);
/* Value of "@key=" on the kernel command line copied to @buf, or false. */
bool boot_arg(const char *key, char *buf, size_t size);
uint64_t boot_arg_number(const char *key, uint64_t dflt);
void boot_poweroff(void) __attribute__((noreturn));

/* memory.c, disk.c, services.c */
void memory_start(void);
void screen_start(void);
bool disk_start(void);
void disk_serve(int listen_fd);
void disk_rest(void); /* no background request is under way, and none will be */
void services_run(void) __attribute__((noreturn));

/* fs.c */
bool fs_start(void);
void fs_stop(void);
bool fs_record_write(unsigned long long n);
int fs_record_read(unsigned long long n);

/* workload.c */
uint64_t now_us(void);
void note_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void start_thread(void *(*fn)(void *), void *arg, int niceness);
/* Answer the control command @line in @out; returns the length. */
size_t control_command(char *line, char *out, size_t size);
int listen_on(int port, int type);

#endif
