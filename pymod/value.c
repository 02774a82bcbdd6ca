/* Pagestone | pymod/value — what a Python value becomes in the store, and back.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     exact ndarray, memmap, Array, no objects   array       C or F order kept, else made C
 *     bytes-like: bytes, bytearray, memoryview,  bytes
 *     mmap, array.array, …
 *     plain values (plain.c)                     plain       never unpickled
 *     anything else                              pickle      protocol 5, buffers out of band
 *
 * A pickled content: u64 head_len, u32 n_buffers, u32 0, n × (u64 offset, u64 len), stream … head_len; then the buffers, each at a multiple of 64 bytes. The library verifies
 * the first head_len bytes before it hands them out (kind PICKLE), so a flipped bit never runs code.
 */
#include "pymod/core.h"

#define PICKLE_ALIGN 64u
#define SMALL 65536u /* below this a library call is not worth giving the GIL away */

/* --- reading --------------------------------------------------------------------------------------------------------------- */

static PyObject *slice_view(ViewObject *view, uint64_t off, uint64_t len)
{
    PyObject *whole = PyMemoryView_FromObject((PyObject *)view);
    PyObject *lo = PyLong_FromUnsignedLongLong(off), *hi = PyLong_FromUnsignedLongLong(off + len);
    PyObject *s = lo && hi ? PySlice_New(lo, hi, NULL) : NULL;
    PyObject *r = whole && s ? PyObject_GetItem(whole, s) : NULL;
    Py_XDECREF(whole);
    Py_XDECREF(lo);
    Py_XDECREF(hi);
    Py_XDECREF(s);
    return r;
}

static PyObject *bad_pickle(PyObject *key)
{
    PyErr_Format(core.errors[PGS_ECORRUPT], "%R: the pickled object's header is malformed: run check()", key);
    return NULL;
}

static PyObject *load_pickle(StoreObject *store, const char *p, uint64_t n, ViewObject *view, PyObject *key)
{
    if (!store->allow_pickle) {
        PyErr_Format(core.pickle_refused,
                     "%R is a pickled object and this store may be written by others: loading it could run their code; "
                     "if you trust them, open with allow_pickle=True",
                     key);
        return NULL;
    }
    uint64_t head;
    uint32_t n_buf;
    if (n < 16) return bad_pickle(key);
    memcpy(&head, p, 8);
    memcpy(&n_buf, p + 8, 4);
    uint64_t stream = 16 + 16 * (uint64_t)n_buf;
    if (head > n || stream > head || (n_buf && !view)) return bad_pickle(key);
    PyObject *buffers = PyList_New((Py_ssize_t)n_buf);
    for (uint32_t i = 0; buffers && i < n_buf; i++) {
        uint64_t where[2];
        memcpy(where, p + 16 + 16 * (uint64_t)i, 16);
        PyObject *b = where[0] > n || where[1] > n - where[0] ? bad_pickle(key) : slice_view(view, where[0], where[1]);
        if (!b)
            Py_CLEAR(buffers);
        else
            PyList_SET_ITEM(buffers, (Py_ssize_t)i, b);
    }
    if (!buffers) return NULL;
    PyObject *mem = PyMemoryView_FromMemory((char *)(uintptr_t)(p + stream), (Py_ssize_t)(head - stream), PyBUF_READ);
    PyObject *r = mem ? PyObject_CallFunctionObjArgs(core.pickle_load, mem, buffers, NULL) : NULL;
    Py_XDECREF(mem);
    Py_DECREF(buffers);
    return r;
}

bool value_is_inline(const struct pgs_object *obj)
{
    uint32_t n_buf = 0;
    if (!obj->inline_data || obj->kind == PGS_KIND_ARRAY) return false;
    if (obj->kind == PGS_KIND_PICKLE && obj->n_bytes >= 16) memcpy(&n_buf, (const char *)obj->inline_data + 8, 4);
    return n_buf == 0;
}

static PyObject *load_bytes(const void *data, uint64_t n)
{
    if (n < SMALL) return PyBytes_FromStringAndSize(data, (Py_ssize_t)n);
    PyObject *b = n > PY_SSIZE_T_MAX ? PyErr_NoMemory() : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n);
    if (b) CORE_BLOCKING(memcpy(PyBytes_AS_STRING(b), data, (size_t)n));
    return b;
}

