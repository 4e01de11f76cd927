/* The executor: load a model, bind input shapes, run.  Usable without Python.
 *
 * Functions return 0, or -1 after describing the problem in a struct failure. */
#ifndef SPARSEC_H
#define SPARSEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum failure_kind { FAILURE_ARTIFACT = 1, FAILURE_INPUT, FAILURE_MEMORY, FAILURE_KERNEL };

struct failure {
    enum failure_kind kind;
    char text[1024];
};

/* An array of the caller; strides in bytes, NULL when contiguous. */
struct array {
    void *data;
    int rank;
    uint32_t dtype; /* DLDataType: code, bits, lanes from the low byte up */
    const int64_t *shape;
    const int64_t *strides;
    bool stage; /* never use its memory directly (it overlaps another array) */
};

struct model;
struct session;
struct binding;

struct model *model_load(const char *path, bool verify, struct failure *failure);
struct model *model_from_bytes(const void *data, size_t size, bool verify, struct failure *failure);
void model_free(struct model *model);
int model_set_threads(struct model *model, int threads);
int model_threads(const struct model *model);

/* A session runs one call at a time; taking one from the model is cheap after the first. */
struct session *session_take(struct model *model, struct failure *failure);
void session_give_back(struct session *session);

/* Bind input shapes; the binding stays valid until the session binds again. */
struct binding *session_bind(struct session *session, const struct array *inputs, struct failure *failure);
const int64_t *binding_output_shape(const struct session *session, const struct binding *binding, size_t output);
int session_run(struct session *session, struct binding *binding, const struct array *inputs,
                const struct array *outputs, struct failure *failure);

#endif
