/* Pagestone | pymod/snapshot — the C half of pagestone.Snapshot: one version, read only.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "pymod/core.h"

static pgs_snapshot *use(SnapshotObject *o)
{
    if (!o->sn)
        PyErr_SetString(core.errors[PGS_ECLOSED], "the snapshot is closed: take a new one with snapshot() or at()");
    return o->sn;
}

/* SnapshotBase(store, how, arg): how 'h' head, 'v' version, 't' time in ns, 'n' tag name, 'g' generation */
static PyObject *snapshot_new(PyTypeObject *tp, PyObject *args, PyObject *kw)
{
    PyObject *store, *arg = Py_None;
    int how = 'h', rc = -1;
    if (kw || PyTuple_GET_SIZE(args) == 0 || !PyObject_TypeCheck(PyTuple_GET_ITEM(args, 0), core.store_type))
        return PyErr_Format(PyExc_TypeError, "snapshots are made by Store.snapshot() and Store.at()");
    if (!PyArg_ParseTuple(args, "O|CO", &store, &how, &arg)) return NULL;
    struct pgs_error err = {0};
    pgs_snapshot *sn = NULL;
    pgs_store *s;
    if (how == 'h') {
        if (!(s = store_of(store))) return NULL;
        rc = pgs_snapshot_head(s, &sn, &err);
    } else if (how == 'n') {
        Py_ssize_t n;
        const char *p = PyUnicode_AsUTF8AndSize(arg, &n);
        if (!p || !(s = store_enter(store))) return NULL;
        CORE_BLOCKING(rc = pgs_snapshot_at_tag(s, p, (size_t)n, &sn, &err));
        pgs_store_unref(s);
        if (rc == -PGS_ENOENT) return key_error(arg);
    } else {
        int overflow = 0;
        long long v = PyLong_AsLongLongAndOverflow(arg, &overflow);
        if (v == -1 && PyErr_Occurred()) return NULL;
        if (overflow) return PyErr_Format(PyExc_ValueError, "version %R never was", arg), NULL;
        if (!(s = store_enter(store))) return NULL;
        CORE_BLOCKING(rc = how == 'v'   ? pgs_snapshot_at(s, v, &sn, &err)
                           : how == 't' ? pgs_snapshot_at_time(s, v < 0 ? 0 : (uint64_t)v, &sn, &err)
                                        : pgs_snapshot_gen_open(s, (uint64_t)v, &sn, &err));
        pgs_store_unref(s);
    }
    if (rc < 0) return core_raise(rc, &err);
    SnapshotObject *o = (SnapshotObject *)tp->tp_alloc(tp, 0);
    if (!o) {
        pgs_snapshot_unref(sn);
        return NULL;
    }
    o->sn = sn;
    o->store = (StoreObject *)Py_NewRef(store);
    return (PyObject *)o;
}

static int snapshot_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((SnapshotObject *)self)->store);
    Py_VISIT(((SnapshotObject *)self)->dict);
    return 0;
}

static int snapshot_clear(PyObject *self)
{
    Py_CLEAR(((SnapshotObject *)self)->dict);
    return 0;
}

static void snapshot_dealloc(PyObject *self)
{
    SnapshotObject *o = (SnapshotObject *)self;
    PyTypeObject *tp = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (o->weakrefs) PyObject_ClearWeakRefs(self);
    pgs_snapshot_unref(o->sn);
    Py_CLEAR(o->dict);
    Py_CLEAR(o->store);
    tp->tp_free(self);
    Py_DECREF(tp);
}

