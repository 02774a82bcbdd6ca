/* Pagestone | pymod/store — the C half of pagestone.Store.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The hot paths (s[k], s[k] = v, k in s) are slots of this type; the rest of the interface is Python (pagestone/_store.py).
 */
#include "pymod/core.h"

/* StoreBase(path: bytes|None, handle: bytes|None, mode, size, durability, history_kind, history_value, timeout_ns, checksums, allow_pickle: -1|0|1, freeze_ns=0) */
static PyObject *store_new(PyTypeObject *tp, PyObject *args, PyObject *kw)
{
    PyObject *path;
    Py_buffer handle = {0};
    int mode, durability, history, checksums, allow;
    unsigned long long size, history_value, freeze = 0;
    long long timeout;
    (void)kw;
    if (!PyArg_ParseTuple(args, "Oz*iKiiKLii|K", &path, &handle, &mode, &size, &durability, &history, &history_value,
                          &timeout, &checksums, &allow, &freeze))
        return NULL;
    if (path != Py_None && !PyBytes_Check(path)) {
        PyBuffer_Release(&handle);
        return PyErr_Format(PyExc_TypeError, "path: bytes or None");
    }
    const char *name = path == Py_None ? NULL : PyBytes_AS_STRING(path);
    if (name && strlen(name) != (size_t)PyBytes_GET_SIZE(path)) {
        PyBuffer_Release(&handle);
        return PyErr_Format(PyExc_ValueError, "the path contains a NUL byte");
    }
    struct pgs_options opt = {.mode = (enum pgs_mode)mode,
                              .size = size,
                              .durability = (enum pgs_durability)durability,
                              .history = (enum pgs_history_kind)history,
                              .history_value = history_value,
                              .timeout_ns = timeout,
                              .checksums = checksums,
                              .freeze_ns = freeze,
                              .interrupted = core_interrupted};
    struct pgs_error err = {0};
    struct pgs_info info;
    pgs_store *s = NULL;
    int rc;
    CORE_BLOCKING(rc = handle.buf ? pgs_open_handle(handle.buf, (size_t)handle.len, &opt, &s, &err)
                                  : pgs_open(name, &opt, &s, &err));
    PyBuffer_Release(&handle);
    if (rc == 0) rc = pgs_store_info(s, &info, &err);
    if (rc < 0) {
        pgs_store_unref(s);
        if (rc == -PGS_ENOENT || rc == -PGS_EEXIST) {
            PyObject *cls = rc == -PGS_ENOENT ? PyExc_FileNotFoundError : PyExc_FileExistsError;
            PyObject *exc = PyObject_CallFunction(cls, "is", rc == -PGS_ENOENT ? ENOENT : EEXIST, err.text);
            if (exc) PyErr_SetObject(cls, exc);
            Py_XDECREF(exc);
            return NULL;
        }
        return core_raise(rc, &err);
    }
    StoreObject *o = (StoreObject *)tp->tp_alloc(tp, 0);
    if (!o) {
        pgs_store_unref(s);
        return NULL;
    }
    o->s = s;
    o->allow_pickle = allow < 0 ? info.owner_private : allow;
    o->read_only = info.read_only;
    return (PyObject *)o;
}

static int store_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((StoreObject *)self)->dict);
    return 0;
}

static int store_clear(PyObject *self)
{
    Py_CLEAR(((StoreObject *)self)->dict);
    return 0;
}

static void store_dealloc(PyObject *self)
{
    StoreObject *o = (StoreObject *)self;
    PyTypeObject *tp = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (o->weakrefs) PyObject_ClearWeakRefs(self);
    if (o->s) CORE_BLOCKING(pgs_store_unref(o->s));
    Py_CLEAR(o->dict);
    tp->tp_free(self);
    Py_DECREF(tp);
}

pgs_store *store_of(PyObject *self)
{
    pgs_store *s = ((StoreObject *)self)->s;
    if (!s) PyErr_SetString(core.errors[PGS_ECLOSED], "the store was closed; open it again");
    return s;
}

pgs_store *store_enter(PyObject *self)
{
    pgs_store *s = store_of(self);
    return s ? pgs_store_ref(s) : NULL;
}

/* --- the mapping -------------------------------------------------------------------------------------------------------- */

