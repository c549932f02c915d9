// A mutated .hashes file with sums that fit again, so that mutations come beyond them.
#pragma once

#include "fuzz.h"

#include "image/hashes_format.h"

#include <xxhash.h>

// Cluster size and algorithm as the file's header says, else those of a small file. Static memory.
static inline const HashGeometry *repair_geometry(const uint8_t *p, size_t n)
{
    static HashGeometry made[4];
    bool sha = n >= HASHES_HEADER_BYTES && hashes_get32(p + HASHES_AT_ALGORITHM) == HASH_SHA256;
    bool large = n >= HASHES_HEADER_BYTES && hashes_get32(p + HASHES_AT_CLUSTER) == 16384;
    HashGeometry *geo = &made[sha + 2 * large];
    HashSpec spec = {.algorithm = sha ? HASH_SHA256 : HASH_XXH3_128, .seed = 0x1234567890abcdef};
    Err err = ERR_INIT;
    if (geo->leaves == 0)
        fuzz_check(hash_geometry_init(geo, &spec, large ? 16384 : 4096, &err));
    return geo;
}

static inline void repair_records(uint8_t *p, uint64_t index, uint64_t records, const HashGeometry *geo)
{
    uint64_t h = hash_size(geo->spec.algorithm);
    for (uint64_t i = 0; i < records; i++) {
        uint8_t *e = p + index + i * HASHES_INDEX_BYTES;
        uint64_t at = hashes_get64(e + 8), bytes = hashes_marks_bytes(geo) + hashes_get32(e + 24) * h;
        if (at < index && bytes <= index - at)
            hashes_put64(e + 16, XXH3_64bits_withSeed(p + at, bytes, hashes_get64(e)));
    }
}

// Header, places of the parts, sums and root; what is in records, index and nodes stays.
static inline void repair_hashes(uint8_t *p, size_t n, const HashGeometry *geo)
{
    if (n < HASHES_HEADER_BYTES + HASHES_TRAILER_BYTES)
        return;
    uint8_t *trailer = p + n - HASHES_TRAILER_BYTES;
    uint64_t size = hashes_get64(p + HASHES_AT_SIZE), end = n - HASHES_TRAILER_BYTES;
    uint64_t h = hash_size(geo->spec.algorithm), groups = hash_groups(geo, size), room = end - HASHES_HEADER_BYTES;
    if (size == 0 || size > DISK_SIZE_MAX || groups > room / h)
        return;
    uint64_t nodes = end - groups * h;
    uint64_t records =
        MIN(hashes_get64(trailer + HASHES_AT_RECORDS), (nodes - HASHES_HEADER_BYTES) / HASHES_INDEX_BYTES);
    uint64_t index = nodes - records * HASHES_INDEX_BYTES;
    hashes_make_header(geo, size, p);
    memcpy(trailer, HASHES_TRAILER_MAGIC, 8);
    hashes_put64(trailer + HASHES_AT_INDEX, index);
    hashes_put64(trailer + HASHES_AT_RECORDS, records);
    hashes_put64(trailer + HASHES_AT_NODES, nodes);
    hashes_put64(trailer + HASHES_AT_GROUPS, groups);
    hashes_put64(trailer + HASHES_AT_NUMBERS, size);
    repair_records(p, index, records, geo);

    Hash root, *all = calloc(groups, sizeof(Hash));
    fuzz_check(all != NULL);
    for (uint64_t i = 0; i < groups; i++)
        memcpy(all[i].bytes, p + nodes + i * h, h);
    hash_root(geo, size, all, groups, &root);
    free(all);
    memcpy(trailer + HASHES_AT_ROOT, root.bytes, sizeof(root.bytes));
    XXH3_state_t *sum = XXH3_createState();
    fuzz_check(sum != NULL);
    (void)XXH3_64bits_reset(sum);
    (void)XXH3_64bits_update(sum, p, HASHES_HEADER_BYTES);
    (void)XXH3_64bits_update(sum, p + index, end - index);
    (void)XXH3_64bits_update(sum, trailer, HASHES_AT_CHECKSUM);
    hashes_put64(trailer + HASHES_AT_CHECKSUM, XXH3_64bits_digest(sum));
    (void)XXH3_freeState(sum);
}
