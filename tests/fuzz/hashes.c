// A .hashes file: as it came, and with sums that fit.
#include "fuzz.h"

#include "repair.h"

#define GROUPS_MAX 4 // looked at

static void check_group(const HashesFile *f, const HashGeometry *geo, uint64_t group)
{
    Err err = ERR_INIT;
    bool any = false;
    uint64_t present = 0, size = hashes_summary(f)->size;
    cleanup_free uint8_t *marks = malloc(geo->leaves);
    cleanup_free Hash *leaves = malloc(geo->leaves * sizeof(Hash));
    fuzz_check(marks && leaves);
    if (!hashes_group(f, group, marks, leaves, &any, &err)) {
        fuzz_check(err.code == ERR_DAMAGED);
        return;
    }
    for (uint64_t i = 0; i < geo->leaves; i++) {
        fuzz_check(marks[i] <= HASH_ZERO);
        present += marks[i] != HASH_ABSENT;
        if (marks[i] != HASH_ABSENT) // never beyond the disk's end
            fuzz_check((group * geo->leaves + i) * geo->cluster_size < size);
        if (marks[i] == HASH_ZERO)
            fuzz_check(hash_equal(&leaves[i], &geo->zero_leaf));
    }
    fuzz_check(any == (present > 0));
}

static void check_file(const uint8_t *p, size_t n, const HashGeometry *geo)
{
    Err err = ERR_INIT;
    HashesFile *f = NULL;
    Hash digest;
    const char *path = fuzz_file(0, p, n);
    fuzz_check(hashes_file_digest(path, &geo->spec, &digest, &err));
    if (!hashes_open(path, geo, &f, &err)) {
        fuzz_check(err.code == ERR_DAMAGED);
        return;
    }
    uint64_t groups = hash_groups(geo, hashes_summary(f)->size);
    for (uint64_t g = 0; g < MIN(groups, GROUPS_MAX); g++)
        check_group(f, geo, g);
    check_group(f, geo, groups - 1);
    hashes_free(f);

    // A chain of it alone shows what it says itself, or fails.
    ChainLayerPath layer = {.hashes = path};
    ChainHashes *chain = NULL;
    cleanup_free Hash *leaves = malloc(geo->leaves * sizeof(Hash));
    cleanup_free uint8_t *layers = malloc(geo->leaves);
    fuzz_check(leaves && layers && chain_hashes_open(&layer, 1, geo, &chain, &err));
    if (chain_hashes_group(chain, 0, leaves, layers, &err))
        for (uint32_t i = 0; i < geo->leaves; i++)
            fuzz_check(layers[i] == 0 || (layers[i] == 255 && hash_equal(&leaves[i], &geo->zero_leaf)));
    chain_hashes_free(chain);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const HashGeometry *geo = repair_geometry(data, n);
    check_file(data, n, geo);
    cleanup_free uint8_t *p = malloc(n + 1);
    fuzz_check(p != NULL);
    if (n > 0)
        memcpy(p, data, n);
    repair_hashes(p, n, geo);
    check_file(p, n, geo);
    return 0;
}
