/* Pagestone | tests/unit/test_names — keys: which are well formed, and which may live together.
 * SPDX-License-Identifier: Apache-2.0
 */
#include "libshm/catalog/object.h"

#include "tests/unit/content_fixture.h"

static int check(const char *key)
{
    return pgs__name_check(key, strlen(key), NULL);
}

TEST(keys_are_utf8_with_sound_parts)
{
    static const char *const good[] = {
        "a", "a/b", "a.b",  ".a", "...", "a/.../b", "ä/ß", "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf", "\xee\x80\x80",
        " ", "a b", "\x7f", "-"};
    static const char *const bad[] = {"/",
                                      "/a",
                                      "a/",
                                      "a//b",
                                      ".",
                                      "..",
                                      "a/.",
                                      "a/..",
                                      "./a",
                                      "../a",
                                      "a/../b",
                                      "\x80",
                                      "a\xff",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xe0\x80\x80",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xed\xbf\xbf",
                                      "\xf0\x80\x80\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xc3",
                                      "a/\xe2\x82",
                                      "\xe2\x82/"};
    for (size_t i = 0; i < PGS_ARRAY_LEN(good); i++)
        if (check(good[i])) TEST_FAIL("good key %zu was refused", i);
    for (size_t i = 0; i < PGS_ARRAY_LEN(bad); i++)
        if (check(bad[i]) != -PGS_ENAME) TEST_FAIL("bad key %zu was accepted", i);
    CHECK_ERR(pgs__name_check("", 0, NULL), PGS_ENAME);
    CHECK_ERR(pgs__name_check("a\0b", 3, NULL), PGS_ENAME);
    char key[1100];
    memset(key, 'k', sizeof key);
    CHECK_OK(pgs__name_check(key, 250, &err));
    CHECK_ERR(pgs__name_check(key, 251, NULL), PGS_ENAME);
    for (unsigned i = 250; i < sizeof key; i += 251) key[i] = '/';
    CHECK_OK(pgs__name_check(key, 1024, &err));
    CHECK_ERR(pgs__name_check(key, 1025, NULL), PGS_ENAME);
    CHECK_ERR(pgs__name_check(key, 251, NULL), PGS_ENAME); /* ends with '/' */
}

TEST(hidden_keys_follow_no_rules_but_length)
{
    char key[1025] = "\0//../\xff";
    CHECK_OK(pgs__name_check(key, 1, &err));
    CHECK_OK(pgs__name_check(key, 9, &err));
    CHECK_OK(pgs__name_check(key, 1024, &err));
    CHECK_ERR(pgs__name_check(key, 1025, NULL), PGS_ENAME);
}

/* --- UTF-8 against a decoder of another make: every value, encoded by the textbook ------------------------------------------- */
TEST(every_character_is_a_key_and_no_surrogate_is)
{
    for (uint32_t u = 1; u <= 0x110010; u++) {
        uint8_t b[4];
        size_t n;
        if (u < 0x80)
            n = 1, b[0] = (uint8_t)u;
        else if (u < 0x800)
            n = 2, b[0] = (uint8_t)(0xc0 | u >> 6), b[1] = (uint8_t)(0x80 | (u & 63));
        else if (u < 0x10000)
            n = 3, b[0] = (uint8_t)(0xe0 | u >> 12), b[1] = (uint8_t)(0x80 | (u >> 6 & 63)),
            b[2] = (uint8_t)(0x80 | (u & 63));
        else
            n = 4, b[0] = (uint8_t)(0xf0 | u >> 18), b[1] = (uint8_t)(0x80 | (u >> 12 & 63)),
            b[2] = (uint8_t)(0x80 | (u >> 6 & 63)), b[3] = (uint8_t)(0x80 | (u & 63));
        bool good = u != '.' && u != '/' && !(u >= 0xd800 && u < 0xe000) && u < 0x110000;
        if ((pgs__name_check(b, n, NULL) == 0) != good) TEST_FAIL("U+%04X", u);
    }
}

/* --- names among others ---------------------------------------------------------------------------------------------------------- */
struct catalog {
    struct world w;
    struct pgs__edit *e;
    struct pgs__tree t;
};

static void catalog_open(struct catalog *c)
{
    static const struct pgs_ptr none;
    world_open(&c->w);
    c->e = pgs__edit_new(&c->w.pf, PGS__TREE_CATALOG, &none);
    c->t = (struct pgs__tree){.pf = &c->w.pf, .kind = PGS__TREE_CATALOG, .edit = c->e};
}
static void catalog_close(struct catalog *c)
{
    pgs__edit_free(c->e);
    world_close(&c->w);
}
static void put(struct catalog *c, const char *key, enum pgs_kind kind)
{
    struct pgs__object o = {.kind = kind, .content = {.form = PGS__FORM_INLINE}};
    uint8_t buf[PGS__RECORD_MAX];
    size_t len;
    if (kind == PGS_KIND_ARRAY) {
        o.order = 'C';
        o.ndim = 1;
        o.itemsize = 8;
        o.dtype = "<f8";
        o.dtype_len = 3;
    }
    CHECK_OK(pgs__object_encode(&o, buf, &len, &err));
    CHECK_OK(pgs__edit_put(c->e, key, strlen(key), buf, len, &err));
}

