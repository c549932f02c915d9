#include "image/record.h"

#include "base/clock.h"
#include "base/str.h"
#include "base/uuid.h"
#include "codec/json.h"
#include "domain/changeid.h"
#include "domain/name.h"
#include "image/hashes.h"
#include "image/layout.h"

#define TEXT_MAX 4096         // bytes of labels, identities and explanations
#define LEFT_OUT_MAX 65536    // bytes
#define INFO_MAX_BYTES 65536u // of repository.json

void record_disk_clear(RecordDisk *d)
{
    free(d->disk_key);
    free(d->label);
    free(d->backing_identity);
    free(d->reason_text);
    free(d->change_id);
    free(d->parent_backup_id);
    free(d->image);
    free(d->hashes);
    free(d->backing_name);
    *d = (RecordDisk){0};
}

void record_clear(Record *r)
{
    for (size_t i = 0; i < r->disks_len; i++)
        record_disk_clear(&r->disks[i]);
    free(r->disks);
    free(r->backup_id);
    free(r->vm_id);
    free(r->vm_name);
    free(r->source_type);
    free(r->repository_uuid);
    free(r->context);
    free(r->parent_backup_id);
    free(r->consistency);
    free(r->consistency_detail);
    free(r->left_out);
    *r = (Record){0};
}

// ---- what holds for every record, on its way out and in

static bool check_text(const char *what, const char *s, size_t min, size_t max, Err *err)
{
    size_t n = s ? strlen(s) : 0;
    if (!s || n < min || n > max || !str_is_utf8(s, n))
        return err_set(err, ERR_INVALID, "%s: %zu to %zu bytes of UTF-8 are needed", what, min, max);
    return true;
}

static bool check_uuid(const char *what, const char *s, Err *err)
{
    if (!s || !uuid_is_valid(s))
        return err_set(err, ERR_INVALID, "%s is no UUID", what);
    return true;
}

// Image, hashes and backing name of one disk: our patterns, image and hashes of one stem.
static bool check_files(const RecordDisk *d, Err *err)
{
    bool full = d->mode == DISK_FULL;
    LayoutName image, hashes, backing;
    if (!d->image || !layout_parse(d->image, &image) || image.attempt[0] ||
        image.kind != (full ? LAYOUT_FULL_IMAGE : LAYOUT_INCR_IMAGE))
        return err_set(err, ERR_INVALID, "image: the name is not that of a%s image", full ? " full" : "n incremental");
    if (!d->hashes || !layout_parse(d->hashes, &hashes) || hashes.attempt[0] ||
        hashes.kind != (full ? LAYOUT_FULL_HASHES : LAYOUT_INCR_HASHES) || !str_eq(hashes.stem, image.stem))
        return err_set(err, ERR_INVALID, "hashes: the name does not belong to the image %s", d->image);
    if (full != !d->backing_name)
        return err_set(err, ERR_INVALID, "backing_name: a full image has none, any other has one");
    if (d->backing_name &&
        (!layout_parse(d->backing_name, &backing) || backing.attempt[0] ||
         (backing.kind != LAYOUT_FULL_IMAGE && backing.kind != LAYOUT_INCR_IMAGE) || str_eq(backing.stem, image.stem)))
        return err_set(err, ERR_INVALID, "backing_name: the name is not that of another image");
    return true;
}

