/*
 * The format of an image whose options do not name it.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A guest that owns a raw image could write another format's header into it, and a later
 * probe would then open files of the guest's choice. As in QEMU, an image found to be raw
 * by probing is therefore not allowed to become something else.
 */
#include "block-int.h"

#include <fcntl.h>
#include <unistd.h>

typedef struct ProbeMagic {
    const char *format;
    size_t offset;
    size_t len;
    const char *bytes;
} ProbeMagic;

static const ProbeMagic magics[] = {
    {"qcow2", 0, 8, "QFI\xfb\0\0\0\2"},
    {"qcow2", 0, 8, "QFI\xfb\0\0\0\3"},
    {"qcow", 0, 8, "QFI\xfb\0\0\0\1"},
    {"qed", 0, 4, "QED\0"},
    {"vmdk", 0, 4, "KDMV"},
    {"vmdk", 0, 4, "COWD"},
    {"vmdk", 0, 21, "# Disk DescriptorFile"},
    {"vdi", 64, 4, "\x7f\x10\xda\xbe"},
    {"vhdx", 0, 8, "vhdxfile"},
    {"vpc", 0, 8, "conectix"},
    {"parallels", 0, 16, "WithoutFreeSpace"},
    {"parallels", 0, 16, "WithouFreSpacExt"},
    {"luks", 0, 6, "LUKS\xba\xbe"},
    {"bochs", 0, 22, "Bochs Virtual HD Image"},
};

static const char *probe_bytes(const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < G_N_ELEMENTS(magics); i++) {
        const ProbeMagic *m = &magics[i];

        if (m->offset + m->len <= len && !memcmp(data + m->offset, m->bytes, m->len)) {
            return m->format;
        }
    }
    return NULL;
}

bool block_probe_matches(const uint8_t *data, size_t len)
{
    return probe_bytes(data, len) != NULL;
}

const char *block_probe(const char *filename, GError **errp)
{
    uint8_t head[512] = {0};
    int fd = open(filename, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0) {
        colo_error_set_errno(errp, errno, "cannot open image '%s'", filename);
        return NULL;
    }
    ssize_t n = pread(fd, head, sizeof(head), 0);
    int err = errno;
    close(fd);
    if (n < 0) {
        colo_error_set_errno(errp, err, "cannot read image '%s'", filename);
        return NULL;
    }
    const char *format = probe_bytes(head, sizeof(head));
    return format ? format : "raw";
}
