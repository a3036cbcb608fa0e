/*
 * coloctl without a VM: vm.conf, command lines, roles, text.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>

#include "coloctl-cmdline.h"
#include "coloctl-run.h"

static const char good[] =
    "[vm]\nname = web1\nmemory = 1G\naccel = tcg\nsmp = 1,maxcpus=2\n"
    "args = -serial 'file:/tmp/a b' -option %h\n"
    "[disk.root]\nimage = /srv/%h/web1.raw\n"
    "[disk.data]\nimage = /srv/da,ta.qcow2\nformat = qcow2\ninterface = scsi\n"
    "active = /ssd/%n-a\nhidden = /ssd/%n-h\n"
    "[net.lan]\ntap = tap-%n\nmac = 52:54:00:c0:10:01\n"
    "[hosts]\nalpha = 192.0.2.1, 198.51.100.1\nbeta = 192.0.2.2, 198.51.100.2\n"
    "[pair]\nprefer = beta\nport-base = 12000\narbiter = witness\n"
    "witness = http://10.0.0.5:2379\nheartbeat = on\nheartbeat-timeout = 700\n"
    "key-file = /etc/colo/%n.key\nauto-protect = off\n";

static VmConf *load(const char *text, GError **errp)
{
    g_autofree char *path = NULL;
    int fd = g_file_open_tmp("vm-XXXXXX.conf", &path, NULL);

    g_assert_cmpint(fd, >=, 0);
    close(fd);
    g_assert_true(g_file_set_contents(path, text, -1, NULL));
    VmConf *c = vm_conf_load(path, errp);
    unlink(path);
    return c;
}

static VmConf *load_as(const char *text, const char *host)
{
    g_autoptr(GError) err = NULL;
    VmConf *c = load(text, &err);

    g_assert_no_error(err);
    g_assert_true(vm_conf_choose_host(c, host, &err));
    return c;
}

static void test_good(void)
{
    g_autoptr(VmConf) c = load_as(good, "beta");
    VmDisk *root = c->disks->pdata[0], *data = c->disks->pdata[1];

    g_assert_cmpstr(root->image, ==, "/srv/beta/web1.raw");
    g_assert_cmpstr(root->active, ==, "/var/lib/qemu-colo/web1/root-active.qcow2");
    g_assert_cmpstr(data->active, ==, "/ssd/web1-a");
    g_assert_cmpstr(c->run_dir, ==, "/run/qemu-colo/web1");
    g_assert_cmpuint(vm_conf_memory(c), ==, 1ull << 30);
    g_assert_cmpuint(vm_conf_port(c, VM_PORT_PAIR), ==, 12997);
    g_assert_cmpint(c->prefer, ==, 1);
    g_assert_cmpint(c->local, ==, 1);
    g_assert_cmpstr(vm_conf_peer(c)->name, ==, "alpha");
    g_assert_false(c->auto_protect);
    g_assert_cmpstr(((VmNet *)c->nets->pdata[0])->device, ==, "tap-web1");
}

/* Each wrong text, and the words that its error must have. */
static const struct {
    const char *from, *to;
    const char *words[4];
} wrong[] = {
    {"memory = 1G\n", "", {"[vm] memory", "needed"}},
    {"memory = 1G", "memory = much", {"[vm] memory = 'much'", "1G"}},
    {"memory = 1G", "memory = 99999999999G", {"[vm] memory"}},
    {"memory = 1G", "memroy = 1G", {"[vm] memroy", "did you mean 'memory'"}},
    {"memory = 1G", "zzzzzzzzzzzzz = 1", {"[vm] zzzz", "there are", "memory"}},
    {"[disk.root]", "[dsk.root]", {"[dsk.root]", "unknown section", "[disk.ID]"}},
    {"[pair]", "[pairs]", {"[pairs]", "did you mean [pair]"}},
    {"[disk.root]", "[disk.ro/ot]", {"disk.ro/ot", "letters"}},
    {"image = /srv/%h/web1.raw", "image = web1.raw", {"[disk.root] image", "absolute"}},
    {"image = /srv/%h/web1.raw", "image = /srv/%x", {"[disk.root] image", "after %"}},
    {"image = /srv/%h/web1.raw", "image = /srv/%", {"[disk.root] image", "after %"}},
    {"interface = scsi", "interface = floppy", {"[disk.data] interface = 'floppy'", "virtio",
                                                "scsi"}},
    {"mac = 52:54:00:c0:10:01", "mac = 53:54:00:c0:10:01", {"[net.lan] mac", "unicast"}},
    {"mac = 52:54:00:c0:10:01", "mac = 52:54", {"[net.lan] mac", "52:54:00"}},
    {"tap = tap-%n\n", "", {"[net.lan]", "exactly one"}},
    {"tap = tap-%n", "tap = t\nbridge = b", {"[net.lan]", "exactly one"}},
    {"beta = 192.0.2.2, 198.51.100.2\n", "", {"[hosts]", "exactly two"}},
    {"beta = 192.0.2.2, 198.51.100.2", "beta = 192.0.2.2", {"[hosts] beta", "equally many"}},
    {"beta = 192.0.2.2,", "beta = beta.example,", {"[hosts] beta", "IP address"}},
    {"beta = 192.0.2.2,", "beta = 192.0.2.1,", {"[hosts] beta", "both hosts"}},
    {"prefer = beta", "prefer = gamma", {"[pair] prefer = 'gamma'", "[hosts]"}},
    {"port-base = 12000", "port-base = 80", {"[pair] port-base = '80'", "1024", "64000"}},
    {"port-base = 12000", "port-base = -1", {"[pair] port-base", "number"}},
    {"auto-protect = off", "auto-protect = maybe", {"[pair] auto-protect", "on or off"}},
    {"arbiter = witness", "arbiter = coin", {"[pair] arbiter = 'coin'", "manual", "fence"}},
    {"args = -serial", "args = -serial '", {"[vm] args"}},
    {"name = web1", "name = ../x", {"[vm] name", "letters"}},
    {"name = web1", "name =", {"[vm] name"}},
    {"[net.lan]", "[net.a]\ntap = tap-%n\nmac = 52:54:00:c0:10:02\n[net.lan]",
     {"[net.lan] tap = 'tap-%n'", "[net.a] has it"}},
    {"[net.lan]", "[net.a]\ntap = x\nmac = 52:54:00:C0:10:01\n[net.lan]",
     {"[net.lan] mac", "[net.a] has it"}},
    {"[net.lan]", "[net.lan]\ntap = x\nmac = 52:54:00:c0:10:02\n[net.lan]",
     {"[net.lan]", "twice"}},
    {"memory = 1G", "memory = 1G\nmemory=2G", {"[vm] memory", "twice"}},
    {"auto-protect = off", "channels = 17", {"[pair] channels = '17'", "from 0 to 16"}},
    {"auto-protect = off", "compression = zstd", {"[pair] compression = 'zstd'", "channels"}},
    {"auto-protect = off", "channels = 2\ncompression = lz4", {"compression = 'lz4'", "zstd"}},
    {"auto-protect = off", "mode = fast", {"[pair] mode = 'fast'", "colo, buffered, adaptive"}},
    {"auto-protect = off", "buffered-interval = 9", {"buffered-interval = '9'", "10 to 100"}},
    {"auto-protect = off", "max-pause = 10001", {"max-pause = '10001'", "10000"}},
    {"auto-protect = off", "max-bandwidth = fast", {"max-bandwidth = 'fast'", "100M"}},
    {"auto-protect = off", "max-bandwidth = 9999999T", {"max-bandwidth", "100M"}},
    {"auto-protect = off", "max-bandwith = 1M", {"did you mean 'max-bandwidth'"}},
    {"auto-protect = off", "chanels = 2", {"did you mean 'channels'"}},
    {"auto-protect = off", "tls = /etc/pki", {"[pair] tls", "unknown key"}},
    {"auto-protect = off", "tls-dir = pki", {"[pair] tls-dir = 'pki'", "absolute"}},
    {"auto-protect = off", "witness-lease = 1", {"witness-lease = '1'", "2 to 3600"}},
    {"auto-protect = off", "fence-timeout = soon", {"fence-timeout = 'soon'", "number"}},
    {"auto-protect = off", "fence-agent = fence_ipmilan", {"fence-agent", "absolute"}},
    {"[vm]", "no section\n[vm]", {"vm-"}},
    {"heartbeat-timeout = 700", "heartbeat-timeout = 300",
     {"[pair] heartbeat-timeout = '300'", "four times", "100 ms"}},
    {"heartbeat-timeout = 700", "heartbeat-timeout = 700\nheartbeat-interval = 200",
     {"heartbeat-timeout = '700'", "200 ms"}},
    {"heartbeat-timeout = 700", "heartbeat-interval = 5", {"'5'", "10 to 60000"}},
    {"auto-protect = off", "metrics = 0.0.0.0:9100", {"[pair] metrics = '0.0.0.0:9100'",
                                                      "127.0.0.1:PORT"}},
    {"auto-protect = off", "metrics = 9100", {"[pair] metrics = '9100'", "127.0.0.1:PORT"}},
    {"auto-protect = off", "metrics = 127.0.0.1", {"[pair] metrics = '127.0.0.1'"}},
    {"beta = 192.0.2.2, 198.51.100.2", "beta = 192.0.2.2, 198.51.100.1",
     {"[hosts] beta = '198.51.100.1'", "both hosts"}},
    {"alpha = 192.0.2.1, 198.51.100.1\nbeta = 192.0.2.2, 198.51.100.2",
     "alpha = ::11,::12,::13,::14,::15,::16,::17,::18,::19\n"
     "beta = ::21,::22,::23,::24,::25,::26,::27,::28,::29", {"[hosts] beta", "eight"}},
};

