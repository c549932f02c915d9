// What a client reports of a running job: progress, failure, completion, change ID.
#include "base/str.h"
#include "codec/work_parts.h"
#include "domain/changeid.h"

// ---- progress

static json_t *progress_disk_encode(const WorkProgressDisk *d, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    if (!o || !codec_json_set_u64(o, "disk_id", d->disk_id, err) ||
        !codec_json_set_u64(o, "done_bytes", d->done_bytes, err) || !codec_json_set_u64(o, "size", d->size, err) ||
        !codec_json_set_u64(o, "transferred_bytes", d->transferred_bytes, err) ||
        !codec_json_set_u64(o, "zero_bytes", d->zero_bytes, err) ||
        !codec_json_set_u64(o, "changed_bytes", d->changed_bytes, err) ||
        !codec_json_set_u64(o, "kept_bytes", d->kept_bytes, err))
        return NULL;
    return mem_take(o);
}

bool work_progress_encode(const WorkProgress *p, char **ret_text, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    cleanup_json json_t *disks = work_array(err);
    if (!o || !disks)
        return false;
    for (size_t i = 0; i < p->disks_len; i++) {
        json_t *disk = progress_disk_encode(&p->disks[i], err);
        if (!disk || !codec_json_push(disks, disk, err))
            return false;
    }
    return codec_json_set(o, "disks", mem_take(disks), err) && codec_json_set_text(o, "phase", p->phase, err) &&
        codec_json_dump(o, ret_text, err);
}

void work_progress_clear(WorkProgress *p)
{
    free(p->disks);
    free(p->phase);
    *p = (WorkProgress){0};
}

static bool progress_disk_decode(const json_t *o, WorkProgressDisk *d, Err *err)
{
    static const char *const known[] = {"disk_id",    "done_bytes",    "size",       "transferred_bytes",
                                        "zero_bytes", "changed_bytes", "kept_bytes", NULL};
    bool present;
    return codec_json_only(o, known, err) && codec_json_u64(o, "disk_id", WORK_NUMBER_MAX, &d->disk_id, err) &&
        codec_json_u64(o, "done_bytes", WORK_NUMBER_MAX, &d->done_bytes, err) &&
        codec_json_u64(o, "size", DISK_SIZE_MAX, &d->size, err) &&
        codec_json_u64(o, "transferred_bytes", WORK_NUMBER_MAX, &d->transferred_bytes, err) &&
        codec_json_u64(o, "zero_bytes", WORK_NUMBER_MAX, &d->zero_bytes, err) &&
        codec_json_u64(o, "changed_bytes", WORK_NUMBER_MAX, &d->changed_bytes, err) &&
        codec_json_u64_opt(o, "kept_bytes", WORK_NUMBER_MAX, &d->kept_bytes, &present, err);
}

bool work_progress_decode(const char *text, size_t n, WorkProgress *ret, Err *err)
{
    static const char *const known[] = {"disks", "phase", NULL};
    cleanup_json json_t *o = NULL;
    cleanup(work_progress_clear) WorkProgress p = {0};
    json_t *array;
    if (!work_parse(text, n, known, &o, err) || !work_disks(o, "disks", &array, err) ||
        !work_text(o, "phase", 1, 64, &p.phase, err))
        return false;
    p.disks_len = json_array_size(array);
    p.disks = mem_calloc(p.disks_len, sizeof(*p.disks), err);
    if (!p.disks)
        return false;
    for (size_t i = 0; i < p.disks_len; i++)
        if (!progress_disk_decode(json_array_get(array, i), &p.disks[i], err))
            return err_context(err, "disks[%zu]", i);
    *ret = p;
    p = (WorkProgress){0};
    return true;
}

bool work_progress_answer_encode(const WorkProgressAnswer *a, char **ret_text, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    return o && codec_json_set_bool(o, "cancel", a->cancel, err) &&
        codec_json_set_text(o, "status", job_state_name(a->status), err) && codec_json_dump(o, ret_text, err);
}