/* The object at `key`, and a reference to the snapshot, into whose memory *obj points: another thread may close() it while the GIL is away. NULL: raised. */
static pgs_snapshot *find(PyObject *self, PyObject *key, struct pgs_object *obj)
{
    pgs_snapshot *sn = use((SnapshotObject *)self);
    struct key k;
    struct pgs_error err = {0};
    if (!sn || key_for_reading(key, &k) < 0) return NULL;
    int rc = pgs_get(sn, k.p, (size_t)k.len, obj, &err);
    if (rc == 0) return pgs_snapshot_ref(sn);
    if (rc == -PGS_ENOENT)
        key_error(key);
    else
        core_raise(rc, &err);
    return NULL;
}

static PyObject *get(PyObject *self, PyObject *key, int how)
{
    struct pgs_object obj;
    pgs_snapshot *sn = find(self, key, &obj);
    PyObject *r = sn ? value_load((PyObject *)((SnapshotObject *)self)->store, sn, key, &obj, how) : NULL;
    pgs_snapshot_unref(sn);
    return r;
}

static PyObject *snapshot_get(PyObject *self, PyObject *key)
{
    return get(self, key, WANT_ARRAY_READ);
}

static int snapshot_contains(PyObject *self, PyObject *key)
{
    pgs_snapshot *sn = use((SnapshotObject *)self);
    struct key k;
    struct pgs_object obj;
    struct pgs_error err = {0};
    if (!sn) return -1;
    if (key_for_reading(key, &k) < 0) {
        if (PyErr_ExceptionMatches(PyExc_KeyError)) return PyErr_Clear(), 0;
        return -1;
    }
    int rc = pgs_get(sn, k.p, (size_t)k.len, &obj, &err);
    return rc == -PGS_ENOENT ? 0 : rc < 0 ? core_raise_int(rc, &err) : 1;
}

static Py_ssize_t snapshot_len(PyObject *self)
{
    pgs_snapshot *sn = use((SnapshotObject *)self);
    return sn ? (Py_ssize_t)pgs_snapshot_count(sn) : -1;
}

/* _iter(prefix: str, strip: bool, what: 'k'|'i') */
static PyObject *snapshot_iter(PyObject *self, PyObject *args)
{
    pgs_snapshot *sn = use((SnapshotObject *)self);
    const char *prefix;
    Py_ssize_t len;
    int strip, what;
    struct pgs_error err = {0};
    pgs_iter *it = NULL;
    if (!sn || !PyArg_ParseTuple(args, "s#pC", &prefix, &len, &strip, &what)) return NULL;
    int rc = pgs_iter_snapshot(sn, prefix, (size_t)len, &it, &err);
    return rc < 0 ? core_raise(rc, &err) : iter_wrap(it, self, false, strip ? len : 0, (char)what);
}

static PyObject *snapshot_info(PyObject *self, PyObject *key)
{
    struct pgs_object obj;
    pgs_snapshot *sn = find(self, key, &obj);
    PyObject *r = sn ? object_info(&obj) : NULL;
    pgs_snapshot_unref(sn);
    return r;
}

static PyObject *snapshot_private(PyObject *self, PyObject *key)
{
    return get(self, key, WANT_PRIVATE);
}

/* _view(key) -> (View, info): for handles, whatever the kind. */
static PyObject *snapshot_view(PyObject *self, PyObject *key)
{
    struct pgs_object obj;
    struct pgs_error err = {0};
    pgs_view *v = NULL;
    pgs_snapshot *sn = find(self, key, &obj);
    if (!sn) return NULL;
    int rc;
    PyObject *r = NULL;
    CORE_BLOCKING(rc = pgs_view_open(sn, &obj, 0, &v, &err));
    if (rc < 0)
        core_raise(rc, &err);
    else {
        PyObject *view = view_wrap(v, 0), *info = object_info(&obj);
        r = view && info ? PyTuple_Pack(2, view, info) : NULL;
        Py_XDECREF(view);
        Py_XDECREF(info);
    }
    pgs_snapshot_unref(sn);
    return r;
}

