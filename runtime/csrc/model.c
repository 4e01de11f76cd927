/* Opening a model: file, tables, processor, code; in this order, so that each may trust the one before. */
#include <stdlib.h>

#include "internal.h"

static int find_kernels(struct model *model, struct failure *failure) {
    const struct plan *plan = &model->plan;
    model->kernels = calloc(plan->step_count + 1, sizeof *model->kernels);
    if (!model->kernels) return fail_memory(failure, plan->step_count * sizeof *model->kernels);
    for (size_t i = 0; i < plan->step_count; i++) {
        const char *name = plan->strings + plan->steps[i].kernel;
        model->kernels[i] = library_kernel(&model->library, name);
        if (!model->kernels[i])
            return fail(failure, FAILURE_ARTIFACT, "the code has no kernel called %.200s; compile the model again",
                        name);
        if (plan->steps[i].argument_count > model->argument_limit)
            model->argument_limit = plan->steps[i].argument_count;
    }
    return 0;
}

static int open_parts(struct model *model, struct failure *failure) {
    if (plan_open(&model->plan, &model->image, failure) || check_features(&model->plan, failure)) return -1;
    if (library_open(&model->library, model->image.sections[SECTION_CODE], failure)) return -1;
    if (find_kernels(model, failure)) return -1;
    for (size_t i = 0; i < model->plan.input_count; i++) model->input_axes += model->plan.inputs[i].shape.rank;
    model->pool = pool_new(model->argument_limit, model->library.last_error);
    return model->pool ? 0 : fail_memory(failure, sizeof *model);
}

static struct model *model_new(struct failure *failure) {
    struct model *model = calloc(1, sizeof *model);
    if (!model) {
        fail_memory(failure, sizeof *model);
        return NULL;
    }
    pthread_mutex_init(&model->lock, NULL);
    atomic_init(&model->threads, 1);
    model->library.descriptor = -1;
    return model;
}

static struct model *finish(struct model *model, int status, struct failure *failure) {
    if (status == 0 && open_parts(model, failure) == 0) return model;
    model_free(model);
    return NULL;
}

struct model *model_load(const char *path, bool verify, struct failure *failure) {
    struct model *model = model_new(failure);
    return model ? finish(model, image_open(&model->image, path, verify, failure), failure) : NULL;
}

struct model *model_from_bytes(const void *data, size_t size, bool verify, struct failure *failure) {
    struct model *model = model_new(failure);
    return model ? finish(model, image_copy(&model->image, data, size, verify, failure), failure) : NULL;
}

int model_set_threads(struct model *model, int threads) {
    if (threads < 1 || threads > MAXIMUM_THREADS) return -1;
    atomic_store(&model->threads, threads);
    return 0;
}

int model_threads(const struct model *model) { return atomic_load(&model->threads); }

size_t model_input_count(const struct model *model) { return model->plan.input_count; }
size_t model_output_count(const struct model *model) { return model->plan.output_count; }
size_t model_step_count(const struct model *model) { return model->plan.step_count; }

static struct port_info port_info(const struct plan *plan, const struct port *port) {
    return (struct port_info){plan->strings + port->name, port->dtype, (int)port->shape.rank};
}

struct port_info model_input(const struct model *model, size_t index) {
    return port_info(&model->plan, &model->plan.inputs[index]);
}

struct port_info model_output(const struct model *model, size_t index) {
    return port_info(&model->plan, &model->plan.outputs[index]);
}

struct step_info model_step(const struct model *model, size_t index) {
    const struct plan *plan = &model->plan;
    return (struct step_info){plan->strings + plan->steps[index].node, plan->strings + plan->steps[index].kernel};
}
