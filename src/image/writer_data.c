// Writes and zeros: what arrives becomes host clusters and entries.
#include "image/writer_parts.h"

#include "base/file.h"
#include "codec/qcow2.h"

// Clusters of one chunk that are to be stored, ascending.
typedef struct Stored {
    uint32_t n;
    uint32_t k[WRITER_CHUNK_CLUSTERS];          // cluster in its group
    const uint8_t *from[WRITER_CHUNK_CLUSTERS]; // whole cluster
    uint64_t host[WRITER_CHUNK_CLUSTERS];       // 0: not yet given
    Hash leaf[WRITER_CHUNK_CLUSTERS];
} Stored;

// And those that are stored compressed.
typedef struct Packed {
    uint32_t n;
    uint32_t k[WRITER_CHUNK_CLUSTERS];
    uint32_t length[WRITER_CHUNK_CLUSTERS]; // of the frame
    Hash leaf[WRITER_CHUNK_CLUSTERS];
} Packed;

// A piece of a request, within one group, and what is needed to work on it.
typedef struct Piece {
    const uint8_t *p;     // bytes that came; NULL: zeros
    uint64_t offset, end; // bytes of the disk
    uint8_t *buffer;      // chunk_bytes; cluster i of the piece has its place at i * cluster_size
    WriterGroup *g;
    bool changed;
    WriterPress *press; // NULL: nothing is compressed
    Stored stored;
    Packed packed;
} Piece;

// The host cluster that goes with the entry; 0: none of its own.
static uint64_t host_of(uint64_t entry)
{
    return entry & QCOW2_OFLAG_COMPRESSED ? 0 : entry & QCOW2_OFFSET_MASK;
}

static bool is_data(uint64_t entry)
{
    return entry != 0 && !writer_is_zero(entry);
}

// End of a cluster, cut at the disk's.
static uint64_t cluster_end(const Writer *w, uint64_t cluster)
{
    return MIN((cluster + 1) << w->cluster_bits, w->size);
}

// Does [offset, end) hold the whole of this cluster, as far as the disk goes?
static bool holds(const Writer *w, uint64_t cluster, uint64_t offset, uint64_t end)
{
    return offset <= cluster << w->cluster_bits && end >= cluster_end(w, cluster);
}

// An interrupted run's cluster is not this run's before it was confirmed, or came anew.
static bool is_of_this_run(Writer *w, uint64_t cluster)
{
    if (!w->held)
        return true;
    pthread_mutex_lock(&w->account_lock);
    bool arrived = covered_has_cluster(w->covered, cluster);
    pthread_mutex_unlock(&w->account_lock);
    return arrived;
}

// Safety rule 7. Looked at before anything of the request is done.
static bool may_merge(Writer *w, uint64_t cluster, Err *err)
{
    WriterGroup *g;
    if (w->mode == DISK_FULL)
        return true;
    if (!writer_groups_get(w, cluster / w->geo.leaves, &g, err))
        return writer_break(w, err);
    uint64_t entry = g->entries[cluster % w->geo.leaves];
    writer_groups_put(w, g, false);
    return (entry != 0 && is_of_this_run(w, cluster)) ||
        err_set(err, ERR_INVALID, "a part of the cluster at %llu, which this image does not hold; send whole clusters",
                (unsigned long long)(cluster << w->cluster_bits));
}

static bool check_parts(Writer *w, uint64_t offset, uint64_t end, Err *err)
{
    uint64_t first = offset >> w->cluster_bits, last = (end - 1) >> w->cluster_bits;
    if (!holds(w, first, offset, end) && !may_merge(w, first, err))
        return false;
    return first == last || holds(w, last, offset, end) || may_merge(w, last, err);
}

// A whole cluster for a part that came, or for one that the disk's end cuts: *place is filled.
static bool merge(Writer *w, const Piece *piece, uint64_t cluster, uint8_t *place, Err *err)
{
    uint64_t start = cluster << w->cluster_bits, entry = piece->g->entries[cluster % w->geo.leaves];
    uint64_t from = MAX(start, piece->offset), to = MIN(cluster_end(w, cluster), piece->end);
    if (!holds(w, cluster, piece->offset, piece->end) && is_data(entry)) {
        if (!writer_host_read(w, entry, place, err))
            return false;
    } else {
        memset(place, 0, w->cluster_size);
    }
    if (piece->p)
        memcpy(place + (from - start), piece->p + (from - piece->offset), to - from);
    else
        memset(place + (from - start), 0, to - from);
    return true;
}

