/* Pagestone | pymod/txn — the C half of pagestone.Transaction.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "pymod/core.h"

/* TransactionBase(store, isolation: int) */
static PyObject *txn_new(PyTypeObject *tp, PyObject *args, PyObject *kw)
{
    PyObject *store;
    int iso = 0, rc;
    (void)kw;
    if (!PyArg_ParseTuple(args, "O!|i", core.store_type, &store, &iso)) return NULL;
    struct pgs_error err = {0};
    pgs_txn *t = NULL;
    pgs_store *s = store_of(store);
    if (!s) return NULL;
    rc = pgs_begin(s, (enum pgs_isolation)iso, &t, &err);
    if (rc < 0) return core_raise(rc, &err);
    TxnObject *o = (TxnObject *)tp->tp_alloc(tp, 0);
    if (!o) {
        pgs_txn_unref(t);
        return NULL;
    }
    o->t = t;
    o->store = (StoreObject *)Py_NewRef(store);
    return (PyObject *)o;
}

static int txn_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((TxnObject *)self)->store);
    Py_VISIT(((TxnObject *)self)->dict);
    return 0;
}

static int txn_clear(PyObject *self)
{
    Py_CLEAR(((TxnObject *)self)->dict);
    return 0;
}

static void txn_dealloc(PyObject *self)
{
    TxnObject *o = (TxnObject *)self;
    PyTypeObject *tp = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (o->weakrefs) PyObject_ClearWeakRefs(self);
    if (o->t) CORE_BLOCKING(pgs_txn_unref(o->t));
    Py_CLEAR(o->dict);
    Py_CLEAR(o->store);
    tp->tp_free(self);
    Py_DECREF(tp);
}

/* What the base has stays where it is while its bytes are looked at, also if another thread ends the transaction meanwhile. */
static pgs_snapshot *hold_base(TxnObject *o)
{
    pgs_snapshot *sn;
    CORE_BLOCKING(sn = pgs_txn_base(o->t));
    return sn;
}

static PyObject *load(TxnObject *o, PyObject *key, const struct key *k)
{
    struct pgs_object obj;
    struct pgs_error err = {0};
    pgs_view *v = NULL;
    ViewObject *view = NULL;
    PyObject *r = NULL;
    pgs_snapshot *base = hold_base(o);
    int rc;
    CORE_BLOCKING(rc = pgs_txn_fetch(o->t, k->p, (size_t)k->len, &obj, &v, &err));
    bool array = rc == 0 && obj.kind == PGS_KIND_ARRAY;
    if (rc == -PGS_ENOENT)
        key_error(key);
    else if (rc < 0)
        core_raise_for(rc, &err, key);
    else if (v && !(view = (ViewObject *)view_wrap(v, array)))
        ;
    else if (array)
        r = array_writable(&obj.type, view, obj.n_bytes, key);
    else
        r = value_decode((PyObject *)o->store, &obj, view ? pgs_view_data(v) : obj.inline_data, view, key);
    Py_XDECREF(view);
    pgs_snapshot_unref(base);
    return r;
}

static PyObject *txn_get(PyObject *self, PyObject *key)
{
    struct key k;
    return key_for_reading(key, &k) < 0 ? NULL : load((TxnObject *)self, key, &k);
}

static int txn_contains(PyObject *self, PyObject *key)
{
    struct key k;
    struct pgs_object obj;
    struct pgs_error err = {0};
    if (key_for_reading(key, &k) < 0) {
        if (PyErr_ExceptionMatches(PyExc_KeyError)) return PyErr_Clear(), 0;
        return -1;
    }
    int rc;
    CORE_BLOCKING(rc = pgs_txn_get(((TxnObject *)self)->t, k.p, (size_t)k.len, &obj, &err));
    return rc == -PGS_ENOENT ? 0 : rc < 0 ? core_raise_int(rc, &err) : 1;
}

static int txn_set(PyObject *self, PyObject *key, PyObject *value)
{
    TxnObject *o = (TxnObject *)self;
    struct key k;
    struct pgs_error err = {0};
    if (value) return key_for_writing(key, &k) < 0 ? -1 : value_store((PyObject *)o->store, o->t, &k, value, false);
    if (key_for_reading(key, &k) < 0) return -1;
    int rc;
    CORE_BLOCKING(rc = pgs_txn_delete(o->t, k.p, (size_t)k.len, &err));
    return rc == -PGS_ENOENT ? (key_error(key), -1) : rc < 0 ? core_raise_int(rc, &err) : 0;
}

