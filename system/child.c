/*
 * The emulator as our child process.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Guest RAM is ours (plan-memory.c); device state goes out and in through memfds.
 */
#include "system/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migration/vmstate-image.h"
#include "util/error.h"
#include "util/options.h"
#include "util/trace.h"

static int new_memfd(const char *name, GError **errp)
{
    int fd = memfd_create(name, MFD_CLOEXEC);

    if (fd < 0) {
        colo_error_set_errno(errp, errno, "memfd (%s)", name);
    }
    return fd;
}

/* A QMP connection: the child's end is appended to @plan. */
static int add_qmp(Plan *plan, const char *id, int *theirs, GError **errp)
{
    int sv[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0) {
        colo_error_set_errno(errp, errno, "socketpair");
        return -1;
    }
    g_array_append_val(plan->fds, sv[1]);
    *theirs = sv[1];
    plan_arg(plan, "-chardev");
    plan_arg(plan, "socket,id=%s,fd=%d", id, sv[1]);
    plan_arg(plan, "-mon");
    plan_arg(plan, "chardev=%s,mode=control", id);
    return sv[0];
}

/* What QEMU itself would call this machine's RAM: a plain migration, also with a stock
 * emulator, goes by the names of memory. */
static const char *ram_id(const Plan *plan)
{
    static const struct {
        const char *emulator, *machine, *id;
    } ids[] = {
        {"x86_64", "microvm", "microvm.ram"}, {"i386", "microvm", "microvm.ram"},
        {"x86_64", "", "pc.ram"},             {"i386", "", "pc.ram"},
        {"aarch64", "virt", "mach-virt.ram"}, {"arm", "virt", "mach-virt.ram"},
        {"riscv64", "virt", "riscv_virt_board.ram"},
    };
    const char *arch = strrchr(plan->emulator, '-');

    for (unsigned i = 0; arch && i < G_N_ELEMENTS(ids); i++) {
        if (strcmp(arch + 1, ids[i].emulator) == 0 &&
            g_str_has_prefix(plan->machine ? plan->machine : "", ids[i].machine)) {
            return ids[i].id;
        }
    }
    return "qemu-colo-ram";
}

static void add_arguments(Child *c, Plan *plan, const char *incoming)
{
    /* Without any -netdev QEMU would add a NIC with a backend of its own. */
    plan_arg(plan, "-nic");
    plan_arg(plan, "none");
    plan_arg(plan, "-no-shutdown");
    plan_arg(plan, "-name"); /* joins the user's: its threads get names, migration/priority.c */
    plan_arg(plan, "debug-threads=on");
    if (incoming) {
        plan_arg(plan, "-incoming");
        plan_arg(plan, "%s", incoming);
    }
    if (!incoming || plan->start_paused) {
        plan_arg(plan, "-S");
    }
    plan_arg(plan, "-blockdev");
    plan_arg(plan,
             "driver=qcow2,node-name=" CHILD_VMST_NODE ",file.driver=file,"
             "file.filename=/proc/self/fd/%d,file.locking=off", c->vmst_fd);
}

/* In the forked child: nothing here may allocate or lock. */
static void exec_child(Plan *plan, char **argv, pid_t parent)
{
    sigset_t none;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(1);
    }
    for (guint i = 0; i < plan->fds->len; i++) {
        fcntl(g_array_index(plan->fds, int, i), F_SETFD, 0);
    }
    if (plan->qmp_on_stdio) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, STDIN_FILENO);
        dup2(STDERR_FILENO, STDOUT_FILENO);
    }
    signal(SIGPIPE, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execv(plan->emulator, argv);
    _exit(127);
}

bool child_start(Child *c, Plan *plan, const char *incoming, GError **errp)
{
    int their_monitor = -1, their_checkpoint = -1, their_save = -1, their_cont = -1;

    if (c->plan_args) {
        g_ptr_array_set_size(plan->argv, c->plan_args);
        g_array_set_size(plan->fds, c->plan_fds);
    }
    c->plan_args = plan->argv->len;
    c->plan_fds = plan->fds->len;
    if (!plan_memory_open(plan, ram_id(plan), errp)) {
        return false;
    }
    c->state_fd = new_memfd("qemu-colo-state", errp);
    c->vmst_fd = vmstate_image_new(errp);
    if (c->state_fd < 0 || c->vmst_fd < 0) {
        return false;
    }
    c->monitor_fd = add_qmp(plan, "qemu-colo-mon", &their_monitor, errp);
    c->checkpoint_fd = add_qmp(plan, "qemu-colo-ckpt", &their_checkpoint, errp);
    c->save_fd = add_qmp(plan, "qemu-colo-save", &their_save, errp);
    c->cont_fd = add_qmp(plan, "qemu-colo-cont", &their_cont, errp);
    if (c->monitor_fd < 0 || c->checkpoint_fd < 0 || c->save_fd < 0 || c->cont_fd < 0) {
        return false;
    }
    g_array_append_val(plan->fds, c->state_fd);
    g_array_append_val(plan->fds, c->vmst_fd);
    add_arguments(c, plan, incoming);

    g_autoptr(GPtrArray) argv = g_ptr_array_new();
    g_ptr_array_add(argv, plan->emulator);
    for (guint i = 0; i < plan->argv->len; i++) {
        colo_trace(system_child_arg, "%s", (char *)plan->argv->pdata[i]);
        g_ptr_array_add(argv, plan->argv->pdata[i]);
    }
    g_ptr_array_add(argv, NULL);
    pid_t parent = getpid();
    c->pid = fork();
    if (c->pid < 0) {
        colo_error_set_errno(errp, errno, "fork");
        return false;
    }
    if (c->pid == 0) {
        exec_child(plan, (char **)argv->pdata, parent);
    }
    close(their_monitor);
    close(their_checkpoint);
    close(their_save);
    close(their_cont);
    return true;
}

void child_stop(Child *c)
{
    if (c->pid <= 0) {
        return;
    }
    kill(c->pid, SIGTERM);
    for (int i = 0; i < 300; i++) {
        pid_t r = waitpid(c->pid, NULL, WNOHANG);
        if (r == c->pid || (r < 0 && errno == ECHILD)) {
            c->pid = 0;
            return;
        }
        g_usleep(10000);
    }
    kill(c->pid, SIGKILL);
    waitpid(c->pid, NULL, 0);
    c->pid = 0;
}
