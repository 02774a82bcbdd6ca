/* Pagestone | pymod/plain — a plain encoding for the values that need no pickle.
 * SPDX-License-Identifier: Apache-2.0
 *
 * None, bool, int, float, complex, str, bytes, NumPy scalars, and lists and str-keyed dicts of only these; exact types, so that what comes back is what went in.
 * Never unpickled: reading one runs no code. Little-endian; one tag byte each:
 *
 *   N T F               None, True, False
 *   i i64               I u32 len, two's complement       ints
 *   d f64               c f64 f64                         float, complex
 *   s u32 len, UTF-8    y u32 len, bytes                  (surrogates pass)
 *   l u32 n, items      m u32 n, n × (u32 len, key UTF-8, value)
 *   S u32 len, UTF-8    Y u32 len, bytes                  np.str_, np.bytes_ (as bytes of a dtype they would lose NULs at the end)
 *   n u16 len, dtype, u32 len, bytes                      other NumPy scalars; the dtype is "q" or "Q" for np.longlong, whose dtype equals int64
 */
#include "pymod/core.h"

#define MAX_DEPTH 64                   /* deeper values are pickled */
#define MAX_TEXT ((Py_ssize_t)1 << 30) /* characters of at most 4 bytes, and bytes: their number must fit 32 bits */
#define MAX_BYTES                                                                                                      \
    ((size_t)1 << 30) /* larger ones, too: a list that holds another many times over could have any size here */

struct out {
    char *p;
    size_t len, cap;
};

static int reserve(struct out *o, size_t n)
{
    if (o->cap - o->len >= n) return 0;
    size_t cap = o->cap ? o->cap * 2 : 256;
    while (cap - o->len < n) cap *= 2;
    char *p = PyMem_Realloc(o->p, cap);
    if (!p) {
        PyErr_NoMemory();
        return -1;
    }
    o->p = p;
    o->cap = cap;
    return 0;
}

static int emit(struct out *o, const void *p, size_t n)
{
    if (reserve(o, n) < 0) return -1;
    if (n) memcpy(o->p + o->len, p, n);
    o->len += n;
    return 0;
}

static int emit_tag(struct out *o, char tag)
{
    return emit(o, &tag, 1);
}

static int emit_sized(struct out *o, char tag, const void *p, size_t n)
{
    if (n > UINT32_MAX) return PyErr_SetString(PyExc_ValueError, "a str or int of more than 4 GiB"), -1;
    uint32_t len = (uint32_t)n;
    return emit_tag(o, tag) < 0 || emit(o, &len, 4) < 0 || emit(o, p, n) < 0 ? -1 : 0;
}

static int emit_str(struct out *o, PyObject *s, char tag) /* 0: none */
{
    Py_ssize_t n;
    const char *p = PyUnicode_AsUTF8AndSize(s, &n);
    PyObject *tmp = NULL;
    if (!p) {
        PyErr_Clear();
        if (!(tmp = PyUnicode_AsEncodedString(s, "utf-8", "surrogatepass"))) return -1;
        p = PyBytes_AS_STRING(tmp);
        n = PyBytes_GET_SIZE(tmp);
    }
    if (tag == 0 && n > UINT32_MAX) PyErr_SetString(PyExc_ValueError, "a dict key of more than 4 GiB");
    uint32_t len = (uint32_t)n;
    int rc = tag                ? emit_sized(o, tag, p, (size_t)n)
             : n > UINT32_MAX   ? -1
             : emit(o, &len, 4) ? -1
                                : emit(o, p, (size_t)n);
    Py_XDECREF(tmp);
    return rc;
}

static int emit_int(struct out *o, PyObject *v)
{
    int overflow;
    long long x = PyLong_AsLongLongAndOverflow(v, &overflow);
    if (x == -1 && !overflow && PyErr_Occurred()) return -1;
    if (!overflow) {
        int64_t i = x;
        return emit_tag(o, 'i') < 0 || emit(o, &i, 8) < 0 ? -1 : 0;
    }
    PyObject *bits = PyObject_CallMethod(v, "bit_length", NULL);
    Py_ssize_t n = bits ? PyLong_AsSsize_t(bits) / 8 + 1 : -1;
    Py_XDECREF(bits);
    if (n < 0) return -1;
    PyObject *to_bytes = PyObject_GetAttrString(v, "to_bytes");
    PyObject *args = Py_BuildValue("(ns)", n, "little"), *kw = Py_BuildValue("{sO}", "signed", Py_True);
    PyObject *b = to_bytes && args && kw ? PyObject_Call(to_bytes, args, kw) : NULL;
    int rc = b ? emit_sized(o, 'I', PyBytes_AS_STRING(b), (size_t)PyBytes_GET_SIZE(b)) : -1;
    Py_XDECREF(to_bytes);
    Py_XDECREF(args);
    Py_XDECREF(kw);
    Py_XDECREF(b);
    return rc;
}

