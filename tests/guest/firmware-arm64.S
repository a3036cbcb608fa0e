/*
 * A firmware for QEMU's arm64 machine "virt" that starts one kernel.
 *
 * Copyright (c) 2026 the qemu-colo developers
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * It stands in flash with the kernel and the initramfs behind it, and copies both into RAM.
 * What -kernel gives the emulator to load is written into RAM again by every reset, and so
 * by every snapshot-load; what stands in flash is not. The device tree, which the emulator
 * puts at the start of RAM, names the initramfs where it will be.
 */
#define KERNEL_AT 0x40200000
#define INITRD_AT 0x46000000
#define TREE_AT   0x40000000

    .text
    .global _start
_start:
    ldr x1, =KERNEL_FROM
    ldr x2, =KERNEL_AT
    ldr x3, =KERNEL_SIZE
    bl copy
    ldr x1, =INITRD_FROM
    ldr x2, =INITRD_AT
    ldr x3, =INITRD_SIZE
    bl copy
    ldr x0, =TREE_AT
    mov x1, xzr
    mov x2, xzr
    mov x3, xzr
    ldr x4, =KERNEL_AT
    br x4

/* x3 bytes, rounded up to 16, from x1 to x2. */
copy:
    ldp x4, x5, [x1], #16
    stp x4, x5, [x2], #16
    subs x3, x3, #16
    b.gt copy
    ret
