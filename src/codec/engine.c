#include "codec/engine.h"

#include "codec/zframe.h"

#include "base/str.h"

#define LAYERS_MAX 250
#define PATH_BYTES 4095

static const char *const role_names[] = {"ingest", "serve"};
static const char *const op_names[] = {"status", "seal", "stop", "checkpoint"};

static bool name_to_index(const char *name, const char *const *names, size_t n, const char *what, size_t *ret, Err *err)
{
    for (size_t i = 0; i < n; i++) {
        if (str_eq(name, names[i])) {
            *ret = i;
            return true;
        }
    }
    return err_set(err, ERR_INVALID, "unknown %s", what);
}

void engine_config_clear(EngineConfig *c)
{
    for (size_t i = 0; i < c->layers_len; i++) {
        free(c->layers[i].image);
        free(c->layers[i].hashes);
        free(c->layers[i].backing_name);
    }
    free(c->layers);
    free(c->export_name);
    free(c->control);
    free(c->hash_algorithm);
    free(c->image);
    free(c->hashes);
    free(c->backing_name);
    free(c->journal);
    free(c->resume_image);
    free(c->resume_journal);
    *c = (EngineConfig){0};
}

static bool encode_layers(json_t *o, const EngineConfig *c, Err *err)
{
    json_t *list = json_array();
    if (!codec_json_set(o, "layers", list, err))
        return false;
    for (size_t i = 0; i < c->layers_len; i++) {
        json_t *l = json_object();
        if (!codec_json_push(list, l, err) || !codec_json_set_text(l, "image", c->layers[i].image, err) ||
            !codec_json_set_text(l, "hashes", c->layers[i].hashes, err) ||
            !codec_json_set_text(l, "backing_name", c->layers[i].backing_name, err))
            return false;
    }
    return true;
}

bool engine_config_encode(const EngineConfig *c, char **ret_text, Err *err)
{
    cleanup_json json_t *o = json_object();
    if (!codec_json_set_text(o, "role", role_names[c->role], err) ||
        !codec_json_set_text(o, "export_name", c->export_name, err) ||
        !codec_json_set_text(o, "control", c->control, err) ||
        !codec_json_set_u64(o, "cluster_size", c->cluster_size, err) ||
        !codec_json_set_text(o, "hash_algorithm", c->hash_algorithm, err) ||
        !codec_json_set_hex64(o, "hash_seed", c->hash_seed, err) || !encode_layers(o, c, err))
        return false;
    if (c->role == ENGINE_INGEST &&
        (!codec_json_set_text(o, "image", c->image, err) || !codec_json_set_text(o, "hashes", c->hashes, err) ||
         !codec_json_set_text(o, "backing_name", c->backing_name, err) ||
         !codec_json_set_u64(o, "size", c->size, err) ||
         !codec_json_set_text(o, "mode", disk_mode_name(c->mode), err) ||
         !codec_json_set_u64(o, "compression", c->compression, err) ||
         !codec_json_set_text(o, "journal", c->journal, err) ||
         !codec_json_set_u64(o, "checkpoint_bytes", c->checkpoint_bytes, err) ||
         !codec_json_set_text(o, "resume_image", c->resume_image, err) ||
         !codec_json_set_text(o, "resume_journal", c->resume_journal, err)))
        return false;
    return codec_json_dump(o, ret_text, err);
}

// A copy of a member's text; optional ones may be missing.
static bool take_text(const json_t *o, const char *key, bool optional, char **ret, Err *err)
{
    const char *text = NULL;
    bool ok = optional ? codec_json_text_opt(o, key, PATH_BYTES, &text, err)
                       : codec_json_text(o, key, PATH_BYTES, &text, err);
    if (ok && text && *text == '\0')
        return err_set(err, ERR_INVALID, "%s is empty", key);
    return ok && mem_replace(ret, text, err);
}