/* 1 encoded, 0 not plain, -1 error: as all of these */
static int emit_scalar(struct out *o, PyObject *v)
{
    if ((PyObject *)Py_TYPE(v) == (PyObject *)&PyUnicodeArrType_Type) return emit_str(o, v, 'S') < 0 ? -1 : 1;
    if ((PyObject *)Py_TYPE(v) == (PyObject *)&PyStringArrType_Type)
        return emit_sized(o, 'Y', PyBytes_AS_STRING(v), (size_t)PyBytes_GET_SIZE(v)) < 0 ? -1 : 1;
    PyArray_Descr *d = PyArray_DescrFromScalar(v);
    if (!d) return -1;
    int rc = 0;
    PyObject *desc = NULL, *b = NULL;
    if (!PyDataType_REFCHK(d) && (PyObject *)d->typeobj == (PyObject *)Py_TYPE(v)) {
        bool longlong = d->type_num == NPY_LONGLONG || d->type_num == NPY_ULONGLONG;
        desc = longlong ? PyBytes_FromStringAndSize(&d->type, 1) : dtype_describe(d);
        b = desc ? PyObject_CallMethod(v, "tobytes", NULL) : NULL;
        rc = -1;
        if (b && PyBytes_GET_SIZE(desc) <= UINT16_MAX && (uint64_t)PyBytes_GET_SIZE(b) <= UINT32_MAX) {
            uint16_t dl = (uint16_t)PyBytes_GET_SIZE(desc);
            uint32_t bl = (uint32_t)PyBytes_GET_SIZE(b);
            if (emit_tag(o, 'n') == 0 && emit(o, &dl, 2) == 0 && emit(o, PyBytes_AS_STRING(desc), dl) == 0 &&
                emit(o, &bl, 4) == 0 && emit(o, PyBytes_AS_STRING(b), bl) == 0)
                rc = 1;
        } else if (!b && PyErr_ExceptionMatches(PyExc_TypeError)) { /* a dtype that has no description */
            PyErr_Clear();
            rc = 0;
        }
    }
    Py_XDECREF(desc);
    Py_XDECREF(b);
    Py_DECREF(d);
    return rc;
}

static int encode(struct out *o, PyObject *v, int depth);

static int encode_list(struct out *o, PyObject *v, int depth)
{
    Py_ssize_t n = PyList_GET_SIZE(v);
    uint32_t n32 = (uint32_t)n;
    if (n > UINT32_MAX) return 0;
    if (emit_tag(o, 'l') < 0 || emit(o, &n32, 4) < 0) return -1;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (i >= PyList_GET_SIZE(v)) return 0; /* it shrank under us: let pickle look at it */
        PyObject *item = PyList_GET_ITEM(v, i);
        Py_INCREF(item);
        int rc = encode(o, item, depth + 1);
        Py_DECREF(item);
        if (rc != 1) return rc;
    }
    return PyList_GET_SIZE(v) == n;
}

static int encode_dict(struct out *o, PyObject *v, int depth)
{
    Py_ssize_t n = PyDict_GET_SIZE(v), pos = 0, seen = 0;
    uint32_t n32 = (uint32_t)n;
    if (n > UINT32_MAX) return 0;
    if (emit_tag(o, 'm') < 0 || emit(o, &n32, 4) < 0) return -1;
    PyObject *key, *val;
    while (PyDict_Next(v, &pos, &key, &val)) {
        if (!PyUnicode_CheckExact(key) || seen++ == n) return 0;
        Py_INCREF(key);
        Py_INCREF(val);
        int rc = emit_str(o, key, 0) < 0 ? -1 : encode(o, val, depth + 1);
        Py_DECREF(key);
        Py_DECREF(val);
        if (rc != 1) return rc;
    }
    return seen == n;
}

