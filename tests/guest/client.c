/*
 * colo-client: drives the services of the test guest and verifies every byte.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Exit status 0 only if every byte was right and no connection was lost; 1 if not; 2 for
 * wrong usage; 3 if the watchdog ended it. SIGINT and SIGTERM end the run in order, as if
 * its time was over. Times of gaps are CLOCK_MONOTONIC, to be held against the moment at
 * which a test killed something.
 */
#include "client.h"
#include "workload.h"

#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_RUNS 512

atomic_bool client_stop;

typedef struct Mode {
    const char *name;
    void (*fn)(Run *r);
    bool in_all;
} Mode;

static const Mode modes[] = {
    {"lines", mode_lines, true},       {"echo", mode_echo, true},
    {"download", mode_download, true}, {"upload", mode_upload, true},
    {"stream", mode_stream, true},     {"http", mode_http, true},
    {"udp", mode_udp, true},           {"disk", mode_disk, true},
    {"diskverify", mode_diskverify, false}, {"status", mode_status, false},
};

static const char usage[] =
    "usage: colo-client [options] MODE[,MODE...]   (or: all)\n"
    "       colo-client --image FILE [--log FILE]  (check a raw disk image)\n"
    "       colo-client --ctl COMMAND              (STATUS, SET key=value, POWEROFF)\n"
    "modes: lines echo download upload stream http udp disk diskverify status\n"
    "  --host ADDRESS      the guest (10.66.0.10)\n"
    "  --port-offset N     added to each port\n"
    "  --seconds S         how long (10)\n"
    "  --connect-ms N      bound of a connect (15000)\n"
    "  --stall-ms N        bound of a silence (30000)\n"
    "  --gap-ms N          list waits from N ms on (20)\n"
    "  --interval-us N     pause between requests of lines and http (1000)\n"
    "  --concurrency N     connections of http (1); --keepalive: requests share them\n"
    "  --dial              the guest opens the connections\n"
    "  --bytes N           size of a download or upload (8388608)\n"
    "  --rate MB/S         of download, upload, echo each (0: as fast as it goes)\n"
    "  --udp-rate N        datagrams a second (200); --udp-loss N: more lost is an error\n"
    "  --disk-rate N       records a second (20); --first N: number of the first\n"
    "  --log FILE          acknowledged disk records\n"
    "  --seed N            of the patterns\n"
    "  --no-disk           leave disk out of all\n"
    "  --json              one JSON object; --live: a line each second on stderr\n";

static void on_signal(int sig)
{
    client_stop = true;
}

static void *run_thread(void *opaque)
{
    Run *r = opaque;

    r->started = r->last = now_s();
    r->ok = true;
    r->fn(r);
    r->ended = now_s();
    if (r->ok && !r->done_once) {
        run_fail(r, "ended early");
    }
    return NULL;
}

static int control(const Options *opt, const char *command)
{
    Run r = {.opt = opt, .mode = "ctl", .ok = true, .started = now_s()};
    Reader *rd = calloc(1, sizeof(*rd));
    char line[256], *got = NULL;

    snprintf(line, sizeof(line), "%s\n", command);
    rd->fd = net_connect(&r, PORT_CONTROL, SOCK_STREAM);
    if (rd->fd >= 0 && net_send(&r, rd->fd, line, strlen(line))) {
        got = net_line(&r, rd);
    }
    if (got) {
        printf("%s\n", got);
    } else {
        fprintf(stderr, "colo-client: %s\n", r.error);
    }
    return !got || !strncmp(got, "ERROR", 5);
}

static void live_line(Run *runs, int n, double start)
{
    fprintf(stderr, "%6.1f s", now_s() - start);
    for (int i = 0; i < n; i++) {
        fprintf(stderr, "  %s %llu", runs[i].mode,
                (unsigned long long)(runs[i].fn == mode_download || runs[i].fn == mode_upload ?
                                     runs[i].bytes : runs[i].ops));
    }
    fprintf(stderr, "\n");
}

