// QueryChangedDiskAreas: one answer, looked at while it arrives.
#include "wire/vim_parts.h"

#include <inttypes.h>

typedef struct Areas {
    uint64_t capacity, start; // what was asked
    uint64_t offset, length;  // the window that is answered
    bool has_offset, has_length;
    uint64_t end; // of the last area
    VimOnArea on_area;
    void *ctx;
    bool answered;
} Areas;

static bool wrong(Err *err, const char *what, uint64_t offset, uint64_t length)
{
    return err_set(err, ERR_PROTOCOL,
                   "%s (offset %" PRIu64 ", length %" PRIu64 "): its change tracking is not to be believed", what,
                   offset, length);
}

static bool check_window(const Areas *a, Err *err)
{
    if (!a->has_offset || !a->has_length)
        return wrong(err, "changed areas without the part of the disk that they are of", 0, 0);
    if (a->offset != a->start)
        return wrong(err, "changed areas of another part of the disk than was asked for", a->offset, a->length);
    if (a->length == 0)
        return wrong(err, "changed areas of a part of the disk without length", a->offset, a->length);
    if (a->length > a->capacity - a->offset) // start is below capacity
        return wrong(err, "changed areas of a part that passes the disk's end", a->offset, a->length);
    return true;
}

static bool check_area(Areas *a, uint64_t offset, uint64_t length, Err *err)
{
    uint64_t window_end = a->offset + a->length;
    if (length == 0)
        return wrong(err, "a changed area without length", offset, length);
    if (offset < a->offset || offset >= window_end || length > window_end - offset)
        return wrong(err, "a changed area outside the part that is answered", offset, length);
    if (offset < a->end)
        return wrong(err, "a changed area that overlaps the one before it, or is out of order", offset, length);
    a->end = offset + length;
    return a->on_area(a->ctx, offset, length, err);
}

static bool read_area(Areas *a, XmlReader *r, Err *err)
{
    uint64_t offset = 0, length = 0;
    bool has_offset = false, has_length = false, more;
    XmlWalk w = xml_walk(r);
    while (xml_next(r, &w, &more, err)) {
        if (!more && (!has_offset || !has_length))
            return wrong(err, "a changed area without start or length", offset, length);
        if (!more)
            return check_area(a, offset, length, err);
        if (xml_is(r, "start")) {
            if (has_offset || !vim_read_u64(r, &offset, err))
                return err_set(err, ERR_PROTOCOL, "a changed area with two starts"); // the first error wins
            has_offset = true;
        } else if (xml_is(r, "length")) {
            if (has_length || !vim_read_u64(r, &length, err))
                return err_set(err, ERR_PROTOCOL, "a changed area with two lengths");
            has_length = true;
        }
    }
    return false;
}

// startOffset, length, changedArea…, in this order.
static bool read_info(Areas *a, XmlReader *r, Err *err)
{
    bool more, checked = false;
    XmlWalk w = xml_walk(r);
    while (xml_next(r, &w, &more, err)) {
        if (!more || xml_is(r, "changedArea")) {
            if (!checked && !check_window(a, err))
                return false;
            checked = true;
            if (!more)
                return true;
            if (!read_area(a, r, err))
                return false;
        } else if (xml_is(r, "startOffset") || xml_is(r, "length")) {
            bool is_length = xml_is(r, "length");
            if (checked || (is_length ? a->has_length : a->has_offset) ||
                !vim_read_u64(r, is_length ? &a->length : &a->offset, err))
                return err_set(err, ERR_PROTOCOL, "changed areas of more than one part of the disk");
            *(is_length ? &a->has_length : &a->has_offset) = true;
        }
    }
    return false;
}

static bool on_areas(void *ctx, XmlReader *r, Err *err)
{
    Areas *a = ctx;
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return a->answered || wrong(err, "no changed areas in the answer", 0, 0);
        if (!xml_is(r, "returnval"))
            continue;
        if (a->answered)
            return wrong(err, "two answers in one", 0, 0);
        a->answered = true;
        if (!read_info(a, r, err))
            return false;
    }
    return false;
}

// Of whatever has nothing to do with tracking the code stands; any other refusal means that tracking is lost.
static bool tracking_is_lost(const Vim *v, ErrCode code)
{
    switch (code) {
    case ERR_UNAUTHORIZED:
    case ERR_FORBIDDEN:
    case ERR_NOT_FOUND:
    case ERR_UNAVAILABLE:
    case ERR_TIMEOUT:
    case ERR_CANCELLED:
    case ERR_BUSY: return false;
    default: return *v->fault.type != '\0';
    }
}

static bool add_question(StrBuf *b, const char *snapshot, const VimDisk *disk, uint64_t start, const char *change_id,
                         Err *err)
{
    return vim_add_moref(b, "snapshot", "VirtualMachineSnapshot", snapshot, err) &&
        str_addf(b, err, "<deviceKey>%d</deviceKey><startOffset>%" PRIu64 "</startOffset>", disk->key, start) &&
        xml_add_element(b, "changeId", change_id, err);
}

bool vim_changed_areas(Vim *v, const char *moref, const char *snapshot, const VimDisk *disk, uint64_t start,
                       const char *change_id, VimOnArea on_area, void *ctx, uint64_t *ret_next, Err *err)
{
    if (start >= disk->capacity)
        return err_set(err, ERR_INTERNAL, "changed areas at %" PRIu64 ", which is not within the disk", start);
    Areas a = {.capacity = disk->capacity, .start = start, .end = start, .on_area = on_area, .ctx = ctx};
    StrBuf b = STR_BUF(VIM_REQUEST_MAX);
    bool fine = add_question(&b, snapshot, disk, start, change_id, err);
    VimCall c = {.method = "QueryChangedDiskAreas",
                 .type = "VirtualMachine",
                 .moref = moref,
                 .arguments = b.s,
                 .on_reply = on_areas,
                 .ctx = &a,
                 .repeats = true,
                 .hands_on = true};
    fine = fine && vim_call(v, &c, err);
    str_clear(&b);
    if (!fine && tracking_is_lost(v, err->code))
        err->code = ERR_CONFLICT;
    if (fine)
        *ret_next = a.offset + a.length;
    return fine;
}
