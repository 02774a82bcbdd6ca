/* Pagestone | pymod/array — ps.Array: an ndarray subclass that knows where its memory came from.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A C heap type over ndarray with one extra pointer, its provenance. np.memmap is not the base: its attributes make joblib reopen the file behind the store's back.
 *
 *   I1  prov != NULL only if the array's memory lies inside the provenance's memory and is not owned by the array.
 *   I2  What is not such a view loses the provenance; where NumPy leaves the choice to us it becomes a plain ndarray or a scalar.
 *   I3  The extra pointer stands behind NumPy's own struct, whose size is known at run time only (PyArray_Type.tp_basicsize).
 */
#include "pymod/core.h"

static size_t extra_offset;

struct core_array_extra *array_extra(PyObject *a)
{
    return (struct core_array_extra *)(void *)((char *)a + extra_offset);
}

bool array_check(PyObject *o)
{
    return PyObject_TypeCheck(o, core.array_type);
}

/* --- provenance ------------------------------------------------------------------------------------------------------- */

static void prov_dealloc(PyObject *self)
{
    ProvObject *p = (ProvObject *)self;
    PyTypeObject *tp = Py_TYPE(self);
    Py_XDECREF(p->store);
    Py_XDECREF(p->key);
    Py_XDECREF(p->view);
    PyObject_Free(self);
    Py_DECREF(tp);
}

#define PROV_FIELD(name_, expr_)                                                                                       \
    static PyObject *prov_##name_(PyObject *self, void *ctx)                                                           \
    {                                                                                                                  \
        (void)ctx;                                                                                                     \
        ProvObject *p = (ProvObject *)self;                                                                            \
        return expr_;                                                                                                  \
    }
PROV_FIELD(store, (Py_INCREF(p->store), p->store))
PROV_FIELD(key, (Py_INCREF(p->key), p->key))
PROV_FIELD(view, (Py_INCREF(p->view), (PyObject *)p->view))
PROV_FIELD(version, PyLong_FromUnsignedLongLong(p->version))
PROV_FIELD(gen, PyLong_FromUnsignedLongLong(p->gen))
PROV_FIELD(id, PyLong_FromUnsignedLongLong(p->id))
PROV_FIELD(n_bytes, PyLong_FromUnsignedLongLong(p->n_bytes))
PROV_FIELD(addr, PyLong_FromVoidPtr(p->addr))

static PyGetSetDef prov_getset[] = {{"store", prov_store, NULL, NULL, NULL},
                                    {"key", prov_key, NULL, NULL, NULL},
                                    {"view", prov_view, NULL, NULL, NULL},
                                    {"version", prov_version, NULL, NULL, NULL},
                                    {"gen", prov_gen, NULL, NULL, NULL},
                                    {"id", prov_id, NULL, NULL, NULL},
                                    {"n_bytes", prov_n_bytes, NULL, NULL, NULL},
                                    {"addr", prov_addr, NULL, NULL, NULL},
                                    {0}};
static PyType_Slot prov_slots[] = {{Py_tp_dealloc, prov_dealloc}, {Py_tp_getset, prov_getset}, {0, NULL}};
static PyType_Spec prov_spec = {"pagestone._core.Provenance", sizeof(ProvObject), 0, Py_TPFLAGS_DEFAULT, prov_slots};

static ProvObject *prov_new(PyObject *store, PyObject *key, ViewObject *view, uint64_t id, uint64_t version,
                            uint64_t n_bytes)
{
    ProvObject *p = PyObject_New(ProvObject, core.prov_type);
    if (!p) return NULL;
    Py_INCREF(store);
    Py_INCREF(key);
    Py_INCREF(view);
    p->store = store;
    p->key = key;
    p->view = view;
    p->version = version;
    p->gen = pgs_view_gen(view->v);
    p->id = id;
    p->n_bytes = n_bytes;
    p->addr = pgs_view_data(view->v);
    return p;
}

/* --- the array ----------------------------------------------------------------------------------------------------------- */

static bool inside(const ProvObject *p, PyArrayObject *a)
{
    if (PyArray_CHKFLAGS(a, NPY_ARRAY_OWNDATA)) return false;
    const char *d = PyArray_BYTES(a);
    return d >= p->addr && d <= p->addr + p->n_bytes;
}

static void array_dealloc(PyObject *self)
{
    PyTypeObject *tp = Py_TYPE(self);
    ProvObject *p = array_extra(self)->prov;
    array_extra(self)->prov = NULL;
    PyArray_Type.tp_dealloc(self); /* drops the base (the View) and frees */
    Py_XDECREF(p);
    Py_DECREF(tp);
}

