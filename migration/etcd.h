/*
 * etcd: the few calls that the witness makes, over its JSON gateway.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Blocking, bounded by a timeout; used by one thread at a time. A call that fails may have
 * been carried out all the same: the caller asks again in a form that bears that.
 */
#ifndef COLO_MIGRATION_ETCD_H
#define COLO_MIGRATION_ETCD_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct Etcd Etcd;

/* A key's value as it was found. */
typedef struct EtcdValue {
    char *text;       /* NULL: there is no such key */
    int64_t revision; /* of its last change */
    int64_t lease;    /* that it goes with, or 0 */
    char *last;       /* of etcd_swap(): value of the companion key, or NULL */
    int64_t last_revision; /* of its last change; 0: there is none */
} EtcdValue;

void etcd_value_clear(EtcdValue *v);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(EtcdValue, etcd_value_clear)

/** @endpoints: URLs separated by ";". @cacert, @cert, @key: PEM files or NULL. */
Etcd *etcd_new(const char *endpoints, const char *cacert, const char *cert, const char *key,
               unsigned timeout_ms, GError **errp);
void etcd_free(Etcd *e);

/** A lease of @ttl_s seconds; 0 with @errp set. */
int64_t etcd_lease_grant(Etcd *e, unsigned ttl_s, GError **errp);

/** *@left_s: seconds that it is good for from now; 0: it has expired. */
bool etcd_lease_keepalive(Etcd *e, int64_t lease, int64_t *left_s, GError **errp);
bool etcd_lease_revoke(Etcd *e, int64_t lease, GError **errp);

/** What is at @key now. */
bool etcd_get(Etcd *e, const char *key, EtcdValue *found, GError **errp);

/**
 * One transaction: if @key's last change is @revision (0: it does not exist; -1: whatever
 * it is), set it to @value with @lease (0: none), or delete it (@value NULL). *@done: it
 * was; then *@revision_out is the change's. Otherwise *@found is what is there.
 *
 * A @value with a lease is also put at "@key/last", without one, in the same transaction:
 * what remains of it when the lease has ended. @last: if that key's last change is another
 * revision, nothing is done (-1: whatever it is).
 */
bool etcd_swap(Etcd *e, const char *key, int64_t revision, int64_t last, const char *value,
               int64_t lease, bool *done, int64_t *revision_out, EtcdValue *found, GError **errp);

/** The cluster that answered last, as it calls itself; "" before. Until the next call. */
const char *etcd_cluster(Etcd *e);

/** The operator's word stands above what was known: any cluster may answer next. */
void etcd_forget_cluster(Etcd *e);

#endif
