/* Sizes: symbols bound from input shapes, expressions over them, and both as text. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { TEXT_DEPTH = 8 };

static int append(char *out, size_t size, const char *text) {
    size_t used = strlen(out);
    return snprintf(out + used, size - used, "%s", text);
}

static void append_size(const struct plan *plan, uint32_t index, int depth, char *out, size_t size) {
    static const char *const JOINTS[OP_END] = {"", "", " + ", "*", " ceil/ ", " max "};
    const struct expression *e = &plan->expressions[index];
    char number[32];
    if (e->operator == OP_SYMBOL) {
        append(out, size, plan->strings + plan->symbols[e->a]);
    } else if (e->operator == OP_CONSTANT) {
        snprintf(number, sizeof number, "%" PRId64, e->a);
        append(out, size, number);
    } else if (depth == 0) {
        append(out, size, "...");
    } else {
        append_size(plan, (uint32_t)e->a, depth - 1, out, size);
        append(out, size, JOINTS[e->operator]);
        append_size(plan, (uint32_t)e->b, depth - 1, out, size);
    }
}

void size_text(const struct plan *plan, uint32_t expression, char *out, size_t size) {
    out[0] = 0;
    append_size(plan, expression, TEXT_DEPTH, out, size);
}

void shape_text(const struct plan *plan, struct extent shape, char *out, size_t size) {
    snprintf(out, size, "[");
    for (uint32_t axis = 0; axis < shape.rank; axis++) {
        if (axis) append(out, size, ", ");
        append_size(plan, plan->shapes[shape.start + axis], TEXT_DEPTH, out, size);
    }
    append(out, size, "]");
}

void lengths_text(const int64_t *lengths, int rank, char *out, size_t size) {
    char number[32];
    snprintf(out, size, "[");
    for (int axis = 0; axis < rank; axis++) {
        snprintf(number, sizeof number, "%s%" PRId64, axis ? ", " : "", lengths[axis]);
        append(out, size, number);
    }
    append(out, size, "]");
}

static int fail_shape(const struct plan *plan, const struct port *port, const struct sparsec_array *array,
                      int axis, const char *wanted, struct sparsec_failure *failure) {
    char expected[SHAPE_TEXT], got[SHAPE_TEXT];
    shape_text(plan, port->shape, expected, sizeof expected);
    lengths_text(array->shape, array->rank, got, sizeof got);
    const char *name = plan->strings + port->name;
    if (axis < 0)
        return fail(failure, SPARSEC_FAILURE_INPUT,
                    "input '%s' must have %s (shape %s), got %d (shape %s); reshape it", name, wanted, expected,
                    array->rank, got);
    return fail(failure, SPARSEC_FAILURE_INPUT,
                "input '%s' axis %d must have length %s, got %" PRId64 " (expected shape %s, got %s)", name, axis,
                wanted, array->shape[axis], expected, got);
}

static int check_type(const struct plan *plan, const struct port *port, const struct sparsec_array *array,
                      struct sparsec_failure *failure) {
    char wanted[32];
    const char *got = dtype_name(array->dtype), *expected = dtype_name(port->dtype);
    if (array->dtype != port->dtype)
        return fail(failure, SPARSEC_FAILURE_INPUT, "input '%s' must be %s, got %s; pass x.astype('%s')",
                    plan->strings + port->name, expected, got ? got : "another type", expected);
    if (array->rank == (int)port->shape.rank) return 0;
    snprintf(wanted, sizeof wanted, "%u axes", port->shape.rank);
    return fail_shape(plan, port, array, -1, wanted, failure);
}

static int bind_axis(const struct plan *plan, const struct port *port, const struct sparsec_array *array,
                     uint32_t axis, int64_t *values, struct sparsec_failure *failure) {
    const struct expression *e = &plan->expressions[plan->shapes[port->shape.start + axis]];
    int64_t length = array->shape[axis];
    char wanted[SHAPE_TEXT];
    if (length < 0 || length > SIZE_LIMIT) return fail_shape(plan, port, array, (int)axis, "a sane size", failure);
    if (e->operator != OP_SYMBOL) return 0;
    if (values[e->a] < 0) values[e->a] = length;
    if (values[e->a] == length) return 0;
    snprintf(wanted, sizeof wanted, "%" PRId64 " (%s, as on an earlier axis)", values[e->a],
             plan->strings + plan->symbols[e->a]);
    return fail_shape(plan, port, array, (int)axis, wanted, failure);
}

static bool evaluate(const struct expression *e, const int64_t *values, const int64_t *sizes, int64_t *out) {
    int64_t a = e->operator > OP_SYMBOL ? sizes[e->a] : e->a, b = e->operator > OP_SYMBOL ? sizes[e->b] : 0;
    bool overflow = false;
    switch (e->operator) {
    case OP_CONSTANT: *out = a; return true; /* integers for kernels may be of any size */
    case OP_SYMBOL: *out = values[a]; break;
    case OP_ADD: overflow = __builtin_add_overflow(a, b, out); break;
    case OP_MULTIPLY: overflow = __builtin_mul_overflow(a, b, out); break;
    case OP_MAXIMUM: *out = a > b ? a : b; break;
    case OP_CEIL_DIVIDE:
        if (b <= 0 || a > SIZE_LIMIT || a < -SIZE_LIMIT) return false;
        *out = a / b + (a % b > 0);
        break;
    }
    return !overflow && *out <= SIZE_LIMIT && *out >= -SIZE_LIMIT;
}

