// Checkpoints of an image that is being written, and what an earlier run's left. docs/internals/resume.md.
#include "image/writer_parts.h"

#include "base/clock.h"
#include "base/file.h"

#include <errno.h>
#include <unistd.h>

#define CHECKPOINT_BYTES (UINT64_C(1) << 30)
#define CHECKPOINT_MS 30000

static JournalSpec journal_spec(const Writer *w)
{
    return (JournalSpec){.hash = w->geo.spec, .size = w->size, .cluster_size = w->cluster_size, .mode = w->mode};
}

// Without a journal the backup is as good, it only cannot go on after an interruption.
static void give_up(Writer *w)
{
    Err ignored = ERR_INIT; // of an attempt: it goes with it
    pthread_mutex_lock(&w->journal_lock);
    w->pending.len = 0;
    w->journal_ended = true;
    pthread_mutex_unlock(&w->journal_lock);
    if (w->journal)
        (void)!file_unlink(w->journal_path, &ignored);
}

// ---- what arrived

typedef struct Note {
    JournalItem items[64];
    size_t n;
} Note;

static bool push_all(Writer *w, Note *note, Err *err)
{
    bool ok = true;
    pthread_mutex_lock(&w->journal_lock);
    for (size_t i = 0; ok && !w->journal_ended && i < note->n; i++)
        ok = journal_item_vec_push(&w->pending, note->items[i], err);
    pthread_mutex_unlock(&w->journal_lock);
    note->n = 0;
    return ok;
}

// Runs of a kind grow, clusters with an entry are an item each.
static bool add(Writer *w, Note *note, const JournalItem *item, Err *err)
{
    JournalItem *last = note->n > 0 ? &note->items[note->n - 1] : NULL;
    if (last && item->entry == 0 && last->kind == item->kind && last->first + last->count == item->first &&
        last->count < UINT32_MAX - item->count) {
        last->count += item->count;
        return true;
    }
    if (note->n == ARRAY_LEN(note->items) && !push_all(w, note, err))
        return false;
    note->items[note->n++] = *item;
    return true;
}

static bool note_group(Writer *w, Note *note, uint64_t first, uint64_t end, uint64_t whole_first, uint64_t whole_end,
                       Err *err)
{
    uint64_t number = first / w->geo.leaves, base = number * w->geo.leaves;
    WriterGroup *g;
    if (!writer_groups_changed(w, number)) {
        first = MAX(first, whole_first);
        end = MIN(end, whole_end);
        return first >= end ||
            add(w, note, &(JournalItem){.first = first, .count = (uint32_t)(end - first), .kind = JOURNAL_NOTHING},
                err);
    }
    if (!writer_groups_get(w, number, &g, err))
        return false;
    bool ok = true;
    for (uint64_t i = first; ok && i < end; i++) {
        JournalItem item = {.first = i, .count = 1, .entry = g->entries[i - base]};
        bool whole = i >= whole_first && i < whole_end;
        if (item.entry == 0)
            item.kind = JOURNAL_NOTHING;
        else if (item.entry == qcow2_l2_zero(0))
            item.kind = JOURNAL_ZERO;
        else
            item.kind = whole ? JOURNAL_CLUSTER : JOURNAL_PART;
        if (item.kind == JOURNAL_ZERO)
            item.entry = 0;
        else if (item.entry != 0)
            item.leaf = g->leaves[i - base];
        if (whole || item.entry != 0)
            ok = add(w, note, &item, err);
    }
    writer_groups_put(w, g, false);
    return ok;
}

bool writer_journal_note(Writer *w, uint64_t offset, uint64_t end, Err *err)
{
    if (!w->journal)
        return true;
    uint64_t first = offset >> w->cluster_bits, last = ((end - 1) >> w->cluster_bits) + 1;
    uint64_t whole_first = (offset + w->cluster_size - 1) >> w->cluster_bits;
    uint64_t whole_end = end == w->size ? w->clusters : end >> w->cluster_bits;
    Note note = {.n = 0};
    for (uint64_t at = first, stop; at < last; at = stop) {
        stop = MIN(last, (at / w->geo.leaves + 1) * w->geo.leaves);
        if (!note_group(w, &note, at, stop, whole_first, whole_end, err))
            return false;
    }
    return push_all(w, &note, err);
}

// ---- checkpoints

