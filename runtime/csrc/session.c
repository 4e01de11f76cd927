/* Running: one session carries one run at a time; what it allocates stays for the next. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static void session_free(struct sparsec_session *session) {
    for (int i = 0; i < BINDINGS; i++) binding_free(session->bindings[i]);
    device_session_close(session);
    memory_release(&session->arena);
    memory_release(&session->staging);
    worker_release(&session->worker);
    free(session);
}

static struct sparsec_session *session_new(struct sparsec_model *model, struct sparsec_failure *failure) {
    struct sparsec_session *session = calloc(1, sizeof *session);
    if (!session) {
        fail_memory(failure, sizeof *session);
        return NULL;
    }
    session->model = model;
    if (!model->device || device_session_open(session, failure) == 0) return session;
    session_free(session);
    return NULL;
}

struct sparsec_session *sparsec_session_take(struct sparsec_model *model, struct sparsec_failure *failure) {
    pthread_mutex_lock(&model->lock);
    struct sparsec_session *session = model->idle;
    if (session) model->idle = session->next;
    pthread_mutex_unlock(&model->lock);
    return session ? session : session_new(model, failure);
}

void sparsec_session_give_back(struct sparsec_session *session) {
    struct sparsec_model *model = session->model;
    if (session->device) device_session_rest(session);
    pthread_mutex_lock(&model->lock);
    session->next = model->idle;
    model->idle = session;
    pthread_mutex_unlock(&model->lock);
}

void sparsec_model_free(struct sparsec_model *model) {
    if (!model) return;
    pool_free(model->pool);
    while (model->idle) {
        struct sparsec_session *next = model->idle->next;
        session_free(model->idle);
        model->idle = next;
    }
    device_close(model);
    library_close(&model->library);
    image_close(&model->image);
    pthread_mutex_destroy(&model->lock);
    free(model->lengths);
    free(model->kernels);
    free(model);
}

static bool same_shapes(const struct plan *plan, const struct sparsec_binding *b,
                        const struct sparsec_array *inputs) {
    const int64_t *at = b->key;
    for (size_t i = 0; i < plan->input_count; i++) {
        if (inputs[i].dtype != plan->inputs[i].dtype || (uint32_t)inputs[i].rank != plan->inputs[i].shape.rank)
            return false;
        for (int axis = 0; axis < inputs[i].rank; axis++)
            if (*at++ != inputs[i].shape[axis]) return false;
    }
    return true;
}

static int least_used(const struct sparsec_session *session) {
    int best = 0;
    for (int i = 0; i < BINDINGS; i++) {
        if (!session->bindings[i]) return i;
        if (session->bindings[i]->used < session->bindings[best]->used) best = i;
    }
    return best;
}

static struct sparsec_binding *new_binding(struct sparsec_session *session, const struct sparsec_array *inputs,
                                           struct sparsec_failure *failure) {
    struct sparsec_binding *binding = binding_new(session->model, inputs, failure);
    if (!binding || !session->device || device_binding_open(session, binding, failure) == 0) return binding;
    binding_free(binding);
    return NULL;
}

struct sparsec_binding *session_bind(struct sparsec_session *session, const struct sparsec_array *inputs,
                                     struct sparsec_failure *failure) {
    struct sparsec_binding *binding = NULL;
    for (int i = 0; i < BINDINGS && session->bindings[i] && !binding; i++)
        if (same_shapes(&session->model->plan, session->bindings[i], inputs)) binding = session->bindings[i];
    if (!binding) {
        binding = new_binding(session, inputs, failure);
        if (!binding) return NULL;
        int at = least_used(session);
        binding_free(session->bindings[at]);
        session->bindings[at] = binding;
    }
    binding->used = ++session->clock;
    return binding;
}

static void place_scratch(const struct sparsec_session *session, struct sparsec_binding *b) {
    if (b->scratch == session->worker.scratch.data) return;
    for (size_t i = 0; i < session->model->plan.step_count; i++)
        b->scratches[i].data = session->worker.scratch.data;
    b->scratch = session->worker.scratch.data;
}

static int reserve(struct sparsec_session *session, struct sparsec_binding *b, struct sparsec_failure *failure) {
    if (memory_reserve(&session->arena, b->arena_bytes, failure)) return -1;
    if (memory_reserve(&session->worker.scratch, b->scratch_bytes, failure)) return -1;
    workspace_reset(&session->worker.workspace);
    place_temporaries(&session->model->plan, b, session->arena.data);
    place_scratch(session, b);
    return 0;
}

static int most_helpers(const struct sparsec_model *model, const struct sparsec_binding *b) {
    int limit = atomic_load(&model->threads) - 1, most = 0;
    for (size_t i = 0; i < model->plan.step_count; i++)
        if (b->calls[i].awake_helpers > most) most = b->calls[i].awake_helpers;
    return most < limit ? most : limit;
}

/* Whatever a run may need: memory of the session's own, threads and theirs. */
static int reserve_all(struct sparsec_session *session, struct sparsec_binding *b, const struct sparsec_array *inputs,
                       struct sparsec_failure *failure) {
    struct pool *pool = session->model->pool;
    if (session->device) return device_reserve(session, b, inputs, failure);
    int helpers = most_helpers(session->model, b);
    if (reserve(session, b, failure) || worker_reserve(&session->worker, b->scratch_bytes, failure)) return -1;
    if (memory_reserve(&session->staging, b->staging_bytes, failure)) return -1;
    if (helpers == 0) return 0;
    while (!pool_take(pool)) sched_yield();
    int status = pool_reserve(pool, helpers, b->scratch_bytes, failure);
    pool_give_back(pool);
    return status;
}

