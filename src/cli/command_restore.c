#include "base/clock.h"
#include "base/file.h"
#include "cli/command.h"
#include "cli/point_export.h"
#include "cli/progress.h"
#include "cli/stop.h"
#include "cli/target.h"
#include "cli/verification.h"
#include "image/repo.h"
#include "mover/mover.h"
#include "mover/sink_file.h"
#include "mover/sink_image.h"
#include "mover/sink_path.h"

#include <inttypes.h>
#include <unistd.h>

#define LOOK_BYTES (UINT64_C(256) << 20) // behind the last progress, where a read can have failed
#define AFFECTED_MAX 600                 // bytes of a message

typedef struct RestoreDisk {
    const json_t *disk; // borrowed from the backup
    Target target;
} RestoreDisk;

typedef struct Restore {
    Cli *cli;
    const json_t *backup; // borrowed
    bool qcow2;
    char *made; // a folder of ours, removed again when nothing came of it
    RestoreDisk *disks;
    size_t len;
    Progress progress;
    ProgressItem *items; // one a disk
    size_t current;
    uint64_t reached; // bytes of the current disk that were read
} Restore;

static void restore_clear(Restore *r)
{
    for (size_t i = 0; r->disks && i < r->len; i++)
        target_clear(&r->disks[i].target);
    free(r->disks);
    free(r->items);
    free(r->made);
}

// ---- what, and where to

static bool check_options(const CliValues *v, Err *err)
{
    if (!cli_need(v->to, "to", err))
        return false;
    if (!v->disk == !v->all_disks)
        return err_set(err, ERR_USAGE, "--disk or --all-disks is needed, and not both");
    if (v->format && !str_eq(v->format, "raw") && !str_eq(v->format, "qcow2"))
        return err_set(err, ERR_USAGE, "--format is raw or qcow2");
    return true;
}

static void warn(const json_t *backup)
{
    size_t i;
    json_t *key;
    if (cli_flag(backup, "suspect"))
        cli_note("warning: this point is suspect: %s", cli_suspect(backup));
    if (!cli_flag(backup, "partial"))
        return;
    cli_note("warning: this point is partial: disks were left out when it was made");
    json_array_foreach(cli_list(backup, "left_out"), i, key) cli_note("left out: %s", json_string_value(key));
}

// By number first, then by key, then by the hypervisor's number; as the hub does.
static const json_t *find_disk(const json_t *disks, const char *wanted)
{
    static const char *const keys[] = {"disk_no", "disk_key", "disk_id"};
    for (size_t k = 0; k < ARRAY_LEN(keys); k++) {
        size_t i;
        json_t *disk;
        json_array_foreach(disks, i, disk)
        {
            char number[24];
            (void)snprintf(number, sizeof(number), "%" PRIu64, cli_u64(disk, keys[k])); // fits: 20 digits
            bool text = json_is_string(json_object_get(disk, keys[k]));
            if (str_eq(text ? cli_text(disk, keys[k]) : number, wanted))
                return disk;
        }
    }
    return NULL;
}

static bool make_folder(Restore *r, const char *path, Err *err)
{
    bool there = file_exists(path), inside = true;
    if (!repo_is_inside(path, &inside, err))
        return false;
    if (inside)
        return err_set(err, ERR_CONFLICT, "%s lies in a repository; restore to somewhere else", path);
    if (there && !file_is_dir(path))
        return err_set(err, ERR_EXISTS, "%s is not a folder", path);
    if (there)
        return true;
    return file_mkdir_p(path, 0700, err) && mem_replace(&r->made, path, err);
}

static bool choose(Restore *r, Err *err)
{
    const CliValues *v = &r->cli->values;
    const json_t *disks = cli_list(r->backup, "disks");
    const json_t *one = v->disk ? find_disk(disks, v->disk) : NULL;
    size_t len = v->disk ? 1 : json_array_size(disks);
    if ((v->disk && !one) || len == 0)
        return err_set(err, ERR_NOT_FOUND, "the point has no disk \"%s\"; sendense show lists its disks",
                       v->disk ? v->disk : "");
    r->disks = mem_calloc(len, sizeof(*r->disks), err);
    r->items = mem_calloc(len, sizeof(*r->items), err);
    if (!r->disks || !r->items || (v->all_disks && !make_folder(r, v->to, err)))
        return false;
    r->len = len;
    for (size_t i = 0; i < len; i++) {
        RestoreDisk *d = &r->disks[i];
        d->disk = one ? one : json_array_get(disks, i);
        cleanup_free char *path = one
            ? mem_strdup(v->to, err)
            : mem_printf(err, "%s/disk-%" PRIu64 ".%s", v->to, cli_u64(d->disk, "disk_no"), r->qcow2 ? "qcow2" : "raw");
        if (!path || !target_check(&target_system, path, v->force, &d->target, err))
            return false;
        if (d->target.device && r->qcow2)
            return err_set(err, ERR_USAGE, "%s is a block device: only raw can be written to one", d->target.path);
        r->items[i] = (ProgressItem){.label = cli_text(d->disk, "disk_key"), .size = cli_u64(d->disk, "size")};
    }
    return true;
}

