/* Pagestone | fuse/blocks — decompressed blocks at hand, for the threads of the pager.
 * SPDX-License-Identifier: Apache-2.0
 *
 * See blocks.h. When all kept blocks are in use a request gets one of its own: waiting for others while holding some could wait in a circle.
 */
#define _GNU_SOURCE
#include "fuse/blocks.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuse/server.h"

#define KEPT 64u /* 8 MiB */
#define HELPERS_MAX 7

enum state { FREE, FILLING, READY };
struct block {
    enum state state;
    bool kept; /* of the table; else freed by its only user */
    unsigned users;
    uint64_t slot, used;
    uint8_t *bytes;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* table … clock */
static pthread_cond_t filled = PTHREAD_COND_INITIALIZER;
static struct block table[KEPT];
static uint64_t ticks;

static uint8_t zeros[PGS_COLD_BLOCK];
static struct block nothing = {.state = READY, .bytes = zeros}; /* an absent slot; counts no users */

/* 0, -ENOENT, -errno. -EAGAIN: the slot is not used yet; the kernel must not keep zeros for it, and keeps nothing of a request that failed. */
static int fill(pgs_store *store, uint64_t slot, uint8_t *bytes)
{
    struct pgs_error err = {0};
    size_t len = 0;
    int rc = pgs_cold_read(store, slot, bytes, &len, &err);
    if (rc == -PGS_ENOENT) return -ENOENT;
    if (rc == -PGS_EINVAL) return -EAGAIN;
    if (rc) {
        server_log("%s", err.text[0] ? err.text : pgs_strerror(rc));
        return rc == -PGS_ENOMEM ? -ENOMEM : -EIO;
    }
    memset(bytes + len, 0, PGS_COLD_BLOCK - len);
    return 0;
}

/* The block of that slot if it is here or on its way, else one to be filled, marked so; NULL: none is free. */
static struct block *find_locked(uint64_t slot)
{
    struct block *oldest = NULL;
    for (unsigned i = 0; i < KEPT; i++) {
        struct block *b = &table[i];
        if (b->state != FREE && b->slot == slot) return b;
        if (b->state == FILLING || b->users > 0) continue;
        if (!oldest || (b->state == FREE && oldest->state != FREE) ||
            (b->state == oldest->state && b->used < oldest->used))
            oldest = b;
    }
    return oldest;
}

static int get_own(pgs_store *store, uint64_t slot, struct block **out)
{
    struct block *b = calloc(1, sizeof *b);
    if (b) b->bytes = malloc(PGS_COLD_BLOCK);
    int rc = b && b->bytes ? fill(store, slot, b->bytes) : -ENOMEM;
    if (rc == 0) {
        *out = b;
        return 0;
    }
    if (b) free(b->bytes);
    free(b);
    *out = &nothing;
    return rc == -ENOENT ? 0 : rc;
}

/* b is ours, FILLING. */
static int fill_kept(pgs_store *store, struct block *b, struct block **out)
{
    if (!b->bytes) b->bytes = malloc(PGS_COLD_BLOCK);
    int rc = b->bytes ? fill(store, b->slot, b->bytes) : -ENOMEM;
    pthread_mutex_lock(&lock);
    b->state = rc ? FREE : READY;
    b->users = rc ? 0 : 1;
    pthread_cond_broadcast(&filled);
    pthread_mutex_unlock(&lock);
    *out = rc ? &nothing : b;
    return rc == -ENOENT ? 0 : rc;
}

int blocks_get(pgs_store *store, uint64_t slot, struct block **out, const uint8_t **bytes)
{
    struct block *b;
    int rc = 0;
    pthread_mutex_lock(&lock);
    while ((b = find_locked(slot)) && b->state == FILLING) pthread_cond_wait(&filled, &lock);
    if (b) b->used = ++ticks;
    if (b && b->state == READY && b->slot == slot) {
        b->users++;
        pthread_mutex_unlock(&lock);
        *out = b;
    } else if (b) {
        b->state = FILLING;
        b->slot = slot;
        b->kept = true;
        pthread_mutex_unlock(&lock);
        rc = fill_kept(store, b, out);
    } else {
        pthread_mutex_unlock(&lock);
        rc = get_own(store, slot, out);
    }
    if (rc == 0) *bytes = (*out)->bytes;
    return rc;
}

void blocks_put(struct block *b)
{
    if (!b || b == &nothing) return;
    if (!b->kept) {
        free(b->bytes);
        free(b);
        return;
    }
    pthread_mutex_lock(&lock);
    b->users--;
    pthread_mutex_unlock(&lock);
}

/* --- several at once ---------------------------------------------------------------------------------------------------------------- */
/* A request with several slots lies on the list until all are taken; its own thread takes some, too, and waits for the rest. */
struct batch {
    struct batch *next;
    pgs_store *store;
    uint64_t slot;
    unsigned n, taken, done;
    int rc;
    struct block **out;
    const uint8_t **bytes;
};
static pthread_mutex_t batch_lock = PTHREAD_MUTEX_INITIALIZER; /* batches, and taken, done, rc of each */
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static struct batch *batches;
static int n_helpers = -1;

/* Take one and do it. With the lock, which is released meanwhile. */
static void do_one_locked(struct batch *b)
{
    unsigned i = b->taken++;
    if (b->taken == b->n) {
        struct batch **p = &batches;
        while (*p != b) p = &(*p)->next;
        *p = b->next;
    }
    pthread_mutex_unlock(&batch_lock);
    int rc = blocks_get(b->store, b->slot + i, &b->out[i], &b->bytes[i]);
    pthread_mutex_lock(&batch_lock);
    if (rc) b->rc = rc;
    if (++b->done == b->n) pthread_cond_broadcast(&done);
}

static void *help(void *arg)
{
    pthread_mutex_lock(&batch_lock);
    for (;;) {
        while (!batches) pthread_cond_wait(&work, &batch_lock);
        do_one_locked(batches);
    }
    return arg;
}

static void start_helpers_locked(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN) - 1;
    if (n > HELPERS_MAX) n = HELPERS_MAX;
    pthread_t t;
    for (n_helpers = 0; n_helpers < n && pthread_create(&t, NULL, help, NULL) == 0; n_helpers++) pthread_detach(t);
}

int blocks_get_many(pgs_store *store, uint64_t slot, unsigned n, struct block **out, const uint8_t **bytes)
{
    struct batch b = {.store = store, .slot = slot, .n = n, .out = out, .bytes = bytes};
    memset(out, 0, n * sizeof *out);
    if (n == 1) return blocks_get(store, slot, out, bytes);
    pthread_mutex_lock(&batch_lock);
    if (n_helpers < 0) start_helpers_locked();
    b.next = batches;
    batches = &b;
    pthread_cond_broadcast(&work);
    while (b.taken < n) do_one_locked(&b);
    while (b.done < n) pthread_cond_wait(&done, &batch_lock);
    pthread_mutex_unlock(&batch_lock);
    if (b.rc == 0) return 0;
    for (unsigned i = 0; i < n; i++) blocks_put(out[i]);
    return b.rc;
}