bool work_progress_answer_decode(const char *text, size_t n, WorkProgressAnswer *ret, Err *err)
{
    cleanup_json json_t *o = NULL;
    WorkProgressAnswer a;
    const char *status;
    if (!work_parse(text, n, NULL, &o, err) || !codec_json_bool_opt(o, "cancel", false, &a.cancel, err) ||
        !codec_json_text(o, "status", 32, &status, err) || !job_state_parse(status, &a.status, err))
        return false;
    *ret = a;
    return true;
}

// ---- failure

// As much of s as fits into max bytes without cutting a character.
static char *cut(const char *s, size_t max, Err *err)
{
    size_t n = strlen(s);
    if (n > max) {
        n = max;
        while (n > 0 && ((unsigned char)s[n] & 0xc0) == 0x80)
            n--;
    }
    return mem_printf(err, "%.*s", (int)n, s);
}

bool work_failure_encode(const WorkFailure *f, char **ret_text, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    cleanup_free char *error = cut(f->error, ERR_SHORT_MAX, err);
    cleanup_free char *details = cut(f->details, ERR_DETAILS_MAX, err);
    return o && error && details && codec_json_set_text(o, "error", error, err) &&
        codec_json_set_text(o, "details", details, err) && codec_json_set_bool(o, "cancelled", f->cancelled, err) &&
        codec_json_dump(o, ret_text, err);
}

void work_failure_clear(WorkFailure *f)
{
    free(f->error);
    free(f->details);
    *f = (WorkFailure){0};
}

bool work_failure_decode(const char *text, size_t n, WorkFailure *ret, Err *err)
{
    static const char *const known[] = {"error", "details", "cancelled", NULL};
    cleanup_json json_t *o = NULL;
    cleanup(work_failure_clear) WorkFailure f = {0};
    if (!work_parse(text, n, known, &o, err) || !work_text(o, "error", 1, ERR_SHORT_MAX, &f.error, err) ||
        !work_text(o, "details", 0, ERR_DETAILS_MAX, &f.details, err) ||
        !codec_json_bool_opt(o, "cancelled", false, &f.cancelled, err))
        return false;
    *ret = f;
    f = (WorkFailure){0};
    return true;
}

// ---- audit

bool work_audit_encode(const WorkAudit *a, char **ret_text, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    return o && codec_json_set_u64(o, "disk_id", a->disk_id, err) &&
        codec_json_set_u64(o, "unchanged_blocks", a->figures.unchanged, err) &&
        codec_json_set_u64(o, "checked_blocks", a->figures.checked, err) &&
        codec_json_set_u64(o, "wrong_blocks", a->figures.wrong, err) &&
        codec_json_set_u64(o, "wrong_at", a->wrong_at, err) && codec_json_dump(o, ret_text, err);
}

bool work_audit_decode(const char *text, size_t n, WorkAudit *ret, Err *err)
{
    static const char *const known[] = {"disk_id",      "unchanged_blocks", "checked_blocks",
                                        "wrong_blocks", "wrong_at",         NULL};
    cleanup_json json_t *o = NULL;
    WorkAudit a;
    if (!work_parse(text, n, known, &o, err) || !codec_json_u64(o, "disk_id", WORK_NUMBER_MAX, &a.disk_id, err) ||
        !codec_json_u64(o, "unchanged_blocks", DISK_SIZE_MAX, &a.figures.unchanged, err) ||
        !codec_json_u64(o, "checked_blocks", DISK_SIZE_MAX, &a.figures.checked, err) ||
        !codec_json_u64(o, "wrong_blocks", DISK_SIZE_MAX, &a.figures.wrong, err) ||
        !codec_json_u64(o, "wrong_at", DISK_SIZE_MAX, &a.wrong_at, err))
        return false;
    if (a.figures.checked > a.figures.unchanged || a.figures.wrong > a.figures.checked)
        return err_set(err, ERR_INVALID, "more blocks were checked than are unchanged, or are wrong than were checked");
    *ret = a;
    return true;
}

// ---- completion

