/* sparsec's runtime: load a compiled model, bind input shapes, run.
 *
 *     struct sparsec_failure failure;
 *     struct sparsec_model *model = sparsec_model_load("model.sparsec", false, &failure);
 *     struct sparsec_session *session = sparsec_session_take(model, &failure);
 *     struct sparsec_binding *binding = sparsec_session_bind(session, inputs, &failure);
 *     int code = sparsec_session_run(session, binding, inputs, outputs, &failure);
 *
 * Errors.  A function that returns a pointer returns NULL when it fails; one that returns `int`
 * returns 0, or one of `enum sparsec_failure_kind`.  Either way it describes the problem in the
 * struct sparsec_failure it was given, which may be NULL where nobody reads the text.
 *
 * Threads.  A model may be used by any number of threads at once, each with a session of its own;
 * a session, and all that came from it, by one thread at a time.
 *
 * Memory.  Loading, taking a session and binding allocate; running does not, but for memory of a GPU that arrays
 * are copied through.
 *
 * A model file holds machine code that runs with the rights of the process: load only what you trust. */
#ifndef SPARSEC_H
#define SPARSEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef SPARSEC_API
#define SPARSEC_API __attribute__((visibility("default")))
#endif

#define SPARSEC_VERSION "0.1.0"
#define SPARSEC_VERSION_MAJOR 0
#define SPARSEC_VERSION_MINOR 1
#define SPARSEC_VERSION_PATCH 0

/* Arrays at multiples of so many bytes can be used where they lie; others are copied. */
#define SPARSEC_ALIGNMENT 64

/* No array has more axes. */
#define SPARSEC_MAXIMUM_RANK 32

enum sparsec_failure_kind {
    SPARSEC_FAILURE_ARTIFACT = 1, /* a file that is absent, damaged or made for something else */
    SPARSEC_FAILURE_INPUT,        /* an array, a shape or a number that does not fit */
    SPARSEC_FAILURE_MEMORY,
    SPARSEC_FAILURE_KERNEL /* compiled code refused what it was given, or the GPU or its driver failed */
};

struct sparsec_failure {
    enum sparsec_failure_kind kind;
    char text[1024]; /* UTF-8, ended by a zero */
};

/* Numbers of DLPack's DLDataType: code, bits and lanes from the low byte up. */
enum sparsec_dtype {
    SPARSEC_BOOL = 0x10806,
    SPARSEC_INT8 = 0x10800,
    SPARSEC_INT16 = 0x11000,
    SPARSEC_INT32 = 0x12000,
    SPARSEC_INT64 = 0x14000,
    SPARSEC_UINT8 = 0x10801,
    SPARSEC_UINT16 = 0x11001,
    SPARSEC_UINT32 = 0x12001,
    SPARSEC_UINT64 = 0x14001,
    SPARSEC_FLOAT16 = 0x11002,
    SPARSEC_FLOAT32 = 0x12002,
    SPARSEC_FLOAT64 = 0x14002,
    SPARSEC_BFLOAT16 = 0x11004
};

/* An array of the caller, who owns its memory, shape and strides. */
struct sparsec_array {
    void *data;
    int rank;
    uint32_t dtype; /* one of enum sparsec_dtype */
    const int64_t *shape;
    const int64_t *strides; /* in bytes; NULL when contiguous, the last axis fastest */
    bool stage;             /* never use its memory directly: it overlaps another array of the same run */
    int device;             /* 0: the processor's memory; 1: the memory of the GPU the model runs on */
};

/* An input or output; its pointers live as long as the model. */
struct sparsec_port {
    const char *name;
    uint32_t dtype;
    int rank;
    const int64_t *shape; /* -1 where the length is open until shapes are bound */
};

/* One kernel call of a model's plan; its texts live as long as the model. */
struct sparsec_step {
    const char *node;
    const char *kernel;
};

struct sparsec_model;
struct sparsec_session;
struct sparsec_binding;

/* The version of the library, where SPARSEC_VERSION is that of the header. */
SPARSEC_API const char *sparsec_version(void);

/* "float32" and 4 for SPARSEC_FLOAT32; NULL and 0 for a number that is no type. */
SPARSEC_API const char *sparsec_dtype_name(uint32_t dtype);
SPARSEC_API size_t sparsec_dtype_bytes(uint32_t dtype);

/* Bytes of the array's elements without gaps. */
SPARSEC_API size_t sparsec_array_bytes(const struct sparsec_array *array);

/* Map a file; the file must not be changed in place as long as the model lives.  Weights are read when
 * first used; `verify` reads all of them now and compares them with their checksum. */
SPARSEC_API struct sparsec_model *sparsec_model_load(const char *path, bool verify,
                                                     struct sparsec_failure *failure);

/* A model from a copy of `size` bytes. */
SPARSEC_API struct sparsec_model *sparsec_model_from_bytes(const void *data, size_t size, bool verify,
                                                           struct sparsec_failure *failure);

