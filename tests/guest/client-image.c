/*
 * colo-client: the records on a raw disk image, read while no guest runs.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "client.h"
#include "pattern.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * Each slot must be empty or hold a whole record that belongs there, and each record
 * named in @log (may be NULL), or a newer one in its slot, must be there.
 */
int image_check(const char *image, const char *log, bool json)
{
    int fd = open(image, O_RDONLY | O_CLOEXEC);
    uint64_t size, count[2] = {0}, last[2] = {0}, broken = 0, missing = 0, logged = 0, n;
    struct stat st;
    DiskRecord r;
    FILE *f;

    if (fd < 0 || fstat(fd, &st)) {
        fprintf(stderr, "colo-client: %s: %s\n", image, strerror(errno));
        return 1;
    }
    size = st.st_size;
    for (uint64_t i = 0; i < 2 * disk_zone_slots(size); i++) {
        uint64_t at = i * DISK_RECORD_SIZE;

        if (pread(fd, &r, sizeof(r), at) != sizeof(r)) {
            fprintf(stderr, "colo-client: %s: %s\n", image, strerror(errno));
            return 1;
        }
        if (disk_record_zero(&r)) {
            continue;
        }
        if (!disk_record_valid(&r) || r.zone > 1 ||
            disk_record_offset(size, r.zone, r.number) != at) {
            broken++;
            continue;
        }
        count[r.zone]++;
        last[r.zone] = r.number > last[r.zone] ? r.number : last[r.zone];
    }
    f = log ? fopen(log, "r") : NULL;
    if (log && !f) {
        fprintf(stderr, "colo-client: %s: %s\n", log, strerror(errno));
        return 1;
    }
    while (f && fscanf(f, "%" SCNu64, &n) == 1) {
        logged++;
        if (pread(fd, &r, sizeof(r), disk_record_offset(size, 1, n)) != sizeof(r) ||
            !disk_record_valid(&r) || r.zone != 1 || r.number < n) {
            missing++;
        }
    }
    if (f) {
        fclose(f);
    }
    close(fd);
    printf(json ? "{\"ok\":%s,\"background\":%" PRIu64 ",\"background_last\":%" PRIu64
                  ",\"requested\":%" PRIu64 ",\"requested_last\":%" PRIu64
                  ",\"broken\":%" PRIu64 ",\"logged\":%" PRIu64 ",\"missing\":%" PRIu64 "}\n"
                : "ok %s: background %" PRIu64 " (last %" PRIu64 "), requested %" PRIu64
                  " (last %" PRIu64 "), broken %" PRIu64 ", logged %" PRIu64
                  ", missing %" PRIu64 "\n",
           broken || missing ? "false" : "true", count[0], last[0], count[1], last[1], broken,
           logged, missing);
    return broken || missing ? 1 : 0;
}
