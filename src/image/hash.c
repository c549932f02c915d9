#include "image/hash.h"

#include "base/str.h"

#include <endian.h>
#define OPENSSL_SUPPRESS_DEPRECATED // SHA256_*: the same code as EVP's, and nothing is allocated, so it cannot fail
#include <openssl/sha.h>
#define XXH_STATIC_LINKING_ONLY // the state's size
#include <xxhash.h>
#ifdef HAVE_XXH_DISPATCH
#    include <xxh_x86dispatch.h> // the same names, and the widest registers of this machine
#endif

#define ROOT_LABEL "sendense-root-1"

static const char *const algorithm_names[] = {"xxh3-128", "sha256"};

struct HashStream {
    HashAlgorithm algorithm;
    union {
        XXH3_state_t xxh;
        SHA256_CTX sha;
    };
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

static void xxh_store(XXH128_hash_t h, Hash *ret)
{
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, h);
    *ret = (Hash){0};
    memcpy(ret->bytes, c.digest, sizeof c.digest);
}

static void stream_begin(HashStream *s, const HashSpec *spec)
{
    s->algorithm = spec->algorithm;
    if (spec->algorithm == HASH_XXH3_128) {
        XXH3_INITSTATE(&s->xxh);                                // the reset looks at what the last seed was
        (void)XXH3_128bits_reset_withSeed(&s->xxh, spec->seed); // fails on NULL only, and so do those below
        return;
    }
    uint64_t seed = htole64(spec->seed);
    (void)SHA256_Init(&s->sha);
    (void)SHA256_Update(&s->sha, &seed, sizeof seed);
}

void hash_bytes(const HashSpec *spec, const void *p, size_t n, Hash *ret)
{
    if (spec->algorithm == HASH_XXH3_128) {
        xxh_store(XXH3_128bits_withSeed(p, n, spec->seed), ret);
        return;
    }
    HashStream s;
    stream_begin(&s, spec);
    hash_stream_add(&s, p, n);
    hash_stream_end(&s, ret);
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
    HashStream *s = aligned_alloc(_Alignof(HashStream), sizeof *s); // 64 bytes: for wide registers
    if (!s)
        return err_no_memory(err);
    stream_begin(s, spec);
    *ret = s;
    return true;
}

void hash_stream_add(HashStream *s, const void *p, size_t n)
{
    if (n == 0)
        return;
    if (s->algorithm == HASH_XXH3_128)
        (void)XXH3_128bits_update(&s->xxh, p, n);
    else
        (void)SHA256_Update(&s->sha, p, n);
}

void hash_stream_end(HashStream *s, Hash *ret)
{
    *ret = (Hash){0};
    if (s->algorithm == HASH_XXH3_128)
        xxh_store(XXH3_128bits_digest(&s->xxh), ret);
    else
        (void)SHA256_Final(ret->bytes, &s->sha);
}

void hash_stream_free(HashStream *s)
{
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
    HashStream s;
    stream_begin(&s, &g->spec);
    size_t bytes = hash_size(g->spec.algorithm), used = 0;
    uint8_t packed[8192];
    for (uint32_t i = 0; i < g->leaves; i++) {
        memcpy(packed + used, leaves[i].bytes, bytes);
        used += bytes;
        if (used == sizeof packed || i + 1 == g->leaves) {
            hash_stream_add(&s, packed, used);
            used = 0;
        }
    }
    hash_stream_end(&s, ret);
}

void hash_root(const HashGeometry *g, uint64_t size, const Hash *nodes, uint64_t n, Hash *ret)
{
    HashStream s;
    stream_begin(&s, &g->spec);
    uint64_t numbers[2] = {htole64(size), htole64(g->cluster_size)};
    hash_stream_add(&s, ROOT_LABEL, strlen(ROOT_LABEL));
    hash_stream_add(&s, numbers, sizeof numbers);
    size_t bytes = hash_size(g->spec.algorithm);
    for (uint64_t i = 0; i < n; i++)
        hash_stream_add(&s, nodes[i].bytes, bytes);
    hash_stream_end(&s, ret);
}
