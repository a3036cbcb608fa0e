/*
 * The guest of the tests: mounts, modules, address.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * No udev: the modules of the devices that are there are loaded by the lists that the
 * builder put in /modules, one list a kind of device. Fast boot matters: the tests boot
 * hundreds of guests under emulation.
 */
#include "workload.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char cmdline[4096];

bool boot_mounts(void)
{
    int fd;
    ssize_t n;

    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    if (mount("proc", "/proc", "proc", 0, NULL) || mount("sys", "/sys", "sysfs", 0, NULL) ||
        (mount("dev", "/dev", "devtmpfs", 0, NULL) && errno != EBUSY)) {
        printf("guest: mount: %s\n", strerror(errno));
        return false;
    }
    fd = open("/proc/cmdline", O_RDONLY);
    n = fd < 0 ? -1 : read(fd, cmdline, sizeof(cmdline) - 1);
    if (n < 0) {
        printf("guest: /proc/cmdline: %s\n", strerror(errno));
        return false;
    }
    close(fd);
    cmdline[n] = '\0';
    cmdline[strcspn(cmdline, "\n")] = '\0';
    return true;
}

bool boot_arg(const char *key, char *buf, size_t size)
{
    size_t len = strlen(key);

    for (const char *p = cmdline; *p; p += strcspn(p, " "), p += strspn(p, " ")) {
        if (!strncmp(p, key, len) && p[len] == '=') {
            snprintf(buf, size, "%.*s", (int)strcspn(p + len + 1, " "), p + len + 1);
            return true;
        }
    }
    return false;
}

uint64_t boot_arg_number(const char *key, uint64_t dflt)
{
    char buf[32];

    return boot_arg(key, buf, sizeof(buf)) ? strtoull(buf, NULL, 0) : dflt;
}

static void load_list(const char *name)
{
    char path[256], line[200];
    FILE *list;

    snprintf(path, sizeof(path), "/modules/%s.list", name);
    list = fopen(path, "r");
    if (!list) {
        printf("guest: %s: %s\n", path, strerror(errno));
        return;
    }
    while (fgets(line, sizeof(line), list)) {
        int fd;

        line[strcspn(line, "\n")] = '\0';
        snprintf(path, sizeof(path), "/modules/%s", line);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)) {
            printf("guest: module %s: %s\n", line, strerror(errno));
        }
        if (fd >= 0) {
            close(fd);
        }
    }
    fclose(list);
}

static unsigned sysfs_hex(const char *device, const char *attr)
{
    char path[300];
    unsigned value = 0;
    FILE *f;

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", device, attr);
    f = fopen(path, "r");
    if (f) {
        if (fscanf(f, "%x", &value) != 1) {
            value = 0;
        }
        fclose(f);
    }
    return value;
}

void boot_modules(void)
{
    bool virtio = false, e1000 = false, rtl = false, ide = false, ahci = false, scsi = false;
    char more[64] = "";
    DIR *dir = opendir("/sys/bus/pci/devices");
    struct dirent *e;

    while (dir && (e = readdir(dir))) {
        unsigned vendor, device, class;

        if (e->d_name[0] == '.') {
            continue;
        }
        vendor = sysfs_hex(e->d_name, "vendor");
        device = sysfs_hex(e->d_name, "device");
        class = sysfs_hex(e->d_name, "class") >> 8;
        virtio |= vendor == 0x1af4;
        e1000 |= vendor == 0x8086 && device >= 0x1000 && device < 0x1100;
        rtl |= vendor == 0x10ec && device == 0x8139;
        scsi |= vendor == 0x1af4 && (device == 0x1004 || device == 0x1048);
        ide |= class == 0x0101;
        ahci |= class == 0x0106;
    }
    if (dir) {
        closedir(dir);
    }
    if (virtio) {
        load_list("virtio");
    }
    if (scsi) {
        load_list("scsi");
    }
    if (e1000) {
        load_list("e1000");
    }
    if (rtl) {
        load_list("rtl8139");
    }
    if (workload.fs) {
        load_list("ext4");
    }
    /* Probing an empty IDE controller costs seconds: only where a disk is expected on it. */
    if (boot_arg_number("colo.ata", 1)) {
        if (ide) {
            load_list("ide");
        }
        if (ahci) {
            load_list("ahci");
        }
    }
    if (boot_arg("colo.read-only", more, sizeof(more)) && strstr(more, "/sr")) {
        load_list("cdrom");
    }
}

