#include "image/covered.h"

typedef struct Bits {
    uint32_t set;
    uint64_t words[];
} Bits;

// Stands for a group of which every cluster has arrived.
static Bits all;

struct Covered {
    uint64_t size, clusters;
    uint32_t cluster_size, group_clusters;
    uint64_t groups_len;
    Bits **groups;   // NULL: nothing
    ExtentVec parts; // ascending, without overlap or touching, each within one cluster that has no bit
};

bool covered_new(uint64_t size, uint32_t cluster_size, uint32_t group_clusters, Covered **ret, Err *err)
{
    Covered *c = mem_calloc(1, sizeof *c, err);
    if (!c)
        return false;
    c->size = size;
    c->cluster_size = cluster_size;
    c->group_clusters = group_clusters;
    c->clusters = size / cluster_size + (size % cluster_size != 0);
    c->groups_len = c->clusters / group_clusters + (c->clusters % group_clusters != 0);
    c->groups = mem_calloc(c->groups_len, sizeof(Bits *), err);
    if (!c->groups) {
        free(c);
        return false;
    }
    *ret = c;
    return true;
}

void covered_free(Covered *c)
{
    if (!c)
        return;
    for (uint64_t i = 0; i < c->groups_len; i++)
        if (c->groups[i] != &all)
            free(c->groups[i]);
    free(c->groups);
    extent_vec_clear(&c->parts);
    free(c);
}

static uint64_t cluster_end(const Covered *c, uint64_t cluster)
{
    return cluster + 1 == c->clusters ? c->size : (cluster + 1) * c->cluster_size;
}

static uint32_t clusters_of_group(const Covered *c, uint64_t group)
{
    return (uint32_t)MIN(c->group_clusters, c->clusters - group * c->group_clusters);
}

bool covered_has_cluster(const Covered *c, uint64_t cluster)
{
    const Bits *b = c->groups[cluster / c->group_clusters];
    uint64_t i = cluster % c->group_clusters;
    return b == &all || (b && (b->words[i / 64] >> (i % 64) & 1));
}