/* How to load; all zeros, or NULL, is as sparsec_model_load does without verifying. */
struct sparsec_options {
    bool verify;        /* also compare the weights with their checksum */
    const char *isa;    /* run the code made for this instruction set, "x86-64-v3", where a file has several;
                           NULL: the one the environment names in SPARSEC_ISA, else the best this processor runs */
    const char *sha256; /* the file's SHA-256 in hexadecimal digits: anything else is refused; NULL: any file.
                           Reads the whole file */
};

SPARSEC_API struct sparsec_model *sparsec_model_load_with(const char *path, const struct sparsec_options *options,
                                                          struct sparsec_failure *failure);
SPARSEC_API struct sparsec_model *sparsec_model_from_bytes_with(const void *data, size_t size,
                                                                const struct sparsec_options *options,
                                                                struct sparsec_failure *failure);

/* The name of the instruction set whose code runs; it lives as long as the model. */
SPARSEC_API const char *sparsec_model_isa(const struct sparsec_model *model);

/* Where it runs: "cpu" or "cuda". */
SPARSEC_API const char *sparsec_model_device(const struct sparsec_model *model);

/* Free a model, all of whose sessions have been given back, and its sessions; NULL is let pass. */
SPARSEC_API void sparsec_model_free(struct sparsec_model *model);

/* How many threads one run may use, the caller's included: 1 to 256, 1 at first.  To be set before shapes
 * are bound, which starts them.  Two runs at once do not share helpers: the second then runs on its caller's
 * thread alone.  Results are the same to the bit.  On a GPU the number means nothing. */
SPARSEC_API int sparsec_model_set_threads(struct sparsec_model *model, int threads);
SPARSEC_API int sparsec_model_threads(const struct sparsec_model *model);

SPARSEC_API size_t sparsec_model_input_count(const struct sparsec_model *model);
SPARSEC_API size_t sparsec_model_output_count(const struct sparsec_model *model);
SPARSEC_API size_t sparsec_model_step_count(const struct sparsec_model *model);

/* All zeros where there is none of that index. */
SPARSEC_API struct sparsec_port sparsec_model_input(const struct sparsec_model *model, size_t index);
SPARSEC_API struct sparsec_port sparsec_model_output(const struct sparsec_model *model, size_t index);
SPARSEC_API struct sparsec_step sparsec_model_step(const struct sparsec_model *model, size_t index);

/* Write the length of an axis as text, "64", "batch" or "2*n + 1", cut to `size` bytes; equal names are
 * equal lengths.  SPARSEC_FAILURE_INPUT where there is no such axis. */
SPARSEC_API int sparsec_model_input_axis(const struct sparsec_model *model, size_t index, int axis, char *text,
                                         size_t size);
SPARSEC_API int sparsec_model_output_axis(const struct sparsec_model *model, size_t index, int axis, char *text,
                                          size_t size);

/* A session, to be given back before the model is freed; one that was used before is taken again. */
SPARSEC_API struct sparsec_session *sparsec_session_take(struct sparsec_model *model,
                                                         struct sparsec_failure *failure);
SPARSEC_API void sparsec_session_give_back(struct sparsec_session *session);

/* On a GPU: the CUDA stream (CUstream, cudaStream_t) that runs go to, until the session is given back; NULL: one of
 * the session's own.  CUDA's default stream is (void *)1, its CU_STREAM_LEGACY.  A run on a caller's stream, all
 * arrays of which lie in the GPU's memory, is only enqueued; any other has ended when it returns.  The stream must
 * live until its work is done.  SPARSEC_FAILURE_INPUT where the model runs on the processor. */
SPARSEC_API int sparsec_session_set_stream(struct sparsec_session *session, void *stream);

/* Everything that follows from the inputs' shapes and types, and the memory their runs need; `data` is not
 * read.  A session keeps the 8 bindings last bound or bound again, which costs nothing; the caller frees none. */
SPARSEC_API struct sparsec_binding *sparsec_session_bind(struct sparsec_session *session,
                                                         const struct sparsec_array *inputs,
                                                         struct sparsec_failure *failure);

/* The lengths of an output's axes; they live as long as the binding. */
SPARSEC_API const int64_t *sparsec_binding_output_shape(const struct sparsec_session *session,
                                                        const struct sparsec_binding *binding, size_t output);

/* Read the inputs, of the shapes that were bound, and write the outputs, of the shapes that follow.
 * An array of other shape or type is refused. */
SPARSEC_API int sparsec_session_run(struct sparsec_session *session, struct sparsec_binding *binding,
                                    const struct sparsec_array *inputs, const struct sparsec_array *outputs,
                                    struct sparsec_failure *failure);

/* Run, timing each step: nanoseconds[i] is the median of step i over `repeats` runs after one untimed.
 * Allocates room for all times. */
SPARSEC_API int sparsec_session_profile(struct sparsec_session *session, struct sparsec_binding *binding,
                                        const struct sparsec_array *inputs, const struct sparsec_array *outputs,
                                        int repeats, uint64_t *nanoseconds, struct sparsec_failure *failure);

/* Into how many pieces a step's work is cut. */
SPARSEC_API int64_t sparsec_binding_step_tiles(const struct sparsec_binding *binding, size_t step);

#ifdef __cplusplus
}
#endif

#endif