static bool decode_layers(const json_t *o, EngineConfig *c, Err *err)
{
    static const char *const known[] = {"image", "hashes", "backing_name", NULL};
    json_t *list = NULL;
    if (!codec_json_array(o, "layers", LAYERS_MAX, &list, err))
        return false;
    size_t n = json_array_size(list);
    c->layers = mem_calloc(n, sizeof *c->layers, err);
    if (!c->layers)
        return false;
    c->layers_len = n;
    for (size_t i = 0; i < n; i++) {
        const json_t *l = json_array_get(list, i);
        EngineLayer *layer = &c->layers[i];
        if (!codec_json_object(l, "a layer", err) || !codec_json_only(l, known, err) ||
            !take_text(l, "image", false, &layer->image, err) || !take_text(l, "hashes", false, &layer->hashes, err) ||
            !take_text(l, "backing_name", true, &layer->backing_name, err))
            return false;
        if ((layer->backing_name != NULL) != (i + 1 < n))
            return err_set(err, ERR_INVALID, "layer %zu of %zu: only the last one has no backing file", i, n);
    }
    return true;
}

static bool decode_ingest(const json_t *o, EngineConfig *c, Err *err)
{
    const char *mode = NULL;
    uint64_t compression = 0;
    bool present;
    if (!take_text(o, "image", false, &c->image, err) || !take_text(o, "hashes", false, &c->hashes, err) ||
        !take_text(o, "backing_name", true, &c->backing_name, err) ||
        !codec_json_u64(o, "size", DISK_SIZE_MAX, &c->size, err) || !codec_json_text(o, "mode", 16, &mode, err) ||
        !disk_mode_parse(mode, &c->mode, err) ||
        !codec_json_u64_opt(o, "compression", ZFRAME_LEVEL_MAX, &compression, &present, err) ||
        !take_text(o, "journal", true, &c->journal, err) ||
        !codec_json_u64_opt(o, "checkpoint_bytes", DISK_SIZE_MAX, &c->checkpoint_bytes, &present, err) ||
        !take_text(o, "resume_image", true, &c->resume_image, err) ||
        !take_text(o, "resume_journal", true, &c->resume_journal, err))
        return false;
    if (!c->resume_image != !c->resume_journal || (c->resume_image && !c->journal))
        return err_set(err, ERR_INVALID, "resume_image, resume_journal and journal do not go together");
    c->compression = (unsigned)compression;
    bool full = c->mode == DISK_FULL;
    if (c->size == 0 || full != !c->backing_name || full != (c->layers_len == 0))
        return err_set(err, ERR_INVALID, "size, mode, backing file and parent do not go together");
    return true;
}

static bool decode_config(const json_t *o, EngineConfig *c, Err *err)
{
    static const char *const common[] = {
        "role",        "export_name", "control",          "cluster_size", "hash_algorithm", "hash_seed",
        "layers",      "image",       "hashes",           "backing_name", "size",           "mode",
        "compression", "journal",     "checkpoint_bytes", "resume_image", "resume_journal", NULL};
    static const char *const serve[] = {"role",           "export_name", "control", "cluster_size",
                                        "hash_algorithm", "hash_seed",   "layers",  NULL};
    const char *role = NULL;
    size_t index = 0;
    uint64_t cluster_size = 0;
    if (!codec_json_object(o, "the configuration", err) || !codec_json_text(o, "role", 16, &role, err) ||
        !name_to_index(role, role_names, ARRAY_LEN(role_names), "role", &index, err))
        return false;
    c->role = (EngineRole)index;
    if (!codec_json_only(o, c->role == ENGINE_SERVE ? serve : common, err) ||
        !take_text(o, "export_name", false, &c->export_name, err) ||
        !take_text(o, "control", false, &c->control, err) ||
        !codec_json_u64(o, "cluster_size", 2u << 20, &cluster_size, err) ||
        !take_text(o, "hash_algorithm", false, &c->hash_algorithm, err) ||
        !codec_json_hex64(o, "hash_seed", &c->hash_seed, err) || !decode_layers(o, c, err))
        return false;
    c->cluster_size = (uint32_t)cluster_size;
    if (cluster_size < 4096 || (cluster_size & (cluster_size - 1)) != 0)
        return err_set(err, ERR_INVALID, "bad cluster_size");
    if (c->role == ENGINE_SERVE)
        return c->layers_len > 0 || err_set(err, ERR_INVALID, "no layers to serve");
    return decode_ingest(o, c, err);
}

