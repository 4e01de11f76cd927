/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs generated kernels on the cases in cases.bin and writes their outputs to stdout.
 *
 * `kernels` and `kernel_count` come from a generated file.  cases.bin holds, per case, int64
 * numbers: kernel, floats of scratch, inputs, numbers, calls, floats of output (guard words
 * included) and of the guard on either side; then the numbers the kernel takes, first and last
 * tile of each call, the bytes of each input, and the inputs themselves.  Every buffer ends against a page that cannot be read or written,
 * to the cache line.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "../../runtime/csrc/abi.h"

extern const kernel_function kernels[];
extern const int64_t kernel_count;

enum { PAGE = 4096, LINE = 64, MOST_INPUTS = 48, MOST_NUMBERS = 32, MOST_CALLS = 8, HEADER = 7 };
static const float GUARD = -12345.5f;

typedef struct {
    char *start;
    size_t held, mapped;
} Fenced;

static size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

static void fail(const char *what, int64_t case_index) {
    fprintf(stderr, "case %lld: %s\n", (long long)case_index, what);
    exit(1);
}

static Fenced fenced(size_t bytes) {
    Fenced f = {.held = round_up(bytes, LINE)};
    const size_t pages = round_up(f.held, PAGE);
    f.mapped = pages + PAGE;
    char *base = mmap(NULL, f.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base + pages, PAGE, PROT_NONE)) fail("no memory", -1);
    memset(base, 0xFF, pages); /* NaN as float, far away as an index */
    f.start = base + pages - f.held;
    return f;
}

static void release(Fenced f) {
    char *base = f.start + f.held + PAGE - f.mapped;
    munmap(base, f.mapped);
}

static float *poisoned_output(Fenced f, int64_t floats, int64_t guard) {
    float *y = (float *)f.start;
    for (int64_t i = 0; i < guard; i++) y[i] = y[floats - 1 - i] = GUARD;
    return y + guard;
}

typedef struct {
    kernel_function kernel;
    int64_t scratch_floats, input_count, number_count;
    Fenced inputs[MOST_INPUTS];
    int64_t numbers[MOST_NUMBERS];
    float *y;
} Call;

static TVMFFIAny pointer(void *p) { return (TVMFFIAny){.type_index = TYPE_OPAQUE_POINTER, .v_ptr = p}; }

static TVMFFIAny integer(int64_t n) { return (TVMFFIAny){.type_index = TYPE_INT, .v_int64 = n}; }

static int32_t call(const Call *c, const int64_t *tiles) {
    Fenced scratch = fenced((size_t)c->scratch_floats * 4);
    int64_t floats = c->scratch_floats;
    DLTensor tensor = {.data = scratch.start, .device = {DEVICE_CPU, 0}, .ndim = 1,
                       .dtype = {DTYPE_FLOAT, 32, 1}, .shape = &floats};
    TVMFFIAny arguments[MOST_INPUTS + MOST_NUMBERS + 4] = {{.type_index = TYPE_TENSOR, .v_ptr = &tensor}};
    int32_t n = 1;
    for (int64_t i = 0; i < c->input_count; i++) arguments[n++] = pointer(c->inputs[i].start);
    arguments[n++] = pointer(c->y);
    for (int64_t i = 0; i < c->number_count; i++) arguments[n++] = integer(c->numbers[i]);
    arguments[n++] = integer(tiles[0]);
    arguments[n++] = integer(tiles[1]);
    TVMFFIAny result = {0};
    const int32_t status = c->kernel(NULL, arguments, n, &result);
    release(scratch);
    return status;
}

/* Copy `count` numbers from the file and return what follows them. */
static const char *take(int64_t *numbers, int64_t count, int64_t most, const char *at) {
    if (count < 0 || count > most) fail("too many numbers", -1);
    memcpy(numbers, at, 8 * (size_t)count);
    return at + 8 * count;
}

static const char *run_case(const char *at, int64_t index) {
    int64_t header[HEADER], tiles[2 * MOST_CALLS], bytes[MOST_INPUTS];
    at = take(header, HEADER, HEADER, at);
    if (header[0] < 0 || header[0] >= kernel_count) fail("no such kernel", index);
    Call c = {.kernel = kernels[header[0]], .scratch_floats = header[1], .input_count = header[2],
              .number_count = header[3]};
    const int64_t calls = header[4], floats = header[5];
    at = take(c.numbers, c.number_count, MOST_NUMBERS, at);
    at = take(tiles, 2 * calls, 2 * MOST_CALLS, at);
    at = take(bytes, c.input_count, MOST_INPUTS, at);
    for (int64_t i = 0; i < c.input_count; i++) {
        c.inputs[i] = fenced((size_t)bytes[i]);
        memcpy(c.inputs[i].start, at, (size_t)bytes[i]);
        at += bytes[i];
    }
    Fenced output = fenced((size_t)floats * 4);
    c.y = poisoned_output(output, floats, header[6]);
    for (int64_t i = 0; i < calls; i++)
        if (call(&c, tiles + 2 * i)) fail("kernel failed", index);
    if (fwrite(output.start, 4, (size_t)floats, stdout) != (size_t)floats) fail("cannot write", index);
    release(output);
    for (int64_t i = 0; i < c.input_count; i++) release(c.inputs[i]);
    return at;
}

int main(void) {
    const int file = open("cases.bin", O_RDONLY);
    struct stat status;
    if (file < 0 || fstat(file, &status)) fail("cannot open cases.bin", -1);
    const char *all = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (all == MAP_FAILED) fail("cannot map cases.bin", -1);
    int64_t index = 0;
    for (const char *at = all; at < all + status.st_size; index++) {
        /* stderr tells which case a crash was in */
        fprintf(stderr, "\rcase %lld", (long long)index);
        at = run_case(at, index);
    }
    return 0;
}
