/* SPDX-License-Identifier: Apache-2.0
 *
 * Arrays for the test programs of the C runtime: open lengths are given, floats follow a pattern. */
#ifndef ARRAYS_H
#define ARRAYS_H

#include <sparsec.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_PORTS = 32, LINE = SPARSEC_ALIGNMENT };

struct arrays {
    struct sparsec_array at[MOST_PORTS];
    int64_t shapes[MOST_PORTS][SPARSEC_MAXIMUM_RANK];
};

static void stop(const char *what, const char *text) {
    fprintf(stderr, "%s: %s\n", what, text);
    exit(1);
}

/* The array's memory begins so many bytes after a multiple of 64. */
static struct sparsec_array new_array(struct sparsec_port port, const int64_t *shape, size_t shift) {
    struct sparsec_array array = {.rank = port.rank, .dtype = port.dtype, .shape = shape};
    const size_t bytes = sparsec_array_bytes(&array);
    char *memory = aligned_alloc(LINE, (bytes + shift) / LINE * LINE + LINE);
    if (!memory) stop(port.name, "no memory");
    memset(memory, 0, bytes + shift);
    array.data = memory + shift;
    for (size_t i = 0; port.dtype == SPARSEC_FLOAT32 && i < bytes / 4; i++) {
        const float value = (float)(i * 37 % 101) / 101 - 0.5f;
        memcpy(memory + shift + 4 * i, &value, 4);
    }
    return array;
}

static void new_inputs(const struct sparsec_model *model, int64_t open, size_t shift, struct arrays *inputs) {
    if (sparsec_model_input_count(model) > MOST_PORTS) stop("the model", "has too many inputs");
    for (size_t i = 0; i < sparsec_model_input_count(model); i++) {
        const struct sparsec_port port = sparsec_model_input(model, i);
        for (int k = 0; k < port.rank; k++) inputs->shapes[i][k] = port.shape[k] < 0 ? open : port.shape[k];
        inputs->at[i] = new_array(port, inputs->shapes[i], shift);
    }
}

static void new_outputs(const struct sparsec_model *model, const struct sparsec_session *session,
                        const struct sparsec_binding *binding, size_t shift, struct arrays *outputs) {
    if (sparsec_model_output_count(model) > MOST_PORTS) stop("the model", "has too many outputs");
    for (size_t i = 0; i < sparsec_model_output_count(model); i++) {
        const int64_t *shape = sparsec_binding_output_shape(session, binding, i);
        outputs->at[i] = new_array(sparsec_model_output(model, i), shape, shift);
    }
}

static void free_arrays(struct arrays *arrays, size_t count, size_t shift) {
    for (size_t i = 0; i < count; i++) free((char *)arrays->at[i].data - shift);
}

#endif
