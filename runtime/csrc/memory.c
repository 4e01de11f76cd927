/* Aligned memory that only grows, and the per-thread stack that kernels allocate from. */
#define _DEFAULT_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

enum { HUGE_PAGE = 2 << 20 };

int memory_reserve(struct memory *memory, size_t size, struct sparsec_failure *failure) {
    if (size <= memory->size && memory->data) return 0;
    size_t alignment = size >= 2 * (size_t)HUGE_PAGE ? HUGE_PAGE : ALIGNMENT;
    size_t rounded = (size + alignment) / alignment * alignment;
    void *data = aligned_alloc(alignment, rounded);
    if (!data) return fail_memory(failure, size);
    /* Large arenas are read in strides that miss a 4 KiB-page TLB. */
    if (alignment == HUGE_PAGE) madvise(data, rounded, MADV_HUGEPAGE);
    memory_release(memory);
    *memory = (struct memory){data, rounded};
    return 0;
}

void memory_release(struct memory *memory) {
    free(memory->data);
    *memory = (struct memory){0};
}

/* Written before each allocation; its size keeps what follows aligned. */
struct block {
    _Alignas(ALIGNMENT) size_t bytes;
    size_t start; /* offset in the workspace, or OUTSIDE */
    struct block *next;
};

static const size_t OUTSIDE = (size_t)-1;
#if defined(__GLIBC__)
/* Otherwise a thread's first access, in a library that was loaded late, would allocate. */
__attribute__((tls_model("initial-exec")))
#endif
static _Thread_local struct workspace *current;

struct workspace *workspace_enter(struct workspace *workspace) {
    struct workspace *previous = current;
    current = workspace;
    return previous;
}

static void *allocate_outside(struct workspace *workspace, size_t total) {
    struct block *block = aligned_alloc(ALIGNMENT, total);
    if (!block) return NULL;
    *block = (struct block){.bytes = total, .start = OUTSIDE};
    if (!workspace) return block + 1;
    block->next = workspace->overflow;
    workspace->overflow = block;
    workspace->outside += total;
    workspace->live++;
    return block + 1;
}

void *workspace_allocate(uint64_t bytes) {
    struct workspace *w = current;
    if (bytes > (uint64_t)1 << 48) return NULL;
    size_t total = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + sizeof(struct block);
    if (!w) return allocate_outside(NULL, total);
    if (w->used + w->outside + total > w->peak) w->peak = w->used + w->outside + total;
    if (w->used + total > w->memory.size) return allocate_outside(w, total);
    struct block *block = (struct block *)(w->memory.data + w->used);
    *block = (struct block){.bytes = total, .start = w->used};
    w->used += total;
    w->live++;
    return block + 1;
}

static void unlink_outside(struct workspace *workspace, struct block *block) {
    struct block **link = &workspace->overflow;
    while (*link && *link != block) link = &(*link)->next;
    if (*link) *link = block->next;
    workspace->outside -= block->bytes;
    free(block);
}

int workspace_free(void *pointer) {
    struct block *block = (struct block *)pointer - 1;
    struct workspace *w = current;
    if (!w) {
        free(block);
        return 0;
    }
    if (block->start == OUTSIDE) unlink_outside(w, block);
    else if (block->start + block->bytes == w->used) w->used = block->start;
    if (w->live && --w->live == 0) w->used = 0;
    return 0;
}

/* Between kernels nothing is allocated: drop what a failed one left and make room for the peak. */
void workspace_reset(struct workspace *w) {
    struct sparsec_failure ignored;
    while (w->overflow) unlink_outside(w, w->overflow);
    w->used = w->live = 0;
    if (w->peak > w->memory.size) memory_reserve(&w->memory, w->peak, &ignored);
}

/* Compiled code keeps what is too large for its stack here; it makes that to fit a core's caches. */
enum { USUAL_WORKSPACE = 256 << 10 };

int worker_reserve(struct worker *worker, size_t scratch, struct sparsec_failure *failure) {
    workspace_reset(&worker->workspace);
    if (memory_reserve(&worker->scratch, scratch, failure)) return -1;
    return memory_reserve(&worker->workspace.memory, USUAL_WORKSPACE, failure);
}

void worker_release(struct worker *worker) {
    workspace_reset(&worker->workspace);
    memory_release(&worker->workspace.memory);
    memory_release(&worker->scratch);
}