static PyObject *txn_iter(PyObject *self, PyObject *args)
{
    const char *prefix;
    Py_ssize_t len;
    int strip, what;
    struct pgs_error err = {0};
    pgs_iter *it = NULL;
    if (!PyArg_ParseTuple(args, "s#pC", &prefix, &len, &strip, &what)) return NULL;
    int rc;
    CORE_BLOCKING(rc = pgs_iter_txn(((TxnObject *)self)->t, prefix, (size_t)len, &it, &err));
    return rc < 0 ? core_raise(rc, &err) : iter_wrap(it, self, true, strip ? len : 0, (char)what);
}

typedef int (*look_fn)(pgs_txn *, const void *, size_t, struct pgs_object *, struct pgs_error *);

static PyObject *info(TxnObject *o, PyObject *key, look_fn look)
{
    struct key k;
    struct pgs_object obj;
    struct pgs_error err = {0};
    if (key_for_reading(key, &k) < 0) return NULL;
    pgs_snapshot *base = hold_base(o);
    int rc;
    CORE_BLOCKING(rc = look(o->t, k.p, (size_t)k.len, &obj, &err));
    PyObject *r = rc == -PGS_ENOENT ? key_error(key) : rc < 0 ? core_raise(rc, &err) : object_info(&obj);
    pgs_snapshot_unref(base);
    return r;
}

static PyObject *txn_info(PyObject *self, PyObject *key)
{
    return info((TxnObject *)self, key, pgs_txn_get);
}

/* What _info gives, but no read: for append and resize, and after an edit. */
static PyObject *txn_peek(PyObject *self, PyObject *key)
{
    return info((TxnObject *)self, key, pgs_txn_peek);
}

/* (key, shape tuple, dtype, order) of create and empty */
static int parse_type(PyObject *args, struct key *k, PyObject **key, struct pgs_type *type, PyObject **desc)
{
    PyObject *shape_o;
    PyArray_Descr *descr;
    int order;
    if (!PyArg_ParseTuple(args, "OO!O!C", key, &PyTuple_Type, &shape_o, &PyArrayDescr_Type, &descr, &order) ||
        key_for_writing(*key, k) < 0)
        return -1;
    npy_intp shape[PGS_MAX_NDIM];
    Py_ssize_t nd = PyTuple_GET_SIZE(shape_o);
    if (nd > PGS_MAX_NDIM)
        return PyErr_Format(PyExc_ValueError, "%zd dimensions are more than %d", nd, PGS_MAX_NDIM), -1;
    for (Py_ssize_t i = 0; i < nd; i++) {
        shape[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape_o, i));
        if (shape[i] == -1 && PyErr_Occurred()) return -1;
        if (shape[i] < 0) return PyErr_SetString(PyExc_ValueError, "negative dimensions are not allowed"), -1;
    }
    if (PyDataType_REFCHK(descr))
        return PyErr_Format(PyExc_TypeError,
                            "dtype %R holds Python objects: arrays in a store hold plain bytes; store the object "
                            "itself (s[key] = obj pickles it)",
                            descr),
               -1;
    return type_of(descr, (int)nd, shape, (char)order, type, desc);
}

