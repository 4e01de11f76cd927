/* The type Prepared: inputs and outputs bound once, run many times. */
#include "module.h"

struct prepared {
    PyObject_HEAD
    struct model_object *owner;
    struct sparsec_session *session;
    struct sparsec_binding *binding;
    struct views inputs, outputs;
    PyObject *arrays; /* list of the output arrays */
    PyObject *find_stream; /* NULL, or () -> the CUDA stream a run goes to */
    pthread_mutex_t lock;
};

static void prepared_dealloc(PyObject *object) {
    struct prepared *self = (struct prepared *)object;
    PyTypeObject *type = Py_TYPE(object);
    views_close(&self->inputs);
    views_close(&self->outputs);
    if (self->session) sparsec_session_give_back(self->session);
    Py_XDECREF(self->arrays);
    Py_XDECREF(self->find_stream);
    Py_XDECREF((PyObject *)self->owner);
    pthread_mutex_destroy(&self->lock);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static int check_output(const struct prepared *self, size_t i) {
    const struct plan *plan = &self->owner->model->plan;
    const struct port *port = &plan->outputs[i];
    const struct sparsec_array *array = &self->outputs.arrays[i];
    const int64_t *shape = sparsec_binding_output_shape(self->session, self->binding, i);
    bool same = array->rank == (int)port->shape.rank;
    for (int axis = 0; same && axis < array->rank; axis++) same = array->shape[axis] == shape[axis];
    if (same && array->dtype == port->dtype) return 0;
    char expected[256];
    shape_text(plan, port->shape, expected, sizeof expected);
    PyErr_Format(names.input_error, "output '%s' must be a writable %s array of shape %s for these inputs",
                 plan->strings + port->name, dtype_name(port->dtype), expected);
    return -1;
}

/* From the lowest to the highest byte an array touches. */
static void limits(const struct sparsec_array *array, const char **low, const char **high) {
    *low = *high = array->data;
    if (!array->strides) *high += array_bytes(array);
    for (int axis = 0; array->strides && axis < array->rank; axis++) {
        int64_t reach = array->strides[axis] * (array->shape[axis] - 1);
        *(reach < 0 ? low : high) += reach;
    }
    if (array->strides) *high += dtype_bytes(array->dtype);
}

/* Kernels may write an output before they have read the whole input. */
static void stage_overlaps(struct prepared *self) {
    for (size_t i = 0; i < self->inputs.count; i++)
        for (size_t o = 0; o < self->outputs.count; o++) {
            const char *low, *high, *out_low, *out_high;
            limits(&self->inputs.arrays[i], &low, &high);
            limits(&self->outputs.arrays[o], &out_low, &out_high);
            if (low < out_high && out_low < high) self->outputs.arrays[o].stage = true;
        }
}

static PyObject *output_array(struct prepared *self, size_t i, PyObject *given, PyObject *allocate) {
    PyObject *name = PyTuple_GetItem(self->owner->output_names, (Py_ssize_t)i);
    PyObject *array = PyDict_GetItemWithError(given, name);
    if (array || PyErr_Occurred()) return Py_XNewRef(array);
    return new_output(self->owner, self->session, self->binding, i, allocate);
}

static int add_output(struct prepared *self, size_t i, PyObject *given, PyObject *allocate) {
    PyObject *array = output_array(self, i, given, allocate);
    if (!array) return -1;
    int status = views_add(&self->outputs, array, true);
    if (status && !PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear();
        PyErr_Format(names.input_error, "output '%s' must be a writable array",
                     self->owner->model->plan.strings + self->owner->model->plan.outputs[i].name);
    }
    if (status == 0) status = PyList_Append(self->arrays, seen_array(array));
    Py_DECREF(array);
    return status ? status : check_output(self, i);
}

static int check_names(const struct prepared *self, PyObject *given) {
    PyObject *name, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(given, &position, &name, &value)) {
        int known = PySequence_Contains(self->owner->output_names, name);
        if (known > 0) continue;
        if (known == 0)
            PyErr_Format(names.input_error, "there is no output called %R; the outputs are %R", name,
                         self->owner->output_names);
        return -1;
    }
    return 0;
}

static int bind(struct prepared *self, PyObject *feeds, PyObject *given, PyObject *allocate) {
    const struct plan *plan = &self->owner->model->plan;
    struct sparsec_failure failure;
    if (views_open(&self->inputs, plan->input_count) || views_open(&self->outputs, plan->output_count)) return -1;
    if (views_add_inputs(&self->inputs, self->owner, feeds) || check_names(self, given)) return -1;
    self->session = sparsec_session_take(self->owner->model, &failure);
    self->binding = self->session ? sparsec_session_bind(self->session, self->inputs.arrays, &failure) : NULL;
    if (!self->binding) {
        raise_failure(&failure, "");
        return -1;
    }
    for (size_t i = 0; i < plan->output_count; i++)
        if (add_output(self, i, given, allocate)) return -1;
    stage_overlaps(self);
    return 0;
}

PyObject *prepared_new(struct model_object *owner, PyObject *feeds, PyObject *outputs,
                       const struct destination *destination) {
    allocfunc allocate = (allocfunc)PyType_GetSlot(names.prepared, Py_tp_alloc);
    struct prepared *self = (struct prepared *)allocate(names.prepared, 0);
    if (!self) return NULL;
    pthread_mutex_init(&self->lock, NULL);
    self->owner = (struct model_object *)Py_NewRef((PyObject *)owner);
    self->find_stream = Py_XNewRef(destination->find_stream);
    self->arrays = PyList_New(0);
    if (self->arrays && bind(self, feeds, outputs, destination->allocate) == 0) return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static PyObject *prepared_call(PyObject *object, PyObject *arguments, PyObject *keywords) {
    struct prepared *self = (struct prepared *)object;
    struct sparsec_failure failure;
    int status;
    if (PyTuple_Size(arguments) || (keywords && PyDict_Size(keywords))) {
        PyErr_SetString(PyExc_TypeError, "a prepared program takes no arguments: write into its input arrays");
        return NULL;
    }
    unsigned long long stream = 0;
    if (self->find_stream && stream_of(self->find_stream, &stream)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&self->lock);
    if (self->find_stream) sparsec_session_set_stream(self->session, (void *)(uintptr_t)stream);
    status =
        sparsec_session_run(self->session, self->binding, self->inputs.arrays, self->outputs.arrays, &failure);
    pthread_mutex_unlock(&self->lock);
    Py_END_ALLOW_THREADS
    return status ? raise_failure(&failure, "") : Py_NewRef(Py_None);
}

static PyObject *get_arrays(PyObject *self, void *ignored) {
    PyObject *arrays = ((struct prepared *)self)->arrays;
    (void)ignored;
    return PyList_GetSlice(arrays, 0, PyList_Size(arrays));
}

static PyGetSetDef getset[] = {
    {"outputs", get_arrays, NULL, "The arrays each run writes, in the order of the program's outputs.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_dealloc, prepared_dealloc},
    {Py_tp_call, prepared_call},
    {Py_tp_getset, getset},
    {Py_tp_doc, "A program with inputs and outputs bound; call it to run."},
    {0, NULL},
};
PyType_Spec prepared_spec = {"sparsec.runtime._executor.Prepared", sizeof(struct prepared), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
