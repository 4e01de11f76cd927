/* Arrays of a run on a GPU: used where they lie, or copied to and from memory of the session. */
#include <stdio.h>

#include "cuda.h"

/* What kernels load at a time; the driver's own memory, and torch's, starts at multiples of more. */
enum { DEVICE_ALIGNMENT = 16 };

static int copied(const struct sparsec_session *session, CUresult code, const char *kind, const struct port *port,
                  struct sparsec_failure *failure) {
    char doing[300];
    if (code == 0) return 0;
    snprintf(doing, sizeof doing, "%s '%.200s' cannot be copied", kind, session->model->plan.strings + port->name);
    return gpu_check(session->device->device->gpu.driver, code, SPARSEC_FAILURE_KERNEL, doing, failure);
}

static bool contiguous(const struct sparsec_array *array) {
    int64_t stride = (int64_t)dtype_bytes(array->dtype);
    if (!array->strides || array_bytes(array) == 0) return true;
    for (int axis = array->rank - 1; axis >= 0; stride *= array->shape[axis--])
        if (array->shape[axis] > 1 && array->strides[axis] != stride) return false;
    return true;
}

/* Is an array in this GPU's memory?  The driver is asked where an address is not the one it was last asked about. */
static int check_place(const struct sparsec_session *session, const struct sparsec_binding *b, const char *kind,
                       const struct port *port, size_t index, const struct sparsec_array *array,
                       struct sparsec_failure *failure) {
    const struct gpu *gpu = &session->device->device->gpu;
    const char *name = session->model->plan.strings + port->name;
    int ordinal = -1;
    if (!contiguous(array))
        return fail(failure, SPARSEC_FAILURE_INPUT,
                    "%s '%.200s' has gaps or another order of its axes in the GPU's memory; pass x.contiguous()", kind,
                    name);
    if (b->device->known[index] == array->data) return 0;
    CUresult code = gpu->driver->pointer_attribute(&ordinal, POINTER_DEVICE_ORDINAL, (uintptr_t)array->data);
    if (code == CUDA_ERROR_INVALID_VALUE)
        return fail(failure, SPARSEC_FAILURE_INPUT, "%s '%.200s' does not lie in a GPU's memory", kind, name);
    if (code) return copied(session, code, kind, port, failure);
    if (ordinal != gpu->ordinal)
        return fail(failure, SPARSEC_FAILURE_INPUT,
                    "%s '%.200s' lies on GPU %d, this program runs on GPU %d; move it there, or set SPARSEC_DEVICE=%d "
                    "before loading",
                    kind, name, ordinal, gpu->ordinal, ordinal);
    b->device->known[index] = array->data;
    return 0;
}

static bool usable_in_place(const struct sparsec_session *session, const struct sparsec_binding *b,
                            const struct port *port, const struct sparsec_array *array) {
    const struct buffer *buffer = &session->model->plan.buffers[port->buffer];
    return array->device && !array->stage && array->data && (uintptr_t)array->data % DEVICE_ALIGNMENT == 0 &&
           array_bytes(array) >= (size_t)b->sizes[buffer->nbytes];
}

static int place_staged(struct sparsec_session *session, struct sparsec_binding *b, const struct port *port,
                        size_t index, struct sparsec_failure *failure) {
    struct device_session *own = session->device;
    if (device_reserve_memory(own, &own->staging, b->staging_bytes, failure)) return -1;
    binding_place(b, port->buffer, (void *)(uintptr_t)(own->staging.data + b->staging[index]));
    return 0;
}

static CUdeviceptr address_of(const struct sparsec_binding *b, const struct port *port) {
    return (uintptr_t)b->addresses[port->buffer];
}

