#include "domain/extent.h"

#include <endian.h>
#include <inttypes.h>
#include <xxhash.h>

// ---- coverage ----

static void close_open(Coverage *c)
{
    if (c->open_length == 0)
        return;
    uint64_t pair[2] = {htole64(c->open_offset), htole64(c->open_length)};
    c->digest = XXH3_64bits_withSeed(pair, sizeof(pair), c->digest);
    c->extents++;
    c->open_offset += c->open_length; // where the next one may start at the earliest
    c->open_length = 0;
}

bool coverage_add(Coverage *c, uint64_t offset, uint64_t length, Err *err)
{
    uint64_t end, reached = c->open_offset + c->open_length;
    if (!add_u64(offset, length, &end) || end > DISK_SIZE_MAX)
        return err_set(err, ERR_INVALID, "%" PRIu64 " bytes at %" PRIu64 " are beyond any disk", length, offset);
    if (offset < reached)
        return err_set(err, ERR_INVALID, "an extent at %" PRIu64 " comes after %" PRIu64 " was reached", offset,
                       reached);
    if (length == 0)
        return true;
    if (c->open_length > 0 && offset == reached) {
        c->open_length += length;
    } else {
        close_open(c);
        c->open_offset = offset;
        c->open_length = length;
    }
    c->bytes += length;
    return true;
}

void coverage_end(Coverage *c)
{
    close_open(c);
}

// ---- the tracked plan ----

void extent_round(uint64_t size, uint64_t cluster_size, uint64_t *offset, uint64_t *length)
{
    if (*length == 0 || *offset >= size) {
        *length = 0;
        return;
    }
    uint64_t start = align_down(*offset, cluster_size);
    uint64_t end = *length >= size - *offset ? size : MIN(align_up(*offset + *length, cluster_size), size);
    *offset = start;
    *length = end - start;
}

static bool check_list(const char *what, const ExtentVec *v, uint64_t size, Err *err)
{
    uint64_t reached = 0;
    for (size_t i = 0; i < v->len; i++) {
        const Extent *e = &v->items[i];
        if (e->length == 0 || e->offset < reached || e->offset > size || e->length > size - e->offset)
            return err_set(err, ERR_INVALID,
                           "the source's %s ranges are not in order, or pass the disk's end: %" PRIu64
                           " bytes at %" PRIu64,
                           what, e->length, e->offset);
        reached = e->offset + e->length;
    }
    return true;
}

typedef struct Range {
    uint64_t start, end; // end > start; start == end: none left
} Range;

typedef struct Plan {
    const ExtentVec *changed, *zeros;
    size_t i, j; // next of changed, of zeros
    uint64_t size, cluster_size;
    ExtentVec out;
} Plan;

// The next dirty range in whole clusters. It may start before the end of the one before it.
static Range next_dirty(Plan *p)
{
    if (p->i == p->changed->len)
        return (Range){p->size, p->size};
    const Extent *e = &p->changed->items[p->i++];
    uint64_t offset = e->offset, length = e->length;
    extent_round(p->size, p->cluster_size, &offset, &length);
    return (Range){offset, offset + length};
}

// The next range of whole clusters (the last one up to size) in which every byte is vouched for as zero.
static Range next_zero(Plan *p)
{
    while (p->j < p->zeros->len) {
        const Extent *e = &p->zeros->items[p->j++];
        if (!e->zero)
            continue;
        uint64_t end = e->offset + e->length;
        for (; p->j < p->zeros->len; p->j++) { // two neighbours may cover a cluster between them
            const Extent *next = &p->zeros->items[p->j];
            if (!next->zero || next->offset != end)
                break;
            end += next->length;
        }
        Range r = {align_up(e->offset, p->cluster_size), end == p->size ? end : align_down(end, p->cluster_size)};
        if (r.start < r.end)
            return r;
    }
    return (Range){p->size, p->size};
}

