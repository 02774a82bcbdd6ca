/* Pagestone | pymod/errors — library errors as Python exceptions.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The classes live in pagestone/_errors.py; here is only which code is which class.
 */
#include "pymod/core.h"

struct core_state core;

static const struct {
    int code;
    const char *name; /* in pagestone._errors, or a builtin */
} table[] = {
    {PGS_ENOENT, "KeyError"},         {PGS_EEXIST, "KeyError"},           {PGS_EINVAL, "ValueError"},
    {PGS_ENOMEM, "MemoryError"},      {PGS_EIO, "StoreOSError"},          {PGS_EFULL, "StoreFullError"},
    {PGS_ECORRUPT, "CorruptError"},   {PGS_ECONFLICT, "ConflictError"},   {PGS_EEXPIRED, "VersionExpiredError"},
    {PGS_EREADONLY, "ReadOnlyError"}, {PGS_ELOCKED, "LockedError"},       {PGS_ECLOSED, "ClosedError"},
    {PGS_EINTR, "KeyboardInterrupt"}, {PGS_EACCES, "PermissionError"},    {PGS_ENOTSTORE, "NotAStoreError"},
    {PGS_EFORMAT, "FormatError"},     {PGS_ENOTSUP, "NotSupportedError"}, {PGS_EFORKED, "ForkedError"},
    {PGS_E2BIG, "ValueError"},        {PGS_ETYPE, "TypeError"},           {PGS_ESTALE, "StaleStoreError"},
    {PGS_ETIMEDOUT, "TimeoutError"},  {PGS_ENAME, "ValueError"},          {PGS_EWORKER, "WorkerLostError"},
    {PGS_EBUG, "InternalError"},
};

int core_errors_init(PyObject *module)
{
    (void)module;
    PyObject *errors = PyImport_ImportModule("pagestone._errors");
    PyObject *builtins = PyImport_ImportModule("builtins");
    if (!errors || !builtins) goto fail;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        PyObject *from = PyObject_HasAttrString(errors, table[i].name) ? errors : builtins;
        if (!(core.errors[table[i].code] = PyObject_GetAttrString(from, table[i].name))) goto fail;
    }
    Py_DECREF(errors);
    Py_DECREF(builtins);
    return 0;
fail:
    Py_XDECREF(errors);
    Py_XDECREF(builtins);
    return -1;
}

static bool is_os_error(int code)
{
    return code == PGS_EFULL || code == PGS_EIO || code == PGS_EACCES;
}

PyObject *core_raise(int rc, const struct pgs_error *err)
{
    int code = rc < 0 ? -rc : rc;
    if (PyErr_Occurred()) return NULL; /* a signal handler's exception, raised while we waited */
    PyObject *cls = code < 32 && core.errors[code] ? core.errors[code] : PyExc_RuntimeError;
    const char *text = err && err->text[0] ? err->text : pgs_strerror(code);
    PyObject *exc = NULL;
    if (is_os_error(code)) {
        int os_errno = err && err->os_errno ? err->os_errno : code == PGS_EFULL ? 28 : code == PGS_EACCES ? 13 : 5;
        exc = PyObject_CallFunction(cls, "is", os_errno, text);
    } else {
        PyObject *t = PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "backslashreplace");
        if (t) exc = PyObject_CallFunctionObjArgs(cls, t, NULL);
        Py_XDECREF(t);
    }
    if (exc && code == PGS_ECORRUPT) {
        PyObject *name =
            PyUnicode_DecodeUTF8(err ? err->object : "", err ? (Py_ssize_t)strlen(err->object) : 0, "backslashreplace");
        if (name) PyObject_SetAttrString(exc, "object", name);
        Py_XDECREF(name);
    }
    if (exc) PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    Py_XDECREF(exc);
    return NULL;
}

PyObject *core_raise_for(int rc, struct pgs_error *err, PyObject *key)
{
    const char *name = rc == -PGS_ECORRUPT && !err->object[0] && PyUnicode_Check(key) ? PyUnicode_AsUTF8(key) : NULL;
    if (name) {
        char text[sizeof(err->text)];
        snprintf(err->object, sizeof(err->object), "%s", name);
        snprintf(text, sizeof(text), "'%.100s' is damaged: %.300s; run check(), then revert() it or restore a copy",
                 name, err->text);
        memcpy(err->text, text, sizeof(text));
    }
    return core_raise(rc, err);
}

int core_raise_int(int rc, const struct pgs_error *err)
{
    core_raise(rc, err);
    return -1;
}

int core_interrupted(void *ctx)
{
    (void)ctx;
    PyGILState_STATE g = PyGILState_Ensure();
    int stop = !PyErr_Occurred() && PyErr_CheckSignals() != 0; /* a dealloc may run while an exception is under way */
    PyGILState_Release(g);
    return stop;
}

/* --- keys ----------------------------------------------------------------------------------------------------------- */

PyObject *key_error(PyObject *key)
{
    if (!PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, key);
    return NULL;
}

int key_for_reading(PyObject *o, struct key *k)
{
    if (!PyUnicode_Check(o)) return key_error(o), -1;
    k->p = PyUnicode_AsUTF8AndSize(o, &k->len);
    if (!k->p) { /* lone surrogates: no such name can exist */
        PyErr_Clear();
        return key_error(o), -1;
    }
    if (k->len == 0 || k->len > PGS_MAX_KEY || memchr(k->p, 0, (size_t)k->len)) return key_error(o), -1;
    return 0;
}

int key_for_writing(PyObject *o, struct key *k)
{
    if (!PyUnicode_Check(o)) {
        PyErr_Format(PyExc_TypeError, "keys are str, not %.100s: use str(key)", Py_TYPE(o)->tp_name);
        return -1;
    }
    k->p = PyUnicode_AsUTF8AndSize(o, &k->len);
    if (!k->p) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "key %R is not valid Unicode text: it has lone surrogates", o);
        return -1;
    }
    if (k->len && memchr(k->p, 0, (size_t)k->len)) {
        PyErr_Format(PyExc_ValueError, "key %R contains a NUL character: keys are text without NUL", o);
        return -1;
    }
    struct pgs_error err = {0};
    int rc = pgs_key_check(k->p, (size_t)k->len, &err);
    return rc < 0 ? core_raise_int(rc, &err) : 0;
}
