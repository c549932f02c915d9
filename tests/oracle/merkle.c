#include "merkle.h"

#include <openssl/sha.h>
#include <xxhash.h>

// H of the definition. room: n + 8 bytes whose first 8 are free for the seed; the data follows.
static void digest(const HashSpec *spec, uint8_t *room, size_t n, uint8_t *out)
{
    if (spec->algorithm == HASH_SHA256) {
        for (int i = 0; i < 8; i++)
            room[i] = (uint8_t)(spec->seed >> (8 * i));
        (void)SHA256(room, n + 8, out); // never fails
        return;
    }
    XXH128_hash_t h = XXH3_128bits_withSeed(room + 8, n, spec->seed);
    for (int i = 0; i < 8; i++) {
        out[i] = (uint8_t)(h.high64 >> (56 - 8 * i));
        out[8 + i] = (uint8_t)(h.low64 >> (56 - 8 * i));
    }
}

bool merkle_root(const HashSpec *spec, uint32_t cluster_size, const uint8_t *bytes, uint64_t size, Hash *ret, Err *err)
{
    static const char label[] = "sendense-root-1";
    size_t width = spec->algorithm == HASH_SHA256 ? 32 : 16, leaves = cluster_size / 8;
    uint64_t span = (uint64_t)cluster_size * leaves, groups = (size + span - 1) / span;
    cleanup_free uint8_t *cluster = mem_calloc(1, 8 + cluster_size, err);
    cleanup_free uint8_t *node = mem_calloc(1, 8 + leaves * width, err);
    cleanup_free uint8_t *root = mem_calloc(1, 8 + 15 + 16 + (size_t)groups * width, err);
    if (!cluster || !node || !root)
        return false;
    uint8_t *at = root + 8;
    memcpy(at, label, 15);
    for (int i = 0; i < 8; i++) {
        at[15 + i] = (uint8_t)(size >> (8 * i));
        at[23 + i] = (uint8_t)((uint64_t)cluster_size >> (8 * i));
    }
    uint8_t zero_leaf[32];
    memset(cluster, 0, 8 + cluster_size);
    digest(spec, cluster, cluster_size, zero_leaf);
    for (uint64_t g = 0; g < groups; g++) {
        for (size_t k = 0; k < leaves; k++) {
            uint64_t offset = g * span + k * cluster_size;
            if (offset >= size) {
                memcpy(node + 8 + k * width, zero_leaf, width);
                continue;
            }
            memset(cluster, 0, 8 + cluster_size);
            memcpy(cluster + 8, bytes + offset, MIN(cluster_size, size - offset));
            digest(spec, cluster, cluster_size, node + 8 + k * width);
        }
        digest(spec, node, leaves * width, at + 31 + g * width);
    }
    *ret = (Hash){0};
    digest(spec, root, 31 + (size_t)groups * width, ret->bytes);
    return true;
}
