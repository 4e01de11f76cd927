/* Arrays across the border: inputs through the buffer protocol, outputs on aligned memory. */
#include "module.h"

PyObject *raise_failure(const struct sparsec_failure *failure, const char *prefix) {
    PyObject *types[] = {NULL, names.artifact_error, names.input_error, PyExc_MemoryError, names.sparsec_error};
    return PyErr_Format(types[failure->kind], "%s%s", prefix, failure->text);
}

/* Memory of an output array, aligned so that kernels write into it directly. */
struct output_block {
    PyObject_HEAD
    struct memory memory;
};

static PyObject *block_new(size_t bytes) {
    allocfunc allocate = (allocfunc)PyType_GetSlot(names.block, Py_tp_alloc);
    struct sparsec_failure failure;
    struct output_block *block = (struct output_block *)allocate(names.block, 0);
    if (!block || memory_reserve(&block->memory, bytes, &failure) == 0) return (PyObject *)block;
    Py_DECREF((PyObject *)block);
    return raise_failure(&failure, "");
}

static void block_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    memory_release(&((struct output_block *)self)->memory);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static int block_buffer(PyObject *self, Py_buffer *view, int flags) {
    const struct memory *memory = &((struct output_block *)self)->memory;
    return PyBuffer_FillInfo(view, self, memory->data, (Py_ssize_t)memory->size, 0, flags);
}

static PyType_Slot block_slots[] = {
    {Py_tp_dealloc, block_dealloc},
    {Py_bf_getbuffer, block_buffer},
    {Py_tp_doc, "Aligned memory of an output array."},
    {0, NULL},
};
PyType_Spec block_spec = {
    "sparsec.runtime._executor.Block", sizeof(struct output_block), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, block_slots};

