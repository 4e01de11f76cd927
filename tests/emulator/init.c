/* SPDX-License-Identifier: Apache-2.0
 *
 * The emulated machine's first and only service: run /program, keep what it
 * writes, hand that to the host on the raw disk, and switch the machine off.
 *
 * A write past the disk's end leaves it without a header, which is how the
 * host sees that there is no result. The disk is driven through its ports from here (ATA, programmed I/O), since
 * the kernel used has no disk driver built in and a block transfer is far
 * faster in the emulator than a serial port, which takes time per byte.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <fcntl.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
  SECTOR = 512,
  DATA = 0x1f0,
  COUNT = 0x1f2,
  ADDRESS = 0x1f3,
  DEVICE = 0x1f6,
  COMMAND = 0x1f7,
  CONTROL = 0x3f6,
  BUSY = 0x80,
  READY_FOR_DATA = 0x08,
  ERROR = 0x01,
  WRITE_SECTORS = 0x30,
  POWER = 0x8900,
};

/* The first sector, which emulator.py reads; written last. */
struct header {
  char magic[8];
  uint32_t wait_status;
  uint32_t unused;
  uint64_t output_bytes;
  uint64_t error_bytes;
};

static void power_off(void) {
  for (const char* text = "Shutdown"; *text; ++text) outb(*text, POWER);
  for (;;) pause();
}

static void fail(const char* what) {
  perror(what);
  power_off();
}

static void write_sector(uint32_t address, const void* bytes) {
  outb(0xe0 | (address >> 24 & 0x0f), DEVICE);
  outb(1, COUNT);
  outb(address & 0xff, ADDRESS);
  outb(address >> 8 & 0xff, ADDRESS + 1);
  outb(address >> 16 & 0xff, ADDRESS + 2);
  outb(WRITE_SECTORS, COMMAND);
  unsigned char status;
  while ((status = inb(COMMAND)) & BUSY) {
  }
  if (status & ERROR || !(status & READY_FOR_DATA)) {
    fputs("the output disk takes no more\n", stderr);
    power_off();
  }
  outsw(DATA, bytes, SECTOR / 2);
  while (inb(COMMAND) & BUSY) {
  }
}

/* Copies a file to the disk from sector *next on; returns its size. */
static uint64_t send_file(int file, uint32_t* next) {
  unsigned char sector[SECTOR];
  uint64_t total = 0;
  for (;;) {
    memset(sector, 0, sizeof sector);
    const ssize_t got = pread(file, sector, SECTOR, (off_t)total);
    if (got < 0) fail("pread");
    if (got == 0) return total;
    write_sector((*next)++, sector);
    total += (uint64_t)got;
  }
}

static int run_program(int output, int errors) {
  const pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    char* const arguments[] = {"/program", NULL};
    dup2(output, STDOUT_FILENO);
    dup2(errors, STDERR_FILENO);
    execv(arguments[0], arguments);
    perror("execv /program");
    _exit(127);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child) fail("waitpid");
  return status;
}

int main(void) {
  if (iopl(3) != 0) fail("iopl");
  outb(2, CONTROL); /* no interrupts from the disk: it is polled */
  mkdir("/proc", 0555);
  if (mount("proc", "/proc", "proc", 0, NULL) != 0) fail("mount /proc");
  const int output = open("/.stdout", O_CREAT | O_RDWR, 0600);
  const int errors = open("/.stderr", O_CREAT | O_RDWR, 0600);
  if (output < 0 || errors < 0) fail("open");

  struct header header = {.magic = "SPARSEC"};
  header.wait_status = (uint32_t)run_program(output, errors);
  uint32_t next = 1;
  header.output_bytes = send_file(output, &next);
  header.error_bytes = send_file(errors, &next);
  unsigned char sector[SECTOR] = {0};
  memcpy(sector, &header, sizeof header);
  write_sector(0, sector);
  power_off();
}
