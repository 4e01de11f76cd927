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

/* An input or output of a model; lengths are known once shapes are bound. */
struct port_info {
    const char *name;
    uint32_t dtype;
    int rank;
};

/* One kernel call of a model's plan. */
struct step_info {
    const char *node;
    const char *kernel;
};

struct model;
struct session;
struct binding;

struct model *model_load(const char *path, bool verify, struct failure *failure);
struct model *model_from_bytes(const void *data, size_t size, bool verify, struct failure *failure);
void model_free(struct model *model);
int model_set_threads(struct model *model, int threads);
int model_threads(const struct model *model);

/* Names live as long as the model. */
size_t model_input_count(const struct model *model);
size_t model_output_count(const struct model *model);
size_t model_step_count(const struct model *model);
struct port_info model_input(const struct model *model, size_t index);
struct port_info model_output(const struct model *model, size_t index);
struct step_info model_step(const struct model *model, size_t index);

/* A session runs one call at a time; taking one from the model is cheap after the first. */
struct session *session_take(struct model *model, struct failure *failure);
void session_give_back(struct session *session);

/* Bind input shapes; the binding stays valid until the session binds again. */
struct binding *session_bind(struct session *session, const struct array *inputs, struct failure *failure);
const int64_t *binding_output_shape(const struct session *session, const struct binding *binding, size_t output);
int session_run(struct session *session, struct binding *binding, const struct array *inputs,
                const struct array *outputs, struct failure *failure);

/* Run, timing each step: nanoseconds[i] is the median of step i over `repeats` runs (after one untimed). */
int session_profile(struct session *session, struct binding *binding, const struct array *inputs,
                    const struct array *outputs, int repeats, uint64_t *nanoseconds, struct failure *failure);
int64_t binding_step_tiles(const struct binding *binding, size_t step);

#endif
