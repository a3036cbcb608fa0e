#!/bin/bash
# Builds the guest of bench/postgres.py: Debian with PostgreSQL, on a disk of its own.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Usage: postgres-guest.sh   (as root: debootstrap, chroot)
# Everything lands in ${XDG_CACHE_HOME:-$HOME/.cache}/qemu-colo, keyed by this file's hash.
# The last lines name the result: "kernel=", "initrd=", "image=", and "root=", a tree whose
# pgbench speaks to it from outside.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/qemu-colo
scale=5 # 500000 accounts, 75 MiB
size=768M

say() { echo "postgres guest: $*" >&2; }
die() { say "$*"; exit 1; }
for tool in debootstrap mke2fs cpio; do
    command -v $tool >/dev/null || die "$tool is missing: apt-get install debootstrap e2fsprogs cpio"
done
[ "$(id -u)" = 0 ] || die "debootstrap needs root"

kernel=$("$here/../tests/guest/build.sh" | sed -n 's/^kernel=//p')
version=$(ls "$cache/kernel/lib/modules")
modules=$cache/kernel/lib/modules/$version
key=$(sha256sum <"$0" | cut -c 1-12)
root=$cache/postgres-$key
image=$root.img
initrd=$root-$version.cpio
exec 9>"$cache/postgres.lock"
flock 9

make_root() {
    local new=$root.new pg
    rm -rf "$new"
    say "debootstrap (a minute or two, once)"
    debootstrap --variant=minbase --include=postgresql,iproute2 bookworm "$new" >"$root.log" 2>&1 ||
        die "debootstrap failed: see $root.log"
    pg=$(ls "$new/etc/postgresql")
    cat >>"$new/etc/postgresql/$pg/main/postgresql.conf" <<-CONF
	listen_addresses = '*'
	shared_buffers = 64MB
	jit = off
	max_wal_size = 256MB
	ssl = off
	CONF
    echo "host all all 0.0.0.0/0 trust" >>"$new/etc/postgresql/$pg/main/pg_hba.conf"
    cat >"$new/sbin/colo-init" <<-INIT
	#!/bin/sh
	# Process 1: the network, the server, and a word on the console.
	export PATH=/usr/sbin:/usr/bin:/sbin:/bin
	mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs run /run
	mount -t tmpfs shm /dev/shm 2>/dev/null || { mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm; }
	for w in \$(cat /proc/cmdline); do case \$w in colo.ip=*) ip=\${w#colo.ip=};; esac; done
	ip link set lo up; ip link set eth0 up; ip addr add \$ip/24 dev eth0
	mkdir -p /run/postgresql; chown postgres /run/postgresql
	su postgres -c "/usr/lib/postgresql/$pg/bin/pg_ctl -w -t 120 -D /var/lib/postgresql/$pg/main \\
	    -o '-c config_file=/etc/postgresql/$pg/main/postgresql.conf' -l /var/log/postgresql/log start" \\
	    >/dev/console 2>&1 && echo COLO-GUEST-READY >/dev/console
	while :; do sleep 1000; done
	INIT
    chmod 755 "$new/sbin/colo-init"
    say "filling the database"
    chroot "$new" /bin/sh -e >>"$root.log" 2>&1 <<-FILL || die "pgbench -i failed: see $root.log"
	mkdir -p /run/postgresql; chown postgres /run/postgresql
	pg="/usr/lib/postgresql/$pg/bin"; data=/var/lib/postgresql/$pg/main
	conf="-c config_file=/etc/postgresql/$pg/main/postgresql.conf -c listen_addresses= -c fsync=off"
	su postgres -c "\$pg/pg_ctl -w -D \$data -o '\$conf' start"
	su postgres -c "\$pg/createdb bench && \$pg/pgbench -q -i -s $scale bench && \$pg/psql -qc checkpoint bench"
	su postgres -c "\$pg/pg_ctl -w -m fast -D \$data stop"
	FILL
    rm -rf "$new"/var/cache/apt/* "$new"/var/lib/apt/lists/* "$new"/usr/share/doc/*
    rm -rf "$root"
    mv "$new" "$root"
}

make_initrd() {
    local dir module path
    dir=$(mktemp -d)
    mkdir -p "$dir"/{bin,dev,proc,sys,root,modules}
    cp /bin/busybox "$dir/bin/busybox"
    for module in virtio_pci virtio_net virtio_blk crc32c_generic ext4; do
        for path in $(grep -E "(^|/)$module\.ko(\.[a-z]+)?:" "$modules/modules.dep" |
                          tr -d : | tr ' ' '\n' | tac); do
            cp -n "$modules/$path" "$dir/modules/"
            grep -qx "${path##*/}" "$dir/modules/list" 2>/dev/null ||
                echo "${path##*/}" >>"$dir/modules/list"
        done
    done
    for module in "$dir"/modules/*.ko.xz; do
        [ -e "$module" ] && unxz "$module"
    done
    sed -i 's/\.ko\.xz$/.ko/' "$dir/modules/list"
    cat >"$dir/init" <<-'INIT'
	#!/bin/busybox sh
	b=/bin/busybox
	$b mount -t devtmpfs dev /dev
	for m in $($b cat /modules/list); do $b insmod /modules/$m; done
	until [ -b /dev/vda ]; do $b sleep 0.1; done
	$b mount -t ext4 /dev/vda /root && $b mount -o move /dev /root/dev
	exec $b switch_root /root /sbin/colo-init
	INIT
    chmod 755 "$dir/init"
    (cd "$dir" && find . | sort | cpio -o -H newc --quiet -R 0:0) >"$initrd.new"
    mv "$initrd.new" "$initrd"
    rm -rf "$dir"
}

[ -d "$root" ] || make_root
[ -s "$initrd" ] || make_initrd
if [ ! -s "$image" ]; then
    say "making the disk"
    rm -f "$image.new"
    mke2fs -q -t ext4 -d "$root" "$image.new" $size
    mv "$image.new" "$image"
fi
say "ready"
echo "kernel=$kernel"
echo "initrd=$initrd"
echo "image=$image"
echo "root=$root"
