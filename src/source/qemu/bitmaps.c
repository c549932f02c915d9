#include "source/qemu/bitmaps.h"

#include "base/num.h"
#include "base/str.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define NAME_PREFIX "sendense"
#define TEMPORARY_WORD "tmp"

void bitmaps_name(const BitmapsOwner *o, const char *line, uint64_t sequence, char out[BITMAPS_NAME])
{
    (void)snprintf(out, BITMAPS_NAME, "%s.%s.%s.%s.%" PRIu64, NAME_PREFIX, o->repository, o->vm, line, sequence);
}

void bitmaps_temporary(const BitmapsOwner *o, const char *nonce, char out[BITMAPS_NAME])
{
    (void)snprintf(out, BITMAPS_NAME, "%s.%s.%s.%s.%s", NAME_PREFIX, o->repository, o->vm, TEMPORARY_WORD, nonce);
}

// A UUID and the dot behind it.
static bool take_uuid(const char **p, char out[UUID_TEXT])
{
    if (strlen(*p) < UUID_TEXT || (*p)[UUID_TEXT - 1] != '.')
        return false;
    memcpy(out, *p, UUID_TEXT - 1);
    out[UUID_TEXT - 1] = '\0';
    *p += UUID_TEXT;
    return uuid_is_valid(out);
}

// Line and sequence of a name of this owner; false for any other name.
static bool parse_name(const char *name, const BitmapsOwner *o, Bitmap *b)
{
    char vm[UUID_TEXT];
    const char *rest = name + strlen(NAME_PREFIX ".");
    if (!str_starts(name, NAME_PREFIX ".") || !take_uuid(&rest, b->repository) || !take_uuid(&rest, vm) ||
        !str_eq(vm, o->vm) || (o->repository && !str_eq(b->repository, o->repository)))
        return false;
    if (str_starts(rest, TEMPORARY_WORD ".")) {
        b->line[0] = '\0';
        return true;
    }
    Err err = ERR_INIT;
    if (!take_uuid(&rest, b->line))
        return false;
    bool canonical = rest[0] != '0' || rest[1] == '\0';
    return canonical && num_u64(rest, 0, INT64_MAX, &b->sequence, &err);
}

static bool collect_node(const json_t *node, const BitmapsOwner *o, BitmapVec *v, Err *err)
{
    const char *node_name = json_string_value(json_object_get(node, "node-name"));
    const json_t *list = json_object_get(node, "dirty-bitmaps");
    if (!node_name)
        return err_set(err, ERR_PROTOCOL, "qemu listed a block node without a name");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        const char *name = json_string_value(json_object_get(item, "name")); // none: a job's own
        Bitmap b = {.node = node_name, .name = name};
        if (!name || !parse_name(name, o, &b))
            continue;
        json_int_t count = json_integer_value(json_object_get(item, "count"));
        b.recording = json_is_true(json_object_get(item, "recording"));
        b.busy = json_is_true(json_object_get(item, "busy"));
        b.inconsistent = json_is_true(json_object_get(item, "inconsistent"));
        b.count = count > 0 ? (uint64_t)count : 0;
        if (!bitmap_vec_push(v, b, err))
            return false;
    }
    return true;
}

bool bitmaps_collect(const json_t *nodes, const BitmapsOwner *o, BitmapVec *ret, Err *err)
{
    BitmapVec v = {0};
    bool ok = json_is_array(nodes) || err_set(err, ERR_PROTOCOL, "qemu's list of block nodes is no list");
    for (size_t i = 0; ok && i < json_array_size(nodes); i++)
        ok = collect_node(json_array_get(nodes, i), o, &v, err);
    if (!ok) {
        bitmap_vec_clear(&v);
        return false;
    }
    *ret = v;
    return true;
}

static bool lost(Line *l, const char *fmt, ...) printf_like(2, 3);

static bool lost(Line *l, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(l->lost, sizeof(l->lost), fmt, ap); // cut at the ceiling on purpose
    va_end(ap);
    return false;
}

static uint64_t place_of(uint64_t sequence)
{
    return sequence >> BITMAPS_PLACE_SHIFT;
}

// With as many bits of the UUID as there is room for.
static uint64_t sequence_at(uint64_t place, const char *fresh)
{
    uint64_t random = 0;
    for (; *fresh; fresh++)
        if (*fresh != '-')
            random = random << 4 | (uint64_t)(*fresh <= '9' ? *fresh - '0' : (*fresh | 32) - 'a' + 10);
    return place << BITMAPS_PLACE_SHIFT | (random & ((UINT64_C(1) << BITMAPS_PLACE_SHIFT) - 1));
}

