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

#define MAY_BE_COPIED 4096u /* views of smaller objects may be copies, which pin nothing */

static size_t extra_offset;

static struct core_array_extra *array_extra(PyObject *a)
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
    Py_XDECREF(p->dtype);
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
PROV_FIELD(store, Py_NewRef(p->store))
PROV_FIELD(key, Py_NewRef(p->key))
PROV_FIELD(dtype, Py_NewRef(p->dtype))
PROV_FIELD(unnamed, PyBool_FromLong(p->unnamed))
PROV_FIELD(view, Py_NewRef((PyObject *)p->view))
PROV_FIELD(version, PyLong_FromUnsignedLongLong(p->version))
PROV_FIELD(gen, PyLong_FromUnsignedLongLong(pgs_view_gen(p->view->v))) /* the library may move a view's pin */
PROV_FIELD(id, PyLong_FromUnsignedLongLong(p->id))
PROV_FIELD(n_bytes, PyLong_FromUnsignedLongLong(p->n_bytes))
PROV_FIELD(addr, PyLong_FromVoidPtr(p->addr))

/* lease(ns) -> (generation, its version): what a handle names. Without write permission nothing is leased: our own pin is what keeps it. */
static PyObject *prov_lease(PyObject *self, PyObject *arg)
{
    ProvObject *p = (ProvObject *)self;
    unsigned long long ns = PyLong_AsUnsignedLongLong(arg);
    uint64_t gen = 0, version = 0;
    struct pgs_error err = {0};
    int rc;
    if (PyErr_Occurred()) return NULL;
    CORE_BLOCKING(rc = pgs_view_lease(p->view->v, ns, &gen, &version, &err));
    if (rc < 0 && rc != -PGS_EREADONLY) return core_raise(rc, &err);
    return Py_BuildValue("(KK)", (unsigned long long)gen, (unsigned long long)version);
}

static PyMethodDef prov_methods[] = {{"lease", prov_lease, METH_O, NULL}, {0}};
static PyGetSetDef prov_getset[] = {{"store", prov_store, NULL, NULL, NULL},
                                    {"key", prov_key, NULL, NULL, NULL},
                                    {"dtype", prov_dtype, NULL, NULL, NULL},
                                    {"unnamed", prov_unnamed, NULL, NULL, NULL},
                                    {"view", prov_view, NULL, NULL, NULL},
                                    {"version", prov_version, NULL, NULL, NULL},
                                    {"gen", prov_gen, NULL, NULL, NULL},
                                    {"id", prov_id, NULL, NULL, NULL},
                                    {"n_bytes", prov_n_bytes, NULL, NULL, NULL},
                                    {"addr", prov_addr, NULL, NULL, NULL},
                                    {0}};
static PyType_Slot prov_slots[] = {
    {Py_tp_dealloc, prov_dealloc}, {Py_tp_getset, prov_getset}, {Py_tp_methods, prov_methods}, {0, NULL}};
static PyType_Spec prov_spec = {"pagestone._core.Provenance", sizeof(ProvObject), 0, Py_TPFLAGS_DEFAULT, prov_slots};

static ProvObject *prov_new(PyObject *store, PyObject *key, PyArray_Descr *stored, ViewObject *view, pgs_snapshot *sn,
                            uint64_t id, uint64_t n_bytes)
{
    if (n_bytes < MAY_BE_COPIED && pgs_view_keep(view->v, sn, NULL) < 0)
        return PyErr_SetString(PyExc_ValueError, "the view is not of this snapshot"), NULL;
    PyArray_Descr *own = stored; /* the array's dtype object can be given other field names */
    Py_INCREF(own);
    if (PyDataType_HASFIELDS(stored)) {
        Py_DECREF(own);
        if (!(own = PyArray_DescrNew(stored))) return NULL;
    }
    ProvObject *p = PyObject_New(ProvObject, core.prov_type);
    if (!p) {
        Py_DECREF(own);
        return NULL;
    }
    p->store = Py_NewRef(store);
    p->key = Py_NewRef(key);
    p->dtype = (PyObject *)own;
    p->view = (ViewObject *)Py_NewRef((PyObject *)view);
    p->unnamed = 0;
    p->version = pgs_snapshot_version(sn);
    p->id = id;
    p->n_bytes = n_bytes;
    p->addr = pgs_view_data(view->v);
    return p;
}

/* --- the array ----------------------------------------------------------------------------------------------------------- */

static bool inside(const ProvObject *p, PyArrayObject *a)
{
    if (PyArray_CHKFLAGS(a, NPY_ARRAY_OWNDATA)) return false;
    const char *d = PyArray_BYTES(a), *end = p->addr + p->n_bytes;
    return d >= p->addr && (d < end || (d == end && PyArray_SIZE(a) == 0));
}

ProvObject *array_prov(PyObject *a)
{
    ProvObject *p = array_extra(a)->prov;
    return p && inside(p, (PyArrayObject *)a) ? p : NULL; /* a.__setstate__ moves the memory of a living array */
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
        ProvObject *p = array_prov(from);
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
    if (!PyArg_ParseTuple(args, "O!|Op:__array_wrap__", &PyArray_Type, &r, &context, &scalar)) return NULL;
    if (scalar < 0) scalar = PyArray_NDIM((PyArrayObject *)r) == 0; /* NumPy 1.x leaves it to us */
    Py_INCREF(r);
    if (r == self) return r; /* it was the ufunc's out= */
    ProvObject *p = array_prov(self);
    if (p && !array_check(r) && inside(p, (PyArrayObject *)r)) { /* squeeze() comes here with a view */
        PyObject *v = PyArray_View((PyArrayObject *)r, NULL, core.array_type);
        Py_DECREF(r);
        if (v && !array_extra(v)->prov) array_extra(v)->prov = (ProvObject *)Py_NewRef((PyObject *)p);
        return v;
    }
    return plain_result(r, scalar);
}

