/* Loads a model, fills its inputs, runs it and prints how its outputs begin.
 *     cc example.c $(python -m sparsec.runtime --cflags --libs) -o example && ./example model.sparsec */
#include <sparsec.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPEN_LENGTH = 2, LINE = SPARSEC_ALIGNMENT };

static struct sparsec_array new_array(struct sparsec_port port, const int64_t *shape) {
    struct sparsec_array array = {.rank = port.rank, .dtype = port.dtype, .shape = shape};
    const size_t bytes = sparsec_array_bytes(&array);
    array.data = memset(aligned_alloc(LINE, (bytes / LINE + 1) * LINE), 0, bytes);
    for (size_t i = 0; port.dtype == SPARSEC_FLOAT32 && i < bytes / 4; i++)
        ((float *)array.data)[i] = (float)(i % 7) / 7;
    return array;
}

static int failed(const struct sparsec_failure *failure) {
    fprintf(stderr, "%s\n", failure->text);
    return failure->kind;
}

int main(int count, char **arguments) {
    struct sparsec_failure failure;
    struct sparsec_model *model = sparsec_model_load(arguments[count - 1], false, &failure);
    if (!model) return failed(&failure);
    const size_t input_count = sparsec_model_input_count(model), output_count = sparsec_model_output_count(model);
    struct sparsec_array inputs[input_count + 1], outputs[output_count + 1];
    int64_t shapes[input_count + 1][SPARSEC_MAXIMUM_RANK];
    for (size_t i = 0; i < input_count; i++) {
        const struct sparsec_port port = sparsec_model_input(model, i);
        for (int k = 0; k < port.rank; k++) shapes[i][k] = port.shape[k] < 0 ? OPEN_LENGTH : port.shape[k];
        inputs[i] = new_array(port, shapes[i]);
    }
    struct sparsec_session *session = sparsec_session_take(model, &failure);
    struct sparsec_binding *binding = session ? sparsec_session_bind(session, inputs, &failure) : NULL;
    if (!binding) return failed(&failure);
    for (size_t i = 0; i < output_count; i++)
        outputs[i] = new_array(sparsec_model_output(model, i), sparsec_binding_output_shape(session, binding, i));
    if (sparsec_session_run(session, binding, inputs, outputs, &failure)) return failed(&failure);
    for (size_t i = 0; i < output_count; i++) {
        printf("%s:", sparsec_model_output(model, i).name);
        for (int k = 0; k < outputs[i].rank; k++) printf(" %lld", (long long)outputs[i].shape[k]);
        for (size_t k = 0; outputs[i].dtype == SPARSEC_FLOAT32 && k < 4; k++)
            if (k < sparsec_array_bytes(&outputs[i]) / 4) printf(", %.9g", ((float *)outputs[i].data)[k]);
        printf("\n");
    }
    for (size_t i = 0; i < input_count; i++) free(inputs[i].data);
    for (size_t i = 0; i < output_count; i++) free(outputs[i].data);
    sparsec_session_give_back(session);
    sparsec_model_free(model);
    return 0;
}
