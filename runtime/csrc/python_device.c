/* The type DeviceArray: an array in a GPU's memory, as torch's tensors and __cuda_array_interface__ describe them. */
#include "module.h"

struct device_array {
    PyObject_HEAD
    PyObject *owner; /* whose memory it is */
    struct sparsec_array array;
    int64_t shape[SPARSEC_MAXIMUM_RANK], strides[SPARSEC_MAXIMUM_RANK];
};

static int read_numbers(PyObject *values, Py_ssize_t count, int64_t *numbers) {
    for (Py_ssize_t i = 0; i < count; i++) {
        numbers[i] = PyLong_AsLongLong(PyTuple_GetItem(values, i));
        if (numbers[i] == -1 && PyErr_Occurred()) return -1;
    }
    return 0;
}

static int fill(struct device_array *self, const char *dtype, PyObject *shape, PyObject *strides) {
    const Py_ssize_t rank = PyTuple_Size(shape);
    const bool whole = strides == Py_None || (PyTuple_Check(strides) && PyTuple_Size(strides) == rank);
    if (rank > SPARSEC_MAXIMUM_RANK || !whole) {
        PyErr_Format(PyExc_ValueError, "an array has at most %d axes, and a stride for each", SPARSEC_MAXIMUM_RANK);
        return -1;
    }
    self->array.dtype = dtype_named(dtype);
    self->array.rank = (int)rank;
    self->array.shape = self->shape;
    self->array.strides = strides == Py_None ? NULL : self->strides;
    if (read_numbers(shape, rank, self->shape)) return -1;
    return strides == Py_None ? 0 : read_numbers(strides, rank, self->strides);
}

static PyObject *device_array_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    unsigned long long address;
    const char *dtype;
    PyObject *shape, *strides, *owner;
    (void)keywords;
    if (!PyArg_ParseTuple(arguments, "KsO!OO:DeviceArray", &address, &dtype, &PyTuple_Type, &shape, &strides, &owner))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct device_array *self = (struct device_array *)allocate(type, 0);
    if (!self) return NULL;
    self->owner = Py_NewRef(owner);
    self->array.data = (void *)(uintptr_t)address;
    self->array.device = 1;
    if (fill(self, dtype, shape, strides) == 0) return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static void device_array_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(((struct device_array *)self)->owner);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyType_Slot slots[] = {
    {Py_tp_new, device_array_new},
    {Py_tp_dealloc, device_array_dealloc},
    {Py_tp_doc, "DeviceArray(address, dtype, shape, strides in bytes or None, owner): an array in a GPU's memory."},
    {0, NULL},
};
PyType_Spec device_array_spec = {
    "sparsec.runtime._executor.DeviceArray", sizeof(struct device_array), 0, Py_TPFLAGS_DEFAULT, slots};

bool is_device_array(PyObject *value) { return Py_TYPE(value) == names.device_array; }

struct sparsec_array device_array_view(PyObject *value) { return ((struct device_array *)value)->array; }

PyObject *seen_array(PyObject *array) {
    return is_device_array(array) ? ((struct device_array *)array)->owner : array;
}

struct destination destination_of(PyObject *allocate, PyObject *find_stream) {
    return (struct destination){allocate == Py_None ? NULL : allocate, find_stream == Py_None ? NULL : find_stream};
}

int stream_of(PyObject *find_stream, unsigned long long *stream) {
    PyObject *number = PyObject_CallNoArgs(find_stream);
    *stream = number ? PyLong_AsUnsignedLongLong(number) : 0;
    Py_XDECREF(number);
    return PyErr_Occurred() ? -1 : 0;
}

int use_stream(struct sparsec_session *session, PyObject *find_stream) {
    unsigned long long stream;
    if (!find_stream) return 0;
    if (stream_of(find_stream, &stream)) return -1;
    sparsec_session_set_stream(session, (void *)(uintptr_t)stream);
    return 0;
}
