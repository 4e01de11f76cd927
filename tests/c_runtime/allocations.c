/* SPDX-License-Identifier: Apache-2.0
 *
 * Counts what runs allocate:  allocations THREADS RUNS LENGTH[,LENGTH...] MODEL...
 *
 * Binds each model's inputs, once for each length of the open axes, then counts calls of the allocator while
 * it runs: with arrays that kernels use where they lie, and with arrays that are copied.  Prints one number
 * a model.  Needs glibc, whose allocator has other names too. */
#include "arrays.h"

#include <errno.h>
#include <stdatomic.h>

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *old, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);
void __libc_free(void *memory);

static atomic_bool counting;
static atomic_long calls;

static void count(void) {
    if (atomic_load(&counting)) atomic_fetch_add(&calls, 1);
}

void *malloc(size_t bytes) { return count(), __libc_malloc(bytes); }
void *calloc(size_t number, size_t bytes) { return count(), __libc_calloc(number, bytes); }
void *realloc(void *old, size_t bytes) { return count(), __libc_realloc(old, bytes); }
void *memalign(size_t alignment, size_t bytes) { return count(), __libc_memalign(alignment, bytes); }
void *aligned_alloc(size_t alignment, size_t bytes) { return count(), __libc_memalign(alignment, bytes); }
int posix_memalign(void **memory, size_t alignment, size_t bytes) {
    count();
    *memory = __libc_memalign(alignment, bytes);
    return *memory ? 0 : ENOMEM;
}
void free(void *memory) {
    if (memory) count();
    __libc_free(memory);
}

enum { MOST_LENGTHS = 8, SHIFTS = 2 };
static const size_t SHIFT[SHIFTS] = {0, 4};

struct bound {
    struct sparsec_binding *binding;
    struct arrays inputs[SHIFTS], outputs[SHIFTS];
};

static struct bound bounds[MOST_LENGTHS];

static void bind(struct sparsec_model *model, struct sparsec_session *session, int64_t length, struct bound *b) {
    struct sparsec_failure failure;
    for (int s = 0; s < SHIFTS; s++) new_inputs(model, length, SHIFT[s], &b->inputs[s]);
    b->binding = sparsec_session_bind(session, b->inputs[0].at, &failure);
    if (!b->binding) stop("bind", failure.text);
    for (int s = 0; s < SHIFTS; s++) new_outputs(model, session, b->binding, SHIFT[s], &b->outputs[s]);
}

static void release(const struct sparsec_model *model, struct bound *b) {
    for (int s = 0; s < SHIFTS; s++) {
        free_arrays(&b->inputs[s], sparsec_model_input_count(model), SHIFT[s]);
        free_arrays(&b->outputs[s], sparsec_model_output_count(model), SHIFT[s]);
    }
}

static long run_all(struct sparsec_session *session, int lengths, int runs) {
    struct sparsec_failure failure;
    atomic_store(&calls, 0);
    atomic_store(&counting, true);
    for (int run = 0; run < runs; run++)
        for (int i = 0; i < lengths; i++)
            for (int s = 0; s < SHIFTS; s++)
                if (sparsec_session_run(session, bounds[i].binding, bounds[i].inputs[s].at,
                                        bounds[i].outputs[s].at, &failure))
                    stop("run", failure.text);
    atomic_store(&counting, false);
    return atomic_load(&calls);
}

static long counted(const char *path, int threads, int runs, const char *list) {
    struct sparsec_failure failure;
    struct sparsec_model *model = sparsec_model_load(path, false, &failure);
    int lengths = 0;
    if (!model) stop(path, failure.text);
    if (sparsec_model_set_threads(model, threads)) stop(path, "wrong number of threads");
    struct sparsec_session *session = sparsec_session_take(model, &failure);
    if (!session) stop(path, failure.text);
    for (const char *at = list; at && lengths < MOST_LENGTHS; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        bind(model, session, strtoll(at, NULL, 10), &bounds[lengths++]);
    const long found = run_all(session, lengths, runs);
    for (int i = 0; i < lengths; i++) release(model, &bounds[i]);
    sparsec_session_give_back(session);
    sparsec_model_free(model);
    return found;
}

int main(int argc, char **argv) {
    if (argc < 5) stop(argv[0], "THREADS RUNS LENGTH[,LENGTH...] MODEL...");
    for (int i = 4; i < argc; i++) printf("%ld\n", counted(argv[i], atoi(argv[1]), atoi(argv[2]), argv[3]));
    return 0;
}
