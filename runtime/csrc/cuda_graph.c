/* Recorded runs: the launches of a binding as one CUDA graph, which costs the driver less than each of them.
 *
 * A graph holds addresses, so there is one for each set of them that came at least twice, at most GRAPHS; the one
 * not used for longest goes first.  Launches are recorded on the session's own stream, where nobody else's work
 * can be caught with them. */
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

static void current_addresses(const struct sparsec_session *session, const struct sparsec_binding *b) {
    const struct plan *plan = &session->model->plan;
    void **at = b->device->addresses;
    *at++ = (void *)(uintptr_t)session->device->arena.data;
    for (size_t i = 0; i < plan->input_count; i++) *at++ = b->addresses[plan->inputs[i].buffer];
    for (size_t i = 0; i < plan->output_count; i++) *at++ = b->addresses[plan->outputs[i].buffer];
}

/* The one of these addresses, or NULL; its turn to go comes later now. */
static struct recorded *find(struct device_binding *binding, struct recorded *among) {
    for (int i = 0; i < GRAPHS; i++) {
        if (!among[i].used) continue;
        if (memcmp(among[i].addresses, binding->addresses, binding->address_count * sizeof(void *)) != 0) continue;
        among[i].used = ++binding->clock;
        return &among[i];
    }
    return NULL;
}

/* The place of the one not used for longest, for these addresses. */
static struct recorded *replace(struct device_binding *binding, struct recorded *among) {
    struct recorded *oldest = &among[0];
    for (int i = 1; i < GRAPHS; i++)
        if (among[i].used < oldest->used) oldest = &among[i];
    /* a graph that still runs is freed when it has ended */
    if (oldest->executable) binding->session->device->gpu.driver->executable_destroy(oldest->executable);
    oldest->executable = NULL;
    oldest->used = ++binding->clock;
    memcpy(oldest->addresses, binding->addresses, binding->address_count * sizeof(void *));
    return oldest;
}

static int launch_all(const struct sparsec_session *session, const struct sparsec_binding *b, CUstream stream,
                      struct sparsec_failure *failure) {
    for (size_t i = 0; i < session->model->plan.step_count; i++)
        if (device_launch(session, b, i, stream, failure)) return -1;
    return 0;
}

/* Whatever happens between, a recording that began is ended: the stream could not be used otherwise. */
static int record(const struct sparsec_session *session, const struct sparsec_binding *b, CUgraph *graph,
                  struct sparsec_failure *failure) {
    const struct driver *d = session->device->device->gpu.driver;
    const char *doing = "the launches of a run cannot be recorded";
    CUstream own = session->device->own;
    CUresult code = d->capture_begin(own, CAPTURE_THREAD_LOCAL);
    if (code) return gpu_check(d, code, SPARSEC_FAILURE_KERNEL, doing, failure);
    int status = launch_all(session, b, own, failure);
    code = d->capture_end(own, graph);
    return status ? status : gpu_check(d, code, SPARSEC_FAILURE_KERNEL, doing, failure);
}

static int record_executable(const struct sparsec_session *session, const struct sparsec_binding *b,
                             CUgraphExec *executable, struct sparsec_failure *failure) {
    const struct driver *d = session->device->device->gpu.driver;
    CUgraph graph = NULL;
    int status = record(session, b, &graph, failure);
    if (status == 0)
        status = gpu_check(d, d->graph_instantiate(executable, graph, 0), SPARSEC_FAILURE_KERNEL,
                           "the recorded launches of a run cannot be used", failure);
    if (graph) d->graph_destroy(graph);
    return status;
}

static int launch_graph(const struct sparsec_session *session, CUgraphExec executable, CUstream stream,
                        struct sparsec_failure *failure) {
    const struct driver *d = session->device->device->gpu.driver;
    return gpu_check(d, d->graph_launch(executable, stream), SPARSEC_FAILURE_KERNEL,
                     "the GPU refuses the recorded launches of a run", failure);
}

/* A stream that its owner records is given plain launches: they become part of that recording. */
static bool may_use_graphs(const struct sparsec_session *session, const struct sparsec_binding *b) {
    return session->device->device->graphs && b->device->launches > 1 && !session->device->capturing;
}

int run_graph(struct sparsec_session *session, struct sparsec_binding *b, CUstream stream, void *context,
              struct sparsec_failure *failure) {
    struct device_binding *binding = b->device;
    (void)context;
    if (!may_use_graphs(session, b)) return launch_all(session, b, stream, failure);
    current_addresses(session, b);
    struct recorded *known = find(binding, binding->kept);
    if (known) return launch_graph(session, known->executable, stream, failure);
    struct recorded *seen = find(binding, binding->seen);
    if (!seen) {
        replace(binding, binding->seen);
        return launch_all(session, b, stream, failure);
    }
    CUgraphExec executable;
    if (record_executable(session, b, &executable, failure)) return -1;
    seen->used = 0;
    known = replace(binding, binding->kept);
    known->executable = executable;
    return launch_graph(session, executable, stream, failure);
}

void graphs_free(struct device_binding *binding) {
    const struct driver *d = binding->session->device->gpu.driver;
    for (int i = 0; i < GRAPHS; i++)
        if (binding->kept[i].executable) d->executable_destroy(binding->kept[i].executable);
}
