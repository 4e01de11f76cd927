/* What the executor's files share. */
#ifndef SPARSEC_INTERNAL_H
#define SPARSEC_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "abi.h"
#include "format.h"
#include "sparsec.h"

/* failure.c */
int fail(struct sparsec_failure *failure, enum sparsec_failure_kind kind, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int fail_memory(struct sparsec_failure *failure, size_t bytes);

/* image.c: the mapped file */
struct span {
    const unsigned char *data;
    size_t size;
};

struct image {
    unsigned char *base;
    size_t size;
    struct span sections[SECTION_END]; /* those of an ISA from image_select on */
    struct span isas[MAXIMUM_ISAS][SECTION_CODE - SECTION_ARGUMENTS + 1];
    uint32_t code_crcs[MAXIMUM_ISAS];
};

int image_open(struct image *image, const char *path, const struct sparsec_options *options,
               struct sparsec_failure *failure);
int image_copy(struct image *image, const void *data, size_t size, const struct sparsec_options *options,
               struct sparsec_failure *failure);
int image_select(struct image *image, size_t isa, struct sparsec_failure *failure);
void image_close(struct image *image);

/* sha256.c: lower-case hexadecimal digits, ended by a zero */
enum { SHA256_DIGITS = 64 };
void sha256_text(const void *data, size_t size, char *text);

/* isas.c: the instruction sets a file has code for */
struct isas {
    const char *strings;
    const uint32_t *features;
    const struct isa *rows;
    size_t count;
};

int isas_open(struct isas *isas, const struct image *image, struct sparsec_failure *failure);
/* The first this processor runs; with `wanted`, or else among several what SPARSEC_ISA in the environment
 * names, the one of that name. */
int isas_choose(const struct isas *isas, const char *wanted, size_t *chosen, struct sparsec_failure *failure);

/* plan.c: the tables, checked */
struct plan {
    const char *strings;
    const uint32_t *symbols, *shapes;
    const struct expression *expressions;
    const struct buffer *buffers;
    const struct tensor *tensors;
    const struct argument *arguments;
    const struct step *steps;
    const struct port *inputs, *outputs;
    size_t string_bytes, symbol_count, shape_count, expression_count, buffer_count;
    size_t tensor_count, argument_count, step_count, input_count, output_count;
};

/* `cuda`: the chosen code is for a GPU, and so must its steps be */
int plan_open(struct plan *plan, const struct image *image, bool cuda, struct sparsec_failure *failure);
const char *dtype_name(uint32_t dtype);
uint32_t dtype_named(const char *name); /* 0: no type is called so */
static inline size_t dtype_bytes(uint32_t dtype) { return ((dtype >> 8) & 0xff) / 8; }

/* features.c */
/* Write the names, joined by ", ", of those features that this processor lacks; features are offsets into strings. */
void missing_features(const char *strings, const uint32_t *features, size_t count, char *text, size_t size);

/* library.c: the code section */
struct library {
    void *handle;
    int descriptor;
    const char *(*last_error)(void);
};

int library_open(struct library *library, struct span code, struct sparsec_failure *failure);
void library_close(struct library *library);
kernel_function library_kernel(const struct library *library, const char *name);

/* sizes.c.  The limit is beyond any memory, so that products of an item size and sums of offsets cannot overflow. */
#define SIZE_LIMIT ((int64_t)1 << 48)
enum { SHAPE_TEXT = 256 };
int bind_symbols(const struct plan *plan, const struct sparsec_array *inputs, int64_t *sizes,
                 struct sparsec_failure *failure);
void shape_text(const struct plan *plan, struct extent shape, char *out, size_t size);
void lengths_text(const int64_t *lengths, int rank, char *out, size_t size);
void size_text(const struct plan *plan, uint32_t expression, char *out, size_t size);

/* memory.c */
struct memory {
    unsigned char *data;
    size_t size;
};

int memory_reserve(struct memory *memory, size_t size, struct sparsec_failure *failure);
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
int worker_reserve(struct worker *worker, size_t scratch, struct sparsec_failure *failure);
void worker_release(struct worker *worker);

/* arena.c */
int arena_plan(const struct plan *plan, const int64_t *sizes, size_t *offsets, size_t *total,
               struct sparsec_failure *failure);

/* binding.c */
struct device_binding;
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

struct sparsec_binding {
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
    struct device_binding *device; /* NULL on the processor */
    uint64_t used;
};

struct sparsec_binding *binding_new(const struct sparsec_model *model, const struct sparsec_array *inputs,
                                    struct sparsec_failure *failure);
void binding_free(struct sparsec_binding *binding);
void binding_place(struct sparsec_binding *binding, size_t buffer, void *address);
void place_temporaries(const struct plan *plan, struct sparsec_binding *binding, unsigned char *arena);

/* strided.c */
size_t array_bytes(const struct sparsec_array *array);
void strided_copy(char *to, const int64_t *to_strides, const char *from, const int64_t *from_strides,
                  const int64_t *shape, int rank, size_t item);

/* pool.c */
struct pool;
struct pool *pool_new(size_t argument_limit, const char *(*last_error)(void));
void pool_free(struct pool *pool);
bool pool_take(struct pool *pool);
void pool_give_back(struct pool *pool);
int pool_reserve(struct pool *pool, int helpers, size_t scratch, struct sparsec_failure *failure);
bool pool_awake(const struct pool *pool); /* helpers are waiting, and none of them sleeps */
int pool_run(struct pool *pool, struct worker *caller, const struct call *call, int helpers,
             struct sparsec_failure *failure);
int fail_kernel(struct sparsec_failure *failure, const char *(*last_error)(void));

/* api.c: do arrays have the shapes that were bound? */
int check_arrays(const struct sparsec_model *model, const struct sparsec_binding *binding,
                 const struct sparsec_array *inputs, const struct sparsec_array *outputs,
                 struct sparsec_failure *failure);

/* session.c: a binding whose memory is reserved by its first run */
struct sparsec_binding *session_bind(struct sparsec_session *session, const struct sparsec_array *inputs,
                                     struct sparsec_failure *failure);

/* Has an output a buffer of its own, or is it what another buffer holds? */
bool owns_buffer(const struct plan *plan, size_t output);
/* Put a step's names before the text of its failure. */
int name_step(const struct plan *plan, size_t index, struct sparsec_failure *failure);

/* A run whose loop over the steps is given by the caller. */
typedef int (*step_runner)(struct sparsec_session *session, struct sparsec_binding *binding, int threads,
                           void *context, struct sparsec_failure *failure);
int session_run_with(struct sparsec_session *session, struct sparsec_binding *binding,
                     const struct sparsec_array *inputs, const struct sparsec_array *outputs, step_runner run,
                     void *context, struct sparsec_failure *failure);
int session_step(struct sparsec_session *session, const struct sparsec_binding *binding, size_t index,
                 int threads, struct sparsec_failure *failure);

enum { BINDINGS = 8, MAXIMUM_THREADS = 256 };

/* cuda_driver.c: why this machine's GPU cannot run code for a kind of GPUs; empty where it can */
void device_lacking(const char *arch, char *text, size_t size);

/* cuda_model.c, cuda_session.c, cuda_profile.c: models, sessions, bindings and runs on a GPU.  What was opened, wholly
 * or in part, is closed. */
struct device;
struct device_session;
int device_open(struct sparsec_model *model, struct sparsec_failure *failure);
void device_close(struct sparsec_model *model);
int device_session_open(struct sparsec_session *session, struct sparsec_failure *failure);
void device_session_rest(struct sparsec_session *session);
void device_session_close(struct sparsec_session *session);
int device_binding_open(struct sparsec_session *session, struct sparsec_binding *binding,
                        struct sparsec_failure *failure);
void device_binding_close(struct sparsec_binding *binding);
int device_reserve(struct sparsec_session *session, struct sparsec_binding *binding,
                   const struct sparsec_array *inputs, struct sparsec_failure *failure);
int device_run(struct sparsec_session *session, struct sparsec_binding *binding, const struct sparsec_array *inputs,
               const struct sparsec_array *outputs, struct sparsec_failure *failure);
/* values: [steps][repeats], nanoseconds */
int device_profile(struct sparsec_session *session, struct sparsec_binding *binding,
                   const struct sparsec_array *inputs, const struct sparsec_array *outputs, uint64_t *values,
                   size_t repeats, struct sparsec_failure *failure);

struct sparsec_session {
    struct sparsec_model *model;
    struct device_session *device; /* NULL on the processor */
    struct sparsec_session *next;
    struct sparsec_binding *bindings[BINDINGS];
    struct memory arena, staging;
    struct worker worker;
    uint64_t clock;
};

struct sparsec_model {
    struct image image;
    struct plan plan;
    const char *isa; /* what the chosen code was made for */
    bool cuda;       /* it is for a GPU */
    struct device *device;        /* NULL on the processor */
    const unsigned char *weights; /* where kernels read them: in the file, or in the GPU's memory */
    struct library library;
    kernel_function *kernels;
    struct pool *pool;
    pthread_mutex_t lock; /* guards idle */
    struct sparsec_session *idle;
    atomic_int threads;
    int64_t *lengths;  /* of ports, parallel to the plan's shapes; -1 where open */
    size_t input_axes; /* sum of the inputs' ranks */
    uint32_t argument_limit;
};

#endif