/* Path of the object's file, and the directories above, are what must be unique: the rules said in another way. */
static size_t model_path(const char *key, enum pgs_kind kind, char *buf)
{
    size_t n = pgs__name_in_view(key, strlen(key), kind, buf);
    buf[n] = 0;
    return n;
}
static bool model_clash(const char *a, enum pgs_kind ka, const char *b, enum pgs_kind kb)
{
    char pa[PGS_MAX_KEY + 8], pb[PGS_MAX_KEY + 8];
    size_t na, nb;
    if (strcmp(a, b) == 0) return false; /* replacing */
    na = model_path(a, ka, pa);
    nb = model_path(b, kb, pb);
    if (strcmp(pa, pb) == 0) return true;
    /* a's file would be a directory above b's, or the other way round; groups may be both */
    if (ka != PGS_KIND_DIR && nb > na && memcmp(pa, pb, na) == 0 && pb[na] == '/') return true;
    if (kb != PGS_KIND_DIR && na > nb && memcmp(pa, pb, nb) == 0 && pa[nb] == '/') return true;
    /* by key: "a" and "a/b", whatever they are shown as */
    na = strlen(a);
    nb = strlen(b);
    if (ka != PGS_KIND_DIR && nb > na && memcmp(a, b, na) == 0 && b[na] == '/') return true;
    return kb != PGS_KIND_DIR && na > nb && memcmp(a, b, nb) == 0 && a[nb] == '/';
}

TEST(any_two_names_fit_together_as_the_rules_say)
{
    static const char *const keys[] = {"x",     "x.npy",     "x.pkl",       "x.npy.npy", "x.npy.pkl",
                                       "x/y",   "x.npy/y",   "x.npy/y.npy", "x.pkl/y",   "x/y.npy",
                                       "x/y/z", "x.npy/y/z", ".npy",        "x/.npy",    "x.np",
                                       "y",     "x-",        "x.npy-",      "x0",        "x.npy0/a"};
    int n_clashes = 0;
    for (size_t i = 0; i < PGS_ARRAY_LEN(keys); i++)
        for (size_t j = 0; j < PGS_ARRAY_LEN(keys); j++)
            for (int ki = 1; ki <= 5; ki++)
                for (int kj = 1; kj <= 5; kj++) {
                    struct catalog c;
                    struct pgs_error e = {0};
                    catalog_open(&c);
                    put(&c, "bystander", PGS_KIND_BYTES);
                    put(&c, keys[i], (enum pgs_kind)ki);
                    int rc = pgs__name_fits(&c.t, keys[j], strlen(keys[j]), (enum pgs_kind)kj, &e);
                    bool clash = model_clash(keys[i], (enum pgs_kind)ki, keys[j], (enum pgs_kind)kj);
                    if (rc != (clash ? -PGS_EEXIST : 0))
                        TEST_FAIL("'%s' kind %d, then '%s' kind %d: %d, expected %s", keys[i], ki, keys[j], kj, rc,
                                  clash ? "a clash" : "none");
                    if (clash) {
                        char q[64];
                        n_clashes++;
                        snprintf(q, sizeof q, "'%s'", keys[i]);
                        CHECK(strstr(e.text, q)); /* both are named */
                        snprintf(q, sizeof q, "'%s'", keys[j]);
                        CHECK(strstr(e.text, q));
                    }
                    catalog_close(&c);
                }
    CHECK(n_clashes > 300);
}

TEST(hidden_names_and_the_longest_ones_fit)
{
    struct catalog c;
    catalog_open(&c);
    put(&c, "a", PGS_KIND_BYTES);
    CHECK_OK(pgs__name_fits(&c.t, "\0a/b", 4, PGS_KIND_BYTES, &err));
    char key[1024];
    memset(key, 'k', sizeof key);
    for (unsigned i = 250; i < sizeof key; i += 251) key[i] = '/';
    CHECK_OK(pgs__name_fits(&c.t, key, sizeof key, PGS_KIND_ARRAY, &err));
    CHECK_OK(pgs__name_fits(&c.t, key, 1022, PGS_KIND_ARRAY, &err));
    CHECK_OK(pgs__edit_put(c.e, key, sizeof key, "\2", 1, &err));
    key[1022] = '/'; /* another key: its parent has 1,022 bytes */
    CHECK_OK(pgs__edit_put(c.e, key, sizeof key, "\2", 1, &err));
    CHECK_ERR(pgs__name_fits(&c.t, key, 1022, PGS_KIND_ARRAY, NULL), PGS_EEXIST);
    CHECK_OK(pgs__edit_put(c.e, "broken", 6, "\77", 1, &err));
    CHECK_ERR(pgs__name_fits(&c.t, "broken/x", 8, PGS_KIND_BYTES, NULL), PGS_ECORRUPT);
    catalog_close(&c);
}

int main(int argc, char **argv)
{
    return run_tests(argc, argv);
}
