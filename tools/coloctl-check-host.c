/*
 * coloctl check: what this host can do.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Features are tried and not looked up by version: a container may forbid what its kernel can.
 */
#include "coloctl-check.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "coloctl-cmdline.h"

#define KERNEL_REMEDY "Linux 6.7 or newer, on both hosts"
#define CONTAINER_REMEDY "allow the system call in the container's or the service's rules"

/* Newer than the headers that we may be built with. */
#define WP_ASYNC (1ull << 15)
typedef struct ScanArg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
} ScanArg;
#define SCAN_IOCTL _IOWR('f', 16, ScanArg)


static void finding_free(gpointer p)
{
    Finding *f = p;

    g_free(f->what);
    g_free(f->found);
    g_free(f->remedy);
    g_free(f);
}

GPtrArray *findings_new(void)
{
    return g_ptr_array_new_with_free_func(finding_free);
}

void finding_add(GPtrArray *list, FindingLevel level, const char *what, const char *remedy,
                 const char *found, ...)
{
    Finding *f = g_new0(Finding, 1);
    va_list ap;

    va_start(ap, found);
    f->found = g_strdup_vprintf(found, ap);
    va_end(ap);
    f->level = level;
    f->what = g_strdup(what);
    f->remedy = level == FINDING_OK ? NULL : g_strdup(remedy);
    g_ptr_array_add(list, f);
}

static void check_pagemap_scan(GPtrArray *list)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    size_t page = sysconf(_SC_PAGESIZE);
    char *area = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ScanArg arg = {.size = sizeof(arg), .start = (uintptr_t)area, .end = (uintptr_t)area + page,
                   .category_mask = 1 << 3 /* present */, .return_mask = 1 << 3};
    int r = fd < 0 || area == MAP_FAILED ? -1 : ioctl(fd, SCAN_IOCTL, &arg);

    finding_add(list, r < 0 ? FINDING_FAIL : FINDING_OK, "PAGEMAP_SCAN", KERNEL_REMEDY, "%s",
                r < 0 ? g_strerror(errno) : "works");
    if (fd >= 0) {
        close(fd);
    }
    if (area != MAP_FAILED) {
        munmap(area, page);
    }
}

static void check_userfaultfd(GPtrArray *list)
{
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API, .features = WP_ASYNC};

    if (fd < 0) {
        finding_add(list, FINDING_FAIL, "userfaultfd", CONTAINER_REMEDY, "%s",
                    g_strerror(errno));
        return;
    }
    bool ok = ioctl(fd, UFFDIO_API, &api) == 0 && (api.features & WP_ASYNC);
    finding_add(list, ok ? FINDING_OK : FINDING_FAIL, "userfaultfd", KERNEL_REMEDY,
                ok ? "with asynchronous write protection"
                   : "without asynchronous write protection");
    close(fd);
}

static void check_pidfd(GPtrArray *list)
{
    int pidfd = syscall(SYS_pidfd_open, getpid(), 0);
    int fd = pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, STDERR_FILENO, 0);

    finding_add(list, fd < 0 ? FINDING_FAIL : FINDING_OK, "pidfd_getfd", CONTAINER_REMEDY, "%s",
                fd < 0 ? g_strerror(errno) : "works");
    if (pidfd >= 0) {
        close(pidfd);
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* As qemu-colo does with its emulator: a child that did nothing to allow it. */
static void check_ptrace(GPtrArray *list)
{
    g_autofree char *scope = NULL;
    pid_t pid = fork();
    int status;

    if (pid == 0) {
        pause();
        _exit(0);
    }
    long r = pid > 0 ? ptrace(PTRACE_SEIZE, pid, NULL, NULL) : -1;
    int e = errno;
    if (pid > 0) {
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
    }
    g_file_get_contents("/proc/sys/kernel/yama/ptrace_scope", &scope, NULL, NULL);
    finding_add(list, r < 0 ? FINDING_FAIL : FINDING_OK, "ptrace of a child",
                "run as root, set kernel.yama.ptrace_scope=1, or allow CAP_SYS_PTRACE",
                "%s (ptrace_scope %s)", r < 0 ? g_strerror(e) : "works",
                scope ? g_strchomp(scope) : "absent");
}

/* In a child, as it cannot be taken back everywhere. */
static void check_priority(GPtrArray *list)
{
    pid_t pid = fork();
    int status = -1;

    if (pid == 0) {
        struct sched_param rt = {.sched_priority = sched_get_priority_min(SCHED_RR)};
        _exit(sched_setscheduler(0, SCHED_RR, &rt) == 0 ? 0 : 1);
    }
    bool ok = pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
    finding_add(list, ok ? FINDING_OK : FINDING_WARN, "real-time threads",
                "run as root, or allow CAP_SYS_NICE: else pauses are longer on a busy host",
                ok ? "allowed" : "not allowed");
}

static void check_kernel(GPtrArray *list)
{
    struct utsname u;
    int major = 0, minor = 0;

    if (uname(&u) != 0) {
        return;
    }
    char *dot;
    major = strtol(u.release, &dot, 10);
    minor = *dot == '.' ? atoi(dot + 1) : 0;
    bool ok = strcmp(u.machine, "x86_64") == 0 && (major > 6 || (major == 6 && minor >= 7));
    finding_add(list, ok ? FINDING_OK : FINDING_FAIL, "kernel",
                KERNEL_REMEDY ", on x86_64", "%s %s, %s", u.sysname, u.release, u.machine);
    check_pagemap_scan(list);
    check_userfaultfd(list);
    check_pidfd(list);
    check_ptrace(list);
    check_priority(list);
}

static int64_t meminfo(const char *key)
{
    g_autofree char *text = NULL;

    g_file_get_contents("/proc/meminfo", &text, NULL, NULL);
    g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);
    for (char **l = lines; *l; l++) {
        if (g_str_has_prefix(*l, key) && (*l)[strlen(key)] == ':') {
            return g_ascii_strtoll(*l + strlen(key) + 1, NULL, 10) * 1024;
        }
    }
    return -1;
}

