/* A binding: everything that follows from one set of input shapes, computed once.
 *
 * Sizes, the arena's layout, tensors and argument arrays.  Addresses are filled in later, through
 * the list of places each buffer's address is stored in. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

void binding_free(struct sparsec_binding *b) {
    if (!b) return;
    device_binding_close(b);
    free(b->key), free(b->sizes), free(b->offsets), free(b->addresses), free(b->arguments), free(b->tensors);
    free(b->scratches), free(b->shapes), free(b->calls), free(b->slot_starts), free(b->slots), free(b->staging);
    free(b);
}

static bool allocate(struct sparsec_binding *b, const struct sparsec_model *model) {
    const struct plan *p = &model->plan;
#define NEW(field, count) (b->field = calloc((count) + 1, sizeof *b->field))
    return NEW(key, model->input_axes) && NEW(sizes, p->expression_count) && NEW(offsets, p->buffer_count) &&
           NEW(addresses, p->buffer_count) && NEW(arguments, p->argument_count) && NEW(tensors, p->tensor_count) &&
           NEW(scratches, p->step_count) && NEW(shapes, p->shape_count) && NEW(calls, p->step_count) &&
           NEW(slot_starts, p->buffer_count + 1) && NEW(slots, p->argument_count + p->tensor_count) &&
           NEW(staging, p->input_count + p->output_count);
#undef NEW
}

static void fill_key(struct sparsec_binding *b, const struct plan *plan, const struct sparsec_array *inputs) {
    int64_t *at = b->key;
    for (size_t i = 0; i < plan->input_count; i++)
        for (int axis = 0; axis < inputs[i].rank; axis++) *at++ = inputs[i].shape[axis];
}

static int negative(const struct plan *plan, uint32_t expression, const char *what,
                    struct sparsec_failure *failure) {
    char text[128];
    size_text(plan, expression, text, sizeof text);
    return fail(failure, SPARSEC_FAILURE_INPUT, "the inputs are too small: %s %s would be negative", what, text);
}

/* Bytes of an extent of items, or -1 after a failure. */
static int64_t extent_bytes(const struct plan *plan, const struct sparsec_binding *b, struct extent shape,
                            uint32_t dtype, struct sparsec_failure *failure) {
    int64_t bytes = (int64_t)dtype_bytes(dtype);
    for (uint32_t axis = 0; axis < shape.rank; axis++) {
        uint32_t expression = plan->shapes[shape.start + axis];
        if (b->sizes[expression] < 0) return negative(plan, expression, "the length", failure);
        if (__builtin_mul_overflow(bytes, b->sizes[expression], &bytes) || bytes > SIZE_LIMIT)
            return fail(failure, SPARSEC_FAILURE_INPUT,
                        "the inputs are too large: a tensor would not fit in memory");
    }
    return bytes;
}

static int check_part(const struct plan *plan, const struct sparsec_binding *b, size_t i,
                      struct sparsec_failure *failure) {
    const struct buffer *part = &plan->buffers[i];
    int64_t start = b->sizes[part->first], whole = b->sizes[plan->buffers[part->index].nbytes];
    if (start < 0 || start > whole || b->sizes[part->nbytes] > whole - start)
        return fail(failure, SPARSEC_FAILURE_ARTIFACT, "buffer %zu lies outside the buffer it is part of", i);
    return 0;
}

static int check_bytes(const struct sparsec_model *model, const struct sparsec_binding *b,
                       struct sparsec_failure *failure) {
    const struct plan *plan = &model->plan;
    size_t weights = model->image.sections[SECTION_WEIGHTS].size;
    for (size_t i = 0; i < plan->buffer_count; i++) {
        const struct buffer *buffer = &plan->buffers[i];
        int64_t bytes = b->sizes[buffer->nbytes];
        if (bytes < 0) return negative(plan, buffer->nbytes, "the size", failure);
        if (bytes > SIZE_LIMIT) return fail_memory(failure, (size_t)bytes);
        if (buffer->kind == BUFFER_PART && check_part(plan, b, i, failure)) return -1;
        if (buffer->kind != BUFFER_CONSTANT) continue;
        if ((uint64_t)buffer->index > weights || (uint64_t)bytes > weights - (uint64_t)buffer->index)
            return fail(failure, SPARSEC_FAILURE_ARTIFACT, "buffer %zu lies outside the file's weights", i);
    }
    return 0;
}