/* No mode may outlive its bounds, whatever the guest does. */
static void *watchdog_thread(void *opaque)
{
    const Options *opt = opaque;
    double end = 0;

    for (;;) {
        usleep(200000);
        if (!end && client_stop) {
            end = now_s() + (opt->stall_ms + opt->connect_ms) / 1e3 + 10;
        }
        if (end && now_s() > end) {
            fprintf(stderr, "colo-client: watchdog: a mode did not end\n");
            _exit(3);
        }
    }
    return NULL;
}

static int report(Run *runs, int n, const Options *opt)
{
    bool ok = true;

    /* Connections of one mode are told as one. */
    for (int i = 0; i < n; i++) {
        for (int j = i + 1; j < n; j++) {
            if (runs[j].mode == runs[i].mode) {
                run_merge(&runs[i], &runs[j]);
                runs[j] = runs[--n];
                j--;
            }
        }
        ok &= runs[i].ok;
    }
    if (opt->json) {
        printf("{\"ok\":%s,\"modes\":[", ok ? "true" : "false");
    }
    for (int i = 0; i < n; i++) {
        if (opt->json) {
            printf("%s", i ? "," : "");
            run_report_json(&runs[i], stdout);
        } else {
            run_report(&runs[i], stdout);
        }
    }
    printf(opt->json ? "]}\n" : "");
    return ok ? 0 : 1;
}

static int start_runs(Run *runs, const Options *opt, const char *list, uint64_t seed,
                      bool no_disk)
{
    bool all = !strcmp(list, "all");
    char *copy = strdup(list), *save = NULL;
    int n = 0;

    for (const char *name = strtok_r(copy, ",", &save); name;
         name = strtok_r(NULL, ",", &save)) {
        bool known = false;

        for (size_t m = 0; m < sizeof(modes) / sizeof(modes[0]); m++) {
            const Mode *mode = &modes[m];
            int copies = mode->fn == mode_http ? opt->concurrency : 1;

            if (all ? !mode->in_all || (no_disk && mode->fn == mode_disk)
                    : strcmp(mode->name, name)) {
                continue;
            }
            known = true;
            for (; copies && n < MAX_RUNS; copies--, n++) {
                runs[n] = (Run){.opt = opt, .mode = mode->name, .fn = mode->fn,
                                .seed = seed * 1000003 + n * 7919};
            }
        }
        if (!known) {
            fprintf(stderr, "colo-client: unknown mode '%s'\n%s", name, usage);
            exit(2);
        }
    }
    free(copy);
    return n;
}

static uint64_t number(const char *name, const char *text)
{
    char *end;
    uint64_t v;

    errno = 0;
    v = strtoull(text, &end, 0);
    if (errno || end == text || *end) {
        fprintf(stderr, "colo-client: --%s %s: not a number\n", name, text);
        exit(2);
    }
    return v;
}

