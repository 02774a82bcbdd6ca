/* Pagestone | fuse/pkl — pickled objects as one stream.
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "fuse/pkl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    OP_STOP = '.',
    OP_BINBYTES8 = 0x8e,
    OP_FRAME = 0x95,
    OP_BYTEARRAY8 = 0x96,
    OP_NEXT_BUFFER = 0x97,
    OP_READONLY_BUFFER = 0x98
};

struct pkl_piece { /* sorted by `at`, which is where it begins in the file */
    uint64_t at;
    const char *p;
};
struct pkl {
    struct pkl_piece *piece;
    size_t n, cap;
    uint64_t bytes;
    char (*heads)[9]; /* opcode and length of each buffer */
};

static uint32_t get_u32(const unsigned char *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static uint64_t get_u64(const void *bytes)
{
    const unsigned char *p = bytes;
    return get_u32(p) | (uint64_t)get_u32(p + 4) << 32;
}

uint64_t pkl_table_len(const void *p, uint64_t n)
{
    if (n < 16) return 0;
    uint64_t head = get_u64(p), len = 16 + 16 * (uint64_t)get_u32((const unsigned char *)p + 8);
    return len <= head && head <= n ? len : 0;
}

bool pkl_size(const void *content, uint64_t n, uint64_t *size)
{
    const char *p = content;
    uint64_t table = pkl_table_len(p, n);
    if (table == 0) return false;
    *size = get_u64(p) - table;
    for (uint64_t at = 16; at < table; at += 16) {
        uint64_t off = get_u64(p + at), len = get_u64(p + at + 8);
        if (off > n || len > n - off) return false;
        if (__builtin_add_overflow(*size, 8 + len, size) || *size > INT64_MAX) return false;
    }
    return true;
}

/* --- walking opcodes --------------------------------------------------------------------------------------------------------- */

/* What follows an opcode, plus one: 0 to 8 that many bytes; lines; or a count and that many bytes. 0: no opcode. */
enum { LINE = 100, TWO_LINES, COUNT1, COUNT4, COUNT8 };
#define A(n) (n) + 1

static const uint8_t arguments[256] = {['('] = A(0),
                                       ['.'] = A(0),
                                       ['0'] = A(0),
                                       ['1'] = A(0),
                                       ['2'] = A(0),
                                       ['N'] = A(0),
                                       ['Q'] = A(0),
                                       ['R'] = A(0),
                                       ['a'] = A(0),
                                       ['b'] = A(0),
                                       ['d'] = A(0),
                                       ['}'] = A(0),
                                       ['e'] = A(0),
                                       ['l'] = A(0),
                                       [']'] = A(0),
                                       ['o'] = A(0),
                                       ['s'] = A(0),
                                       ['t'] = A(0),
                                       [')'] = A(0),
                                       ['u'] = A(0),
                                       [0x81] = A(0),
                                       [0x85] = A(0),
                                       [0x86] = A(0),
                                       [0x87] = A(0),
                                       [0x88] = A(0),
                                       [0x89] = A(0),
                                       [0x8f] = A(0),
                                       [0x90] = A(0),
                                       [0x91] = A(0),
                                       [0x92] = A(0),
                                       [0x93] = A(0),
                                       [0x94] = A(0),
                                       [OP_NEXT_BUFFER] = A(0),
                                       [OP_READONLY_BUFFER] = A(0),
                                       ['K'] = A(1),
                                       ['h'] = A(1),
                                       ['q'] = A(1),
                                       [0x80] = A(1),
                                       [0x82] = A(1),
                                       ['M'] = A(2),
                                       [0x83] = A(2),
                                       ['J'] = A(4),
                                       ['j'] = A(4),
                                       ['r'] = A(4),
                                       [0x84] = A(4),
                                       ['G'] = A(8),
                                       [OP_FRAME] = A(8),
                                       ['F'] = A(LINE),
                                       ['I'] = A(LINE),
                                       ['L'] = A(LINE),
                                       ['P'] = A(LINE),
                                       ['S'] = A(LINE),
                                       ['V'] = A(LINE),
                                       ['g'] = A(LINE),
                                       ['p'] = A(LINE),
                                       ['c'] = A(TWO_LINES),
                                       ['i'] = A(TWO_LINES),
                                       ['U'] = A(COUNT1),
                                       ['C'] = A(COUNT1),
                                       [0x8a] = A(COUNT1),
                                       [0x8c] = A(COUNT1),
                                       ['T'] = A(COUNT4),
                                       ['X'] = A(COUNT4),
                                       ['B'] = A(COUNT4),
                                       [0x8b] = A(COUNT4),
                                       [0x8d] = A(COUNT8),
                                       [OP_BINBYTES8] = A(COUNT8),
                                       [OP_BYTEARRAY8] = A(COUNT8)};

/* Behind the opcode at p; NULL: there is none, or it is cut off. */
static const char *opcode_end(const char *p, const char *end)
{
    unsigned arg = arguments[(unsigned char)*p++];
    if (arg-- == 0) return NULL;
    uint64_t left = (uint64_t)(end - p), n = arg;
    if (arg == LINE || arg == TWO_LINES) {
        for (unsigned i = 0; i <= arg - LINE; i++) {
            p = memchr(p, '\n', (size_t)(end - p));
            if (!p++) return NULL;
        }
        return p;
    }
    if (arg >= COUNT1) {
        unsigned width = arg == COUNT1 ? 1 : arg == COUNT4 ? 4 : 8;
        if (left < width) return NULL;
        n = width == 1 ? *(const unsigned char *)p : width == 4 ? get_u32((const unsigned char *)p) : get_u64(p);
        p += width;
        left -= width;
    }
    return n <= left ? p + n : NULL;
}

/* --- the plan ------------------------------------------------------------------------------------------------------------------ */

static bool add(struct pkl *k, const char *p, uint64_t len)
{
    if (len == 0) return true;
    if (k->n == k->cap) {
        size_t cap = k->cap ? 2 * k->cap : 8;
        struct pkl_piece *more = realloc(k->piece, cap * sizeof *more);
        if (!more) return false;
        k->piece = more;
        k->cap = cap;
    }
    k->piece[k->n++] = (struct pkl_piece){k->bytes, p};
    k->bytes += len;
    return true;
}

/* The bytes of buffer i in place of a NEXT_BUFFER. What was handed out read-only is bytes, the rest bytearray: as pickle does in band. */
static bool add_buffer(struct pkl *k, const char *content, uint64_t i, bool read_only)
{
    uint64_t off = get_u64(content + 16 + 16 * i), len = get_u64(content + 24 + 16 * i);
    char *head = k->heads[i];
    head[0] = (char)(read_only ? OP_BINBYTES8 : OP_BYTEARRAY8);
    for (unsigned b = 0; b < 8; b++) head[1 + b] = (char)(len >> 8 * b & 0xff);
    return add(k, head, 9) && add(k, content + off, len);
}

/* int 0, pop; int 0, pop. */
static const char no_effect[9] = {'J', 0, 0, 0, 0, '0', 'K', 0, '0'};

static int plan(struct pkl *k, const char *content, uint64_t n_buffers, const char *p, const char *end)
{
    const char *from = p, *next;
    uint64_t used = 0;
    bool stop = false;
    if (n_buffers == 0) /* as it is, and whatever it is: a file that was written as .pkl need not be a pickle */
        return add(k, p, (uint64_t)(end - p)) ? 0 : -ENOMEM;
    for (; p < end && !stop; p = next) {
        unsigned char op = (unsigned char)*p;
        next = opcode_end(p, end);
        if (!next) return -EIO;
        stop = op == OP_STOP;
        bool frame = op == OP_FRAME;
        if (!frame && op != OP_NEXT_BUFFER) continue;
        if (!add(k, from, (uint64_t)(p - from))) return -ENOMEM;
        from = next;
        if (frame) {
            if (!add(k, no_effect, sizeof no_effect)) return -ENOMEM;
            continue;
        }
        if (used == n_buffers) return -EIO;
        bool read_only = next < end && (unsigned char)*next == OP_READONLY_BUFFER;
        if (!add_buffer(k, content, used++, read_only)) return -ENOMEM;
    }
    if (!stop || used != n_buffers) return -EIO;
    return add(k, from, (uint64_t)(end - from)) ? 0 : -ENOMEM;
}

int pkl_open(const void *content, uint64_t n, struct pkl **out)
{
    uint64_t table = n >= 16 ? pkl_table_len(content, n) : 0, size;
    if (table == 0 || !pkl_size(content, n, &size)) return -EIO;
    uint64_t n_buffers = (table - 16) / 16;
    struct pkl *k = calloc(1, sizeof *k);
    if (!k || !(k->heads = malloc(9 * (n_buffers + 1)))) {
        free(k);
        return -ENOMEM;
    }
    const char *p = content;
    int rc = plan(k, p, n_buffers, p + table, p + get_u64(p));
    if (rc == 0 && k->bytes != size) rc = -EIO;
    if (rc) {
        pkl_free(k);
        return rc;
    }
    *out = k;
    return 0;
}

uint64_t pkl_bytes(const struct pkl *p)
{
    return p->bytes;
}

size_t pkl_pieces(const struct pkl *k, uint64_t off, size_t len, struct iovec *iov, int n_iov, int *n_used)
{
    size_t got = 0, lo = 0, hi = k->n;
    *n_used = 0;
    if (off >= k->bytes) return 0;
    while (hi - lo > 1) { /* the last piece that begins at or before off */
        size_t mid = lo + (hi - lo) / 2;
        *(k->piece[mid].at <= off ? &lo : &hi) = mid;
    }
    for (; lo < k->n && got < len && *n_used < n_iov; lo++) {
        uint64_t end = lo + 1 < k->n ? k->piece[lo + 1].at : k->bytes, skip = off + got - k->piece[lo].at;
        uint64_t here = end - off - got;
        size_t take = here < len - got ? (size_t)here : len - got;
        iov[(*n_used)++] = (struct iovec){(void *)(uintptr_t)(k->piece[lo].p + skip), take};
        got += take;
    }
    return got;
}

void pkl_free(struct pkl *p)
{
    if (!p) return;
    free(p->piece);
    free(p->heads);
    free(p);
}
