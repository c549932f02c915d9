#include "mover/plan.h"

#include <inttypes.h>

#define WINDOW_FIRST (UINT64_C(64) << 20)
#define WINDOW_MAX (UINT64_C(1) << 30)
#define WINDOW_FEW 64                  // extents: with fewer in a window the next one is twice as long
#define WINDOW_MANY 4096               // with more, half as long
#define ZERO_MAX (UINT64_C(128) << 20) // one zero request; short enough for a cancel to be quick

void plan_init(Plan *p, const MoverSpec *spec, uint32_t request_bytes)
{
    *p = (Plan){.from = spec->from,
                .size = spec->size,
                .cluster_size = spec->cluster_size,
                .request_bytes = request_bytes,
                .tracked = spec->plan == MOVER_TRACKED,
                .window = WINDOW_FIRST};
}

void plan_clear(Plan *p)
{
    extent_vec_clear(&p->items);
}

// A source that breaks its contract must not become a backup with holes.
static bool check_map(const ExtentVec *v, const char *what, uint64_t offset, uint64_t length, Err *err)
{
    uint64_t at = offset, end = offset + length;
    for (size_t i = 0; i < v->len; i++) {
        const Extent *e = &v->items[i];
        if (e->offset < at || e->length == 0 || e->offset >= end || e->length > end - e->offset)
            return err_set(err, ERR_PROTOCOL,
                           "the source's list of %s extents is not in order: %" PRIu64 "+%" PRIu64
                           " in the window %" PRIu64 "+%" PRIu64,
                           what, e->offset, e->length, offset, length);
        at = e->offset + e->length;
    }
    return true;
}

static bool window_map(Plan *p, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    if (!p->from->ops->extents) {
        if (p->tracked)
            return err_set(err, ERR_UNSUPPORTED, "the source %s cannot say what changed", p->from->ops->name);
    } else if (!p->from->ops->extents(p->from, p->planned, length, changed, zeros, err)) {
        return err_context(err, "map of the source at offset %" PRIu64, p->planned);
    }
    if (!p->tracked) { // every cluster is wanted, whatever a change set says
        changed->len = 0;
        if (!extent_vec_push(changed, (Extent){.offset = p->planned, .length = length}, err))
            return false;
    }
    return check_map(changed, "changed", p->planned, length, err) && check_map(zeros, "zero", p->planned, length, err);
}

static bool plan_window(Plan *p, Err *err)
{
    cleanup(extent_vec_clear) ExtentVec changed = {0}, zeros = {0}, items = {0};
    uint64_t length = MIN(p->window, p->size - p->planned);
    if (!window_map(p, length, &changed, &zeros, err))
        return false;
    // The lists end at the window's border, which is a cluster's, so no cluster is seen in halves.
    if (!extent_plan_tracked(&changed, &zeros, p->size, p->cluster_size, &items, err))
        return false;
    extent_vec_clear(&p->items);
    p->items = items;
    items = (ExtentVec){0};
    p->next = 0;
    p->taken = 0;
    p->planned += length;
    size_t said = changed.len + zeros.len;
    if (said < WINDOW_FEW && p->window < WINDOW_MAX)
        p->window *= 2;
    else if (said > WINDOW_MANY && p->window > WINDOW_FIRST)
        p->window /= 2;
    return true;
}

bool plan_peek(Plan *p, Extent *ret, bool *ret_any, Err *err)
{
    while (p->next == p->items.len) {
        if (p->planned == p->size) {
            *ret_any = false;
            return true;
        }
        if (!plan_window(p, err))
            return false;
    }
    const Extent *item = &p->items.items[p->next];
    Extent e = {.offset = item->offset + p->taken, .length = item->length - p->taken, .zero = item->zero};
    uint64_t limit = e.zero ? ZERO_MAX : p->request_bytes - e.offset % p->request_bytes;
    e.length = MIN(e.length, limit);
    *ret = e;
    *ret_any = true;
    return true;
}

bool plan_take(Plan *p, const Extent *e, Err *err)
{
    if (!coverage_add(&p->coverage, e->offset, e->length, err))
        return false;
    p->taken += e->length;
    if (p->taken == p->items.items[p->next].length) {
        p->next++;
        p->taken = 0;
    }
    return true;
}

uint64_t plan_position(const Plan *p)
{
    return p->next == p->items.len ? p->planned : p->items.items[p->next].offset + p->taken;
}