static void test_wrong(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autoptr(GError) err = NULL;
        g_auto(GStrv) parts = g_strsplit(good, wrong[i].from, 2);
        g_assert_cmpuint(g_strv_length(parts), ==, 2);
        g_autofree char *text = g_strconcat(parts[0], wrong[i].to, parts[1], NULL);
        g_autoptr(VmConf) c = load(text, &err);
        g_test_message("%s: %s", wrong[i].to, err ? err->message : "accepted");
        g_assert_null(c);
        g_assert_nonnull(err);
        for (int w = 0; w < 4 && wrong[i].words[w]; w++) {
            g_assert_nonnull(strstr(err->message, wrong[i].words[w]));
        }
        g_assert_nonnull(strstr(err->message, "vm-")); /* the file's name */
    }
}

/* What is no vm.conf at all: nothing hangs, nothing is read into memory without bound. */
static void test_files(void)
{
    g_autofree char *dir = g_dir_make_tmp("conf-XXXXXX", NULL);
    g_autofree char *fifo = g_build_filename(dir, "fifo.conf", NULL);
    g_autofree char *huge = g_build_filename(dir, "huge.conf", NULL);
    g_autofree char *nul = g_build_filename(dir, "nul.conf", NULL);
    g_autofree char *empty = g_build_filename(dir, "empty.conf", NULL);
    g_autofree char *gone = g_build_filename(dir, "gone.conf", NULL);
    const char *files[][2] = {{fifo, "expected a file"}, {dir, "directory"},
                              {"/dev/zero", "expected a file"}, {huge, "1048576 bytes"},
                              {nul, "byte 0"}, {empty, "[vm] name: this key is needed"},
                              {gone, "No such file"}};

    g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);
    g_assert_true(g_file_set_contents(huge, "", 0, NULL));
    g_assert_cmpint(truncate(huge, 1ll << 40), ==, 0);
    g_assert_true(g_file_set_contents(nul, "[vm]\0name = x\n", 15, NULL));
    g_assert_true(g_file_set_contents(empty, "", 0, NULL));
    for (size_t i = 0; i < G_N_ELEMENTS(files); i++) {
        g_autoptr(GError) err = NULL;
        g_autoptr(VmConf) c = vm_conf_load(files[i][0], &err);
        g_assert_null(c);
        g_test_message("%s", err->message);
        g_assert_nonnull(strstr(err->message, files[i][0]));
        g_assert_nonnull(strstr(err->message, files[i][1]));
    }
    for (size_t i = 0; i < G_N_ELEMENTS(files); i++) {
        if (g_str_has_prefix(files[i][0], dir) && files[i][0] != dir) {
            unlink(files[i][0]);
        }
    }
    g_assert_cmpint(rmdir(dir), ==, 0);
}