static bool check_disk(const Record *r, const RecordDisk *d, Err *err)
{
    if (!check_text("disk_key", d->disk_key, 1, NAME_MAX_BYTES, err) ||
        !check_text("label", d->label, 0, TEXT_MAX, err) ||
        !check_text("backing_identity", d->backing_identity, 0, TEXT_MAX, err) ||
        !check_text("reason_text", d->reason_text, 0, TEXT_MAX, err) ||
        !check_text("change_id", d->change_id, 1, CHANGEID_MAX, err))
        return false;
    if (d->disk_no > LAYOUT_DISK_MAX)
        return err_set(err, ERR_INVALID, "disk_no: above %u", LAYOUT_DISK_MAX);
    if (d->size == 0 || d->size > DISK_SIZE_MAX)
        return err_set(err, ERR_INVALID, "size: 1 to %llu bytes", (unsigned long long)DISK_SIZE_MAX);
    if (d->chain_length == 0 || d->chain_length > CHAIN_LAYERS_MAX)
        return err_set(err, ERR_INVALID, "chain_length: 1 to %d", CHAIN_LAYERS_MAX);
    if (d->audit.checked > d->audit.unchanged || d->audit.wrong > d->audit.checked ||
        (d->mode == DISK_FULL && d->audit.unchanged > 0) || (d->mode == DISK_TRACKED && d->audit.wrong > 0))
        return err_set(err, ERR_INVALID,
                       "unchanged_blocks, checked_blocks, wrong_blocks: no audit can have found that");
    if ((d->mode == DISK_FULL) != (d->chain_length == 1))
        return err_set(err, ERR_INVALID, "chain_length: 1 for a full image, more for any other");
    // Safety rule 3: a disk's parent is its image in the point that the record names, never an older one's.
    if (d->mode == DISK_FULL
            ? d->parent_backup_id != NULL
            : !d->parent_backup_id || !r->parent_backup_id || !str_eq(d->parent_backup_id, r->parent_backup_id))
        return err_set(err, ERR_INVALID, "parent_backup_id: none for a full image, the record's own for any other");
    return check_files(d, err);
}

static bool check_disks(const Record *r, Err *err)
{
    if (r->disks_len == 0 || r->disks_len > RECORD_DISKS_MAX)
        return err_set(err, ERR_INVALID, "disks: 1 to %d are needed", RECORD_DISKS_MAX);
    bool all_full = true;
    for (size_t i = 0; i < r->disks_len; i++) {
        const RecordDisk *d = &r->disks[i];
        if (!check_disk(r, d, err))
            return err_context(err, "disk %zu", i);
        all_full = all_full && d->mode == DISK_FULL;
        for (size_t j = 0; j < i; j++) {
            const RecordDisk *o = &r->disks[j];
            if (str_eq(d->disk_key, o->disk_key) || d->disk_no == o->disk_no || d->disk_id == o->disk_id)
                return err_set(err, ERR_INVALID, "disks %zu and %zu share a key, an ID or a folder", j, i);
        }
    }
    if ((r->type == BACKUP_FULL) != all_full)
        return err_set(err, ERR_INVALID, "type: full exactly when every disk is");
    return true;
}

static bool check_record(const Record *r, Err *err)
{
    if (!r->backup_id || !name_check_job_id(r->backup_id, err))
        return err_set(err, ERR_INVALID, "backup_id: missing");
    if (r->parent_backup_id && !name_check_job_id(r->parent_backup_id, err))
        return err_context(err, "parent_backup_id");
    if (r->parent_backup_id && str_eq(r->parent_backup_id, r->backup_id))
        return err_set(err, ERR_INVALID, "parent_backup_id: a point is not its own parent");
    if (!check_uuid("vm_id", r->vm_id, err) || !check_uuid("repository_uuid", r->repository_uuid, err) ||
        !check_text("source_type", r->source_type, 1, 32, err) ||
        (r->consistency_detail && !check_text("consistency_detail", r->consistency_detail, 0, TEXT_MAX, err)) ||
        !check_text("left_out", r->left_out, 0, LEFT_OUT_MAX, err))
        return false;
    if (!r->vm_name || !name_check("vm_name", r->vm_name, err))
        return err_set(err, ERR_INVALID, "vm_name: missing");
    if (!r->context || !layout_is_context(r->context))
        return err_set(err, ERR_INVALID, "context: not the name of a context folder");
    if (r->sequence == 0 || r->sequence > INT64_MAX)
        return err_set(err, ERR_INVALID, "sequence: 1 or more is needed");
    if (!r->consistency ||
        !(str_eq(r->consistency, "application") || str_eq(r->consistency, "crash") ||
          str_eq(r->consistency, "inconsistent")))
        return err_set(err, ERR_INVALID, "consistency: none of application, crash, inconsistent");
    if (r->partial != (r->left_out[0] != '\0'))
        return err_set(err, ERR_INVALID, "partial: true exactly when disks were left out");
    if (r->created_us <= 0 || r->completed_us <= 0)
        return err_set(err, ERR_INVALID, "created_at, completed_at: both are needed");
    return check_disks(r, err);
}

