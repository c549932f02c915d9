#include "mover/sink_hasher.h"

#include <inttypes.h>

#define MAX_REQUEST (32u << 20)
#define MAX_IN_FLIGHT 16
#define OPEN_MAX 64

// A group of clusters whose leaves are not all known yet.
typedef struct Group {
    uint32_t missing; // leaves
    uint8_t *have;    // one byte a leaf
    Hash *leaves;
} Group;

typedef struct Hasher {
    Blocks blocks; // first
    const HashGeometry *geo;
    uint64_t clusters, groups;
    Hash *nodes;
    uint8_t *done;    // one byte a group: its node is known
    Group **open;     // one pointer a group
    unsigned opened;  // groups that are begun
    uint64_t missing; // groups that are not done
    uint8_t *padded;  // the last cluster, filled up with zeros
} Hasher;

static void group_free(Group *g)
{
    if (!g)
        return;
    free(g->have);
    free(g->leaves);
    free(g);
}

static Group *group_begin(Hasher *h, uint64_t index, Err *err)
{
    if (h->opened == OPEN_MAX) {
        (void)err_set(err, ERR_TOO_LARGE, "clusters of more than %d groups arrive at a time", OPEN_MAX);
        return NULL;
    }
    uint32_t n = h->geo->leaves;
    Group *g = mem_calloc(1, sizeof(*g), err);
    if (!g)
        return NULL;
    g->have = mem_calloc(n, 1, err);
    g->leaves = mem_calloc(n, sizeof(*g->leaves), err);
    if (!g->have || !g->leaves) {
        group_free(g);
        return NULL;
    }
    uint64_t first = index * n;
    g->missing = (uint32_t)MIN(n, h->clusters - first);
    for (uint32_t i = g->missing; i < n; i++)
        g->leaves[i] = h->geo->zero_leaf; // beyond the disk's end
    h->open[index] = g;
    h->opened++;
    return g;
}

static void group_end(Hasher *h, uint64_t index, const Hash *node)
{
    h->nodes[index] = *node;
    h->done[index] = 1;
    h->missing--;
    if (h->open[index]) {
        group_free(mem_take(h->open[index]));
        h->opened--;
    }
}

static bool set_leaf(Hasher *h, uint64_t cluster, const Hash *leaf, Err *err)
{
    uint64_t index = cluster / h->geo->leaves;
    uint32_t at = (uint32_t)(cluster % h->geo->leaves);
    Group *g = h->open[index];
    if (h->done[index] || (g && g->have[at]))
        return err_set(err, ERR_INVALID, "cluster %" PRIu64 " arrived twice", cluster);
    if (!g)
        g = group_begin(h, index, err);
    if (!g)
        return false;
    g->have[at] = 1;
    g->leaves[at] = *leaf;
    if (--g->missing > 0)
        return true;
    Hash node;
    hash_node(h->geo, g->leaves, &node);
    group_end(h, index, &node);
    return true;
}

// Whole clusters, or up to the end.
static bool check_range(const Hasher *h, uint64_t offset, uint64_t length, Err *err)
{
    uint64_t mask = h->geo->cluster_size - 1, size = h->blocks.size;
    if (length == 0 || offset >= size || length > size - offset || (offset & mask) != 0 ||
        ((length & mask) != 0 && offset + length != size))
        return err_set(err, ERR_INVALID, "%" PRIu64 " bytes at offset %" PRIu64 " are not whole clusters", length,
                       offset);
    return true;
}

static bool hasher_write(Blocks *b, const void *p, uint64_t offset, uint32_t length, BlocksReq *req, Err *err)
{
    Hasher *h = (Hasher *)b;
    uint32_t size = h->geo->cluster_size;
    if (!check_range(h, offset, length, err))
        return false;
    for (uint32_t at = 0; at < length; at += size) {
        const void *cluster = (const uint8_t *)p + at;
        if (length - at < size) {
            memcpy(h->padded, cluster, length - at);
            memset(h->padded + (length - at), 0, size - (length - at));
            cluster = h->padded;
        }
        Hash leaf;
        hash_bytes(&h->geo->spec, cluster, size, &leaf);
        if (!set_leaf(h, (offset + at) / size, &leaf, err))
            return false;
    }
    req->done(req, NULL);
    return true;
}

static bool hasher_zero(Blocks *b, uint64_t offset, uint64_t length, BlocksReq *req, Err *err)
{
    Hasher *h = (Hasher *)b;
    if (!check_range(h, offset, length, err))
        return false;
    uint64_t n = h->geo->leaves, size = h->geo->cluster_size;
    uint64_t cluster = offset / size, end = (offset + length + size - 1) / size;
    while (cluster < end) {
        uint64_t group = cluster / n, group_stop = MIN((group + 1) * n, h->clusters);
        if (cluster == group * n && end >= group_stop && !h->open[group] && !h->done[group]) {
            group_end(h, group, &h->geo->zero_node);
            cluster = group_stop;
        } else if (!set_leaf(h, cluster++, &h->geo->zero_leaf, err)) {
            return false;
        }
    }
    req->done(req, NULL);
    return true;
}

static bool hasher_flush(Blocks *b, BlocksReq *req, Err *err)
{
    (void)b;
    (void)err;
    req->done(req, NULL);
    return true;
}

static void hasher_free(Blocks *b)
{
    Hasher *h = (Hasher *)b;
    for (uint64_t i = 0; h->open && i < h->groups; i++)
        group_free(h->open[i]);
    free(h->open);
    free(h->done);
    free(h->nodes);
    free(h->padded);
    free(h);
}

static const BlocksOps hasher_ops = {
    .name = "hasher",
    .write = hasher_write,
    .zero = hasher_zero,
    .flush = hasher_flush,
    .free = hasher_free,
};

bool sink_hasher_open(const HashGeometry *geo, uint64_t size, Blocks **ret, Err *err)
{
    Hasher *h = mem_calloc(1, sizeof(*h), err);
    if (!h)
        return false;
    h->blocks = (Blocks){.ops = &hasher_ops, .size = size, .max_request = MAX_REQUEST, .max_in_flight = MAX_IN_FLIGHT};
    h->geo = geo;
    h->clusters = (size + geo->cluster_size - 1) / geo->cluster_size;
    h->groups = hash_groups(geo, size);
    h->missing = h->groups;
    h->nodes = mem_calloc(h->groups, sizeof(*h->nodes), err);
    h->done = mem_calloc(h->groups, 1, err);
    h->open = mem_calloc(h->groups, sizeof(*h->open), err);
    h->padded = mem_calloc(1, geo->cluster_size, err);
    if (!h->nodes || !h->done || !h->open || !h->padded) {
        hasher_free(&h->blocks);
        return false;
    }
    *ret = &h->blocks;
    return true;
}

bool sink_hasher_root(Blocks *b, Hash *ret, Err *err)
{
    Hasher *h = (Hasher *)b;
    if (h->missing > 0)
        return err_set(err, ERR_CONFLICT, "%" PRIu64 " groups of clusters are not complete", h->missing);
    hash_root(h->geo, h->blocks.size, h->nodes, h->groups, ret);
    return true;
}
