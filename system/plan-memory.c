/*
 * Guest RAM of the command line: memory backends as files that we hold open too.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * We must have guest RAM mapped before the emulator does, so that it can be sealed against
 * punched holes. So every memory-backend-ram, -memfd and -file becomes a memory-backend-file
 * on a descriptor of ours, with the same size, kind of pages, host nodes and the rest.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "system/plan.h"
#include "util/error.h"
#include "util/options.h"

#define HUGETLBFS_TYPE 0x958458f6

#define DEFAULT_RAM (128ull << 20)
#define THP_SIZE (2u << 20) /* transparent huge pages of most hosts */

static bool read_size(Plan *plan, const CmdLine *cl, GError **errp)
{
    plan->ram_size = DEFAULT_RAM;
    for (guint i = 0; i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);

        if (strcmp(o->name, "m") != 0 || !o->arg) {
            continue;
        }
        g_autoptr(JsonObject) m = options_parse(o->arg, "size", errp);
        if (!m || !options_get_size(m, "size", 1 << 20, &plan->ram_size, errp)) {
            g_prefix_error(errp, "-m %s: ", o->arg);
            return false;
        }
        if (json_object_has_member(m, "maxmem") || json_object_has_member(m, "slots")) {
            colo_error_set(errp, "-m %s: memory hotplug (slots, maxmem) cannot be replicated",
                           o->arg);
            return false;
        }
    }
    plan->ram_size = (plan->ram_size + 8191) & ~8191ull;
    return true;
}

bool plan_memory(Plan *plan, const CmdLine *cl, GError **errp)
{
    g_autofree char *machine = cmdline_find(cl, "machine", "type", "memory-backend");
    g_autofree char *short_form = cmdline_find(cl, "M", "type", "memory-backend");
    const char *id = machine ? machine : short_form;

    plan->memory = g_array_new(FALSE, TRUE, sizeof(MigrationMemory));
    plan->memory_objects = g_ptr_array_new_with_free_func((GDestroyNotify)json_object_unref);
    plan->numa = g_string_new(NULL);
    plan->machine_memory = id != NULL;
    if (!read_size(plan, cl, errp)) {
        return false;
    }
    for (guint i = 0; id && i < cl->options->len; i++) {
        const CmdOption *o = &g_array_index(cl->options, CmdOption, i);
        g_autoptr(JsonObject) obj = !strcmp(o->name, "object") && o->arg
                                        ? options_parse(o->arg, "qom-type", NULL) : NULL;
        if (obj && strcmp(options_get_str(obj, "id", ""), id) == 0) {
            return true;
        }
    }
    if (id) {
        colo_error_set(errp, "-machine memory-backend=%s: there is no -object of that id", id);
    }
    return id == NULL;
}

bool plan_is_memory(const char *qom_type)
{
    return g_str_has_prefix(qom_type, "memory-backend-");
}

/* A memfd, of huge pages where @page_size is not 4096. */
static int new_memfd(const char *id, bool huge, uint64_t page_size, GError **errp)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;

    if (huge) {
        flags |= MFD_HUGETLB | (unsigned)__builtin_ctzll(page_size) << MFD_HUGE_SHIFT;
    }
    int fd = memfd_create(id, flags);
    if (fd < 0) {
        colo_error_set_errno(errp, errno, "memfd of %" G_GUINT64_FORMAT " KiB pages",
                             page_size >> 10);
    }
    return fd;
}

/* The file itself, or an unlinked one in the directory @path, as the emulator does it. */
static int open_path(const char *path, GError **errp)
{
    int fd;

    if (g_file_test(path, G_FILE_TEST_IS_DIR)) {
        g_autofree char *name = g_build_filename(path, "qemu-colo-XXXXXX", NULL);
        fd = g_mkstemp_full(name, O_RDWR | O_CLOEXEC, 0600);
        if (fd >= 0) {
            unlink(name);
        }
    } else {
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    }
    if (fd < 0) {
        colo_error_set_errno(errp, errno, "mem-path %s", path);
    }
    return fd;
}