// Nothing is under way: every host cluster below `next` belongs to an item.
static bool take_pending(Writer *w, JournalItemVec *ret, uint64_t *ret_next, Err *err)
{
    WriterRange all = {.first = 0, .end = UINT64_MAX};
    if (!writer_range_lock(w, &all, err))
        return false;
    pthread_mutex_lock(&w->journal_lock);
    *ret = w->pending;
    w->pending = (JournalItemVec){0};
    w->checkpoint_at_bytes = atomic_load_explicit(&w->stored_bytes, memory_order_relaxed) + w->checkpoint_bytes;
    w->checkpoint_at_ms = clock_mono_ms() + CHECKPOINT_MS;
    pthread_mutex_unlock(&w->journal_lock);
    pthread_mutex_lock(&w->space_lock);
    *ret_next = w->next;
    pthread_mutex_unlock(&w->space_lock);
    writer_range_unlock(w, &all);
    return true;
}

static bool checkpoint(Writer *w, Err *err)
{
    cleanup(journal_item_vec_clear) JournalItemVec items = {0};
    uint64_t next;
    Err lost = ERR_INIT;
    if (!take_pending(w, &items, &next, err))
        return false;
    if (items.len == 0)
        return true;
    if (!writer_flush(w, err))
        return false;
    for (size_t done = 0, n; done < items.len; done += n) {
        n = MIN(items.len - done, JOURNAL_ITEMS_MAX);
        // only the last of several may say that all below `next` is named: cut between them, the journal is refused
        uint64_t end = done + n == items.len ? next : w->journal_next;
        if (!journal_append(w->journal, items.items + done, n, end, &lost)) {
            give_up(w);
            return true;
        }
    }
    w->journal_next = next;
    return true;
}

bool writer_checkpoint(Writer *w, Err *err)
{
    if (!w->journal)
        return true;
    pthread_mutex_lock(&w->checkpoint_lock);
    pthread_mutex_lock(&w->journal_lock);
    bool ended = w->journal_ended;
    pthread_mutex_unlock(&w->journal_lock);
    bool ok = ended || checkpoint(w, err);
    pthread_mutex_unlock(&w->checkpoint_lock);
    return ok;
}

void writer_journal_tick(Writer *w)
{
    Err seen = ERR_INIT; // a writer that is broken by it says so to the next request
    if (!w->journal)
        return;
    pthread_mutex_lock(&w->journal_lock);
    bool due = !w->journal_ended && w->pending.len > 0 &&
        (w->pending.len >= JOURNAL_ITEMS_MAX / 2 ||
         atomic_load_explicit(&w->stored_bytes, memory_order_relaxed) >= w->checkpoint_at_bytes ||
         clock_mono_ms() >= w->checkpoint_at_ms);
    if (due) { // whoever comes meanwhile goes on
        w->checkpoint_at_bytes = UINT64_MAX;
        w->checkpoint_at_ms = INT64_MAX;
    }
    pthread_mutex_unlock(&w->journal_lock);
    if (due)
        (void)!writer_checkpoint(w, &seen);
}

void writer_journal_end(Writer *w)
{
    give_up(w);
}

// ---- what an earlier run left

bool writer_journal_is_held(const Writer *w, uint64_t cluster)
{
    return w->held && (atomic_load_explicit(&w->held[cluster / 64], memory_order_relaxed) >> (cluster % 64) & 1) != 0;
}

static void set_held(Writer *w, uint64_t cluster, bool held)
{
    uint64_t bit = UINT64_C(1) << (cluster % 64);
    if (held)
        atomic_fetch_or_explicit(&w->held[cluster / 64], bit, memory_order_relaxed);
    else
        atomic_fetch_and_explicit(&w->held[cluster / 64], ~bit, memory_order_relaxed);
}

void writer_journal_overwritten(Writer *w, uint64_t first, uint64_t end)
{
    for (uint64_t i = first; w->held && i < end; i++)
        set_held(w, i, false);
}

bool writer_held(Writer *w, uint64_t offset, uint64_t length, ExtentVec *ret, Err *err)
{
    if (length == 0 || offset > w->size || length > w->size - offset)
        return err_set(err, ERR_INVALID, "a map of what is not on the disk");
    uint64_t end = offset + length;
    for (uint64_t i = offset >> w->cluster_bits, last = (end - 1) >> w->cluster_bits; i <= last; i++) {
        if (!writer_journal_is_held(w, i))
            continue;
        uint64_t from = MAX(offset, i << w->cluster_bits), to = MIN(end, (i + 1) << w->cluster_bits);
        Extent *before = ret->len > 0 ? &ret->items[ret->len - 1] : NULL;
        if (before && before->offset + before->length == from)
            before->length += to - from;
        else if (!extent_vec_push(ret, (Extent){.offset = from, .length = to - from}, err))
            return false;
    }
    return true;
}

bool writer_is_resumed(const Writer *w)
{
    return w->held != NULL;
}

