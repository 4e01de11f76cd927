/* The plan's tables, checked once at load so that running needs no checks. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static int broken(struct sparsec_failure *failure, const char *table, size_t index, const char *what) {
    return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                "the file's table of %s is damaged: entry %zu %s; compile the model again", table, index, what);
}

static const struct {
    uint32_t dtype;
    const char *name;
} DTYPES[] = {
    {0x10000 | 32 << 8 | DTYPE_FLOAT, "float32"}, {0x10000 | 64 << 8 | DTYPE_FLOAT, "float64"},
    {0x10000 | 16 << 8 | DTYPE_FLOAT, "float16"}, {0x10000 | 8 << 8 | DTYPE_INT, "int8"},
    {0x10000 | 16 << 8 | DTYPE_INT, "int16"},     {0x10000 | 32 << 8 | DTYPE_INT, "int32"},
    {0x10000 | 64 << 8 | DTYPE_INT, "int64"},     {0x10000 | 8 << 8 | DTYPE_UINT, "uint8"},
    {0x10000 | 16 << 8 | DTYPE_UINT, "uint16"},   {0x10000 | 32 << 8 | DTYPE_UINT, "uint32"},
    {0x10000 | 64 << 8 | DTYPE_UINT, "uint64"},   {0x10000 | 8 << 8 | DTYPE_BOOL, "bool"},
    {0x10000 | 16 << 8 | DTYPE_BFLOAT, "bfloat16"},
};

const char *dtype_name(uint32_t dtype) {
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++)
        if (DTYPES[i].dtype == dtype) return DTYPES[i].name;
    return NULL;
}

uint32_t dtype_named(const char *name) {
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++)
        if (strcmp(DTYPES[i].name, name) == 0) return DTYPES[i].dtype;
    return 0;
}

#define TABLE(section, pointer, count)                                                             \
    do {                                                                                           \
        struct span span = image->sections[section];                                               \
        if (span.size % sizeof *plan->pointer != 0)                                                \
            return broken(failure, #pointer, span.size / sizeof *plan->pointer, "is cut short");   \
        if (span.size / sizeof *plan->pointer > INT32_MAX)                                         \
            return broken(failure, #pointer, INT32_MAX, "is one too many");                        \
        plan->pointer = (const void *)span.data;                                                   \
        plan->count = span.size / sizeof *plan->pointer;                                           \
    } while (0)

static int open_tables(struct plan *plan, const struct image *image, struct sparsec_failure *failure) {
    TABLE(SECTION_STRINGS, strings, string_bytes);
    TABLE(SECTION_SYMBOLS, symbols, symbol_count);
    TABLE(SECTION_EXPRESSIONS, expressions, expression_count);
    TABLE(SECTION_BUFFERS, buffers, buffer_count);
    TABLE(SECTION_SHAPES, shapes, shape_count);
    TABLE(SECTION_TENSORS, tensors, tensor_count);
    TABLE(SECTION_ARGUMENTS, arguments, argument_count);
    TABLE(SECTION_STEPS, steps, step_count);
    TABLE(SECTION_INPUTS, inputs, input_count);
    TABLE(SECTION_OUTPUTS, outputs, output_count);
    if (plan->string_bytes == 0 || plan->strings[plan->string_bytes - 1] != 0)
        return broken(failure, "strings", plan->string_bytes, "is not ended");
    return 0;
}

static int check_strings(const struct plan *plan, struct sparsec_failure *failure) {
    for (size_t i = 0; i < plan->symbol_count; i++)
        if (plan->symbols[i] >= plan->string_bytes) return broken(failure, "symbols", i, "has no name");
    return 0;
}

static bool expression_sound(const struct plan *plan, size_t i) {
    const struct expression *e = &plan->expressions[i];
    if (e->operator == OP_CONSTANT) return true;
    if (e->operator == OP_SYMBOL) return e->a >= 0 && (uint64_t)e->a < plan->symbol_count;
    return e->operator < OP_END && e->a >= 0 && (uint64_t)e->a < i && e->b >= 0 && (uint64_t)e->b < i;
}

static int check_sizes(const struct plan *plan, struct sparsec_failure *failure) {
    for (size_t i = 0; i < plan->expression_count; i++)
        if (!expression_sound(plan, i)) return broken(failure, "expressions", i, "refers to nothing");
    for (size_t i = 0; i < plan->shape_count; i++)
        if (plan->shapes[i] >= plan->expression_count) return broken(failure, "shapes", i, "refers to nothing");
    return 0;
}

static bool buffer_index_sound(const struct plan *plan, size_t i) {
    const struct buffer *b = &plan->buffers[i];
    switch (b->kind) {
    case BUFFER_INPUT:
        return b->index >= 0 && (uint64_t)b->index < plan->input_count && plan->inputs[b->index].buffer == i;
    case BUFFER_OUTPUT:
        return b->index >= 0 && (uint64_t)b->index < plan->output_count && plan->outputs[b->index].buffer == i;
    case BUFFER_CONSTANT:
        return b->index >= 0 && b->index % ALIGNMENT == 0;
    case BUFFER_PART:
        return b->index >= 0 && (uint64_t)b->index < i && plan->buffers[b->index].kind != BUFFER_PART &&
               b->first < plan->expression_count;
    default:
        return b->first <= b->last && (b->last < plan->step_count || plan->step_count == 0);
    }
}

static int check_buffers(const struct plan *plan, struct sparsec_failure *failure) {
    for (size_t i = 0; i < plan->buffer_count; i++) {
        const struct buffer *b = &plan->buffers[i];
        if (b->kind >= BUFFER_END) return broken(failure, "buffers", i, "is of no known kind");
        if (b->nbytes >= plan->expression_count) return broken(failure, "buffers", i, "has no size");
        if (!buffer_index_sound(plan, i)) return broken(failure, "buffers", i, "refers to nothing");
    }
    return 0;
}

static bool extent_sound(const struct plan *plan, struct extent shape) {
    return shape.rank <= MAXIMUM_RANK && shape.start <= plan->shape_count &&
           shape.rank <= plan->shape_count - shape.start;
}

static int check_tensors(const struct plan *plan, struct sparsec_failure *failure) {
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const struct tensor *t = &plan->tensors[i];
        if (t->buffer >= plan->buffer_count || !extent_sound(plan, t->shape) || !dtype_name(t->dtype))
            return broken(failure, "tensors", i, "refers to nothing");
    }
    return 0;
}

/* Callers compute with the lengths they are told before any shape is bound. */
static bool lengths_sound(const struct plan *plan, struct extent shape) {
    for (uint32_t axis = 0; axis < shape.rank; axis++) {
        const struct expression *e = &plan->expressions[plan->shapes[shape.start + axis]];
        if (e->operator == OP_CONSTANT && (e->a < 0 || e->a > SIZE_LIMIT)) return false;
    }
    return true;
}