/* The sockets in run-dir have to fit; found out before anything is started. */
static void test_long_directory(void)
{
    g_autofree char *name = g_strnfill(95, 'n');
    g_autofree char *text = g_strdup_printf(
        "[vm]\nname=%s\nmemory=64\n[hosts]\na=127.0.0.1\nb=192.0.2.7\n", name);
    g_autofree char *shorter = g_strconcat(text, "[run]\nrun-dir = /run/vm\n", NULL);
    g_autoptr(GError) err = NULL;
    g_autoptr(VmConf) c = load(text, NULL), fits = load(shorter, NULL);

    g_assert_false(vm_conf_choose_host(c, "a", &err));
    g_assert_nonnull(strstr(err->message, "[run] run-dir = '/run/qemu-colo/nnn"));
    g_assert_nonnull(strstr(err->message, "at most 98 bytes"));
    g_assert_true(vm_conf_choose_host(fits, "a", NULL));
}

static void test_hosts(void)
{
    static const char base[] = "[vm]\nname=x\nmemory=64\n[hosts]\na=%s\nb=%s\n";
    g_autoptr(GError) err = NULL;

    g_autofree char *mine = g_strdup_printf(base, "127.0.0.1", "192.0.2.77");
    g_autoptr(VmConf) c = load_as(mine, NULL);
    g_assert_cmpstr(vm_conf_self(c)->name, ==, "a");
    g_autofree char *both = g_strdup_printf(base, "127.0.0.1", "127.0.0.2");
    g_autoptr(VmConf) c2 = load(both, NULL);
    g_assert_false(vm_conf_choose_host(c2, NULL, &err));
    g_assert_nonnull(strstr(err->message, "both of the addresses"));
    g_assert_nonnull(strstr(err->message, "--host a"));
    g_clear_error(&err);
    g_assert_false(vm_conf_choose_host(c2, "z", &err));
    g_assert_nonnull(strstr(err->message, "hosts a and b"));
    g_clear_error(&err);
    g_autofree char *none = g_strdup_printf(base, "192.0.2.76", "192.0.2.77");
    g_autoptr(VmConf) c3 = load(none, NULL);
    g_assert_false(vm_conf_choose_host(c3, NULL, &err));
    g_assert_nonnull(strstr(err->message, "none of the addresses"));
}