static PyObject *txn_create(PyObject *self, PyObject *args)
{
    struct key k;
    struct pgs_type type = {0};
    struct pgs_error err = {0};
    PyObject *key, *desc;
    if (parse_type(args, &k, &key, &type, &desc) < 0) return NULL;
    int rc;
    CORE_BLOCKING(rc = pgs_txn_create(((TxnObject *)self)->t, k.p, (size_t)k.len, &type, &err));
    Py_DECREF(desc);
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

static PyObject *txn_empty(PyObject *self, PyObject *args)
{
    struct key k;
    struct pgs_type type = {0};
    struct pgs_error err = {0};
    PyObject *key, *desc, *r = NULL;
    pgs_view *v = NULL;
    if (parse_type(args, &k, &key, &type, &desc) < 0) return NULL;
    int rc;
    CORE_BLOCKING(rc = pgs_txn_empty(((TxnObject *)self)->t, k.p, (size_t)k.len, &type, &v, &err));
    ViewObject *view = NULL;
    if (rc < 0)
        core_raise(rc, &err);
    else if ((view = (ViewObject *)view_wrap(v, 1)))
        r = array_writable(&type, view, UINT64_MAX, key); /* the memory was made for this type */
    Py_XDECREF(view);
    Py_DECREF(desc);
    return r;
}

static PyObject *txn_move(PyObject *self, PyObject *args)
{
    PyObject *from_o, *to_o;
    struct key from, to;
    struct pgs_error err = {0};
    if (!PyArg_ParseTuple(args, "OO", &from_o, &to_o) || key_for_reading(from_o, &from) < 0 ||
        key_for_writing(to_o, &to) < 0)
        return NULL;
    int rc;
    CORE_BLOCKING(rc = pgs_txn_move(((TxnObject *)self)->t, from.p, (size_t)from.len, to.p, (size_t)to.len, &err));
    if (rc == -PGS_ENOENT) return key_error(from_o);
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

/* _copy(snapshot or None, from, to) */
static PyObject *txn_copy(PyObject *self, PyObject *args)
{
    PyObject *src, *from_o, *to_o;
    struct key from, to;
    struct pgs_error err = {0};
    if (!PyArg_ParseTuple(args, "OOO", &src, &from_o, &to_o) || key_for_reading(from_o, &from) < 0 ||
        key_for_writing(to_o, &to) < 0)
        return NULL;
    pgs_snapshot *sn = src == Py_None                                ? NULL
                       : PyObject_TypeCheck(src, core.snapshot_type) ? ((SnapshotObject *)src)->sn
                                                                     : NULL;
    if (src != Py_None && !sn) return PyErr_SetString(PyExc_ValueError, "the snapshot to copy from is closed"), NULL;
    int rc;
    CORE_BLOCKING(
        rc = pgs_txn_copy(((TxnObject *)self)->t, sn, from.p, (size_t)from.len, to.p, (size_t)to.len, NULL, &err));
    if (rc == -PGS_ENOENT) return key_error(from_o);
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

/* _append(key, dense array of rows, n_rows): the caller has checked dtype and trailing shape */
static PyObject *txn_append(PyObject *self, PyObject *args)
{
    PyObject *key;
    PyArrayObject *rows;
    unsigned long long n;
    struct key k;
    struct pgs_error err = {0};
    if (!PyArg_ParseTuple(args, "OO!K", &key, &PyArray_Type, &rows, &n) || key_for_reading(key, &k) < 0) return NULL;
    if (!PyArray_IS_C_CONTIGUOUS(rows)) return PyErr_SetString(PyExc_ValueError, "rows must be C-contiguous"), NULL;
    int rc;
    CORE_BLOCKING(rc = pgs_txn_append(((TxnObject *)self)->t, k.p, (size_t)k.len, PyArray_DATA(rows), n, &err));
    if (rc == -PGS_ENOENT) return key_error(key);
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

static PyObject *txn_resize(PyObject *self, PyObject *args)
{
    PyObject *key, *shape_o;
    struct key k;
    struct pgs_error err = {0};
    int64_t shape[PGS_MAX_NDIM];
    if (!PyArg_ParseTuple(args, "OO!", &key, &PyTuple_Type, &shape_o) || key_for_reading(key, &k) < 0) return NULL;
    Py_ssize_t nd = PyTuple_GET_SIZE(shape_o);
    if (nd > PGS_MAX_NDIM) return PyErr_SetString(PyExc_ValueError, "too many dimensions"), NULL;
    for (Py_ssize_t i = 0; i < nd; i++) {
        shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape_o, i));
        if (shape[i] == -1 && PyErr_Occurred()) return NULL;
    }
    int rc;
    CORE_BLOCKING(rc = pgs_txn_resize(((TxnObject *)self)->t, k.p, (size_t)k.len, shape, (uint32_t)nd, &err));
    if (rc == -PGS_ENOENT) return key_error(key);
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

static PyObject *txn_clear_keys(PyObject *self, PyObject *args)
{
    const char *p;
    Py_ssize_t n;
    struct pgs_error err = {0};
    if (!PyArg_ParseTuple(args, "s#", &p, &n)) return NULL;
    int rc;
    CORE_BLOCKING(rc = pgs_txn_clear(((TxnObject *)self)->t, p, (size_t)n, &err));
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

static PyObject *txn_depends(PyObject *self, PyObject *args)
{
    PyObject *key;
    struct key k;
    unsigned long long lo = 0, hi = 0;
    struct pgs_error err = {0};
    if (!PyArg_ParseTuple(args, "O|KK", &key, &lo, &hi) || key_for_reading(key, &k) < 0) return NULL;
    int rc;
    CORE_BLOCKING(rc = pgs_txn_depends(((TxnObject *)self)->t, k.p, (size_t)k.len, lo, hi, &err));
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

static PyObject *txn_savepoint(PyObject *self, PyObject *unused)
{
    uint64_t id = 0;
    struct pgs_error err = {0};
    int rc;
    (void)unused;
    CORE_BLOCKING(rc = pgs_txn_savepoint(((TxnObject *)self)->t, &id, &err));
    return rc < 0 ? core_raise(rc, &err) : PyLong_FromUnsignedLongLong(id);
}

static PyObject *txn_rollback(PyObject *self, PyObject *id)
{
    unsigned long long n = PyLong_AsUnsignedLongLong(id);
    struct pgs_error err = {0};
    int rc;
    if (PyErr_Occurred()) return NULL;
    CORE_BLOCKING(rc = pgs_txn_rollback(((TxnObject *)self)->t, n, &err));
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

/* ConflictError with .keys, .ranges, .version, .winner (pid and command come from the log, in Python) */
static PyObject *raise_conflict(TxnObject *o, const struct pgs_error *err)
{
    const struct pgs_conflict *list = NULL;
    size_t n = 0;
    uint64_t version = 0;
    pgs_txn_conflicts(o->t, &list, &n, &version);
    PyObject *items = PyList_New(0);
    for (size_t i = 0; items && i < n; i++) {
        PyObject *k = PyUnicode_DecodeUTF8(list[i].key, (Py_ssize_t)list[i].key_len, "surrogateescape");
        PyObject *x =
            k ? Py_BuildValue("(NKK)", k, (unsigned long long)list[i].lo, (unsigned long long)list[i].hi) : NULL;
        if (!x || PyList_Append(items, x) < 0) Py_CLEAR(items);
        Py_XDECREF(x);
    }
    if (!items) return NULL;
    PyObject *exc = PyObject_CallFunction(core.errors[PGS_ECONFLICT], "sOKO", err->text, items,
                                          (unsigned long long)version, (PyObject *)o->store);
    Py_DECREF(items);
    if (exc) PyErr_SetObject(core.errors[PGS_ECONFLICT], exc);
    Py_XDECREF(exc);
    return NULL;
}

static PyObject *txn_commit(PyObject *self, PyObject *args)
{
    TxnObject *o = (TxnObject *)self;
    const char *message = NULL;
    uint64_t version = 0;
    struct pgs_error err = {0};
    if (!PyArg_ParseTuple(args, "|z", &message)) return NULL;
    int rc;
    CORE_BLOCKING(rc = pgs_txn_commit(o->t, message, &version, &err));
    if (rc != -PGS_ELOCKED && rc != -PGS_EINTR && rc != -PGS_EFORKED) o->over = true;
    if (rc == -PGS_ECONFLICT) return raise_conflict(o, &err);
    return rc < 0 ? core_raise(rc, &err) : PyLong_FromUnsignedLongLong(version);
}

static PyObject *txn_abort(PyObject *self, PyObject *unused)
{
    struct pgs_error err = {0};
    int rc;
    (void)unused;
    CORE_BLOCKING(rc = pgs_txn_abort(((TxnObject *)self)->t, &err));
    if (rc < 0 && rc != -PGS_ECLOSED) return core_raise(rc, &err);
    ((TxnObject *)self)->over = true;
    Py_RETURN_NONE;
}

static PyObject *txn_landed(PyObject *self, PyObject *key)
{
    struct key k;
    int64_t row = 0;
    struct pgs_error err = {0};
    if (key_for_reading(key, &k) < 0) return NULL;
    int rc;
    CORE_BLOCKING(rc = pgs_txn_landed(((TxnObject *)self)->t, k.p, (size_t)k.len, &row, &err));
    if (rc == -PGS_ENOENT) return key_error(key);
    return rc < 0 ? core_raise(rc, &err) : PyLong_FromLongLong(row);
}

static PyObject *txn_store_attr(PyObject *self, void *ctx)
{
    (void)ctx;
    return Py_NewRef((PyObject *)((TxnObject *)self)->store);
}

static PyObject *txn_base_version(PyObject *self, void *ctx)
{
    (void)ctx;
    pgs_snapshot *sn;
    CORE_BLOCKING(sn = pgs_txn_base(((TxnObject *)self)->t));
    if (!sn) Py_RETURN_NONE;
    PyObject *version = PyLong_FromUnsignedLongLong(pgs_snapshot_version(sn));
    pgs_snapshot_unref(sn);
    return version;
}

static PyObject *txn_over(PyObject *self, void *ctx)
{
    (void)ctx;
    return PyBool_FromLong(((TxnObject *)self)->over);
}

/* _base(SnapshotType): the snapshot that the transaction began on */
static PyObject *txn_base(PyObject *self, PyObject *type)
{
    TxnObject *o = (TxnObject *)self;
    PyTypeObject *tp = (PyTypeObject *)type;
    if (!PyType_Check(type) || !PyType_IsSubtype(tp, core.snapshot_type))
        return PyErr_SetString(PyExc_TypeError, "a Snapshot type"), NULL;
    pgs_snapshot *sn;
    CORE_BLOCKING(sn = pgs_txn_base(o->t));
    if (!sn) return PyErr_SetString(core.errors[PGS_ECLOSED], "the transaction is over; begin a new one"), NULL;
    SnapshotObject *s = (SnapshotObject *)tp->tp_alloc(tp, 0);
    if (!s) {
        pgs_snapshot_unref(sn);
        return NULL;
    }
    s->sn = sn;
    s->store = (StoreObject *)Py_NewRef((PyObject *)o->store);
    return (PyObject *)s;
}

static PyMethodDef methods[] = {{"_iter", txn_iter, METH_VARARGS, NULL},
                                {"_info", txn_info, METH_O, NULL},
                                {"_peek", txn_peek, METH_O, NULL},
                                {"_create", txn_create, METH_VARARGS, NULL},
                                {"_empty", txn_empty, METH_VARARGS, NULL},
                                {"_move", txn_move, METH_VARARGS, NULL},
                                {"_copy", txn_copy, METH_VARARGS, NULL},
                                {"_append", txn_append, METH_VARARGS, NULL},
                                {"_resize", txn_resize, METH_VARARGS, NULL},
                                {"_clear", txn_clear_keys, METH_VARARGS, NULL},
                                {"_depends", txn_depends, METH_VARARGS, NULL},
                                {"_savepoint", txn_savepoint, METH_NOARGS, NULL},
                                {"_rollback", txn_rollback, METH_O, NULL},
                                {"_commit", txn_commit, METH_VARARGS, NULL},
                                {"_abort", txn_abort, METH_NOARGS, NULL},
                                {"_landed", txn_landed, METH_O, NULL},
                                {"_base", txn_base, METH_O, NULL},
                                {0}};
static PyGetSetDef getset[] = {{"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
                               {"_store", txn_store_attr, NULL, NULL, NULL},
                               {"_base_version", txn_base_version, NULL, NULL, NULL},
                               {"_over", txn_over, NULL, NULL, NULL},
                               {0}};
static PyMemberDef members[] = {{"__weaklistoffset__", T_PYSSIZET, offsetof(TxnObject, weakrefs), READONLY, NULL},
                                {"__dictoffset__", T_PYSSIZET, offsetof(TxnObject, dict), READONLY, NULL},
                                {0}};
static PyType_Slot slots[] = {{Py_tp_new, txn_new},
                              {Py_tp_dealloc, txn_dealloc},
                              {Py_tp_traverse, txn_traverse},
                              {Py_tp_clear, txn_clear},
                              {Py_mp_subscript, txn_get},
                              {Py_mp_ass_subscript, txn_set},
                              {Py_sq_contains, txn_contains},
                              {Py_tp_methods, methods},
                              {Py_tp_getset, getset},
                              {Py_tp_members, members},
                              {0, NULL}};
static PyType_Spec spec = {"pagestone._core.TransactionBase", sizeof(TxnObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};

int txn_type_init(PyObject *module)
{
    core.txn_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    return core.txn_type ? PyModule_AddObjectRef(module, "TransactionBase", (PyObject *)core.txn_type) : -1;
}
