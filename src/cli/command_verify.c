#include "base/clock.h"
#include "cli/command.h"
#include "cli/point_export.h"
#include "cli/progress.h"
#include "cli/stop.h"
#include "cli/verification.h"
#include "mover/mover.h"
#include "mover/sink_hasher.h"

#include <inttypes.h>

#define PAGE 500

typedef enum Verdict { VERDICT_OK, VERDICT_FAILED, VERDICT_DAMAGED } Verdict; // the worse, the greater

static const char *const verdict_names[] = {"ok", "failed", "damaged"};

// What was found of one disk.
typedef struct Finding {
    Verdict verdict;
    uint64_t bytes;
    int64_t ms;
    bool have_offset;
    uint64_t offset; // of the first damaged cluster
    Err why;
    json_t *report; // the hub's answer to what was reported; NULL: none
} Finding;

typedef struct Verify {
    Cli *cli;
    Progress progress;
    char what[400]; // "backup-… disk-0"
    json_t *points; // the result
    Table table;
    Verdict worst;
} Verify;

// ---- one disk

static void on_progress(void *ctx, const MoverProgress *p)
{
    Verify *v = ctx;
    ProgressItem item = {.label = v->what, .done = p->done_bytes, .size = p->size};
    progress_show(&v->progress, v->what, &item, 1);
}

typedef struct Reached {
    Verify *verify;
    uint64_t done; // everything below was read
} Reached;

static void on_reached(void *ctx, const MoverProgress *p)
{
    Reached *r = ctx;
    r->done = p->done_bytes;
    on_progress(r->verify, p);
}

static bool compare_root(const PointExport *e, Blocks *hasher, Err *err)
{
    Hash root;
    char text[HASH_TEXT_MAX];
    if (!sink_hasher_root(hasher, &root, err))
        return false;
    hash_text(&e->hash, &root, text);
    return str_eq(text, e->root) ||
        err_set(err, ERR_DAMAGED, "the disk's root hash is %s and was %s when it was written", text, e->root);
}

static bool read_disk(Verify *v, const PointExport *e, Finding *f)
{
    HashGeometry geo;
    MoverResult m;
    Reached reached = {.verify = v};
    bool fine;
    {
        cleanup_blocks Blocks *from = NULL;
        cleanup_blocks Blocks *to = NULL;
        if (!hash_geometry_init(&geo, &e->hash, e->cluster_size, &f->why) || !point_export_read(e, &from, &f->why) ||
            !sink_hasher_open(&geo, e->size, &to, &f->why))
            return false;
        MoverSpec spec = {.from = from,
                          .to = to,
                          .size = e->size,
                          .cluster_size = e->cluster_size,
                          .plan = MOVER_ALL,
                          .cancel = stop_flag(),
                          .progress = on_reached,
                          .progress_ctx = &reached};
        fine = mover_copy(&spec, &m, &f->why) && compare_root(e, to, &f->why);
    }
    f->bytes = fine ? e->size : reached.done;
    return fine;
}

static void check_disk(Verify *v, const char *backup_id, const json_t *disk, Finding *f)
{
    PointExport e = {0};
    int64_t began = clock_mono_ms();
    (void)snprintf(v->what, sizeof(v->what), "%s %s", backup_id, cli_text(disk, "disk_key")); // cut where it is long
    bool fine = point_export_open(v->cli, backup_id, disk, "verify", &e, &f->why) && read_disk(v, &e, f);
    point_export_close(&e);
    if (!fine && f->why.code == ERR_IO)
        f->have_offset = point_export_locate(v->cli, backup_id, disk, f->bytes, DISK_SIZE_MAX, &f->offset, &f->why) ||
            point_export_locate(v->cli, backup_id, disk, 0, f->bytes, &f->offset, &f->why);
    f->verdict = fine ? VERDICT_OK : f->why.code == ERR_DAMAGED ? VERDICT_DAMAGED : VERDICT_FAILED;
    progress_end(&v->progress);
    f->ms = clock_mono_ms() - began;
}

// ---- what people are told

