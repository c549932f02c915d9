#include "image/hash.h"

#include "base/str.h"

#include <endian.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <xxhash.h>
#ifdef HAVE_XXH_DISPATCH
#    include <xxh_x86dispatch.h> // the same names, and the widest registers of this machine
#endif

#define ROOT_LABEL "sendense-root-1"

static const char *const algorithm_names[] = {"xxh3-128", "sha256"};

struct HashStream {
    HashAlgorithm algorithm;
    XXH3_state_t *xxh;
    EVP_MD_CTX *sha;
};

const char *hash_algorithm_name(HashAlgorithm a)
{
    return algorithm_names[a];
}

bool hash_algorithm_parse(const char *name, HashAlgorithm *ret, Err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(algorithm_names); i++) {
        if (str_eq(name, algorithm_names[i])) {
            *ret = (HashAlgorithm)i;
            return true;
        }
    }
    return err_set(err, ERR_INVALID, "unknown hash algorithm; known are xxh3-128 and sha256");
}

size_t hash_size(HashAlgorithm a)
{
    return a == HASH_SHA256 ? 32 : 16;
}

// A hash that cannot be computed must not be guessed, and no caller could go on without it.
static void require(bool ok)
{
    if (!ok) {
        fputs("a hash could not be computed: no memory, or no SHA-256 in OpenSSL\n", stderr);
        abort();
    }
}

static pthread_once_t sha_once = PTHREAD_ONCE_INIT;
static EVP_MD *sha_md; // fetched once: doing it on each call costs more than the hash of a small cluster

static void sha_fetch(void)
{
    sha_md = EVP_MD_fetch(NULL, "SHA256", NULL);
}

static EVP_MD_CTX *sha_begin(uint64_t seed)
{
    pthread_once(&sha_once, sha_fetch);
    EVP_MD_CTX *ctx = sha_md ? EVP_MD_CTX_new() : NULL;
    seed = htole64(seed);
    if (ctx && EVP_DigestInit_ex2(ctx, sha_md, NULL) == 1 && EVP_DigestUpdate(ctx, &seed, sizeof seed) == 1)
        return ctx;
    EVP_MD_CTX_free(ctx);
    return NULL;
}

static void sha_end(EVP_MD_CTX *ctx, Hash *ret)
{
    unsigned n = 0;
    *ret = (Hash){0};
    require(EVP_DigestFinal_ex(ctx, ret->bytes, &n) == 1 && n == 32);
}

static void xxh_store(XXH128_hash_t h, Hash *ret)
{
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, h);
    *ret = (Hash){0};
    memcpy(ret->bytes, c.digest, sizeof c.digest);
}

void hash_bytes(const HashSpec *spec, const void *p, size_t n, Hash *ret)
{
    if (spec->algorithm == HASH_XXH3_128) {
        xxh_store(XXH3_128bits_withSeed(p, n, spec->seed), ret);
        return;
    }
    EVP_MD_CTX *ctx = sha_begin(spec->seed);
    require(ctx && EVP_DigestUpdate(ctx, p, n) == 1);
    sha_end(ctx, ret);
    EVP_MD_CTX_free(ctx);
}

