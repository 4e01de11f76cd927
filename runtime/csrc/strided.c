/* Copies between arrays with strides. */
#include <string.h>

#include "internal.h"

size_t array_bytes(const struct sparsec_array *array) {
    size_t bytes = dtype_bytes(array->dtype);
    for (int axis = 0; axis < array->rank; axis++) bytes *= (size_t)array->shape[axis];
    return bytes;
}

static void copy_row(char *to, int64_t to_stride, const char *from, int64_t from_stride, int64_t count, size_t item) {
    if (to_stride == (int64_t)item && from_stride == (int64_t)item) {
        memcpy(to, from, (size_t)count * item);
        return;
    }
    for (int64_t i = 0; i < count; i++) memcpy(to + i * to_stride, from + i * from_stride, item);
}

static void contiguous_strides(const int64_t *shape, int rank, size_t item, int64_t *strides) {
    int64_t stride = (int64_t)item;
    for (int axis = rank - 1; axis >= 0; axis--) {
        strides[axis] = stride;
        stride *= shape[axis];
    }
}

static void copy_axes(char *to, const int64_t *to_strides, const char *from, const int64_t *from_strides,
                      const int64_t *shape, int rank, size_t item) {
    if (rank == 0) {
        memcpy(to, from, item);
    } else if (rank == 1) {
        copy_row(to, to_strides[0], from, from_strides[0], shape[0], item);
    } else {
        for (int64_t i = 0; i < shape[0]; i++)
            copy_axes(to + i * to_strides[0], to_strides + 1, from + i * from_strides[0], from_strides + 1,
                      shape + 1, rank - 1, item);
    }
}

/* Copy an array of at least one element; strides of NULL mean contiguous. */
void strided_copy(char *to, const int64_t *to_strides, const char *from, const int64_t *from_strides,
                  const int64_t *shape, int rank, size_t item) {
    int64_t contiguous[MAXIMUM_RANK];
    size_t bytes = item;
    for (int axis = 0; axis < rank; axis++) bytes *= (size_t)shape[axis];
    if (!to_strides && !from_strides) {
        memcpy(to, from, bytes);
        return;
    }
    contiguous_strides(shape, rank, item, contiguous);
    copy_axes(to, to_strides ? to_strides : contiguous, from, from_strides ? from_strides : contiguous, shape,
              rank, item);
}