// ---- is there room?

static bool measure(Restore *r, const json_t *disk, uint64_t *ret, Err *err)
{
    cleanup(point_export_close) PointExport e = {0};
    cleanup_blocks Blocks *from = NULL;
    return point_export_open(r->cli, cli_text(r->backup, "backup_id"), disk, "restore", &e, err) &&
        point_export_read(&e, &from, err) && point_export_data(from, e.size, ret, err);
}

// Where the disks' sizes would fit there is nothing to measure. All files go to one folder; what a killed restore left
// of one is room for another.
static bool check_room(Restore *r, Err *err)
{
    uint64_t most = 0, needed = 0, have, total;
    char text[STR_SIZE_MAX], have_text[STR_SIZE_MAX];
    const Target *first = &r->disks[0].target;
    if (first->device)
        return true;
    for (size_t i = 0; i < r->len; i++)
        if (!sink_path_remove_rest(r->disks[i].target.path, err))
            return false;
    cleanup_free char *folder = target_folder(first, err);
    if (!folder || !file_space(folder, &have, &total, err))
        return false;
    for (size_t i = 0; i < r->len; i++)
        if (!add_u64(most, r->items[i].size, &most))
            return err_set(err, ERR_TOO_LARGE, "the disks are too large");
    if (most <= have)
        return true;
    for (size_t i = 0; i < r->len; i++) {
        uint64_t data = 0;
        if (!measure(r, r->disks[i].disk, &data, err))
            return false;
        needed += data;
    }
    str_size(needed, text);
    str_size(have, have_text);
    return needed <= have ||
        err_set(err, ERR_NO_SPACE, "%s has room for %s, and the data is %s; restore to somewhere else", folder,
                have_text, text);
}

// ---- copying

static void on_progress(void *ctx, const MoverProgress *p)
{
    Restore *r = ctx;
    r->items[r->current].done = r->reached = p->done_bytes;
    progress_show(&r->progress, "restoring", r->items, r->len);
}

static bool open_sink(Restore *r, const RestoreDisk *d, const PointExport *e, Blocks **ret, Err *err)
{
    bool force = r->cli->values.force;
    if (r->qcow2) {
        SinkImageSpec spec = {
            .path = d->target.path, .size = e->size, .cluster_size = e->cluster_size, .replace = force};
        return sink_image_open(&spec, ret, err);
    }
    SinkFileSpec spec = {.path = d->target.path, .size = e->size, .replace = force};
    return sink_file_open(&spec, ret, err);
}

static bool restore_disk(Restore *r, const RestoreDisk *d, MoverResult *ret, Err *err)
{
    cleanup(point_export_close) PointExport e = {0};
    cleanup_blocks Blocks *from = NULL;
    cleanup_blocks Blocks *to = NULL;
    if (!point_export_open(r->cli, cli_text(r->backup, "backup_id"), d->disk, "restore", &e, err))
        return false;
    if (stop_signal() != 0)
        return err_set(err, ERR_CANCELLED, "stopped by a signal");
    if (!point_export_read(&e, &from, err) || !open_sink(r, d, &e, &to, err))
        return false;
    MoverSpec spec = {.from = from,
                      .to = to,
                      .size = e.size,
                      .cluster_size = e.cluster_size,
                      .plan = MOVER_ALL,
                      .cancel = stop_flag(),
                      .progress = on_progress,
                      .progress_ctx = r};
    r->reached = 0;
    if (!mover_copy(&spec, ret, err))
        return false;
    return r->qcow2 ? sink_image_finish(to, err) : sink_file_finish(to, err);
}

// The points that an answer names, as many as fit.
static void join_affected(const json_t *answer, char ret[AFFECTED_MAX])
{
    const json_t *ids = cli_list(answer, "affected");
    size_t i, n = 0, total = json_array_size(ids);
    json_t *id;
    ret[0] = '\0';
    json_array_foreach(ids, i, id)
    {
        const char *text = json_string_value(id);
        if (n + strlen(text) + 32 > AFFECTED_MAX) { // 32: for the words below
            (void)snprintf(ret + n, AFFECTED_MAX - n, " and %zu more", total - i);
            return;
        }
        n += (size_t)snprintf(ret + n, AFFECTED_MAX - n, "%s%s", i ? ", " : "", text);
    }
}

