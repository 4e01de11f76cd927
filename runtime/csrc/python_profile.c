/* Model.profile: each step's time, outside the GIL. */
#include "module.h"

static PyObject *step_object(const struct sparsec_model *model, const struct sparsec_binding *binding, size_t i,
                             uint64_t time) {
    struct sparsec_step step = sparsec_model_step(model, i);
    PyObject *node = text_of(step.node), *kernel = node ? text_of(step.kernel) : NULL;
    if (kernel)
        return Py_BuildValue("(NNKL)", node, kernel, (unsigned long long)time,
                             (long long)sparsec_binding_step_tiles(binding, i));
    Py_XDECREF(node);
    return NULL;
}

static PyObject *step_objects(const struct sparsec_model *model, const struct sparsec_binding *binding,
                              const uint64_t *times) {
    size_t count = sparsec_model_step_count(model);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        PyObject *step = step_object(model, binding, i, times[i]);
        if (!step || PyList_SetItem(list, (Py_ssize_t)i, step)) Py_CLEAR(list);
    }
    return list;
}

static PyObject *profile_arrays(struct model_object *self, struct sparsec_session *session,
                                struct sparsec_binding *binding, const struct views *inputs,
                                const struct views *outputs, int repeats) {
    struct sparsec_failure failure;
    int status;
    PyObject *list = NULL;
    uint64_t *times = PyMem_Calloc(sparsec_model_step_count(self->model) + 1, sizeof *times);
    if (!times) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    status = sparsec_session_profile(session, binding, inputs->arrays, outputs->arrays, repeats, times, &failure);
    Py_END_ALLOW_THREADS
    if (status) raise_failure(&failure, "");
    else list = step_objects(self->model, binding, times);
    PyMem_Free(times);
    return list;
}

static PyObject *profile_bound(struct model_object *self, struct sparsec_session *session,
                               const struct views *inputs, int repeats) {
    struct sparsec_failure failure;
    struct views outputs;
    struct sparsec_binding *binding = session_bind(session, inputs->arrays, &failure);
    if (!binding) return raise_failure(&failure, "");
    if (views_open(&outputs, self->model->plan.output_count)) return NULL;
    PyObject *arrays = new_outputs(self, session, binding, NULL, &outputs);
    PyObject *list = arrays ? profile_arrays(self, session, binding, inputs, &outputs, repeats) : NULL;
    views_close(&outputs);
    Py_XDECREF(arrays);
    return list;
}

static PyObject *profile_views(struct model_object *self, const struct views *inputs, int repeats,
                               PyObject *find_stream) {
    struct sparsec_failure failure;
    struct sparsec_session *session = sparsec_session_take(self->model, &failure);
    if (!session) return raise_failure(&failure, "");
    PyObject *list = use_stream(session, find_stream) ? NULL : profile_bound(self, session, inputs, repeats);
    sparsec_session_give_back(session);
    return list;
}

PyObject *model_profile(PyObject *object, PyObject *arguments) {
    struct model_object *self = (struct model_object *)object;
    struct views inputs;
    PyObject *feeds, *find_stream = NULL;
    int repeats;
    if (!PyArg_ParseTuple(arguments, "O!i|O:profile", &PyDict_Type, &feeds, &repeats, &find_stream)) return NULL;
    const struct destination destination = destination_of(NULL, find_stream);
    if (views_open(&inputs, self->model->plan.input_count)) return NULL;
    PyObject *list = NULL;
    if (views_add_inputs(&inputs, self, feeds) == 0)
        list = profile_views(self, &inputs, repeats, destination.find_stream);
    views_close(&inputs);
    return list;
}
