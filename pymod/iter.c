/* Pagestone | pymod/iter — ordered iteration over keys.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "pymod/core.h"

typedef struct {
    PyObject_HEAD pgs_iter *it;
    PyObject *owner; /* the snapshot or transaction that it reads; the library keeps what lies behind it */
    bool of_txn;
    Py_ssize_t strip;
    char what;
} IterObject;

PyObject *iter_wrap(pgs_iter *it, PyObject *owner, bool of_txn, Py_ssize_t strip, char what)
{
    IterObject *o = PyObject_New(IterObject, core.iter_type);
    if (!o) {
        pgs_iter_free(it);
        return NULL;
    }
    o->it = it;
    o->owner = Py_NewRef(owner);
    o->of_txn = of_txn;
    o->strip = strip;
    o->what = what;
    return (PyObject *)o;
}

static void iter_dealloc(PyObject *self)
{
    IterObject *o = (IterObject *)self;
    PyTypeObject *tp = Py_TYPE(self);
    pgs_iter_free(o->it);
    Py_XDECREF(o->owner);
    PyObject_Free(self);
    Py_DECREF(tp);
}

static PyObject *iter_next(PyObject *self)
{
    IterObject *o = (IterObject *)self;
    struct pgs_error err = {0};
    struct pgs_object obj;
    const void *key;
    size_t len;
    int rc;
    if (o->of_txn)
        CORE_BLOCKING(rc = pgs_iter_next(o->it, &key, &len, o->what == 'i' ? &obj : NULL, &err));
    else
        rc = pgs_iter_next(o->it, &key, &len, o->what == 'i' ? &obj : NULL, &err);
    if (rc == -PGS_ENOENT) return NULL;
    if (rc < 0) return core_raise(rc, &err);
    PyObject *name = PyUnicode_DecodeUTF8((const char *)key + o->strip, (Py_ssize_t)len - o->strip, "surrogateescape");
    if (!name || o->what == 'k') return name;
    PyObject *info = object_info(&obj);
    PyObject *r = info ? PyTuple_Pack(2, name, info) : NULL;
    Py_XDECREF(info);
    Py_DECREF(name);
    return r;
}

static PyType_Slot slots[] = {
    {Py_tp_dealloc, iter_dealloc}, {Py_tp_iter, PyObject_SelfIter}, {Py_tp_iternext, iter_next}, {0, NULL}};
static PyType_Spec spec = {"pagestone._core.Iter", sizeof(IterObject), 0, Py_TPFLAGS_DEFAULT, slots};

int iter_type_init(PyObject *module)
{
    core.iter_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    if (core.iter_type) core.iter_type->tp_new = NULL;
    return core.iter_type ? 0 : -1;
}
