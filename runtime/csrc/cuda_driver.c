/* The GPU's driver: opened at run time, and what it says of the GPU. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

/* Drivers are never closed, not even those that failed: they may have started threads and exit handlers. */
struct opened {
    struct driver driver;
    struct opened *next;
    char name[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct opened *all;

#define DRIVER_SYMBOL(field, symbol, parameters) {#symbol, offsetof(struct driver, field)},
static const struct {
    const char *symbol;
    size_t offset;
} SYMBOLS[] = {DRIVER_FUNCTIONS(DRIVER_SYMBOL)};
#undef DRIVER_SYMBOL

static int find_symbols(struct driver *driver, void *handle, const char *name, struct sparsec_failure *failure) {
    for (size_t i = 0; i < sizeof SYMBOLS / sizeof *SYMBOLS; i++) {
        void *symbol = dlsym(handle, SYMBOLS[i].symbol);
        if (!symbol)
            return fail(failure, SPARSEC_FAILURE_ARTIFACT, "no driver: %.300s has no function %s; install a later one",
                        name, SYMBOLS[i].symbol);
        memcpy((char *)driver + SYMBOLS[i].offset, &symbol, sizeof symbol);
    }
    return gpu_check(driver, driver->init(0), SPARSEC_FAILURE_ARTIFACT, "no GPU", failure);
}

static int open_driver(struct driver *driver, const char *name, struct sparsec_failure *failure) {
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *reason = dlerror();
        return fail(failure, SPARSEC_FAILURE_ARTIFACT, "no driver: %.500s", reason ? reason : name);
    }
    return find_symbols(driver, handle, name, failure);
}

static struct opened *open_named(const char *name, struct sparsec_failure *failure) {
    struct opened *opened = calloc(1, sizeof *opened + strlen(name) + 1);
    if (!opened) {
        fail_memory(failure, sizeof *opened);
        return NULL;
    }
    strcpy(opened->name, name);
    if (open_driver(&opened->driver, name, failure) == 0) return opened;
    free(opened);
    return NULL;
}

/* The driver that SPARSEC_LIBCUDA names, opened once. */
static const struct driver *driver_find(struct sparsec_failure *failure) {
    const char *name = getenv("SPARSEC_LIBCUDA");
    if (!name || !*name) name = "libcuda.so.1";
    pthread_mutex_lock(&lock);
    struct opened *found = all;
    while (found && strcmp(found->name, name) != 0) found = found->next;
    if (!found) {
        found = open_named(name, failure);
        if (found) {
            found->next = all;
            all = found;
        }
    }
    pthread_mutex_unlock(&lock);
    return found ? &found->driver : NULL;
}

int gpu_check(const struct driver *driver, CUresult code, enum sparsec_failure_kind kind, const char *doing,
              struct sparsec_failure *failure) {
    const char *text = NULL, *name = NULL;
    if (code == 0) return 0;
    if (driver->error_text(code, &text) || !text) text = "an error the driver has no word for";
    if (driver->error_name(code, &name) || !name) name = "?";
    if (code == CUDA_ERROR_OUT_OF_MEMORY) kind = SPARSEC_FAILURE_MEMORY;
    return fail(failure, kind, "%.400s: %.200s (%.80s, %u)", doing, text, name, code);
}

static int ordinal(int *chosen, struct sparsec_failure *failure) {
    const char *text = getenv("SPARSEC_DEVICE");
    char *end;
    *chosen = 0;
    if (!text || !*text) return 0;
    const long number = strtol(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || number > 1023)
        return fail(failure, SPARSEC_FAILURE_ARTIFACT, "SPARSEC_DEVICE=%.100s is not the number of a GPU", text);
    *chosen = (int)number;
    return 0;
}

static int ask_capability(struct gpu *gpu, struct sparsec_failure *failure) {
    char doing[64];
    const struct driver *d = gpu->driver;
    snprintf(doing, sizeof doing, "there is no GPU %d", gpu->ordinal);
    CUresult code = d->device_get(&gpu->handle, gpu->ordinal);
    if (code == 0) code = d->device_attribute(&gpu->major, CAPABILITY_MAJOR, gpu->handle);
    if (code == 0) code = d->device_attribute(&gpu->minor, CAPABILITY_MINOR, gpu->handle);
    return gpu_check(d, code, SPARSEC_FAILURE_ARTIFACT, doing, failure);
}

int gpu_find(struct gpu *gpu, struct sparsec_failure *failure) {
    *gpu = (struct gpu){.driver = driver_find(failure)};
    return !gpu->driver || ordinal(&gpu->ordinal, failure) || ask_capability(gpu, failure) ? -1 : 0;
}

/* Code for "sm_80" runs on 8.0 and later of the same major version, code for "sm_90a" on 9.0 alone. */
static bool runs_on(const struct gpu *gpu, const char *arch) {
    char *end;
    if (strncmp(arch, "sm_", 3) != 0 || !isdigit((unsigned char)arch[3])) return false;
    const long number = strtol(arch + 3, &end, 10);
    if (strcmp(end, "a") == 0) return number == gpu->major * 10 + gpu->minor;
    return !*end && number / 10 == gpu->major && number % 10 <= gpu->minor;
}

void device_lacking(const char *arch, char *text, size_t size) {
    struct sparsec_failure failure;
    struct gpu gpu;
    text[0] = 0;
    if (gpu_find(&gpu, &failure)) snprintf(text, size, "%s", failure.text);
    else if (!runs_on(&gpu, arch))
        snprintf(text, size, "GPU %d has compute capability %d.%d", gpu.ordinal, gpu.major, gpu.minor);
}