struct sparsec_binding *sparsec_session_bind(struct sparsec_session *session, const struct sparsec_array *inputs,
                                             struct sparsec_failure *failure) {
    struct sparsec_binding *binding = session_bind(session, inputs, failure);
    return binding && reserve_all(session, binding, inputs, failure) == 0 ? binding : NULL;
}

/* Kernels load whole vectors from aligned addresses, and padded buffers reach past the array. */
static bool usable_in_place(const struct sparsec_binding *b, const struct plan *plan, const struct port *port,
                            const struct sparsec_array *array) {
    return !array->stage && !array->strides && array->data && (uintptr_t)array->data % ALIGNMENT == 0 &&
           array_bytes(array) >= (size_t)b->sizes[plan->buffers[port->buffer].nbytes];
}

static unsigned char *staging(struct sparsec_session *session, const struct sparsec_binding *b, size_t port,
                              struct sparsec_failure *failure) {
    if (memory_reserve(&session->staging, b->staging_bytes, failure)) return NULL;
    return session->staging.data + b->staging[port];
}

static int place_input(struct sparsec_session *session, struct sparsec_binding *b, size_t i,
                       const struct sparsec_array *array, struct sparsec_failure *failure) {
    const struct plan *plan = &session->model->plan;
    const struct port *port = &plan->inputs[i];
    if (usable_in_place(b, plan, port, array)) {
        binding_place(b, port->buffer, array->data);
        return 0;
    }
    unsigned char *stage = staging(session, b, i, failure);
    if (!stage) return -1;
    if (array_bytes(array))
        strided_copy((char *)stage, NULL, array->data, array->strides, array->shape, array->rank,
                     dtype_bytes(array->dtype));
    binding_place(b, port->buffer, stage);
    return 0;
}

bool owns_buffer(const struct plan *plan, size_t output) {
    const struct buffer *buffer = &plan->buffers[plan->outputs[output].buffer];
    return buffer->kind == BUFFER_OUTPUT && (size_t)buffer->index == output;
}

static int place_output(struct sparsec_session *session, struct sparsec_binding *b, size_t i,
                        const struct sparsec_array *array, struct sparsec_failure *failure) {
    const struct plan *plan = &session->model->plan;
    const struct port *port = &plan->outputs[i];
    if (!owns_buffer(plan, i)) return 0;
    void *address = array->data;
    if (!usable_in_place(b, plan, port, array)) address = staging(session, b, plan->input_count + i, failure);
    if (!address) return -1;
    binding_place(b, port->buffer, address);
    return 0;
}

