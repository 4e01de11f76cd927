/* What callers ask of a model, and what a run checks before it trusts their arrays. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

_Static_assert(SPARSEC_ALIGNMENT == ALIGNMENT && SPARSEC_MAXIMUM_RANK == MAXIMUM_RANK, "header and format");

const char *sparsec_version(void) { return SPARSEC_VERSION; }

const char *sparsec_dtype_name(uint32_t dtype) { return dtype_name(dtype); }

size_t sparsec_dtype_bytes(uint32_t dtype) { return dtype_name(dtype) ? dtype_bytes(dtype) : 0; }

size_t sparsec_array_bytes(const struct sparsec_array *array) { return array_bytes(array); }

int sparsec_model_set_threads(struct sparsec_model *model, int threads) {
    if (threads < 1 || threads > MAXIMUM_THREADS) return SPARSEC_FAILURE_INPUT;
    atomic_store(&model->threads, threads);
    return 0;
}

int sparsec_model_threads(const struct sparsec_model *model) { return atomic_load(&model->threads); }

size_t sparsec_model_input_count(const struct sparsec_model *model) { return model->plan.input_count; }
size_t sparsec_model_output_count(const struct sparsec_model *model) { return model->plan.output_count; }
size_t sparsec_model_step_count(const struct sparsec_model *model) { return model->plan.step_count; }

static struct sparsec_port describe(const struct sparsec_model *model, const struct port *port) {
    return (struct sparsec_port){model->plan.strings + port->name, port->dtype, (int)port->shape.rank,
                                 model->lengths + port->shape.start};
}

struct sparsec_port sparsec_model_input(const struct sparsec_model *model, size_t index) {
    if (index >= model->plan.input_count) return (struct sparsec_port){0};
    return describe(model, &model->plan.inputs[index]);
}

struct sparsec_port sparsec_model_output(const struct sparsec_model *model, size_t index) {
    if (index >= model->plan.output_count) return (struct sparsec_port){0};
    return describe(model, &model->plan.outputs[index]);
}

struct sparsec_step sparsec_model_step(const struct sparsec_model *model, size_t index) {
    const struct plan *plan = &model->plan;
    if (index >= plan->step_count) return (struct sparsec_step){0};
    return (struct sparsec_step){plan->strings + plan->steps[index].node,
                                 plan->strings + plan->steps[index].kernel};
}

static int axis_text(const struct plan *plan, const struct port *ports, size_t count, size_t index, int axis,
                     char *text, size_t size) {
    if (size == 0 || index >= count || axis < 0 || (uint32_t)axis >= ports[index].shape.rank)
        return SPARSEC_FAILURE_INPUT;
    size_text(plan, plan->shapes[ports[index].shape.start + (uint32_t)axis], text, size);
    return 0;
}

int sparsec_model_input_axis(const struct sparsec_model *model, size_t index, int axis, char *text, size_t size) {
    return axis_text(&model->plan, model->plan.inputs, model->plan.input_count, index, axis, text, size);
}

int sparsec_model_output_axis(const struct sparsec_model *model, size_t index, int axis, char *text,
                              size_t size) {
    return axis_text(&model->plan, model->plan.outputs, model->plan.output_count, index, axis, text, size);
}

const int64_t *sparsec_binding_output_shape(const struct sparsec_session *session,
                                            const struct sparsec_binding *b, size_t output) {
    return b->shapes + session->model->plan.outputs[output].shape.start;
}

int64_t sparsec_binding_step_tiles(const struct sparsec_binding *b, size_t step) { return b->calls[step].tiles; }

static bool fits(const struct sparsec_binding *b, const struct port *port, const struct sparsec_array *array) {
    if (array->dtype != port->dtype || array->rank < 0 || (uint32_t)array->rank != port->shape.rank) return false;
    const size_t bytes = (size_t)array->rank * sizeof *array->shape;
    return bytes == 0 || memcmp(array->shape, b->shapes + port->shape.start, bytes) == 0;
}

static int check_array(const struct sparsec_model *model, const struct sparsec_binding *b, const struct port *port,
                       const char *kind, const struct sparsec_array *array, struct sparsec_failure *failure) {
    char expected[SHAPE_TEXT], got[SHAPE_TEXT];
    const char *name = model->plan.strings + port->name, *dtype = dtype_name(array->dtype);
    if (!fits(b, port, array)) {
        lengths_text(b->shapes + port->shape.start, (int)port->shape.rank, expected, sizeof expected);
        lengths_text(array->shape, array->rank, got, sizeof got);
        return fail(failure, SPARSEC_FAILURE_INPUT,
                    "%s '%s' must be %s of shape %s, as was bound, got %s of shape %s", kind, name,
                    dtype_name(port->dtype), expected, dtype ? dtype : "another type", got);
    }
    if (array->device && !model->cuda)
        return fail(failure, SPARSEC_FAILURE_INPUT,
                    "%s '%s' lies in a GPU's memory, the program runs on the processor; pass x.cpu()", kind, name);
    if (array->data || array_bytes(array) == 0) return 0;
    return fail(failure, SPARSEC_FAILURE_INPUT, "%s '%s' has no data", kind, name);
}

int check_arrays(const struct sparsec_model *model, const struct sparsec_binding *b,
                 const struct sparsec_array *inputs, const struct sparsec_array *outputs,
                 struct sparsec_failure *failure) {
    const struct plan *plan = &model->plan;
    for (size_t i = 0; i < plan->input_count; i++)
        if (check_array(model, b, &plan->inputs[i], "input", &inputs[i], failure)) return -1;
    for (size_t i = 0; i < plan->output_count; i++)
        if (check_array(model, b, &plan->outputs[i], "output", &outputs[i], failure)) return -1;
    return 0;
}