static bool add_disk(json_t *disks, const json_t *disk, const Finding *f, Err *err)
{
    json_t *o = json_object(), *affected = cli_list(f->report, "affected");
    bool fine = (o || err_no_memory(err)) && codec_json_set_u64(o, "disk_id", cli_u64(disk, "disk_id"), err) &&
        codec_json_set_text(o, "disk_key", cli_text(disk, "disk_key"), err) &&
        codec_json_set_u64(o, "disk_no", cli_u64(disk, "disk_no"), err) &&
        codec_json_set_text(o, "result", verdict_names[f->verdict], err) &&
        codec_json_set_u64(o, "bytes", f->bytes, err) && codec_json_set_u64(o, "milliseconds", (uint64_t)f->ms, err) &&
        codec_json_set_text(o, "details", f->verdict == VERDICT_OK ? NULL : f->why.details, err) &&
        codec_json_set_text(o, "file", f->report ? json_string_value(json_object_get(f->report, "file")) : NULL, err) &&
        codec_json_set(o, "affected", affected ? json_incref(affected) : json_array(), err) &&
        (!f->have_offset || codec_json_set_u64(o, "offset", f->offset, err));
    if (!fine) {
        json_decref(o);
        return false;
    }
    return codec_json_push(disks, o, err);
}

static void say_finding(const char *backup_id, const json_t *disk, const Finding *f)
{
    size_t i;
    json_t *id;
    const char *file = cli_text(f->report, "file");
    if (f->verdict == VERDICT_OK)
        return;
    cli_note("%s %s: %s: %s", backup_id, cli_text(disk, "disk_key"), verdict_names[f->verdict], f->why.details);
    if (*file)
        cli_note("damaged file: %s", file);
    json_array_foreach(cli_list(f->report, "affected"), i, id) cli_note("affected: %s", json_string_value(id));
}

static bool add_row(Verify *v, const char *backup_id, const json_t *disk, const Finding *f, Err *err)
{
    char bytes[STR_SIZE_MAX], time[TEXT_DURATION];
    str_size(f->bytes, bytes);
    text_duration((uint64_t)f->ms / 1000, time);
    const char *const cells[] = {backup_id, cli_text(disk, "disk_key"), verdict_names[f->verdict], bytes, time};
    return table_row(&v->table, cells, err);
}

// ---- points

static bool add_point(Verify *v, const json_t *backup, Verdict verdict, json_t *disks, Err *err)
{
    json_t *o = json_object();
    bool fine = (o || err_no_memory(err)) && codec_json_set_text(o, "backup_id", cli_text(backup, "backup_id"), err) &&
        codec_json_set_text(o, "vm_name", cli_text(backup, "vm_name"), err) &&
        codec_json_set_text(o, "result", verdict_names[verdict], err) &&
        codec_json_set(o, "disks", json_incref(disks), err);
    if (!fine) {
        json_decref(o);
        return false;
    }
    return codec_json_push(v->points, o, err);
}

// A report that does not arrive counts as something that could not be checked.
static void report(Verify *v, const char *backup_id, const char *result, const json_t *disk, const uint64_t *offset,
                   const char *details, json_t **ret_answer)
{
    if (!verification_report(v->cli, backup_id, result, disk, offset, details, ret_answer))
        v->worst = MAX(v->worst, VERDICT_FAILED);
}

// False: this program failed, or was stopped; what was found of the point is in *v.
static bool verify_disks(Verify *v, const json_t *backup, json_t *results, Verdict *verdict, Finding *ret_failed,
                         Err *err)
{
    const char *id = cli_text(backup, "backup_id");
    size_t i;
    json_t *disk;
    json_array_foreach(cli_list(backup, "disks"), i, disk)
    {
        Finding f = {0};
        check_disk(v, id, disk, &f);
        if (f.verdict == VERDICT_DAMAGED)
            report(v, id, "damaged", disk, f.have_offset ? &f.offset : NULL, f.why.details, &f.report);
        if (f.verdict == VERDICT_FAILED)
            *ret_failed = f;
        say_finding(id, disk, &f);
        *verdict = MAX(*verdict, f.verdict);
        bool fine = add_disk(results, disk, &f, err) && add_row(v, id, disk, &f, err);
        json_decref(f.report);
        if (!fine)
            return false;
        if (stop_signal() != 0)
            return err_set(err, ERR_CANCELLED, "stopped by a signal; %s was not checked to its end", id);
    }
    return true;
}

static bool verify_point(Verify *v, const json_t *backup, Err *err)
{
    const char *id = cli_text(backup, "backup_id");
    Verdict verdict = VERDICT_OK;
    Finding failed = {0};
    cleanup_json json_t *disks = json_array(), *answer = NULL;
    if (!disks)
        return err_no_memory(err);
    if (json_array_size(cli_list(backup, "disks")) == 0) {
        (void)err_set(&failed.why, ERR_PROTOCOL, "the catalogue knows no disk of it");
        cli_note("%s: failed: %s", id, failed.why.details);
        verdict = VERDICT_FAILED;
    }
    if (!verify_disks(v, backup, disks, &verdict, &failed, err))
        return false;
    if (verdict == VERDICT_OK)
        report(v, id, "ok", NULL, NULL, NULL, &answer);
    else if (verdict == VERDICT_FAILED)
        report(v, id, "failed", NULL, NULL, failed.why.details, &answer);
    v->worst = MAX(v->worst, verdict);
    return add_point(v, backup, verdict, disks, err);
}