static PyObject *array_subscript(PyObject *self, PyObject *index)
{
    PyObject *r = PyArray_Type.tp_as_mapping->mp_subscript(self, index);
    return array_prov(self) ? plain_result(r, false) : r;
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
    ProvObject *p = array_prov(self);
    if (!p) Py_RETURN_NONE;
    if (ctx == (void *)2) return PyLong_FromUnsignedLongLong(p->version);
    return Py_NewRef(ctx == (void *)0 ? p->store : ctx == (void *)3 ? (PyObject *)p : p->unnamed ? Py_None : p->key);
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

/* The dtype and shape of a whole object over n_bytes of memory; the type comes from the file, so NumPy gets it only if it stays inside of the memory. */
static PyArray_Descr *checked_type(const struct pgs_type *type, uint64_t n_bytes, npy_intp *shape, PyObject *key)
{
    PyArray_Descr *descr = dtype_from(type->dtype, type->dtype_len);
    if (!descr) return NULL;
    unsigned __int128 n = (unsigned __int128)PyDataType_ELSIZE(descr);
    bool ok = n == type->itemsize && type->ndim <= PGS_MAX_NDIM;
    for (uint32_t i = 0; ok && i < type->ndim; i++) {
        ok = type->shape[i] >= 0 && n < (unsigned __int128)1 << 64;
        n *= (uint64_t)type->shape[i];
        shape[i] = (npy_intp)type->shape[i];
    }
    if (ok && n <= n_bytes) return descr;
    PyErr_Format(core.errors[PGS_ECORRUPT], "%R: dtype, shape and size do not fit each other: run check()", key);
    Py_DECREF(descr);
    return NULL;
}

PyObject *array_writable(const struct pgs_type *type, ViewObject *view, uint64_t n_bytes, PyObject *key)
{
    npy_intp shape[PGS_MAX_NDIM];
    PyArray_Descr *descr = checked_type(type, n_bytes, shape, key);
    if (!descr) return NULL;
    int flags = NPY_ARRAY_WRITEABLE | (type->order == 'F' ? NPY_ARRAY_F_CONTIGUOUS : 0);
    PyObject *a =
        PyArray_NewFromDescr(&PyArray_Type, descr, (int)type->ndim, shape, NULL, pgs_view_data(view->v), flags, NULL);
    if (a && PyArray_SetBaseObject((PyArrayObject *)a, Py_NewRef((PyObject *)view)) < 0) Py_CLEAR(a);
    return a;
}

PyObject *array_make(PyObject *store, PyObject *key, const struct pgs_object *obj, ViewObject *view, pgs_snapshot *sn)
{
    npy_intp shape[PGS_MAX_NDIM];
    PyArray_Descr *descr = checked_type(&obj->type, pgs_view_size(view->v), shape, key);
    if (!descr) return NULL;
    ProvObject *prov = prov_new(store, key, descr, view, sn, obj->id, obj->n_bytes);
    PyObject *a = NULL;
    if (prov) {
        int flags = obj->type.order == 'F' ? NPY_ARRAY_F_CONTIGUOUS : 0;
        a = array_over(descr, (int)obj->type.ndim, shape, NULL, flags, prov->addr, prov);
        Py_DECREF(prov);
    } else
        Py_DECREF(descr);
    return a;
}

/* _array_from(snapshot, key, unnamed, stored dtype, view, id, n_bytes, offset, dtype, shape, strides, version): what a handle describes; every number is checked. version: as the
 * sender read it, where that is not the snapshot's. */
static PyObject *array_from(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *snapshot, *key, *view, *shape_o, *strides_o;
    PyArray_Descr *descr, *stored;
    unsigned long long id, n_bytes, offset, version = 0;
    int unnamed;
    if (!PyArg_ParseTuple(args, "O!OpO!O!KKKO!O!O!|K", core.snapshot_type, &snapshot, &key, &unnamed,
                          &PyArrayDescr_Type, &stored, core.view_type, &view, &id, &n_bytes, &offset,
                          &PyArrayDescr_Type, &descr, &PyTuple_Type, &shape_o, &PyTuple_Type, &strides_o, &version))
        return NULL;
    Py_ssize_t nd = PyTuple_GET_SIZE(shape_o);
    npy_intp shape[PGS_MAX_NDIM], strides[PGS_MAX_NDIM];
    if (nd > PGS_MAX_NDIM || PyTuple_GET_SIZE(strides_o) != nd || PyDataType_REFCHK(descr))
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
    SnapshotObject *sn = (SnapshotObject *)snapshot;
    if (!sn->sn) return PyErr_SetString(PyExc_ValueError, "the snapshot of an array handle is closed"), NULL;
    ProvObject *prov = prov_new((PyObject *)sn->store, key, stored, (ViewObject *)view, sn->sn, id, n_bytes);
    if (!prov) return NULL;
    prov->unnamed = unnamed;
    if (version) prov->version = version;
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