// One cluster, complete at `from`: is it kept as it is, marked zero, or stored? Compressed only if all of it came, and
// for the first time: what comes in parts, or again, may do so once more.
static void decide(Writer *w, Piece *piece, uint32_t k, const uint8_t *from, bool whole)
{
    Hash leaf = w->geo.zero_leaf;
    bool zero = hash_is_zero(from, w->cluster_size);
    if (!zero)
        hash_bytes(&w->geo.spec, from, w->cluster_size, &leaf);
    uint64_t entry = piece->g->entries[k];
    if (entry == 0 && hash_equal(&leaf, &piece->g->leaves[k]))
        return; // the parent (in a full: nothing) says the same
    if (zero) {
        if (writer_is_zero(entry))
            return;
        piece->g->entries[k] = qcow2_l2_zero(host_of(entry));
        piece->g->leaves[k] = leaf;
        piece->changed = true;
        return;
    }
    uint32_t length = whole && entry == 0 && piece->press ? writer_press_add(w, piece->press, from) : 0;
    if (length > 0) {
        Packed *p = &piece->packed;
        p->k[p->n] = k;
        p->length[p->n] = length;
        p->leaf[p->n++] = leaf;
        return;
    }
    Stored *s = &piece->stored;
    s->k[s->n] = k;
    s->from[s->n] = from;
    s->host[s->n] = host_of(entry);
    s->leaf[s->n++] = leaf;
}

// New host clusters, in one run, for what has none.
static bool place_new(Writer *w, Stored *s, Err *err)
{
    uint64_t fresh = 0, host;
    for (uint32_t i = 0; i < s->n; i++)
        fresh += s->host[i] == 0;
    if (fresh == 0)
        return true;
    if (!writer_space_take(w, fresh, &host, err))
        return false;
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->host[i] != 0)
            continue;
        s->host[i] = host;
        host += w->cluster_size;
    }
    atomic_fetch_add_explicit(&w->stored_bytes, fresh << w->cluster_bits, memory_order_relaxed);
    return true;
}

// s[from, to): neighbours in the file. Written from where they are if they are neighbours there too, and aligned where
// that matters; else gathered in the buffer. A cluster that already lies in the buffer is never overwritten
// before it was moved: its place is at or behind its index among the stored ones.
static bool write_run(Writer *w, const Stored *s, uint32_t from, uint32_t to, uint8_t *buffer, Err *err)
{
    const uint8_t *p = s->from[from];
    bool together = !w->direct || (uintptr_t)p % WRITER_ALIGN == 0;
    for (uint32_t i = from + 1; together && i < to; i++)
        together = s->from[i] == p + (uint64_t)(i - from) * w->cluster_size;
    if (!together) {
        for (uint32_t i = from; i < to; i++)
            memmove(buffer + (uint64_t)i * w->cluster_size, s->from[i], w->cluster_size);
        p = buffer + (uint64_t)from * w->cluster_size;
    }
    return writer_space_write(w, p, (uint64_t)(to - from) * w->cluster_size, s->host[from], err);
}

static bool store(Writer *w, Piece *piece, Err *err)
{
    Stored *s = &piece->stored;
    if (s->n == 0)
        return true;
    if (!place_new(w, s, err))
        return false;
    for (uint32_t from = 0, to; from < s->n; from = to) {
        for (to = from + 1; to < s->n && s->host[to] == s->host[to - 1] + w->cluster_size;)
            to++;
        if (!write_run(w, s, from, to, piece->buffer, err))
            return err_context(err, "image");
    }
    for (uint32_t i = 0; i < s->n; i++) {
        piece->g->entries[s->k[i]] = qcow2_l2_normal(s->host[i]);
        piece->g->leaves[s->k[i]] = s->leaf[i];
    }
    piece->changed = true;
    return true;
}

static bool store_packed(Writer *w, Piece *piece, Err *err)
{
    Packed *p = &piece->packed;
    uint64_t offsets[WRITER_CHUNK_CLUSTERS];
    if (p->n == 0)
        return true;
    if (!writer_press_store(w, piece->press, p->length, p->n, offsets, err))
        return false;
    for (uint32_t i = 0; i < p->n; i++) {
        piece->g->entries[p->k[i]] = qcow2_l2_compressed(offsets[i], p->length[i], w->cluster_bits);
        piece->g->leaves[p->k[i]] = p->leaf[i];
    }
    piece->changed = true;
    return true;
}

