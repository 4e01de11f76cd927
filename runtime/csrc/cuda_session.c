/* Runs on a GPU: what a session has there, and the order of its work.
 *
 * All work of a run goes to one stream.  Runs of a session on different streams share its memory: a later one waits,
 * on the GPU, for the one before. */
#include <stdlib.h>

#include "cuda.h"

enum { EVENT_WITHOUT_TIME = 2 };

static const struct driver *driver_of(const struct sparsec_session *session) {
    return session->device->device->gpu.driver;
}

static int session_parts(struct device_session *session, struct sparsec_failure *failure) {
    const struct driver *d = session->device->gpu.driver;
    if (device_enter(session->device, failure)) return -1;
    CUresult code = d->stream_create(&session->own, STREAM_NON_BLOCKING);
    if (code) session->own = NULL;
    if (code == 0 && (code = d->event_create(&session->done, EVENT_WITHOUT_TIME))) session->done = NULL;
    device_leave(session->device);
    return gpu_check(d, code, SPARSEC_FAILURE_KERNEL, "the GPU has no stream for a session", failure);
}

int device_session_open(struct sparsec_session *session, struct sparsec_failure *failure) {
    session->device = calloc(1, sizeof *session->device);
    if (!session->device) return fail_memory(failure, sizeof *session->device);
    session->device->device = session->model->device;
    return session_parts(session->device, failure);
}

/* Until a run that was only enqueued has ended. */
static void wait(struct device_session *session) {
    if (session->pending) session->device->gpu.driver->event_synchronize(session->done);
    session->pending = false;
}

static void release_retired(struct device_session *session) {
    while (session->retired) {
        struct retired_memory *next = session->retired->next;
        session->device->gpu.driver->release(session->retired->data);
        free(session->retired);
        session->retired = next;
    }
}

/* Let go of memory; what recordings may point to stays until the session goes. */
static int give_up(struct device_session *session, struct device_memory *memory, struct sparsec_failure *failure) {
    if (memory->data && session->captured) {
        struct retired_memory *kept = malloc(sizeof *kept);
        if (!kept) return fail_memory(failure, sizeof *kept);
        *kept = (struct retired_memory){memory->data, session->retired};
        session->retired = kept;
    } else if (memory->data) {
        session->device->gpu.driver->release(memory->data);
    }
    *memory = (struct device_memory){0};
    return 0;
}

void device_session_close(struct sparsec_session *session) {
    struct device_session *own = session->device;
    if (!own) return;
    const struct driver *d = own->device->gpu.driver;
    if (device_enter(own->device, NULL) == 0) {
        wait(own);
        if (own->arena.data) d->release(own->arena.data);
        if (own->staging.data) d->release(own->staging.data);
        release_retired(own);
        if (own->done) d->event_destroy(own->done);
        if (own->own) d->stream_destroy(own->own);
        device_leave(own->device);
    }
    free(own);
}

void device_session_rest(struct sparsec_session *session) { session->device->caller = NULL; }

int sparsec_session_set_stream(struct sparsec_session *session, void *stream) {
    if (!session->device) return SPARSEC_FAILURE_INPUT;
    session->device->caller = stream;
    return 0;
}

int device_reserve_memory(struct device_session *session, struct device_memory *memory, size_t bytes,
                          struct sparsec_failure *failure) {
    const struct driver *d = session->device->gpu.driver;
    if (bytes <= memory->size) return 0;
    if (session->capturing)
        return fail(failure, SPARSEC_FAILURE_INPUT,
                    "the stream is being recorded (captured) and the run needs %zu bytes more of the GPU's memory: "
                    "run once with these arrays before recording", bytes - memory->size);
    wait(session);
    if (give_up(session, memory, failure)) return -1;
    CUresult code = d->allocate(&memory->data, bytes);
    if (code == 0) memory->size = bytes;
    else memory->data = 0;
    if (code == CUDA_ERROR_OUT_OF_MEMORY)
        return fail(failure, SPARSEC_FAILURE_MEMORY, "out of the GPU's memory: %zu bytes were needed", bytes);
    return gpu_check(d, code, SPARSEC_FAILURE_KERNEL, "the GPU gives no memory", failure);
}