PyObject *value_decode(PyObject *store, const struct pgs_object *obj, const void *data, ViewObject *view, PyObject *key)
{
    switch (obj->kind) {
    case PGS_KIND_BYTES:
        return load_bytes(data, obj->n_bytes);
    case PGS_KIND_PLAIN:
        return plain_decode(data, (size_t)obj->n_bytes);
    case PGS_KIND_PICKLE:
        return load_pickle((StoreObject *)store, data, obj->n_bytes, view, key);
    default:
        PyErr_Format(core.errors[PGS_EFORMAT], "%R has kind %d, which this version does not know: upgrade pagestone",
                     key, (int)obj->kind);
        return NULL;
    }
}

PyObject *value_load(PyObject *store, pgs_snapshot *sn, PyObject *key, const struct pgs_object *obj, int how)
{
    struct pgs_error err = {0};
    bool array = obj->kind == PGS_KIND_ARRAY;
    if (how == WANT_PRIVATE && !array)
        return PyErr_Format(PyExc_TypeError,
                            "%R is no array: private() is for arrays; s[key] already gives a fresh object", key),
               NULL;
    if (value_is_inline(obj)) return value_decode(store, obj, obj->inline_data, NULL, key);
    pgs_view *v = NULL;
    int rc;
    if (how == WANT_PRIVATE)
        CORE_BLOCKING(rc = pgs_view_private(sn, obj, &v, &err));
    else if (array && obj->n_bytes < SMALL)
        rc = pgs_view_open(sn, obj, 0, &v, &err);
    else
        CORE_BLOCKING(rc = pgs_view_open(sn, obj, 0, &v, &err));
    if (rc < 0) return core_raise_for(rc, &err, key);
    ViewObject *view = (ViewObject *)view_wrap(v, how == WANT_PRIVATE);
    if (!view) return NULL;
    PyObject *r = how == WANT_PRIVATE ? array_writable(&obj->type, view, pgs_view_size(view->v), key)
                  : array             ? array_make(store, key, obj, view, sn)
                                      : value_decode(store, obj, pgs_view_data(v), view, key);
    Py_DECREF(view);
    return r;
}

PyObject *object_info(const struct pgs_object *obj)
{
    static const char *const kinds[] = {"?", "array", "bytes", "plain", "pickle", "dir"};
    PyObject *shape = NULL, *dtype = NULL;
    if (obj->kind == PGS_KIND_ARRAY) {
        shape = PyTuple_New((Py_ssize_t)obj->type.ndim);
        for (uint32_t i = 0; shape && i < obj->type.ndim; i++)
            PyTuple_SET_ITEM(shape, (Py_ssize_t)i, PyLong_FromLongLong(obj->type.shape[i]));
        dtype = (PyObject *)dtype_from(obj->type.dtype, obj->type.dtype_len);
        if (!shape || !dtype) {
            Py_XDECREF(shape);
            Py_XDECREF(dtype);
            return NULL;
        }
    }
    unsigned k = (unsigned)obj->kind < sizeof(kinds) / sizeof(kinds[0]) ? (unsigned)obj->kind : 0;
    PyObject *r = Py_BuildValue("{sssKsKsKsKsOsOsC}", "kind", kinds[k], "id", (unsigned long long)obj->id, "version",
                                (unsigned long long)obj->version, "nbytes", (unsigned long long)obj->n_bytes, "stored",
                                (unsigned long long)obj->n_stored, "shape", shape ? shape : Py_None, "dtype",
                                dtype ? dtype : Py_None, "order", obj->type.order ? obj->type.order : 'C');
    Py_XDECREF(shape);
    Py_XDECREF(dtype);
    return r;
}

/* --- writing ------------------------------------------------------------------------------------------------------------------ */

static int put(pgs_txn *t, const struct key *k, enum pgs_kind kind, const struct pgs_type *type,
               const struct pgs_part *parts, size_t n)
{
    struct pgs_error err = {0};
    int rc;
    CORE_BLOCKING(rc = pgs_txn_put(t, k->p, (size_t)k->len, kind, type, parts, n, &err));
    return rc < 0 ? core_raise_int(rc, &err) : 0;
}

static bool same_store(PyObject *a, PyObject *b)
{
    struct pgs_info x, y;
    if (a == b) return true;
    if (!((StoreObject *)a)->s || !((StoreObject *)b)->s) return false;
    return pgs_store_info(((StoreObject *)a)->s, &x, NULL) == 0 &&
           pgs_store_info(((StoreObject *)b)->s, &y, NULL) == 0 && !memcmp(x.uuid, y.uuid, 16);
}