// The range of these clusters is locked. Nothing is acknowledged before its bytes are written.
static bool work_on(Writer *w, Piece *piece, Err *err)
{
    uint64_t first = piece->offset >> w->cluster_bits, last = (piece->end - 1) >> w->cluster_bits;
    for (uint64_t cluster = first; cluster <= last; cluster++) {
        uint64_t start = cluster << w->cluster_bits;
        const uint8_t *from = NULL;
        if (piece->p && piece->offset <= start && start + w->cluster_size <= piece->end) {
            from = piece->p + (start - piece->offset);
        } else {
            uint8_t *place = piece->buffer + ((cluster - first) << w->cluster_bits);
            if (!merge(w, piece, cluster, place, err))
                return false;
            from = place;
        }
        decide(w, piece, (uint32_t)(cluster % w->geo.leaves), from, holds(w, cluster, piece->offset, piece->end));
    }
    return store(w, piece, err) && store_packed(w, piece, err);
}

// [offset, end) within one chunk_bytes-aligned piece of the disk. p NULL: zeros.
static bool write_piece(Writer *w, const uint8_t *p, uint64_t offset, uint64_t end, Err *err)
{
    cleanup_free Piece *piece = mem_calloc(1, sizeof *piece, err);
    if (!piece)
        return false;
    piece->p = p;
    piece->offset = offset;
    piece->end = end;
    if (!writer_space_buffer(w, &piece->buffer, err))
        return false;
    bool ok = (w->compression == 0 || !p || writer_press_take(w, &piece->press, err)) &&
        writer_groups_get(w, (offset >> w->cluster_bits) / w->geo.leaves, &piece->g, err);
    if (ok) {
        ok = work_on(w, piece, err);
        writer_groups_put(w, piece->g, piece->changed);
    }
    writer_press_back(w, piece->press);
    writer_space_buffer_back(w, piece->buffer);
    return ok;
}

static bool account(Writer *w, _Atomic uint64_t *counter, uint64_t offset, uint64_t length, Err *err)
{
    uint64_t fresh;
    pthread_mutex_lock(&w->account_lock);
    bool ok = covered_add(w->covered, offset, length, &fresh, err);
    pthread_mutex_unlock(&w->account_lock);
    if (ok)
        atomic_fetch_add_explicit(counter, fresh, memory_order_relaxed);
    return ok;
}

static bool check_bounds(const Writer *w, uint64_t offset, uint64_t length, Err *err)
{
    if (offset > w->size || length > w->size - offset)
        return err_set(err, ERR_INVALID, "%llu bytes at %llu are beyond the disk's end", (unsigned long long)length,
                       (unsigned long long)offset);
    return true;
}

static WriterRange range_of(const Writer *w, uint64_t offset, uint64_t length)
{
    return (WriterRange){.first = offset >> w->cluster_bits, .end = ((offset + length - 1) >> w->cluster_bits) + 1};
}

static bool write_pieces(Writer *w, const uint8_t *p, uint64_t offset, uint64_t end, Err *err)
{
    for (uint64_t at = offset; at < end;) {
        uint64_t stop = MIN(end, align_down(at, w->chunk_bytes) + w->chunk_bytes);
        if (!write_piece(w, p + (at - offset), at, stop, err))
            return writer_break(w, err);
        at = stop;
    }
    writer_journal_overwritten(w, offset >> w->cluster_bits, ((end - 1) >> w->cluster_bits) + 1);
    return (account(w, &w->received_data, offset, end - offset, err) && writer_journal_note(w, offset, end, err)) ||
        writer_break(w, err);
}

bool writer_write(Writer *w, const void *p, uint64_t offset, uint32_t length, Err *err)
{
    if (!check_bounds(w, offset, length, err))
        return false;
    if (length == 0)
        return true;
    WriterRange range = range_of(w, offset, length);
    if (!writer_range_lock(w, &range, err))
        return false;
    bool ok = check_parts(w, offset, offset + length, err) && write_pieces(w, p, offset, offset + length, err);
    writer_range_unlock(w, &range);
    writer_journal_tick(w);
    return ok;
}