// ---- the envelope of both files: canonical JSON, one line, with a digest of everything else in it

static bool digest_of(json_t *object, const HashSpec *hash, char out[HASH_TEXT_MAX], Err *err)
{
    cleanup_free char *text = NULL;
    Hash h;
    if (!codec_json_dump(object, &text, err))
        return false;
    hash_bytes(hash, text, strlen(text), &h);
    hash_text(hash, &h, out);
    return true;
}

// object must not hold "digest" yet.
static bool seal(json_t *object, const HashSpec *hash, size_t max, char **ret_text, Err *err)
{
    char digest[HASH_TEXT_MAX];
    cleanup_free char *text = NULL;
    if (!digest_of(object, hash, digest, err) || !codec_json_set_text(object, "digest", digest, err) ||
        !codec_json_dump(object, &text, err))
        return false;
    if (strlen(text) + 1 > max)
        return err_set(err, ERR_TOO_LARGE, "it would take %zu bytes, at most %zu are allowed", strlen(text) + 1, max);
    char *line = mem_printf(err, "%s\n", text);
    if (!line)
        return false;
    *ret_text = line;
    return true;
}

// Is text, parsed into object, exactly what seal() makes? Removes "digest" from object.
static bool unseal(json_t *object, const char *text, size_t n, const HashSpec *hash, Err *err)
{
    cleanup_free char *again = NULL;
    const char *stored;
    char digest[HASH_TEXT_MAX];
    if (!codec_json_dump(object, &again, err))
        return false;
    size_t len = strlen(again);
    if (n != len + 1 || text[n - 1] != '\n' || memcmp(text, again, len) != 0)
        return err_set(err, ERR_DAMAGED, "it is not in the form that was written");
    cleanup_free char *kept = NULL;
    if (!codec_json_text(object, "digest", HASH_TEXT_MAX, &stored, err) || !(kept = mem_strdup(stored, err)))
        return false;
    if (json_object_del(object, "digest") != 0)
        return err_no_memory(err);
    if (!digest_of(object, hash, digest, err))
        return false;
    if (!str_eq(kept, digest))
        return err_set(err, ERR_DAMAGED, "its digest does not match: it was changed after it was written");
    return true;
}

static bool parse_line(const char *text, size_t n, size_t max, json_t **ret, Err *err)
{
    if (n == 0 || text[n - 1] != '\n')
        return err_set(err, ERR_DAMAGED, "it does not end with a line feed: it was cut");
    return codec_json_parse(text, n - 1, max, ret, err) && codec_json_object(*ret, "the file", err);
}

// Whatever is wrong with stored bytes is damage; lack of memory is not.
static bool damaged(Err *err, const char *what, const Err *cause)
{
    ErrCode code = cause->code == ERR_NO_MEMORY || cause->code == ERR_UNSUPPORTED ? cause->code : ERR_DAMAGED;
    return err_set(err, code, "%s: %s", what, cause->details);
}

// ---- commit record

static bool set_hash(json_t *o, const char *key, const HashSpec *hash, const Hash *h, Err *err)
{
    char text[HASH_TEXT_MAX];
    hash_text(hash, h, text);
    return codec_json_set_text(o, key, text, err);
}

// What not every record has.
static bool encode_tracking(const RecordDisk *d, json_t *o, Err *err)
{
    const struct {
        const char *key;
        uint64_t value;
    } members[] = {
        {"areas", d->areas},
        {"area_bytes", d->area_bytes},
        {"read_bytes", d->read_bytes},
        {"unchanged_blocks", d->audit.unchanged},
        {"checked_blocks", d->audit.checked},
        {"wrong_blocks", d->audit.wrong},
    };
    for (size_t i = 0; i < ARRAY_LEN(members); i++)
        if (members[i].value > 0 && !codec_json_set_u64(o, members[i].key, members[i].value, err))
            return false;
    return true;
}