static PyObject *shape_tuple(const int64_t *shape, uint32_t rank) {
    PyObject *tuple = PyTuple_New(rank);
    for (uint32_t axis = 0; tuple && axis < rank; axis++) {
        PyObject *size = PyLong_FromLongLong(shape[axis]);
        if (!size || PyTuple_SetItem(tuple, axis, size)) Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *numpy_output(struct model_object *self, const struct port *port, size_t output, const int64_t *shape) {
    size_t bytes = dtype_bytes(port->dtype);
    for (uint32_t axis = 0; axis < port->shape.rank; axis++) bytes *= (size_t)shape[axis];
    PyObject *block = block_new(bytes), *tuple = block ? shape_tuple(shape, port->shape.rank) : NULL, *array = NULL;
    if (tuple) {
        PyObject *dtype = PyTuple_GetItem(self->output_dtypes, (Py_ssize_t)output);
        array = PyObject_CallFunctionObjArgs(names.ndarray, tuple, dtype, block, NULL);
    }
    Py_XDECREF(tuple);
    Py_XDECREF(block);
    return array;
}

static PyObject *device_output(const struct port *port, size_t output, const int64_t *shape, PyObject *allocate) {
    PyObject *array = PyObject_CallFunction(allocate, "nN", (Py_ssize_t)output, shape_tuple(shape, port->shape.rank));
    if (!array || is_device_array(array)) return array;
    Py_DECREF(array);
    PyErr_SetString(PyExc_TypeError, "outputs are allocated as DeviceArrays");
    return NULL;
}

PyObject *new_output(struct model_object *self, const struct sparsec_session *session,
                     const struct sparsec_binding *binding, size_t output, PyObject *allocate) {
    const struct port *port = &self->model->plan.outputs[output];
    const int64_t *shape = sparsec_binding_output_shape(session, binding, output);
    return allocate ? device_output(port, output, shape, allocate) : numpy_output(self, port, output, shape);
}

int views_open(struct views *views, size_t capacity) {
    views->count = 0;
    views->arrays = views->inline_arrays;
    views->buffers = views->inline_buffers;
    if (capacity <= INLINE_ARRAYS) return 0;
    views->arrays = PyMem_Malloc(capacity * sizeof *views->arrays);
    views->buffers = PyMem_Malloc(capacity * sizeof *views->buffers);
    if (views->arrays && views->buffers) return 0;
    PyErr_NoMemory();
    views_close(views);
    return -1;
}

void views_close(struct views *views) {
    for (size_t i = 0; i < views->count; i++) PyBuffer_Release(&views->buffers[i]);
    if (views->arrays != views->inline_arrays) PyMem_Free(views->arrays);
    if (views->buffers != views->inline_buffers) PyMem_Free(views->buffers);
    views->count = 0;
    views->arrays = views->inline_arrays;
    views->buffers = views->inline_buffers;
}

/* The type a buffer's format stands for, or 0 for one that kernels do not know. */
static uint32_t dtype_of(const Py_buffer *buffer) {
    const char *format = buffer->format ? buffer->format : "B";
    if (*format == '@' || *format == '=' || *format == '<') format++;
    if (format[0] == 0 || format[1] != 0) return 0;
    uint32_t code;
    switch (format[0]) {
    case 'e': case 'f': case 'd': code = DTYPE_FLOAT; break;
    case 'b': case 'h': case 'i': case 'l': case 'q': case 'n': code = DTYPE_INT; break;
    case 'B': case 'H': case 'I': case 'L': case 'Q': case 'N': code = DTYPE_UINT; break;
    case '?': code = DTYPE_BOOL; break;
    default: return 0;
    }
    return 0x10000 | (uint32_t)buffer->itemsize << 11 | code;
}

int views_add(struct views *views, PyObject *value, bool writable) {
    Py_buffer *buffer = &views->buffers[views->count];
    if (is_device_array(value)) {
        *buffer = (Py_buffer){.obj = Py_NewRef(value)}; /* releasing it gives the reference back */
        views->arrays[views->count++] = device_array_view(value);
        return 0;
    }
    if (PyObject_GetBuffer(value, buffer, PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0))) return -1;
    bool contiguous = PyBuffer_IsContiguous(buffer, 'C');
    views->arrays[views->count++] = (struct sparsec_array){
        .data = buffer->buf,
        .rank = buffer->ndim,
        .dtype = dtype_of(buffer),
        .shape = (const int64_t *)buffer->shape,
        .strides = contiguous ? NULL : (const int64_t *)buffer->strides,
    };
    return 0;
}

static int add_converted(struct views *views, struct model_object *self, size_t input, PyObject *value) {
    PyObject *name = PyTuple_GetItem(self->input_names, (Py_ssize_t)input);
    PyObject *array = PyObject_CallFunction(self->convert, "OsO", name,
                                            dtype_name(self->model->plan.inputs[input].dtype), value);
    int status = array ? views_add(views, array, false) : -1;
    Py_XDECREF(array); /* the view keeps it */
    return status;
}

static int add_input(struct views *views, struct model_object *self, size_t input, PyObject *value) {
    if (!PyObject_CheckBuffer(value)) return add_converted(views, self, input, value);
    if (views_add(views, value, false)) {
        PyErr_Clear();
        return add_converted(views, self, input, value);
    }
    if (views->arrays[views->count - 1].dtype) return 0;
    PyBuffer_Release(&views->buffers[--views->count]);
    return add_converted(views, self, input, value);
}

static PyObject *raise_names(struct model_object *self, const char *problem, PyObject *name) {
    return PyErr_Format(names.input_error, "%s %R; the inputs are %R", problem, name, self->input_names);
}

static void raise_extra_name(struct model_object *self, PyObject *feeds) {
    PyObject *name, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(feeds, &position, &name, &value)) {
        int known = PySequence_Contains(self->input_names, name);
        if (known < 0) return;
        if (!known) {
            raise_names(self, "there is no input called", name);
            return;
        }
    }
}

/* The views of a dictionary's arrays in the order of the program's inputs. */
int views_add_inputs(struct views *views, struct model_object *self, PyObject *feeds) {
    size_t count = self->model->plan.input_count;
    for (size_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GetItem(self->input_names, (Py_ssize_t)i);
        PyObject *value = PyDict_GetItemWithError(feeds, name);
        if (!value && !PyErr_Occurred()) raise_extra_name(self, feeds);
        if (!value && !PyErr_Occurred()) raise_names(self, "no array was given for input", name);
        if (!value || add_input(views, self, i, value)) return -1;
    }
    if ((size_t)PyDict_Size(feeds) == count) return 0;
    raise_extra_name(self, feeds);
    return -1;
}