// Clusters [first, end) of one group become zeros.
static bool zero_in_group(Writer *w, uint64_t number, uint32_t first, uint32_t end, Err *err)
{
    bool was_zero = !w->parent || hash_equal(chain_hashes_node(w->parent, number), &w->geo.zero_node);
    if (was_zero && !writer_groups_changed(w, number))
        return true; // whoever holds other clusters of this group changes nothing about ours
    WriterGroup *g;
    if (!writer_groups_get(w, number, &g, err))
        return false;
    bool changed = false;
    for (uint32_t k = first; k < end; k++) {
        uint64_t entry = g->entries[k];
        if (writer_is_zero(entry) || (entry == 0 && hash_equal(&g->leaves[k], &w->geo.zero_leaf)))
            continue;
        g->entries[k] = qcow2_l2_zero(host_of(entry));
        g->leaves[k] = w->geo.zero_leaf;
        changed = true;
    }
    writer_groups_put(w, g, changed);
    return true;
}

static bool zero_clusters(Writer *w, uint64_t first, uint64_t end, Err *err)
{
    for (uint64_t at = first; at < end;) {
        uint64_t number = at / w->geo.leaves, base = number * w->geo.leaves;
        uint64_t stop = MIN(end, base + w->geo.leaves);
        if (!zero_in_group(w, number, (uint32_t)(at - base), (uint32_t)(stop - base), err))
            return false;
        at = stop;
    }
    return true;
}

static bool zero_range(Writer *w, uint64_t offset, uint64_t end, Err *err)
{
    uint64_t first = offset >> w->cluster_bits, last = ((end - 1) >> w->cluster_bits) + 1; // clusters
    if (!holds(w, first, offset, end)) {
        if (!write_piece(w, NULL, offset, MIN(end, cluster_end(w, first)), err))
            return false;
        first++;
    }
    if (first < last && !holds(w, last - 1, offset, end)) {
        if (!write_piece(w, NULL, (last - 1) << w->cluster_bits, end, err))
            return false;
        last--;
    }
    return zero_clusters(w, first, last, err);
}

bool writer_zero(Writer *w, uint64_t offset, uint64_t length, Err *err)
{
    if (!check_bounds(w, offset, length, err))
        return false;
    if (length == 0)
        return true;
    WriterRange range = range_of(w, offset, length);
    if (!writer_range_lock(w, &range, err))
        return false;
    bool ok = check_parts(w, offset, offset + length, err);
    if (ok) {
        ok = (zero_range(w, offset, offset + length, err) && account(w, &w->received_zero, offset, length, err) &&
              writer_journal_note(w, offset, offset + length, err)) ||
            writer_break(w, err);
        writer_journal_overwritten(w, range.first, range.end);
    }
    writer_range_unlock(w, &range);
    writer_journal_tick(w);
    return ok;
}

// An interrupted run's cluster: is its data still what its leaf says?
static bool check_held(Writer *w, const WriterGroup *g, uint32_t k, uint8_t *buffer, Err *err)
{
    Hash leaf;
    if (!is_data(g->entries[k]))
        return true; // the journal's word
    if (!writer_host_read(w, g->entries[k], buffer, err))
        return false;
    hash_bytes(&w->geo.spec, buffer, w->cluster_size, &leaf);
    return hash_equal(&leaf, &g->leaves[k]) ||
        err_set(err, ERR_DAMAGED, "what the interrupted backup left is not what it had written (cluster at %llu)",
                (unsigned long long)((g->number * w->geo.leaves + k) << w->cluster_bits));
}

static bool has_arrived(Writer *w, uint64_t cluster)
{
    pthread_mutex_lock(&w->account_lock);
    bool has = covered_has_cluster(w->covered, cluster);
    pthread_mutex_unlock(&w->account_lock);
    return has;
}

// A cluster that an interrupted run left: held, or, in a comparison, of the run before it, which did not confirm it.
// Not held it is read by the client, which then finds its leaf, and may say that it is the same.
static bool is_left(Writer *w, const WriterGroup *g, uint32_t k, uint64_t cluster)
{
    return writer_journal_is_held(w, cluster) ||
        (w->held && w->mode == DISK_COMPARE && g->entries[k] != 0 && !has_arrived(w, cluster));
}