/* missing: gets what to return for a key that is not there; NULL: raise KeyError. KeyErrors of an unpickled object's own code pass. */
static PyObject *load_head(StoreObject *o, PyObject *key, int how, PyObject *missing)
{
    struct key k;
    struct pgs_object obj;
    struct pgs_error err = {0};
    pgs_snapshot *sn = NULL;
    if (key_for_reading(key, &k) < 0) {
        if (!missing || !PyErr_ExceptionMatches(PyExc_KeyError)) return NULL;
        PyErr_Clear();
        return Py_NewRef(missing);
    }
    pgs_store *s = store_of((PyObject *)o);
    if (!s) return NULL;
    int rc = pgs_snapshot_head(s, &sn, &err);
    if (rc < 0) return core_raise(rc, &err);
    rc = pgs_get(sn, k.p, (size_t)k.len, &obj, &err);
    PyObject *r = rc == -PGS_ENOENT ? (missing ? Py_NewRef(missing) : key_error(key))
                  : rc < 0          ? core_raise(rc, &err)
                                    : value_load((PyObject *)o, sn, key, &obj, how);
    pgs_snapshot_unref(sn);
    return r;
}

static PyObject *store_get(PyObject *self, PyObject *key)
{
    return load_head((StoreObject *)self, key, WANT_ARRAY_READ, NULL);
}

static PyObject *store_private(PyObject *self, PyObject *key)
{
    return load_head((StoreObject *)self, key, WANT_PRIVATE, NULL);
}

static PyObject *store_get_default(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"key", "default", NULL};
    PyObject *key, *d = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "O|O:get", names, &key, &d)) return NULL;
    return load_head((StoreObject *)self, key, WANT_ARRAY_READ, d);
}

static int store_contains(PyObject *self, PyObject *key)
{
    struct key k;
    struct pgs_object obj;
    struct pgs_error err = {0};
    pgs_snapshot *sn = NULL;
    if (key_for_reading(key, &k) < 0) {
        if (PyErr_ExceptionMatches(PyExc_KeyError)) return PyErr_Clear(), 0;
        return -1;
    }
    pgs_store *s = store_of(self);
    if (!s) return -1;
    int rc = pgs_snapshot_head(s, &sn, &err);
    if (rc == 0) {
        rc = pgs_get(sn, k.p, (size_t)k.len, &obj, &err);
        pgs_snapshot_unref(sn);
    }
    return rc == -PGS_ENOENT ? 0 : rc < 0 ? core_raise_int(rc, &err) : 1;
}

static Py_ssize_t store_len(PyObject *self)
{
    struct pgs_error err = {0};
    pgs_snapshot *sn = NULL;
    pgs_store *s = store_of(self);
    if (!s) return -1;
    int rc = pgs_snapshot_head(s, &sn, &err);
    if (rc < 0) return core_raise_int(rc, &err);
    Py_ssize_t n = (Py_ssize_t)pgs_snapshot_count(sn);
    pgs_snapshot_unref(sn);
    return n;
}

/* One committed transaction. A blind write or delete conflicts with nobody: whoever comes later wins, so a conflict is tried again. */
static int store_set(PyObject *self, PyObject *key, PyObject *value)
{
    struct key k;
    if ((value ? key_for_writing(key, &k) : key_for_reading(key, &k)) < 0) return -1;
    for (;;) {
        struct pgs_error err = {0};
        pgs_txn *t = NULL;
        uint64_t version;
        pgs_store *s = store_of(self);
        if (!s) return -1;
        int rc = pgs_begin(s, PGS_ISO_SNAPSHOT, &t, &err);
        if (rc < 0) return core_raise_int(rc, &err);
        if (value) {
            if (value_store(self, t, &k, value, true) < 0) {
                CORE_BLOCKING(pgs_txn_unref(t));
                return -1;
            }
        } else
            CORE_BLOCKING(rc = pgs_txn_delete(t, k.p, (size_t)k.len, &err));
        if (rc == 0) CORE_BLOCKING(rc = pgs_txn_commit(t, NULL, &version, &err));
        CORE_BLOCKING(pgs_txn_unref(t));
        if (rc == -PGS_ECONFLICT && PyErr_CheckSignals() == 0) continue;
        if (rc == -PGS_ENOENT) return key_error(key), -1;
        return rc < 0 ? core_raise_int(rc, &err) : 0;
    }
}