static bool load_cluster(Writer *w, const JournalItem *item, Err *err)
{
    WriterGroup *g;
    Qcow2Entry e;
    if (!qcow2_l2_decode(item->entry, w->cluster_bits, w->next, &e, err) || e.kind == QCOW2_UNALLOCATED ||
        (e.offset != 0 && e.offset < w->cluster_size))
        return err_set(err, ERR_DAMAGED, "the journal has an entry that cannot be");
    if (!writer_groups_get(w, item->first / w->geo.leaves, &g, err))
        return false;
    uint64_t k = item->first % w->geo.leaves;
    g->entries[k] = item->entry;
    g->leaves[k] = item->leaf;
    writer_groups_put(w, g, true);
    set_held(w, item->first, item->kind == JOURNAL_CLUSTER);
    return true;
}

static bool load_zeros(Writer *w, const JournalItem *item, Err *err)
{
    for (uint64_t i = item->first, end = item->first + item->count; i < end; i++) {
        WriterGroup *g;
        if (!writer_groups_get(w, i / w->geo.leaves, &g, err))
            return false;
        g->entries[i % w->geo.leaves] = qcow2_l2_zero(0);
        g->leaves[i % w->geo.leaves] = w->geo.zero_leaf;
        writer_groups_put(w, g, true);
        set_held(w, i, true);
    }
    return true;
}

// The old run's host clusters go into the new journal as they stand: not as arrived.
static bool on_load(void *ctx, const JournalItem *items, size_t n, uint64_t next, Err *err)
{
    Writer *w = ctx;
    cleanup(journal_item_vec_clear) JournalItemVec kept = {0};
    for (size_t i = 0; i < n; i++) {
        JournalItem item = items[i];
        bool ok = true;
        switch (item.kind) {
        case JOURNAL_CLUSTER:
        case JOURNAL_PART: ok = load_cluster(w, &item, err); break;
        case JOURNAL_ZERO: ok = load_zeros(w, &item, err); break;
        case JOURNAL_NOTHING:
            for (uint64_t k = item.first; k < item.first + item.count; k++)
                set_held(w, k, true);
            break;
        }
        item.kind = JOURNAL_PART;
        if (!ok || (item.entry != 0 && !journal_item_vec_push(&kept, item, err)))
            return false;
    }
    return journal_append(w->journal, kept.items, kept.len, next, err);
}

typedef struct Measure {
    Writer *w;
    uint64_t high; // end of the last host cluster that an item names
} Measure;

static bool on_measure(void *ctx, const JournalItem *items, size_t n, uint64_t next, Err *err)
{
    Measure *m = ctx;
    Writer *w = m->w;
    for (size_t i = 0; i < n; i++) {
        Qcow2Entry e = {0};
        if (items[i].entry != 0 && !qcow2_l2_decode(items[i].entry, w->cluster_bits, INT64_MAX, &e, err))
            return false;
        if (e.offset != 0)
            m->high = MAX(m->high, e.offset + (e.kind == QCOW2_COMPRESSED ? e.length : w->cluster_size));
    }
    if (next < w->next || next > w->most || next % w->cluster_size != 0)
        return err_set(err, ERR_DAMAGED, "the journal's image ends where it cannot");
    w->next = next;
    return true;
}

bool writer_journal_measure(Writer *w, const WriterSpec *spec, uint64_t *ret_used, Err *err)
{
    JournalSpec js = journal_spec(w);
    uint64_t records;
    Measure m = {.w = w};
    if (!journal_read(spec->resume_journal, &js, on_measure, &m, &records, err))
        return false;
    if (m.high > w->next)
        return err_set(err, ERR_DAMAGED, "the journal names clusters behind its image's end");
    if (records == 0)
        return err_set(err, ERR_DAMAGED, "the journal has no whole record");
    *ret_used = m.high;
    return true;
}

bool writer_journal_open(Writer *w, const WriterSpec *spec, Err *err)
{
    JournalSpec js = journal_spec(w);
    uint64_t records;
    w->checkpoint_bytes = spec->checkpoint_bytes ? spec->checkpoint_bytes : CHECKPOINT_BYTES;
    w->checkpoint_at_bytes = w->checkpoint_bytes;
    w->journal_next = w->next;
    w->checkpoint_at_ms = clock_mono_ms() + CHECKPOINT_MS;
    if (!spec->journal_path)
        return true;
    if (!mem_replace(&w->journal_path, spec->journal_path, err) ||
        !journal_create(w->journal_path, &js, &w->journal, err))
        return false;
    if (!spec->resume_image)
        return true;
    w->held = mem_calloc(w->clusters / 64 + 1, sizeof *w->held, err);
    return w->held && journal_read(spec->resume_journal, &js, on_load, w, &records, err) &&
        file_unlink(spec->resume_journal, err);
}

void writer_journal_clear(Writer *w)
{
    journal_free(w->journal);
    journal_item_vec_clear(&w->pending);
    free(w->journal_path);
    free(w->held);
}
