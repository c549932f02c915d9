// A chain, flattened: the state is what QEMU would read (safety rule 1).
#include "image/hashes.h"

struct ChainHashes {
    HashGeometry geo;
    HashesFile *layers[CHAIN_LAYERS_MAX]; // [0] is the tip
    size_t len;
};

bool chain_hashes_open(const ChainLayerPath *layers, size_t n, const HashGeometry *geo, ChainHashes **ret, Err *err)
{
    if (n == 0 || n > CHAIN_LAYERS_MAX)
        return err_set(err, ERR_INVALID, "a chain has 1 to %d layers, not %zu", CHAIN_LAYERS_MAX, n);
    ChainHashes *c = mem_calloc(1, sizeof *c, err);
    if (!c)
        return false;
    c->geo = *geo;
    for (; c->len < n; c->len++) {
        if (!hashes_open(layers[c->len].hashes, geo, &c->layers[c->len], err)) {
            chain_hashes_free(c);
            return false;
        }
    }
    *ret = c;
    return true;
}

void chain_hashes_free(ChainHashes *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->len; i++)
        hashes_free(c->layers[i]);
    free(c);
}

uint64_t chain_hashes_size(const ChainHashes *c)
{
    return hashes_summary(c->layers[0])->size;
}

const Hash *chain_hashes_node(const ChainHashes *c, uint64_t group)
{
    if (group >= hash_groups(&c->geo, chain_hashes_size(c)))
        return &c->geo.zero_node;
    return hashes_node(c->layers[0], group);
}

// Of the layers so far nobody decided these clusters (0xff in deciders is "not yet").
typedef struct Flat {
    Hash *leaves;
    uint8_t *deciders;
    uint32_t open; // not yet decided
} Flat;

#define NOT_YET 0xff // and in the end: nobody
#define CUT 0xfe     // beyond a layer's size: zero, whatever lies below

static bool add_layer(const ChainHashes *c, size_t layer, uint64_t group, uint8_t *marks, Hash *leaves, Flat *flat,
                      Err *err)
{
    const HashesFile *f = c->layers[layer];
    uint64_t size = hashes_summary(f)->size, first = group * c->geo.leaves;
    uint64_t clusters = size / c->geo.cluster_size + (size % c->geo.cluster_size != 0);
    uint64_t inside = clusters <= first ? 0 : MIN(clusters - first, c->geo.leaves);
    bool any;
    if (!hashes_group(f, group, marks, leaves, &any, err))
        return err_context(err, "layer %zu", layer);
    for (uint32_t i = any ? 0 : (uint32_t)inside; i < c->geo.leaves; i++) {
        if (flat->deciders[i] != NOT_YET)
            continue;
        if (i >= inside) {
            flat->deciders[i] = CUT;
            flat->open--;
        } else if (marks[i] != HASH_ABSENT) {
            flat->leaves[i] = leaves[i];
            flat->deciders[i] = (uint8_t)layer;
            flat->open--;
        }
    }
    return true;
}

bool chain_hashes_group(ChainHashes *c, uint64_t group, Hash *ret_leaves, uint8_t *ret_layers, Err *err)
{
    uint32_t n = c->geo.leaves;
    cleanup_free uint8_t *marks = mem_calloc(n, 1, err);
    cleanup_free Hash *leaves = mem_calloc(n, sizeof(Hash), err);
    cleanup_free uint8_t *deciders = mem_calloc(n, 1, err);
    if (!marks || !leaves || !deciders)
        return false;
    Flat flat = {.leaves = ret_leaves, .deciders = deciders, .open = n};
    memset(deciders, NOT_YET, n);
    for (uint32_t i = 0; i < n; i++)
        ret_leaves[i] = c->geo.zero_leaf;
    for (size_t layer = 0; layer < c->len && flat.open > 0; layer++)
        if (!add_layer(c, layer, group, marks, leaves, &flat, err))
            return false;
    for (uint32_t i = 0; i < n; i++)
        if (deciders[i] == CUT)
            deciders[i] = NOT_YET;
    // The tip says what all of it together must give: layers that do not belong together are seen here.
    Hash node;
    hash_node(&c->geo, ret_leaves, &node);
    if (!hash_equal(&node, chain_hashes_node(c, group)))
        return err_set(err, ERR_DAMAGED, "the layers' hashes of group %llu do not give the point's node",
                       (unsigned long long)group);
    if (ret_layers)
        memcpy(ret_layers, deciders, n);
    return true;
}