/* An Array that shows a whole object of the same store shares its pages: 1 done, 0 not the case, -1 error. */
static int share_pages(PyObject *store, pgs_txn *t, const struct key *k, PyArrayObject *a, const struct pgs_type *type)
{
    ProvObject *p = array_check((PyObject *)a) ? array_prov((PyObject *)a) : NULL;
    if (!p || PyArray_BYTES(a) != p->addr || (uint64_t)PyArray_NBYTES(a) != p->n_bytes || p->n_bytes < SMALL ||
        !same_store(store, p->store))
        return 0;
    if (!PyArray_IS_C_CONTIGUOUS(a) && !PyArray_IS_F_CONTIGUOUS(a)) return 0;
    struct key from;
    struct pgs_error err = {0};
    pgs_snapshot *sn = NULL;
    if (!PyUnicode_Check(p->key) || !(from.p = PyUnicode_AsUTF8AndSize(p->key, &from.len))) return PyErr_Clear(), 0;
    struct pgs_object obj;
    int rc;
    pgs_store *s = store_enter(store);
    if (!s) return -1;
    CORE_BLOCKING(rc = pgs_snapshot_gen_open(s, pgs_view_gen(p->view->v), &sn, NULL));
    pgs_store_unref(s);
    if (rc < 0) return 0;
    rc = pgs_get(sn, from.p, (size_t)from.len, &obj, NULL);
    if (rc == 0 && obj.id == p->id) {
        CORE_BLOCKING(rc = pgs_txn_copy(t, sn, from.p, (size_t)from.len, k->p, (size_t)k->len, type, &err));
        rc = rc < 0 ? core_raise_int(rc, &err) : 1;
    } else
        rc = 0;
    pgs_snapshot_unref(sn);
    return rc;
}

/* A strided array goes straight into the store's own memory: one copy instead of two. Such an array cannot change its size before the commit. */
static int put_strided(pgs_txn *t, const struct key *k, PyArrayObject *a, const struct pgs_type *type)
{
    struct pgs_error err = {0};
    pgs_view *v = NULL;
    int rc;
    CORE_BLOCKING(rc = pgs_txn_replace(t, k->p, (size_t)k->len, type, &v, &err));
    if (rc < 0) return core_raise_int(rc, &err);
    ViewObject *view = (ViewObject *)view_wrap(v, 1);
    if (!view) return -1;
    PyArray_Descr *d = PyArray_DESCR(a);
    Py_INCREF(d);
    PyObject *dst = PyArray_NewFromDescr(&PyArray_Type, d, PyArray_NDIM(a), PyArray_DIMS(a), NULL, pgs_view_data(v),
                                         NPY_ARRAY_WRITEABLE, NULL);
    rc = dst ? PyArray_CopyInto((PyArrayObject *)dst, a) : -1;
    Py_XDECREF(dst);
    Py_DECREF(view);
    return rc;
}

static int put_array(PyObject *store, pgs_txn *t, const struct key *k, PyArrayObject *a, bool last)
{
    struct pgs_type type = {0};
    PyObject *desc = NULL;
    bool f = PyArray_IS_F_CONTIGUOUS(a) && !PyArray_IS_C_CONTIGUOUS(a);
    if (type_of(PyArray_DESCR(a), PyArray_NDIM(a), PyArray_DIMS(a), f ? 'F' : 'C', &type, &desc) < 0) return -1;
    int rc = share_pages(store, t, k, a, &type);
    if (rc != 0) {
        Py_DECREF(desc);
        return rc < 0 ? -1 : 0;
    }
    uint64_t n = (uint64_t)PyArray_NBYTES(a);
    if (last && !PyArray_IS_C_CONTIGUOUS(a) && !f && n >= (1u << 20))
        rc = put_strided(t, k, a, &type);
    else {
        PyArrayObject *dense =
            f ? (PyArrayObject *)Py_NewRef((PyObject *)a) : (PyArrayObject *)PyArray_GETCONTIGUOUS(a);
        struct pgs_part part = {dense ? PyArray_BYTES(dense) : NULL, n};
        rc = dense ? put(t, k, PGS_KIND_ARRAY, &type, &part, 1) : -1;
        Py_XDECREF(dense);
    }
    Py_DECREF(desc);
    return rc;
}