static int allow_shared(struct sparsec_session *session, struct sparsec_binding *b,
                        struct sparsec_failure *failure) {
    const struct plan *plan = &session->model->plan;
    struct device *device = session->device->device;
    for (size_t i = 0; i < plan->step_count; i++) {
        struct gpu_function *function = &device->functions[device->of_steps[i]];
        if (device_allow_shared(device, function, b->sizes[plan->steps[i].scratch], failure)) return -1;
        if (b->calls[i].tiles) b->device->launches++;
    }
    return 0;
}

static bool allocate_binding(struct device_binding *binding, const struct plan *plan) {
    const size_t ports = plan->input_count + plan->output_count, count = ports + 1;
    binding->address_count = count;
    binding->parameters = calloc(plan->argument_count + 1, sizeof *binding->parameters);
    binding->known = calloc(ports + 1, sizeof *binding->known);
    binding->addresses = calloc(count * (2 * GRAPHS + 1), sizeof *binding->addresses);
    if (!binding->parameters || !binding->known || !binding->addresses) return false;
    for (size_t i = 0; i < GRAPHS; i++) {
        binding->kept[i].addresses = binding->addresses + count * (2 * i + 1);
        binding->seen[i].addresses = binding->addresses + count * (2 * i + 2);
    }
    return true;
}

int device_binding_open(struct sparsec_session *session, struct sparsec_binding *b,
                        struct sparsec_failure *failure) {
    const struct plan *plan = &session->model->plan;
    b->device = calloc(1, sizeof *b->device);
    if (!b->device) return fail_memory(failure, sizeof *b->device);
    b->device->session = session->device;
    if (!allocate_binding(b->device, plan)) return fail_memory(failure, plan->argument_count * sizeof(void *));
    for (size_t i = 0; i < plan->argument_count; i++) b->device->parameters[i] = &b->arguments[i].v_int64;
    if (device_enter(session->device->device, failure)) return -1;
    int status = allow_shared(session, b, failure);
    device_leave(session->device->device);
    return status;
}

void device_binding_close(struct sparsec_binding *b) {
    struct device_binding *binding = b->device;
    if (!binding) return;
    if (device_enter(binding->session->device, NULL) == 0) {
        graphs_free(binding);
        device_leave(binding->session->device);
    }
    free(binding->parameters), free(binding->known), free(binding->addresses), free(binding);
}

static int reserve_arena(struct sparsec_session *session, struct sparsec_binding *b,
                         struct sparsec_failure *failure) {
    struct device_session *own = session->device;
    if (device_reserve_memory(own, &own->arena, b->arena_bytes, failure)) return -1;
    place_temporaries(&session->model->plan, b, (unsigned char *)(uintptr_t)own->arena.data);
    return 0;
}

int device_reserve(struct sparsec_session *session, struct sparsec_binding *b, const struct sparsec_array *inputs,
                   struct sparsec_failure *failure) {
    struct device_session *own = session->device;
    bool host = false;
    for (size_t i = 0; i < session->model->plan.input_count; i++) host = host || !inputs[i].device;
    if (device_enter(own->device, failure)) return -1;
    int status = reserve_arena(session, b, failure);
    if (status == 0 && host) status = device_reserve_memory(own, &own->staging, b->staging_bytes, failure);
    device_leave(own->device);
    return status;
}

int device_launch(const struct sparsec_session *session, const struct sparsec_binding *b, size_t index,
                  CUstream stream, struct sparsec_failure *failure) {
    const struct device *device = session->device->device;
    const struct plan *plan = &session->model->plan;
    const struct step *step = &plan->steps[index];
    if (b->calls[index].tiles == 0) return 0;
    CUresult code = device->gpu.driver->launch(
        device->functions[device->of_steps[index]].handle, (unsigned)b->calls[index].tiles, 1, 1, step->threads, 1, 1,
        (unsigned)b->sizes[step->scratch], stream, b->device->parameters + step->first_argument, NULL);
    if (code == 0) return 0;
    gpu_check(device->gpu.driver, code, SPARSEC_FAILURE_KERNEL, "the GPU refuses the launch", failure);
    return name_step(plan, index, failure);
}