static bool has(char **argv, const char *option, const char *value)
{
    for (char **a = argv; a[0] && a[1]; a++) {
        if (strcmp(a[0], option) == 0 && strcmp(a[1], value) == 0) {
            return true;
        }
    }
    return false;
}

static bool mentions(char **argv, const char *part)
{
    g_autofree char *all = g_strjoinv(" ", argv);

    return strstr(all, part) != NULL;
}

static void test_primary_line(void)
{
    g_autoptr(VmConf) c = load_as(good, "alpha");
    g_auto(GStrv) a = vm_command_line(c, "/q", false, false);

    g_assert_cmpstr(a[0], ==, "/q");
    g_assert_true(has(a, "-name", "web1"));
    g_assert_true(has(a, "-qmp", "unix:/run/qemu-colo/web1/ctl.sock,server=on,wait=off"));
    g_assert_true(has(a, "-netdev", "tap,id=hn0,vhost=off,ifname=tap-web1,script=no,"
                                    "downscript=no"));
    g_assert_true(has(a, "-chardev", "socket,id=mirror0,host=192.0.2.1,port=12003,server=on,"
                                     "wait=off"));
    g_assert_true(has(a, "-object", "colo-compare,id=comp0,primary_in=compare0-0,"
                                    "secondary_in=compare1,outdev=compare_out0,"
                                    "iothread=iothread1"));
    g_assert_true(has(a, "-drive", "if=virtio,id=colo-disk0,driver=quorum,read-pattern=fifo,"
                                   "vote-threshold=1,children.0.file.filename=/srv/alpha/"
                                   "web1.raw,children.0.driver=raw"));
    g_assert_true(mentions(a, "children.0.file.filename=/srv/da,,ta.qcow2"));
    g_assert_true(has(a, "-device", "scsi-hd,bus=scsi0.0,drive=colo-disk1"));
    g_assert_true(has(a, "-colo", "arbiter=witness"));
    g_assert_true(has(a, "-colo", "witness=http://10.0.0.5:2379"));
    g_assert_true(mentions(a, "pair=on,listen=192.0.2.1,peer=192.0.2.2"));
    g_auto(GStrv) word = vm_command_line(c, "/q", false, true);
    g_assert_true(mentions(word, "peer-off=on") && !mentions(a, "peer-off"));
    g_assert_true(mentions(a, "pair-port=12997,auto-protect=off,auto-sync=incremental"));
    g_assert_true(has(a, "-object",
                      "colo-heartbeat,id=hb0,local=192.0.2.1:12996,peer=192.0.2.2:12996,"
                      "links.0.local=198.51.100.1:12996,links.0.peer=198.51.100.2:12996,"
                      "timeout=700,key-file=/etc/colo/web1.key"));
    g_assert_true(has(a, "-serial", "file:/tmp/a b"));
    g_assert_true(has(a, "-option", "alpha"));
    g_assert_false(mentions(a, "-incoming"));
    g_assert_false(mentions(a, "filter-rewriter"));
}

