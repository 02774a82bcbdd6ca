/* Pagestone | pymod/view — store memory as a Python buffer.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A View owns one pgs_view reference and exports its bytes. NumPy arrays over store memory have it as their base, so the mapping lives as long as any array.
 */
#include "pymod/core.h"

PyObject *view_wrap(pgs_view *v, int writable)
{
    ViewObject *o = PyObject_New(ViewObject, core.view_type);
    if (!o) {
        pgs_view_unref(v);
        return NULL;
    }
    o->v = v;
    o->writable = writable;
    o->weakrefs = NULL;
    return (PyObject *)o;
}

static void view_dealloc(PyObject *self)
{
    PyTypeObject *tp = Py_TYPE(self);
    pgs_view *v = ((ViewObject *)self)->v;
    if (v && pgs_view_size(v) < 65536)
        pgs_view_unref(v); /* no mapping to undo: not worth giving the GIL away */
    else if (v)
        CORE_BLOCKING(pgs_view_unref(v));
    if (((ViewObject *)self)->weakrefs)
        PyObject_ClearWeakRefs(self); /* last: who hears of it may use the memory again */
    PyObject_Free(self);
    Py_DECREF(tp);
}

static int view_getbuffer(PyObject *self, Py_buffer *buf, int flags)
{
    ViewObject *o = (ViewObject *)self;
    return PyBuffer_FillInfo(buf, self, pgs_view_data(o->v), (Py_ssize_t)pgs_view_size(o->v), !o->writable, flags);
}

static PyObject *view_get_nbytes(PyObject *self, void *ctx)
{
    (void)ctx;
    return PyLong_FromUnsignedLongLong(pgs_view_size(((ViewObject *)self)->v));
}

static PyGetSetDef view_getset[] = {{"nbytes", view_get_nbytes, NULL, "size in bytes", NULL}, {0}};
static PyMemberDef view_members[] = {{"__weaklistoffset__", T_PYSSIZET, offsetof(ViewObject, weakrefs), READONLY, NULL},
                                     {0}};
static PyType_Slot view_slots[] = {{Py_tp_dealloc, view_dealloc},
                                   {Py_bf_getbuffer, view_getbuffer},
                                   {Py_tp_getset, view_getset},
                                   {Py_tp_members, view_members},
                                   {Py_tp_doc, "Memory of a store; arrays over it keep it alive."},
                                   {0, NULL}};
static PyType_Spec view_spec = {"pagestone._core.View", sizeof(ViewObject), 0, Py_TPFLAGS_DEFAULT, view_slots};

int view_type_init(PyObject *module)
{
    core.view_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &view_spec, NULL);
    if (core.view_type) core.view_type->tp_new = NULL;
    return core.view_type ? PyModule_AddObjectRef(module, "View", (PyObject *)core.view_type) : -1;
}
