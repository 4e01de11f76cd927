/* Opening a model: file, tables, processor, code; in this order, so that each may trust the one before. */
#include <stdlib.h>

#include "internal.h"

static int find_kernels(struct sparsec_model *model, struct sparsec_failure *failure) {
    const struct plan *plan = &model->plan;
    model->kernels = calloc(plan->step_count + 1, sizeof *model->kernels);
    if (!model->kernels) return fail_memory(failure, plan->step_count * sizeof *model->kernels);
    for (size_t i = 0; i < plan->step_count; i++) {
        const char *name = plan->strings + plan->steps[i].kernel;
        model->kernels[i] = library_kernel(&model->library, name);
        if (!model->kernels[i])
            return fail(failure, SPARSEC_FAILURE_ARTIFACT,
                        "the code has no kernel called %.200s; compile the model again", name);
        if (plan->steps[i].argument_count > model->argument_limit)
            model->argument_limit = plan->steps[i].argument_count;
    }
    return 0;
}

/* Lengths of the ports' axes, -1 where one is open; parallel to the plan's shapes. */
static int read_lengths(struct sparsec_model *model, struct sparsec_failure *failure) {
    const struct plan *plan = &model->plan;
    model->lengths = calloc(plan->shape_count + 1, sizeof *model->lengths);
    if (!model->lengths) return fail_memory(failure, plan->shape_count * sizeof *model->lengths);
    for (size_t i = 0; i < plan->shape_count; i++) {
        const struct expression *e = &plan->expressions[plan->shapes[i]];
        model->lengths[i] = e->operator == OP_CONSTANT ? e->a : -1;
    }
    return 0;
}

static int open_code(struct sparsec_model *model, struct sparsec_failure *failure) {
    if (model->cuda) return device_open(model, failure);
    model->weights = model->image.sections[SECTION_WEIGHTS].data;
    if (library_open(&model->library, model->image.sections[SECTION_CODE], failure)) return -1;
    return find_kernels(model, failure);
}

static int open_parts(struct sparsec_model *model, struct sparsec_failure *failure) {
    if (plan_open(&model->plan, &model->image, model->cuda, failure)) return -1;
    if (open_code(model, failure) || read_lengths(model, failure)) return -1;
    for (size_t i = 0; i < model->plan.input_count; i++) model->input_axes += model->plan.inputs[i].shape.rank;
    model->pool = pool_new(model->argument_limit, model->library.last_error);
    return model->pool ? 0 : fail_memory(failure, sizeof *model);
}

static struct sparsec_model *model_new(struct sparsec_failure *failure) {
    struct sparsec_model *model = calloc(1, sizeof *model);
    if (!model) {
        fail_memory(failure, sizeof *model);
        return NULL;
    }
    pthread_mutex_init(&model->lock, NULL);
    atomic_init(&model->threads, 1);
    model->library.descriptor = -1;
    return model;
}

/* Choose the code that runs here, and with it the steps. */
static int choose_isa(struct sparsec_model *model, const char *wanted, struct sparsec_failure *failure) {
    struct isas isas;
    size_t chosen = 0;
    if (isas_open(&isas, &model->image, failure) || isas_choose(&isas, wanted, &chosen, failure)) return -1;
    model->isa = isas.strings + isas.rows[chosen].name;
    model->cuda = isas.rows[chosen].machine == MACHINE_CUDA;
    return image_select(&model->image, chosen, failure);
}

static struct sparsec_model *finish(struct sparsec_model *model, int status, const char *isa,
                                    struct sparsec_failure *failure) {
    if (status == 0 && choose_isa(model, isa, failure) == 0 && open_parts(model, failure) == 0) return model;
    sparsec_model_free(model);
    return NULL;
}

static const struct sparsec_options DEFAULTS;

struct sparsec_model *sparsec_model_load_with(const char *path, const struct sparsec_options *options,
                                              struct sparsec_failure *failure) {
    struct sparsec_model *model = model_new(failure);
    if (!options) options = &DEFAULTS;
    return model ? finish(model, image_open(&model->image, path, options, failure), options->isa, failure) : NULL;
}

struct sparsec_model *sparsec_model_load(const char *path, bool verify, struct sparsec_failure *failure) {
    return sparsec_model_load_with(path, &(struct sparsec_options){.verify = verify}, failure);
}

struct sparsec_model *sparsec_model_from_bytes_with(const void *data, size_t size,
                                                    const struct sparsec_options *options,
                                                    struct sparsec_failure *failure) {
    struct sparsec_model *model = model_new(failure);
    if (!options) options = &DEFAULTS;
    int status = model ? image_copy(&model->image, data, size, options, failure) : -1;
    return model ? finish(model, status, options->isa, failure) : NULL;
}

struct sparsec_model *sparsec_model_from_bytes(const void *data, size_t size, bool verify,
                                               struct sparsec_failure *failure) {
    return sparsec_model_from_bytes_with(data, size, &(struct sparsec_options){.verify = verify}, failure);
}

const char *sparsec_model_isa(const struct sparsec_model *model) { return model->isa; }

const char *sparsec_model_device(const struct sparsec_model *model) { return model->cuda ? "cuda" : "cpu"; }