#define TWO_CARDS                                                                            \
    "[vm]\nname=x\nmemory=64\n[net.lan]\ntap=tap0\nmac=52:54:00:00:00:01\n"                    \
    "[net.dmz]\nbridge=br1\nmac=52:54:00:00:00:02\nmodel=e1000\n[hosts]\na=192.0.2.1\n"       \
    "b=192.0.2.2\n[pair]\nport-base=12000\n"

/* The second card is what -colo pair=on would make of it after a takeover. */
static void test_two_cards(void)
{
    g_autoptr(VmConf) c = load_as(TWO_CARDS, "a");
    g_auto(GStrv) p = vm_command_line(c, "/q", false, false), s = vm_command_line(c, "/q", true, false);
    g_autofree char *all = g_strjoinv(" ", p);
    g_autoptr(GArray) ports = vm_conf_listeners(c);

    g_assert_true(has(p, "-netdev", "tap,id=hn0,vhost=off,ifname=tap0,script=no,downscript=no"));
    g_assert_true(has(p, "-netdev", "bridge,id=hn1,br=br1"));
    g_assert_true(has(p, "-device", "virtio-net-pci,id=e0,netdev=hn0,mac=52:54:00:00:00:01,"
                                    "romfile="));
    g_assert_true(has(p, "-device", "e1000,id=e1,netdev=hn1,mac=52:54:00:00:00:02,romfile="));
    g_assert_true(has(p, "-chardev", "socket,id=mirror0,host=192.0.2.1,port=12003,server=on,"
                                     "wait=off"));
    g_assert_true(has(p, "-chardev", "socket,id=mirror0-1,host=192.0.2.1,port=12013,server=on,"
                                     "wait=off"));
    g_assert_true(has(p, "-chardev", "socket,id=compare1-1,host=192.0.2.1,port=12014,server=on,"
                                     "wait=off"));
    g_assert_true(has(p, "-chardev", "socket,id=compare0-0-1,host=127.0.0.1,port=12011"));
    g_assert_true(has(p, "-chardev", "socket,id=compare_out0-1,host=127.0.0.1,port=12015"));
    g_assert_true(has(p, "-object", "filter-mirror,id=m0-1,netdev=hn1,queue=tx,"
                                    "outdev=mirror0-1"));
    g_assert_true(has(p, "-object", "filter-redirector,netdev=hn1,id=redire0-1,queue=rx,"
                                    "indev=compare_out-1"));
    g_assert_true(has(p, "-object", "filter-redirector,netdev=hn1,id=redire1-1,queue=rx,"
                                    "outdev=compare0-1"));
    g_assert_true(has(p, "-object", "colo-compare,id=comp0-1,primary_in=compare0-0-1,"
                                    "secondary_in=compare1-1,outdev=compare_out0-1,"
                                    "iothread=iothread1"));
    /* One iothread, and before both comparisons. */
    char *thread = strstr(all, "iothread,id=iothread1");
    g_assert_null(strstr(thread + 1, "iothread,id="));
    g_assert_true(thread < strstr(all, "colo-compare,"));
    g_assert_true(has(s, "-chardev", "socket,id=red0-1,host=192.0.2.2,port=12013,reconnect=1"));
    g_assert_true(has(s, "-chardev", "socket,id=red1-1,host=192.0.2.2,port=12014,reconnect=1"));
    g_assert_true(has(s, "-object", "filter-redirector,id=f1-1,netdev=hn1,queue=tx,"
                                    "indev=red0-1"));
    g_assert_true(has(s, "-object", "filter-redirector,id=f2-1,netdev=hn1,queue=rx,"
                                    "outdev=red1-1"));
    g_assert_true(has(s, "-object", "filter-rewriter,id=rew0-1,netdev=hn1,queue=all"));
    g_assert_false(mentions(s, "colo-compare"));
    g_assert_cmpuint(ports->len, ==, 7);
    g_assert_cmpuint(g_array_index(ports, unsigned, 3), ==, 12014);
}

