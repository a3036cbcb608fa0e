#!/bin/bash
# Builds the guest of the tests: Debian's kernel and an initramfs of the workload.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Usage: build.sh
# Everything lands in ${XDG_CACHE_HOME:-$HOME/.cache}/qemu-colo, keyed by the kernel's
# version and the sources' hash; what is there already is not built again. The last lines
# of the output name the result: "kernel=PATH" and "initrd=PATH".
# COLO_GUEST_KERNEL_DEB=FILE takes a linux-image package that was fetched by other means.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/qemu-colo
sources=(workload.c boot.c memory.c disk.c fs.c services.c workload.h pattern.h)

say() { echo "guest: $*" >&2; }
die() { say "$*"; exit 1; }
need() { command -v "$1" >/dev/null || die "$1 is missing: apt-get install $2"; }

need cpio cpio
need depmod kmod
need "${CC:-gcc}" gcc
[ -x /bin/busybox ] || die "/bin/busybox is missing: apt-get install busybox-static"
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9

# The kernel: the full image, for the cloud one lacks rtl8139 and IDE.
fetch_kernel() {
    local deb=${COLO_GUEST_KERNEL_DEB:-} package
    if [ -z "$deb" ]; then
        need apt-get apt
        package=$(apt-cache depends linux-image-amd64 2>/dev/null |
                  sed -n 's/^ *Depends: *\(linux-image-[0-9].*\)/\1/p' | head -n 1)
        [ -n "$package" ] || die "apt knows no linux-image-amd64: run apt-get update"
        say "fetching $package (70 MB, once)"
        (cd "$cache" && apt-get download -qq "$package" 2>/dev/null) ||
            die "apt-get download $package failed: run apt-get update, or give" \
                "COLO_GUEST_KERNEL_DEB=FILE"
        deb=$(ls -t "$cache"/linux-image-*.deb | head -n 1)
    fi
    rm -rf "$cache/kernel.new"
    mkdir "$cache/kernel.new"
    say "unpacking ${deb##*/}"
    dpkg-deb -x "$deb" "$cache/kernel.new"
    [ -d "$cache/kernel.new/lib/modules" ] || die "$deb holds no modules"
    depmod -b "$cache/kernel.new" "$(ls "$cache/kernel.new/lib/modules")"
    rm -rf "$cache/kernel"
    mv "$cache/kernel.new" "$cache/kernel"
    rm -f "$cache"/linux-image-*.deb
}

[ -d "$cache/kernel/lib/modules" ] || fetch_kernel
version=$(ls "$cache/kernel/lib/modules")
modules=$cache/kernel/lib/modules/$version
bzimage=$cache/kernel/boot/vmlinuz-$version

# The bzImage, although an ELF kernel would boot seconds sooner: the emulator keeps an ELF
# kernel as ROM images that every reset, and so every snapshot-load, writes back into RAM.
kernel=$bzimage

cflags=(-static -O2 -fno-tree-vectorize -pthread -std=gnu11 -D_GNU_SOURCE -Wall -Wextra
        -Wno-unused-parameter)
key=$(cd "$here" && cat "${sources[@]}" build.sh | sha256sum | cut -c 1-16)
initrd=$cache/initrd-$version-$key.cpio
if [ ! -s "$initrd" ]; then
    say "building the workload and its initramfs"
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    mkdir -p "$root"/{bin,dev,proc,sys,tmp,modules}
    (cd "$here" && "${CC:-gcc}" "${cflags[@]}" -o "$root/init" workload.c boot.c memory.c \
        disk.c fs.c services.c)
    strip "$root/init"
    cp /bin/busybox "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    # list NAME MODULE...: /modules/NAME.list, dependencies first
    list() {
        local name=$1 module line path
        shift
        for module; do
            line=$(grep -E "(^|/)$module\.ko(\.[a-z]+)?:" "$modules/modules.dep") ||
                die "no module $module in $version"
            for path in $(tr ' ' '\n' <<<"${line/:/}" | tac); do
                cp -n "$modules/$path" "$root/modules/"
                grep -qx "${path##*/}" "$root/modules/$name.list" 2>/dev/null ||
                    echo "${path##*/}" >>"$root/modules/$name.list"
            done
        done
    }
    list virtio virtio_pci virtio_net virtio_blk virtio-rng
    list e1000 e1000
    list rtl8139 8139cp 8139too
    list ide ata_piix sd_mod
    list ahci ahci sd_mod
    list scsi virtio_scsi sd_mod
    list cdrom sr_mod
    list ext4 crc32c_generic ext4
    # The kernel refuses compressed modules through finit_module without a flag.
    for module in "$root"/modules/*.ko.xz; do
        [ -e "$module" ] && unxz "$module"
    done
    sed -i 's/\.ko\.xz$/.ko/' "$root"/modules/*.list
    (cd "$root" && find . | sort | cpio -o -H newc --quiet -R 0:0) >"$initrd.new"
    mv "$initrd.new" "$initrd"
    rm -f $(ls -t "$cache"/initrd-*.cpio | tail -n +5)
fi
say "ready: kernel $version, workload $key"
echo "kernel=$kernel"
echo "initrd=$initrd"