static int check_ports(const struct plan *plan, const struct port *ports, size_t count, const char *table,
                       struct sparsec_failure *failure) {
    for (size_t i = 0; i < count; i++) {
        const struct port *p = &ports[i];
        if (p->name >= plan->string_bytes || p->buffer >= plan->buffer_count ||
            !extent_sound(plan, p->shape) || !dtype_name(p->dtype))
            return broken(failure, table, i, "refers to nothing");
        if (plan->buffers[p->buffer].kind == BUFFER_PART)
            return broken(failure, table, i, "has only a part of a buffer");
        if (!lengths_sound(plan, p->shape)) return broken(failure, table, i, "has a length that cannot be");
    }
    return 0;
}

static int check_inputs_own_buffers(const struct plan *plan, struct sparsec_failure *failure) {
    for (size_t i = 0; i < plan->input_count; i++) {
        const struct buffer *b = &plan->buffers[plan->inputs[i].buffer];
        if (b->kind != BUFFER_INPUT || (uint64_t)b->index != i)
            return broken(failure, "inputs", i, "has no buffer of its own");
    }
    return 0;
}

static bool argument_sound(const struct plan *plan, const struct argument *a) {
    switch (a->kind) {
    case ARGUMENT_POINTER: return a->value < plan->buffer_count;
    case ARGUMENT_INTEGER: return a->value < plan->expression_count;
    case ARGUMENT_TENSOR: return a->value < plan->tensor_count;
    default: return a->kind < ARGUMENT_END;
    }
}

