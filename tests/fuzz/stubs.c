/* SPDX-License-Identifier: Apache-2.0
 *
 * In place of library.c: a file's code is never loaded, and every kernel is one that touches what it is given.
 * In place of mmap: memory whose ends the address sanitizer watches. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stubs.h"

const struct sparsec_model *running_model;
const struct sparsec_binding *running;

static volatile unsigned char touched;

void touch(const void *data, int64_t bytes) {
    const unsigned char *at = data;
    if (bytes > 0) touched = at[0], touched = at[bytes - 1];
}

static int64_t tensor_bytes(const DLTensor *tensor) {
    int64_t bytes = tensor->dtype.bits / 8;
    for (int i = 0; i < tensor->ndim; i++) bytes *= tensor->shape[i];
    return bytes;
}

/* Read the ends of all memory a kernel may use; fail for some numbers of tiles. */
static int32_t kernel(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result) {
    const struct plan *plan = &running_model->plan;
    const size_t first = (size_t)(arguments - running->arguments);
    (void)self, (void)result;
    for (int32_t i = 0; i < count; i++) {
        const struct argument *a = &plan->arguments[first + (size_t)i];
        if (a->kind == ARGUMENT_POINTER)
            touch(arguments[i].v_ptr, running->sizes[plan->buffers[a->value].nbytes]);
        if (arguments[i].type_index == TYPE_TENSOR) {
            const DLTensor *tensor = arguments[i].v_ptr;
            touch(tensor->data, tensor_bytes(tensor));
        }
        if (a->kind == ARGUMENT_TILE_END && arguments[i].v_int64 % 7 == 6) return -1;
    }
    workspace_allocate(100);
    void *second = workspace_allocate((uint64_t)count * 64);
    return second ? workspace_free(second) : -1;
}

int library_open(struct library *library, struct span code, struct sparsec_failure *failure) {
    *library = (struct library){.descriptor = -1};
    touch(code.data, (int64_t)code.size);
    if (code.size != 1) return 0;
    return fail(failure, SPARSEC_FAILURE_ARTIFACT, "the code cannot be loaded");
}

void library_close(struct library *library) { (void)library; }

kernel_function library_kernel(const struct library *library, const char *name) {
    (void)library;
    return strlen(name) ? kernel : NULL;
}

void *checked_mmap(void *address, size_t size, int protection, int flags, int descriptor, off_t offset) {
    void *memory = NULL;
    (void)address, (void)protection, (void)flags, (void)offset;
    if (posix_memalign(&memory, 4096, size)) return MAP_FAILED;
    if (descriptor >= 0 && pread(descriptor, memory, size, 0) != (ssize_t)size) abort();
    return memory;
}

int checked_munmap(void *memory, size_t size) {
    (void)size;
    free(memory);
    return 0;
}

int checked_mprotect(void *memory, size_t size, int protection) {
    (void)memory, (void)size, (void)protection;
    return 0;
}
