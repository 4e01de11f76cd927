/* The type Model: a loaded file and its calls. */
#include "module.h"

PyObject *text_of(const char *text) { return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace"); }

static PyObject *port_names(const struct plan *plan, const struct port *ports, size_t count) {
    PyObject *tuple = PyTuple_New((Py_ssize_t)count);
    for (size_t i = 0; tuple && i < count; i++) {
        PyObject *name = text_of(plan->strings + ports[i].name);
        if (name) PyUnicode_InternInPlace(&name);
        if (!name || PyTuple_SetItem(tuple, (Py_ssize_t)i, name)) Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *port_dtypes(const struct port *ports, size_t count) {
    PyObject *tuple = PyTuple_New((Py_ssize_t)count);
    for (size_t i = 0; tuple && i < count; i++) {
        /* NumPy has no bfloat16, and runtime/arrays.py hands out no such array */
        const char *name = ports[i].dtype == SPARSEC_BFLOAT16 ? "uint16" : dtype_name(ports[i].dtype);
        PyObject *dtype = PyObject_CallFunction(names.dtype, "s", name);
        if (!dtype || PyTuple_SetItem(tuple, (Py_ssize_t)i, dtype)) Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *wrap(struct sparsec_model *model, PyObject *convert) {
    allocfunc allocate = (allocfunc)PyType_GetSlot(names.model, Py_tp_alloc);
    struct model_object *self = (struct model_object *)allocate(names.model, 0);
    if (!self) {
        sparsec_model_free(model);
        return NULL;
    }
    const struct plan *plan = &model->plan;
    self->model = model;
    self->convert = Py_NewRef(convert);
    self->input_names = port_names(plan, plan->inputs, plan->input_count);
    self->output_names = port_names(plan, plan->outputs, plan->output_count);
    self->output_dtypes = port_dtypes(plan->outputs, plan->output_count);
    if (self->input_names && self->output_names && self->output_dtypes) return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

PyObject *load_model(PyObject *module, PyObject *arguments) {
    PyObject *path, *convert;
    int verify;
    struct sparsec_options options = {false, NULL, NULL};
    struct sparsec_failure failure;
    struct sparsec_model *model;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "O&Opzz:load", PyUnicode_FSConverter, &path, &convert, &verify, &options.isa,
                          &options.sha256))
        return NULL;
    options.verify = verify;
    const char *text = PyBytes_AsString(path);
    Py_BEGIN_ALLOW_THREADS
    model = sparsec_model_load_with(text, &options, &failure);
    Py_END_ALLOW_THREADS
    if (!model) {
        PyObject *type = failure.kind == SPARSEC_FAILURE_ARTIFACT ? names.artifact_error : PyExc_MemoryError;
        PyErr_Format(type, "%s: %s", text, failure.text);
    }
    Py_DECREF(path);
    return model ? wrap(model, convert) : NULL;
}

PyObject *model_of_bytes(PyObject *module, PyObject *arguments) {
    PyObject *convert;
    Py_buffer data;
    int verify;
    struct sparsec_options options = {false, NULL, NULL};
    struct sparsec_failure failure;
    struct sparsec_model *model;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*Opzz:from_bytes", &data, &convert, &verify, &options.isa, &options.sha256))
        return NULL;
    options.verify = verify;
    Py_BEGIN_ALLOW_THREADS
    model = sparsec_model_from_bytes_with(data.buf, (size_t)data.len, &options, &failure);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return model ? wrap(model, convert) : raise_failure(&failure, "");
}

static void model_dealloc(PyObject *object) {
    struct model_object *self = (struct model_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    sparsec_model_free(self->model);
    Py_XDECREF(self->convert);
    Py_XDECREF(self->input_names);
    Py_XDECREF(self->output_names);
    Py_XDECREF(self->output_dtypes);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static int model_buffer(PyObject *self, Py_buffer *view, int flags) {
    const struct image *image = &((struct model_object *)self)->model->image;
    return PyBuffer_FillInfo(view, self, image->base, (Py_ssize_t)image->size, 1, flags);
}

static PyObject *manifest(PyObject *self, PyObject *ignored) {
    struct span span = ((struct model_object *)self)->model->image.sections[SECTION_MANIFEST];
    (void)ignored;
    return PyBytes_FromStringAndSize((const char *)span.data, (Py_ssize_t)span.size);
}

static PyObject *axis_object(const struct plan *plan, uint32_t expression) {
    char text[256];
    if (plan->expressions[expression].operator == OP_CONSTANT)
        return PyLong_FromLongLong(plan->expressions[expression].a);
    size_text(plan, expression, text, sizeof text);
    return text_of(text);
}

static PyObject *port_object(const struct plan *plan, const struct port *port) {
    PyObject *shape = PyTuple_New(port->shape.rank);
    for (uint32_t axis = 0; shape && axis < port->shape.rank; axis++) {
        PyObject *size = axis_object(plan, plan->shapes[port->shape.start + axis]);
        if (!size || PyTuple_SetItem(shape, axis, size)) Py_CLEAR(shape);
    }
    PyObject *name = shape ? text_of(plan->strings + port->name) : NULL;
    return name ? Py_BuildValue("(NsN)", name, dtype_name(port->dtype), shape) : NULL;
}

static PyObject *port_objects(const struct plan *plan, const struct port *ports, size_t count) {
    PyObject *tuple = PyTuple_New((Py_ssize_t)count);
    for (size_t i = 0; tuple && i < count; i++) {
        PyObject *port = port_object(plan, &ports[i]);
        if (!port || PyTuple_SetItem(tuple, (Py_ssize_t)i, port)) Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *get_inputs(PyObject *self, void *ignored) {
    const struct plan *plan = &((struct model_object *)self)->model->plan;
    (void)ignored;
    return port_objects(plan, plan->inputs, plan->input_count);
}

static PyObject *get_outputs(PyObject *self, void *ignored) {
    const struct plan *plan = &((struct model_object *)self)->model->plan;
    (void)ignored;
    return port_objects(plan, plan->outputs, plan->output_count);
}

static PyObject *get_isa(PyObject *self, void *ignored) {
    (void)ignored;
    return text_of(sparsec_model_isa(((struct model_object *)self)->model));
}

static PyObject *get_device(PyObject *self, void *ignored) {
    (void)ignored;
    return text_of(sparsec_model_device(((struct model_object *)self)->model));
}

static PyObject *get_threads(PyObject *self, void *ignored) {
    (void)ignored;
    return PyLong_FromLong(sparsec_model_threads(((struct model_object *)self)->model));
}

static int set_threads(PyObject *self, PyObject *value, void *ignored) {
    long threads = value ? PyLong_AsLong(value) : 0;
    (void)ignored;
    if (threads == -1 && PyErr_Occurred()) return -1;
    if (threads >= 1 && threads <= MAXIMUM_THREADS)
        return sparsec_model_set_threads(((struct model_object *)self)->model, (int)threads);
    PyErr_Format(PyExc_ValueError, "threads must be from 1 to %d, not %ld", MAXIMUM_THREADS, threads);
    return -1;
}

PyObject *new_outputs(struct model_object *self, const struct sparsec_session *session,
                      const struct sparsec_binding *binding, PyObject *allocate, struct views *views) {
    size_t count = self->model->plan.output_count;
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        PyObject *array = new_output(self, session, binding, i, allocate);
        if (!array || views_add(views, array, true)) Py_CLEAR(list);
        else PyList_SetItem(list, (Py_ssize_t)i, Py_NewRef(seen_array(array)));
        Py_XDECREF(array);
    }
    return list;
}

static PyObject *run_bound(struct model_object *self, struct sparsec_session *session, const struct views *inputs,
                           const struct destination *destination) {
    struct sparsec_failure failure;
    struct views outputs;
    int status;
    struct sparsec_binding *binding = session_bind(session, inputs->arrays, &failure);
    if (!binding) return raise_failure(&failure, "");
    if (views_open(&outputs, self->model->plan.output_count)) return NULL;
    PyObject *list = new_outputs(self, session, binding, destination->allocate, &outputs);
    if (list) {
        Py_BEGIN_ALLOW_THREADS
        status = sparsec_session_run(session, binding, inputs->arrays, outputs.arrays, &failure);
        Py_END_ALLOW_THREADS
        if (status) {
            Py_CLEAR(list);
            raise_failure(&failure, "");
        }
    }
    views_close(&outputs);
    return list;
}

static PyObject *run_views(struct model_object *self, const struct views *inputs,
                           const struct destination *destination) {
    struct sparsec_failure failure;
    struct sparsec_session *session = sparsec_session_take(self->model, &failure);
    if (!session) return raise_failure(&failure, "");
    PyObject *list =
        use_stream(session, destination->find_stream) ? NULL : run_bound(self, session, inputs, destination);
    sparsec_session_give_back(session);
    return list;
}

static PyObject *select_outputs(struct model_object *self, PyObject *list, PyObject *wanted) {
    PyObject *sequence = PySequence_List(wanted);
    Py_ssize_t count = sequence ? PyList_Size(sequence) : 0;
    for (Py_ssize_t i = 0; sequence && i < count; i++) {
        Py_ssize_t at = PySequence_Index(self->output_names, PyList_GetItem(sequence, i));
        if (at >= 0) {
            PyList_SetItem(sequence, i, Py_NewRef(PyList_GetItem(list, at)));
            continue;
        }
        PyErr_Clear();
        PyErr_Format(names.input_error, "there is no output called %R; the outputs are %R",
                     PyList_GetItem(sequence, i), self->output_names);
        Py_CLEAR(sequence);
    }
    return sequence;
}

static PyObject *run(PyObject *object, PyObject *const *arguments, Py_ssize_t count) {
    struct model_object *self = (struct model_object *)object;
    struct views inputs;
    if ((count != 2 && count != 4) || !PyDict_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "run(output_names or None, {input name: array}[, allocate, find_stream])");
        return NULL;
    }
    struct destination destination = {NULL, NULL};
    if (count == 4) destination = destination_of(arguments[2], arguments[3]);
    if (views_open(&inputs, self->model->plan.input_count)) return NULL;
    PyObject *list = views_add_inputs(&inputs, self, arguments[1]) ? NULL : run_views(self, &inputs, &destination);
    views_close(&inputs);
    if (!list || arguments[0] == Py_None) return list;
    PyObject *selected = select_outputs(self, list, arguments[0]);
    Py_DECREF(list);
    return selected;
}

static PyObject *prepare(PyObject *self, PyObject *arguments) {
    PyObject *feeds, *outputs, *allocate = NULL, *find_stream = NULL;
    if (!PyArg_ParseTuple(arguments, "O!O!|OO:prepare", &PyDict_Type, &feeds, &PyDict_Type, &outputs, &allocate,
                          &find_stream))
        return NULL;
    const struct destination destination = destination_of(allocate, find_stream);
    return prepared_new((struct model_object *)self, feeds, outputs, &destination);
}

static PyMethodDef methods[] = {
    {"run", (PyCFunction)(void (*)(void))run, METH_FASTCALL, "Run once; a list of the outputs asked for."},
    {"prepare", prepare, METH_VARARGS, "Bind inputs and outputs for many runs."},
    {"profile", model_profile, METH_VARARGS, "(node, kernel, median nanoseconds, tiles) of each step."},
    {"manifest", manifest, METH_NOARGS, "The manifest as it stands in the file."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getset[] = {
    {"inputs", get_inputs, NULL, "(name, dtype, shape) of each input.", NULL},
    {"outputs", get_outputs, NULL, "(name, dtype, shape) of each output.", NULL},
    {"isa", get_isa, NULL, "Name of the instruction set whose code runs.", NULL},
    {"device", get_device, NULL, "Where it runs: cpu or cuda.", NULL},
    {"threads", get_threads, set_threads, "Threads a run may use.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_dealloc, model_dealloc}, {Py_bf_getbuffer, model_buffer}, {Py_tp_methods, methods},
    {Py_tp_getset, getset},         {Py_tp_doc, "A loaded model file."}, {0, NULL},
};
PyType_Spec model_spec = {"sparsec.runtime._executor.Model", sizeof(struct model_object), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