static bool encode_disk(const RecordDisk *d, const HashSpec *hash, json_t *array, Err *err)
{
    cleanup_json json_t *o = json_object();
    if (!o)
        return err_no_memory(err);
    if (!codec_json_set_text(o, "disk_key", d->disk_key, err) || !codec_json_set_u64(o, "disk_id", d->disk_id, err) ||
        !codec_json_set_u64(o, "disk_no", d->disk_no, err) || !codec_json_set_text(o, "label", d->label, err) ||
        !codec_json_set_text(o, "backing_identity", d->backing_identity, err) ||
        !codec_json_set_u64(o, "size", d->size, err) || !codec_json_set_text(o, "mode", disk_mode_name(d->mode), err) ||
        !codec_json_set_text(o, "reason", chain_reason_name(d->reason), err) ||
        !codec_json_set_text(o, "reason_text", d->reason_text, err) ||
        !codec_json_set_text(o, "change_id", d->change_id, err) ||
        !codec_json_set_bool(o, "tracking", d->tracking, err) ||
        !codec_json_set_text(o, "parent_backup_id", d->parent_backup_id, err) ||
        !codec_json_set_text(o, "image", d->image, err) || !codec_json_set_text(o, "hashes", d->hashes, err) ||
        !codec_json_set_text(o, "backing_name", d->backing_name, err) ||
        !codec_json_set_u64(o, "chain_length", d->chain_length, err) ||
        !codec_json_set_u64(o, "image_bytes", d->image_bytes, err) ||
        !codec_json_set_u64(o, "stored_bytes", d->stored_bytes, err) ||
        !codec_json_set_u64(o, "transferred_bytes", d->transferred_bytes, err) ||
        !codec_json_set_u64(o, "changed_bytes", d->changed_bytes, err) || !encode_tracking(d, o, err) ||
        !set_hash(o, "root", hash, &d->root, err) || !set_hash(o, "metadata", hash, &d->metadata, err) ||
        !set_hash(o, "hashes_digest", hash, &d->hashes_digest, err))
        return false;
    return codec_json_push(array, mem_take(o), err);
}

bool record_encode(const Record *r, const HashSpec *hash, char **ret_text, Err *err)
{
    if (!check_record(r, err))
        return err_context(err, "commit record");
    cleanup_json json_t *o = json_object();
    if (!o)
        return err_no_memory(err);
    json_t *disks = json_array(); // o's from codec_json_set() on
    if (!codec_json_set(o, "disks", disks, err))
        return false;
    if (!codec_json_set_u64(o, "format", RECORD_FORMAT, err) ||
        !codec_json_set_text(o, "backup_id", r->backup_id, err) || !codec_json_set_text(o, "vm_id", r->vm_id, err) ||
        !codec_json_set_text(o, "vm_name", r->vm_name, err) ||
        !codec_json_set_text(o, "source_type", r->source_type, err) ||
        !codec_json_set_text(o, "repository_uuid", r->repository_uuid, err) ||
        !codec_json_set_text(o, "context", r->context, err) ||
        !codec_json_set_text(o, "parent_backup_id", r->parent_backup_id, err) ||
        !codec_json_set_u64(o, "sequence", r->sequence, err) ||
        !codec_json_set_text(o, "requested_type", backup_type_name(r->requested_type), err) ||
        !codec_json_set_text(o, "type", backup_type_name(r->type), err) ||
        !codec_json_set_text(o, "reason", chain_reason_name(r->reason), err) ||
        !codec_json_set_text(o, "consistency", r->consistency, err) ||
        !codec_json_set_text(o, "consistency_detail", r->consistency_detail, err) ||
        !codec_json_set_bool(o, "partial", r->partial, err) || !codec_json_set_text(o, "left_out", r->left_out, err) ||
        !codec_json_set_time(o, "created_at", r->created_us, err) ||
        !codec_json_set_time(o, "completed_at", r->completed_us, err))
        return false;
    for (size_t i = 0; i < r->disks_len; i++)
        if (!encode_disk(&r->disks[i], hash, disks, err))
            return err_context(err, "commit record: disk %zu", i);
    return seal(o, hash, RECORD_MAX_BYTES, ret_text, err) || err_context(err, "commit record");
}

// Readers of members: copies, so that the record outlives the JSON.
static bool get_text(json_t *o, const char *key, size_t max, char **ret, Err *err)
{
    const char *s;
    return codec_json_text(o, key, max, &s, err) && (*ret = mem_strdup(s, err)) != NULL;
}