// One point by its ID. gone_is_fine: it may have been deleted since it was listed.
static bool verify_id(Verify *v, const char *id, bool gone_is_fine, Err *err)
{
    cleanup_json json_t *backup = NULL;
    cleanup_free char *path = cli_path("backups", id, NULL, err);
    if (!path)
        return false;
    if (!cli_get(v->cli, path, &backup, err)) {
        if (!gone_is_fine || err->code != ERR_NOT_FOUND)
            return false;
        err_clear(err);
        cli_note("%s was deleted meanwhile", id);
        return true;
    }
    if (!str_eq(cli_text(backup, "status"), "completed"))
        return err_set(err, ERR_CONFLICT, "backup %s is %s: there is nothing to verify", id,
                       cli_text(backup, "status"));
    return verify_point(v, backup, err);
}

// The completed points of the catalogue, not what lies in the repository: what is gone must be noticed.
static bool list_points(Cli *c, json_t *ids, Err *err)
{
    cleanup_free char *next = NULL;
    for (;;) {
        size_t i;
        json_t *b;
        cleanup_json json_t *answer = NULL;
        cleanup(str_clear) StrBuf path = STR_BUF(8192);
        if (!str_addf(&path, err, "/api/v1/backups?status=completed&limit=%d", PAGE) ||
            !cli_query(&path, "repository_id", c->values.repo, err) ||
            !cli_query(&path, "vm_name", c->values.vm, err) || !cli_query(&path, "after", next, err) ||
            !cli_get(c, path.s, &answer, err))
            return false;
        json_array_foreach(cli_list(answer, "backups"), i,
                           b) if (!codec_json_push(ids, json_string(cli_text(b, "backup_id")), err)) return false;
        if (!*cli_text(answer, "next"))
            return true;
        if (!mem_replace(&next, cli_text(answer, "next"), err))
            return false;
    }
}

// A repository that is away, and of which no point is known, is not one in which all is well.
static bool require_available(Cli *c, Err *err)
{
    cleanup_json json_t *repository = NULL;
    cleanup_free char *path = cli_path("repositories", c->values.repo, NULL, err);
    if (!path || !cli_get(c, path, &repository, err))
        return false;
    return cli_flag(repository, "available") ||
        err_set(err, ERR_UNAVAILABLE, "repository \"%s\": %s", c->values.repo, cli_text(repository, "problem"));
}

static bool verify_repository(Verify *v, Err *err)
{
    cleanup_json json_t *ids = json_array();
    if (!ids)
        return err_no_memory(err);
    if (!list_points(v->cli, ids, err) || (json_array_size(ids) == 0 && !require_available(v->cli, err)))
        return false;
    // Newest first is how they are listed; damage shows first in what the others rest on
    for (size_t i = json_array_size(ids); i > 0; i--)
        if (!verify_id(v, json_string_value(json_array_get(ids, i - 1)), true, err))
            return false;
    return true;
}

static bool say(Verify *v, Err *err)
{
    cleanup_json json_t *o = json_object();
    if (!o)
        return err_no_memory(err);
    if (!codec_json_set_text(o, "result", verdict_names[v->worst], err) ||
        !codec_json_set(o, "points", json_incref(v->points), err))
        return false;
    if (!cli_said_json(v->cli, o))
        table_print(&v->table, stdout);
    return true;
}

bool command_verify(Cli *c, Err *err)
{
    const char *id = c->words[0];
    if (!id == !c->values.repo)
        return err_set(err, ERR_USAGE, "a backup's ID or --repo is needed, and not both");
    if (c->values.vm && !c->values.repo)
        return err_set(err, ERR_USAGE, "--vm goes with --repo");
    Verify v = {.cli = c, .points = json_array(), .table = {.titles = {"POINT", "DISK", "RESULT", ">BYTES", ">TIME"}}};
    progress_begin(&v.progress, stderr, c->values.quiet);
    bool fine = (v.points || err_no_memory(err)) && (id ? verify_id(&v, id, false, err) : verify_repository(&v, err));
    // Damage that was found counts, however it went on
    c->exit_status = v.worst == VERDICT_DAMAGED ? CLI_EXIT_DAMAGED : v.worst == VERDICT_FAILED ? CLI_EXIT_FAILED : 0;
    if (fine)
        fine = say(&v, err);
    else if (v.table.rows > 0 && !c->values.json)
        table_print(&v.table, stdout);
    table_clear(&v.table);
    json_decref(v.points);
    return fine;
}
