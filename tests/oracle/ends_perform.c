// How a request reaches the engine: mostly as it is, sometimes as an odd client would send it.
#include "ends_parts.h"

#define PIECES_MAX 6

typedef struct Piece {
    uint64_t offset, end;
} Piece;

// Cuts a range at random, in bounds of `grain`, and shuffles the pieces.
static size_t cut_up(Rng *rng, uint64_t offset, uint64_t length, uint64_t grain, Piece *out)
{
    size_t n = 0;
    uint64_t end = offset + length;
    while (offset < end) {
        uint64_t to = end;
        if (n + 1 < PIECES_MAX && end - offset > grain && rng_chance(rng, 80))
            to = offset + grain * rng_between(rng, 1, (end - offset) / grain);
        out[n++] = (Piece){offset, to};
        offset = to;
    }
    for (size_t i = n; i > 1; i--) {
        size_t k = (size_t)rng_below(rng, i);
        Piece p = out[k];
        out[k] = out[i - 1];
        out[i - 1] = p;
    }
    return n;
}

static bool put(End *e, const EndsRequest *r, uint64_t offset, uint64_t end, Err *err)
{
    if (r->zero)
        return writer_zero(e->writer, offset, end - offset, err);
    return writer_write(e->writer, r->write + (offset - r->offset), offset, (uint32_t)(end - offset), err);
}

static bool put_pieces(End *e, const EndsRequest *r, uint64_t grain, Err *err)
{
    Piece pieces[PIECES_MAX];
    size_t n = cut_up(e->run->rng, r->offset, r->length, grain, pieces);
    for (size_t i = 0; i < n; i++)
        if (!put(e, r, pieces[i].offset, pieces[i].end, err))
            return false;
    return true;
}

// Other bytes first, then the right ones in pieces of any size: the image holds the clusters by then.
static bool put_after_garbage(End *e, const EndsRequest *r, Err *err)
{
    size_t n = (size_t)MIN(r->length, UINT64_C(1) << 20);
    cleanup_free uint8_t *garbage = mem_calloc(1, n, err);
    if (!garbage)
        return false;
    rng_fill(e->run->rng, garbage, n);
    for (uint64_t at = 0; at < r->length; at += n)
        if (!writer_write(e->writer, garbage, r->offset + at, (uint32_t)MIN(n, r->length - at), err))
            return false;
    return put_pieces(e, r, 1, err);
}

static bool put_zeros_as_data(End *e, const EndsRequest *r, Err *err)
{
    cleanup_free uint8_t *zeros = mem_calloc(1, (size_t)r->length, err);
    return zeros && writer_write(e->writer, zeros, r->offset, (uint32_t)r->length, err);
}

// Safety rule 7: a part of a cluster that this image does not hold is refused, and that breaks nothing.
static bool probe_part(End *e, const EndsRequest *r, Err *err)
{
    Err refused = ERR_INIT;
    uint8_t byte = 1;
    if (e->mode == DISK_FULL || r->length < 3)
        return true;
    if (writer_write(e->writer, &byte, r->offset + 1, 1, &refused) || refused.code != ERR_INVALID)
        return err_set(err, ERR_INTERNAL, "the engine took a part of a cluster that it does not hold, at %llu",
                       (unsigned long long)r->offset);
    return true;
}

static bool read_back(End *e, const EndsRequest *r, Err *err)
{
    size_t n = (size_t)MIN(r->length, 100000);
    cleanup_free uint8_t *got = mem_calloc(1, n, err);
    if (!got || !writer_read(e->writer, got, r->offset, (uint32_t)n, err))
        return false;
    if (memcmp(got, e->view->bytes + r->offset, n) != 0)
        return err_set(err, ERR_INTERNAL, "the engine does not read what was written at %llu",
                       (unsigned long long)r->offset);
    return true;
}

static bool put_somehow(End *e, const EndsRequest *r, Err *err)
{
    if (!rng_chance(e->run->rng, e->run->noise))
        return put(e, r, r->offset, r->offset + r->length, err);
    switch (rng_below(e->run->rng, 6)) {
    case 0: return put_pieces(e, r, e->mode == DISK_FULL ? 1 : e->cluster_size, err);
    case 1: return put_after_garbage(e, r, err);
    case 2: return put(e, r, r->offset, r->offset + r->length, err) && put_pieces(e, r, e->cluster_size, err);
    case 3: return probe_part(e, r, err) && put(e, r, r->offset, r->offset + r->length, err);
    case 4: return r->zero ? put_zeros_as_data(e, r, err) : put(e, r, r->offset, r->offset + r->length, err);
    default:
        return put(e, r, r->offset, r->offset + r->length, err) &&
            (e->mode != DISK_FULL || e->run->plant != ENDS_HONEST || read_back(e, r, err));
    }
}

static void mark_passed(End *e, uint64_t offset, uint64_t length, bool passed)
{
    memset(e->passed + offset / e->cluster_size, passed, (length + e->cluster_size - 1) / e->cluster_size);
}

// Planted: each data write waits for the next one, and so the last one never comes.
static bool hold_back(End *e, const EndsRequest *r, Err *err)
{
    uint8_t *copy = mem_calloc(1, (size_t)r->length, err);
    if (!copy)
        return false;
    memcpy(copy, r->write, r->length);
    EndsRequest before = {.write = e->held, .offset = e->held_offset, .length = e->held_length};
    bool ok = !e->held || put(e, &before, before.offset, before.offset + before.length, err);
    if (e->held)
        mark_passed(e, before.offset, before.length, true);
    free(e->held);
    e->held = copy;
    e->held_offset = r->offset;
    e->held_length = r->length;
    return ok;
}

bool ends_perform(End *e, const EndsRequest *r, Err *err)
{
    if (!r->write && !r->zero)
        return writer_flush(e->writer, err);
    if (r->zero && e->run->plant == ENDS_SKIP_ZERO && e->mode == DISK_TRACKED)
        return true;
    if (r->write && e->run->plant == ENDS_DROP_LAST)
        return hold_back(e, r, err);
    mark_passed(e, r->offset, r->length, true);
    return put_somehow(e, r, err);
}