int main(int argc, char **argv)
{
    static Run runs[MAX_RUNS + 1];
    Options opt = {.host = "10.66.0.10", .seconds = 10, .connect_ms = 15000,
                   .stall_ms = 30000, .gap_ms = 20, .interval_us = 1000, .concurrency = 1,
                   .bytes = 8 << 20, .udp_rate = 200, .udp_loss = -1, .disk_rate = 20};
    static const struct option longs[] = {
        {"host", 1, 0, 'h'}, {"port-offset", 1, 0, 'o'}, {"seconds", 1, 0, 's'},
        {"connect-ms", 1, 0, 'c'}, {"stall-ms", 1, 0, 't'}, {"gap-ms", 1, 0, 'g'},
        {"interval-us", 1, 0, 'i'}, {"concurrency", 1, 0, 'n'}, {"keepalive", 0, 0, 'k'}, {"dial", 0, 0, 'a'},
        {"bytes", 1, 0, 'b'}, {"rate", 1, 0, 'r'}, {"udp-rate", 1, 0, 'u'},
        {"udp-loss", 1, 0, 'U'}, {"disk-rate", 1, 0, 'd'}, {"first", 1, 0, 'f'},
        {"log", 1, 0, 'l'}, {"seed", 1, 0, 'S'}, {"no-disk", 0, 0, 'D'},
        {"json", 0, 0, 'j'}, {"live", 0, 0, 'L'}, {"image", 1, 0, 'I'},
        {"ctl", 1, 0, 'C'}, {"help", 0, 0, 'H'}, {0},
    };
    const char *image = NULL, *ctl = NULL;
    uint64_t seed = 1;
    pthread_t threads[MAX_RUNS], dog;
    bool no_disk = false, bulk_default;
    double start, end;
    int c, at, n;

    while ((c = getopt_long(argc, argv, "", longs, &at)) != -1) {
        const char *name = c == '?' ? "" : longs[at].name;

        switch (c) {
        case 'h': opt.host = optarg; break;
        case 'o': opt.port_offset = number(name, optarg); break;
        case 's': opt.seconds = atof(optarg); break;
        case 'c': opt.connect_ms = number(name, optarg); break;
        case 't': opt.stall_ms = number(name, optarg); break;
        case 'g': opt.gap_ms = number(name, optarg); break;
        case 'i': opt.interval_us = number(name, optarg); break;
        case 'n': opt.concurrency = number(name, optarg); break;
        case 'k': opt.keepalive = true; break;
        case 'a': opt.dial = true; break;
        case 'b': opt.bytes = number(name, optarg); break;
        case 'r': opt.rate = number(name, optarg); break;
        case 'u': opt.udp_rate = number(name, optarg); break;
        case 'U': opt.udp_loss = number(name, optarg); break;
        case 'd': opt.disk_rate = number(name, optarg); break;
        case 'f': opt.first = number(name, optarg); break;
        case 'l': opt.log = optarg; break;
        case 'S': seed = number(name, optarg); break;
        case 'D': no_disk = true; break;
        case 'j': opt.json = true; break;
        case 'L': opt.live = true; break;
        case 'I': image = optarg; break;
        case 'C': ctl = optarg; break;
        case 'H': printf("%s", usage); return 0;
        default: fprintf(stderr, "%s", usage); return 2;
        }
    }
    if (image) {
        return image_check(image, opt.log, opt.json);
    }
    if (ctl) {
        return control(&opt, ctl);
    }
    if (argc - optind != 1 || !opt.udp_rate || opt.concurrency < 1 || !opt.bytes) {
        fprintf(stderr, "%s", usage);
        return 2;
    }
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGPIPE, SIG_IGN);
    /* Everything at once must leave the guest's processor some air. */
    bulk_default = !strcmp(argv[optind], "all") && !opt.rate;
    if (bulk_default) {
        opt.rate = 4;
        opt.bytes = opt.bytes == 8 << 20 ? 1 << 20 : opt.bytes;
    }
    n = start_runs(runs, &opt, argv[optind], seed, no_disk);
    start = now_s();
    pthread_create(&dog, NULL, watchdog_thread, &opt);
    for (int i = 0; i < n; i++) {
        if (pthread_create(&threads[i], NULL, run_thread, &runs[i])) {
            fprintf(stderr, "colo-client: thread: %s\n", strerror(errno));
            return 1;
        }
    }
    end = start + opt.seconds;
    for (double next = start + 1; opt.live && !client_stop && now_s() < end; next += 1) {
        while (now_s() < next && !client_stop) {
            usleep(50000);
        }
        live_line(runs, n, start);
    }
    while (!client_stop && now_s() < end) {
        bool busy = false;

        for (int i = 0; i < n; i++) {
            busy |= !runs[i].ended;
        }
        if (!busy) {
            break;
        }
        usleep(20000);
    }
    client_stop = true;
    for (int i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
    }
    if (!strcmp(argv[optind], "all")) {
        runs[n] = (Run){.opt = &opt, .mode = "status", .fn = mode_status};
        run_thread(&runs[n++]);
    }
    return report(runs, n, &opt);
}