static PyObject *array_finalize(PyObject *self, PyObject *from)
{
    if (from != Py_None && array_check(from) && array_check(self)) {
        ProvObject *p = array_extra(from)->prov;
        if (p && !array_extra(self)->prov && inside(p, (PyArrayObject *)self)) {
            Py_INCREF(p);
            array_extra(self)->prov = p;
        }
    }
    Py_RETURN_NONE;
}

/* Results that are no views of the store become what NumPy gives without us. Steals r. */
static PyObject *plain_result(PyObject *r, bool scalar)
{
    if (!r || !PyArray_Check(r)) return r;
    if (scalar && PyArray_NDIM((PyArrayObject *)r) == 0) return PyArray_Return((PyArrayObject *)PyArray_EnsureArray(r));
    if (!array_check(r) || array_extra(r)->prov) return r;
    PyObject *v = PyArray_View((PyArrayObject *)r, NULL, &PyArray_Type);
    Py_DECREF(r);
    return v;
}

static PyObject *array_wrap(PyObject *self, PyObject *args)
{
    PyObject *r, *context = NULL;
    int scalar = -1;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!|Op:__array_wrap__", &PyArray_Type, &r, &context, &scalar)) return NULL;
    if (scalar < 0) scalar = PyArray_NDIM((PyArrayObject *)r) == 0; /* NumPy 1.x leaves it to us */
    Py_INCREF(r);
    return plain_result(r, scalar);
}

static PyObject *array_subscript(PyObject *self, PyObject *index)
{
    PyObject *r = PyArray_Type.tp_as_mapping->mp_subscript(self, index);
    return array_extra(self)->prov ? plain_result(r, false) : r;
}

static PyObject *array_reduce_ex(PyObject *self, PyObject *protocol)
{
    PyObject *handles = PyImport_ImportModule("pagestone._handles");
    if (!handles) return NULL;
    PyObject *r = PyObject_CallMethod(handles, "reduce_array", "OO", self, protocol);
    Py_DECREF(handles);
    return r;
}

static PyObject *array_get_store(PyObject *self, void *ctx)
{
    ProvObject *p = array_extra(self)->prov;
    PyObject *r = !p                 ? Py_None
                  : ctx == (void *)0 ? p->store
                  : ctx == (void *)1 ? p->key
                  : ctx == (void *)3 ? (PyObject *)p
                                     : NULL;
    if (!r) return PyLong_FromUnsignedLongLong(p->version);
    Py_INCREF(r);
    return r;
}

static PyMethodDef array_methods[] = {{"__array_finalize__", array_finalize, METH_O, NULL},
                                      {"__array_wrap__", array_wrap, METH_VARARGS, NULL},
                                      {"__reduce_ex__", array_reduce_ex, METH_O, NULL},
                                      {0}};
static PyGetSetDef array_getset[] = {
    {"store", array_get_store, NULL, "the Store that the memory belongs to, or None", (void *)0},
    {"key", array_get_store, NULL, "the key that it was read under, or None", (void *)1},
    {"version", array_get_store, NULL, "the version that it shows, or None", (void *)2},
    {"_prov", array_get_store, NULL, NULL, (void *)3},
    {0}};
static const char array_doc[] =
    "A read-only view of an array in a store: an ndarray that carries its provenance.\n\n"
    "Slices, transposes and other views of store memory stay Array; results of computations are plain\n"
    "ndarrays. An Array pickles as a handle of at most 300 bytes plus the store's path; loading it in another\n"
    "process maps the same pages. ``np.asarray(x)`` pickles the bytes.\n\n"
    "Attributes\n----------\nstore : Store or None\n    The store that the memory belongs to.\nkey : str or None\n    "
    "The key that it was read under.\n"
    "version : int or None\n    The version that it shows.\n";
static PyType_Slot array_slots[] = {{Py_tp_dealloc, array_dealloc},
                                    {Py_tp_methods, array_methods},
                                    {Py_tp_getset, array_getset},
                                    {Py_mp_subscript, array_subscript},
                                    {Py_tp_doc, (void *)(uintptr_t)array_doc},
                                    {0, NULL}};
static PyType_Spec array_spec = {"pagestone.Array", 0, 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, array_slots};

static PyObject *array_over(PyArray_Descr *descr, int ndim, const npy_intp *shape, const npy_intp *strides, int flags,
                            char *data, ProvObject *prov)
{
    PyObject *a =
        PyArray_NewFromDescr(core.array_type, descr, ndim, shape, strides, data, flags, NULL); /* steals descr */
    if (!a) return NULL;
    Py_INCREF(prov->view);
    if (PyArray_SetBaseObject((PyArrayObject *)a, (PyObject *)prov->view) < 0) {
        Py_DECREF(a);
        return NULL;
    }
    Py_INCREF(prov);
    array_extra(a)->prov = prov;
    return a;
}