static bool on_host(const struct plan *plan, const struct sparsec_array *inputs, const struct sparsec_array *outputs) {
    for (size_t i = 0; i < plan->input_count; i++)
        if (!inputs[i].device) return true;
    for (size_t i = 0; i < plan->output_count; i++)
        if (!outputs[i].device) return true;
    return false;
}

/* A stream that its owner records does nothing now: there is nothing to wait for, and a recording may not wait. */
static int begin(struct sparsec_session *session, CUstream stream, bool host, struct sparsec_failure *failure) {
    struct device_session *own = session->device;
    const struct driver *d = driver_of(session);
    unsigned capturing = 0;
    CUresult code = own->caller ? d->stream_is_capturing(stream, &capturing) : 0;
    own->capturing = capturing != 0;
    own->captured = own->captured || own->capturing;
    if (capturing && host)
        return fail(failure, SPARSEC_FAILURE_INPUT,
                    "the stream is being recorded (captured): all arrays must lie in the GPU's memory");
    if (code == 0 && !capturing && own->pending && stream != own->last) code = d->stream_wait(stream, own->done, 0);
    return gpu_check(d, code, SPARSEC_FAILURE_KERNEL, "the stream cannot be used", failure);
}

static int finish(struct sparsec_session *session, CUstream stream, bool host, struct sparsec_failure *failure) {
    struct device_session *own = session->device;
    const struct driver *d = driver_of(session);
    if (own->capturing) return 0;
    own->pending = !host && own->caller;
    own->last = stream;
    CUresult code = own->pending ? d->event_record(own->done, stream) : d->stream_synchronize(stream);
    return gpu_check(d, code, SPARSEC_FAILURE_KERNEL, "the run failed on the GPU", failure);
}

static int run_entered(struct sparsec_session *session, struct sparsec_binding *b, const struct sparsec_array *inputs,
                       const struct sparsec_array *outputs, device_launcher launcher, void *context,
                       struct sparsec_failure *failure) {
    struct device_session *own = session->device;
    CUstream stream = own->caller ? own->caller : own->own;
    const bool host = on_host(&session->model->plan, inputs, outputs);
    if (begin(session, stream, host, failure)) return -1;
    int status = reserve_arena(session, b, failure);
    for (size_t i = 0; i < session->model->plan.output_count && status == 0; i++)
        if (!outputs[i].device && outputs[i].strides)
            status = memory_reserve(&session->staging, b->staging_bytes, failure);
    if (status == 0) status = device_place_ports(session, b, inputs, outputs, stream, failure);
    if (status == 0) status = launcher(session, b, stream, context, failure);
    if (status == 0) status = device_copy_outputs(session, b, outputs, stream, failure);
    if (status == 0) status = finish(session, stream, host, failure);
    if (status == 0 || own->capturing) return status;
    /* what was enqueued still uses the caller's arrays, and nobody will wait for it */
    driver_of(session)->stream_synchronize(stream);
    own->pending = false;
    return status;
}

int device_run_with(struct sparsec_session *session, struct sparsec_binding *b, const struct sparsec_array *inputs,
                    const struct sparsec_array *outputs, device_launcher launcher, void *context,
                    struct sparsec_failure *failure) {
    if (check_arrays(session->model, b, inputs, outputs, failure)) return -1;
    if (device_enter(session->device->device, failure)) return -1;
    int status = run_entered(session, b, inputs, outputs, launcher, context, failure);
    device_leave(session->device->device);
    if (status == 0) device_scatter_outputs(session, b, outputs);
    return status;
}

int device_run(struct sparsec_session *session, struct sparsec_binding *b, const struct sparsec_array *inputs,
               const struct sparsec_array *outputs, struct sparsec_failure *failure) {
    return device_run_with(session, b, inputs, outputs, run_graph, NULL, failure);
}
