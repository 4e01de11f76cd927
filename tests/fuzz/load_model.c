/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer's target: load a file from memory, ask all there is to ask, bind small shapes, run with stubbed
 * kernels.  Whatever the bytes are, each function must give its result or a failure with a text.  Linked with
 * stubs.c and mutate.c; the last word of the header, which the reader does not use, says how to load. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stubs.h"

enum { MOST_PORTS = 16, MOST_STEPS = 1024, MOST_BYTES = 1 << 20 };
enum { VERIFY = 1, BY_NAME = 2, BY_FILE = 4, WITH_DIGEST = 8, STAGED = 16, UNREAD = 32 };
enum { OTHER_DIGEST = 64, OTHER_TYPE = 128, OTHER_RANK = 256, OTHER_LENGTHS = 512 };
enum { STRIDED = 1024, TIMED = 2048, ON_DEVICE = 4096, AGAIN = 8192 };

static const int64_t LENGTHS[] = {1, 3, 0, 64, 2000};
static struct {
    unsigned long files, loaded, bound, ran;
} counts;

static void tell(void) {
    fprintf(stderr, "files %lu loaded %lu bound %lu ran %lu\n", counts.files, counts.loaded, counts.bound, counts.ran);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    return atexit(tell);
}

static void must(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "broken promise: %s\n", what);
    abort();
}

static void must_tell(const struct sparsec_failure *failure) {
    const enum sparsec_failure_kind kind = failure->kind;
    must(kind >= SPARSEC_FAILURE_ARTIFACT && kind <= SPARSEC_FAILURE_KERNEL, "a failure has a kind");
    must(failure->text[0] && memchr(failure->text, 0, sizeof failure->text), "a failure has a text");
}

static struct sparsec_model *load_file(const uint8_t *data, size_t size, const struct sparsec_options *options,
                                       struct sparsec_failure *failure) {
    char path[64];
    const int descriptor = memfd_create("model", 0);
    if (descriptor < 0 || write(descriptor, data, size) != (ssize_t)size) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    struct sparsec_model *model = sparsec_model_load_with(path, options, failure);
    close(descriptor);
    return model;
}

static struct sparsec_model *load(const uint8_t *data, size_t size, uint32_t how) {
    struct sparsec_failure failure = {0};
    char digest[SHA256_DIGITS + 1];
    struct sparsec_options options = {.verify = how & VERIFY, .isa = how & BY_NAME ? "second" : NULL};
    if (how & WITH_DIGEST) {
        sha256_text(data, size, digest);
        if (how & OTHER_DIGEST) digest[size % SHA256_DIGITS] ^= 1;
        options.sha256 = digest;
    }
    struct sparsec_failure *told = how & UNREAD ? NULL : &failure;
    struct sparsec_model *model = how & BY_FILE ? load_file(data, size, &options, told)
                                                : sparsec_model_from_bytes_with(data, size, &options, told);
    if (!model && told) must_tell(told);
    return model;
}

typedef int (*axis_function)(const struct sparsec_model *model, size_t index, int axis, char *text, size_t size);

static void ask_port(const struct sparsec_model *model, size_t index, struct sparsec_port port, axis_function axis) {
    char text[64];
    must(port.name && strlen(port.name) < MOST_BYTES, "a port has a name");
    must(sparsec_dtype_name(port.dtype) && sparsec_dtype_bytes(port.dtype), "a port has a type");
    must(port.rank >= 0 && port.rank <= SPARSEC_MAXIMUM_RANK, "a port has a rank");
    for (int k = 0; k < port.rank; k++) {
        must(port.shape[k] >= -1 && port.shape[k] <= (int64_t)1 << 48, "a length is none, or one that can be");
        for (size_t size = 1; size <= sizeof text; size *= 8)
            must(axis(model, index, k, text, size) == 0 && strlen(text) < size, "an axis has a text");
    }
    must(axis(model, index, port.rank, text, sizeof text) != 0, "no axis is there after the last");
}

