/* Timing each step of a model.  Plain runs never come here: they pay nothing for it. */
#define _POSIX_C_SOURCE 199309L
#include <stdlib.h>
#include <time.h>

#include "internal.h"

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

struct samples {
    uint64_t *values; /* [steps][repeats] */
    size_t repeats;
};

/* All repeats under one hold of the pool, so that helpers are as awake as in a series of runs. */
static int run_timed(struct sparsec_session *session, struct sparsec_binding *b, int threads, void *context,
                     struct sparsec_failure *failure) {
    const struct samples *samples = context;
    size_t steps = session->model->plan.step_count;
    for (size_t round = 0; round <= samples->repeats; round++) /* round 0 warms up */
        for (size_t i = 0; i < steps; i++) {
            uint64_t start = now();
            if (session_step(session, b, i, threads, failure)) return -1;
            if (round > 0) samples->values[i * samples->repeats + round - 1] = now() - start;
        }
    return 0;
}

static int ascending(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static uint64_t median(uint64_t *values, size_t count) {
    qsort(values, count, sizeof *values, ascending);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static int profile(struct sparsec_session *session, struct sparsec_binding *b, const struct sparsec_array *inputs,
                   const struct sparsec_array *outputs, int repeats, uint64_t *nanoseconds,
                   struct sparsec_failure *failure) {
    size_t steps = session->model->plan.step_count;
    if (repeats < 1) return fail(failure, SPARSEC_FAILURE_INPUT, "repeats must be at least 1, not %d", repeats);
    struct samples samples = {calloc(steps * (size_t)repeats + 1, sizeof(uint64_t)), (size_t)repeats};
    if (!samples.values) return fail_memory(failure, steps * (size_t)repeats * sizeof(uint64_t));
    int status = session->device
                     ? device_profile(session, b, inputs, outputs, samples.values, samples.repeats, failure)
                     : session_run_with(session, b, inputs, outputs, run_timed, &samples, failure);
    for (size_t i = 0; i < steps && status == 0; i++)
        nanoseconds[i] = median(samples.values + i * samples.repeats, samples.repeats);
    free(samples.values);
    return status;
}

int sparsec_session_profile(struct sparsec_session *session, struct sparsec_binding *b,
                            const struct sparsec_array *inputs, const struct sparsec_array *outputs, int repeats,
                            uint64_t *nanoseconds, struct sparsec_failure *failure) {
    struct sparsec_failure unread;
    if (!failure) failure = &unread;
    return profile(session, b, inputs, outputs, repeats, nanoseconds, failure) ? (int)failure->kind : 0;
}
