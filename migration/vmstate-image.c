/*
 * The image through which snapshot-load reads a checkpoint's device state.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A version 3 qcow2, built once in a memfd, whose one internal snapshot's VM state lies
 * in clusters that never move. A checkpoint overwrites those bytes behind QEMU's back;
 * QEMU reads them afresh at each snapshot-load because it does not cache data clusters.
 * A load expects what a migration stream has and the save of the devices lacks: a
 * configuration section (type 7: be32 length, name of the machine) after the header, and
 * a description (type 6: be32 length; empty here) after the end.
 * Layout by clusters of 64 KiB: 0 header, 1 refcount table, 2 refcounts, 3 active L1
 * (empty), 4 snapshot table, 5 snapshot L1, 6 L2 of the VM state, 7... the VM state.
 * Source: docs/interop/qcow2.txt of QEMU.
 */
#include "migration/vmstate-image.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util/error.h"

#define CLUSTER 65536u
#define DATA_CLUSTERS (VMSTATE_IMAGE_MAX / CLUSTER + 1) /* one for what we add */
#define DATA_OFFSET (7u * CLUSTER)
#define STREAM_HEADER 8 /* magic and version */
#define MACHINE_NAME_MAX 256

static void put(uint8_t **p, uint64_t v, unsigned bytes)
{
    while (bytes--) {
        *(*p)++ = bytes < sizeof(v) ? v >> (8 * bytes) : 0;
    }
}

static void build_header(uint8_t *p)
{
    put(&p, 0x514649fb, 4);   /* magic */
    put(&p, 3, 4);            /* version */
    put(&p, 0, 8);            /* no backing file */
    put(&p, 0, 4);
    put(&p, 16, 4);           /* cluster bits */
    put(&p, CLUSTER, 8);      /* virtual size */
    put(&p, 0, 4);            /* no encryption */
    put(&p, 1, 4);            /* L1 entries */
    put(&p, 3 * CLUSTER, 8);  /* L1 table */
    put(&p, CLUSTER, 8);      /* refcount table */
    put(&p, 1, 4);            /* its clusters */
    put(&p, 1, 4);            /* snapshots */
    put(&p, 4 * CLUSTER, 8);  /* snapshot table */
    put(&p, 0, 24);           /* feature bits */
    put(&p, 4, 4);            /* refcount order: 16 bits */
    put(&p, 104, 4);          /* header length */
}

static void build_snapshot(uint8_t *p)
{
    const uint64_t size = (uint64_t)DATA_CLUSTERS * CLUSTER;
    const size_t tag = strlen(VMSTATE_IMAGE_TAG);

    put(&p, 5 * CLUSTER, 8); /* L1 table */
    put(&p, 2, 4);           /* its entries: disk (none), VM state */
    put(&p, 1, 2);           /* length of id */
    put(&p, tag, 2);
    put(&p, 0, 8 + 8);       /* date, VM clock */
    put(&p, size, 4);
    put(&p, 24, 4);          /* extra data: */
    put(&p, size, 8);        /* VM state size */
    put(&p, CLUSTER, 8);     /* virtual disk size */
    put(&p, UINT64_MAX, 8);  /* icount: none */
    *p++ = '1';
    memcpy(p, VMSTATE_IMAGE_TAG, tag);
}

static void build_image(uint8_t *img)
{
    uint8_t *p;

    build_header(img);
    p = img + CLUSTER;
    put(&p, 2 * CLUSTER, 8);
    p = img + 2 * CLUSTER;
    for (unsigned i = 0; i < 7 + DATA_CLUSTERS; i++) {
        put(&p, 1, 2);
    }
    build_snapshot(img + 4 * CLUSTER);
    p = img + 5 * CLUSTER;
    put(&p, 0, 8);
    put(&p, 6 * CLUSTER, 8);
    p = img + 6 * CLUSTER;
    for (uint64_t i = 0; i < DATA_CLUSTERS; i++) {
        put(&p, (7 + i) * CLUSTER, 8);
    }
}

static bool write_all(int fd, const uint8_t *data, size_t len, off_t at, GError **errp)
{
    while (len > 0) {
        ssize_t n = pwrite(fd, data, len, at);
        if (n < 0 && errno != EINTR) {
            colo_error_set_errno(errp, errno, "device state image");
            return false;
        }
        data += MAX(n, 0);
        len -= MAX(n, 0);
        at += MAX(n, 0);
    }
    return true;
}

int vmstate_image_new(GError **errp)
{
    int fd = memfd_create("qemu-colo-vmstate", MFD_CLOEXEC);
    g_autofree uint8_t *img = g_malloc0(DATA_OFFSET);

    if (fd < 0) {
        colo_error_set_errno(errp, errno, "memfd_create");
        return -1;
    }
    build_image(img);
    if (!write_all(fd, img, DATA_OFFSET, 0, errp) ||
        ftruncate(fd, DATA_OFFSET + DATA_CLUSTERS * CLUSTER) < 0) {
        if (errp && !*errp) {
            colo_error_set_errno(errp, errno, "device state image");
        }
        close(fd);
        return -1;
    }
    return fd;
}

bool vmstate_image_write(int fd, const char *machine, unsigned page_bits, const void *data,
                         size_t len, GError **errp)
{
    static const char bits[] = "configuration/target-page-bits";
    static const uint8_t description[] = {6, 0, 0, 0, 0};
    uint8_t head[STREAM_HEADER + 5 + MACHINE_NAME_MAX + 10 + sizeof(bits)], *p = head;
    size_t name = strlen(machine);

    if (len > VMSTATE_IMAGE_MAX) {
        colo_error_set(errp, "device state of %zu bytes: at most %u are supported", len,
                       VMSTATE_IMAGE_MAX);
        return false;
    }
    if (len < STREAM_HEADER || memcmp(data, "QEVM", 4) != 0 || name > MACHINE_NAME_MAX) {
        colo_error_set(errp, "what the emulator saved is no device state (%zu bytes)", len);
        return false;
    }
    memcpy(p, data, STREAM_HEADER);
    p += STREAM_HEADER;
    put(&p, 7, 1);
    put(&p, name, 4);
    memcpy(p, machine, name);
    p += name;
    if (page_bits) {
        put(&p, 5, 1);
        put(&p, sizeof(bits) - 1, 1);
        memcpy(p, bits, sizeof(bits) - 1);
        p += sizeof(bits) - 1;
        put(&p, 1, 4); /* version */
        put(&p, page_bits, 4);
    }
    off_t at = DATA_OFFSET + (p - head), end = at + len - STREAM_HEADER;
    return write_all(fd, head, p - head, DATA_OFFSET, errp) &&
           write_all(fd, (const uint8_t *)data + STREAM_HEADER, len - STREAM_HEADER, at,
                     errp) &&
           write_all(fd, description, sizeof(description), end, errp);
}
