#!/bin/bash
# Builds the arm64 guest: Debian's cloud kernel and our workload behind a firmware in flash.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Usage: build-arm64.sh
# As build.sh; the last lines of the output are "bios=PATH" and "initrd-size=BYTES".
# Exit status 77: something that is needed is not installed, or cannot be had.
# COLO_ARM64_KERNEL_DEB=FILE takes a linux-image package that was fetched by other means.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/qemu-colo/arm64
sources=(workload.c boot.c memory.c disk.c fs.c services.c workload.h pattern.h)
cross=aarch64-linux-gnu-

say() { echo "arm64 guest: $*" >&2; }
lack() { say "$*"; exit 77; }
command -v ${cross}gcc >/dev/null || lack "no ${cross}gcc: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
[ -e /usr/aarch64-linux-gnu/lib/libc.a ] || lack "no arm64 libc: apt-get install libc6-dev-arm64-cross"
command -v depmod >/dev/null && command -v cpio >/dev/null || lack "apt-get install cpio kmod"
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9

# apt as it would be on arm64, with lists of its own: this machine's stay as they are.
apt_arm64() {
    local program=$1
    shift
    "$program" -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
        -o "Dir::State::lists=$cache/lists" -o "Dir::Cache=$cache/apt" \
        -o Dir::State::status=/dev/null -o Acquire::Languages=none \
        -o APT::Sandbox::User=root "$@"
}

fetch_kernel() {
    local deb=${COLO_ARM64_KERNEL_DEB:-} package
    if [ -z "$deb" ]; then
        mkdir -p "$cache"/{lists,apt/archives}/partial
        say "asking for arm64's packages (10 MB, once)"
        apt_arm64 apt-get -qq update >&2 || lack "apt-get update for arm64 failed"
        package=$(apt_arm64 apt-cache depends linux-image-cloud-arm64 2>/dev/null |
                  sed -n 's/^ *Depends: *\(linux-image-[0-9].*\)/\1/p' | head -n 1)
        [ -n "$package" ] || lack "apt knows no linux-image-cloud-arm64"
        say "fetching $package (21 MB, once)"
        (cd "$cache" && apt_arm64 apt-get download -qq "$package" >&2) ||
            lack "apt-get download $package failed"
        deb=$(ls -t "$cache"/linux-image-*.deb | head -n 1)
    fi
    rm -rf "$cache/kernel.new"
    dpkg-deb -x "$deb" "$cache/kernel.new"
    depmod -b "$cache/kernel.new" "$(ls "$cache/kernel.new/lib/modules")"
    rm -rf "$cache/kernel" "$cache/lists" "$cache/apt" "$cache"/linux-image-*.deb
    mv "$cache/kernel.new" "$cache/kernel"
}

[ -d "$cache/kernel/lib/modules" ] || fetch_kernel
version=$(ls "$cache/kernel/lib/modules")
modules=$cache/kernel/lib/modules/$version
image=$cache/kernel/boot/vmlinuz-$version # not compressed on arm64

key=$(cd "$here" && cat "${sources[@]}" firmware-arm64.S build-arm64.sh | sha256sum | cut -c 1-16)
bios=$cache/bios-$version-$key
initrd=$cache/initrd-$version-$key.cpio
if [ ! -s "$bios" ]; then
    say "building the workload and its firmware"
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    mkdir -p "$root"/tree/{dev,proc,sys,tmp,modules}
    (cd "$here" && ${cross}gcc -static -O2 -pthread -std=gnu11 -D_GNU_SOURCE -Wall \
        -o "$root/tree/init" workload.c boot.c memory.c disk.c fs.c services.c)
    ${cross}strip "$root/tree/init"
    for module in virtio_pci virtio_net virtio_blk virtio-rng; do
        line=$(grep -E "(^|/)$module\.ko(\.[a-z]+)?:" "$modules/modules.dep")
        for path in $(tr ' ' '\n' <<<"${line/:/}" | tac); do
            cp -n "$modules/$path" "$root/tree/modules/"
            grep -qx "${path##*/}" "$root/tree/modules/virtio.list" 2>/dev/null ||
                echo "${path##*/}" >>"$root/tree/modules/virtio.list"
        done
    done
    (cd "$root/tree" && find . | sort | cpio -o -H newc --quiet -R 0:0) >"$initrd"
    # The flash: 64 KiB for the firmware, the kernel, the initramfs.
    kernel_size=$(stat -c %s "$image") initrd_size=$(stat -c %s "$initrd")
    kernel_room=$(((kernel_size + 65535) / 65536 * 65536))
    ${cross}gcc -nostdlib -static -Wl,-Ttext=0 -Wl,--build-id=none \
        -DKERNEL_FROM=0x10000 -DKERNEL_SIZE=$kernel_size \
        -DINITRD_FROM=$((65536 + kernel_room)) -DINITRD_SIZE=$initrd_size \
        -o "$root/firmware" "$here/firmware-arm64.S"
    ${cross}objcopy -O binary "$root/firmware" "$root/flash"
    truncate -s 65536 "$root/flash"
    cat "$image" >>"$root/flash"
    truncate -s $((65536 + kernel_room)) "$root/flash"
    cat "$initrd" >>"$root/flash"
    truncate -s %65536 "$root/flash"
    mv "$root/flash" "$bios"
    for old in $(ls -t "$cache"/bios-* | tail -n +4); do rm -f "$old"; done
fi
say "ready: kernel $version, workload $key"
echo "bios=$bios"
echo "initrd-size=$(stat -c %s "$initrd")"
