/*
 * The channel between two qemu-colo: framed messages over one stream socket.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A header is 20 bytes, big-endian: magic, type (16 bits), format version (16 bits), payload
 * length, CRC-32 of the payload, CRC-32 of the 16 bytes before. All waiting is in poll(2), with an
 * eventfd beside the socket, so that a takeover can interrupt a transfer at any byte.
 */
#include "migration/channel.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include <glib-unix.h>
#include <linux/tcp.h> /* not netinet/tcp.h: that knows no tcpi_min_rtt */
#include <netinet/in.h>
#include <zlib.h>

#include "util/bytes.h"
#include "util/deadline.h"
#include "util/error.h"
#include "util/trace.h"

#define HEADER_BYTES 20
#define CHANNEL_MAGIC 0x51434c4fu /* "QCLO" */
#define CHANNEL_FORMAT 2
#define PARTS_MAX 15
#define SOCKET_BUFFER (4 << 20)
#define CANCEL_GRACE_US (100 * 1000)

struct Channel {
    int fd;
    int cancel_fd;
    GThread *pinger;
    TlsSession *tls;  /* or NULL */
    GMutex tls_lock;  /* a session belongs to one thread at a time */
    unsigned stall_ms;
    gint n_attached; /* atomic */
    Channel *attached[CHANNEL_ATTACHED_MAX];
    unsigned ping_ms;
    GMutex send_lock; /* one message at a time */
    bool send_broken; /* a message was cut short: nothing may follow; under send_lock */
    uint64_t bytes_sent; /* atomic; written under send_lock */
    bool said_exit; /* guarded by send_lock */
    bool ended; /* the peer's end is closed; by the receiving thread */
    gint broken; /* atomic: by us, so an end says nothing of the peer */
    int64_t last_rx; /* atomic */
    uint32_t have;   /* bytes of the current message in buf */
    uint8_t buf[HEADER_BYTES + CHANNEL_PAYLOAD_MAX];
};

Channel *channel_new(int fd, unsigned peer_timeout_ms)
{
    Channel *c = g_new0(Channel, 1);
    int one = 1, size = SOCKET_BUFFER;
    unsigned user_timeout = peer_timeout_ms;

    c->fd = fd;
    c->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    g_mutex_init(&c->send_lock);
    g_mutex_init(&c->tls_lock);
    g_unix_set_fd_nonblocking(fd, TRUE, NULL);
    /* These fail on a unix socket, which needs none of them. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout, sizeof(user_timeout));
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    __atomic_store_n(&c->last_rx, g_get_monotonic_time(), __ATOMIC_RELAXED);
    return c;
}

void channel_free(Channel *c)
{
    if (!c) {
        return;
    }
    if (c->pinger) {
        channel_cancel(c);
        g_thread_join(c->pinger);
    }
    for (gint i = 0; i < c->n_attached; i++) {
        channel_free(c->attached[i]);
    }
    tls_session_free(c->tls);
    close(c->fd);
    close(c->cancel_fd);
    g_mutex_clear(&c->send_lock);
    g_mutex_clear(&c->tls_lock);
    g_free(c);
}

void channel_cancel(Channel *c)
{
    uint64_t one = 1;
    ssize_t n = write(c->cancel_fd, &one, sizeof(one));
    (void)n; /* EAGAIN means that it is set already */
    for (gint i = 0; i < g_atomic_int_get(&c->n_attached); i++) {
        channel_cancel(c->attached[i]);
    }
}

void channel_break(Channel *c)
{
    g_atomic_int_set(&c->broken, 1);
    shutdown(c->fd, SHUT_RDWR);
    for (gint i = 0; i < g_atomic_int_get(&c->n_attached); i++) {
        channel_break(c->attached[i]);
    }
}

bool channel_wait_end(Channel *c, unsigned ms)
{
    int64_t end = g_get_monotonic_time() + ms * 1000LL;
    uint8_t drop[4096];

    shutdown(c->fd, SHUT_WR);
    for (;;) {
        struct pollfd pfd = {c->fd, POLLIN, 0};
        int left = deadline_left_ms(end);
        if (left == 0 || poll(&pfd, 1, left) == 0) {
            return false;
        }
        ssize_t r = recv(c->fd, drop, sizeof(drop), MSG_DONTWAIT);
        if (r == 0 || (r < 0 && errno != EAGAIN && errno != EINTR)) {
            return (r == 0 || errno == ECONNRESET) && !g_atomic_int_get(&c->broken);
        }
    }
}