static bool get_text_opt(json_t *o, const char *key, size_t max, char **ret, Err *err)
{
    const char *s;
    if (!codec_json_text_opt(o, key, max, &s, err))
        return false;
    return !s || (*ret = mem_strdup(s, err)) != NULL;
}

static bool get_unsigned(json_t *o, const char *key, unsigned max, unsigned *ret, Err *err)
{
    uint64_t v;
    if (!codec_json_u64(o, key, max, &v, err))
        return false;
    *ret = (unsigned)v;
    return true;
}

static bool get_time(json_t *o, const char *key, int64_t *ret, Err *err)
{
    const char *s;
    return codec_json_text(o, key, CLOCK_TEXT, &s, err) && clock_parse(s, ret, err);
}

static bool get_hash(json_t *o, const char *key, const HashSpec *hash, Hash *ret, Err *err)
{
    const char *s;
    return codec_json_text(o, key, HASH_TEXT_MAX, &s, err) && hash_from_text(hash, s, ret, err);
}

static bool get_reason(json_t *o, ChainReason *ret, Err *err)
{
    const char *s;
    return codec_json_text(o, "reason", 64, &s, err) && chain_reason_parse(s, ret, err);
}

static bool get_type(json_t *o, const char *key, BackupType *ret, Err *err)
{
    const char *s;
    return codec_json_text(o, key, 64, &s, err) && backup_type_parse(s, ret, err);
}

static bool get_mode(json_t *o, DiskMode *ret, Err *err)
{
    const char *s;
    return codec_json_text(o, "mode", 64, &s, err) && disk_mode_parse(s, ret, err);
}

static bool decode_tracking(json_t *o, RecordDisk *d, Err *err)
{
    bool present;
    return codec_json_u64_opt(o, "areas", INT64_MAX, &d->areas, &present, err) &&
        codec_json_u64_opt(o, "area_bytes", DISK_SIZE_MAX, &d->area_bytes, &present, err) &&
        codec_json_u64_opt(o, "read_bytes", INT64_MAX, &d->read_bytes, &present, err) &&
        codec_json_u64_opt(o, "unchanged_blocks", DISK_SIZE_MAX, &d->audit.unchanged, &present, err) &&
        codec_json_u64_opt(o, "checked_blocks", DISK_SIZE_MAX, &d->audit.checked, &present, err) &&
        codec_json_u64_opt(o, "wrong_blocks", DISK_SIZE_MAX, &d->audit.wrong, &present, err);
}

static bool decode_disk(json_t *o, const HashSpec *hash, RecordDisk *d, Err *err)
{
    static const char *const known[] = {"disk_key",
                                        "disk_id",
                                        "disk_no",
                                        "label",
                                        "backing_identity",
                                        "size",
                                        "mode",
                                        "reason",
                                        "reason_text",
                                        "change_id",
                                        "tracking",
                                        "parent_backup_id",
                                        "image",
                                        "hashes",
                                        "backing_name",
                                        "chain_length",
                                        "image_bytes",
                                        "stored_bytes",
                                        "transferred_bytes",
                                        "changed_bytes",
                                        "root",
                                        "metadata",
                                        "hashes_digest",
                                        "areas",
                                        "area_bytes",
                                        "read_bytes",
                                        "unchanged_blocks",
                                        "checked_blocks",
                                        "wrong_blocks",
                                        NULL};
    return codec_json_object(o, "disk", err) && codec_json_only(o, known, err) &&
        get_text(o, "disk_key", NAME_MAX_BYTES, &d->disk_key, err) &&
        codec_json_u64(o, "disk_id", INT64_MAX, &d->disk_id, err) &&
        get_unsigned(o, "disk_no", LAYOUT_DISK_MAX, &d->disk_no, err) &&
        get_text(o, "label", TEXT_MAX, &d->label, err) &&
        get_text(o, "backing_identity", TEXT_MAX, &d->backing_identity, err) &&
        codec_json_u64(o, "size", DISK_SIZE_MAX, &d->size, err) && get_mode(o, &d->mode, err) &&
        get_reason(o, &d->reason, err) && get_text(o, "reason_text", TEXT_MAX, &d->reason_text, err) &&
        get_text(o, "change_id", CHANGEID_MAX, &d->change_id, err) &&
        codec_json_bool_opt(o, "tracking", false, &d->tracking, err) &&
        get_text_opt(o, "parent_backup_id", NAME_BACKUP_ID, &d->parent_backup_id, err) &&
        get_text(o, "image", LAYOUT_NAME, &d->image, err) && get_text(o, "hashes", LAYOUT_NAME, &d->hashes, err) &&
        get_text_opt(o, "backing_name", LAYOUT_NAME, &d->backing_name, err) &&
        get_unsigned(o, "chain_length", CHAIN_LAYERS_MAX, &d->chain_length, err) &&
        codec_json_u64(o, "image_bytes", INT64_MAX, &d->image_bytes, err) &&
        codec_json_u64(o, "stored_bytes", INT64_MAX, &d->stored_bytes, err) &&
        codec_json_u64(o, "transferred_bytes", INT64_MAX, &d->transferred_bytes, err) &&
        codec_json_u64(o, "changed_bytes", INT64_MAX, &d->changed_bytes, err) && decode_tracking(o, d, err) &&
        get_hash(o, "root", hash, &d->root, err) && get_hash(o, "metadata", hash, &d->metadata, err) &&
        get_hash(o, "hashes_digest", hash, &d->hashes_digest, err);
}

