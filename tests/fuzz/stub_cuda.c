/* SPDX-License-Identifier: Apache-2.0
 *
 * In place of cuda_driver.c: a GPU whose memory is this process's, of exactly the bytes that were asked for, so that
 * the address sanitizer watches its ends.  All is done at once; every kernel touches what it is given. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"
#include "stubs.h"

enum { MOST_MEMORY = 1 << 22 };

static char handle[64]; /* whatever the runtime only hands back */

static CUresult give(void *place) {
    void *made = handle;
    memcpy(place, &made, sizeof made);
    return 0;
}

static CUresult attribute(int *value, unsigned int which, CUdevice device) {
    *value = which == MOST_SHARED_BYTES ? 227 << 10 : 9;
    return (CUresult)device;
}

static CUresult retain(CUcontext *context, CUdevice device) { return (CUresult)device + give(context); }
static CUresult with_device(CUdevice device) { return (CUresult)device; }
static CUresult with_context(CUcontext context) { return !context; }
static CUresult pop(CUcontext *context) { return give(context); }

static CUresult load(CUmodule *module, const void *image) {
    touch(image, 64);
    return give(module);
}

static CUresult unload(CUmodule module) { return !module; }
static CUresult find(CUfunction *function, CUmodule module, const char *name) {
    return !module || !name[0] ? 500 : give(function);
}
static CUresult set(CUfunction function, unsigned int which, int value) {
    return !function || which != FUNCTION_SHARED_BYTES || value > 227 << 10;
}

/* The ends of the buffers whose addresses are given, and the integers. */
static CUresult launch(CUfunction function, unsigned int blocks, unsigned int y, unsigned int z, unsigned int threads,
                       unsigned int threads_y, unsigned int threads_z, unsigned int shared, CUstream stream,
                       void **parameters, void **extra) {
    const struct plan *plan = &running_model->plan;
    const size_t first = (size_t)(parameters - running->device->parameters);
    size_t step = 0;
    const size_t steps = plan->step_count;
    while (step < steps && (plan->steps[step].argument_count == 0 || plan->steps[step].first_argument != first)) step++;
    const size_t arguments = step < steps ? plan->steps[step].argument_count : 0; /* a kernel may take none */
    for (size_t i = first; i < first + arguments; i++) {
        void *value;
        memcpy(&value, parameters[i - first], sizeof value);
        if (plan->arguments[i].kind == ARGUMENT_POINTER)
            touch(value, running->sizes[plan->buffers[plan->arguments[i].value].nbytes]);
    }
    return !function || !stream || extra || y * z * threads_y * threads_z != 1 || !blocks || !threads ||
           shared > 227 << 10;
}

static CUresult allocate(CUdeviceptr *address, size_t bytes) {
    void *memory = NULL;
    if (bytes > MOST_MEMORY || posix_memalign(&memory, 256, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    *address = (uintptr_t)memory;
    return 0;
}

static CUresult release(CUdeviceptr address) {
    free((void *)(uintptr_t)address);
    return 0;
}

static CUresult copy_in(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    memcpy((void *)(uintptr_t)to, from, bytes);
    return !stream;
}
static CUresult copy_out(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return !stream;
}
static CUresult copy_within(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    memmove((void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes);
    return !stream;
}

static CUresult ordinal(void *value, unsigned int which, CUdeviceptr address) {
    memset(value, 0, sizeof(int));
    return which != POINTER_DEVICE_ORDINAL || !address;
}

static CUresult create(CUstream *stream, unsigned int flags) { return flags > 1 || give(stream); }
static CUresult with_stream(CUstream stream) { return !stream; }
static CUresult wait(CUstream stream, CUevent event, unsigned int flags) { return !stream || !event || flags; }
static CUresult capturing(CUstream stream, unsigned int *status) { return (CUresult)(*status = 0) + !stream; }
static CUresult begin(CUstream stream, unsigned int mode) { return !stream || mode != CAPTURE_THREAD_LOCAL; }
static CUresult end(CUstream stream, CUgraph *graph) { return !stream || give(graph); }
static CUresult instantiate(CUgraphExec *executable, CUgraph graph, unsigned long long flags) {
    return !graph || flags || give(executable);
}
static CUresult replay(CUgraphExec executable, CUstream stream) { return !executable || !stream; }
static CUresult with_graph(CUgraph graph) { return !graph; }
static CUresult with_executable(CUgraphExec executable) { return !executable; }
static CUresult event(CUevent *made, unsigned int flags) { return flags > 2 || give(made); }
static CUresult with_event(CUevent made) { return !made; }
static CUresult record(CUevent made, CUstream stream) { return !made || !stream; }
static CUresult elapsed(float *milliseconds, CUevent start, CUevent stop) {
    *milliseconds = 1;
    return !start || !stop;
}

static const struct driver DRIVER = {
    .device_attribute = attribute, .context_retain = retain, .context_release = with_device,
    .context_push = with_context, .context_pop = pop, .module_load = load, .module_unload = unload,
    .module_function = find, .function_set = set, .launch = launch, .allocate = allocate, .release = release,
    .copy_in = copy_in, .copy_out = copy_out, .copy_within = copy_within, .pointer_attribute = ordinal,
    .stream_create = create, .stream_destroy = with_stream, .stream_wait = wait, .stream_synchronize = with_stream,
    .stream_is_capturing = capturing, .capture_begin = begin, .capture_end = end, .graph_instantiate = instantiate,
    .graph_launch = replay, .graph_destroy = with_graph, .executable_destroy = with_executable,
    .event_create = event, .event_destroy = with_event, .event_record = record, .event_synchronize = with_event,
    .event_elapsed = elapsed,
};

int gpu_find(struct gpu *gpu, struct sparsec_failure *failure) {
    (void)failure;
    *gpu = (struct gpu){.driver = &DRIVER, .major = 9};
    return 0;
}

int gpu_check(const struct driver *driver, CUresult code, enum sparsec_failure_kind kind, const char *doing,
              struct sparsec_failure *failure) {
    (void)driver;
    return code ? fail(failure, code == CUDA_ERROR_OUT_OF_MEMORY ? SPARSEC_FAILURE_MEMORY : kind, "%s", doing) : 0;
}

void device_lacking(const char *arch, char *text, size_t size) {
    snprintf(text, size, "%s", strncmp(arch, "sm_90", 5) == 0 ? "" : "another GPU");
}