static int fill_tensors(const struct plan *plan, struct sparsec_binding *b, struct sparsec_failure *failure) {
    for (size_t i = 0; i < plan->shape_count; i++) b->shapes[i] = b->sizes[plan->shapes[i]];
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const struct tensor *t = &plan->tensors[i];
        int64_t bytes = extent_bytes(plan, b, t->shape, t->dtype, failure);
        if (bytes < 0) return -1;
        if (bytes > b->sizes[plan->buffers[t->buffer].nbytes])
            return fail(failure, SPARSEC_FAILURE_ARTIFACT, "tensor %zu is larger than its buffer", i);
        b->tensors[i] = (DLTensor){
            .device = {DEVICE_CPU, 0},
            .ndim = (int32_t)t->shape.rank,
            .dtype = {(uint8_t)t->dtype, (uint8_t)(t->dtype >> 8), (uint16_t)(t->dtype >> 16)},
            .shape = b->shapes + t->shape.start,
        };
    }
    return 0;
}

static void fill_argument(const struct plan *plan, struct sparsec_binding *b, size_t step, size_t index) {
    const struct argument *a = &plan->arguments[index];
    TVMFFIAny *any = &b->arguments[index];
    switch (a->kind) {
    case ARGUMENT_SCRATCH: *any = (TVMFFIAny){.type_index = TYPE_TENSOR, .v_ptr = &b->scratches[step]}; break;
    case ARGUMENT_TENSOR: *any = (TVMFFIAny){.type_index = TYPE_TENSOR, .v_ptr = &b->tensors[a->value]}; break;
    case ARGUMENT_POINTER: *any = (TVMFFIAny){.type_index = TYPE_OPAQUE_POINTER}; break;
    case ARGUMENT_INTEGER: *any = (TVMFFIAny){.type_index = TYPE_INT, .v_int64 = b->sizes[a->value]}; break;
    case ARGUMENT_TILE_BEGIN: *any = (TVMFFIAny){.type_index = TYPE_INT, .v_int64 = 0}; break;
    case ARGUMENT_TILE_END: *any = (TVMFFIAny){.type_index = TYPE_INT, .v_int64 = b->calls[step].tiles}; break;
    }
}

/* Each helper must be worth its cost: waking one takes about 20 microseconds, handing a job to one
 * that still spins and moving the data to its cache about 5. */
enum { WAKING_NANOSECONDS = 20000, JOINING_NANOSECONDS = 5000 };

static int32_t worthwhile_helpers(const struct step *step, int64_t tiles, uint64_t cost) {
    uint64_t helpers = step->nanoseconds / cost;
    if (step->flags & STEP_SERIAL || tiles < 2) return 0;
    if (helpers > (uint64_t)tiles - 1) helpers = (uint64_t)tiles - 1;
    return helpers < MAXIMUM_THREADS ? (int32_t)helpers : MAXIMUM_THREADS - 1;
}

/* A step on a GPU: what else a launch needs is in the plan. */
static int fill_launch(const struct plan *plan, struct sparsec_binding *b, size_t index, int64_t tiles,
                       struct sparsec_failure *failure) {
    const struct step *step = &plan->steps[index];
    if (tiles > INT32_MAX)
        return fail(failure, SPARSEC_FAILURE_INPUT, "the inputs are too large: step %zu has too many blocks", index);
    b->calls[index].tiles = tiles;
    for (uint32_t i = 0; i < step->argument_count; i++) fill_argument(plan, b, index, step->first_argument + i);
    return 0;
}