static bool decode_disks(json_t *o, const HashSpec *hash, Record *r, Err *err)
{
    json_t *disks;
    if (!codec_json_array(o, "disks", RECORD_DISKS_MAX, &disks, err))
        return false;
    size_t n = json_array_size(disks);
    if (!(r->disks = mem_calloc(n, sizeof *r->disks, err)))
        return false;
    for (size_t i = 0; i < n; i++) {
        r->disks_len = i + 1; // cleared by the caller on failure, with what it holds by then
        if (!decode_disk(json_array_get(disks, i), hash, &r->disks[i], err))
            return err_context(err, "disk %zu", i);
    }
    return true;
}

static bool decode_members(json_t *o, const HashSpec *hash, Record *r, Err *err)
{
    static const char *const known[] = {"format",         "backup_id",          "vm_id",   "vm_name",
                                        "source_type",    "repository_uuid",    "context", "sequence",
                                        "type",           "parent_backup_id",   "reason",  "consistency",
                                        "requested_type", "consistency_detail", "partial", "left_out",
                                        "created_at",     "completed_at",       "disks",   NULL};
    uint64_t format;
    if (!codec_json_u64(o, "format", INT64_MAX, &format, err))
        return false;
    if (format != RECORD_FORMAT)
        return err_set(err, ERR_UNSUPPORTED, "format %llu is unknown to this version", (unsigned long long)format);
    return codec_json_only(o, known, err) && get_text(o, "backup_id", NAME_BACKUP_ID, &r->backup_id, err) &&
        get_text(o, "vm_id", UUID_TEXT, &r->vm_id, err) && get_text(o, "vm_name", NAME_MAX_BYTES, &r->vm_name, err) &&
        get_text(o, "source_type", 32, &r->source_type, err) &&
        get_text(o, "repository_uuid", UUID_TEXT, &r->repository_uuid, err) &&
        get_text(o, "context", LAYOUT_NAME, &r->context, err) &&
        get_text_opt(o, "parent_backup_id", NAME_BACKUP_ID, &r->parent_backup_id, err) &&
        codec_json_u64(o, "sequence", INT64_MAX, &r->sequence, err) &&
        get_type(o, "requested_type", &r->requested_type, err) && get_type(o, "type", &r->type, err) &&
        get_reason(o, &r->reason, err) && get_text(o, "consistency", 32, &r->consistency, err) &&
        get_text_opt(o, "consistency_detail", TEXT_MAX, &r->consistency_detail, err) &&
        codec_json_bool_opt(o, "partial", false, &r->partial, err) &&
        get_text(o, "left_out", LEFT_OUT_MAX, &r->left_out, err) && get_time(o, "created_at", &r->created_us, err) &&
        get_time(o, "completed_at", &r->completed_us, err) && decode_disks(o, hash, r, err) && check_record(r, err);
}