/* --- versions and upkeep --------------------------------------------------------------------------------------------------- */

static PyObject *store_versions(PyObject *self, PyObject *unused)
{
    uint64_t *list = NULL;
    size_t n = 0;
    struct pgs_error err = {0};
    int rc;
    (void)unused;
    pgs_store *s = store_enter(self);
    if (!s) return NULL;
    CORE_BLOCKING(rc = pgs_versions(s, &list, &n, &err));
    pgs_store_unref(s);
    if (rc < 0) return core_raise(rc, &err);
    PyObject *r = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; r && i < n; i++) {
        PyObject *v = PyLong_FromUnsignedLongLong(list[i]);
        if (v)
            PyList_SET_ITEM(r, (Py_ssize_t)i, v);
        else
            Py_CLEAR(r);
    }
    pgs_free(list);
    return r;
}

static PyObject *store_tag(PyObject *self, PyObject *args)
{
    const char *name;
    Py_ssize_t n;
    long long version;
    struct pgs_error err = {0};
    int rc;
    if (!PyArg_ParseTuple(args, "s#L", &name, &n, &version)) return NULL;
    pgs_store *s = store_enter(self);
    if (!s) return NULL;
    CORE_BLOCKING(rc = pgs_tag(s, name, (size_t)n, version, &err));
    pgs_store_unref(s);
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

static PyObject *store_untag(PyObject *self, PyObject *args)
{
    const char *name;
    Py_ssize_t n;
    struct pgs_error err = {0};
    int rc;
    if (!PyArg_ParseTuple(args, "s#", &name, &n)) return NULL;
    pgs_store *s = store_enter(self);
    if (!s) return NULL;
    CORE_BLOCKING(rc = pgs_untag(s, name, (size_t)n, &err));
    pgs_store_unref(s);
    if (rc == -PGS_ENOENT) {
        PyObject *k = PyUnicode_FromStringAndSize(name, n);
        if (k) key_error(k);
        Py_XDECREF(k);
        return NULL;
    }
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

static PyObject *store_tags(PyObject *self, PyObject *unused)
{
    struct pgs_tag_info *list = NULL;
    size_t n = 0;
    struct pgs_error err = {0};
    int rc;
    (void)unused;
    pgs_store *s = store_enter(self);
    if (!s) return NULL;
    CORE_BLOCKING(rc = pgs_tags(s, &list, &n, &err));
    pgs_store_unref(s);
    if (rc < 0) return core_raise(rc, &err);
    PyObject *d = PyDict_New();
    for (size_t i = 0; d && i < n; i++) {
        PyObject *k = PyUnicode_DecodeUTF8(list[i].name, (Py_ssize_t)list[i].len, "surrogateescape"),
                 *v = PyLong_FromUnsignedLongLong(list[i].version);
        if (!k || !v || PyDict_SetItem(d, k, v) < 0) Py_CLEAR(d);
        Py_XDECREF(k);
        Py_XDECREF(v);
    }
    pgs_free(list);
    return d;
}

static PyObject *text_of(const char *p) /* whatever bytes a C program left */
{
    return p ? PyUnicode_DecodeUTF8(p, (Py_ssize_t)strlen(p), "replace") : Py_NewRef(Py_None);
}

struct log_ctx {
    PyObject *list;
    long long limit;
};

static int log_emit(void *ctx_, const struct pgs_commit_info *c)
{
    struct log_ctx *ctx = ctx_;
    PyGILState_STATE g = PyGILState_Ensure();
    PyObject *keys = PyTuple_New((Py_ssize_t)c->n_keys);
    const char *p = c->keys;
    for (uint64_t i = 0; keys && i < c->n_keys; i++) {
        PyObject *k = PyUnicode_DecodeUTF8(p, (Py_ssize_t)strlen(p), "surrogateescape");
        if (!k)
            Py_CLEAR(keys);
        else
            PyTuple_SET_ITEM(keys, (Py_ssize_t)i, k);
        p += strlen(p) + 1;
    }
    PyObject *item = keys ? Py_BuildValue("(KKKNNNKi)", (unsigned long long)c->version, (unsigned long long)c->time_ns,
                                          (unsigned long long)c->pid, text_of(c->command), text_of(c->message), keys,
                                          (unsigned long long)c->bytes_written, c->keys_truncated)
                          : NULL;
    int rc = item ? PyList_Append(ctx->list, item) : -1;
    Py_XDECREF(item);
    if (rc == 0 && ctx->limit >= 0 && PyList_GET_SIZE(ctx->list) >= ctx->limit) rc = 1;
    PyGILState_Release(g);
    return rc;
}

/* _log(before, limit) -> [(version, time_ns, pid, command, message, keys, bytes_written, truncated), …], newest first */
static PyObject *store_log(PyObject *self, PyObject *args)
{
    unsigned long long before;
    struct log_ctx ctx;
    struct pgs_error err = {0};
    int rc;
    if (!PyArg_ParseTuple(args, "KL", &before, &ctx.limit) || !(ctx.list = PyList_New(0))) return NULL;
    pgs_store *s = store_enter(self);
    if (!s) return Py_DECREF(ctx.list), NULL;
    CORE_BLOCKING(rc = pgs_log(s, before, log_emit, &ctx, &err));
    pgs_store_unref(s);
    if (rc < 0 || PyErr_Occurred()) {
        Py_DECREF(ctx.list);
        return core_raise(rc, &err);
    }
    return ctx.list;
}

static PyObject *store_wait(PyObject *self, PyObject *args)
{
    unsigned long long after;
    const char *key;
    Py_ssize_t n;
    long long timeout;
    uint64_t version = 0;
    struct pgs_error err = {0};
    int rc;
    if (!PyArg_ParseTuple(args, "Kz#L", &after, &key, &n, &timeout)) return NULL;
    pgs_store *s = store_enter(self);
    if (!s) return NULL;
    CORE_BLOCKING(rc = pgs_wait(s, after, key, (size_t)n, timeout, &version, &err));
    pgs_store_unref(s);
    if (rc == -PGS_ETIMEDOUT) Py_RETURN_NONE;
    return rc < 0 ? core_raise(rc, &err) : PyLong_FromUnsignedLongLong(version);
}

static PyObject *store_stat(PyObject *self, PyObject *unused)
{
    struct pgs_stat st;
    struct pgs_error err = {0};
    int rc;
    (void)unused;
    pgs_store *s = store_enter(self);
    if (!s) return NULL;
    CORE_BLOCKING(rc = pgs_stat(s, &st, &err));
    pgs_store_unref(s);
    if (rc < 0) return core_raise(rc, &err);
#define U(x) #x, (unsigned long long)st.x
    return Py_BuildValue("{sKsKsKsKsKsKsKsKsKsKsKsKsKsK}", U(live), U(history), U(pinned), U(free), U(resident),
                         U(compressed), U(leaked), U(objects), U(versions), U(bytes_copied), U(bytes_shared), U(quota),
                         U(meta), U(file_size));
#undef U
}

static int reader_emit(void *list, const struct pgs_reader *r)
{
    PyGILState_STATE g = PyGILState_Ensure();
    PyObject *versions = PyTuple_New((Py_ssize_t)r->n_versions);
    for (size_t i = 0; versions && i < r->n_versions; i++)
        PyTuple_SET_ITEM(versions, (Py_ssize_t)i, PyLong_FromUnsignedLongLong(r->versions[i]));
    PyObject *item = versions ? Py_BuildValue("(KNKNK)", (unsigned long long)r->pid, text_of(r->command),
                                              (unsigned long long)r->since_ns, versions, (unsigned long long)r->bytes)
                              : NULL;
    int rc = item ? PyList_Append(list, item) : -1;
    Py_XDECREF(item);
    PyGILState_Release(g);
    return rc;
}

static PyObject *store_readers(PyObject *self, PyObject *unused)
{
    struct pgs_error err = {0};
    PyObject *list = PyList_New(0);
    int rc;
    (void)unused;
    if (!list) return NULL;
    pgs_store *s = store_enter(self);
    if (!s) return Py_DECREF(list), NULL;
    CORE_BLOCKING(rc = pgs_readers(s, reader_emit, list, &err));
    pgs_store_unref(s);
    if (rc < 0 || PyErr_Occurred()) {
        Py_DECREF(list);
        return core_raise(rc, &err);
    }
    return list;
}

static int check_emit(void *list, const char *object, const char *problem)
{
    PyGILState_STATE g = PyGILState_Ensure();
    PyObject *o = text_of(object), *p = text_of(problem);
    PyObject *item = o && p ? PyTuple_Pack(2, o, p) : NULL;
    int rc = item ? PyList_Append(list, item) : -1;
    Py_XDECREF(o);
    Py_XDECREF(p);
    Py_XDECREF(item);
    PyGILState_Release(g);
    return rc;
}

static PyObject *store_check(PyObject *self, PyObject *args)
{
    int data;
    struct pgs_check_report rep = {0};
    struct pgs_error err = {0};
    PyObject *list;
    int rc;
    if (!PyArg_ParseTuple(args, "p", &data) || !(list = PyList_New(0))) return NULL;
    pgs_store *s = store_enter(self);
    if (!s) return Py_DECREF(list), NULL;
    CORE_BLOCKING(rc = pgs_check(s, data, check_emit, list, &rep, &err));
    pgs_store_unref(s);
    if (rc < 0 || PyErr_Occurred()) {
        Py_DECREF(list);
        return core_raise(rc, &err);
    }
    return Py_BuildValue("(NKKKKK)", list, (unsigned long long)rep.n_objects, (unsigned long long)rep.n_versions,
                         (unsigned long long)rep.n_pages, (unsigned long long)rep.n_pages_unverified,
                         (unsigned long long)rep.n_leaked_pages);
}

static PyObject *simple(PyObject *self, int (*fn)(pgs_store *, struct pgs_error *))
{
    struct pgs_error err = {0};
    int rc;
    pgs_store *s = store_enter(self);
    if (!s) return NULL;
    CORE_BLOCKING(rc = fn(s, &err));
    pgs_store_unref(s);
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

static PyObject *store_gc(PyObject *self, PyObject *unused)
{
    return (void)unused, simple(self, pgs_gc);
}
static PyObject *store_compact(PyObject *self, PyObject *unused)
{
    return (void)unused, simple(self, pgs_compact);
}
/* _freeze(key, thaw: bool) -> bytes saved, or made raw */
static PyObject *store_freeze(PyObject *self, PyObject *args)
{
    PyObject *key;
    struct key k;
    struct pgs_error err = {0};
    uint64_t bytes = 0;
    int thaw, rc;
    if (!PyArg_ParseTuple(args, "Op", &key, &thaw) || key_for_reading(key, &k) < 0) return NULL;
    pgs_store *s = store_enter(self);
    if (!s) return NULL;
    CORE_BLOCKING(rc = (thaw ? pgs_thaw : pgs_freeze)(s, k.p, (size_t)k.len, &bytes, &err));
    pgs_store_unref(s);
    if (rc == -PGS_ENOENT) return key_error(key);
    return rc < 0 ? core_raise_for(rc, &err, key) : PyLong_FromUnsignedLongLong(bytes);
}

static PyObject *store_close(PyObject *self, PyObject *unused)
{
    StoreObject *o = (StoreObject *)self;
    pgs_store *s = o->s;
    struct pgs_error err = {0};
    int rc = 0;
    (void)unused;
    o->s = NULL; /* calls in other threads hold references: the last of them lets the session go */
    if (s) CORE_BLOCKING(rc = pgs_close(s, &err); pgs_store_unref(s));
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

static PyObject *store_lease(PyObject *self, PyObject *args)
{
    unsigned long long gen, ns;
    struct pgs_error err = {0};
    int rc;
    if (!PyArg_ParseTuple(args, "KK", &gen, &ns)) return NULL;
    pgs_store *s = store_enter(self);
    if (!s) return NULL;
    CORE_BLOCKING(rc = pgs_lease(s, gen, ns, &err));
    pgs_store_unref(s);
    if (rc < 0) return core_raise(rc, &err);
    Py_RETURN_NONE;
}

static PyObject *store_handle(PyObject *self, PyObject *unused)
{
    char buf[8192];
    (void)unused;
    pgs_store *s = store_of(self);
    if (!s) return NULL;
    size_t n = pgs_store_handle(s, buf, sizeof(buf));
    if (n > sizeof(buf)) return PyErr_SetString(PyExc_ValueError, "the store's path is too long for a handle"), NULL;
    return PyBytes_FromStringAndSize(buf, (Py_ssize_t)n);
}

static PyObject *store_info(PyObject *self, PyObject *unused)
{
    struct pgs_info i;
    struct pgs_error err = {0};
    (void)unused;
    pgs_store *s = store_of(self);
    if (!s) return NULL;
    int rc = pgs_store_info(s, &i, &err);
    if (rc < 0) return core_raise(rc, &err);
    return Py_BuildValue("{sNsy#sisisisKsisisKsisssK}", "path",
                         i.path ? PyUnicode_DecodeFSDefault(i.path) : Py_NewRef(Py_None), "uuid", (const char *)i.uuid,
                         (Py_ssize_t)16, "mode", (int)i.mode, "read_only", i.read_only, "owner_private",
                         i.owner_private, "quota", (unsigned long long)i.quota, "durability", (int)i.durability,
                         "history", (int)i.history, "history_value", (unsigned long long)i.history_value, "checksums",
                         i.checksums, "fs", i.fs, "freeze_ns", (unsigned long long)i.freeze_ns);
}

static PyObject *store_version(PyObject *self, void *ctx)
{
    (void)ctx;
    struct pgs_error err = {0};
    pgs_snapshot *sn = NULL;
    pgs_store *s = store_of(self);
    if (!s) return NULL;
    int rc = pgs_snapshot_head(s, &sn, &err);
    if (rc < 0) return core_raise(rc, &err);
    PyObject *r = PyLong_FromUnsignedLongLong(pgs_snapshot_version(sn));
    pgs_snapshot_unref(sn);
    return r;
}

static PyObject *store_allow_pickle(PyObject *self, void *ctx)
{
    (void)ctx;
    return PyBool_FromLong(((StoreObject *)self)->allow_pickle);
}

static PyMethodDef methods[] = {{"get", (PyCFunction)(void (*)(void))store_get_default, METH_VARARGS | METH_KEYWORDS,
                                 "get(key, default=None)\n--\n\nThe value of `key`, or `default` if there is none."},
                                {"_private", store_private, METH_O, NULL},
                                {"_versions", store_versions, METH_NOARGS, NULL},
                                {"_tag", store_tag, METH_VARARGS, NULL},
                                {"_untag", store_untag, METH_VARARGS, NULL},
                                {"_tags", store_tags, METH_NOARGS, NULL},
                                {"_log", store_log, METH_VARARGS, NULL},
                                {"_wait", store_wait, METH_VARARGS, NULL},
                                {"_stat", store_stat, METH_NOARGS, NULL},
                                {"_readers", store_readers, METH_NOARGS, NULL},
                                {"_check", store_check, METH_VARARGS, NULL},
                                {"_gc", store_gc, METH_NOARGS, NULL},
                                {"_compact", store_compact, METH_NOARGS, NULL},
                                {"_freeze", store_freeze, METH_VARARGS, NULL},
                                {"_close", store_close, METH_NOARGS, NULL},
                                {"_lease", store_lease, METH_VARARGS, NULL},
                                {"_handle", store_handle, METH_NOARGS, NULL},
                                {"_info", store_info, METH_NOARGS, NULL},
                                {0}};
static PyGetSetDef getset[] = {{"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
                               {"version", store_version, NULL, "number of the newest version", NULL},
                               {"allow_pickle", store_allow_pickle, NULL, "whether pickled objects are loaded", NULL},
                               {0}};
static PyMemberDef members[] = {{"__weaklistoffset__", T_PYSSIZET, offsetof(StoreObject, weakrefs), READONLY, NULL},
                                {"__dictoffset__", T_PYSSIZET, offsetof(StoreObject, dict), READONLY, NULL},
                                {0}};
static PyType_Slot slots[] = {
    {Py_tp_new, store_new},     {Py_tp_dealloc, store_dealloc},   {Py_tp_traverse, store_traverse},
    {Py_tp_clear, store_clear}, {Py_mp_subscript, store_get},     {Py_mp_ass_subscript, store_set},
    {Py_mp_length, store_len},  {Py_sq_contains, store_contains}, {Py_tp_methods, methods},
    {Py_tp_getset, getset},     {Py_tp_members, members},         {0, NULL}};
static PyType_Spec spec = {"pagestone._core.StoreBase", sizeof(StoreObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};

int store_type_init(PyObject *module)
{
    core.store_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    return core.store_type ? PyModule_AddObjectRef(module, "StoreBase", (PyObject *)core.store_type) : -1;
}
