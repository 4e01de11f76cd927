/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs compiled models through the executor's public interface and writes their outputs to stdout.
 *
 * cases.bin holds, per case: int64 number of the model (its file is model<number>.sparsec) and of
 * threads, then for each of the model's inputs its shape as int64 and its bytes.  Each output is
 * written as its shape (int64) and its bytes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../runtime/csrc/sparsec.h"

enum { MOST_PORTS = 8, MOST_AXES = 8, LINE = 64 };

static FILE *cases;

static void fail(const char *what, const char *text) {
    fprintf(stderr, "%s: %s\n", what, text);
    exit(1);
}

static void read_exactly(void *to, size_t bytes) {
    if (bytes && fread(to, 1, bytes, cases) != bytes) fail("cases.bin", "ends too early");
}

static size_t bytes_of(uint32_t dtype, const int64_t *shape, int rank) {
    size_t bytes = (dtype >> 8 & 0xff) / 8;
    for (int axis = 0; axis < rank; axis++) bytes *= (size_t)shape[axis];
    return bytes;
}

static struct sparsec_array new_array(struct sparsec_port port, const int64_t *shape) {
    struct sparsec_array array = {.rank = port.rank, .dtype = port.dtype, .shape = shape};
    array.data = aligned_alloc(LINE, bytes_of(port.dtype, shape, port.rank) / LINE * LINE + LINE);
    if (!array.data) fail(port.name, "no memory");
    memset(array.data, 0xFF, bytes_of(port.dtype, shape, port.rank)); /* NaN as float */
    return array;
}

static void free_arrays(struct sparsec_array *arrays, size_t count) {
    for (size_t i = 0; i < count; i++) free(arrays[i].data);
}

static void write_output(const struct sparsec_array *array) {
    const size_t bytes = bytes_of(array->dtype, array->shape, array->rank);
    if (fwrite(array->shape, 8, (size_t)array->rank, stdout) != (size_t)array->rank ||
        fwrite(array->data, 1, bytes, stdout) != bytes)
        fail("stdout", "cannot be written");
}

static void run_case(struct sparsec_model *model) {
    const size_t inputs = sparsec_model_input_count(model), outputs = sparsec_model_output_count(model);
    int64_t shapes[MOST_PORTS][MOST_AXES];
    struct sparsec_array given[MOST_PORTS], made[MOST_PORTS];
    struct sparsec_failure failure;
    if (inputs > MOST_PORTS || outputs > MOST_PORTS) fail("the model", "has too many ports");
    for (size_t i = 0; i < inputs; i++) {
        const struct sparsec_port port = sparsec_model_input(model, i);
        if (port.rank > MOST_AXES) fail(port.name, "has too many axes");
        read_exactly(shapes[i], 8 * (size_t)port.rank);
        given[i] = new_array(port, shapes[i]);
        read_exactly(given[i].data, bytes_of(port.dtype, shapes[i], port.rank));
    }
    struct sparsec_session *session = sparsec_session_take(model, &failure);
    if (!session) fail("session_take", failure.text);
    struct sparsec_binding *binding = sparsec_session_bind(session, given, &failure);
    if (!binding) fail("session_bind", failure.text);
    for (size_t i = 0; i < outputs; i++)
        made[i] = new_array(sparsec_model_output(model, i), sparsec_binding_output_shape(session, binding, i));
    if (sparsec_session_run(session, binding, given, made, &failure)) fail("session_run", failure.text);
    for (size_t i = 0; i < outputs; i++) write_output(&made[i]);
    sparsec_session_give_back(session);
    free_arrays(given, inputs);
    free_arrays(made, outputs);
}

int main(void) {
    int64_t numbers[2];
    cases = fopen("cases.bin", "rb");
    if (!cases) fail("cases.bin", "cannot be opened");
    while (fread(numbers, sizeof numbers, 1, cases) == 1) {
        char path[64];
        struct sparsec_failure failure;
        snprintf(path, sizeof path, "model%lld.sparsec", (long long)numbers[0]);
        struct sparsec_model *model = sparsec_model_load(path, true, &failure);
        if (!model) fail(path, failure.text);
        if (sparsec_model_set_threads(model, (int)numbers[1])) fail(path, "wrong number of threads");
        run_case(model);
        sparsec_model_free(model);
    }
    return 0;
}
