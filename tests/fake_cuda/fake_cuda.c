/* SPDX-License-Identifier: Apache-2.0
 *
 * A stand-in for CUDA's driver library: errors, devices, contexts, memory and modules.  Kernels are functions of
 * the test, called with the bytes of their parameters. */
#include <elf.h>
#include <stdlib.h>
#include <string.h>

#include "fake.h"

enum { DEVICES = 4, DEPTH = 8, KERNELS = 256, FUNCTIONS = 64 };

struct counts counts;
pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct {
    int count, major, minor, shared;
    size_t memory;
} machine = {1, 9, 0, 227 << 10, (size_t)1 << 40};

static struct {
    char function[NAME];
    long nth;
    CUresult code, sticky;
} failing;

static struct {
    const char *function;
    long calls;
} calls[FUNCTIONS];

static struct {
    char name[NAME];
    int parameters;
} kernels[KERNELS];
static int kernel_count;

struct allocation {
    struct allocation *next;
    unsigned char *base;
    size_t size;
    int device;
};
static struct allocation *allocations;
static size_t allocated;

static struct CUctx_st contexts[DEVICES];
static _Thread_local CUcontext stack[DEPTH];
static _Thread_local int depth;

struct CUmod_st {
    unsigned char header[sizeof(Elf64_Ehdr)];
};

/* Controls of the test. */

EXPORT void fake_machine(int devices, int major, int minor, int shared, size_t memory) {
    machine.count = devices, machine.major = major, machine.minor = minor;
    machine.shared = shared, machine.memory = memory;
}

/* The `nth` call from now of a function fails with a code; with 700 and 719 all later calls do. */
EXPORT void fake_fail(const char *function, long nth, CUresult code) {
    pthread_mutex_lock(&lock);
    strncpy(failing.function, function, NAME - 1);
    failing.nth = nth, failing.code = code, failing.sticky = 0;
    pthread_mutex_unlock(&lock);
}

EXPORT void fake_reset(void) {
    pthread_mutex_lock(&lock);
    memset(&failing, 0, sizeof failing);
    memset(calls, 0, sizeof calls);
    kernel_count = 0;
    counts.copies_in = counts.copies_out = counts.copies_within = counts.launches = 0;
    counts.graph_launches = counts.captures = counts.synchronisations = counts.violations = 0;
    pthread_mutex_unlock(&lock);
}

EXPORT void fake_kernel(const char *name, int parameters) {
    strncpy(kernels[kernel_count].name, name, NAME - 1);
    kernels[kernel_count++].parameters = parameters;
}

EXPORT const struct counts *fake_counts(void) { return &counts; }

EXPORT int fake_depth(void) { return depth; }

EXPORT long fake_calls(const char *function) {
    for (int i = 0; i < FUNCTIONS && calls[i].function; i++)
        if (strcmp(calls[i].function, function) == 0) return calls[i].calls;
    return 0;
}

static struct allocation *holding(CUdeviceptr address) {
    struct allocation *a = allocations;
    while (a && (address < (uintptr_t)a->base || address >= (uintptr_t)a->base + a->size)) a = a->next;
    return a;
}

/* Bytes from an address to the end of its allocation; 0 where there is none. */
EXPORT size_t fake_room(CUdeviceptr address) {
    pthread_mutex_lock(&lock);
    const struct allocation *a = holding(address);
    const size_t room = a ? (size_t)((uintptr_t)a->base + a->size - address) : 0;
    pthread_mutex_unlock(&lock);
    return room;
}

bool inside(CUdeviceptr address, size_t bytes) {
    const struct allocation *a = holding(address);
    return a && bytes <= (uintptr_t)a->base + a->size - address;
}

void set_sticky(CUresult code) {
    if (!failing.sticky) failing.sticky = code;
}

bool is_sticky(void) { return failing.sticky != 0; }

static CUresult decide(const char *function, int needs) {
    if (failing.sticky && !(needs & AFTER_ERRORS)) return failing.sticky;
    if (failing.nth > 0 && strcmp(failing.function, function) == 0 && --failing.nth == 0) {
        if (failing.code == ILLEGAL_ADDRESS || failing.code == LAUNCH_FAILED) failing.sticky = failing.code;
        return failing.code;
    }
    if (needs & CONTEXT && depth == 0) return INVALID_CONTEXT;
    if (!recording || needs & WHILE_CAPTURING) return 0;
    counts.violations++;
    return CAPTURE_UNSUPPORTED;
}

CUresult enter(const char *function, int needs) {
    int i = 0;
    pthread_mutex_lock(&lock);
    while (calls[i].function && strcmp(calls[i].function, function) != 0) i++;
    calls[i].function = function;
    calls[i].calls++;
    const CUresult code = decide(function, needs);
    pthread_mutex_unlock(&lock);
    return code;
}

/* The driver. */

static const struct {
    CUresult code;
    const char *name, *text;
} ERRORS[] = {
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
};

