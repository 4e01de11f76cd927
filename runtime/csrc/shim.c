/* Linked into every model's code, so that kernels need no TVM at run time.
 *
 * The executor sets the two hooks after loading; without it (a kernel tried alone) memory comes
 * from the C library.  Symbols the kernels refer to are hidden: a TVM loaded in the same process
 * cannot take their place. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define HIDDEN __attribute__((visibility("hidden")))
#define SHOWN __attribute__((visibility("default")))

enum { ERROR_BYTES = 1024 };

SHOWN void *(*sparsec_allocate)(uint64_t bytes);
SHOWN int (*sparsec_free)(void *pointer);

static _Thread_local char last_error[ERROR_BYTES];

static void *allocate(int device_type, int device_id, uint64_t bytes, int dtype_code, int dtype_bits) {
    (void)device_type, (void)device_id, (void)dtype_code, (void)dtype_bits;
    if (sparsec_allocate) return sparsec_allocate(bytes);
    return aligned_alloc(64, (bytes / 64 + 1) * 64);
}

static int release(int device_type, int device_id, void *pointer) {
    (void)device_type, (void)device_id;
    if (sparsec_free) return sparsec_free(pointer);
    free(pointer);
    return 0;
}

HIDDEN void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
HIDDEN int (*__TVMBackendFreeWorkspace)(int, int, void *) = release;

HIDDEN void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    int used = snprintf(last_error, ERROR_BYTES, "%s: ", kind);
    for (int32_t i = 0; i < count && used < ERROR_BYTES; i++)
        used += snprintf(last_error + used, (size_t)(ERROR_BYTES - used), "%s", parts[i]);
}

/* The text of the calling thread's last failure. */
SHOWN const char *sparsec_last_error(void) { return last_error; }