static void ask(const struct sparsec_model *model) {
    const size_t inputs = sparsec_model_input_count(model), outputs = sparsec_model_output_count(model);
    for (size_t i = 0; i < inputs; i++) ask_port(model, i, sparsec_model_input(model, i), sparsec_model_input_axis);
    for (size_t i = 0; i < outputs; i++) ask_port(model, i, sparsec_model_output(model, i), sparsec_model_output_axis);
    for (size_t i = 0; i < sparsec_model_step_count(model); i++) {
        const struct sparsec_step step = sparsec_model_step(model, i);
        must(strlen(step.node) < MOST_BYTES && strlen(step.kernel) < MOST_BYTES, "a step has names");
    }
    must(!sparsec_model_input(model, inputs).name && !sparsec_model_output(model, outputs).name, "ports end");
    must(strlen(sparsec_model_isa(model)) < MOST_BYTES, "an instruction set has a name");
    must(strlen(sparsec_model_device(model)) > 0, "a model runs somewhere");
}

/* An array of exactly its bytes; without memory where it is large. */
static bool fill(struct sparsec_array *array, struct sparsec_port port, const int64_t *shape, uint32_t how) {
    size_t bytes = sparsec_dtype_bytes(port.dtype);
    *array = (struct sparsec_array){.rank = port.rank, .dtype = port.dtype, .shape = shape, .stage = how & STAGED};
    array->device = (how & ON_DEVICE) != 0;
    for (int k = 0; k < port.rank; k++)
        if (__builtin_mul_overflow(bytes, (size_t)shape[k], &bytes)) return false;
    if (bytes > MOST_BYTES || posix_memalign(&array->data, SPARSEC_ALIGNMENT, bytes)) return false;
    memset(array->data, 0, bytes);
    return true;
}

/* Of an array with items: the order that no strides mean, but for the first axis of two, which runs backwards. */
static void stride(struct sparsec_array *array, int64_t *strides) {
    int64_t bytes = (int64_t)sparsec_dtype_bytes(array->dtype);
    for (int k = array->rank - 1; k >= 0; bytes *= array->shape[k--]) strides[k] = bytes;
    if (array->rank == 2) {
        array->data = (char *)array->data + (array->shape[0] - 1) * strides[0];
        strides[0] = -strides[0];
    }
    array->strides = strides;
}

struct arrays {
    struct sparsec_array at[MOST_PORTS];
    int64_t shapes[MOST_PORTS][SPARSEC_MAXIMUM_RANK], strides[MOST_PORTS][SPARSEC_MAXIMUM_RANK];
    void *memory[MOST_PORTS];
    size_t count;
};

static bool add(struct arrays *arrays, size_t i, struct sparsec_port port, const int64_t *shape, uint32_t how) {
    const bool whole = fill(&arrays->at[i], port, shape, how);
    arrays->memory[i] = arrays->at[i].data;
    if (whole && how & STRIDED && sparsec_array_bytes(&arrays->at[i])) stride(&arrays->at[i], arrays->strides[i]);
    return whole;
}

static void free_arrays(struct arrays *arrays) {
    for (size_t i = 0; i < arrays->count; i++) free(arrays->memory[i]);
}

/* The first array not as it should be. */
static void spoil(struct arrays *arrays, uint32_t how) {
    if (how & OTHER_TYPE) arrays->at[0].dtype ^= 0x800;
    if (how & OTHER_RANK && arrays->at[0].rank > 0) arrays->at[0].rank--;
}

static bool fill_inputs(const struct sparsec_model *model, int64_t open, uint32_t how, struct arrays *inputs) {
    bool whole = true;
    for (size_t i = 0; i < inputs->count; i++) {
        const struct sparsec_port port = sparsec_model_input(model, i);
        for (int k = 0; k < port.rank; k++) inputs->shapes[i][k] = port.shape[k] < 0 ? open : port.shape[k];
        if (how & OTHER_LENGTHS && port.rank > 0) inputs->shapes[i][port.rank - 1] += (int64_t)i;
        whole = add(inputs, i, port, inputs->shapes[i], how) && whole;
    }
    return whole;
}

