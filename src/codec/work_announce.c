// Announcement of a job's disks, and its answer.
#include "base/str.h"
#include "codec/work_parts.h"
#include "domain/changeid.h"

// ---- announcement

static json_t *disk_encode(const AnnounceDisk *d, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    if (!o || !codec_json_set_text(o, "disk_key", d->disk_key, err))
        return NULL;
    if (d->disk_id != 0 && !codec_json_set_u64(o, "disk_id", d->disk_id, err))
        return NULL;
    if (!codec_json_set_text(o, "label", d->label, err) || !codec_json_set_u64(o, "size", d->size, err) ||
        !codec_json_set_text(o, "backing_identity", d->backing_identity, err) ||
        !codec_json_set_text(o, "change_id", d->change_id, err) ||
        !codec_json_set_text(o, "tracking", d->tracking, err) ||
        !codec_json_set_text(o, "base_change_id", d->base_change_id, err) ||
        !codec_json_set_text(o, "lost", d->lost, err) ||
        (d->lost_code != CHAIN_NONE && !codec_json_set_text(o, "lost_code", chain_reason_name(d->lost_code), err)) ||
        !codec_json_set_u64(o, "estimated_bytes", d->estimated_bytes, err) ||
        !codec_json_set_u64(o, "allocated_bytes", d->allocated_bytes, err) ||
        !codec_json_set_text(o, "token", d->token, err) || !codec_json_set_bool(o, "resumes", d->resumes, err))
        return NULL;
    return mem_take(o);
}

bool announce_encode(const Announce *a, char **ret_text, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    cleanup_json json_t *disks = work_array(err);
    if (!o || !disks)
        return false;
    for (size_t i = 0; i < a->disks_len; i++) {
        json_t *disk = disk_encode(&a->disks[i], err);
        if (!disk || !codec_json_push(disks, disk, err))
            return false;
    }
    return codec_json_set(o, "disks", mem_take(disks), err) &&
        work_set_keys(o, "left_out", a->left_out, a->left_out_len, err) &&
        codec_json_set_text(o, "consistency", a->consistency, err) &&
        codec_json_set_text(o, "consistency_detail", a->consistency_detail, err) && codec_json_dump(o, ret_text, err);
}

static void disk_clear(AnnounceDisk *d)
{
    free(d->disk_key);
    free(d->label);
    free(d->backing_identity);
    free(d->change_id);
    free(d->base_change_id);
    free(d->lost);
    free(d->token);
    *d = (AnnounceDisk){0};
}

void announce_clear(Announce *a)
{
    for (size_t i = 0; i < a->disks_len; i++)
        disk_clear(&a->disks[i]);
    free(a->disks);
    work_keys_clear(&a->left_out, &a->left_out_len);
    free(a->consistency);
    free(a->consistency_detail);
    *a = (Announce){0};
}