static int copy_in(struct sparsec_session *session, const struct sparsec_binding *b, size_t i,
                   const struct sparsec_array *array, CUstream stream, struct sparsec_failure *failure) {
    const struct driver *d = session->device->device->gpu.driver;
    const struct port *port = &session->model->plan.inputs[i];
    const size_t bytes = array_bytes(array);
    const void *from = array->data;
    if (bytes == 0) return 0;
    if (array->device)
        return copied(session, d->copy_within(address_of(b, port), (uintptr_t)from, bytes, stream), "input", port,
                      failure);
    if (array->strides) {
        if (memory_reserve(&session->staging, b->staging_bytes, failure)) return -1;
        unsigned char *gathered = session->staging.data + b->staging[i];
        strided_copy((char *)gathered, NULL, array->data, array->strides, array->shape, array->rank,
                     dtype_bytes(array->dtype));
        from = gathered;
    }
    return copied(session, d->copy_in(address_of(b, port), from, bytes, stream), "input", port, failure);
}

static int place_input(struct sparsec_session *session, struct sparsec_binding *b, size_t i,
                       const struct sparsec_array *array, CUstream stream, struct sparsec_failure *failure) {
    const struct port *port = &session->model->plan.inputs[i];
    if (array->device && array_bytes(array) && check_place(session, b, "input", port, i, array, failure)) return -1;
    if (!usable_in_place(session, b, port, array))
        return place_staged(session, b, port, i, failure) || copy_in(session, b, i, array, stream, failure) ? -1 : 0;
    binding_place(b, port->buffer, array->data);
    return 0;
}

static int place_output(struct sparsec_session *session, struct sparsec_binding *b, size_t i,
                        const struct sparsec_array *array, struct sparsec_failure *failure) {
    const struct plan *plan = &session->model->plan;
    const struct port *port = &plan->outputs[i];
    const size_t index = plan->input_count + i;
    if (array->device && array_bytes(array) && check_place(session, b, "output", port, index, array, failure))
        return -1;
    if (!owns_buffer(plan, i)) return 0;
    if (!usable_in_place(session, b, port, array)) return place_staged(session, b, port, index, failure);
    binding_place(b, port->buffer, array->data);
    return 0;
}

int device_place_ports(struct sparsec_session *session, struct sparsec_binding *b,
                       const struct sparsec_array *inputs, const struct sparsec_array *outputs, CUstream stream,
                       struct sparsec_failure *failure) {
    for (size_t i = 0; i < session->model->plan.input_count; i++)
        if (place_input(session, b, i, &inputs[i], stream, failure)) return -1;
    for (size_t i = 0; i < session->model->plan.output_count; i++)
        if (place_output(session, b, i, &outputs[i], failure)) return -1;
    return 0;
}

static int copy_output(const struct sparsec_session *session, const struct sparsec_binding *b, size_t i,
                       const struct sparsec_array *array, CUstream stream, struct sparsec_failure *failure) {
    const struct driver *d = session->device->device->gpu.driver;
    const struct port *port = &session->model->plan.outputs[i];
    const CUdeviceptr from = address_of(b, port);
    const size_t bytes = array_bytes(array);
    if (bytes == 0 || (array->device && from == (uintptr_t)array->data)) return 0;
    if (array->device)
        return copied(session, d->copy_within((uintptr_t)array->data, from, bytes, stream), "output", port, failure);
    void *to = array->data;
    if (array->strides) to = session->staging.data + b->staging[session->model->plan.input_count + i];
    return copied(session, d->copy_out(to, from, bytes, stream), "output", port, failure);
}

int device_copy_outputs(const struct sparsec_session *session, const struct sparsec_binding *b,
                        const struct sparsec_array *outputs, CUstream stream, struct sparsec_failure *failure) {
    for (size_t i = 0; i < session->model->plan.output_count; i++)
        if (copy_output(session, b, i, &outputs[i], stream, failure)) return -1;
    return 0;
}

void device_scatter_outputs(const struct sparsec_session *session, const struct sparsec_binding *b,
                            const struct sparsec_array *outputs) {
    const size_t inputs = session->model->plan.input_count;
    for (size_t i = 0; i < session->model->plan.output_count; i++) {
        const struct sparsec_array *array = &outputs[i];
        if (array->device || !array->strides || array_bytes(array) == 0) continue;
        strided_copy(array->data, array->strides, (const char *)session->staging.data + b->staging[inputs + i], NULL,
                     array->shape, array->rank, dtype_bytes(array->dtype));
    }
}
