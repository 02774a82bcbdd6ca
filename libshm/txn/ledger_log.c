/* Pagestone | txn/ledger_log — the log: who committed what, when.
 * SPDX-License-Identifier: Apache-2.0
 *
 * One entry a version, in parts of ≤ 1,000 bytes under ('l', version, part), because a meta entry has to fit a node twice:
 *
 *   u64 time_ns, u64 bytes_written, u64 n_keys, u32 pid, u32 keys_len, u32 message_len, u16 command_len, u8 flags, u8 0; command, message, keys
 *
 * Keys are NUL-terminated, at most 64 KiB of them; n_keys counts all, FLAG_TRUNCATED says that some are missing. Entries of the newest 8,192 version numbers stay, older ones as long as
 * their version is listed.
 */
#include "libshm/platform/mem.h"
#include "libshm/txn/ledger_impl.h"

#define PART 1000u
#define KEYS_MAX 65536u
#define MESSAGE_MAX 65536u
#define COMMAND_MAX 1024u
#define FLAG_TRUNCATED 1u
#define FLAG_MESSAGE 2u

struct log_head {
    uint64_t time_ns, bytes_written, n_keys;
    uint32_t pid, keys_len, message_len;
    uint16_t command_len;
    uint8_t flags, zero;
};
PGS_STATIC(sizeof(struct log_head) == 40, "on disk");
#define LOG_MAX (sizeof(struct log_head) + COMMAND_MAX + MESSAGE_MAX + KEYS_MAX)

static size_t text_len(const char *s, size_t max)
{
    return s ? strnlen(s, max) : 0;
}

/* Whole keys up to the limit. */
static size_t keys_len(const struct pgs_commit_info *c, bool *truncated)
{
    size_t len = 0;
    for (uint64_t i = 0; i < c->n_keys && c->keys; i++) {
        size_t n = strnlen(c->keys + len, KEYS_MAX - len) + 1;
        if (len + n > KEYS_MAX) {
            *truncated = true;
            break;
        }
        len += n;
    }
    return len;
}

static int put_parts(struct pgs__ledger *l, uint64_t version, const uint8_t *p, size_t len, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    for (uint64_t part = 0; len > 0; part++) {
        size_t n = len < PART ? len : PART;
        l->n_touched++;
        int rc = pgs__meta_put(&l->meta, key, pgs__meta_key2(key, 'l', version, part), p, n, err);
        if (rc) return rc;
        p += n;
        len -= n;
    }
    return 0;
}

/* Remove all parts of the entry whose first part is at the cursor. */
static int drop_parts(struct pgs__ledger *l, struct pgs__meta_cursor *c, uint64_t version, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    for (;;) {
        uint64_t k[2], next[2];
        int rc = pgs__lkey(c, 2, k, err);
        if (rc || k[0] != version) return rc;
        int rc_next = pgs__lnext(l, c, 'l', err);
        if (!rc_next) rc_next = pgs__lkey(c, 2, next, err);
        if (rc_next && rc_next != -PGS_ENOENT) return rc_next;
        rc = pgs__ldel(l, key, pgs__meta_key2(key, 'l', version, k[1]), err);
        if (rc || rc_next || next[0] != version) return rc;
        rc = pgs__lseek(l, c, PGS__SEEK_GE, key, pgs__meta_key2(key, 'l', version, 0), err);
        if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    }
}

int pgs__llog_drop(struct pgs__ledger *l, uint64_t version, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key2(key, 'l', version, 0), err);
    if (rc) return rc == -PGS_ENOENT ? 0 : rc;
    return drop_parts(l, &c, version, err);
}

static int is_listed(struct pgs__ledger *l, uint64_t version, bool *listed, struct pgs_error *err)
{
    const struct pgs__record *h = &l->meta.hdr;
    pgs_gen_t gen;
    *listed = false;
    if (version < h->expire_hint && h->n_tagged == 0) return 0; /* the hint's promise */
    int rc = pgs__lversion_gen(l, version, &gen, err);
    *listed = rc == 0;
    return rc == -PGS_ENOENT ? 0 : rc;
}

/* Numbers that have just become older than the newest 8,192: one, or more after a jump. */
static int trim(struct pgs__ledger *l, struct pgs_error *err)
{
    uint64_t now = l->meta.hdr.version, before = l->head.version;
    if (now < PGS__LOG_KEPT) return 0;
    uint64_t at = before < PGS__LOG_KEPT ? 0 : before - PGS__LOG_KEPT + 1;
    while (at <= now - PGS__LOG_KEPT) {
        uint8_t key[KEY_MAX];
        struct pgs__meta_cursor c;
        uint64_t k[2];
        bool listed;
        int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key2(key, 'l', at, 0), err);
        if (!rc) rc = pgs__lkey(&c, 2, k, err);
        if (rc || k[0] > now - PGS__LOG_KEPT) return rc == -PGS_ENOENT ? 0 : rc;
        rc = is_listed(l, k[0], &listed, err);
        if (!rc && !listed) rc = drop_parts(l, &c, k[0], err);
        if (rc) return rc;
        at = k[0] + 1;
    }
    return 0;
}