bool hash_equal(const Hash *a, const Hash *b)
{
    return memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

void hash_text(const HashSpec *spec, const Hash *h, char out[HASH_TEXT_MAX])
{
    str_hex(h->bytes, hash_size(spec->algorithm), out);
}

bool hash_from_text(const HashSpec *spec, const char *text, Hash *ret, Err *err)
{
    Hash h = {0};
    if (!str_unhex(text, h.bytes, hash_size(spec->algorithm)))
        return err_set(err, ERR_INVALID, "not a %s hash in hex", hash_algorithm_name(spec->algorithm));
    *ret = h;
    return true;
}

bool hash_stream_new(const HashSpec *spec, HashStream **ret, Err *err)
{
    HashStream *s = mem_calloc(1, sizeof *s, err);
    if (!s)
        return false;
    s->algorithm = spec->algorithm;
    if (spec->algorithm == HASH_XXH3_128) {
        s->xxh = XXH3_createState();
        if (s->xxh && XXH3_128bits_reset_withSeed(s->xxh, spec->seed) == XXH_OK) {
            *ret = s;
            return true;
        }
    } else {
        s->sha = sha_begin(spec->seed);
        if (s->sha) {
            *ret = s;
            return true;
        }
    }
    hash_stream_free(s);
    return err_no_memory(err);
}

void hash_stream_add(HashStream *s, const void *p, size_t n)
{
    if (n == 0)
        return;
    if (s->algorithm == HASH_XXH3_128)
        (void)XXH3_128bits_update(s->xxh, p, n); // fails on NULL only
    else
        require(EVP_DigestUpdate(s->sha, p, n) == 1);
}

void hash_stream_end(HashStream *s, Hash *ret)
{
    if (s->algorithm == HASH_XXH3_128)
        xxh_store(XXH3_128bits_digest(s->xxh), ret);
    else
        sha_end(s->sha, ret);
}

void hash_stream_free(HashStream *s)
{
    if (!s)
        return;
    (void)XXH3_freeState(s->xxh); // always XXH_OK
    EVP_MD_CTX_free(s->sha);
    free(s);
}

bool hash_is_zero(const void *p, size_t n)
{
    // The first bytes by hand, and then each byte against the one 16 before: memcmp() is the fastest reader of
    // memory that there is, and stops at the first difference.
    static const uint8_t zeros[16];
    if (n <= sizeof zeros)
        return memcmp(p, zeros, n) == 0;
    return memcmp(p, zeros, sizeof zeros) == 0 && memcmp(p, (const uint8_t *)p + sizeof zeros, n - sizeof zeros) == 0;
}

bool hash_geometry_init(HashGeometry *g, const HashSpec *spec, uint32_t cluster_size, Err *err)
{
    if (cluster_size < 4096 || cluster_size > (2u << 20) || (cluster_size & (cluster_size - 1)) != 0)
        return err_set(err, ERR_INVALID, "cluster size must be a power of two from 4096 to 2097152");
    HashGeometry geo = {.spec = *spec, .cluster_size = cluster_size, .leaves = cluster_size / 8};
    cleanup_free void *zeros = mem_calloc(1, cluster_size, err);
    cleanup_free Hash *leaves = mem_calloc(geo.leaves, sizeof(Hash), err);
    if (!zeros || !leaves)
        return false;
    hash_bytes(spec, zeros, cluster_size, &geo.zero_leaf);
    for (uint32_t i = 0; i < geo.leaves; i++)
        leaves[i] = geo.zero_leaf;
    hash_node(&geo, leaves, &geo.zero_node);
    *g = geo;
    return true;
}

uint64_t hash_groups(const HashGeometry *g, uint64_t size)
{
    uint64_t span = (uint64_t)g->cluster_size * g->leaves;
    return size / span + (size % span != 0);
}

// Leaves are hashed packed (hash_size() bytes each), some at a time, to need no large buffer.
void hash_node(const HashGeometry *g, const Hash *leaves, Hash *ret)
{
    HashStream *s = NULL;
    Err err = ERR_INIT;
    if (!hash_stream_new(&g->spec, &s, &err))
        require(false);
    size_t bytes = hash_size(g->spec.algorithm), used = 0;
    uint8_t packed[8192];
    for (uint32_t i = 0; i < g->leaves; i++) {
        memcpy(packed + used, leaves[i].bytes, bytes);
        used += bytes;
        if (used == sizeof packed || i + 1 == g->leaves) {
            hash_stream_add(s, packed, used);
            used = 0;
        }
    }
    hash_stream_end(s, ret);
    hash_stream_free(s);
}

bool hash_root(const HashGeometry *g, uint64_t size, const Hash *nodes, uint64_t n, Hash *ret, Err *err)
{
    HashStream *s = NULL;
    if (!hash_stream_new(&g->spec, &s, err))
        return false;
    uint64_t numbers[2] = {htole64(size), htole64(g->cluster_size)};
    hash_stream_add(s, ROOT_LABEL, strlen(ROOT_LABEL));
    hash_stream_add(s, numbers, sizeof numbers);
    size_t bytes = hash_size(g->spec.algorithm);
    for (uint64_t i = 0; i < n; i++)
        hash_stream_add(s, nodes[i].bytes, bytes);
    hash_stream_end(s, ret);
    hash_stream_free(s);
    return true;
}
