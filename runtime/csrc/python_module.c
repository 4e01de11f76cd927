/* The module sparsec.runtime._executor. */
#include "module.h"

struct names names;

PyObject *load_model(PyObject *module, PyObject *arguments);
PyObject *model_of_bytes(PyObject *module, PyObject *arguments);

static int import_names(const char *module_name, const char *const *attributes, PyObject **const *targets) {
    PyObject *module = PyImport_ImportModule(module_name);
    if (!module) return -1;
    for (int i = 0; attributes[i]; i++) {
        *targets[i] = PyObject_GetAttrString(module, attributes[i]);
        if (!*targets[i]) break;
    }
    Py_DECREF(module);
    return PyErr_Occurred() ? -1 : 0;
}

static int import_errors(void) {
    static const char *const attributes[] = {"InputError", "ArtifactError", "SparsecError", NULL};
    PyObject **const targets[] = {&names.input_error, &names.artifact_error, &names.sparsec_error};
    return import_names("sparsec.errors", attributes, targets);
}

static int import_numpy(void) {
    static const char *const attributes[] = {"ndarray", "dtype", NULL};
    PyObject **const targets[] = {&names.ndarray, &names.dtype};
    return import_names("numpy", attributes, targets);
}

static PyTypeObject *add_type(PyObject *module, const char *name, PyType_Spec *spec) {
    PyObject *type = PyType_FromSpec(spec);
    if (type && PyModule_AddObjectRef(module, name, type) == 0) return (PyTypeObject *)type;
    Py_XDECREF(type);
    return NULL;
}

static int execute(PyObject *module) {
    if (import_errors() || import_numpy()) return -1;
    names.block = add_type(module, "Block", &block_spec);
    names.model = add_type(module, "Model", &model_spec);
    names.prepared = add_type(module, "Prepared", &prepared_spec);
    names.device_array = add_type(module, "DeviceArray", &device_array_spec);
    return names.block && names.model && names.prepared && names.device_array ? 0 : -1;
}

static PyMethodDef functions[] = {
    {"load", load_model, METH_VARARGS, "load(path, convert, verify, isa, sha256): map a model file."},
    {"from_bytes", model_of_bytes, METH_VARARGS, "from_bytes(data, convert, verify, isa, sha256): a model from a copy of bytes."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "sparsec.runtime._executor",
    .m_doc = "Binding of the C executor.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__executor(void) { return PyModuleDef_Init(&definition); }