static void check_memory(const VmConf *c, GPtrArray *list)
{
    int64_t guest = vm_conf_memory(c), need = 2 * guest + (256 << 20);
    int64_t have = meminfo("MemAvailable");
    g_autofree char *a = ctl_bytes(have), *b = ctl_bytes(need), *all =
        ctl_bytes(meminfo("MemTotal"));

    finding_add(list, meminfo("MemTotal") < need ? FINDING_FAIL
                      : have < need ? FINDING_WARN : FINDING_OK, "memory",
                "a secondary needs twice the guest's memory: a smaller [vm] memory, or more RAM",
                "%s of %s available, a secondary needs %s", a, all, b);
}

char *emulator_version(const VmConf *c)
{
    const char *emulator = c->emulator ? c->emulator : "qemu-system-x86_64";
    const char *argv[] = {emulator, "-version", NULL};
    g_autofree char *out = NULL;

    if (!g_spawn_sync(NULL, (char **)argv, NULL,
                      G_SPAWN_SEARCH_PATH | G_SPAWN_STDERR_TO_DEV_NULL, NULL, NULL, &out, NULL,
                      NULL, NULL) || !out || !*out) {
        return NULL;
    }
    *strchrnul(out, '\n') = 0;
    return ctl_clean(out, 200);
}

/* Whether the emulator can make the machine: it is let try, without disks and cards. */
static void check_machine(const VmConf *c, GPtrArray *list)
{
    bool kvm = strcmp(c->accel, "kvm") == 0 && access("/dev/kvm", R_OK | W_OK) == 0;
    const char *emulator = c->emulator ? c->emulator : "qemu-system-x86_64";
    const char *cpu = strcmp(c->cpu, "host") == 0 && !kvm ? "max" : c->cpu;
    const char *argv[] = {emulator, "-machine", c->machine, "-accel", kvm ? "kvm" : "tcg", "-cpu",
                          cpu, "-smp", c->smp, "-nodefaults", "-display", "none", "-S", "-qmp",
                          "stdio", NULL};
    g_autoptr(GError) err = NULL;
    g_autofree char *out = NULL, *said = NULL;
    g_autoptr(GSubprocess) p = g_subprocess_newv(
        argv, G_SUBPROCESS_FLAGS_STDIN_PIPE | G_SUBPROCESS_FLAGS_STDOUT_PIPE |
        G_SUBPROCESS_FLAGS_STDERR_PIPE, &err);
    bool ok = p && g_subprocess_communicate_utf8(
        p, "{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"quit\"}\n", NULL, &out, &said,
        &err) && g_subprocess_get_successful(p);
    g_autofree char *why = ok ? NULL : ctl_clean(err ? err->message : g_strstrip(said), 300);

    finding_add(list, ok ? FINDING_OK : FINDING_FAIL, "machine", "[vm] machine, cpu and smp: what "
                "there is the emulator tells by -machine help and -cpu help", "%s, %s, %s%s%s",
                c->machine, c->cpu, c->smp, ok ? "" : ": ", ok ? "" : why);
}

static void check_programs(const VmConf *c, GPtrArray *list)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *program = vm_find_program(c, &err);
    g_autofree char *img = g_find_program_in_path("qemu-img");
    g_autofree char *version = emulator_version(c);

    finding_add(list, program ? FINDING_OK : FINDING_FAIL, "qemu-colo", "install it, or name it "
                "in [run] qemu-colo", "%s, coloctl %s", program ? program : err->message,
                COLO_VERSION);
    finding_add(list, version ? FINDING_OK : FINDING_FAIL, "emulator",
                "install it (Debian: qemu-system-x86), or name it in [vm] emulator", "%s%s",
                version ? version : c->emulator ? c->emulator : "qemu-system-x86_64",
                version ? "" : " cannot be run");
    if (version) {
        check_machine(c, list);
    }
    finding_add(list, img ? FINDING_OK : FINDING_FAIL, "qemu-img",
                "install it (Debian: qemu-utils)", "%s", img ? img : "not found");
    if (strcmp(c->accel, "kvm") == 0) {
        bool ok = access("/dev/kvm", R_OK | W_OK) == 0;
        finding_add(list, ok ? FINDING_OK : FINDING_WARN, "KVM",
                    "without it the guest is slow: switch virtualisation on in the firmware, load "
                    "kvm_intel or kvm_amd, or join group kvm; give both hosts the same",
                    "/dev/kvm: %s", ok ? "usable" : g_strerror(errno));
    }
}

static void check_clock(GPtrArray *list)
{
    struct timex t = {0};
    int r = adjtimex(&t);
    bool ok = r >= 0 && r != TIME_ERROR && !(t.status & STA_UNSYNC);

    finding_add(list, ok ? FINDING_OK : FINDING_WARN, "clock",
                "run a time service (chrony, systemd-timesyncd): the guest's clock follows the "
                "host's after a takeover", "%s", ok ? "synchronised" : "not synchronised");
}

void check_host(const VmConf *c, GPtrArray *list)
{
    check_kernel(list);
    check_programs(c, list);
    check_memory(c, list);
    check_clock(list);
}