// Index of the first part that ends behind offset.
static size_t first_part(const Covered *c, uint64_t offset)
{
    size_t low = 0, high = c->parts.len;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (c->parts.items[mid].offset + c->parts.items[mid].length > offset)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

static void remove_parts(Covered *c, size_t at, size_t n)
{
    if (n == 0)
        return;
    memmove(c->parts.items + at, c->parts.items + at + n, (c->parts.len - at - n) * sizeof(Extent));
    c->parts.len -= n;
}

// Parts in whole clusters from `offset` to `end` go; returns their bytes.
static uint64_t absorb_parts(Covered *c, uint64_t offset, uint64_t end)
{
    size_t at = first_part(c, offset), n = 0;
    uint64_t bytes = 0;
    while (at + n < c->parts.len && c->parts.items[at + n].offset < end)
        bytes += c->parts.items[at + n++].length;
    remove_parts(c, at, n);
    return bytes;
}

// Clusters first .. end - 1 of one group; *bytes grows by what was not there.
static bool add_in_group(Covered *c, uint64_t group, uint32_t first, uint32_t end, uint64_t *bytes, Err *err)
{
    Bits **slot = &c->groups[group];
    uint64_t base = group * c->group_clusters;
    uint32_t whole = clusters_of_group(c, group);
    if (*slot == &all)
        return true;
    if (!*slot && first == 0 && end == whole) {
        *bytes += cluster_end(c, base + end - 1) - base * c->cluster_size;
        *slot = &all;
        return true;
    }
    if (!*slot) {
        *slot = mem_calloc(1, sizeof(Bits) + c->group_clusters / 8, err);
        if (!*slot)
            return false;
    }
    Bits *b = *slot;
    for (uint32_t i = first; i < end; i++) {
        uint64_t bit = UINT64_C(1) << (i % 64);
        if (b->words[i / 64] & bit)
            continue;
        b->words[i / 64] |= bit;
        b->set++;
        *bytes += cluster_end(c, base + i) - (base + i) * c->cluster_size;
    }
    if (b->set == whole) {
        free(b);
        *slot = &all;
    }
    return true;
}

static bool add_clusters(Covered *c, uint64_t first, uint64_t end, uint64_t *ret_new, Err *err)
{
    uint64_t bytes = 0;
    for (uint64_t at = first; at < end;) {
        uint64_t group = at / c->group_clusters, base = group * c->group_clusters;
        uint64_t stop = MIN(end, base + c->group_clusters);
        if (!add_in_group(c, group, (uint32_t)(at - base), (uint32_t)(stop - base), &bytes, err))
            return false;
        at = stop;
    }
    *ret_new = bytes - absorb_parts(c, first * c->cluster_size, cluster_end(c, end - 1));
    return true;
}

// A part of one cluster.
static bool add_part(Covered *c, uint64_t offset, uint64_t end, uint64_t *ret_new, Err *err)
{
    uint64_t cluster = offset / c->cluster_size;
    *ret_new = 0;
    if (covered_has_cluster(c, cluster))
        return true;
    uint64_t start = cluster * c->cluster_size, known = 0, from = offset, to = end;
    size_t at = first_part(c, start), n = 0;
    while (at < c->parts.len && c->parts.items[at].offset + c->parts.items[at].length < offset)
        at++;
    // Whatever overlaps or touches, within this cluster, becomes one part.
    while (at + n < c->parts.len && c->parts.items[at + n].offset <= end &&
           c->parts.items[at + n].offset < cluster_end(c, cluster)) {
        const Extent *e = &c->parts.items[at + n++];
        known += e->length;
        from = MIN(from, e->offset);
        to = MAX(to, e->offset + e->length);
    }
    uint64_t fresh = to - from - known;
    if (from == start && to == cluster_end(c, cluster)) {
        uint64_t all_bytes;
        if (!add_clusters(c, cluster, cluster + 1, &all_bytes, err))
            return false;
    } else if (n > 0) {
        c->parts.items[at] = (Extent){.offset = from, .length = to - from};
        remove_parts(c, at + 1, n - 1);
    } else {
        if (c->parts.len >= COVERED_PARTS_MAX)
            return err_set(err, ERR_TOO_LARGE, "more than %d parts of clusters; send whole clusters",
                           COVERED_PARTS_MAX);
        if (!extent_vec_push(&c->parts, (Extent){0}, err))
            return false;
        memmove(c->parts.items + at + 1, c->parts.items + at, (c->parts.len - at - 1) * sizeof(Extent));
        c->parts.items[at] = (Extent){.offset = from, .length = to - from};
    }
    *ret_new = fresh;
    return true;
}

bool covered_add(Covered *c, uint64_t offset, uint64_t length, uint64_t *ret_new, Err *err)
{
    uint64_t end = offset + length, fresh = 0, some;
    while (offset < end) {
        uint64_t cluster = offset / c->cluster_size;
        if (offset % c->cluster_size != 0 || end < cluster_end(c, cluster)) {
            uint64_t stop = MIN(end, cluster_end(c, cluster));
            if (!add_part(c, offset, stop, &some, err))
                return false;
            offset = stop;
        } else {
            uint64_t last = end == c->size ? c->clusters : end / c->cluster_size;
            if (!add_clusters(c, cluster, last, &some, err))
                return false;
            offset = cluster_end(c, last - 1);
        }
        fresh += some;
    }
    *ret_new = fresh;
    return true;
}

// The account in ascending order: what has arrived, in pieces that do not overlap.
typedef struct Walk {
    const Covered *c;
    uint64_t cluster; // next to look at
    size_t part;
} Walk;

static bool next_piece(Walk *w, uint64_t *ret_offset, uint64_t *ret_length)
{
    const Covered *c = w->c;
    while (w->cluster < c->clusters) {
        uint64_t group = w->cluster / c->group_clusters, first = w->cluster, start = first * c->cluster_size;
        if (c->groups[group] == &all) {
            w->cluster = group * c->group_clusters + clusters_of_group(c, group);
        } else if (covered_has_cluster(c, first)) {
            w->cluster++;
        } else if (w->part < c->parts.len && c->parts.items[w->part].offset < cluster_end(c, first)) {
            *ret_offset = c->parts.items[w->part].offset;
            *ret_length = c->parts.items[w->part++].length;
            return true;
        } else {
            uint64_t skip = w->part < c->parts.len ? c->parts.items[w->part].offset / c->cluster_size : c->clusters;
            w->cluster = c->groups[group] ? first + 1 : MIN(skip, (group + 1) * c->group_clusters);
            continue;
        }
        *ret_offset = start;
        *ret_length = cluster_end(c, w->cluster - 1) - start;
        return true;
    }
    return false;
}

bool covered_first_hole(const Covered *c, uint64_t *ret_offset, uint64_t *ret_length)
{
    Walk walk = {.c = c};
    uint64_t expected = 0, offset = c->size, length = 0;
    while (next_piece(&walk, &offset, &length) && offset == expected) {
        expected += length;
        offset = c->size;
    }
    if (expected == c->size)
        return false;
    *ret_offset = expected;
    *ret_length = offset - expected;
    return true;
}

bool covered_sum(const Covered *c, Coverage *ret, Err *err)
{
    Walk walk = {.c = c};
    Coverage sum = {0};
    uint64_t offset, length;
    while (next_piece(&walk, &offset, &length))
        if (!coverage_add(&sum, offset, length, err))
            return false;
    coverage_end(&sum);
    *ret = sum;
    return true;
}