static json_t *completion_disk_encode(const CompletionDisk *d, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    if (!o || !codec_json_set_u64(o, "disk_id", d->disk_id, err) ||
        !codec_json_set_text(o, "change_id", d->change_id, err))
        return NULL;
    if (d->bytes_transferred > 0 && !codec_json_set_u64(o, "bytes_transferred", d->bytes_transferred, err))
        return NULL;
    if (d->tracking && !codec_json_set_text(o, "tracking", d->tracking, err))
        return NULL;
    if (d->have_coverage &&
        (!codec_json_set_u64(o, "extents", d->extents, err) ||
         !codec_json_set_u64(o, "covered_bytes", d->covered_bytes, err) ||
         !codec_json_set_hex64(o, "digest", d->digest, err)))
        return NULL;
    if ((d->areas > 0 && !codec_json_set_u64(o, "areas", d->areas, err)) ||
        (d->area_bytes > 0 && !codec_json_set_u64(o, "area_bytes", d->area_bytes, err)) ||
        (d->read_bytes > 0 && !codec_json_set_u64(o, "read_bytes", d->read_bytes, err)))
        return NULL;
    return mem_take(o);
}

bool completion_encode(const Completion *c, char **ret_text, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    cleanup_json json_t *disks = work_array(err);
    if (!o || !disks || !codec_json_set_text(o, "change_id", c->change_id, err))
        return false;
    if (c->bytes_transferred > 0 && !codec_json_set_u64(o, "bytes_transferred", c->bytes_transferred, err))
        return false;
    for (size_t i = 0; i < c->disks_len; i++) {
        json_t *disk = completion_disk_encode(&c->disks[i], err);
        if (!disk || !codec_json_push(disks, disk, err))
            return false;
    }
    if (c->disks_len > 0 && !codec_json_set(o, "disks", mem_take(disks), err))
        return false;
    return codec_json_dump(o, ret_text, err);
}

void completion_clear(Completion *c)
{
    for (size_t i = 0; i < c->disks_len; i++)
        free(c->disks[i].change_id);
    free(c->disks);
    free(c->change_id);
    *c = (Completion){0};
}

// Optional here: whether it must be there is looked at after everything's types.
static bool change_id_decode(const json_t *o, char **ret, Err *err)
{
    cleanup_free char *id = NULL;
    if (!work_text_opt(o, "change_id", CHANGEID_MAX, &id, err))
        return false;
    if (id && !str_has_no_controls(id))
        return err_set(err, ERR_INVALID, "change_id holds control characters");
    *ret = mem_take(id);
    return true;
}

static bool coverage_decode(const json_t *o, CompletionDisk *d, Err *err)
{
    if (!json_object_get(o, "extents") && !json_object_get(o, "covered_bytes") && !json_object_get(o, "digest"))
        return true;
    d->have_coverage = true;
    return codec_json_u64(o, "extents", WORK_NUMBER_MAX, &d->extents, err) &&
        codec_json_u64(o, "covered_bytes", DISK_SIZE_MAX, &d->covered_bytes, err) &&
        codec_json_hex64(o, "digest", &d->digest, err);
}

static bool completion_disk_decode(const json_t *o, CompletionDisk *d, Err *err)
{
    bool present;
    const char *tracking;
    if (!codec_json_u64(o, "disk_id", WORK_NUMBER_MAX, &d->disk_id, err) || !change_id_decode(o, &d->change_id, err) ||
        !codec_json_u64_opt(o, "bytes_transferred", WORK_NUMBER_MAX, &d->bytes_transferred, &present, err) ||
        !codec_json_u64_opt(o, "areas", WORK_NUMBER_MAX, &d->areas, &present, err) ||
        !codec_json_u64_opt(o, "area_bytes", DISK_SIZE_MAX, &d->area_bytes, &present, err) ||
        !codec_json_u64_opt(o, "read_bytes", WORK_NUMBER_MAX, &d->read_bytes, &present, err) ||
        !codec_json_text_opt(o, "tracking", 32, &tracking, err) || !coverage_decode(o, d, err))
        return false;
    d->tracking = tracking ? work_tracking(tracking) : NULL;
    if (tracking && !d->tracking)
        return err_set(err, ERR_INVALID, "tracking is none of bitmap, cbt, none");
    return true;
}