PyObject *array_make(PyObject *store, PyObject *key, const struct pgs_object *obj, ViewObject *view, uint64_t version)
{
    PyArray_Descr *descr = dtype_from(obj->type.dtype, obj->type.dtype_len);
    if (!descr) return NULL;
    npy_intp shape[PGS_MAX_NDIM];
    for (uint32_t i = 0; i < obj->type.ndim; i++) shape[i] = (npy_intp)obj->type.shape[i];
    if ((uint64_t)PyDataType_ELSIZE(descr) != obj->type.itemsize || obj->type.ndim > NPY_MAXDIMS) {
        PyErr_Format(core.errors[PGS_ECORRUPT], "%R: dtype and item size do not fit each other: run check()", key);
        Py_DECREF(descr);
        return NULL;
    }
    ProvObject *prov = prov_new(store, key, view, obj->id, version, obj->n_bytes);
    PyObject *a = NULL;
    if (prov) {
        int flags = obj->type.order == 'F' ? NPY_ARRAY_F_CONTIGUOUS : 0;
        a = array_over(descr, (int)obj->type.ndim, shape, NULL, flags, prov->addr, prov);
        Py_DECREF(prov);
    } else
        Py_DECREF(descr);
    return a;
}

/* _array_from(store, key, view, id, version, n_bytes, offset, dtype, shape, strides): what a handle describes; every number is checked. */
static PyObject *array_from(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *store, *key, *view, *shape_o, *strides_o;
    PyArray_Descr *descr;
    unsigned long long id, version, n_bytes, offset;
    if (!PyArg_ParseTuple(args, "OOO!KKKKO!O!O!", &store, &key, core.view_type, &view, &id, &version, &n_bytes, &offset,
                          &PyArrayDescr_Type, &descr, &PyTuple_Type, &shape_o, &PyTuple_Type, &strides_o))
        return NULL;
    Py_ssize_t nd = PyTuple_GET_SIZE(shape_o);
    npy_intp shape[NPY_MAXDIMS], strides[NPY_MAXDIMS];
    if (nd > NPY_MAXDIMS || PyTuple_GET_SIZE(strides_o) != nd || PyDataType_REFCHK(descr))
        return PyErr_SetString(PyExc_ValueError, "malformed array handle"), NULL;
    __int128 lo = (__int128)offset, hi = lo + PyDataType_ELSIZE(descr);
    bool empty = false;
    for (Py_ssize_t i = 0; i < nd; i++) {
        shape[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape_o, i));
        strides[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(strides_o, i));
        if (PyErr_Occurred()) return NULL;
        if (shape[i] <= 0)
            empty = true;
        else if (strides[i] < 0)
            lo += (__int128)strides[i] * (shape[i] - 1);
        else
            hi += (__int128)strides[i] * (shape[i] - 1);
    }
    uint64_t have = pgs_view_size(((ViewObject *)view)->v);
    if (n_bytes > have || offset > have || (!empty && (lo < 0 || hi > (__int128)have)))
        return PyErr_SetString(PyExc_ValueError, "the array handle reaches outside of its object"), NULL;
    ProvObject *prov = prov_new(store, key, (ViewObject *)view, id, version, n_bytes);
    if (!prov) return NULL;
    Py_INCREF(descr);
    PyObject *a = array_over(descr, (int)nd, shape, strides, 0, prov->addr + offset, prov);
    Py_DECREF(prov);
    return a;
}

static PyMethodDef functions[] = {{"_array_from", array_from, METH_VARARGS, NULL}, {0}};

int array_types_init(PyObject *module)
{
    core.prov_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &prov_spec, NULL);
    if (!core.prov_type) return -1;
    core.prov_type->tp_new = NULL;
    extra_offset = ((size_t)PyArray_Type.tp_basicsize + 15) & ~(size_t)15;
    array_spec.basicsize = (int)(extra_offset + sizeof(struct core_array_extra));
    PyObject *bases = PyTuple_Pack(1, &PyArray_Type);
    core.array_type = bases ? (PyTypeObject *)PyType_FromModuleAndSpec(module, &array_spec, bases) : NULL;
    Py_XDECREF(bases);
    if (!core.array_type || PyModule_AddFunctions(module, functions) < 0) return -1;
    return PyModule_AddObjectRef(module, "Array", (PyObject *)core.array_type);
}