static int fill_call(const struct sparsec_model *model, struct sparsec_binding *b, size_t index,
                     struct sparsec_failure *failure) {
    const struct plan *plan = &model->plan;
    const struct step *step = &plan->steps[index];
    int64_t tiles = b->sizes[step->tiles], scratch = b->sizes[step->scratch];
    if (tiles < 0) return negative(plan, step->tiles, "the number of tiles", failure);
    if (scratch < 0) return negative(plan, step->scratch, "the scratch memory", failure);
    if (scratch > SIZE_LIMIT) return fail_memory(failure, (size_t)scratch);
    if (tiles > SIZE_LIMIT)
        return fail(failure, SPARSEC_FAILURE_INPUT, "the inputs are too large: step %zu has too many tiles", index);
    if (model->device) return fill_launch(plan, b, index, tiles, failure);
    int64_t items = scratch / 4 + (scratch % 4 > 0);
    b->calls[index] = (struct call){
        .kernel = model->kernels[index],
        .arguments = b->arguments + step->first_argument,
        .kinds = plan->arguments + step->first_argument,
        .scratch = &b->scratches[index],
        .scratch_shape = items < 16 ? 16 : items,
        .tiles = tiles,
        .count = (int32_t)step->argument_count,
        .helpers = worthwhile_helpers(step, tiles, WAKING_NANOSECONDS),
        .awake_helpers = worthwhile_helpers(step, tiles, JOINING_NANOSECONDS),
    };
    struct call *call = &b->calls[index];
    *call->scratch = (DLTensor){
        .device = {DEVICE_CPU, 0}, .ndim = 1, .dtype = {DTYPE_FLOAT, 32, 1}, .shape = &call->scratch_shape};
    if ((size_t)call->scratch_shape * 4 > b->scratch_bytes) b->scratch_bytes = (size_t)call->scratch_shape * 4;
    for (uint32_t i = 0; i < step->argument_count; i++) fill_argument(plan, b, index, step->first_argument + i);
    return 0;
}

/* The buffer whose memory a buffer lies in. */
static size_t owner(const struct plan *plan, size_t buffer) {
    return plan->buffers[buffer].kind == BUFFER_PART ? (size_t)plan->buffers[buffer].index : buffer;
}

static void count_slots(const struct plan *plan, uint32_t *counts) {
    for (size_t i = 0; i < plan->argument_count; i++)
        if (plan->arguments[i].kind == ARGUMENT_POINTER) counts[owner(plan, plan->arguments[i].value)]++;
    for (size_t i = 0; i < plan->tensor_count; i++) counts[owner(plan, plan->tensors[i].buffer)]++;
}

static void add_slot(const struct plan *plan, struct sparsec_binding *b, uint32_t *ends, size_t buffer,
                     void **place) {
    const struct buffer *part = &plan->buffers[buffer];
    int64_t offset = part->kind == BUFFER_PART ? b->sizes[part->first] : 0;
    b->slots[ends[owner(plan, buffer)]++] = (struct slot){place, offset};
}

/* After counting, starts[i + 1] is where buffer i's next place goes; in the end, where its list ends. */
static void fill_slots(const struct plan *plan, struct sparsec_binding *b) {
    uint32_t *ends = b->slot_starts + 1, total = 0;
    count_slots(plan, ends);
    for (size_t i = 0; i < plan->buffer_count; i++) {
        uint32_t count = ends[i];
        ends[i] = total;
        total += count;
    }
    for (size_t i = 0; i < plan->argument_count; i++)
        if (plan->arguments[i].kind == ARGUMENT_POINTER)
            add_slot(plan, b, ends, plan->arguments[i].value, &b->arguments[i].v_ptr);
    for (size_t i = 0; i < plan->tensor_count; i++)
        add_slot(plan, b, ends, plan->tensors[i].buffer, &b->tensors[i].data);
}