static bool disk_decode(const json_t *o, AnnounceDisk *d, Err *err)
{
    static const char *const known[] = {
        "disk_key",        "disk_id",  "label",          "size",      "backing_identity",
        "change_id",       "tracking", "base_change_id", "lost",      "estimated_bytes",
        "allocated_bytes", "token",    "resumes",        "lost_code", NULL};
    const char *tracking, *lost_code;
    bool present;
    if (!codec_json_only(o, known, err) || !work_text(o, "disk_key", 1, WORK_KEY_MAX, &d->disk_key, err) ||
        !codec_json_u64_opt(o, "disk_id", WORK_NUMBER_MAX, &d->disk_id, &present, err) ||
        !work_text(o, "label", 0, WORK_TEXT_MAX, &d->label, err) ||
        !codec_json_u64(o, "size", DISK_SIZE_MAX, &d->size, err) ||
        !work_text(o, "backing_identity", 0, WORK_TEXT_MAX, &d->backing_identity, err) ||
        !work_text(o, "change_id", 1, CHANGEID_MAX, &d->change_id, err) ||
        !codec_json_text(o, "tracking", 32, &tracking, err) ||
        !work_text_opt(o, "base_change_id", CHANGEID_MAX, &d->base_change_id, err) ||
        !work_text_opt(o, "lost", ERR_DETAILS_MAX, &d->lost, err) ||
        !codec_json_text_opt(o, "lost_code", 32, &lost_code, err) ||
        !codec_json_u64(o, "estimated_bytes", WORK_NUMBER_MAX, &d->estimated_bytes, err) ||
        !codec_json_u64_opt(o, "allocated_bytes", WORK_NUMBER_MAX, &d->allocated_bytes, &present, err) ||
        !work_text_opt(o, "token", WORK_TEXT_MAX, &d->token, err) ||
        !codec_json_bool_opt(o, "resumes", false, &d->resumes, err))
        return false;
    if (!present)
        d->allocated_bytes = d->estimated_bytes;
    if (lost_code && !chain_reason_parse(lost_code, &d->lost_code, err))
        return err_context(err, "lost_code");
    if (lost_code && !chain_reason_is_loss(d->lost_code))
        return err_set(err, ERR_INVALID, "lost_code is not how tracking is lost");
    d->tracking = work_tracking(tracking);
    if (!d->tracking)
        return err_set(err, ERR_INVALID, "tracking is none of bitmap, cbt, none");
    if (d->size == 0)
        return err_set(err, ERR_INVALID, "size is 0");
    return changeid_check(d->change_id, err);
}

static bool disks_distinct(const Announce *a, Err *err)
{
    for (size_t i = 0; i < a->disks_len; i++)
        for (size_t k = 0; k < i; k++) {
            const AnnounceDisk *d = &a->disks[i], *e = &a->disks[k];
            if (str_eq(d->disk_key, e->disk_key))
                return err_set(err, ERR_INVALID, "disk_key %s is there twice", d->disk_key);
            if (d->disk_id != 0 && d->disk_id == e->disk_id)
                return err_set(err, ERR_INVALID, "disks %s and %s have the same disk_id", e->disk_key, d->disk_key);
        }
    return true;
}

static bool disks_decode(const json_t *o, Announce *a, Err *err)
{
    json_t *array;
    if (!work_disks(o, "disks", &array, err))
        return false;
    if (json_array_size(array) == 0)
        return err_set(err, ERR_INVALID, "disks is empty");
    a->disks = mem_calloc(json_array_size(array), sizeof(*a->disks), err);
    if (!a->disks)
        return false;
    for (size_t i = 0; i < json_array_size(array); i++) {
        a->disks_len = i + 1;
        if (!disk_decode(json_array_get(array, i), &a->disks[i], err))
            return err_context(err, "disks[%zu]", i);
    }
    return disks_distinct(a, err);
}

static bool consistency_check(const char *word, Err *err)
{
    if (str_eq(word, "application") || str_eq(word, "crash") || str_eq(word, "inconsistent"))
        return true;
    return err_set(err, ERR_INVALID, "consistency is none of application, crash, inconsistent");
}

bool announce_decode(const char *text, size_t n, Announce *ret, Err *err)
{
    static const char *const known[] = {"disks", "left_out", "consistency", "consistency_detail", NULL};
    cleanup_json json_t *o = NULL;
    cleanup(announce_clear) Announce a = {0};
    if (!work_parse(text, n, known, &o, err) || !disks_decode(o, &a, err) ||
        !work_keys(o, "left_out", &a.left_out, &a.left_out_len, err) ||
        !work_text(o, "consistency", 1, 32, &a.consistency, err) || !consistency_check(a.consistency, err) ||
        !work_text_opt(o, "consistency_detail", ERR_DETAILS_MAX, &a.consistency_detail, err))
        return false;
    *ret = a;
    a = (Announce){0};
    return true;
}

// ---- its answer

