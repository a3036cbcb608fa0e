/*
 * etcd: the few calls that the witness makes, over its JSON gateway.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * API: etcd's v3 gateway: POST, JSON, keys and values in base64, 64-bit numbers as text.
 */
#include "migration/etcd.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

#include "util/error.h"
#include "util/options.h"

#define ANSWER_MAX (1u << 20)

struct Etcd {
    char **endpoints;
    char **shown; /* the same without passwords */
    char *cluster;
    unsigned current; /* the one that answered last */
    char *cacert, *cert, *key;
    unsigned timeout_ms;
    CURL *curl;
    struct curl_slist *headers;
};

void etcd_value_clear(EtcdValue *v)
{
    g_clear_pointer(&v->text, g_free);
    g_clear_pointer(&v->last, g_free);
    v->revision = v->lease = v->last_revision = 0;
}

/* What may stand in a log: no password of "http://user:password@host". */
static char *without_password(const char *url)
{
    const char *host = strstr(url, "://");
    const char *at = host ? strrchr(host, '@') : NULL;
    const char *colon = at ? memchr(host + 3, ':', at - host - 3) : NULL;

    return colon ? g_strdup_printf("%.*s:***%s", (int)(colon - url), url, at) : g_strdup(url);
}

Etcd *etcd_new(const char *endpoints, const char *cacert, const char *cert, const char *key,
               unsigned timeout_ms, GError **errp)
{
    static gsize once;

    if (g_once_init_enter(&once)) {
        curl_global_init(CURL_GLOBAL_DEFAULT);
        g_once_init_leave(&once, 1);
    }
    g_auto(GStrv) list = g_strsplit(endpoints, ";", 0);
    for (unsigned i = 0; list[i] || i == 0; i++) {
        if (!list[i] || !(g_str_has_prefix(list[i], "http://") ||
                          g_str_has_prefix(list[i], "https://"))) {
            g_autofree char *shown = without_password(list[i] ? list[i] : "");
            colo_error_set(errp, "witness: '%s': expected http://host:port or "
                           "https://host:port, several with \";\" between", shown);
            return NULL;
        }
    }
    Etcd *e = g_new0(Etcd, 1);
    e->shown = g_new0(char *, g_strv_length(list) + 1);
    for (unsigned i = 0; list[i]; i++) {
        e->shown[i] = without_password(list[i]);
    }
    e->endpoints = g_steal_pointer(&list);
    e->cacert = g_strdup(cacert);
    e->cert = g_strdup(cert);
    e->key = g_strdup(key);
    e->timeout_ms = timeout_ms;
    e->headers = curl_slist_append(NULL, "Content-Type: application/json");
    return e;
}

void etcd_free(Etcd *e)
{
    if (!e) {
        return;
    }
    if (e->curl) {
        curl_easy_cleanup(e->curl);
    }
    curl_slist_free_all(e->headers);
    g_strfreev(e->endpoints);
    g_strfreev(e->shown);
    g_free(e->cluster);
    g_free(e->cacert);
    g_free(e->cert);
    g_free(e->key);
    g_free(e);
}

static size_t on_data(char *data, size_t size, size_t n, void *opaque)
{
    GString *answer = opaque;

    if (answer->len + size * n > ANSWER_MAX) {
        return 0; /* ends the transfer */
    }
    g_string_append_len(answer, data, size * n);
    return size * n;
}

