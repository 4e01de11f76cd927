/* What the files of the Python binding share.  Limited API: one build serves 3.11 and later. */
#ifndef SPARSEC_MODULE_H
#define SPARSEC_MODULE_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "internal.h"

_Static_assert(sizeof(Py_ssize_t) == sizeof(int64_t), "shapes of buffers are read as int64");

/* Looked up once, when the module is imported. */
struct names {
    PyObject *input_error, *artifact_error, *sparsec_error;
    PyObject *ndarray, *dtype;
    PyTypeObject *block, *model, *prepared, *device_array;
};
extern struct names names;

struct model_object {
    PyObject_HEAD
    struct sparsec_model *model;
    PyObject *convert; /* (name, dtype, value) -> an array numpy's buffer protocol can export */
    PyObject *input_names, *output_names, *output_dtypes;
};

/* python_arrays.c */
enum { INLINE_ARRAYS = 6 };
struct views {
    size_t count;
    struct sparsec_array *arrays;
    Py_buffer *buffers;
    struct sparsec_array inline_arrays[INLINE_ARRAYS];
    Py_buffer inline_buffers[INLINE_ARRAYS];
};

int views_open(struct views *views, size_t capacity);
void views_close(struct views *views);
int views_add(struct views *views, PyObject *value, bool writable);
int views_add_inputs(struct views *views, struct model_object *self, PyObject *feeds);

/* Of a run on a GPU: where its results go, arrays of NumPy without it, and its stream.  Borrowed. */
struct destination {
    PyObject *allocate;    /* NULL, or (output, shape) -> a DeviceArray for it */
    PyObject *find_stream; /* NULL, or () -> the CUDA stream a run goes to, 0 for one of the session's own */
};

/* An array of NumPy, or what `allocate`, if it is not NULL, makes. */
PyObject *new_output(struct model_object *self, const struct sparsec_session *session,
                     const struct sparsec_binding *binding, size_t output, PyObject *allocate);
PyObject *raise_failure(const struct sparsec_failure *failure, const char *prefix);

/* python_model.c */
PyObject *text_of(const char *text);
PyObject *new_outputs(struct model_object *self, const struct sparsec_session *session,
                      const struct sparsec_binding *binding, PyObject *allocate, struct views *views);

/* python_device.c: arrays in a GPU's memory, and streams */
bool is_device_array(PyObject *value);
struct sparsec_array device_array_view(PyObject *value);
PyObject *seen_array(PyObject *array); /* what callers see of an output: a DeviceArray's owner; borrowed */
struct destination destination_of(PyObject *allocate, PyObject *find_stream); /* None counts as NULL */
int stream_of(PyObject *find_stream, unsigned long long *stream);
int use_stream(struct sparsec_session *session, PyObject *find_stream); /* NULL: as it was */

/* python_profile.c */
PyObject *model_profile(PyObject *self, PyObject *arguments);

extern PyType_Spec block_spec, model_spec, prepared_spec, device_array_spec;
PyObject *prepared_new(struct model_object *self, PyObject *feeds, PyObject *outputs,
                       const struct destination *destination);

#endif