bool engine_config_decode(const char *text, size_t n, EngineConfig *ret, Err *err)
{
    cleanup_json json_t *o = NULL;
    EngineConfig c = {0};
    if (!codec_json_parse(text, n, ENGINE_CONFIG_MAX, &o, err))
        return false;
    if (!decode_config(o, &c, err)) {
        engine_config_clear(&c);
        return false;
    }
    *ret = c;
    return true;
}

// One line: the object, and a newline.
static bool dump_line(const json_t *o, char **ret_line, Err *err)
{
    cleanup_free char *text = NULL;
    if (!codec_json_dump(o, &text, err))
        return false;
    char *line = mem_printf(err, "%s\n", text);
    if (!line)
        return false;
    *ret_line = line;
    return true;
}

bool engine_request_encode(const EngineRequest *r, char **ret_line, Err *err)
{
    cleanup_json json_t *o = json_object();
    if (!codec_json_set_text(o, "op", op_names[r->op], err))
        return false;
    if (r->have_expect &&
        (!codec_json_set_u64(o, "extents", r->extents, err) || !codec_json_set_u64(o, "bytes", r->bytes, err) ||
         !codec_json_set_hex64(o, "digest", r->digest, err)))
        return false;
    return dump_line(o, ret_line, err);
}

bool engine_request_decode(const char *line, size_t n, EngineRequest *ret, Err *err)
{
    static const char *const known[] = {"op", "extents", "bytes", "digest", NULL};
    cleanup_json json_t *o = NULL;
    const char *name = NULL;
    size_t op = 0;
    EngineRequest r = {0};
    if (!codec_json_parse(line, n, ENGINE_LINE_MAX, &o, err) || !codec_json_object(o, "a request", err) ||
        !codec_json_only(o, known, err) || !codec_json_text(o, "op", 16, &name, err) ||
        !name_to_index(name, op_names, ARRAY_LEN(op_names), "op", &op, err))
        return false;
    r.op = (EngineOp)op;
    r.have_expect = json_object_size(o) > 1;
    if (r.have_expect && r.op != ENGINE_SEAL)
        return err_set(err, ERR_INVALID, "only a seal takes more than its name");
    if (r.have_expect &&
        (!codec_json_u64(o, "extents", DISK_SIZE_MAX, &r.extents, err) ||
         !codec_json_u64(o, "bytes", DISK_SIZE_MAX, &r.bytes, err) || !codec_json_hex64(o, "digest", &r.digest, err)))
        return false;
    *ret = r;
    return true;
}

// The numbers and hashes of an answer, for both directions.
typedef struct AnswerField {
    const char *key;
    uint64_t *number;
    char *hash; // 65 bytes
} AnswerField;

#define ANSWER_FIELDS 10

static void answer_fields(EngineAnswer *a, AnswerField f[ANSWER_FIELDS])
{
    f[0] = (AnswerField){.key = "received_data", .number = &a->received_data};
    f[1] = (AnswerField){.key = "received_zero", .number = &a->received_zero};
    f[2] = (AnswerField){.key = "stored_bytes", .number = &a->stored_bytes};
    f[3] = (AnswerField){.key = "image_bytes", .number = &a->image_bytes};
    f[4] = (AnswerField){.key = "stored_clusters", .number = &a->stored_clusters};
    f[5] = (AnswerField){.key = "zeroed_clusters", .number = &a->zeroed_clusters};
    f[6] = (AnswerField){.key = "skipped_clusters", .number = &a->skipped_clusters};
    f[7] = (AnswerField){.key = "root", .hash = a->root};
    f[8] = (AnswerField){.key = "metadata", .hash = a->metadata};
    f[9] = (AnswerField){.key = "hashes_digest", .hash = a->hashes_digest};
}

