/* Pagestone | pymod/core — what the files of the Python module share.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The module translates: Python objects to bytes and types, errors to exceptions, handles to objects. It holds no page, tree, version or conflict logic:
 * that is libshm's, reached through pagestone.h only.
 *
 *   I1  The GIL is released around every library call that may wait or copy much, and around every call on a transaction: another thread may be
 *       inside it, holding its mutex and asking for the GIL to look for signals. Only the read path of stores and snapshots, which waits for nobody, keeps it.
 *   I2  A View object owns a pgs_view; arrays and memoryviews over store memory keep it alive as their base.
 *   I3  One module state per process: sub-interpreters are refused at import.
 */
#ifndef PAGESTONE_PYMOD_CORE_H
#define PAGESTONE_PYMOD_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <structmember.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL pagestone_ARRAY_API
#ifndef PAGESTONE_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "libshm/include/pagestone.h"

/* NumPy 2 made the descriptor opaque; 1.x headers lack the accessor. */
#if NPY_ABI_VERSION < 0x02000000
#define PyDataType_ELSIZE(d) ((d)->elsize)
#endif

#if PY_VERSION_HEX < 0x030A0000 /* 3.9 */
static inline PyObject *Py_NewRef(PyObject *o)
{
    Py_INCREF(o);
    return o;
}
static inline int PyModule_AddObjectRef(PyObject *m, const char *name, PyObject *o)
{
    Py_XINCREF(o);
    int rc = PyModule_AddObject(m, name, o);
    if (rc < 0) Py_XDECREF(o);
    return rc;
}
#endif

struct core_state {
    PyObject *errors[32]; /* by PGS_E…: exception classes of pagestone._errors */
    PyObject *pickle_refused;
    PyObject *dtype_encode, *dtype_decode; /* pagestone._dtype */
    PyObject *dtype_names;                 /* dict: dtype -> bytes */
    PyObject *dtypes;                      /* dict: bytes -> dtype */
    PyObject *pickle_dump, *pickle_load;   /* pagestone._pickle */
    PyObject *memmap_type;
    PyTypeObject *store_type, *snapshot_type, *txn_type, *view_type, *array_type, *iter_type, *prov_type;
};
extern struct core_state core;

/* --- errors.c ----------------------------------------------------------------------------------------------------- */
/* Raise for rc < 0; returns NULL. Keeps an exception that a signal handler raised. */
PyObject *core_raise(int rc, const struct pgs_error *err);
int core_raise_int(int rc, const struct pgs_error *err); /* returns -1 */
/* The same after reading `key`: damage that the library could not put a name to gets this one. */
PyObject *core_raise_for(int rc, struct pgs_error *err, PyObject *key);
int core_errors_init(PyObject *module);
int core_interrupted(void *ctx); /* for pgs_options.interrupted */

/* --- keys -------------------------------------------------------------------------------------------------------------- */
struct key {
    const char *p;
    Py_ssize_t len;
};
/* For reading: anything malformed is KeyError(key). For writing: TypeError, ValueError. 0 or -1. */
int key_for_reading(PyObject *o, struct key *k);
int key_for_writing(PyObject *o, struct key *k);
PyObject *key_error(PyObject *key); /* raises KeyError(key) */

/* --- view.c ------------------------------------------------------------------------------------------------------------ */
typedef struct {
    PyObject_HEAD pgs_view *v;
    int writable;
    PyObject *weakrefs;
} ViewObject;
PyObject *view_wrap(pgs_view *v, int writable); /* steals v, also on failure */

/* --- dtype.c ------------------------------------------------------------------------------------------------------------ */
/* New reference to the bytes that describe a dtype / the dtype that bytes describe; never one with Python objects. */
PyObject *dtype_describe(PyArray_Descr *descr);
PyArray_Descr *dtype_from(const char *p, size_t len);
/* Fill *type from an array-like description. *desc keeps the bytes that type->dtype points into. */
int type_of(PyArray_Descr *descr, int ndim, const npy_intp *shape, char order, struct pgs_type *type, PyObject **desc);