// The one bitmap of this place; NULL and the reason in *l.
static const Bitmap *find_one(const LineInput *in, const char *line, uint64_t place, Line *l)
{
    const Bitmap *found = NULL;
    for (size_t i = 0; i < in->all->len; i++) {
        const Bitmap *b = &in->all->items[i];
        if (!str_eq(b->line, line) || place_of(b->sequence) != place)
            continue;
        if (found) {
            (void)lost(l, "dirty bitmap %" PRIu64 " is there twice, on the nodes %s and %s", place, found->node,
                       b->node);
            return NULL;
        }
        found = b;
    }
    if (!found)
        (void)lost(l, "dirty bitmap %" PRIu64 " is missing", place);
    else if (!str_eq(found->node, in->node))
        (void)lost(l, "dirty bitmap %" PRIu64 " is on the node %s, and the guest now writes to %s (a snapshot?)", place,
                   found->node, in->node);
    else if (found->inconsistent)
        (void)lost(l, "dirty bitmap %" PRIu64 " is inconsistent: QEMU did not end cleanly", place);
    else if (found->busy)
        (void)lost(l, "dirty bitmap %" PRIu64 " is in use by something else", place);
    else
        return found;
    return NULL;
}

static uint64_t newest(const BitmapVec *all, const char *line, uint64_t at_least)
{
    for (size_t i = 0; i < all->len; i++)
        if (str_eq(all->items[i].line, line))
            at_least = MAX(at_least, all->items[i].sequence);
    return at_least;
}

bool bitmaps_witness(const BitmapVec *all, const char *node, const char *line)
{
    LineInput in = {.all = all, .node = node};
    Line ignored;
    const Bitmap *b = find_one(&in, line, 0, &ignored);
    return b && !b->recording && b->count > 0; // one that somebody enabled has other bits, too
}

static bool follow(const LineInput *in, const char *line, uint64_t parent, Line *l)
{
    uint64_t first = place_of(parent), last = place_of(newest(in->all, line, parent));
    if (first == 0)
        return lost(l, "the parent's dirty bitmap is one of an earlier version");
    if (last - first >= BITMAPS_LINE_MAX)
        return lost(l, "%" PRIu64 " backups in a row did not complete", last - first);
    if (last + 1 >= BITMAPS_PLACES)
        return lost(l, "the line of dirty bitmaps has no more numbers");
    for (uint64_t place = first; place <= last; place++) {
        const Bitmap *b = find_one(in, line, place, l);
        if (!b)
            return false;
        if (place == first && b->sequence != parent)
            return lost(l,
                        "dirty bitmap %" PRIu64 " is of another backup than the parent: the disk went back to an "
                        "earlier state in between",
                        place);
        if (b->recording != (place == last))
            return lost(l, "dirty bitmap %" PRIu64 " was %s by somebody else", place,
                        b->recording ? "enabled" : "disabled");
        l->bitmaps[l->len++] = b->sequence;
    }
    l->next = sequence_at(last + 1, in->fresh);
    return bitmaps_witness(in->all, in->node, line) || lost(l, "the disk may have been resized in between");
}

static bool resolve(const LineInput *in, Line *l)
{
    Err err = ERR_INIT;
    char line[UUID_TEXT];
    uint64_t parent;
    if (!in->parent_change_id)
        return false; // nothing to explain
    if (!in->parent_tracking)
        return lost(l, "the parent was not tracked");
    if (!changeid_parse(in->parent_change_id, line, &parent, &err))
        return lost(l, "the parent's change ID is not of a dirty bitmap");
    if (in->size != in->parent_size)
        return lost(l, "the disk was resized from %" PRIu64 " to %" PRIu64 " bytes", in->parent_size, in->size);
    if (!follow(in, line, parent, l))
        return false;
    memcpy(l->uuid, line, sizeof(l->uuid));
    return true;
}

bool bitmaps_is_needed(const Bitmap *b, const BitmapsNeed *needs, size_t len)
{
    for (size_t i = 0; b->line[0] && i < len; i++) {
        char line[UUID_TEXT];
        uint64_t sequence;
        Err other = ERR_INIT;
        if (!str_eq(needs[i].repository, b->repository))
            continue;
        if (!changeid_parse(needs[i].change_id, line, &sequence, &other) ||
            (str_eq(line, b->line) && (b->sequence == 0 || place_of(b->sequence) >= place_of(sequence))))
            return true;
    }
    return false;
}

void bitmaps_begin(const char *fresh, Line *ret)
{
    *ret = (Line){.next = sequence_at(1, fresh)};
    (void)snprintf(ret->uuid, sizeof(ret->uuid), "%s", fresh);
}

void bitmaps_resolve(const LineInput *in, Line *ret)
{
    Line l = {0};
    if (resolve(in, &l)) {
        l.tracked = true;
        *ret = l;
        return;
    }
    bitmaps_begin(in->fresh, ret);
    memcpy(ret->lost, l.lost, sizeof(ret->lost));
}
