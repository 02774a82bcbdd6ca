/* Pagestone | pymod/module — pagestone._core: initialisation.
 * SPDX-License-Identifier: Apache-2.0
 */
#define PAGESTONE_IMPORTS_NUMPY
#include "pymod/core.h"

static PyObject *capabilities(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    PyObject *d = PyDict_New();
    const char *name, *reason;
    int on;
    for (int i = 0; d && (name = pgs_capability(i, &on, &reason)); i++) {
        PyObject *v = Py_BuildValue("(Os)", on ? Py_True : Py_False, reason);
        if (!v || PyDict_SetItemString(d, name, v) < 0) Py_CLEAR(d);
        Py_XDECREF(v);
    }
    return d;
}

/* memory_limit() -> (what limits, left, kept, total), or None */
static PyObject *memory_limit(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    struct pgs_memory m;
    pgs_memory_limit(&m);
    if (!m.by) Py_RETURN_NONE;
    return Py_BuildValue("(sKKK)", m.by, (unsigned long long)m.left, (unsigned long long)m.kept,
                         (unsigned long long)m.total);
}

/* plain_encode(value) -> bytes or None; plain_decode(bytes): for the command line and for tests */
static PyObject *py_plain_encode(PyObject *module, PyObject *value)
{
    PyObject *b = NULL;
    (void)module;
    int rc = plain_encode(value, &b);
    if (rc < 0) return NULL;
    return rc ? b : Py_NewRef(Py_None);
}

static PyObject *py_plain_decode(PyObject *module, PyObject *b)
{
    (void)module;
    if (!PyBytes_Check(b)) return PyErr_Format(PyExc_TypeError, "bytes expected");
    return plain_decode(PyBytes_AS_STRING(b), (size_t)PyBytes_GET_SIZE(b));
}

static PyMethodDef functions[] = {
    {"capabilities", capabilities, METH_NOARGS, "name -> (on, reason)"},
    {"memory_limit", memory_limit, METH_NOARGS, "(what limits, left, kept, total) or None"},
    {"_plain_encode", py_plain_encode, METH_O, NULL},
    {"_plain_decode", py_plain_decode, METH_O, NULL},
    {0}};

static PyObject *attr_of(const char *module, const char *name)
{
    PyObject *m = PyImport_ImportModule(module);
    PyObject *a = m ? PyObject_GetAttrString(m, name) : NULL;
    Py_XDECREF(m);
    return a;
}

static int core_exec(PyObject *module)
{
    if (core.store_type) {
        PyErr_SetString(PyExc_ImportError, "pagestone._core can be imported once per process, not in sub-interpreters");
        return -1;
    }
    if (PyArray_ImportNumPyAPI() < 0 || core_errors_init(module) < 0) return -1;
    if (!(core.pickle_refused = attr_of("pagestone._errors", "PickleRefusedError")) ||
        !(core.dtype_encode = attr_of("pagestone._dtype", "describe")) ||
        !(core.dtype_decode = attr_of("pagestone._dtype", "from_description")) ||
        !(core.pickle_dump = attr_of("pagestone._pickle", "dump")) ||
        !(core.pickle_load = attr_of("pagestone._pickle", "load")) ||
        !(core.memmap_type = attr_of("numpy", "memmap")) || !(core.dtype_names = PyDict_New()) ||
        !(core.dtypes = PyDict_New()))
        return -1;
    if (view_type_init(module) < 0 || array_types_init(module) < 0 || snapshot_type_init(module) < 0 ||
        iter_type_init(module) < 0 || txn_type_init(module) < 0 || store_type_init(module) < 0)
        return -1;
#ifdef PGS_TESTING
    if (PyModule_AddIntConstant(module, "_testing", 1) < 0) return -1; /* PAGESTONE_KILL and the like work */
#endif
    return PyModule_AddStringConstant(module, "library_version", pgs_version_string());
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, core_exec},
#if PY_VERSION_HEX >= 0x030C0000
                                          {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
                                          {0, NULL}};
static PyModuleDef module_def = {PyModuleDef_HEAD_INIT, .m_name = "pagestone._core",
                                 .m_doc = "The C half of pagestone; use pagestone.", .m_methods = functions,
                                 .m_slots = module_slots};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&module_def);
}