/* _prefetch(key, ranges: [(lo, hi) of bytes, …]) */
static PyObject *snapshot_prefetch(PyObject *self, PyObject *args)
{
    PyObject *key, *ranges;
    struct pgs_object obj;
    struct pgs_error err = {0};
    if (!PyArg_ParseTuple(args, "OO!", &key, &PyList_Type, &ranges)) return NULL;
    pgs_snapshot *sn = find(self, key, &obj);
    int rc = 0;
    if (!sn) return NULL;
    for (Py_ssize_t i = 0; rc == 0 && i < PyList_GET_SIZE(ranges); i++) {
        unsigned long long lo, hi;
        PyObject *range = PyList_GET_ITEM(ranges, i);
        if (!PyTuple_Check(range) || !PyArg_ParseTuple(range, "KK", &lo, &hi) || PyErr_CheckSignals() < 0) {
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "a range is a pair of numbers");
            pgs_snapshot_unref(sn);
            return NULL;
        }
        CORE_BLOCKING(rc = pgs_prefetch(sn, &obj, lo, hi, &err));
    }
    pgs_snapshot_unref(sn);
    if (rc < 0) return core_raise_for(rc, &err, key);
    Py_RETURN_NONE;
}

/* _cold(key) -> (bytes that are cold, bytes that they occupy) */
static PyObject *snapshot_cold(PyObject *self, PyObject *key)
{
    struct pgs_object obj;
    struct pgs_error err = {0};
    uint64_t cold = 0, compressed = 0;
    int rc;
    pgs_snapshot *sn = find(self, key, &obj);
    if (!sn) return NULL;
    CORE_BLOCKING(rc = pgs_cold_size(sn, &obj, &cold, &compressed, &err));
    pgs_snapshot_unref(sn);
    if (rc < 0) return core_raise_for(rc, &err, key);
    return Py_BuildValue("(KK)", (unsigned long long)cold, (unsigned long long)compressed);
}

/* _find_id(id, prefix: bytes) -> key */
static PyObject *snapshot_find_id(PyObject *self, PyObject *args)
{
    pgs_snapshot *sn = use((SnapshotObject *)self);
    unsigned long long id;
    const char *p;
    Py_ssize_t n;
    char buf[PGS_MAX_KEY];
    size_t len = 0;
    struct pgs_error err = {0};
    if (!sn || !PyArg_ParseTuple(args, "Ky#", &id, &p, &n)) return NULL;
    int rc;
    pgs_snapshot_ref(sn);
    CORE_BLOCKING(rc = pgs_find_id(sn, id, p, (size_t)n, buf, &len, &err));
    pgs_snapshot_unref(sn);
    if (rc < 0) return core_raise(rc, &err);
    return PyUnicode_DecodeUTF8(buf, (Py_ssize_t)len, "surrogateescape");
}

static int diff_emit(void *ctx, const void *key, size_t len, enum pgs_change what, const struct pgs_range *ranges,
                     size_t n)
{
    PyGILState_STATE g = PyGILState_Ensure();
    PyObject *list = n ? PyList_New((Py_ssize_t)n) : Py_NewRef(Py_None);
    for (size_t i = 0; list && i < n; i++) {
        PyObject *pair = Py_BuildValue("(KK)", (unsigned long long)ranges[i].lo, (unsigned long long)ranges[i].hi);
        if (!pair)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, pair);
    }
    PyObject *item = list ? Py_BuildValue("(s#iN)", (const char *)key, (Py_ssize_t)len, (int)what, list) : NULL;
    int rc = item ? PyList_Append(ctx, item) : -1;
    Py_XDECREF(item);
    PyGILState_Release(g);
    return rc < 0 ? -PGS_ENOMEM : 0;
}