static int put_bytes(pgs_txn *t, const struct key *k, PyObject *value)
{
    PyObject *copy = NULL;
    Py_buffer b;
    if (PyObject_GetBuffer(value, &b, PyBUF_SIMPLE) < 0) { /* not contiguous */
        PyErr_Clear();
        if (!(copy = PyBytes_FromObject(value)) || PyObject_GetBuffer(copy, &b, PyBUF_SIMPLE) < 0) {
            Py_XDECREF(copy);
            return -1;
        }
    }
    struct pgs_part part = {b.buf, (size_t)b.len};
    int rc = put(t, k, PGS_KIND_BYTES, NULL, &part, 1);
    PyBuffer_Release(&b);
    Py_XDECREF(copy);
    return rc;
}

/* pickle_dump gives (stream, [buffer, …]); lay them out and put. */
static int put_pickle(pgs_txn *t, const struct key *k, PyObject *value)
{
    PyObject *pair = PyObject_CallFunctionObjArgs(core.pickle_dump, value, NULL);
    if (!pair) return -1;
    PyObject *stream = PyTuple_GET_ITEM(pair, 0), *list = PyTuple_GET_ITEM(pair, 1); /* _pickle.dump's promise */
    Py_ssize_t n = PyList_GET_SIZE(list), n_open = 0;
    uint64_t head = 16 + 16 * (uint64_t)n + (uint64_t)PyBytes_GET_SIZE(stream), at = head;
    Py_buffer *bufs = PyMem_Calloc((size_t)n + 1, sizeof(*bufs));
    struct pgs_part *parts = PyMem_Calloc(2 * (size_t)n + 2, sizeof(*parts));
    char *table = PyMem_Calloc(1, 16 + 16 * (size_t)n);
    int rc = -1;
    if (!bufs || !parts || !table) {
        PyErr_NoMemory();
        goto out;
    }
    size_t np = 0;
    uint32_t n32 = (uint32_t)n;
    memcpy(table, &head, 8);
    memcpy(table + 8, &n32, 4);
    parts[np++] = (struct pgs_part){table, 16 + 16 * (size_t)n};
    parts[np++] = (struct pgs_part){PyBytes_AS_STRING(stream), (size_t)PyBytes_GET_SIZE(stream)};
    for (Py_ssize_t i = 0; i < n; i++) {
        if (PyObject_GetBuffer(PyList_GET_ITEM(list, i), &bufs[i], PyBUF_ANY_CONTIGUOUS) < 0) goto out;
        n_open++;
        uint64_t pad = (PICKLE_ALIGN - at % PICKLE_ALIGN) % PICKLE_ALIGN, where[2] = {at + pad, (uint64_t)bufs[i].len};
        memcpy(table + 16 + 16 * i, where, 16);
        parts[np++] = (struct pgs_part){NULL, pad};
        parts[np++] = (struct pgs_part){bufs[i].buf, (size_t)bufs[i].len};
        at = where[0] + where[1];
    }
    rc = put(t, k, PGS_KIND_PICKLE, NULL, parts, np);
out:
    for (Py_ssize_t i = 0; i < n_open; i++) PyBuffer_Release(&bufs[i]);
    PyMem_Free(bufs);
    PyMem_Free(parts);
    PyMem_Free(table);
    Py_DECREF(pair);
    return rc;
}

static bool is_array(PyObject *v)
{
    return PyArray_Check(v) && !PyDataType_REFCHK(PyArray_DESCR((PyArrayObject *)v)) &&
           (PyArray_CheckExact(v) || array_check(v) || (PyObject *)Py_TYPE(v) == core.memmap_type);
}

/* Whatever exports a buffer; but NumPy's arrays and scalars do, too, and subclasses of bytes may carry more than bytes. */
static bool is_bytes_like(PyObject *v)
{
    if (PyBytes_CheckExact(v) || PyByteArray_CheckExact(v)) return true;
    return PyObject_CheckBuffer(v) && !PyBytes_Check(v) && !PyByteArray_Check(v) && !PyArray_Check(v) &&
           !PyArray_CheckScalar(v);
}

int value_store(PyObject *store, pgs_txn *t, const struct key *k, PyObject *value, bool last)
{
    if (is_array(value)) return put_array(store, t, k, (PyArrayObject *)value, last);
    if (is_bytes_like(value)) return put_bytes(t, k, value);
    PyObject *plain = NULL;
    int rc = plain_encode(value, &plain);
    if (rc < 0) return -1;
    if (rc == 0) return put_pickle(t, k, value);
    struct pgs_part part = {PyBytes_AS_STRING(plain), (size_t)PyBytes_GET_SIZE(plain)};
    rc = put(t, k, PGS_KIND_PLAIN, NULL, &part, 1);
    Py_DECREF(plain);
    return rc;
}