int pgs__ledger_log_add(struct pgs__ledger *l, const struct pgs_commit_info *c, struct pgs_error *err)
{
    if (!l->gen) return pgs__fail(err, PGS_EBUG, "log without begin");
    bool truncated = c->keys_truncated != 0;
    size_t n_keys = keys_len(c, &truncated);
    size_t n_command = text_len(c->command, COMMAND_MAX), n_message = text_len(c->message, MESSAGE_MAX);
    struct log_head h = {.time_ns = c->time_ns,
                         .bytes_written = c->bytes_written,
                         .n_keys = c->n_keys,
                         .pid = (uint32_t)c->pid,
                         .keys_len = (uint32_t)n_keys,
                         .message_len = (uint32_t)n_message,
                         .command_len = (uint16_t)n_command,
                         .flags = (uint8_t)((truncated ? FLAG_TRUNCATED : 0u) | (c->message ? FLAG_MESSAGE : 0u))};
    size_t len = sizeof h + n_command + n_message + n_keys;
    uint8_t small[PART], *buf = len <= sizeof small ? small : pgs__malloc(len);
    if (!buf) return pgs__fail(err, PGS_ENOMEM, "out of memory for a log entry");
    memcpy(buf, &h, sizeof h);
    if (n_command) memcpy(buf + sizeof h, c->command, n_command);
    if (n_message) memcpy(buf + sizeof h + n_command, c->message, n_message);
    if (n_keys) memcpy(buf + sizeof h + n_command + n_message, c->keys, n_keys);
    int rc = put_parts(l, c->version, buf, len, err);
    if (buf != small) pgs__free(buf);
    return rc ? rc : trim(l, err);
}

/* --- reading ----------------------------------------------------------------------------------------------------------------- */
static int bad_entry(uint64_t version, struct pgs_error *err)
{
    return pgs__fail_corrupt(err, "the log", "the entry of version %llu is damaged", (unsigned long long)version);
}

/* All parts of one entry, one after the other, into buf (LOG_MAX bytes). */
static int collect_parts(struct pgs__ledger *l, uint64_t version, uint8_t *buf, size_t *len, struct pgs_error *err)
{
    uint8_t key[KEY_MAX];
    struct pgs__meta_cursor c;
    *len = 0;
    int rc = pgs__lseek(l, &c, PGS__SEEK_GE, key, pgs__meta_key2(key, 'l', version, 0), err);
    for (uint64_t part = 0; rc == 0; part++) {
        uint64_t k[2];
        rc = pgs__lkey(&c, 2, k, err);
        if (rc || k[0] != version) return rc;
        if (k[1] != part || c.val.len > LOG_MAX - *len) return bad_entry(version, err);
        memcpy(buf + *len, c.val.p, c.val.len);
        *len += c.val.len;
        rc = pgs__lnext(l, &c, 'l', err);
    }
    return rc == -PGS_ENOENT ? 0 : rc;
}

/* buf has room for two more bytes than len: the texts get terminated. */
static int decode(uint64_t version, uint8_t *buf, size_t len, char *command, char *message, struct pgs_commit_info *out,
                  struct pgs_error *err)
{
    struct log_head h;
    if (len < sizeof h) return bad_entry(version, err);
    memcpy(&h, buf, sizeof h);
    if (h.command_len > COMMAND_MAX || h.message_len > MESSAGE_MAX ||
        len != sizeof h + h.command_len + h.message_len + h.keys_len)
        return bad_entry(version, err);
    char *keys = (char *)buf + sizeof h + h.command_len + h.message_len;
    if (h.keys_len && keys[h.keys_len - 1] != 0) return bad_entry(version, err);
    uint64_t n = 0;
    for (size_t i = 0; i < h.keys_len; i++) n += keys[i] == 0;
    if ((h.flags & FLAG_TRUNCATED) == 0 && n != h.n_keys) return bad_entry(version, err);
    memcpy(command, buf + sizeof h, h.command_len);
    command[h.command_len] = 0;
    memcpy(message, buf + sizeof h + h.command_len, h.message_len);
    message[h.message_len] = 0;
    keys[h.keys_len] = 0;
    *out = (struct pgs_commit_info){.version = version,
                                    .time_ns = h.time_ns,
                                    .pid = h.pid,
                                    .bytes_written = h.bytes_written,
                                    .command = command,
                                    .message = h.flags & FLAG_MESSAGE ? message : NULL,
                                    .keys = keys,
                                    .n_keys = n, /* as many as are there */
                                    .keys_truncated = (h.flags & FLAG_TRUNCATED) != 0};
    return 0;
}

int pgs__ledger_log_walk(struct pgs__ledger *l, uint64_t before, int (*fn)(void *ctx, const struct pgs_commit_info *c),
                         void *ctx, struct pgs_error *err)
{
    uint8_t *buf = pgs__malloc(LOG_MAX + 2 + COMMAND_MAX + 1 + MESSAGE_MAX + 1);
    if (!buf) return pgs__fail(err, PGS_ENOMEM, "out of memory for the log");
    char *command = (char *)buf + LOG_MAX + 2, *message = command + COMMAND_MAX + 1;
    uint64_t at = before ? before : UINT64_MAX;
    int rc;
    for (;;) {
        uint8_t key[KEY_MAX];
        struct pgs__meta_cursor c;
        struct pgs_commit_info info;
        uint64_t k[2];
        size_t len;
        rc = pgs__lseek(l, &c, PGS__SEEK_LT, key, pgs__meta_key2(key, 'l', at, 0), err);
        if (!rc) rc = pgs__lkey(&c, 2, k, err);
        if (!rc) rc = collect_parts(l, k[0], buf, &len, err);
        if (!rc) rc = decode(k[0], buf, len, command, message, &info, err);
        if (rc) break;
        rc = fn(ctx, &info);
        if (rc) break;
        at = k[0];
    }
    pgs__free(buf);
    return rc == -PGS_ENOENT ? 0 : rc;
}
