/* Pagestone | pymod/dtype — dtypes as bytes that other languages can read, and back.
 * SPDX-License-Identifier: Apache-2.0
 *
 * "<f8", "|S10", "<M8[ns]" are their NumPy strings; structured ones a literal (pagestone/_dtype.py). Both directions are cached: a store has few dtypes.
 */
#include "pymod/core.h"

PyObject *dtype_describe(PyArray_Descr *descr)
{
    PyObject *known = PyDict_GetItemWithError(core.dtype_names, (PyObject *)descr);
    if (known) {
        Py_INCREF(known);
        return known;
    }
    if (PyErr_Occurred()) return NULL;
    PyObject *desc = PyObject_CallFunctionObjArgs(core.dtype_encode, (PyObject *)descr, NULL);
    if (!desc) return NULL;
    if (!PyBytes_Check(desc)) {
        PyErr_SetString(PyExc_TypeError, "dtype encoder returned no bytes");
        Py_CLEAR(desc);
    } else if (PyDict_SetItem(core.dtype_names, (PyObject *)descr, desc) < 0)
        Py_CLEAR(desc);
    return desc;
}

PyArray_Descr *dtype_from(const char *p, size_t len)
{
    PyObject *desc = PyBytes_FromStringAndSize(p, (Py_ssize_t)len);
    if (!desc) return NULL;
    PyObject *d = PyDict_GetItemWithError(core.dtypes, desc);
    Py_XINCREF(d);
    if (!d && !PyErr_Occurred()) {
        d = PyObject_CallFunctionObjArgs(core.dtype_decode, desc, NULL);
        if (d && !PyArray_DescrCheck(d)) {
            PyErr_SetString(PyExc_TypeError, "dtype decoder returned no dtype");
            Py_CLEAR(d);
        }
        if (d && PyDict_SetItem(core.dtypes, desc, d) < 0) Py_CLEAR(d);
    }
    Py_DECREF(desc);
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