static void copy_out(const struct plan *plan, const struct sparsec_binding *b, size_t i,
                     const struct sparsec_array *array) {
    const char *from = b->addresses[plan->outputs[i].buffer];
    if (from == array->data || array_bytes(array) == 0) return;
    strided_copy(array->data, array->strides, from, NULL, array->shape, array->rank, dtype_bytes(array->dtype));
}

static int run_alone(const struct sparsec_session *session, const struct call *call,
                     struct sparsec_failure *failure) {
    TVMFFIAny result = {0};
    if (call->kernel(NULL, call->arguments, call->count, &result) == 0) return 0;
    return fail_kernel(failure, session->model->library.last_error);
}

int name_step(const struct plan *plan, size_t index, struct sparsec_failure *failure) {
    char text[sizeof failure->text];
    const struct step *step = &plan->steps[index];
    if (failure->kind != SPARSEC_FAILURE_KERNEL) return -1;
    memcpy(text, failure->text, sizeof text);
    return fail(failure, SPARSEC_FAILURE_KERNEL, "step %zu (%s) failed in kernel %s: %.700s", index,
                plan->strings + step->node, plan->strings + step->kernel, text);
}

int session_step(struct sparsec_session *session, const struct sparsec_binding *b, size_t index, int threads,
                 struct sparsec_failure *failure) {
    struct sparsec_model *model = session->model;
    const struct call *call = &b->calls[index];
    int helpers = threads > 1 && pool_awake(model->pool) ? call->awake_helpers : call->helpers;
    if (helpers > threads - 1) helpers = threads - 1;
    if (call->tiles == 0) return 0;
    int status = helpers > 0 ? pool_run(model->pool, &session->worker, call, helpers, failure)
                             : run_alone(session, call, failure);
    return status ? name_step(&model->plan, index, failure) : 0;
}

static int run_steps(struct sparsec_session *session, struct sparsec_binding *b, int threads, void *context,
                     struct sparsec_failure *failure) {
    size_t count = session->model->plan.step_count;
    (void)context;
    for (size_t i = 0; i < count; i++)
        if (session_step(session, b, i, threads, failure)) return -1;
    return 0;
}

static int with_threads(struct sparsec_session *session, struct sparsec_binding *b, step_runner run,
                        void *context, struct sparsec_failure *failure) {
    struct sparsec_model *model = session->model;
    int threads = atomic_load(&model->threads);
    bool pooled = threads > 1 && pool_take(model->pool);
    struct workspace *previous = workspace_enter(&session->worker.workspace);
    int status = run(session, b, pooled ? threads : 1, context, failure);
    workspace_enter(previous);
    if (pooled) pool_give_back(model->pool);
    return status;
}

static int place_ports(struct sparsec_session *session, struct sparsec_binding *b,
                       const struct sparsec_array *inputs, const struct sparsec_array *outputs,
                       struct sparsec_failure *failure) {
    for (size_t i = 0; i < session->model->plan.input_count; i++)
        if (place_input(session, b, i, &inputs[i], failure)) return -1;
    for (size_t i = 0; i < session->model->plan.output_count; i++)
        if (place_output(session, b, i, &outputs[i], failure)) return -1;
    return 0;
}

int session_run_with(struct sparsec_session *session, struct sparsec_binding *b,
                     const struct sparsec_array *inputs, const struct sparsec_array *outputs, step_runner run,
                     void *context, struct sparsec_failure *failure) {
    if (check_arrays(session->model, b, inputs, outputs, failure)) return -1;
    if (reserve(session, b, failure) || place_ports(session, b, inputs, outputs, failure)) return -1;
    if (with_threads(session, b, run, context, failure)) return -1;
    for (size_t i = 0; i < session->model->plan.output_count; i++)
        copy_out(&session->model->plan, b, i, &outputs[i]);
    return 0;
}

int sparsec_session_run(struct sparsec_session *session, struct sparsec_binding *b,
                        const struct sparsec_array *inputs, const struct sparsec_array *outputs,
                        struct sparsec_failure *failure) {
    struct sparsec_failure unread;
    if (!failure) failure = &unread;
    int status = session->device ? device_run(session, b, inputs, outputs, failure)
                                 : session_run_with(session, b, inputs, outputs, run_steps, NULL, failure);
    return status ? (int)failure->kind : 0;
}