static int evaluate_all(const struct plan *plan, const int64_t *values, int64_t *sizes,
                        struct sparsec_failure *failure) {
    char text[SHAPE_TEXT];
    for (size_t i = 0; i < plan->expression_count; i++)
        if (!evaluate(&plan->expressions[i], values, sizes, &sizes[i])) {
            size_text(plan, (uint32_t)i, text, sizeof text);
            return fail(failure, SPARSEC_FAILURE_INPUT, "the inputs are too large: the size %s has no value",
                        text);
        }
    return 0;
}

static int check_axes(const struct plan *plan, const struct port *port, const struct sparsec_array *array,
                      const int64_t *sizes, struct sparsec_failure *failure) {
    char wanted[32];
    for (uint32_t axis = 0; axis < port->shape.rank; axis++) {
        int64_t size = sizes[plan->shapes[port->shape.start + axis]];
        if (size == array->shape[axis]) continue;
        snprintf(wanted, sizeof wanted, "%" PRId64, size);
        return fail_shape(plan, port, array, (int)axis, wanted, failure);
    }
    return 0;
}

static int bind_all(const struct plan *plan, const struct sparsec_array *inputs, int64_t *values, int64_t *sizes,
                    struct sparsec_failure *failure) {
    for (size_t i = 0; i < plan->input_count; i++) {
        if (check_type(plan, &plan->inputs[i], &inputs[i], failure)) return -1;
        for (uint32_t axis = 0; axis < plan->inputs[i].shape.rank; axis++)
            if (bind_axis(plan, &plan->inputs[i], &inputs[i], axis, values, failure)) return -1;
    }
    for (size_t i = 0; i < plan->symbol_count; i++)
        if (values[i] < 0)
            return fail(failure, SPARSEC_FAILURE_INPUT, "the size %s is unknown",
                        plan->strings + plan->symbols[i]);
    if (evaluate_all(plan, values, sizes, failure)) return -1;
    for (size_t i = 0; i < plan->input_count; i++)
        if (check_axes(plan, &plan->inputs[i], &inputs[i], sizes, failure)) return -1;
    return 0;
}

int bind_symbols(const struct plan *plan, const struct sparsec_array *inputs, int64_t *sizes,
                 struct sparsec_failure *failure) {
    int64_t *values = malloc((plan->symbol_count + 1) * sizeof *values);
    if (!values) return fail_memory(failure, plan->symbol_count * sizeof *values);
    for (size_t i = 0; i < plan->symbol_count; i++) values[i] = -1;
    int status = bind_all(plan, inputs, values, sizes, failure);
    free(values);
    return status;
}
