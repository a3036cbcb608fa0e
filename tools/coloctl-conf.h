/*
 * vm.conf: the file that describes a protected VM.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The same file on both hosts. Every value is read and checked at once, unknown and doubled
 * sections and keys are refused: a typing error must not become a missing option at a takeover. In paths
 * and names of devices "%h" stands for this host's name in [hosts], "%p" for the other's,
 * "%n" for the VM's, "%%" for a per cent sign.
 */
#ifndef COLO_TOOLS_COLOCTL_CONF_H
#define COLO_TOOLS_COLOCTL_CONF_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct VmDisk {
    char *id;
    char *image, *format, *interface;
    char *active, *hidden; /* NULL until a host is chosen: then beside the state */
    bool shared;
} VmDisk;

typedef enum VmNetKind { VM_NET_TAP, VM_NET_BRIDGE, VM_NET_USER } VmNetKind;

typedef struct VmNet {
    char *id;
    VmNetKind kind;
    char *device; /* tap's or bridge's name, or options of user */
    char *model, *mac;
} VmNet;

#define VM_NETS_MAX 16

typedef struct VmHost {
    char *name;
    char **addresses; /* [0]: the COLO network; all: links of the heartbeat */
} VmHost;

typedef struct VmConf {
    char *file;
    char *name, *emulator, *machine, *accel, *cpu, *memory, *smp;
    char **args;
    GPtrArray *disks; /* VmDisk, in the order of the file */
    GPtrArray *nets;  /* VmNet */
    VmHost hosts[2];
    int local; /* index of this host, -1 until chosen */

    int prefer; /* index of the host that is primary at the very first start */
    unsigned port_base;
    bool auto_protect;
    char *auto_sync;
    GPtrArray *colo;    /* "key=value" for -colo: arbiter, channels, mode, ... */
    char *colo_options; /* more of them, as written, or NULL */
    uint64_t channels;
    char *compression, *tls_dir; /* or NULL */
    bool heartbeat;
    uint64_t heartbeat_interval, heartbeat_timeout; /* ms, 0: default */
    char *key_file;

    char *state_dir, *run_dir, *program;
} VmConf;

/** Read and check @file; NULL with @errp naming file, section, key, value and expectation. */
VmConf *vm_conf_load(const char *file, GError **errp);
void vm_conf_free(VmConf *c);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmConf, vm_conf_free)

/** Whether there is such a key. */
bool vm_conf_knows(const char *section, const char *key);

/** Become host @name, or, where it is NULL, the one whose address this machine has. Fills in
 * what depends on it. */
bool vm_conf_choose_host(VmConf *c, const char *name, GError **errp);

/** Peer of the chosen host. */
const VmHost *vm_conf_peer(const VmConf *c);
const VmHost *vm_conf_self(const VmConf *c);

/** Ports, all from port-base. */
typedef enum VmPort {
    VM_PORT_COMPARE_IN = 1, VM_PORT_MIRROR = 3, VM_PORT_COMPARE = 4, VM_PORT_COMPARE_OUT = 5,
    VM_PORT_CHECK = 995, VM_PORT_HEARTBEAT = 996, VM_PORT_PAIR = 997, VM_PORT_MIGRATE = 998,
    VM_PORT_NBD = 999,
} VmPort;
unsigned vm_conf_port(const VmConf *c, VmPort port);

/** VM_PORT_COMPARE_IN to _OUT of network card number @n. */
unsigned vm_conf_net_port(const VmConf *c, VmPort port, unsigned n);

/** All ports (unsigned) that one side or the other listens on. Caller unrefs. */
GArray *vm_conf_listeners(const VmConf *c);

/** RAM in bytes, by "1G", "512M", "512" (MiB). */
uint64_t vm_conf_memory(const VmConf *c);

/** A socket in the run dir. Caller frees. */
char *vm_conf_socket(const VmConf *c, const char *name);

#endif