void channel_linger(Channel *c, unsigned ms)
{
    if (c->said_exit) {
        channel_wait_end(c, ms);
    }
}

void channel_attach(Channel *c, Channel *data)
{
    struct pollfd pfd = {c->cancel_fd, POLLIN, 0};

    g_assert(c->n_attached < CHANNEL_ATTACHED_MAX);
    c->attached[c->n_attached] = data;
    g_atomic_int_inc(&c->n_attached);
    if (poll(&pfd, 1, 0) > 0) {
        channel_cancel(data); /* a cancel may have come just before */
    }
}

bool channel_cancelled(Channel *c, unsigned timeout_ms)
{
    struct pollfd pfd = {c->cancel_fd, POLLIN, 0};

    return poll(&pfd, 1, (int)timeout_ms) > 0;
}

void channel_set_stall(Channel *c, unsigned ms)
{
    c->stall_ms = ms;
}

static gpointer ping_thread(gpointer opaque)
{
    Channel *c = opaque;
    struct pollfd pfd = {c->cancel_fd, POLLIN, 0};

    while (poll(&pfd, 1, (int)c->ping_ms) == 0 || !pfd.revents) {
        channel_try_text(c, CHANNEL_PING, "");
    }
    return NULL;
}

void channel_start_pings(Channel *c, unsigned ms)
{
    c->ping_ms = ms;
    c->pinger = g_thread_new("colo-ping", ping_thread, c);
}

/* Wait until the socket is ready for @events. */
static ChannelResult channel_wait(Channel *c, short events, int timeout_ms, GError **errp)
{
    struct pollfd pfd[2] = {{c->fd, events, 0}, {c->cancel_fd, POLLIN, 0}};
    int r;

    do {
        r = poll(pfd, 2, timeout_ms);
    } while (r < 0 && errno == EINTR);
    if (r < 0) {
        colo_error_set_errno(errp, errno, "poll");
        return CHANNEL_ERROR;
    }
    if (pfd[1].revents) {
        return CHANNEL_CANCELLED;
    }
    return r == 0 ? CHANNEL_TIMEOUT : CHANNEL_OK;
}

/* Wait to send on. A cancel ends it at once, but what must not be cut short (@whole: a
 * message that has begun, the last word) gets a moment to go out, if the peer reads. */
static ChannelResult wait_writable(Channel *c, bool whole, int64_t *grace_end, GError **errp)
{
    ChannelResult w = channel_wait(c, POLLOUT, c->stall_ms ? (int)c->stall_ms : -1, errp);

    if (w == CHANNEL_TIMEOUT) {
        colo_error_set(errp, "the peer has taken nothing for %u ms", c->stall_ms);
        return CHANNEL_ERROR;
    }
    if (w != CHANNEL_CANCELLED || !whole) {
        return w;
    }
    int64_t now = g_get_monotonic_time();
    *grace_end = *grace_end ? *grace_end : now + CANCEL_GRACE_US;
    struct pollfd pfd = {c->fd, POLLOUT, 0};
    return poll(&pfd, 1, deadline_left_at(*grace_end, now)) > 0 ? CHANNEL_OK : CHANNEL_CANCELLED;
}

/* After a time-out of our own TCP the next call reads an end that the peer knows nothing of. */
static void note_error(Channel *c, int err)
{
    if (err == ETIMEDOUT) {
        g_atomic_int_set(&c->broken, 1);
    }
}