// A read that failed: because what is stored is damaged? Then the hub is told, and makes the points that rest on it
// suspect. What the opening of an export meets, the hub knows.
static void explain(Restore *r, const RestoreDisk *d, Err *err)
{
    uint64_t offset;
    char affected[AFFECTED_MAX];
    const char *id = cli_text(r->backup, "backup_id");
    cleanup_json json_t *answer = NULL;
    if (err->code != ERR_IO ||
        !point_export_locate(r->cli, id, d->disk, r->reached, r->reached + LOOK_BYTES, &offset, err) ||
        !verification_report(r->cli, id, "damaged", d->disk, &offset, err->details, &answer))
        return;
    join_affected(answer, affected);
    Err damage = *err;
    *err = ERR_INIT;
    (void)err_set(err, damage.code, "%s; points that rest on it: %s", damage.details, affected);
}

// ---- the result

static bool add_result(json_t *list, const RestoreDisk *d, const char *format, const MoverResult *m, Err *err)
{
    json_t *o = json_object();
    bool fine = (o || err_no_memory(err)) && codec_json_set_text(o, "disk_key", cli_text(d->disk, "disk_key"), err) &&
        codec_json_set_u64(o, "disk_id", cli_u64(d->disk, "disk_id"), err) &&
        codec_json_set_u64(o, "disk_no", cli_u64(d->disk, "disk_no"), err) &&
        codec_json_set_text(o, "path", d->target.path, err) && codec_json_set_text(o, "format", format, err) &&
        codec_json_set_u64(o, "size", m->total.size, err) &&
        codec_json_set_u64(o, "transferred_bytes", m->total.transferred_bytes, err) &&
        codec_json_set_u64(o, "zero_bytes", m->total.zero_bytes, err);
    if (!fine) {
        json_decref(o);
        return false;
    }
    return codec_json_push(list, o, err);
}

static void say_disk(Restore *r, const RestoreDisk *d, const MoverResult *m, int64_t began_ms)
{
    char size[STR_SIZE_MAX], time[TEXT_DURATION];
    str_size(m->total.size, size);
    text_duration((uint64_t)(clock_mono_ms() - began_ms) / 1000, time);
    progress_end(&r->progress);
    if (!r->cli->values.quiet)
        progress_note(&r->progress, "disk %" PRIu64 " (%s): %s in %s", cli_u64(d->disk, "disk_no"),
                      cli_text(d->disk, "disk_key"), size, time);
}

static bool restore_all(Restore *r, json_t *done, Err *err)
{
    for (r->current = 0; r->current < r->len; r->current++) {
        const RestoreDisk *d = &r->disks[r->current];
        MoverResult m;
        int64_t began = clock_mono_ms();
        if (!restore_disk(r, d, &m, err)) {
            progress_end(&r->progress);
            explain(r, d, err);
            return err_context(err, "disk %" PRIu64 " (%s)", cli_u64(d->disk, "disk_no"),
                               cli_text(d->disk, "disk_key"));
        }
        r->items[r->current].done = m.total.size;
        say_disk(r, d, &m, began);
        if (!add_result(done, d, r->qcow2 ? "qcow2" : "raw", &m, err))
            return false;
    }
    return true;
}

static bool say(Restore *r, json_t *done, Err *err)
{
    cleanup_json json_t *o = json_object();
    if (!o)
        return err_no_memory(err);
    if (!codec_json_set_text(o, "backup_id", cli_text(r->backup, "backup_id"), err) ||
        !codec_json_set_bool(o, "suspect", cli_flag(r->backup, "suspect"), err) ||
        !codec_json_set_bool(o, "partial", cli_flag(r->backup, "partial"), err) ||
        !codec_json_set(o, "disks", json_incref(done), err))
        return false;
    if (cli_said_json(r->cli, o))
        return true;
    for (size_t i = 0; i < r->len; i++) {
        text_print_clean(stdout, r->disks[i].target.path);
        (void)putchar('\n');
    }
    return true;
}

static bool run(Restore *r, json_t *done, Err *err)
{
    const char *status = cli_text(r->backup, "status");
    if (!str_eq(status, "completed"))
        return err_set(err, ERR_CONFLICT, "backup %s is %s: there is nothing to restore",
                       cli_text(r->backup, "backup_id"), status);
    warn(r->backup);
    return choose(r, err) && check_room(r, err) && restore_all(r, done, err) && say(r, done, err);
}

bool command_restore(Cli *c, Err *err)
{
    cleanup_json json_t *backup = NULL, *done = json_array();
    cleanup(restore_clear) Restore r = {.cli = c, .qcow2 = c->values.format && str_eq(c->values.format, "qcow2")};
    cleanup_free char *path = cli_path("backups", c->words[0], NULL, err);
    if (!done)
        return err_no_memory(err);
    if (!check_options(&c->values, err) || !path || !cli_get(c, path, &backup, err))
        return false;
    r.backup = backup;
    progress_begin(&r.progress, stderr, c->values.quiet);
    bool fine = run(&r, done, err);
    if (!fine && r.made)
        (void)rmdir(r.made); // only if nothing is in it
    return fine;
}