/* --- plain.c ------------------------------------------------------------------------------------------------------------ */
/* 1: encoded into *out (bytes object); 0: not a plain object; -1: exception. */
int plain_encode(PyObject *o, PyObject **out);
PyObject *plain_decode(const char *p, size_t len);

/* --- array.c ------------------------------------------------------------------------------------------------------------ */
typedef struct {                   /* where an Array's memory came from */
    PyObject_HEAD PyObject *store; /* the Python Store */
    PyObject *key;
    int unnamed;     /* of ps.share: the key is nobody's business */
    PyObject *dtype; /* of the stored object */
    ViewObject *view;
    uint64_t version, id, n_bytes; /* version: as it was read; the pin may move on */
    char *addr;
} ProvObject;
struct core_array_extra {
    ProvObject *prov; /* owned, or NULL */
};
/* The provenance of an Array (borrowed), or NULL: none, or its memory is elsewhere by now. */
ProvObject *array_prov(PyObject *a);
int array_types_init(PyObject *module);
/* Array over a whole object of `sn`. */
PyObject *array_make(PyObject *store, PyObject *key, const struct pgs_object *obj, ViewObject *view, pgs_snapshot *sn);
/* Plain writable ndarray over a whole object (borrows view and makes it the base). n_bytes: of the object when its view was taken; in a
 * transaction another thread may have resized it since, which leaves the memory where it is. */
PyObject *array_writable(const struct pgs_type *type, ViewObject *view, uint64_t n_bytes, PyObject *key);
bool array_check(PyObject *o); /* an Array (also without provenance) */

/* --- value.c ------------------------------------------------------------------------------------------------------------- */
enum { WANT_ARRAY_READ, WANT_PRIVATE };
/* The Python value of an object found in `sn`, of which the caller owns a reference. store: the Python Store (provenance, allow_pickle). */
PyObject *value_load(PyObject *store, pgs_snapshot *sn, PyObject *key, const struct pgs_object *obj, int how);
/* Can this content be decoded from obj->inline_data alone? Buffers of a pickle need a view to live in. */
bool value_is_inline(const struct pgs_object *obj);
/* Bytes, plain and pickled contents. view may be NULL for inline data. */
PyObject *value_decode(PyObject *store, const struct pgs_object *obj, const void *data, ViewObject *view,
                       PyObject *key);
/* Stage `value` under `key` in t. store: for Arrays that share pages. last: nothing but the commit follows. */
int value_store(PyObject *store, pgs_txn *t, const struct key *k, PyObject *value, bool last);

/* --- store.c, snapshot.c, txn.c ------------------------------------------------------------------------------------------ */
typedef struct {
    PyObject_HEAD pgs_store *s;
    int allow_pickle;
    int read_only;
    PyObject *weakrefs;
    PyObject *dict;
} StoreObject;
typedef struct {
    PyObject_HEAD pgs_snapshot *sn; /* NULL: closed */
    StoreObject *store;
    PyObject *weakrefs;
    PyObject *dict;
} SnapshotObject;
typedef struct {
    PyObject_HEAD pgs_txn *t;
    bool over; /* committed or aborted */
    StoreObject *store;
    PyObject *weakrefs;
    PyObject *dict;
} TxnObject;
/* The open store, or NULL and ClosedError; good as long as the GIL is held. _enter: with a reference, for calls that give it away. */
pgs_store *store_of(PyObject *store);
pgs_store *store_enter(PyObject *store);
int store_type_init(PyObject *module);
int snapshot_type_init(PyObject *module);
int txn_type_init(PyObject *module);
int view_type_init(PyObject *module);
int iter_type_init(PyObject *module);
/* An iterator over the keys below prefix; strip: bytes to leave out of each key. what: 'k' keys, 'i' (key, info). Takes `it`, also on failure. */
PyObject *iter_wrap(pgs_iter *it, PyObject *owner, bool of_txn, Py_ssize_t strip, char what);
PyObject *object_info(const struct pgs_object *obj); /* dict: kind, dtype, shape, … */

#define CORE_BLOCKING(call)                                                                                            \
    do {                                                                                                               \
        Py_BEGIN_ALLOW_THREADS call;                                                                                   \
        Py_END_ALLOW_THREADS                                                                                           \
    } while (0)

#endif
