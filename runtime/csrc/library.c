/* The code section as a loaded shared object. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

static int write_all(int descriptor, struct span code) {
    while (code.size) {
        ssize_t written = write(descriptor, code.data, code.size);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return -1;
        code.data += written;
        code.size -= (size_t)written;
    }
    return 0;
}

/* The descriptor stays open as long as the library: the loader knows libraries by path, and a
 * second model under the same /proc/self/fd number would be taken for the first. */
static int open_in_memory(struct library *library, struct span code) {
    char path[64];
    int descriptor = memfd_create("sparsec_code", MFD_CLOEXEC);
    if (descriptor < 0) return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    if (write_all(descriptor, code) == 0) library->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library->handle) library->descriptor = descriptor;
    else close(descriptor);
    return library->handle ? 0 : -1;
}

static int open_through_file(struct library *library, struct span code) {
    char path[4096];
    const char *folder = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/sparsec_XXXXXX", folder && *folder ? folder : P_tmpdir);
    int descriptor = mkstemp(path);
    if (descriptor < 0) return -1;
    int status = write_all(descriptor, code);
    close(descriptor);
    if (status == 0) library->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    unlink(path);
    return library->handle ? 0 : -1;
}

static void set_hook(const struct library *library, const char *name, void *function) {
    void **variable = dlsym(library->handle, name);
    if (variable) *variable = function;
}

/* ISO C has no conversion from an object pointer to a function pointer; POSIX promises this one. */
static void find_function(const struct library *library, const char *name, void *function) {
    void *symbol = dlsym(library->handle, name);
    memcpy(function, &symbol, sizeof symbol);
}

static void set_hooks(struct library *library) {
    void *(*allocate)(uint64_t) = workspace_allocate;
    int (*release)(void *) = workspace_free;
    void *pointers[2];
    memcpy(&pointers[0], &allocate, sizeof allocate);
    memcpy(&pointers[1], &release, sizeof release);
    set_hook(library, "sparsec_allocate", pointers[0]);
    set_hook(library, "sparsec_free", pointers[1]);
    find_function(library, "sparsec_last_error", &library->last_error);
}

int library_open(struct library *library, struct span code, struct sparsec_failure *failure) {
    *library = (struct library){.descriptor = -1};
    if (code.size == 0) return 0;
    if (open_in_memory(library, code) && open_through_file(library, code)) {
        const char *reason = dlerror();
        return fail(failure, SPARSEC_FAILURE_ARTIFACT, "the code cannot be loaded on this machine: %s",
                    reason ? reason : strerror(errno));
    }
    set_hooks(library);
    return 0;
}

void library_close(struct library *library) {
    if (library->handle) dlclose(library->handle);
    if (library->descriptor >= 0) close(library->descriptor);
    *library = (struct library){.descriptor = -1};
}

kernel_function library_kernel(const struct library *library, const char *name) {
    char symbol[512];
    kernel_function kernel = NULL;
    int length = snprintf(symbol, sizeof symbol, "__tvm_ffi_%s", name);
    if (library->handle && length > 0 && (size_t)length < sizeof symbol) find_function(library, symbol, &kernel);
    return kernel;
}