bool record_decode(const char *text, size_t n, const HashSpec *hash, Record *ret, Err *err)
{
    cleanup_json json_t *o = NULL;
    Record r = {0};
    Err cause = ERR_INIT;
    if (!parse_line(text, n, RECORD_MAX_BYTES, &o, &cause) || !unseal(o, text, n, hash, &cause) ||
        !decode_members(o, hash, &r, &cause)) {
        record_clear(&r);
        return damaged(err, "commit record", &cause);
    }
    *ret = r;
    return true;
}

// ---- repository.json

static bool check_info(const RepositoryInfo *i, Err *err)
{
    if (i->format != RECORD_FORMAT)
        return err_set(err, ERR_UNSUPPORTED, "format %u is unknown to this version", i->format);
    if (!check_uuid("uuid", i->uuid, err))
        return false;
    uint32_t c = i->cluster_size;
    if (c < 4096 || c > (2u << 20) || (c & (c - 1)) != 0)
        return err_set(err, ERR_INVALID, "cluster_size: a power of two from 4096 to 2097152 is needed");
    if (i->created_us <= 0)
        return err_set(err, ERR_INVALID, "created_at: missing");
    return true;
}

bool repository_info_encode(const RepositoryInfo *i, char **ret_text, Err *err)
{
    if (!check_info(i, err))
        return err_context(err, LAYOUT_INFO);
    cleanup_json json_t *o = json_object();
    if (!o)
        return err_no_memory(err);
    return codec_json_set_u64(o, "format", i->format, err) && codec_json_set_text(o, "uuid", i->uuid, err) &&
        codec_json_set_u64(o, "cluster_size", i->cluster_size, err) &&
        codec_json_set_bool(o, "extended_l2", i->extended_l2, err) &&
        codec_json_set_text(o, "hash_algorithm", hash_algorithm_name(i->hash.algorithm), err) &&
        codec_json_set_hex64(o, "hash_seed", i->hash.seed, err) &&
        codec_json_set_time(o, "created_at", i->created_us, err) && seal(o, &i->hash, INFO_MAX_BYTES, ret_text, err);
}

static bool decode_info(const char *text, size_t n, RepositoryInfo *i, Err *err)
{
    static const char *const known[] = {"format",         "uuid",      "cluster_size", "extended_l2",
                                        "hash_algorithm", "hash_seed", "created_at",   NULL};
    cleanup_json json_t *o = NULL;
    const char *algorithm, *uuid;
    unsigned format;
    if (!parse_line(text, n, INFO_MAX_BYTES, &o, err))
        return false;
    if (!get_unsigned(o, "format", INT32_MAX, &format, err) ||
        !codec_json_text(o, "hash_algorithm", 32, &algorithm, err))
        return false;
    // A format of the future may hash in a way that we do not know.
    if (!hash_algorithm_parse(algorithm, &i->hash.algorithm, err)) {
        if (format > RECORD_FORMAT) {
            err_clear(err);
            return err_set(err, ERR_UNSUPPORTED, "format %u is unknown to this version", format);
        }
        return false;
    }
    if (!codec_json_hex64(o, "hash_seed", &i->hash.seed, err) || !unseal(o, text, n, &i->hash, err))
        return false;
    if (format != RECORD_FORMAT)
        return err_set(err, ERR_UNSUPPORTED, "format %u is unknown to this version", format);
    uint64_t cluster_size;
    if (!codec_json_only(o, known, err) || !codec_json_text(o, "uuid", UUID_TEXT, &uuid, err) ||
        !codec_json_u64(o, "cluster_size", UINT32_MAX, &cluster_size, err) ||
        !codec_json_bool_opt(o, "extended_l2", false, &i->extended_l2, err) ||
        !get_time(o, "created_at", &i->created_us, err))
        return false;
    i->format = format;
    i->cluster_size = (uint32_t)cluster_size;
    if (strlen(uuid) != UUID_TEXT - 1)
        return err_set(err, ERR_DAMAGED, "uuid is no UUID");
    memcpy(i->uuid, uuid, UUID_TEXT);
    return check_info(i, err);
}

bool repository_info_decode(const char *text, size_t n, RepositoryInfo *ret, Err *err)
{
    RepositoryInfo i = {0};
    Err cause = ERR_INIT;
    if (!decode_info(text, n, &i, &cause))
        return damaged(err, LAYOUT_INFO, &cause);
    *ret = i;
    return true;
}