static void sysctl_set(const char *name, const char *value)
{
    char path[128];
    int fd;

    snprintf(path, sizeof(path), "/proc/sys/%s", name);
    fd = open(path, O_WRONLY);
    if (fd >= 0) {
        if (write(fd, value, strlen(value)) < 0) {
            printf("guest: %s: %s\n", path, strerror(errno));
        }
        close(fd);
    }
}

static bool set_address(int fd, struct ifreq *ifr, unsigned long request, const char *what,
                        const char *text)
{
    struct sockaddr_in *sin = (struct sockaddr_in *)&ifr->ifr_addr;

    memset(sin, 0, sizeof(*sin));
    sin->sin_family = AF_INET;
    if (inet_pton(AF_INET, text, &sin->sin_addr) != 1 || ioctl(fd, request, ifr)) {
        printf("guest: %s=%s on %s: %s\n", what, text, ifr->ifr_name, strerror(errno));
        return false;
    }
    return true;
}

static bool interface_up(int fd, const char *name)
{
    struct ifreq ifr = {0};

    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
    if (ioctl(fd, SIOCGIFFLAGS, &ifr)) {
        return false;
    }
    ifr.ifr_flags |= IFF_UP | IFF_RUNNING;
    return ioctl(fd, SIOCSIFFLAGS, &ifr) == 0;
}

bool boot_network(void)
{
    char ip[32] = "", mask[32] = "255.255.255.0", gw[32] = "";
    struct ifreq ifr = {0};
    struct rtentry rt = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool ok = true;

    if (!boot_arg_number("colo.ipv6", 0)) {
        sysctl_set("net/ipv6/conf/all/disable_ipv6", "1");
        sysctl_set("net/ipv6/conf/default/disable_ipv6", "1");
    }
    sysctl_set("net/core/somaxconn", "4096");
    sysctl_set("net/ipv4/tcp_max_syn_backlog", "4096");
    /* Timestamps stay on as in any guest: they are compared and rewritten by the proxy. */
    interface_up(fd, "lo");
    if (!boot_arg("colo.ip", ip, sizeof(ip))) {
        printf("guest: no colo.ip=, no network\n");
        close(fd);
        return true;
    }
    boot_arg("colo.mask", mask, sizeof(mask));
    boot_arg("colo.gw", gw, sizeof(gw));
    for (int i = 0; i < 500 && !interface_up(fd, "eth0"); i++) {
        usleep(10000);
    }
    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "eth0");
    ok = set_address(fd, &ifr, SIOCSIFADDR, "colo.ip", ip) &&
         set_address(fd, &ifr, SIOCSIFNETMASK, "colo.mask", mask);
    if (ok && gw[0]) {
        struct sockaddr_in *dst = (struct sockaddr_in *)&rt.rt_dst;
        struct sockaddr_in *via = (struct sockaddr_in *)&rt.rt_gateway;

        dst->sin_family = via->sin_family = AF_INET;
        ((struct sockaddr_in *)&rt.rt_genmask)->sin_family = AF_INET;
        rt.rt_flags = RTF_UP | RTF_GATEWAY;
        if (inet_pton(AF_INET, gw, &via->sin_addr) != 1 || ioctl(fd, SIOCADDRT, &rt)) {
            printf("guest: colo.gw=%s: %s\n", gw, strerror(errno));
            ok = false;
        }
    }
    close(fd);
    return ok;
}

void boot_poweroff(void)
{
    if (workload.fs) {
        fs_stop();
    }
    sync();
    reboot(RB_POWER_OFF);
    for (;;) {
        pause();
    }
}