static CURL *handle(Etcd *e)
{
    if (!e->curl) {
        e->curl = curl_easy_init();
    }
    curl_easy_reset(e->curl); /* keeps the connection */
    curl_easy_setopt(e->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e->curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(e->curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(e->curl, CURLOPT_CONNECTTIMEOUT_MS, (long)e->timeout_ms / 2);
    curl_easy_setopt(e->curl, CURLOPT_TIMEOUT_MS, (long)e->timeout_ms);
    curl_easy_setopt(e->curl, CURLOPT_HTTPHEADER, e->headers);
    curl_easy_setopt(e->curl, CURLOPT_WRITEFUNCTION, on_data);
    if (e->cacert) {
        curl_easy_setopt(e->curl, CURLOPT_CAINFO, e->cacert);
    }
    if (e->cert) {
        curl_easy_setopt(e->curl, CURLOPT_SSLCERT, e->cert);
        curl_easy_setopt(e->curl, CURLOPT_SSLKEY, e->key);
    }
    return e->curl;
}

/* Of several endpoints each must be of the cluster that answered first: at another one there
 * would be another owner. (What such a one was asked it has not done: a change names either a
 * revision or a lease that are not its own.) */
static bool same_cluster(Etcd *e, const char *cluster)
{
    if (cluster && e->cluster && strcmp(cluster, e->cluster) != 0) {
        return false;
    }
    if (cluster) {
        g_free(e->cluster);
        e->cluster = g_strdup(cluster);
    }
    return true;
}

/* @stranger: takes the name of a cluster that is another one. */
static JsonObject *call_one(Etcd *e, unsigned which, const char *path, const char *body,
                            char **stranger, GError **errp)
{
    const char *endpoint = e->endpoints[which], *shown = e->shown[which];
    g_autofree char *url = g_strconcat(endpoint, path, NULL);
    g_autoptr(GString) answer = g_string_new(NULL);
    CURL *c = handle(e);
    long status = 0;

    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, answer);
    CURLcode r = curl_easy_perform(c);
    if (r != CURLE_OK) {
        colo_error_set(errp, "witness %s: %s", shown, curl_easy_strerror(r));
        return NULL;
    }
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
    g_autoptr(JsonObject) o =
        answer->str[0] == '{' ? options_parse(answer->str, NULL, NULL) : NULL;
    if (status != 200 || !o) {
        colo_error_set(errp, "witness %s: status %ld: %s", shown, status,
                       o ? options_get_str(o, "error", "?") : "no JSON");
        return NULL;
    }
    JsonObject *result = options_get_obj(o, "result");
    JsonObject *header = options_get_obj(result ? result : o, "header");
    const char *cluster = header ? options_get_str(header, "cluster_id", NULL) : NULL;
    if (!same_cluster(e, cluster)) {
        *stranger = g_strdup(cluster);
        colo_error_set(errp, "witness %s: another etcd cluster than the one that answered before: "
                       "give endpoints of one cluster", shown);
        return NULL;
    }
    return g_steal_pointer(&o);
}

void etcd_forget_cluster(Etcd *e)
{
    g_clear_pointer(&e->cluster, g_free);
}

const char *etcd_cluster(Etcd *e)
{
    return e->cluster ? e->cluster : "";
}

/* Ask the endpoints in turn, the one that worked last first. Takes @body. Where all of them
 * are of one other cluster, the witness was made anew. */
static JsonObject *call(Etcd *e, const char *path, JsonObject *body, GError **errp)
{
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), body);
    g_autofree char *text = json_to_string(node, FALSE);
    g_autofree char *stranger = NULL;
    unsigned n = g_strv_length(e->endpoints), strangers = 0;

    json_object_unref(body);
    for (unsigned i = 0; i < n; i++) {
        unsigned which = (e->current + i) % n;
        g_autofree char *other = NULL;
        bool last = i + 1 == n;
        JsonObject *o = call_one(e, which, path, text, &other, last ? errp : NULL);
        if (o) {
            e->current = which;
            return o;
        }
        strangers += other && (!stranger || strcmp(stranger, other) == 0);
        stranger = stranger ? stranger : g_steal_pointer(&other);
    }
    if (strangers < n) {
        return NULL;
    }
    g_autofree char *other = NULL;
    g_clear_error(errp);
    etcd_forget_cluster(e);
    return call_one(e, e->current, path, text, &other, errp);
}

static int64_t get_i64(JsonObject *o, const char *key)
{
    return o ? g_ascii_strtoll(options_get_str(o, key, "0"), NULL, 10) : 0;
}

static void set_i64(JsonObject *o, const char *key, int64_t v)
{
    g_autofree char *text = g_strdup_printf("%" G_GINT64_FORMAT, v);

    json_object_set_string_member(o, key, text);
}

static void set_b64(JsonObject *o, const char *key, const char *text)
{
    g_autofree char *b64 = g_base64_encode((const guchar *)text, strlen(text));

    json_object_set_string_member(o, key, b64);
}

int64_t etcd_lease_grant(Etcd *e, unsigned ttl_s, GError **errp)
{
    JsonObject *body = json_object_new();

    set_i64(body, "TTL", ttl_s);
    g_autoptr(JsonObject) o = call(e, "/v3/lease/grant", body, errp);
    if (!o) {
        return 0;
    }
    int64_t id = get_i64(o, "ID");
    if (id == 0 || get_i64(o, "TTL") < ttl_s) {
        colo_error_set(errp, "witness: no lease of %u s was granted", ttl_s);
        return 0;
    }
    return id;
}

bool etcd_lease_keepalive(Etcd *e, int64_t lease, int64_t *left_s, GError **errp)
{
    JsonObject *body = json_object_new();

    set_i64(body, "ID", lease);
    g_autoptr(JsonObject) o = call(e, "/v3/lease/keepalive", body, errp);
    JsonObject *result = o ? options_get_obj(o, "result") : NULL;
    if (o && !result) {
        colo_error_set(errp, "witness: unexpected answer");
    }
    *left_s = get_i64(result, "TTL");
    return result != NULL;
}