static bool emit(Plan *p, uint64_t start, uint64_t end, bool zero, Err *err)
{
    Extent *last = p->out.len ? &p->out.items[p->out.len - 1] : NULL;
    if (last && last->zero == zero && last->offset + last->length == start) {
        last->length += end - start;
        return true;
    }
    return extent_vec_push(&p->out, (Extent){.offset = start, .length = end - start, .zero = zero}, err);
}

static bool merge(Plan *p, Err *err)
{
    Range dirty = next_dirty(p), zero = next_zero(p);
    for (uint64_t at = 0;;) { // everything below `at` is in p->out
        while (dirty.start < dirty.end && dirty.end <= at)
            dirty = next_dirty(p);
        uint64_t start = MAX(dirty.start, at);
        if (zero.start < zero.end && (dirty.start == dirty.end || zero.start <= start)) {
            if (!emit(p, zero.start, zero.end, true, err))
                return false;
            at = zero.end;
            zero = next_zero(p);
        } else if (dirty.start < dirty.end) {
            uint64_t end = zero.start < zero.end ? MIN(dirty.end, zero.start) : dirty.end;
            if (!emit(p, start, end, false, err))
                return false;
            at = end;
        } else {
            return true;
        }
    }
}

bool extent_plan_tracked(const ExtentVec *changed, const ExtentVec *zeros, uint64_t size, uint64_t cluster_size,
                         ExtentVec *ret, Err *err)
{
    if (size > DISK_SIZE_MAX || cluster_size == 0 || (cluster_size & (cluster_size - 1)) != 0 ||
        cluster_size > DISK_SIZE_MAX)
        return err_set(err, ERR_INVALID, "a disk of %" PRIu64 " bytes in clusters of %" PRIu64 " cannot be", size,
                       cluster_size);
    if (!check_list("changed", changed, size, err) || !check_list("zero", zeros, size, err))
        return false;
    Plan p = {.changed = changed, .zeros = zeros, .size = size, .cluster_size = cluster_size};
    if (!merge(&p, err)) {
        extent_vec_clear(&p.out);
        return false;
    }
    *ret = p.out;
    return true;
}

static bool append(ExtentVec *v, uint64_t offset, uint64_t end, Err *err)
{
    Extent *last = v->len > 0 ? &v->items[v->len - 1] : NULL;
    if (last && last->offset + last->length >= offset) {
        last->length = MAX(last->offset + last->length, end) - last->offset;
        return true;
    }
    return extent_vec_push(v, (Extent){.offset = offset, .length = end - offset}, err);
}

bool extent_union(const ExtentVec *a, const ExtentVec *b, ExtentVec *ret, Err *err)
{
    ret->len = 0;
    for (size_t i = 0, k = 0; i < a->len || k < b->len;) {
        bool from_a = k == b->len || (i < a->len && a->items[i].offset <= b->items[k].offset);
        const Extent *e = from_a ? &a->items[i++] : &b->items[k++];
        if (!append(ret, e->offset, e->offset + e->length, err))
            return false;
    }
    return true;
}

bool extent_without(const ExtentVec *a, const ExtentVec *b, uint64_t size, uint64_t cluster_size, ExtentVec *ret,
                    Err *err)
{
    size_t k = 0;
    ret->len = 0;
    for (size_t i = 0; i < a->len; i++) {
        uint64_t at = a->items[i].offset, end = at + a->items[i].length;
        while (k < b->len && b->items[k].offset + b->items[k].length <= at)
            k++;
        for (size_t n = k; n < b->len && b->items[n].offset < end; n++) {
            uint64_t offset = b->items[n].offset, length = b->items[n].length;
            extent_round(size, cluster_size, &offset, &length);
            if (offset > at && !append(ret, at, MIN(offset, end), err))
                return false;
            at = MAX(at, offset + length);
        }
        if (at < end && !append(ret, at, end, err))
            return false;
    }
    return true;
}