static bool completion_disks_decode(const json_t *o, Completion *c, Err *err)
{
    json_t *array = json_object_get(o, "disks");
    if (!array || json_is_null(array))
        return true;
    if (!work_disks(o, "disks", &array, err))
        return false;
    c->disks = mem_calloc(json_array_size(array), sizeof(*c->disks), err);
    if (!c->disks)
        return false;
    for (size_t i = 0; i < json_array_size(array); i++) {
        c->disks_len = i + 1;
        if (!completion_disk_decode(json_array_get(array, i), &c->disks[i], err))
            return err_context(err, "disks[%zu]", i);
        for (size_t k = 0; k < i; k++)
            if (c->disks[k].disk_id == c->disks[i].disk_id)
                return err_set(err, ERR_INVALID, "disks[%zu]: the disk_id is there twice", i);
    }
    return true;
}

static bool completion_fields(const char *text, size_t n, Completion *c, Err *err)
{
    cleanup_json json_t *o = NULL;
    bool present;
    return work_parse(text, n, NULL, &o, err) && change_id_decode(o, &c->change_id, err) &&
        codec_json_u64_opt(o, "bytes_transferred", WORK_NUMBER_MAX, &c->bytes_transferred, &present, err) &&
        completion_disks_decode(o, c, err);
}

static bool missing(const char *change_id, const char *where, Err *err)
{
    if (change_id && *change_id != '\0')
        return false;
    (void)err_set(err, ERR_INVALID, "%schange_id is absent or empty; send the change ID that the source gave", where);
    (void)err_title(err, "missing change_id");
    return true;
}

// The contract's word for whatever is wrong with the body; a lack of memory stays what it is.
static bool body_error(Err *err)
{
    if (err->code == ERR_NO_MEMORY)
        return false;
    err->code = ERR_INVALID;
    return err_title(err, "invalid request body");
}

bool completion_decode(const char *text, size_t n, Completion *ret, Err *err)
{
    cleanup(completion_clear) Completion c = {0};
    if (!completion_fields(text, n, &c, err))
        return body_error(err);
    if (missing(c.change_id, "", err))
        return false;
    for (size_t i = 0; i < c.disks_len; i++)
        if (missing(c.disks[i].change_id, "a disk's ", err))
            return false;
    *ret = c;
    c = (Completion){0};
    return true;
}

// ---- change ID of a replication

bool changeid_report_encode(const ChangeIdReport *r, char **ret_text, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    if (!o || !codec_json_set_text(o, "change_id", r->change_id, err))
        return false;
    if (r->have_disk_id && !codec_json_set_u64(o, "disk_id", r->disk_id, err))
        return false;
    if (r->bytes_transferred > 0 && !codec_json_set_u64(o, "bytes_transferred", r->bytes_transferred, err))
        return false;
    return codec_json_dump(o, ret_text, err);
}

void changeid_report_clear(ChangeIdReport *r)
{
    free(r->change_id);
    *r = (ChangeIdReport){0};
}

static bool changeid_report_fields(const char *text, size_t n, ChangeIdReport *r, Err *err)
{
    cleanup_json json_t *o = NULL;
    bool present;
    return work_parse(text, n, NULL, &o, err) && change_id_decode(o, &r->change_id, err) &&
        codec_json_u64_opt(o, "disk_id", WORK_NUMBER_MAX, &r->disk_id, &r->have_disk_id, err) &&
        codec_json_u64_opt(o, "bytes_transferred", WORK_NUMBER_MAX, &r->bytes_transferred, &present, err);
}

bool changeid_report_decode(const char *text, size_t n, ChangeIdReport *ret, Err *err)
{
    cleanup(changeid_report_clear) ChangeIdReport r = {0};
    if (!changeid_report_fields(text, n, &r, err))
        return body_error(err);
    if (missing(r.change_id, "", err))
        return false;
    *ret = r;
    r = (ChangeIdReport){0};
    return true;
}