/* What has no value in the file is not given to -colo. */
static void test_settings(void)
{
    g_autoptr(VmConf) c = load_as(
        TWO_CARDS "channels = 4\ncompression = zstd\nxbzrle = on\nmax-bandwidth = 100M\n"
        "max-pause = 20\nmode = adaptive\nbuffered-interval = 25\ncheckpoint-delay = 500\n"
        "tls-dir = /etc/pki/%n\nmetrics = 127.0.0.1:9100\nquiet-time = 60\n", "b");
    g_autoptr(VmConf) plain = load_as(TWO_CARDS, "b");
    g_auto(GStrv) a = vm_command_line(c, "/q", true, false), none = vm_command_line(plain, "/q", true, false);
    g_auto(GStrv) p = vm_command_line(c, "/q", false, false);
    static const char *const given[] = {
        "channels=4", "compression=zstd", "xbzrle=on", "max-bandwidth=100M", "max-pause=20",
        "mode=adaptive", "buffered-interval=25", "checkpoint-delay=500",
        "metrics=127.0.0.1:9100", "quiet-time=60", "tls-client=tlsc0,tls-server=tlss0"};

    for (size_t i = 0; i < G_N_ELEMENTS(given); i++) {
        g_autofree char *key = g_strndup(given[i], strchr(given[i], '=') - given[i] + 1);
        g_assert_true(has(a, "-colo", given[i]));
        g_assert_false(mentions(none, key));
    }
    g_assert_true(has(a, "-object", "tls-creds-x509,id=tlsc0,dir=/etc/pki/x,endpoint=client"));
    g_assert_true(has(a, "-object", "tls-creds-x509,id=tlss0,dir=/etc/pki/x,endpoint=server"));
    /* All four streams; what stays on a host is not encrypted. */
    g_assert_true(mentions(a, "id=red0,host=192.0.2.1,port=12003,reconnect=1,tls-creds=tlsc0"));
    g_assert_true(mentions(a, "id=red1-1,host=192.0.2.1,port=12014,reconnect=1,"
                              "tls-creds=tlsc0"));
    g_assert_true(mentions(p, "port=12003,server=on,wait=off,tls-creds=tlss0"));
    g_assert_true(mentions(p, "port=12014,server=on,wait=off,tls-creds=tlss0"));
    g_assert_true(has(p, "-chardev", "socket,id=compare0-0,host=127.0.0.1,port=12001"));
    g_assert_false(mentions(none, "tls"));
}

