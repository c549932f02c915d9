#include "tracker.h"

#include "base/str.h"

#include <inttypes.h>
#include <stdio.h>

static size_t granules_of(const Tracker *t, uint64_t size)
{
    return (size_t)((size + t->granularity - 1) / t->granularity);
}

static void name_node(Tracker *t)
{
    (void)snprintf(t->node, sizeof t->node, "node%u", t->nodes++);
}

void tracker_init(Tracker *t, uint64_t size, uint32_t granularity)
{
    *t = (Tracker){.size = size, .granularity = granularity};
    name_node(t);
}

static void bitmap_drop(Tracker *t, size_t i)
{
    free(t->bitmaps[i].bits);
    t->len--;
    memmove(&t->bitmaps[i], &t->bitmaps[i + 1], (t->len - i) * sizeof t->bitmaps[0]);
}

static void end_overlay(Tracker *t)
{
    free(mem_take(t->written));
    t->below[0] = '\0';
}

void tracker_forget(Tracker *t)
{
    while (t->len > 0)
        bitmap_drop(t, t->len - 1);
    end_overlay(t);
}

void tracker_clear(Tracker *t)
{
    tracker_forget(t);
}

static void mark_on(Tracker *t, const char *node, uint64_t offset, uint64_t length)
{
    for (size_t i = 0; i < t->len; i++) {
        TrackerBitmap *b = &t->bitmaps[i];
        if (!str_eq(b->node, node) || !b->recording || b->inconsistent)
            continue;
        for (uint64_t g = offset / t->granularity; g * t->granularity < offset + length; g++)
            if (g < b->granules)
                b->bits[g] = 1;
    }
}

void tracker_mark(Tracker *t, uint64_t offset, uint64_t length)
{
    if (length == 0)
        return;
    mark_on(t, t->node, offset, length);
    for (uint64_t g = offset / t->granularity; t->written && g * t->granularity < offset + length; g++)
        t->written[g] = 1;
}

// Bits of whole granules beyond the end go; what is added is clean.
bool tracker_resize(Tracker *t, uint64_t size, Err *err)
{
    size_t granules = granules_of(t, size);
    end_overlay(t); // a snapshot whose disk was resized is never committed back here
    for (size_t i = 0; i < t->len; i++) {
        TrackerBitmap *b = &t->bitmaps[i];
        if (!str_eq(b->node, t->node))
            continue;
        uint8_t *bits = mem_calloc(granules, 1, err);
        if (!bits)
            return false;
        memcpy(bits, b->bits, MIN(granules, b->granules));
        free(b->bits);
        b->bits = bits;
        b->granules = granules;
    }
    t->size = size;
    return true;
}

void tracker_crash(Tracker *t, bool persistent)
{
    for (size_t i = t->len; i-- > 0;) {
        if (persistent)
            t->bitmaps[i].inconsistent = true;
        else
            bitmap_drop(t, i);
    }
}

bool tracker_snapshot(Tracker *t, Err *err)
{
    if (t->below[0]) // one is enough; the first will not come back
        end_overlay(t);
    t->written = mem_calloc(granules_of(t, t->size), 1, err);
    if (!t->written)
        return false;
    memcpy(t->below, t->node, sizeof t->below);
    name_node(t);
    return true;
}

// The overlay's content is written to the node below, which sees that; the overlay goes with its bitmaps.
void tracker_commit(Tracker *t)
{
    if (!t->below[0])
        return;
    for (size_t i = t->len; i-- > 0;)
        if (str_eq(t->bitmaps[i].node, t->node))
            bitmap_drop(t, i);
    memcpy(t->node, t->below, sizeof t->node);
    for (size_t g = 0; g < granules_of(t, t->size); g++)
        if (t->written[g])
            mark_on(t, t->node, (uint64_t)g * t->granularity, 1);
    end_overlay(t);
}

