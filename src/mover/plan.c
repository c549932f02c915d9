#include "mover/plan.h"

#include <inttypes.h>

#define WINDOW_FIRST (UINT64_C(64) << 20)
#define WINDOW_MAX (UINT64_C(1) << 30)
#define WINDOW_FEW 64                  // extents: with fewer in a window the next one is twice as long
#define WINDOW_MANY 4096               // with more, half as long
#define KEEP_MAX (UINT64_C(16) << 20)  // read back and hashed by the sink, several at a time
#define ZERO_MAX (UINT64_C(128) << 20) // one zero request; short enough for a cancel to be quick

void plan_init(Plan *p, const MoverSpec *spec, uint32_t request_bytes)
{
    *p = (Plan){.from = spec->from,
                .to = spec->to,
                .resume = spec->resume,
                .on_taken = spec->planned,
                .on_taken_ctx = spec->planned_ctx,
                .size = spec->size,
                .cluster_size = spec->cluster_size,
                .request_bytes = request_bytes,
                .kind = spec->plan,
                .window = WINDOW_FIRST};
}

void plan_clear(Plan *p)
{
    extent_vec_clear(&p->items);
    extent_vec_clear(&p->keep);
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

// A zero that is not marked as one is read: right, but as slow as if there were no map.
static bool check_marks(const ExtentVec *zeros, Err *err)
{
    for (size_t i = 0; i < zeros->len; i++)
        if (!zeros->items[i].zero)
            return err_set(err, ERR_PROTOCOL, "the source's list of zero extents has one that is none: %" PRIu64,
                           zeros->items[i].offset);
    return true;
}

// What the source said, before anything is made of it.
static void count_areas(Plan *p, const ExtentVec *changed)
{
    for (size_t i = 0; i < changed->len; i++) {
        const Extent *e = &changed->items[i];
        p->areas += p->areas == 0 || e->offset != p->area_end;
        p->area_bytes += e->length;
        p->area_end = e->offset + e->length;
    }
}

static bool window_map(Plan *p, uint64_t length, ExtentVec *changed, ExtentVec *zeros, Err *err)
{
    if (!p->from->ops->extents && p->kind == MOVER_TRACKED)
        return err_set(err, ERR_UNSUPPORTED, "the source %s cannot say what changed", p->from->ops->name);
    if (p->from->ops->extents && p->kind != MOVER_READ &&
        !p->from->ops->extents(p->from, p->planned, length, changed, zeros, err))
        return err_context(err, "map of the source at offset %" PRIu64, p->planned);
    if (p->kind != MOVER_TRACKED) { // every cluster is wanted, whatever a change set says
        changed->len = 0;
        if (!extent_vec_push(changed, (Extent){.offset = p->planned, .length = length}, err))
            return false;
    }
    if (!check_map(changed, "changed", p->planned, length, err) || !check_map(zeros, "zero", p->planned, length, err) ||
        !check_marks(zeros, err))
        return false;
    if (p->kind == MOVER_TRACKED)
        count_areas(p, changed);
    return true;
}

// What the sink holds of an interrupted copy: all of the window that its map does not call zero.
static bool held_map(const Plan *p, uint64_t length, ExtentVec *ret, Err *err)
{
    cleanup(extent_vec_clear) ExtentVec holes = {0}, ignored = {0};
    ExtentVec all = {.items = &(Extent){.offset = p->planned, .length = length}, .len = 1};
    if (!p->to->ops->extents(p->to, p->planned, length, &ignored, &holes, err))
        return err_context(err, "map of the sink at offset %" PRIu64, p->planned);
    if (!check_map(&holes, "sink's", p->planned, length, err))
        return false;
    for (size_t i = 0; i < holes.len; i++) {
        uint64_t end = holes.items[i].offset + holes.items[i].length;
        if (holes.items[i].offset % p->cluster_size != 0 || (end % p->cluster_size != 0 && end != p->size))
            return err_set(err, ERR_PROTOCOL, "the sink's map is not one of clusters");
    }
    return extent_without(&all, &holes, p->size, p->cluster_size, ret, err);
}

// What need not be read; whatever is held belongs to the plan, whether the change set names it or not.
static bool window_keep(Plan *p, uint64_t length, ExtentVec *changed, Err *err)
{
    cleanup(extent_vec_clear) ExtentVec held = {0}, since = {0}, ignored = {0}, both = {0};
    Blocks *b = p->resume->since;
    if (!held_map(p, length, &held, err))
        return false;
    if (b && held.len > 0 && !b->ops->extents(b, p->planned, length, &since, &ignored, err))
        return err_context(err, "changes since the interrupted backup at offset %" PRIu64, p->planned);
    if (!check_map(&since, "changed", p->planned, length, err) ||
        !extent_without(&held, &since, p->size, p->cluster_size, &p->keep, err) ||
        !extent_union(changed, &held, &both, err))
        return false;
    ExtentVec before = *changed;
    *changed = both;
    both = before;
    return true;
}

static bool plan_window(Plan *p, Err *err)
{
    cleanup(extent_vec_clear) ExtentVec changed = {0}, zeros = {0}, items = {0};
    uint64_t length = MIN(p->window, p->size - p->planned);
    p->next_keep = 0;
    if (!window_map(p, length, &changed, &zeros, err) || (p->resume && !window_keep(p, length, &changed, err)))
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

// From e's offset on: what kind it is, and for how long.
static PlanKind kind_at(Plan *p, Extent *e)
{
    PlanKind other = e->zero ? PLAN_ZERO : PLAN_DATA;
    while (p->next_keep < p->keep.len &&
           p->keep.items[p->next_keep].offset + p->keep.items[p->next_keep].length <= e->offset)
        p->next_keep++;
    if (p->next_keep == p->keep.len)
        return other;
    const Extent *keep = &p->keep.items[p->next_keep];
    if (keep->offset > e->offset) {
        e->length = MIN(e->length, keep->offset - e->offset);
        return other;
    }
    e->length = MIN(e->length, keep->offset + keep->length - e->offset);
    return PLAN_KEEP;
}

bool plan_peek(Plan *p, Extent *ret, PlanKind *ret_kind, Err *err)
{
    while (p->next == p->items.len) {
        if (p->planned == p->size) {
            *ret_kind = PLAN_END;
            return true;
        }
        if (!plan_window(p, err))
            return false;
    }
    const Extent *item = &p->items.items[p->next];
    Extent e = {.offset = item->offset + p->taken, .length = item->length - p->taken, .zero = item->zero};
    PlanKind kind = kind_at(p, &e);
    uint64_t limit = kind == PLAN_KEEP ? KEEP_MAX
        : kind == PLAN_ZERO            ? ZERO_MAX
                                       : p->request_bytes - e.offset % p->request_bytes;
    e.length = MIN(e.length, limit);
    *ret = e;
    *ret_kind = kind;
    return true;
}

bool plan_take(Plan *p, const Extent *e, PlanKind kind, Err *err)
{
    if (!coverage_add(&p->coverage, e->offset, e->length, err))
        return false;
    bool on_word = kind == PLAN_KEEP || (kind == PLAN_ZERO && p->from->zeros_on_word);
    if (p->on_taken && !on_word)
        p->on_taken(p->on_taken_ctx, e->offset, e->length);
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
