/* Pagestone | tests/fuzz/fuzz_node — libFuzzer target: any 4 KiB as a tree node.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     clang -g -O1 -std=gnu11 -I. -fsanitize=fuzzer,address,undefined -DPGS_DEBUG tests/fuzz/fuzz_node.c libshm/tree/node.c -o fuzz_node
 *     ./fuzz_node -max_len=4097 -max_total_time=60
 *
 * The first byte says whether the fields that a mutation nearly always breaks (magic, reserved word, lcp, heads) are made right before the
 * node is judged. What is accepted must then be parsed, searched, dumped, edited and rebuilt without leaving its page.
 */
#include <stdio.h>
#include <stdlib.h>

#include "libshm/tree/node.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

_Noreturn void pgs__bug(const char *file, int line, const char *what)
{
    fprintf(stderr, "%s:%d: %s\n", file, line, what);
    abort();
}

static void require(bool ok)
{
    if (!ok) abort();
}

/* Heads as they should be for lcp 0; slots that point nowhere are left alone. */
static void repair(struct pgs__node *nd)
{
    const uint8_t *page = (const uint8_t *)nd;
    nd->magic = PGS__NODE_MAGIC;
    nd->zero = 0;
    nd->lcp = 0;
    nd->level %= 3;
    unsigned head_len = pgs__node_cell_head(nd), n = nd->n < PGS_ARRAY_LEN(nd->slot) ? nd->n : PGS_ARRAY_LEN(nd->slot);
    for (unsigned i = 0; i < n; i++) {
        unsigned off = nd->slot[i].off, head = 0;
        if (off + head_len + 4 > PGS_PAGE_SIZE) continue;
        unsigned len = pgs__get_u16(page + off);
        for (unsigned k = 0; k < 4; k++) head = head << 8 | (k < len ? page[off + head_len + k] : 0);
        nd->slot[i].head = nd->level && i == 0 ? 0 : head;
    }
}

static void use(struct pgs__node *nd)
{
    static struct pgs__item items[PGS__NODE_MAX_LEAF_ENTRIES + 1];
    static struct pgs__node copy, again;
    static char text[20000];
    unsigned n = pgs__node_gather(nd, items), level = nd->level;
    require(n <= PGS__NODE_MAX_LEAF_ENTRIES);
    for (unsigned i = pgs__node_first(nd); i < n; i++) {
        bool found;
        require(pgs__node_search(nd, items[i].key.p, items[i].key.len, &found) == i && found);
        if (level) require(pgs__node_find_child(nd, items[i].key.p, items[i].key.len) == i);
    }
    pgs__node_dump(nd, text, sizeof text);
    pgs__node_build(&again, nd->kind, (int)level, items, n);
    require(pgs__node_validate(&again) == 0 && pgs__node_used(&again) == pgs__node_used(nd));
    copy = *nd;
    while (copy.n > 1 + pgs__node_first(&copy)) {
        pgs__node_remove(&copy, copy.n * 7u / 13u);
        require(pgs__node_validate(&copy) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct pgs__node nd;
    if (size < 1 || size > 1 + sizeof nd) return 0;
    memset(&nd, 0, sizeof nd);
    memcpy(&nd, data + 1, size - 1);
    if (data[0] & 1) repair(&nd);
    if (pgs__node_validate(&nd) == 0) use(&nd);
    return 0;
}
