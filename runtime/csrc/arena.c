/* Placing temporary buffers in one arena: greedy by size, each into the tightest gap that is free
 * during its whole life (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
 * Inference", 2020, section 5.2). */
#include <stdlib.h>

#include "internal.h"

struct item {
    size_t buffer, size, offset;
    uint32_t first, last;
};

static int by_size(const void *left, const void *right) {
    const struct item *a = left, *b = right;
    if (a->size != b->size) return a->size < b->size ? 1 : -1;
    return a->buffer < b->buffer ? -1 : a->buffer > b->buffer;
}

static size_t tightest_gap(struct item *const *placed, size_t count, const struct item *item) {
    size_t end = 0, best = 0, best_size = (size_t)-1;
    for (size_t i = 0; i < count; i++) {
        const struct item *other = placed[i];
        if (other->last < item->first || other->first > item->last) continue;
        if (other->offset > end && other->offset - end >= item->size && other->offset - end < best_size) {
            best = end;
            best_size = other->offset - end;
        }
        if (other->offset + other->size > end) end = other->offset + other->size;
    }
    return best_size == (size_t)-1 ? end : best;
}

static void insert(struct item **placed, size_t count, struct item *item) {
    size_t at = count;
    for (; at > 0 && placed[at - 1]->offset > item->offset; at--) placed[at] = placed[at - 1];
    placed[at] = item;
}

/* A temporary that is also an output must outlive the last step. */
static uint32_t last_use(const struct plan *plan, size_t buffer) {
    for (size_t i = 0; i < plan->output_count; i++)
        if (plan->outputs[i].buffer == buffer) return UINT32_MAX;
    return plan->buffers[buffer].last;
}

static size_t collect(const struct plan *plan, const int64_t *sizes, struct item *items) {
    size_t count = 0;
    for (size_t i = 0; i < plan->buffer_count; i++) {
        const struct buffer *b = &plan->buffers[i];
        if (b->kind != BUFFER_TEMPORARY) continue;
        size_t bytes = (size_t)sizes[b->nbytes];
        size_t rounded = bytes ? (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : ALIGNMENT;
        items[count++] = (struct item){i, rounded, 0, b->first, last_use(plan, i)};
    }
    return count;
}

int arena_plan(const struct plan *plan, const int64_t *sizes, size_t *offsets, size_t *total,
               struct sparsec_failure *failure) {
    struct item *items = calloc(plan->buffer_count + 1, sizeof *items);
    struct item **placed = calloc(plan->buffer_count + 1, sizeof *placed);
    size_t count = items && placed ? collect(plan, sizes, items) : 0;
    int status = items && placed ? 0 : fail_memory(failure, plan->buffer_count * sizeof *items);
    *total = 0;
    if (count) qsort(items, count, sizeof *items, by_size);
    for (size_t i = 0; i < count && status == 0; i++) {
        items[i].offset = tightest_gap(placed, i, &items[i]);
        insert(placed, i, &items[i]);
        offsets[items[i].buffer] = items[i].offset;
        if (items[i].offset + items[i].size > *total) *total = items[i].offset + items[i].size;
        if (*total > (size_t)1 << 48) status = fail_memory(failure, *total);
    }
    free(items);
    free(placed);
    return status;
}