/* _diff(other) -> [(key, what, ranges or None), …] */
static PyObject *snapshot_diff(PyObject *self, PyObject *other)
{
    pgs_snapshot *a = use((SnapshotObject *)self);
    if (!a || !PyObject_TypeCheck(other, core.snapshot_type))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "diff() takes a Snapshot");
    pgs_snapshot *b = use((SnapshotObject *)other);
    PyObject *list = b ? PyList_New(0) : NULL;
    struct pgs_error err = {0};
    int rc;
    if (!list) return NULL;
    pgs_snapshot_ref(a);
    pgs_snapshot_ref(b);
    CORE_BLOCKING(rc = pgs_diff(a, b, diff_emit, list, &err));
    pgs_snapshot_unref(a);
    pgs_snapshot_unref(b);
    if (rc < 0) {
        Py_DECREF(list);
        return core_raise(rc, &err);
    }
    return list;
}

static PyObject *snapshot_close(PyObject *self, PyObject *unused)
{
    SnapshotObject *o = (SnapshotObject *)self;
    pgs_snapshot *sn = o->sn;
    (void)unused;
    o->sn = NULL;
    pgs_snapshot_unref(sn);
    Py_RETURN_NONE;
}

static PyObject *snapshot_attr(PyObject *self, void *ctx)
{
    SnapshotObject *o = (SnapshotObject *)self;
    if (ctx == (void *)3) return Py_NewRef((PyObject *)o->store);
    if (ctx == (void *)4) return PyBool_FromLong(!o->sn);
    pgs_snapshot *sn = use(o);
    if (!sn) return NULL;
    return PyLong_FromUnsignedLongLong(ctx == (void *)0   ? pgs_snapshot_version(sn)
                                       : ctx == (void *)1 ? pgs_snapshot_time_ns(sn)
                                                          : pgs_snapshot_gen(sn));
}

static PyMethodDef methods[] = {
    {"_iter", snapshot_iter, METH_VARARGS, NULL},
    {"_info", snapshot_info, METH_O, NULL},
    {"_private", snapshot_private, METH_O, NULL},
    {"_view", snapshot_view, METH_O, NULL},
    {"_prefetch", snapshot_prefetch, METH_VARARGS, NULL},
    {"_cold", snapshot_cold, METH_O, NULL},
    {"_find_id", snapshot_find_id, METH_VARARGS, NULL},
    {"_diff", snapshot_diff, METH_O, NULL},
    {"close", snapshot_close, METH_NOARGS, "Let go of the version; idempotent. Arrays handed out stay valid."},
    {0}};
static PyGetSetDef getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {"version", snapshot_attr, NULL, "the version number that this snapshot shows", (void *)0},
    {"_time_ns", snapshot_attr, NULL, NULL, (void *)1},
    {"_gen", snapshot_attr, NULL, NULL, (void *)2},
    {"_store", snapshot_attr, NULL, NULL, (void *)3},
    {"closed", snapshot_attr, NULL, "whether close() was called", (void *)4},
    {0}};
static PyMemberDef members[] = {{"__weaklistoffset__", T_PYSSIZET, offsetof(SnapshotObject, weakrefs), READONLY, NULL},
                                {"__dictoffset__", T_PYSSIZET, offsetof(SnapshotObject, dict), READONLY, NULL},
                                {0}};
static PyType_Slot slots[] = {{Py_tp_new, snapshot_new},
                              {Py_tp_dealloc, snapshot_dealloc},
                              {Py_tp_traverse, snapshot_traverse},
                              {Py_tp_clear, snapshot_clear},
                              {Py_mp_subscript, snapshot_get},
                              {Py_mp_length, snapshot_len},
                              {Py_sq_contains, snapshot_contains},
                              {Py_tp_methods, methods},
                              {Py_tp_getset, getset},
                              {Py_tp_members, members},
                              {0, NULL}};
static PyType_Spec spec = {"pagestone._core.SnapshotBase", sizeof(SnapshotObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};

int snapshot_type_init(PyObject *module)
{
    core.snapshot_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    return core.snapshot_type ? PyModule_AddObjectRef(module, "SnapshotBase", (PyObject *)core.snapshot_type) : -1;
}