static int encode(struct out *o, PyObject *v, int depth)
{
    int rc;
    if (depth > MAX_DEPTH || o->len > MAX_BYTES) return 0;
    if (v == Py_None)
        rc = emit_tag(o, 'N');
    else if (v == Py_True)
        rc = emit_tag(o, 'T');
    else if (v == Py_False)
        rc = emit_tag(o, 'F');
    else if (PyLong_CheckExact(v))
        rc = emit_int(o, v);
    else if (PyFloat_CheckExact(v)) {
        double d = PyFloat_AS_DOUBLE(v);
        rc = emit_tag(o, 'd') < 0 ? -1 : emit(o, &d, 8);
    } else if (PyComplex_CheckExact(v)) {
        Py_complex c = PyComplex_AsCComplex(v);
        rc = emit_tag(o, 'c') < 0 || emit(o, &c.real, 8) < 0 ? -1 : emit(o, &c.imag, 8);
    } else if ((PyUnicode_CheckExact(v) && PyUnicode_GET_LENGTH(v) >= MAX_TEXT) ||
               (PyBytes_CheckExact(v) && PyBytes_GET_SIZE(v) >= MAX_TEXT))
        return 0; /* pickle takes any length */
    else if (PyUnicode_CheckExact(v))
        rc = emit_str(o, v, 's');
    else if (PyBytes_CheckExact(v))
        rc = emit_sized(o, 'y', PyBytes_AS_STRING(v), (size_t)PyBytes_GET_SIZE(v));
    else if (PyList_CheckExact(v))
        return encode_list(o, v, depth);
    else if (PyDict_CheckExact(v))
        return encode_dict(o, v, depth);
    else if (PyArray_IsScalar(v, Generic))
        return emit_scalar(o, v);
    else
        return 0;
    return rc < 0 ? -1 : 1;
}

int plain_encode(PyObject *v, PyObject **out)
{
    struct out o = {0};
    int rc = encode(&o, v, 0);
    if (rc == 1 && !(*out = PyBytes_FromStringAndSize(o.p, (Py_ssize_t)o.len))) rc = -1;
    PyMem_Free(o.p);
    return rc;
}

/* --- decoding: the bytes are input --------------------------------------------------------------------------------------- */

struct in {
    const char *p, *end;
};

static PyObject *malformed(void)
{
    PyErr_SetString(core.errors[PGS_ECORRUPT], "a plain value is malformed: run check()");
    return NULL;
}

static const char *take(struct in *in, size_t n)
{
    if ((size_t)(in->end - in->p) < n) {
        malformed();
        return NULL;
    }
    const char *p = in->p;
    in->p += n;
    return p;
}

static const char *take_sized(struct in *in, uint32_t *n)
{
    const char *p = take(in, 4);
    if (!p) return NULL;
    memcpy(n, p, 4);
    return take(in, *n);
}

static PyObject *decode(struct in *in, int depth);

static PyObject *decode_int(struct in *in)
{
    uint32_t n;
    const char *p = take_sized(in, &n);
    if (!p) return NULL;
    PyObject *from = PyObject_GetAttrString((PyObject *)&PyLong_Type, "from_bytes");
    PyObject *args = Py_BuildValue("(y#s)", p, (Py_ssize_t)n, "little"), *kw = Py_BuildValue("{sO}", "signed", Py_True);
    PyObject *v = from && args && kw ? PyObject_Call(from, args, kw) : NULL;
    Py_XDECREF(from);
    Py_XDECREF(args);
    Py_XDECREF(kw);
    return v;
}

static PyObject *decode_list(struct in *in, int depth)
{
    uint32_t n;
    const char *p = take(in, 4);
    if (!p) return NULL;
    memcpy(&n, p, 4);
    if ((size_t)(in->end - in->p) < n) return malformed(); /* an item has at least one byte */
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (uint32_t i = 0; list && i < n; i++) {
        PyObject *v = decode(in, depth + 1);
        if (!v)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, v);
    }
    return list;
}