static CUresult describe(CUresult error, const char **name, const char **text) {
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++) {
        if (ERRORS[i].code != error) continue;
        if (name) *name = ERRORS[i].name;
        if (text) *text = ERRORS[i].text;
        return 0;
    }
    return INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text) { return describe(error, NULL, text); }
CUresult cuGetErrorName(CUresult error, const char **name) { return describe(error, name, NULL); }

CUresult cuInit(unsigned int flags) {
    ENTER(NO_CONTEXT);
    if (flags) return INVALID_VALUE;
    return machine.count ? 0 : NO_DEVICE;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER(NO_CONTEXT);
    *device = ordinal;
    return ordinal >= 0 && ordinal < machine.count ? 0 : INVALID_DEVICE;
}

CUresult cuDeviceGetAttribute(int *value, unsigned int attribute, CUdevice device) {
    ENTER(NO_CONTEXT);
    if (device < 0 || device >= machine.count) return INVALID_DEVICE;
    if (attribute == CAPABILITY_MAJOR) *value = machine.major;
    else if (attribute == CAPABILITY_MINOR) *value = machine.minor;
    else if (attribute == MOST_SHARED_BYTES) *value = machine.shared;
    else return INVALID_VALUE;
    return 0;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER(NO_CONTEXT);
    contexts[device].device = device;
    contexts[device].retained++;
    counts.contexts++;
    *context = &contexts[device];
    return 0;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    const CUresult code = enter(__func__, NO_CONTEXT);
    if (contexts[device].retained-- <= 0) abort();
    counts.contexts--;
    return code;
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
    ENTER(WHILE_CAPTURING | AFTER_ERRORS);
    if (depth == DEPTH || !context || context->retained <= 0) return INVALID_CONTEXT;
    stack[depth++] = context;
    return 0;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    const CUresult code = enter(__func__, WHILE_CAPTURING);
    if (depth == 0) return INVALID_CONTEXT;
    *context = stack[--depth];
    return code;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    ENTER(CONTEXT);
    Elf64_Ehdr header;
    memcpy(&header, image, sizeof header);
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_machine != MACHINE_CUDA) return INVALID_IMAGE;
    *module = calloc(1, sizeof **module);
    memcpy((*module)->header, image, sizeof header);
    counts.modules++;
    return 0;
}

CUresult cuModuleUnload(CUmodule module) {
    const CUresult code = enter(__func__, CONTEXT);
    counts.modules--;
    free(module);
    return code;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    static struct CUfunc_st functions[KERNELS]; /* found for one module or another; never freed */
    ENTER(CONTEXT);
    if (!module) return INVALID_HANDLE;
    for (int i = 0; i < kernel_count; i++) {
        if (strcmp(kernels[i].name, name) != 0) continue;
        memcpy(functions[i].name, kernels[i].name, NAME);
        functions[i].parameters = kernels[i].parameters;
        functions[i].shared = USUAL_SHARED;
        *function = &functions[i];
        return 0;
    }
    return NOT_FOUND;
}

CUresult cuFuncSetAttribute(CUfunction function, unsigned int attribute, int value) {
    ENTER(CONTEXT);
    if (attribute != FUNCTION_SHARED_BYTES || value < 0 || value > machine.shared) return INVALID_VALUE;
    function->shared = value;
    return 0;
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    ENTER(CONTEXT);
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > machine.memory - allocated) return CUDA_ERROR_OUT_OF_MEMORY;
    struct allocation *a = malloc(sizeof *a);
    *a = (struct allocation){.base = aligned_alloc(256, (bytes + 255) / 256 * 256), .size = bytes};
    memset(a->base, 0xFF, bytes);
    a->device = stack[depth - 1]->device;
    pthread_mutex_lock(&lock);
    a->next = allocations;
    allocations = a;
    allocated += bytes;
    counts.allocations++;
    pthread_mutex_unlock(&lock);
    *address = (uintptr_t)a->base;
    return 0;
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    const CUresult code = enter(__func__, CONTEXT);
    pthread_mutex_lock(&lock);
    struct allocation **link = &allocations;
    while (*link && (uintptr_t)(*link)->base != address) link = &(*link)->next;
    struct allocation *found = *link;
    if (found) {
        *link = found->next;
        allocated -= found->size;
        counts.allocations--;
        memset(found->base, 0xFF, found->size);
        free(found->base);
    }
    free(found);
    pthread_mutex_unlock(&lock);
    return found ? code : INVALID_VALUE;
}

CUresult cuPointerGetAttribute(void *value, unsigned int attribute, CUdeviceptr address) {
    ENTER(CONTEXT);
    if (attribute != POINTER_DEVICE_ORDINAL) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    const struct allocation *a = holding(address);
    if (a) *(int *)value = a->device;
    pthread_mutex_unlock(&lock);
    return a ? 0 : INVALID_VALUE;
}