static void test_secondary_line(void)
{
    g_autoptr(VmConf) c = load_as(good, "beta");
    g_auto(GStrv) a = vm_command_line(c, "/q", true, false);

    g_assert_true(has(a, "-incoming", "tcp:192.0.2.2:12998"));
    g_assert_true(has(a, "-chardev", "socket,id=red0,host=192.0.2.1,port=12003,reconnect=1"));
    g_assert_true(has(a, "-object", "filter-rewriter,id=rew0,netdev=hn0,queue=all"));
    g_assert_true(has(a, "-drive",
                      "if=none,id=childs0,driver=replication,mode=secondary,file.driver=qcow2,"
                      "top-id=colo-disk0,file.file.filename=/var/lib/qemu-colo/web1/"
                      "root-active.qcow2,file.backing.driver=qcow2,file.backing.file.filename="
                      "/var/lib/qemu-colo/web1/root-hidden.qcow2,file.backing.backing=parent0"));
    g_assert_true(has(a, "-drive", "if=none,id=colo-disk1,driver=quorum,read-pattern=fifo,"
                                   "vote-threshold=1,children.0=childs1"));
    g_assert_false(mentions(a, "colo-compare,"));
}

/* IPv6, no network card, no disk. */
static void test_small_line(void)
{
    g_autoptr(VmConf) c = load_as("[vm]\nname=x\nmemory=64\n[hosts]\na=fd00::1\nb=fd00::2\n"
                                  "[pair]\nheartbeat=on\n", "b");
    g_auto(GStrv) a = vm_command_line(c, "/q", true, false);

    g_assert_true(has(a, "-incoming", "tcp:[fd00::2]:9998"));
    g_assert_true(has(a, "-object", "colo-heartbeat,id=hb0,local=[fd00::2]:9996,"
                                    "peer=[fd00::1]:9996"));
    g_assert_false(mentions(a, "-netdev"));
    g_assert_false(mentions(a, "-drive"));
}

/* --- Roles --- */

static PeerView undecided(LastRole last)
{
    return (PeerView){.answers = true, .undecided = true, .last = last};
}

/* Whatever both were: never two primaries, whatever each sees of the other meanwhile. */
static void test_never_two_primaries(void)
{
    const char *why;

    for (int a = 0; a < LAST_MAX; a++) {
        for (int b = 0; b < LAST_MAX; b++) {
            for (int preferred = 0; preferred < 2; preferred++) {
                PeerView va = undecided(b), vb = undecided(a);
                Decision da = role_decide(a, &va, preferred, &why);
                Decision db = role_decide(b, &vb, !preferred, &why);
                g_assert_false(da == DECIDE_PRIMARY && db == DECIDE_PRIMARY);
                /* A secondary begins once its primary is there, or its start could leave
                 * both waiting. */
                g_assert_true(da != DECIDE_SECONDARY && db != DECIDE_SECONDARY);
                /* The one that wins is never outdated beside one that served alone. */
                g_assert_false(da == DECIDE_PRIMARY && b == LAST_ALONE);
            }
        }
    }
}

static void test_alone_at_start(void)
{
    PeerView gone = {.last = LAST_MAX};
    const char *why;

    for (int a = 0; a < LAST_MAX; a++) {
        g_assert_cmpint(role_decide(a, &gone, true, &why), ==,
                        a == LAST_ALONE ? DECIDE_PRIMARY : DECIDE_WAIT);
        g_assert_cmpint(strlen(why), >, 10);
    }
}

static void test_beside_qemu_colo(void)
{
    PeerView v = {.answers = true, .serves = true, .state = "alone", .last = LAST_MAX};
    const char *why;

    for (int a = 0; a < LAST_MAX; a++) {
        g_assert_cmpint(role_decide(a, &v, true, &why), ==,
                        a == LAST_ALONE ? DECIDE_WAIT : DECIDE_SECONDARY);
    }
    v.serves = false;
    for (const char *const *s = (const char *const[]){"lost", "takeover", "starting",
                                                      "fenced", "protected", NULL}; *s; s++) {
        g_strlcpy(v.state, *s, sizeof(v.state));
        for (int a = 0; a < LAST_MAX; a++) {
            g_assert_cmpint(role_decide(a, &v, true, &why), ==, DECIDE_WAIT);
        }
    }
    g_strlcpy(v.state, "waiting", sizeof(v.state));
    for (int a = 0; a < LAST_MAX; a++) {
        bool may = a == LAST_ALONE || a == LAST_PROTECTED_PRIMARY || a == LAST_LOST_PRIMARY;
        g_assert_cmpint(role_decide(a, &v, true, &why), ==, may ? DECIDE_PRIMARY : DECIDE_WAIT);
    }
}

