/* The binary interface of compiled kernels: the few structs of DLPack and tvm-ffi they use. */
#ifndef SPARSEC_ABI_H
#define SPARSEC_ABI_H

#include <stdint.h>

typedef struct {
    int32_t device_type;
    int32_t device_id;
} DLDevice;

typedef struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
} DLDataType;

typedef struct {
    void *data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape;
    int64_t *strides; /* NULL: row-major, contiguous */
    uint64_t byte_offset;
} DLTensor;

enum { DEVICE_CPU = 1 };
enum { DTYPE_INT = 0, DTYPE_UINT = 1, DTYPE_FLOAT = 2, DTYPE_BFLOAT = 4, DTYPE_BOOL = 6 };

typedef struct {
    int32_t type_index;
    uint32_t zero_padding;
    union {
        int64_t v_int64;
        double v_float64;
        void *v_ptr;
    };
} TVMFFIAny;

enum { TYPE_NONE = 0, TYPE_INT = 1, TYPE_OPAQUE_POINTER = 4, TYPE_TENSOR = 7 };

_Static_assert(sizeof(DLTensor) == 48 && sizeof(TVMFFIAny) == 16, "layout of dlpack and tvm-ffi");

typedef int32_t (*kernel_function)(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result);

#endif