static ssize_t raw_send(Channel *c, struct iovec *iov, unsigned n)
{
    struct msghdr mh = {.msg_iov = iov, .msg_iovlen = n};

    if (!c->tls) {
        return sendmsg(c->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    g_mutex_lock(&c->tls_lock);
    ssize_t r = tls_session_sendv(c->tls, iov, n);
    int err = errno;
    g_mutex_unlock(&c->tls_lock);
    errno = err;
    return r;
}

static ssize_t raw_recv(Channel *c, void *buf, size_t len)
{
    if (!c->tls) {
        return recv(c->fd, buf, len, MSG_DONTWAIT);
    }
    g_mutex_lock(&c->tls_lock);
    ssize_t r = tls_session_recv(c->tls, buf, len);
    int err = errno;
    g_mutex_unlock(&c->tls_lock);
    errno = err;
    return r;
}

bool channel_start_tls(Channel *c, TlsCreds *creds, const char *hostname, unsigned timeout_ms,
                       GError **errp)
{
    int64_t end = g_get_monotonic_time() + timeout_ms * 1000LL;
    g_autoptr(TlsSession) s = tls_session_new(creds, c->fd, hostname, errp);
    int r = 0;

    while (s && (r = tls_session_handshake(s, errp)) == 0) {
        short events = tls_session_wants(s) == G_IO_IN ? POLLIN : POLLOUT;
        ChannelResult w = channel_wait(c, events, deadline_left_ms(end), errp);
        if (w != CHANNEL_OK) {
            if (w != CHANNEL_ERROR) {
                colo_error_set(errp, w == CHANNEL_TIMEOUT
                                         ? "TLS handshake: the peer does not answer (has it "
                                           "no tls-creds?)"
                                         : "TLS handshake: cancelled");
            }
            return false;
        }
    }
    if (!s || r < 0) {
        return false;
    }
    g_autofree char *words = tls_session_describe(s);
    colo_trace(migration_tls, "%s", words);
    c->tls = g_steal_pointer(&s);
    return true;
}

/* @whole: whatever may be waited for even if cancelled; *@begun: some of it went out. */
static bool send_all(Channel *c, struct iovec *iov, unsigned n, bool whole, bool *begun,
                     GError **errp)
{
    int64_t grace_end = 0;

    while (n > 0) {
        ssize_t r = raw_send(c, iov, n);
        if (r < 0 && (errno == EAGAIN || errno == EINTR)) {
            ChannelResult w = wait_writable(c, whole || *begun, &grace_end, errp);
            if (w != CHANNEL_OK) {
                if (w == CHANNEL_CANCELLED) {
                    colo_error_set(errp, "the transfer was cancelled");
                }
                return false;
            }
            continue;
        }
        if (r < 0) {
            note_error(c, errno);
            colo_error_set_errno(errp, errno, "connection to the peer");
            return false;
        }
        __atomic_store_n(&c->bytes_sent, c->bytes_sent + r, __ATOMIC_RELAXED);
        *begun = true;
        while (n > 0 && (size_t)r >= iov->iov_len) {
            r -= iov->iov_len;
            iov++;
            n--;
        }
        if (n > 0) {
            iov->iov_base = (uint8_t *)iov->iov_base + r;
            iov->iov_len -= r;
        }
    }
    return true;
}

static bool send_locked(Channel *c, ChannelType type, const struct iovec *parts, unsigned n,
                        GError **errp)
{
    uint8_t head[HEADER_BYTES];
    struct iovec iov[PARTS_MAX + 1];
    size_t len = 0;
    uLong sum = 0;

    g_assert(n <= PARTS_MAX);
    for (unsigned i = 0; i < n; i++) {
        iov[i + 1] = parts[i];
        sum = crc32(sum, parts[i].iov_base, parts[i].iov_len);
        len += parts[i].iov_len;
    }
    g_assert(len <= CHANNEL_PAYLOAD_MAX);
    bytes_put_be(head, CHANNEL_MAGIC, 4);
    bytes_put_be(head + 4, type, 2);
    bytes_put_be(head + 6, CHANNEL_FORMAT, 2);
    bytes_put_be(head + 8, len, 4);
    bytes_put_be(head + 12, sum, 4);
    bytes_put_be(head + 16, crc32(0, head, 16), 4);
    iov[0] = (struct iovec){head, sizeof(head)};
    if (c->send_broken) {
        colo_error_set(errp, "connection to the peer: broken off in a message");
        return false;
    }
    bool begun = false;
    bool ok = send_all(c, iov, n + 1, type == CHANNEL_EXIT, &begun, errp);
    c->send_broken = !ok && begun;
    c->said_exit |= ok && type == CHANNEL_EXIT;
    return ok;
}

/* Once cancelled no part of a checkpoint begins any more; words about it still go out. */
static bool may_send(Channel *c, ChannelType type, GError **errp)
{
    bool part = type == CHANNEL_BEGIN || type == CHANNEL_RAM || type == CHANNEL_DEVICE ||
                type == CHANNEL_PROXY || type == CHANNEL_BARRIERS ||
                type == CHANNEL_VERIFY || type == CHANNEL_MARK || type == CHANNEL_SYNC ||
                type == CHANNEL_END;
    struct pollfd pfd = {c->cancel_fd, POLLIN, 0};

    if (part && poll(&pfd, 1, 0) > 0) {
        colo_error_set(errp, "the transfer was cancelled");
        return false;
    }
    return true;
}

bool channel_send(Channel *c, ChannelType type, const struct iovec *parts, unsigned n,
                  GError **errp)
{
    g_mutex_lock(&c->send_lock);
    bool ok = may_send(c, type, errp) && send_locked(c, type, parts, n, errp);
    g_mutex_unlock(&c->send_lock);
    return ok;
}

bool channel_send_text(Channel *c, ChannelType type, const char *text, GError **errp)
{
    struct iovec part = {(void *)text, MIN(strlen(text), CHANNEL_PAYLOAD_MAX)};

    return channel_send(c, type, &part, 1, errp);
}

bool channel_send_u64(Channel *c, ChannelType type, const uint64_t *values, unsigned n,
                      GError **errp)
{
    uint8_t body[8 * 8];

    g_assert(n <= 8);
    for (unsigned i = 0; i < n; i++) {
        bytes_put_be(body + 8 * i, values[i], 8);
    }
    return channel_send(c, type, &(struct iovec){body, 8 * n}, 1, errp);
}

void channel_try_text(Channel *c, ChannelType type, const char *text)
{
    channel_try_bytes(c, type, text, strlen(text));
}

bool channel_try_bytes(Channel *c, ChannelType type, const void *data, size_t len)
{
    struct iovec part = {(void *)data, len};
    bool ok = false;

    if (g_mutex_trylock(&c->send_lock)) {
        /* The caller may hold locks: no waiting for a peer that does not read. A socket
         * that is writable takes so short a message whole. */
        if (channel_wait(c, POLLOUT, 0, NULL) != CHANNEL_TIMEOUT) {
            ok = send_locked(c, type, &part, 1, NULL);
        }
        g_mutex_unlock(&c->send_lock);
    }
    return ok;
}

static bool not_ours(GError **errp)
{
    colo_error_set(errp, "the peer does not speak qemu-colo's protocol (is the port "
                         "that of another program, or does stock QEMU's COLO, or a plain "
                         "migration, come from there?)");
    return false;
}

/* The first four bytes: told as soon as they are there. */
static bool check_magic(Channel *c, GError **errp)
{
    if ((c->buf[0] == 0x16 || c->buf[0] == 0x15) && c->buf[1] == 3) { /* greeting, alert */
        colo_error_set(errp, "the peer wants TLS: set tls-creds on this side, too "
                             "(migrate-set-parameters)");
        return false;
    }
    return bytes_get_be(c->buf, 4) == CHANNEL_MAGIC || not_ours(errp);
}

/* Check the header in c->buf; *len is the payload's length. */
static bool check_header(Channel *c, uint32_t *len, GError **errp)
{
    if (!check_magic(c, errp)) {
        return false;
    }
    if (bytes_get_be(c->buf + 16, 4) != crc32(0, c->buf, 16)) {
        return not_ours(errp);
    }
    if (bytes_get_be(c->buf + 6, 2) != CHANNEL_FORMAT) {
        colo_error_set(errp,
                       "the peer speaks protocol version %u, this side %u: use the same "
                       "qemu-colo on both hosts",
                       (unsigned)bytes_get_be(c->buf + 6, 2), CHANNEL_FORMAT);
        return false;
    }
    uint64_t type = bytes_get_be(c->buf + 4, 2);
    *len = bytes_get_be(c->buf + 8, 4);
    if (type == 0 || type >= CHANNEL_TYPE_MAX || *len > CHANNEL_PAYLOAD_MAX) {
        colo_error_set(errp, "bad message from the peer (type %u, %u bytes)",
                       (unsigned)type, *len);
        return false;
    }
    return true;
}

ChannelResult channel_recv(Channel *c, ChannelMsg *msg, int timeout_ms, GError **errp)
{
    int64_t deadline = timeout_ms < 0 ? 0 : g_get_monotonic_time() + timeout_ms * 1000LL;

    for (;;) {
        uint32_t len = 0, want = HEADER_BYTES;
        if (c->have >= 4 && c->have < HEADER_BYTES && !check_magic(c, errp)) {
            return CHANNEL_ERROR;
        }
        if (c->have >= HEADER_BYTES) {
            if (!check_header(c, &len, errp)) {
                return CHANNEL_ERROR;
            }
            want = HEADER_BYTES + len;
            if (c->have == want) {
                if (bytes_get_be(c->buf + 12, 4) != crc32(0, c->buf + HEADER_BYTES, len)) {
                    colo_error_set(errp, "a message from the peer (type %u, %u bytes) was "
                                         "corrupted on its way: its checksum is wrong",
                                   (unsigned)bytes_get_be(c->buf + 4, 2), len);
                    return CHANNEL_ERROR;
                }
                msg->type = bytes_get_be(c->buf + 4, 2);
                msg->len = len;
                msg->data = c->buf + HEADER_BYTES;
                c->have = 0;
                return CHANNEL_OK;
            }
        }
        ssize_t r = raw_recv(c, c->buf + c->have, want - c->have);
        if (r > 0) {
            c->have += r;
            __atomic_store_n(&c->last_rx, g_get_monotonic_time(), __ATOMIC_RELAXED);
            continue;
        }
        c->ended = r == 0 || errno == ECONNRESET;
        if (r == 0) {
            colo_error_set(errp, "the peer closed the connection");
            return CHANNEL_ERROR;
        }
        if (errno != EAGAIN && errno != EINTR) {
            note_error(c, errno);
            colo_error_set_errno(errp, errno, "connection to the peer");
            return CHANNEL_ERROR;
        }
        int left = timeout_ms < 0 ? -1 : deadline_left_ms(deadline);
        ChannelResult w = channel_wait(c, POLLIN, left, errp);
        if (w != CHANNEL_OK) {
            return w;
        }
    }
}

bool channel_peer_gone(Channel *c)
{
    struct pollfd pfd = {c->fd, POLLRDHUP, 0};

    return c->ended || (poll(&pfd, 1, 0) > 0 && pfd.revents);
}

bool channel_ended(Channel *c)
{
    return c->ended && !g_atomic_int_get(&c->broken);
}

void channel_expect(Channel *c)
{
    __atomic_store_n(&c->last_rx, g_get_monotonic_time(), __ATOMIC_RELAXED);
}

int64_t channel_silence(Channel *c)
{
    return g_get_monotonic_time() - __atomic_load_n(&c->last_rx, __ATOMIC_RELAXED);
}

int64_t channel_rtt(Channel *c)
{
    struct tcp_info info = {0};
    socklen_t len = sizeof(info);
    bool known = getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 &&
                 info.tcpi_min_rtt != UINT32_MAX;

    return known ? info.tcpi_min_rtt : 0;
}

uint64_t channel_bytes_sent(Channel *c)
{
    uint64_t sum = __atomic_load_n(&c->bytes_sent, __ATOMIC_RELAXED);

    for (gint i = 0; i < g_atomic_int_get(&c->n_attached); i++) {
        sum += channel_bytes_sent(c->attached[i]);
    }
    return sum;
}

uint64_t channel_msg_u64(const ChannelMsg *msg, unsigned i)
{
    return (i + 1) * 8 <= msg->len ? bytes_get_be(msg->data + 8 * i, 8) : 0;
}

char *channel_msg_text(const ChannelMsg *msg)
{
    char *text = g_strndup((const char *)msg->data, MIN(msg->len, 1000));

    for (char *p = text; *p; p++) {
        if (!g_ascii_isprint(*p)) {
            *p = '?';
        }
    }
    return text;
}
