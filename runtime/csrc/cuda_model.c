/* A model on a GPU: its code and its weights, there once for all sessions. */
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

/* A launch may have so much dynamic shared memory without asking for it. */
enum { USUAL_SHARED = 48 << 10 };

int device_enter(const struct device *device, struct sparsec_failure *failure) {
    const struct driver *d = device->gpu.driver;
    return gpu_check(d, d->context_push(device->context), SPARSEC_FAILURE_KERNEL, "the GPU cannot be used", failure);
}

void device_leave(const struct device *device) {
    CUcontext left;
    device->gpu.driver->context_pop(&left);
}

static bool table_inside(uint64_t start, uint64_t count, uint64_t row, uint64_t size) {
    return start <= size && count * row <= size - start;
}

/* The driver is told no size: what it will follow from the header must lie in the file. */
static bool is_cubin(struct span code) {
    Elf64_Ehdr header;
    if (code.size < sizeof header) return false;
    memcpy(&header, code.data, sizeof header);
    return memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 && header.e_machine == MACHINE_CUDA &&
           table_inside(header.e_shoff, header.e_shnum, header.e_shentsize, code.size) &&
           table_inside(header.e_phoff, header.e_phnum, header.e_phentsize, code.size);
}

static int load_module(struct device *device, struct span code, struct sparsec_failure *failure) {
    const struct driver *d = device->gpu.driver;
    if (!is_cubin(code))
        return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                    "the code is no machine code for a GPU; compile the model again");
    return gpu_check(d, d->module_load(&device->module, code.data), SPARSEC_FAILURE_ARTIFACT,
                     "the GPU's driver refuses the code", failure);
}

static int find_function(struct device *device, const char *name, uint32_t *found, struct sparsec_failure *failure) {
    const struct driver *d = device->gpu.driver;
    char doing[300];
    size_t i = 0;
    while (i < device->function_count && strcmp(device->functions[i].name, name) != 0) i++;
    *found = (uint32_t)i;
    if (i < device->function_count) return 0;
    snprintf(doing, sizeof doing, "the code has no kernel called %.200s; compile the model again", name);
    device->functions[i] = (struct gpu_function){.name = name, .shared = USUAL_SHARED};
    CUresult code = d->module_function(&device->functions[i].handle, device->module, name);
    if (code == 0) device->function_count++;
    return gpu_check(d, code, SPARSEC_FAILURE_ARTIFACT, doing, failure);
}

static int find_functions(struct device *device, const struct plan *plan, struct sparsec_failure *failure) {
    device->functions = calloc(plan->step_count + 1, sizeof *device->functions);
    device->of_steps = calloc(plan->step_count + 1, sizeof *device->of_steps);
    if (!device->functions || !device->of_steps) return fail_memory(failure, plan->step_count);
    for (size_t i = 0; i < plan->step_count; i++)
        if (find_function(device, plan->strings + plan->steps[i].kernel, &device->of_steps[i], failure)) return -1;
    return 0;
}

/* On a stream of its own: the default one would wait for all others of the process. */
static CUresult copy_weights(struct device *device, struct span weights) {
    const struct driver *d = device->gpu.driver;
    CUstream stream;
    CUresult code = d->stream_create(&stream, STREAM_NON_BLOCKING);
    if (code) return code;
    code = d->copy_in(device->weights, weights.data, weights.size, stream);
    if (code == 0) code = d->stream_synchronize(stream);
    d->stream_destroy(stream);
    return code;
}

static int load_weights(struct device *device, struct span weights, struct sparsec_failure *failure) {
    const struct driver *d = device->gpu.driver;
    char doing[80];
    if (weights.size == 0) return 0;
    snprintf(doing, sizeof doing, "the GPU cannot take the weights, %zu bytes", weights.size);
    CUresult code = d->allocate(&device->weights, weights.size);
    if (code == 0) code = copy_weights(device, weights);
    return gpu_check(d, code, SPARSEC_FAILURE_ARTIFACT, doing, failure);
}

static bool wants_graphs(void) {
    const char *text = getenv("SPARSEC_CUDA_GRAPHS");
    return !text || strcmp(text, "0") != 0;
}

static int open_context(struct device *device, struct sparsec_failure *failure) {
    const struct driver *d = device->gpu.driver;
    CUresult code = d->context_retain(&device->context, device->gpu.handle);
    if (code) device->context = NULL;
    if (code == 0) code = d->device_attribute(&device->most_shared, MOST_SHARED_BYTES, device->gpu.handle);
    return gpu_check(d, code, SPARSEC_FAILURE_ARTIFACT, "the GPU cannot be used", failure);
}

static int open_parts(struct sparsec_model *model, struct device *device, struct sparsec_failure *failure) {
    if (gpu_find(&device->gpu, failure) || open_context(device, failure)) return -1;
    if (device_enter(device, failure)) {
        if (failure && failure->kind == SPARSEC_FAILURE_KERNEL) failure->kind = SPARSEC_FAILURE_ARTIFACT;
        return -1;
    }
    int status = load_module(device, model->image.sections[SECTION_CODE], failure);
    if (status == 0) status = find_functions(device, &model->plan, failure);
    if (status == 0) status = load_weights(device, model->image.sections[SECTION_WEIGHTS], failure);
    device_leave(device);
    model->weights = (const unsigned char *)(uintptr_t)device->weights;
    return status;
}

int device_open(struct sparsec_model *model, struct sparsec_failure *failure) {
    struct device *device = calloc(1, sizeof *device);
    if (!device) return fail_memory(failure, sizeof *device);
    pthread_mutex_init(&device->lock, NULL);
    device->graphs = wants_graphs();
    model->device = device;
    return open_parts(model, device, failure);
}

/* After a failure that lasts, and at the end of the process, the driver refuses all of this: so be it. */
static void release(struct device *device) {
    const struct driver *d = device->gpu.driver;
    if (!device->context) return;
    if (device_enter(device, NULL) == 0) {
        if (device->weights) d->release(device->weights);
        if (device->module) d->module_unload(device->module);
        device_leave(device);
    }
    d->context_release(device->gpu.handle);
}

void device_close(struct sparsec_model *model) {
    struct device *device = model->device;
    if (!device) return;
    release(device);
    pthread_mutex_destroy(&device->lock);
    free(device->functions), free(device->of_steps), free(device);
    model->device = NULL;
}

int device_allow_shared(struct device *device, struct gpu_function *function, int64_t bytes,
                        struct sparsec_failure *failure) {
    const struct driver *d = device->gpu.driver;
    CUresult code = 0;
    char doing[300];
    snprintf(doing, sizeof doing, "kernel %.200s cannot have %lld bytes of shared memory", function->name,
             (long long)bytes);
    if (bytes > device->most_shared)
        return fail(failure, SPARSEC_FAILURE_INPUT, "%s: GPU %d has %d", doing, device->gpu.ordinal,
                    device->most_shared);
    pthread_mutex_lock(&device->lock);
    if (bytes > function->shared) code = d->function_set(function->handle, FUNCTION_SHARED_BYTES, (int)bytes);
    if (code == 0 && bytes > function->shared) function->shared = (int)bytes;
    pthread_mutex_unlock(&device->lock);
    return gpu_check(d, code, SPARSEC_FAILURE_KERNEL, doing, failure);
}
