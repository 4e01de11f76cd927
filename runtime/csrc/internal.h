/* What the executor's files share. */
#ifndef SPARSEC_INTERNAL_H
#define SPARSEC_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "abi.h"
#include "format.h"
#include "sparsec.h"

/* failure.c */
int fail(struct failure *failure, enum failure_kind kind, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int fail_memory(struct failure *failure, size_t bytes);

/* image.c: the mapped file */
struct span {
    const unsigned char *data;
    size_t size;
};

struct image {
    unsigned char *base;
    size_t size;
    struct span sections[SECTION_END];
};

int image_open(struct image *image, const char *path, bool verify, struct failure *failure);
int image_copy(struct image *image, const void *data, size_t size, bool verify, struct failure *failure);
void image_close(struct image *image);

/* plan.c: the tables, checked */
struct plan {
    const char *strings;
    const uint32_t *features, *symbols, *shapes;
    const struct expression *expressions;
    const struct buffer *buffers;
    const struct tensor *tensors;
    const struct argument *arguments;
    const struct step *steps;
    const struct port *inputs, *outputs;
    size_t string_bytes, feature_count, symbol_count, shape_count, expression_count, buffer_count;
    size_t tensor_count, argument_count, step_count, input_count, output_count;
};

int plan_open(struct plan *plan, const struct image *image, struct failure *failure);
const char *dtype_name(uint32_t dtype);
static inline size_t dtype_bytes(uint32_t dtype) { return ((dtype >> 8) & 0xff) / 8; }

/* features.c */
int check_features(const struct plan *plan, struct failure *failure);

/* library.c: the code section */
struct library {
    void *handle;
    int descriptor;
    const char *(*last_error)(void);
};

int library_open(struct library *library, struct span code, struct failure *failure);
void library_close(struct library *library);
kernel_function library_kernel(const struct library *library, const char *name);

/* sizes.c */
int bind_symbols(const struct plan *plan, const struct array *inputs, int64_t *sizes, struct failure *failure);
void shape_text(const struct plan *plan, struct extent shape, char *out, size_t size);
void size_text(const struct plan *plan, uint32_t expression, char *out, size_t size);

/* memory.c */
struct memory {
    unsigned char *data;
    size_t size;
};

int memory_reserve(struct memory *memory, size_t size, struct failure *failure);
void memory_release(struct memory *memory);

struct block;
struct workspace {
    struct memory memory;
    size_t used, outside, peak, live; /* bytes in the memory, bytes beside it, their most; blocks */
    struct block *overflow;
};

struct worker {
    struct memory scratch;
    struct workspace workspace;
};

void *workspace_allocate(uint64_t bytes);
int workspace_free(void *pointer);
struct workspace *workspace_enter(struct workspace *workspace);
void workspace_reset(struct workspace *workspace);
void worker_release(struct worker *worker);

/* arena.c */
int arena_plan(const struct plan *plan, const int64_t *sizes, size_t *offsets, size_t *total,
               struct failure *failure);

/* binding.c */
struct call {
    kernel_function kernel;
    const TVMFFIAny *arguments;
    const struct argument *kinds;
    DLTensor *scratch;
    int64_t scratch_shape;
    int64_t tiles;
    int32_t count;
    int32_t helpers; /* threads that may help the caller, as many as the predicted time pays for */
    int32_t awake_helpers; /* the same while they are awake */
};

/* A place that a buffer's address is stored in, or the address so many bytes further on. */
struct slot {
    void **place;
    int64_t offset;
};

struct binding {
    int64_t *key; /* all input shapes, one after the other */
    int64_t *sizes;
    size_t *offsets; /* of temporary buffers in the arena */
    void **addresses;
    TVMFFIAny *arguments;
    DLTensor *tensors, *scratches;
    int64_t *shapes; /* of tensors and ports, parallel to the plan's shapes */
    struct call *calls;
    uint32_t *slot_starts;
    struct slot *slots; /* grouped by buffer */
    size_t *staging; /* offset of each input's, then each output's staging memory */
    size_t arena_bytes, staging_bytes, scratch_bytes;
    const unsigned char *arena, *scratch;
    uint64_t used;
};

struct binding *binding_new(const struct model *model, const struct array *inputs, struct failure *failure);
void binding_free(struct binding *binding);
void binding_place(struct binding *binding, size_t buffer, void *address);

/* strided.c */
size_t array_bytes(const struct array *array);
void strided_copy(char *to, const int64_t *to_strides, const char *from, const int64_t *from_strides,
                  const int64_t *shape, int rank, size_t item);

/* pool.c */
struct pool;
struct pool *pool_new(size_t argument_limit, const char *(*last_error)(void));
void pool_free(struct pool *pool);
bool pool_take(struct pool *pool);
void pool_give_back(struct pool *pool);
bool pool_awake(const struct pool *pool); /* helpers are waiting, and none of them sleeps */
int pool_run(struct pool *pool, struct worker *caller, const struct call *call, int helpers, struct failure *failure);
int fail_kernel(struct failure *failure, const char *(*last_error)(void));

/* session.c: a run whose loop over the steps is given by the caller */
typedef int (*step_runner)(struct session *session, struct binding *binding, int threads, void *context,
                           struct failure *failure);
int session_run_with(struct session *session, struct binding *binding, const struct array *inputs,
                     const struct array *outputs, step_runner run, void *context, struct failure *failure);
int session_step(struct session *session, const struct binding *binding, size_t index, int threads,
                 struct failure *failure);

enum { BINDINGS = 8, MAXIMUM_THREADS = 256 };

struct session {
    struct model *model;
    struct session *next;
    struct binding *bindings[BINDINGS];
    struct memory arena, staging;
    struct worker worker;
    uint64_t clock;
};

struct model {
    struct image image;
    struct plan plan;
    struct library library;
    kernel_function *kernels;
    struct pool *pool;
    pthread_mutex_t lock; /* guards idle */
    struct session *idle;
    atomic_int threads;
    size_t input_axes; /* sum of the inputs' ranks */
    uint32_t argument_limit;
};

#endif