// Messages may hold a path, which need not be UTF-8.
static bool set_details(json_t *o, const char *details, Err *err)
{
    char text[ERR_DETAILS_MAX];
    size_t n = strnlen(details, sizeof text - 1);
    memcpy(text, details, n);
    text[n] = '\0';
    for (size_t i = 0; i < n && !str_is_utf8(text, n); i++)
        if ((unsigned char)text[i] >= 0x80)
            text[i] = '?';
    return codec_json_set_text(o, "details", text, err);
}

bool engine_answer_encode(const EngineAnswer *a, char **ret_line, Err *err)
{
    cleanup_json json_t *o = json_object();
    EngineAnswer copy = *a;
    AnswerField f[ANSWER_FIELDS];
    answer_fields(&copy, f);
    if (!codec_json_set_bool(o, "ok", a->ok, err))
        return false;
    if (!a->ok) {
        if (!codec_json_set_text(o, "code", err_name(a->code), err) || !set_details(o, a->details, err))
            return false;
        return dump_line(o, ret_line, err);
    }
    if (!codec_json_set_bool(o, "sealed", a->sealed, err) || !codec_json_set_u64(o, "connections", a->connections, err))
        return false;
    for (size_t i = 0; i < ANSWER_FIELDS; i++) {
        if (f[i].number && !codec_json_set_u64(o, f[i].key, *f[i].number, err))
            return false;
        if (f[i].hash && !codec_json_set_text(o, f[i].key, f[i].hash, err))
            return false;
    }
    return dump_line(o, ret_line, err);
}

static bool decode_failure(const json_t *o, EngineAnswer *a, Err *err)
{
    const char *name = NULL, *details = NULL;
    if (!codec_json_text(o, "code", 64, &name, err) ||
        !codec_json_text(o, "details", ERR_DETAILS_MAX - 1, &details, err))
        return false;
    a->code = err_code(name);
    if (a->code == ERR_NONE)
        a->code = ERR_INTERNAL;
    memcpy(a->details, details, strlen(details) + 1);
    return true;
}

static bool decode_success(const json_t *o, EngineAnswer *a, Err *err)
{
    AnswerField f[ANSWER_FIELDS];
    uint64_t connections = 0;
    answer_fields(a, f);
    if (!codec_json_bool_opt(o, "sealed", false, &a->sealed, err) ||
        !codec_json_u64(o, "connections", UINT32_MAX, &connections, err))
        return false;
    a->connections = (unsigned)connections;
    for (size_t i = 0; i < ANSWER_FIELDS; i++) {
        const char *text = NULL;
        if (f[i].number && !codec_json_u64(o, f[i].key, INT64_MAX, f[i].number, err))
            return false;
        if (!f[i].hash)
            continue;
        uint8_t bytes[32];
        if (!codec_json_text(o, f[i].key, 64, &text, err))
            return false;
        size_t n = strlen(text);
        if (n % 2 != 0 || (n > 0 && !str_unhex(text, bytes, n / 2)))
            return err_set(err, ERR_INVALID, "%s is not a hash", f[i].key);
        memcpy(f[i].hash, text, n + 1);
    }
    return true;
}

bool engine_answer_decode(const char *line, size_t n, EngineAnswer *ret, Err *err)
{
    cleanup_json json_t *o = NULL;
    EngineAnswer a = {0};
    if (!codec_json_parse(line, n, ENGINE_LINE_MAX, &o, err) || !codec_json_object(o, "an answer", err) ||
        !codec_json_bool_opt(o, "ok", false, &a.ok, err))
        return false;
    if (!(a.ok ? decode_success(o, &a, err) : decode_failure(o, &a, err)))
        return false;
    *ret = a;
    return true;
}