static const char *misplaced(const struct plan *plan, const struct step *s, bool cuda) {
    if (!cuda) return s->threads ? "is a launch on a GPU, in code for a processor" : NULL;
    if (s->threads == 0) return "is a call on the processor, in code for a GPU";
    if (s->threads > MAXIMUM_BLOCK) return "has more threads than a block can have";
    for (uint32_t i = 0; i < s->argument_count; i++) {
        const uint32_t kind = plan->arguments[s->first_argument + i].kind;
        if (kind != ARGUMENT_POINTER && kind != ARGUMENT_INTEGER) return "has an argument that no GPU can take";
    }
    return NULL;
}

/* No two steps share arguments: each binding fills them in for one. */
static int check_steps(const struct plan *plan, bool cuda, struct sparsec_failure *failure) {
    size_t next = 0;
    for (size_t i = 0; i < plan->argument_count; i++)
        if (!argument_sound(plan, &plan->arguments[i])) return broken(failure, "arguments", i, "refers to nothing");
    for (size_t i = 0; i < plan->step_count; i++) {
        const struct step *s = &plan->steps[i];
        if (s->kernel >= plan->string_bytes || s->node >= plan->string_bytes ||
            s->tiles >= plan->expression_count || s->scratch >= plan->expression_count)
            return broken(failure, "steps", i, "refers to nothing");
        if (s->first_argument != next) return broken(failure, "steps", i, "has arguments of another");
        if (s->argument_count > 4096 || s->argument_count > plan->argument_count - next)
            return broken(failure, "steps", i, "has arguments beyond the table");
        if (misplaced(plan, s, cuda)) return broken(failure, "steps", i, misplaced(plan, s, cuda));
        next += s->argument_count;
    }
    return 0;
}

static void mark_symbols(const struct plan *plan, struct extent shape, bool *marks) {
    for (uint32_t axis = 0; axis < shape.rank; axis++) {
        const struct expression *e = &plan->expressions[plan->shapes[shape.start + axis]];
        if (e->operator == OP_SYMBOL) marks[e->a] = true;
    }
}

static int check_symbols(const struct plan *plan, struct sparsec_failure *failure) {
    bool *on_an_axis = calloc(plan->symbol_count + 1, sizeof *on_an_axis);
    size_t i = 0;
    if (!on_an_axis) return fail_memory(failure, plan->symbol_count);
    for (size_t k = 0; k < plan->input_count; k++) mark_symbols(plan, plan->inputs[k].shape, on_an_axis);
    while (i < plan->symbol_count && on_an_axis[i]) i++;
    free(on_an_axis);
    if (i == plan->symbol_count) return 0;
    return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                "the size %s is the length of no input axis; compile the model again",
                plan->strings + plan->symbols[i]);
}

int plan_open(struct plan *plan, const struct image *image, bool cuda, struct sparsec_failure *failure) {
    if (open_tables(plan, image, failure) || check_strings(plan, failure) || check_sizes(plan, failure)) return -1;
    if (check_ports(plan, plan->inputs, plan->input_count, "inputs", failure)) return -1;
    if (check_ports(plan, plan->outputs, plan->output_count, "outputs", failure)) return -1;
    if (check_buffers(plan, failure) || check_inputs_own_buffers(plan, failure)) return -1;
    return check_tensors(plan, failure) || check_steps(plan, cuda, failure) || check_symbols(plan, failure) ? -1 : 0;
}