void binding_place(struct sparsec_binding *b, size_t buffer, void *address) {
    if (b->addresses[buffer] == address) return;
    b->addresses[buffer] = address;
    for (uint32_t i = b->slot_starts[buffer]; i < b->slot_starts[buffer + 1]; i++)
        *b->slots[i].place = (char *)address + b->slots[i].offset;
}

void place_temporaries(const struct plan *plan, struct sparsec_binding *b, unsigned char *arena) {
    if (b->arena == arena) return;
    for (size_t i = 0; i < plan->buffer_count; i++)
        if (plan->buffers[i].kind == BUFFER_TEMPORARY) binding_place(b, i, arena + b->offsets[i]);
    b->arena = arena;
}

static void place_constants(const struct sparsec_model *model, struct sparsec_binding *b) {
    const unsigned char *weights = model->weights;
    for (size_t i = 0; i < model->plan.buffer_count; i++)
        if (model->plan.buffers[i].kind == BUFFER_CONSTANT)
            binding_place(b, i, (void *)((uintptr_t)weights + (uintptr_t)model->plan.buffers[i].index));
}

static int lay_out_staging(const struct plan *plan, struct sparsec_binding *b, struct sparsec_failure *failure) {
    for (size_t i = 0; i < plan->input_count + plan->output_count; i++) {
        const struct port *port = i < plan->input_count ? &plan->inputs[i] : &plan->outputs[i - plan->input_count];
        int64_t bytes = extent_bytes(plan, b, port->shape, port->dtype, failure);
        int64_t needed = b->sizes[plan->buffers[port->buffer].nbytes];
        if (bytes < 0) return -1;
        b->staging[i] = b->staging_bytes;
        b->staging_bytes += (size_t)(bytes > needed ? bytes : needed) / ALIGNMENT * ALIGNMENT + ALIGNMENT;
        if (b->staging_bytes > (size_t)1 << 48) return fail_memory(failure, b->staging_bytes);
    }
    return 0;
}

static int check_copied_outputs(const struct plan *plan, struct sparsec_binding *b,
                                struct sparsec_failure *failure) {
    for (size_t i = 0; i < plan->output_count; i++) {
        const struct port *port = &plan->outputs[i];
        int64_t bytes = extent_bytes(plan, b, port->shape, port->dtype, failure);
        if (bytes < 0) return -1;
        if (bytes > b->sizes[plan->buffers[port->buffer].nbytes])
            return fail(failure, SPARSEC_FAILURE_ARTIFACT, "output '%s' is larger than its buffer",
                        plan->strings + port->name);
    }
    return 0;
}

static int fill(struct sparsec_binding *b, const struct sparsec_model *model, const struct sparsec_array *inputs,
                struct sparsec_failure *failure) {
    const struct plan *plan = &model->plan;
    if (bind_symbols(plan, inputs, b->sizes, failure) || check_bytes(model, b, failure)) return -1;
    fill_key(b, plan, inputs);
    if (fill_tensors(plan, b, failure) || check_copied_outputs(plan, b, failure)) return -1;
    for (size_t i = 0; i < plan->step_count; i++)
        if (fill_call(model, b, i, failure)) return -1;
    if (arena_plan(plan, b->sizes, b->offsets, &b->arena_bytes, failure)) return -1;
    fill_slots(plan, b);
    place_constants(model, b);
    return lay_out_staging(plan, b, failure);
}

struct sparsec_binding *binding_new(const struct sparsec_model *model, const struct sparsec_array *inputs,
                                    struct sparsec_failure *failure) {
    struct sparsec_binding *b = calloc(1, sizeof *b);
    if (!b || !allocate(b, model)) fail_memory(failure, sizeof *b);
    else if (fill(b, model, inputs, failure) == 0) return b;
    binding_free(b);
    return NULL;
}