static bool set_size(MigrationMemory *pm, GError **errp)
{
    struct statfs fs;
    struct stat st;

    if (fstatfs(pm->fd, &fs) == 0 && (unsigned)fs.f_type == HUGETLBFS_TYPE) {
        pm->page_size = fs.f_bsize;
    }
    if (pm->size == 0 || pm->size % pm->page_size) {
        colo_error_set(errp, "size of %" G_GUINT64_FORMAT " bytes: a multiple of its pages' %"
                       G_GUINT64_FORMAT " is needed", pm->size, pm->page_size);
        return false;
    }
    if (fstat(pm->fd, &st) == 0 && (uint64_t)st.st_size == pm->size) {
        return true;
    }
    if (ftruncate(pm->fd, pm->size) < 0) {
        colo_error_set_errno(errp, errno, "%" G_GUINT64_FORMAT " MiB of guest RAM",
                             pm->size >> 20);
        return false;
    }
    return true;
}

/* Keys by which guest RAM would be something that cannot be replicated. */
static bool check_keys(JsonObject *o, bool file, GError **errp)
{
    static const char *const never[][2] = {
        {"pmem", "persistent memory is not replicated"},
        {"readonly", "guest RAM is written to"},
        {"rom", "guest RAM is written to"},
        {"discard-data", "it would throw away what a takeover needs"},
    };
    bool share = !file; /* memory-backend-memfd is shared if nothing else is said */

    for (unsigned i = 0; i < G_N_ELEMENTS(never); i++) {
        bool on = false;
        if (!options_get_bool(o, never[i][0], &on, errp)) {
            return false;
        }
        if (on) {
            colo_error_set(errp, "%s=on: %s", never[i][0], never[i][1]);
            return false;
        }
    }
    if (json_object_has_member(o, "offset")) {
        colo_error_set(errp, "offset=: part of a file cannot be guest RAM here");
        return false;
    }
    if (!options_get_bool(o, "share", &share, errp)) {
        return false;
    }
    if (!share && strcmp(options_get_str(o, "qom-type", ""), "memory-backend-ram") != 0) {
        colo_error_set(errp, "share=on is needed: private memory cannot be seen from outside");
        return false;
    }
    return true;
}

static void rewrite(Plan *plan, JsonObject *o, const MigrationMemory *pm)
{
    static const char *const gone[] = {"hugetlb", "hugetlbsize", "seal", "pmem", "readonly",
                                       "rom", "discard-data", "align"};

    for (unsigned i = 0; i < G_N_ELEMENTS(gone); i++) {
        json_object_remove_member(o, gone[i]);
    }
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", pm->fd);
    json_object_set_string_member(o, "qom-type", "memory-backend-file");
    json_object_set_string_member(o, "mem-path", path);
    json_object_set_string_member(o, "share", "on");
    if (pm->page_size < THP_SIZE && pm->size >= THP_SIZE) {
        /* The emulator aligns memory of its own so, and asks for huge pages in it. */
        g_autofree char *align = g_strdup_printf("%u", THP_SIZE);
        json_object_set_string_member(o, "align", align);
    }
    g_autofree char *text = options_format(o, "qom-type");
    plan_arg(plan, "-object");
    plan_arg(plan, "%s", text);
}

bool plan_memory_object(Plan *plan, JsonObject *obj, GError **errp)
{
    const char *type = options_get_str(obj, "qom-type", "");
    bool ram = strcmp(type, "memory-backend-ram") == 0;
    bool file = strcmp(type, "memory-backend-file") == 0;

    if (!ram && !file && strcmp(type, "memory-backend-memfd") != 0) {
        colo_error_set(errp, "%s is not replicated; memory-backend-memfd, -file and -ram are",
                       type);
        return false;
    }
    if (file && !options_get_str(obj, "mem-path", NULL)) {
        colo_error_set(errp, "'mem-path' is missing");
        return false;
    }
    if (!check_keys(obj, file, errp)) {
        return false;
    }
    g_ptr_array_add(plan->memory_objects, options_copy(obj));
    return true;
}

