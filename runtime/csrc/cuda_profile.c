/* Timing each step on a GPU, by its own clock. */
#include <stdlib.h>

#include "cuda.h"

struct timing {
    uint64_t *values; /* [steps][repeats] */
    size_t repeats;
    CUevent *events; /* one before each step and one after the last */
    size_t event_count;
};

static CUresult run_round(struct sparsec_session *session, struct sparsec_binding *b, CUstream stream,
                          const struct timing *timing, int *refused, struct sparsec_failure *failure) {
    const struct driver *d = session->device->device->gpu.driver;
    CUresult code = d->event_record(timing->events[0], stream);
    for (size_t i = 0; i + 1 < timing->event_count && code == 0; i++) {
        *refused = device_launch(session, b, i, stream, failure);
        if (*refused) return 0;
        code = d->event_record(timing->events[i + 1], stream);
    }
    return code ? code : d->event_synchronize(timing->events[timing->event_count - 1]);
}

static CUresult read_round(const struct driver *d, const struct timing *timing, size_t round) {
    CUresult code = 0;
    for (size_t i = 0; i + 1 < timing->event_count && code == 0; i++) {
        float milliseconds = 0;
        code = d->event_elapsed(&milliseconds, timing->events[i], timing->events[i + 1]);
        timing->values[i * timing->repeats + round] = (uint64_t)(milliseconds * 1e6 + 0.5);
    }
    return code;
}

static int run_timed(struct sparsec_session *session, struct sparsec_binding *b, CUstream stream, void *context,
                     struct sparsec_failure *failure) {
    const struct driver *d = session->device->device->gpu.driver;
    struct timing *timing = context;
    int refused = 0;
    CUresult code = 0;
    while (timing->event_count <= session->model->plan.step_count && code == 0) {
        code = d->event_create(&timing->events[timing->event_count], 0);
        if (code == 0) timing->event_count++;
    }
    for (size_t round = 0; round <= timing->repeats && code == 0 && !refused; round++) { /* round 0 warms up */
        code = run_round(session, b, stream, timing, &refused, failure);
        if (round > 0 && code == 0 && !refused) code = read_round(d, timing, round - 1);
    }
    for (size_t i = 0; i < timing->event_count; i++) d->event_destroy(timing->events[i]);
    if (refused) return -1;
    return gpu_check(d, code, SPARSEC_FAILURE_KERNEL, "the steps cannot be timed", failure);
}

int device_profile(struct sparsec_session *session, struct sparsec_binding *b, const struct sparsec_array *inputs,
                   const struct sparsec_array *outputs, uint64_t *values, size_t repeats,
                   struct sparsec_failure *failure) {
    const size_t steps = session->model->plan.step_count;
    struct timing timing = {values, repeats, calloc(steps + 1, sizeof(CUevent)), 0};
    if (!timing.events) return fail_memory(failure, steps * sizeof(CUevent));
    int status = device_run_with(session, b, inputs, outputs, run_timed, &timing, failure);
    free(timing.events);
    return status;
}