static bool fill_outputs(const struct sparsec_model *model, const struct sparsec_session *session,
                         const struct sparsec_binding *binding, uint32_t how, struct arrays *outputs) {
    bool whole = true;
    for (size_t i = 0; i < outputs->count; i++) {
        const int64_t *shape = sparsec_binding_output_shape(session, binding, i);
        whole = add(outputs, i, sparsec_model_output(model, i), shape, how) && whole;
    }
    return whole;
}

static int run_or_time(struct sparsec_session *session, struct sparsec_binding *binding,
                       const struct sparsec_array *inputs, const struct sparsec_array *outputs, uint32_t how,
                       struct sparsec_failure *failure) {
    static uint64_t nanoseconds[MOST_STEPS];
    if (!(how & TIMED) || sparsec_model_step_count(running_model) > MOST_STEPS)
        return sparsec_session_run(session, binding, inputs, outputs, failure);
    return sparsec_session_profile(session, binding, inputs, outputs, 2, nanoseconds, failure);
}

static void run(const struct sparsec_model *model, struct sparsec_session *session,
                struct sparsec_binding *binding, const struct arrays *inputs, uint32_t how) {
    struct sparsec_failure failure = {0};
    struct arrays outputs = {.count = sparsec_model_output_count(model)};
    running_model = model;
    running = binding;
    if (fill_outputs(model, session, binding, how, &outputs)) {
        if (outputs.count && how & OTHER_LENGTHS) spoil(&outputs, how);
        for (int turn = 0; turn < (how & AGAIN ? 3 : 1); turn++) {
            const int status = run_or_time(session, binding, inputs->at, outputs.at, how, &failure);
            if (status) must_tell(&failure);
            must(status == 0 || status == (int)failure.kind, "a run fails with the kind of its failure");
            counts.ran += status == 0;
        }
    }
    free_arrays(&outputs);
}

static void bind(struct sparsec_model *model, struct sparsec_session *session, int64_t open, uint32_t how) {
    struct sparsec_failure failure = {0};
    struct arrays inputs = {.count = sparsec_model_input_count(model)};
    const bool whole = fill_inputs(model, open, how, &inputs);
    if (inputs.count && !(how & OTHER_LENGTHS)) spoil(&inputs, how);
    struct sparsec_binding *binding = sparsec_session_bind(session, inputs.at, how & UNREAD ? NULL : &failure);
    if (!binding && !(how & UNREAD)) must_tell(&failure);
    counts.bound += binding != NULL;
    for (size_t i = 0; binding && i < sparsec_model_step_count(model); i++)
        must(sparsec_binding_step_tiles(binding, i) >= 0, "tiles are counted");
    if (binding && whole) run(model, session, binding, &inputs, how);
    free_arrays(&inputs);
}

static void use(struct sparsec_model *model, uint32_t how) {
    struct sparsec_failure failure = {0};
    ask(model);
    if (sparsec_model_input_count(model) > MOST_PORTS || sparsec_model_output_count(model) > MOST_PORTS) return;
    struct sparsec_session *session = sparsec_session_take(model, &failure);
    must(session, "a session is to be had");
    for (size_t i = 0; i < sizeof LENGTHS / sizeof *LENGTHS; i++) bind(model, session, LENGTHS[i], how);
    sparsec_session_give_back(session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct header header = {0};
    memcpy(&header, data, size < sizeof header ? size : sizeof header);
    const uint32_t how = header.reserved[sizeof header.reserved / sizeof *header.reserved - 1];
    struct sparsec_model *model = load(data, size, how);
    counts.files++;
    counts.loaded += model != NULL;
    if (model) remember(data, size), use(model, how);
    sparsec_model_free(model);
    return 0;
}
