/* Pagestone | pymod/dtype — dtypes as bytes that other languages can read, and back.
 * SPDX-License-Identifier: Apache-2.0
 *
 * "<f8", "|S10", "<M8[ns]" are their NumPy strings; structured ones a literal (pagestone/_dtype.py). Both directions are cached up to a bound: a store has few
 * dtypes.
 *
 *   I1  Only dtypes without fields are cached for describing: dtypes that compare equal may differ in alignment and titles.
 *   I2  A structured dtype is handed out as a copy: its field names can be assigned to (a.dtype.names = …), and the next reader must not see that.
 */
#include "pymod/core.h"

#define CACHE_MAX 1024

static int remember(PyObject *cache, PyObject *key, PyObject *value)
{
    return PyDict_GET_SIZE(cache) < CACHE_MAX ? PyDict_SetItem(cache, key, value) : 0;
}

PyObject *dtype_describe(PyArray_Descr *descr)
{
    bool simple = !PyDataType_HASFIELDS(descr);
    if (simple) {
        PyObject *known = PyDict_GetItemWithError(core.dtype_names, (PyObject *)descr);
        if (known) return Py_NewRef(known);
        if (PyErr_Occurred()) return NULL;
    }
    PyObject *desc = PyObject_CallFunctionObjArgs(core.dtype_encode, (PyObject *)descr, NULL);
    if (!desc) return NULL;
    if (!PyBytes_Check(desc)) {
        PyErr_SetString(PyExc_TypeError, "dtype encoder returned no bytes");
        Py_CLEAR(desc);
    } else if (simple && remember(core.dtype_names, (PyObject *)descr, desc) < 0)
        Py_CLEAR(desc);
    return desc;
}

/* Bytes from the file are input: what they describe must not hold pointers. */
static PyObject *decode(PyObject *desc)
{
    PyObject *d = PyObject_CallFunctionObjArgs(core.dtype_decode, desc, NULL);
    if (!d) return NULL;
    if (!PyArray_DescrCheck(d)) {
        PyErr_SetString(PyExc_TypeError, "dtype decoder returned no dtype");
        Py_CLEAR(d);
    } else if (PyDataType_REFCHK((PyArray_Descr *)d) || PyDataType_HASSUBARRAY((PyArray_Descr *)d)) {
        PyErr_Format(core.errors[PGS_ECORRUPT], "a stored dtype is no dtype of plain bytes: %R: run check()", d);
        Py_CLEAR(d);
    } else if (remember(core.dtypes, desc, d) < 0)
        Py_CLEAR(d);
    return d;
}

PyArray_Descr *dtype_from(const char *p, size_t len)
{
    PyObject *desc = PyBytes_FromStringAndSize(p, (Py_ssize_t)len);
    if (!desc) return NULL;
    PyObject *d = PyDict_GetItemWithError(core.dtypes, desc);
    Py_XINCREF(d);
    if (!d && !PyErr_Occurred()) d = decode(desc);
    Py_DECREF(desc);
    if (d && PyDataType_HASFIELDS((PyArray_Descr *)d)) {
        PyArray_Descr *copy = PyArray_DescrNew((PyArray_Descr *)d);
        Py_DECREF(d);
        return copy;
    }
    return (PyArray_Descr *)d;
}

int type_of(PyArray_Descr *descr, int ndim, const npy_intp *shape, char order, struct pgs_type *type, PyObject **desc)
{
    PyObject *d = dtype_describe(descr);
    if (!d) return -1;
    type->dtype = PyBytes_AS_STRING(d);
    type->dtype_len = (uint32_t)PyBytes_GET_SIZE(d);
    type->itemsize = (uint32_t)PyDataType_ELSIZE(descr);
    type->ndim = (uint32_t)ndim;
    type->order = order;
    for (int i = 0; i < ndim; i++) type->shape[i] = shape[i];
    *desc = d;
    return 0;
}