const char *tracker_tamper(Tracker *t, Rng *rng)
{
    if (t->len == 0)
        return "nothing to break";
    size_t i = (size_t)rng_below(rng, t->len);
    TrackerBitmap *b = &t->bitmaps[i];
    switch (rng_below(rng, 6)) {
    case 0: b->inconsistent = true; return "a bitmap becomes inconsistent";
    case 1: b->busy = !b->busy; return "a bitmap is busy, or not any more";
    case 2:
        // Only once: nobody can see that a bitmap was disabled and enabled again.
        b->recording = b->tampered ? b->recording : !b->recording;
        b->tampered = true;
        return "a bitmap is enabled or disabled";
    case 3:
        if (t->len < TRACKER_BITMAPS_MAX) {
            t->bitmaps[t->len] = (TrackerBitmap){.granules = b->granules, .recording = b->recording};
            TrackerBitmap *twin = &t->bitmaps[t->len++];
            memcpy(twin->name, b->name, sizeof twin->name);
            (void)snprintf(twin->node, sizeof twin->node, "other");
            twin->bits = calloc(twin->granules, 1);
            if (!twin->bits)
                t->len--;
        }
        return "a bitmap is there twice";
    default: bitmap_drop(t, i); return "a bitmap is removed";
    }
}

static json_t *describe_node(const Tracker *t, const char *node)
{
    json_t *bitmaps = json_array();
    for (size_t i = 0; i < t->len; i++) {
        const TrackerBitmap *b = &t->bitmaps[i];
        json_int_t count = 0;
        if (!str_eq(b->node, node))
            continue;
        for (size_t g = 0; g < b->granules; g++)
            count += b->bits[g] ? (json_int_t)t->granularity : 0;
        if (json_array_append_new(bitmaps,
                                  json_pack("{s:s, s:I, s:b, s:b, s:b}", "name", b->name, "count", count, "recording",
                                            b->recording, "busy", b->busy, "inconsistent", b->inconsistent)) != 0)
            return NULL;
    }
    return json_pack("{s:s, s:o}", "node-name", node, "dirty-bitmaps", bitmaps);
}

json_t *tracker_describe(const Tracker *t)
{
    json_t *nodes = json_array();
    char node[TRACKER_NODE];
    for (unsigned n = 0; n < t->nodes; n++) {
        (void)snprintf(node, sizeof node, "node%u", n);
        if (json_array_append_new(nodes, describe_node(t, node)) != 0)
            return NULL;
    }
    return json_array_append_new(nodes, describe_node(t, "other")) == 0 ? nodes : NULL;
}

TrackerBitmap *tracker_find(Tracker *t, const char *name)
{
    for (size_t i = 0; i < t->len; i++)
        if (str_eq(t->bitmaps[i].name, name) && str_eq(t->bitmaps[i].node, t->node))
            return &t->bitmaps[i];
    return NULL;
}

bool tracker_add(Tracker *t, const char *name, bool recording, Err *err)
{
    if (tracker_find(t, name))
        return err_set(err, ERR_EXISTS, "the bitmap %s is there already", name);
    if (t->len == TRACKER_BITMAPS_MAX)
        return err_set(err, ERR_TOO_LARGE, "more than %d bitmaps", TRACKER_BITMAPS_MAX);
    TrackerBitmap b = {.recording = recording, .granules = granules_of(t, t->size)};
    b.bits = mem_calloc(b.granules, 1, err);
    if (!b.bits)
        return false;
    (void)snprintf(b.name, sizeof b.name, "%s", name);
    memcpy(b.node, t->node, sizeof b.node);
    t->bitmaps[t->len++] = b;
    return true;
}

void tracker_remove(Tracker *t, const char *node, const char *name)
{
    for (size_t i = t->len; i-- > 0;)
        if (str_eq(t->bitmaps[i].name, name) && str_eq(t->bitmaps[i].node, node))
            bitmap_drop(t, i);
}
