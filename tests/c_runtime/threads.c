/* SPDX-License-Identifier: Apache-2.0
 *
 * Several threads, each with sessions of its own, on one loaded model:  threads THREADS ROUNDS MODEL
 *
 * Each thread binds other lengths, runs many times and compares with what the main thread computed before. */
#include "arrays.h"

#include <pthread.h>
#include <stdatomic.h>

enum { LENGTHS = 5 };

static struct sparsec_model *model;
static struct arrays inputs[LENGTHS], expected[LENGTHS];
static int rounds;
static atomic_int differences;

static void run(struct sparsec_session *session, int length, struct arrays *outputs, bool allocate) {
    struct sparsec_failure failure;
    struct sparsec_binding *binding = sparsec_session_bind(session, inputs[length].at, &failure);
    if (!binding) stop("bind", failure.text);
    if (allocate) new_outputs(model, session, binding, 0, outputs);
    if (sparsec_session_run(session, binding, inputs[length].at, outputs->at, &failure)) stop("run", failure.text);
}

static struct sparsec_session *new_session(void) {
    struct sparsec_failure failure;
    struct sparsec_session *session = sparsec_session_take(model, &failure);
    if (!session) stop("take", failure.text);
    return session;
}

static void compare(const struct arrays *found, const struct arrays *wanted) {
    for (size_t i = 0; i < sparsec_model_output_count(model); i++)
        if (memcmp(found->at[i].data, wanted->at[i].data, sparsec_array_bytes(&wanted->at[i])))
            atomic_fetch_add(&differences, 1);
}

static void *work(void *argument) {
    const int first = *(int *)argument;
    struct sparsec_session *session = new_session();
    for (int round = 0; round < rounds; round++) {
        const int length = (first + round) % LENGTHS;
        struct arrays outputs;
        run(session, length, &outputs, true);
        compare(&outputs, &expected[length]);
        free_arrays(&outputs, sparsec_model_output_count(model), 0);
        if (round % 7 == 0) { /* another thread's session, or a new one */
            sparsec_session_give_back(session);
            session = new_session();
        }
    }
    sparsec_session_give_back(session);
    return NULL;
}

int main(int argc, char **argv) {
    struct sparsec_failure failure;
    if (argc != 4) stop(argv[0], "THREADS ROUNDS MODEL");
    const int threads = atoi(argv[1]);
    pthread_t workers[64];
    int numbers[64];
    rounds = atoi(argv[2]);
    model = sparsec_model_load(argv[3], true, &failure);
    if (!model || threads > 64) stop(argv[3], model ? "too many threads" : failure.text);
    struct sparsec_session *session = new_session();
    for (int length = 0; length < LENGTHS; length++) {
        new_inputs(model, 1 + 40 * length, 0, &inputs[length]);
        run(session, length, &expected[length], true);
    }
    sparsec_session_give_back(session);
    if (sparsec_model_set_threads(model, 3)) stop("threads", "refused");
    for (int i = 0; i < threads; i++) {
        numbers[i] = i;
        if (pthread_create(&workers[i], NULL, work, &numbers[i])) stop("pthread_create", "failed");
    }
    for (int i = 0; i < threads; i++) pthread_join(workers[i], NULL);
    for (int length = 0; length < LENGTHS; length++) {
        free_arrays(&inputs[length], sparsec_model_input_count(model), 0);
        free_arrays(&expected[length], sparsec_model_output_count(model), 0);
    }
    sparsec_model_free(model);
    printf("%d differences\n", atomic_load(&differences));
    return 0;
}