static PyObject *decode_dict(struct in *in, int depth)
{
    uint32_t n;
    const char *p = take(in, 4);
    if (!p) return NULL;
    memcpy(&n, p, 4);
    PyObject *dict = PyDict_New();
    for (uint32_t i = 0; dict && i < n; i++) {
        uint32_t len;
        const char *k = take_sized(in, &len);
        PyObject *key = k ? PyUnicode_DecodeUTF8(k, (Py_ssize_t)len, "surrogatepass") : NULL;
        PyObject *v = key ? decode(in, depth + 1) : NULL;
        if (!v || PyDict_SetItem(dict, key, v) < 0) Py_CLEAR(dict);
        Py_XDECREF(key);
        Py_XDECREF(v);
    }
    return dict;
}

/* np.str_ and np.bytes_ are made from the Python object. */
static PyObject *decode_text(struct in *in, PyTypeObject *type)
{
    uint32_t n;
    const char *p = take_sized(in, &n);
    if (!p) return NULL;
    PyObject *v = type == &PyUnicodeArrType_Type ? PyUnicode_DecodeUTF8(p, (Py_ssize_t)n, "surrogatepass")
                                                 : PyBytes_FromStringAndSize(p, (Py_ssize_t)n);
    PyObject *r = v ? PyObject_CallFunctionObjArgs((PyObject *)type, v, NULL) : NULL;
    Py_XDECREF(v);
    return r;
}

static PyObject *decode_scalar(struct in *in)
{
    uint16_t dl;
    uint32_t n;
    const char *p = take(in, 2);
    if (!p) return NULL;
    memcpy(&dl, p, 2);
    const char *desc = take(in, dl), *data = desc ? take_sized(in, &n) : NULL;
    PyArray_Descr *d = data ? dtype_from(desc, dl) : NULL;
    if (!d) return NULL;
    PyObject *v = PyDataType_REFCHK(d) || (uint64_t)PyDataType_ELSIZE(d) != n ? malformed() : NULL;
    if (!v && !PyErr_Occurred()) {
        char *copy = PyMem_Malloc(n ? n : 1); /* PyArray_Scalar takes void *, and alignment is not given */
        if (!copy)
            PyErr_NoMemory();
        else {
            memcpy(copy, data, n);
            v = PyArray_Scalar(copy, d, NULL);
            PyMem_Free(copy);
        }
    }
    Py_DECREF(d);
    return v;
}

static PyObject *decode(struct in *in, int depth)
{
    const char *p = take(in, 1);
    uint32_t n;
    double d[2];
    int64_t i;
    if (!p) return NULL;
    if (depth > MAX_DEPTH + 1) return malformed();
    switch (*p) {
    case 'N':
        Py_RETURN_NONE;
    case 'T':
        Py_RETURN_TRUE;
    case 'F':
        Py_RETURN_FALSE;
    case 'i':
        if (!(p = take(in, 8))) return NULL;
        memcpy(&i, p, 8);
        return PyLong_FromLongLong(i);
    case 'I':
        return decode_int(in);
    case 'd':
        if (!(p = take(in, 8))) return NULL;
        memcpy(d, p, 8);
        return PyFloat_FromDouble(d[0]);
    case 'c':
        if (!(p = take(in, 16))) return NULL;
        memcpy(d, p, 16);
        return PyComplex_FromDoubles(d[0], d[1]);
    case 's':
        return (p = take_sized(in, &n)) ? PyUnicode_DecodeUTF8(p, (Py_ssize_t)n, "surrogatepass") : NULL;
    case 'y':
        return (p = take_sized(in, &n)) ? PyBytes_FromStringAndSize(p, (Py_ssize_t)n) : NULL;
    case 'l':
        return decode_list(in, depth);
    case 'm':
        return decode_dict(in, depth);
    case 'S':
        return decode_text(in, &PyUnicodeArrType_Type);
    case 'Y':
        return decode_text(in, &PyStringArrType_Type);
    case 'n':
        return decode_scalar(in);
    default:
        return malformed();
    }
}

PyObject *plain_decode(const char *p, size_t len)
{
    struct in in = {p, p + len};
    PyObject *v = decode(&in, 0);
    if (v && in.p != in.end) {
        Py_DECREF(v);
        return malformed();
    }
    if (!v && PyErr_ExceptionMatches(PyExc_ValueError)) { /* bad UTF-8, a number out of range */
        PyErr_Clear();
        return malformed();
    }
    return v;
}