// Clusters [first, end) of a group, which are locked: are they what the client was told, those left and the parent's?
static bool same_in_group(Writer *w, WriterGroup *g, uint64_t first, uint64_t end, uint8_t *buffer, Err *err)
{
    for (uint64_t i = first; i < end; i++) {
        uint32_t k = (uint32_t)(i % w->geo.leaves);
        if (is_left(w, g, k, i)) {
            if (check_held(w, g, k, buffer, err))
                continue;
            writer_journal_end(w); // the next run starts over
            return writer_break(w, err);
        }
        if (w->mode != DISK_COMPARE || g->entries[k] != 0)
            return err_set(err, ERR_INVALID, "the cluster at %llu is not what anybody was told of",
                           (unsigned long long)(i << w->cluster_bits));
    }
    return true;
}

static bool same_clusters(Writer *w, uint64_t first, uint64_t end, Err *err)
{
    uint8_t *buffer = NULL;
    bool ok = true;
    if (w->held && !writer_space_buffer(w, &buffer, err))
        return false;
    for (uint64_t at = first, stop; ok && at < end; at = stop) {
        uint64_t number = at / w->geo.leaves;
        WriterGroup *g;
        stop = MIN(end, (number + 1) * w->geo.leaves);
        if (!w->held && !writer_groups_changed(w, number))
            continue; // nobody else changes our clusters
        if (!writer_groups_get(w, number, &g, err)) {
            ok = writer_break(w, err);
            break;
        }
        ok = same_in_group(w, g, at, stop, buffer, err);
        writer_groups_put(w, g, false);
    }
    writer_space_buffer_back(w, buffer);
    return ok;
}

bool writer_same(Writer *w, uint64_t offset, uint64_t length, Err *err)
{
    if (!check_bounds(w, offset, length, err))
        return false;
    if (length == 0)
        return true;
    WriterRange range = range_of(w, offset, length);
    if ((w->mode != DISK_COMPARE && !w->held) || !holds(w, range.first, offset, offset + length) ||
        !holds(w, range.end - 1, offset, offset + length))
        return err_set(err, ERR_INVALID, "only whole clusters that are known can be the same");
    if (!writer_range_lock(w, &range, err))
        return false;
    bool ok = same_clusters(w, range.first, range.end, err);
    if (ok) {
        ok = (account(w, &w->received_same, offset, length, err) &&
              writer_journal_note(w, offset, offset + length, err)) ||
            writer_break(w, err);
        writer_journal_overwritten(w, range.first, range.end);
    }
    writer_range_unlock(w, &range);
    writer_journal_tick(w);
    return ok;
}

static bool read_cluster(Writer *w, uint64_t cluster, uint64_t from, uint64_t to, uint8_t *p, uint8_t *buffer, Err *err)
{
    uint64_t start = cluster << w->cluster_bits;
    WriterGroup *g;
    if (!writer_groups_get(w, cluster / w->geo.leaves, &g, err))
        return writer_break(w, err);
    uint64_t entry = g->entries[cluster % w->geo.leaves];
    writer_groups_put(w, g, false);
    if (entry == 0 && w->mode != DISK_FULL)
        return err_set(err, ERR_INVALID, "the cluster at %llu is not in this image", (unsigned long long)start);
    if (!is_data(entry)) {
        memset(p, 0, to - from);
        return true;
    }
    if (!writer_host_read(w, entry, buffer, err))
        return writer_break(w, err);
    memcpy(p, buffer + (from - start), to - from);
    return true;
}

bool writer_read(Writer *w, void *p, uint64_t offset, uint32_t length, Err *err)
{
    if (!check_bounds(w, offset, length, err))
        return false;
    if (length == 0)
        return true;
    WriterRange range = range_of(w, offset, length);
    if (!writer_range_lock(w, &range, err))
        return false;
    uint8_t *buffer = NULL;
    bool ok = writer_space_buffer(w, &buffer, err);
    for (uint64_t at = offset; ok && at < offset + length;) {
        uint64_t cluster = at >> w->cluster_bits, stop = MIN(offset + length, cluster_end(w, cluster));
        ok = read_cluster(w, cluster, at, stop, (uint8_t *)p + (at - offset), buffer, err);
        at = stop;
    }
    writer_space_buffer_back(w, buffer);
    writer_range_unlock(w, &range);
    return ok;
}