bool etcd_lease_revoke(Etcd *e, int64_t lease, GError **errp)
{
    JsonObject *body = json_object_new();

    set_i64(body, "ID", lease);
    g_autoptr(JsonObject) o = call(e, "/v3/lease/revoke", body, errp);
    return o != NULL;
}

static JsonObject *compare_revision(const char *key, int64_t revision)
{
    JsonObject *c = json_object_new();

    set_b64(c, "key", key);
    json_object_set_string_member(c, "target", "MOD");
    json_object_set_string_member(c, "result", "EQUAL");
    set_i64(c, "mod_revision", revision); /* 0 is that of a key that is not there */
    return c;
}

static void add_request(JsonArray *to, const char *kind, const char *key, const char *value,
                        int64_t lease)
{
    JsonObject *request = json_object_new(), *op = json_object_new();

    set_b64(op, "key", key);
    if (value) {
        set_b64(op, "value", value);
        set_i64(op, "lease", lease);
    }
    json_object_set_object_member(request, kind, op);
    json_array_add_object_element(to, request);
}

/* {"compare":[...], "success":[...], "failure":[...]} of etcd_swap(). */
static JsonObject *swap_body(const char *key, const char *companion, int64_t revision,
                             int64_t last, const char *value, int64_t lease)
{
    JsonObject *body = json_object_new();
    JsonArray *compare = json_array_new(), *success = json_array_new();
    JsonArray *failure = json_array_new();

    if (revision >= 0) {
        json_array_add_object_element(compare, compare_revision(key, revision));
    }
    if (last >= 0) {
        json_array_add_object_element(compare, compare_revision(companion, last));
    }
    add_request(success, value ? "request_put" : "request_delete_range", key, value, lease);
    if (value && lease) {
        add_request(success, "request_put", companion, value, 0);
    }
    add_request(failure, "request_range", key, NULL, 0);
    add_request(failure, "request_range", companion, NULL, 0);
    json_object_set_array_member(body, "compare", compare);
    json_object_set_array_member(body, "success", success);
    json_object_set_array_member(body, "failure", failure);
    return body;
}

static JsonObject *nth_object(JsonObject *o, const char *member, guint i)
{
    JsonNode *n = o ? json_object_get_member(o, member) : NULL;

    if (!n || !JSON_NODE_HOLDS_ARRAY(n) || json_array_get_length(json_node_get_array(n)) <= i) {
        return NULL;
    }
    n = json_array_get_element(json_node_get_array(n), i);
    return JSON_NODE_HOLDS_OBJECT(n) ? json_node_get_object(n) : NULL;
}

/* The first of a range's answers, if there is one. */
static void read_range(JsonObject *range, EtcdValue *found)
{
    JsonObject *kv = nth_object(range, "kvs", 0);

    if (kv) {
        gsize len = 0;
        g_autofree guchar *text = g_base64_decode(options_get_str(kv, "value", ""), &len);
        found->text = g_strndup((const char *)text, len);
        found->revision = get_i64(kv, "mod_revision");
        found->lease = get_i64(kv, "lease");
    }
}

bool etcd_get(Etcd *e, const char *key, EtcdValue *found, GError **errp)
{
    JsonObject *body = json_object_new();

    etcd_value_clear(found);
    set_b64(body, "key", key);
    g_autoptr(JsonObject) o = call(e, "/v3/kv/range", body, errp);
    if (o && get_i64(options_get_obj(o, "header"), "revision") <= 0) {
        colo_error_set(errp, "witness: unexpected answer");
        return false;
    }
    read_range(o, found);
    return o != NULL;
}

bool etcd_swap(Etcd *e, const char *key, int64_t revision, int64_t last, const char *value,
               int64_t lease, bool *done, int64_t *revision_out, EtcdValue *found,
               GError **errp)
{
    g_autofree char *companion = g_strconcat(key, "/last", NULL);
    g_autoptr(JsonObject) o = call(e, "/v3/kv/txn", swap_body(key, companion, revision, last,
                                                              value, lease), errp);

    *done = false;
    etcd_value_clear(found);
    if (!o) {
        return false;
    }
    JsonObject *header = options_get_obj(o, "header");
    if (!header || get_i64(header, "revision") <= 0 ||
        !options_get_bool(o, "succeeded", done, errp)) {
        colo_error_set(errp && !*errp ? errp : NULL, "witness: unexpected answer");
        return false;
    }
    *revision_out = get_i64(header, "revision");
    if (!*done) {
        JsonObject *owner = nth_object(o, "responses", 0), *was = nth_object(o, "responses", 1);
        g_auto(EtcdValue) companion_found = {0};
        read_range(owner ? options_get_obj(owner, "response_range") : NULL, found);
        read_range(was ? options_get_obj(was, "response_range") : NULL, &companion_found);
        found->last = g_steal_pointer(&companion_found.text);
        found->last_revision = companion_found.revision;
    }
    return true;
}