static bool open_memory(Plan *plan, JsonObject *obj, GError **errp)
{
    g_autoptr(JsonObject) o = options_copy(obj);
    const char *path = options_get_str(obj, "mem-path", NULL);
    const char *id = options_get_str(obj, "id", "");
    bool file = strcmp(options_get_str(obj, "qom-type", ""), "memory-backend-file") == 0;
    MigrationMemory pm = {.fd = -1, .id = id, .seal = !file};
    uint64_t huge_size = 2 << 20;
    bool huge = false;

    if (!options_get_size(o, "size", 1, &pm.size, errp) ||
        !options_get_bool(o, "hugetlb", &huge, errp) ||
        !options_get_size(o, "hugetlbsize", 1, &huge_size, errp)) {
        return false;
    }
    if (huge && (!huge_size || (huge_size & (huge_size - 1)))) {
        colo_error_set(errp, "hugetlbsize: a power of two is needed");
        return false;
    }
    pm.page_size = huge ? huge_size : 4096;
    pm.fd = file ? open_path(path, errp) : new_memfd(id, huge, pm.page_size, errp);
    if (pm.fd < 0) {
        return false;
    }
    bool reserve = true; /* of huge pages, before the emulator wants them */
    bool ok = set_size(&pm, errp) && options_get_bool(o, "reserve", &reserve, errp) &&
              (pm.page_size == 4096 || !reserve || plan_reserve_huge(&pm, errp));
    g_array_append_val(plan->memory, pm);
    g_array_append_val(plan->fds, pm.fd);
    rewrite(plan, o, &pm);
    return ok;
}

/* Guest RAM that no backend was named for: one of ours. */
static JsonObject *default_backend(const Plan *plan, const char *id)
{
    JsonObject *o = json_object_new();
    g_autofree char *size = g_strdup_printf("%" G_GUINT64_FORMAT, plan->ram_size);

    json_object_set_string_member(o, "qom-type", plan->mem_path ? "memory-backend-file"
                                                                : "memory-backend-memfd");
    json_object_set_string_member(o, "id", id);
    json_object_set_string_member(o, "size", size);
    json_object_set_string_member(o, "x-use-canonical-path-for-ramblock-id", "off");
    if (plan->mem_path) {
        json_object_set_string_member(o, "mem-path", plan->mem_path);
    }
    if (plan->mem_prealloc) {
        json_object_set_string_member(o, "prealloc", "on");
    }
    return o;
}

bool plan_numa(Plan *plan, const char *text, GError **errp)
{
    g_autoptr(JsonObject) n = options_parse(text, "type", errp);

    if (!n) {
        g_prefix_error(errp, "-numa %s: ", text);
        return false;
    }
    if (strcmp(options_get_str(n, "type", ""), "node") == 0 &&
        json_object_has_member(n, "mem")) {
        colo_error_set(errp, "-numa %s: mem= is not replicated; give the node a "
                             "memory-backend-memfd,share=on with memdev=", text);
        return false;
    }
    plan->numa_memory |= json_object_has_member(n, "memdev");
    g_string_append_printf(plan->numa, "%s%s", plan->numa->len ? " " : "", text);
    plan_arg(plan, "-numa");
    plan_arg(plan, "%s", text);
    return true;
}

bool plan_memory_open(Plan *plan, const char *ram_id, GError **errp)
{
    for (guint i = 0; i < plan->memory->len; i++) {
        close(g_array_index(plan->memory, MigrationMemory, i).fd);
    }
    g_array_set_size(plan->memory, 0);
    for (guint i = 0; i < plan->memory_objects->len; i++) {
        JsonObject *o = plan->memory_objects->pdata[i];
        if (!open_memory(plan, o, errp)) {
            g_prefix_error(errp, "-object %s,id=%s: ", options_get_str(o, "qom-type", ""),
                           options_get_str(o, "id", "?"));
            return false;
        }
    }
    /* As the emulator: RAM of the nodes' backends, or of the machine's, or of nobody's. */
    if (!plan->numa_memory && !plan->machine_memory) {
        if (!plan->ram_object) {
            plan->ram_object = default_backend(plan, ram_id);
        }
        plan_arg(plan, "-machine");
        plan_arg(plan, "memory-backend=%s", ram_id);
        if (!open_memory(plan, plan->ram_object, errp)) {
            g_prefix_error(errp, "-m: ");
            return false;
        }
    }
    plan_arg(plan, "-m");
    plan_arg(plan, "%" G_GUINT64_FORMAT "k", plan->ram_size >> 10);
    return true;
}