bool announce_answer_encode(const AnnounceAnswer *a, char **ret_text, Err *err)
{
    cleanup_json json_t *o = work_object(err);
    cleanup_json json_t *disks = work_array(err);
    if (!o || !disks)
        return false;
    for (size_t i = 0; i < a->disks_len; i++) {
        const AnnounceAnswerDisk *d = &a->disks[i];
        cleanup_json json_t *disk = work_object(err);
        if (!disk || !codec_json_set_text(disk, "disk_key", d->disk_key, err) ||
            !codec_json_set_u64(disk, "disk_id", d->disk_id, err) ||
            !codec_json_set_u64(disk, "disk_no", d->disk_no, err) ||
            !codec_json_set_text(disk, "mode", disk_mode_name(d->mode), err) ||
            !codec_json_set_text(disk, "reason", chain_reason_name(d->reason), err) ||
            !codec_json_set_text(disk, "uri", d->uri, err) || !codec_json_set_bool(disk, "resume", d->resume, err) ||
            (d->leaves_uri &&
             (!codec_json_set_text(disk, "leaves_uri", d->leaves_uri, err) ||
              !codec_json_set_text(disk, "hash_algorithm", d->hash_algorithm, err) ||
              !codec_json_set_hex64(disk, "hash_seed", d->hash_seed, err))) ||
            !codec_json_push(disks, mem_take(disk), err))
            return false;
    }
    return codec_json_set(o, "disks", mem_take(disks), err) && codec_json_dump(o, ret_text, err);
}

void announce_answer_clear(AnnounceAnswer *a)
{
    for (size_t i = 0; i < a->disks_len; i++) {
        free(a->disks[i].disk_key);
        free(a->disks[i].uri);
        free(a->disks[i].leaves_uri);
        free(a->disks[i].hash_algorithm);
    }
    free(a->disks);
    *a = (AnnounceAnswer){0};
}

static bool answer_disk_decode(const json_t *o, AnnounceAnswerDisk *d, Err *err)
{
    const char *mode, *reason;
    uint64_t disk_no;
    if (!work_text(o, "disk_key", 1, WORK_KEY_MAX, &d->disk_key, err) ||
        !codec_json_u64(o, "disk_id", WORK_NUMBER_MAX, &d->disk_id, err) ||
        !codec_json_u64(o, "disk_no", UINT32_MAX, &disk_no, err) || !codec_json_text(o, "mode", 32, &mode, err) ||
        !disk_mode_parse(mode, &d->mode, err) || !codec_json_text(o, "reason", 64, &reason, err) ||
        !chain_reason_parse(reason, &d->reason, err) || !work_text(o, "uri", 1, WORK_URI_MAX, &d->uri, err) ||
        !codec_json_bool_opt(o, "resume", false, &d->resume, err) ||
        !work_text_opt(o, "leaves_uri", WORK_URI_MAX, &d->leaves_uri, err))
        return false;
    if (d->leaves_uri &&
        (!work_text(o, "hash_algorithm", 1, 32, &d->hash_algorithm, err) ||
         !codec_json_hex64(o, "hash_seed", &d->hash_seed, err)))
        return false;
    d->disk_no = (unsigned)disk_no;
    return true;
}

bool announce_answer_decode(const char *text, size_t n, AnnounceAnswer *ret, Err *err)
{
    cleanup_json json_t *o = NULL;
    cleanup(announce_answer_clear) AnnounceAnswer a = {0};
    json_t *array;
    if (!work_parse(text, n, NULL, &o, err) || !work_disks(o, "disks", &array, err))
        return false;
    a.disks = mem_calloc(json_array_size(array), sizeof(*a.disks), err);
    if (!a.disks)
        return false;
    for (size_t i = 0; i < json_array_size(array); i++) {
        a.disks_len = i + 1;
        if (!answer_disk_decode(json_array_get(array, i), &a.disks[i], err))
            return err_context(err, "disks[%zu]", i);
    }
    *ret = a;
    a = (AnnounceAnswer){0};
    return true;
}
