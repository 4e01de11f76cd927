/* SPDX-License-Identifier: Apache-2.0
 *
 * The machine's whole firmware: a 64 KiB ROM that starts Linux directly.
 *
 * Bochs places one memory image at IMAGE (see emulator.py): the kernel's boot
 * parameters, then the uncompressed kernel, then the initramfs. The processor
 * starts at the end of this ROM in 16-bit mode; the code below goes to 64-bit
 * mode with the low 1 GiB and the ROM mapped one to one, and jumps to the
 * kernel's 64-bit entry point with RSI pointing at the boot parameters, as
 * the Linux x86 boot protocol asks. No BIOS, boot loader or decompressor runs,
 * which is what keeps the boot short.
 */
.set ROM, 0xFFFF0000
.set IMAGE, 0x00FE0000          /* the boot parameters, emulator.py's IMAGE */
.set KERNEL, 0x01000000         /* where the kernel is linked to run */
.set TABLES, IMAGE + 0x2000     /* four pages of page tables */
.set STACK, IMAGE + 0x20000
#ifndef MEMORY
#define MEMORY 0x10000000
#endif
.set BLOCK, 0x20000             /* Bochs's unit of guest memory */

.section .text
.code16
start16:
  cli
  cld
  movw $gdt_register, %bx
  lgdtl %cs:(%bx)
  movl %cr0, %eax
  orl $1, %eax
  movl %eax, %cr0
  ljmpl $0x18, $ROM + start32

.code32
start32:
  movw $0x20, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss

  /* Bochs reads an image file into consecutive host memory but hands guest
   * blocks their host memory in order of first use, after it gave the image's
   * first block the first place. Using the blocks in ascending order, before
   * any other memory, makes the rest of the image appear where it belongs. */
  movl $IMAGE, %esi
1:
  movl (%esi), %eax
  addl $BLOCK, %esi
  cmpl $MEMORY, %esi
  jb 1b

  movl $STACK, %esp
  movl $TABLES, %edi
  xorl %eax, %eax
  movl $0x1000, %ecx
  rep stosl
  movl $TABLES + 0x1003, TABLES             /* 512 GiB */
  movl $TABLES + 0x2003, TABLES + 0x1000    /* first GiB */
  movl $TABLES + 0x3003, TABLES + 0x1018    /* fourth GiB */
  movl $0xFFE00083, TABLES + 0x3FF8         /* its last 2 MiB: this ROM */
  movl $TABLES + 0x2000, %edi
  movl $0x83, %eax                          /* 2 MiB page, writable, present */
  movl $512, %ecx
2:
  movl %eax, (%edi)
  addl $8, %edi
  addl $0x200000, %eax
  loop 2b

  movl $0x20, %eax                          /* CR4.PAE */
  movl %eax, %cr4
  movl $TABLES, %eax
  movl %eax, %cr3
  movl $0xC0000080, %ecx                    /* EFER.LME */
  movl $0x100, %eax
  xorl %edx, %edx
  wrmsr
  movl $0x80000001, %eax                    /* CR0.PG, CR0.PE */
  movl %eax, %cr0
  ljmpl $0x10, $ROM + start64

.code64
start64:
  movl $0x20, %eax
  movw %ax, %ds
  movl $IMAGE, %esi
  movl $KERNEL, %eax
  jmp *%rax

.balign 8
gdt:                            /* null, unused, 64-bit code, 32-bit code, data */
  .quad 0, 0, 0x00AF9A000000FFFF, 0x00CF9A000000FFFF, 0x00CF92000000FFFF
gdt_register:
  .word gdt_register - gdt - 1
  .long ROM + gdt

.org 0xFFF0                     /* the reset vector */
.code16
  jmp start16
.org 0x10000