static void test_role_file(void)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *dir = g_dir_make_tmp("role-XXXXXX", NULL);
    g_autofree char *file = g_strdup_printf("%s/role", dir);
    VmConf c = {.state_dir = dir};
    LastRole r;

    g_assert_true(last_role_load(&c, &r, &err));
    g_assert_cmpint(r, ==, LAST_NONE);
    for (int i = 0; i < LAST_MAX; i++) {
        g_assert_true(last_role_save(&c, i, &err));
        g_assert_true(last_role_load(&c, &r, &err));
        g_assert_cmpint(r, ==, i);
    }
    /* What cannot be understood is not "never ran here". */
    g_assert_true(g_file_set_contents(file, "prim", -1, NULL));
    g_assert_false(last_role_load(&c, &r, &err));
    g_assert_nonnull(strstr(err->message, "prim"));
    unlink(file);
    rmdir(dir);
}

static void test_peer_lines(void)
{
    PeerView v;

    peer_parse("{\"program\":\"qemu-colo\",\"name\":\"x\",\"state\":\"alone\",\"serves\":true,"
               "\"role\":\"none\"}", "x", &v);
    g_assert_true(v.answers && v.serves && !v.undecided);
    peer_parse("{\"program\":\"coloctl\",\"name\":\"x\",\"last\":\"alone\"}", "x", &v);
    g_assert_true(v.answers && v.undecided && v.last == LAST_ALONE);
    for (const char *const *s = (const char *const[]){
             "", "nonsense", "[1]", "{}", "{\"program\":7}", "{\"program\":\"httpd\"}",
             "{\"program\":\"qemu-colo\",\"name\":\"y\"}",
             "{\"program\":\"coloctl\",\"name\":\"x\",\"last\":\"king\"}",
             "{\"program\":\"coloctl\",\"name\":\"x\"}", NULL}; *s; s++) {
        peer_parse(*s, "x", &v);
        g_assert_false(v.answers);
        g_assert_cmpint(strlen(v.why), >, 10);
    }
}

/* --- Text --- */

static void test_text(void)
{
    static const char *const known[] = {"status", "checkpoint", NULL};
    g_autofree char *clean = ctl_clean("a\033[2Jb\n\xff" "c", 100);
    g_autofree char *cut = ctl_clean("abcdef", 3);
    g_autofree char *ms = ctl_us(2140), *kib = ctl_bytes(1536);

    g_assert_null(strchr(clean, 033));
    g_assert_true(g_utf8_validate(clean, -1, NULL));
    g_assert_cmpstr(cut, ==, "abc");
    g_assert_cmpstr(ms, ==, "2.1 ms");
    g_assert_cmpstr(kib, ==, "1.5 KiB");
    g_assert_cmpstr(ctl_nearest("statsu", known), ==, "status");
    g_assert_null(ctl_nearest("frobnicate", known));
    g_assert_null(ctl_nearest("", (const char *const[]){NULL}));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/coloctl/conf/good", test_good);
    g_test_add_func("/coloctl/conf/wrong", test_wrong);
    g_test_add_func("/coloctl/conf/hosts", test_hosts);
    g_test_add_func("/coloctl/conf/files", test_files);
    g_test_add_func("/coloctl/conf/long-directory", test_long_directory);
    g_test_add_func("/coloctl/line/primary", test_primary_line);
    g_test_add_func("/coloctl/line/secondary", test_secondary_line);
    g_test_add_func("/coloctl/line/small", test_small_line);
    g_test_add_func("/coloctl/line/two-cards", test_two_cards);
    g_test_add_func("/coloctl/line/settings", test_settings);
    g_test_add_func("/coloctl/role/never-two-primaries", test_never_two_primaries);
    g_test_add_func("/coloctl/role/alone-at-start", test_alone_at_start);
    g_test_add_func("/coloctl/role/beside-qemu-colo", test_beside_qemu_colo);
    g_test_add_func("/coloctl/role/file", test_role_file);
    g_test_add_func("/coloctl/role/peer-lines", test_peer_lines);
    g_test_add_func("/coloctl/text", test_text);
    return g_test_run();
}
