// Restore points of two small disks, made with the real engine, for tests of the repository.
#pragma once

#include "base/file.h"
#include "base/str.h"
#include "image/repo.h"
#include "image/writer.h"
#include "unit.h"

#define POINT_DISKS 2
#define POINT_VM "11111111-aaaa-4bbb-8ccc-222222222222"

typedef struct Point {
    Record rec;
    char stem[64];
    char attempt[16];
    uint8_t fill; // seeds the disks' bytes
} Point;

static const uint64_t point_sizes[POINT_DISKS] = {200001, 65536};

static inline char *point_dup(const char *s)
{
    char *copy = strdup(s);
    assert_non_null(copy);
    return copy;
}

// The disk's bytes: half of them change with `fill`, the others with the disk only.
static inline uint8_t *point_bytes(size_t disk, uint8_t fill)
{
    uint8_t *p = malloc(point_sizes[disk]);
    assert_non_null(p);
    for (uint64_t i = 0; i < point_sizes[disk]; i++)
        p[i] = (uint8_t)((i / 4096) * 7 + disk + (i < point_sizes[disk] / 2 ? fill : 1));
    return p;
}

static inline char *point_file(const Repo *r, const char *context, unsigned disk, const char *name)
{
    Err err = ERR_INIT;
    char *path = repo_path_disk_file(r, context, disk, name, &err);
    if (!path)
        fail_msg("%s", err.details);
    return path;
}

// Writes one disk's image and hashes under their partial names, and fills its part of the record.
static inline void point_disk(const Repo *r, Point *p, const Point *parent, unsigned no, unsigned compression)
{
    Err err = ERR_INIT;
    RecordDisk *d = &p->rec.disks[no];
    const RecordDisk *before = parent ? &parent->rec.disks[no] : NULL;
    char name[200], key[16], *folder, *below_image = NULL, *below_hashes = NULL;
    (void)snprintf(key, sizeof key, "key-%u", no);
    *d = (RecordDisk){.disk_key = point_dup(key),
                      .disk_id = 2000 + no,
                      .disk_no = no,
                      .label = point_dup(""),
                      .backing_identity = point_dup(""),
                      .size = point_sizes[no],
                      .mode = before ? DISK_COMPARE : DISK_FULL,
                      .reason = before ? CHAIN_NOT_TRACKED : CHAIN_FIRST,
                      .reason_text = point_dup(""),
                      .change_id = point_dup("52d0eb97-27ad-4c3d-874a-c34e85f2ea95/1"),
                      .chain_length = before ? before->chain_length + 1 : 1};
    (void)snprintf(name, sizeof name, "%s-%s.qcow2", p->stem, before ? "incr" : "full");
    d->image = point_dup(name);
    (void)snprintf(name, sizeof name, "%s-%s.hashes", p->stem, before ? "incr" : "full");
    d->hashes = point_dup(name);
    ChainHashes *chain = NULL;
    if (before) {
        d->backing_name = point_dup(before->image);
        d->parent_backup_id = point_dup(parent->rec.backup_id);
        below_image = point_file(r, p->rec.context, no, before->image);
        below_hashes = point_file(r, p->rec.context, no, before->hashes);
        assert_int_equal(before->chain_length, 1); // one layer is enough here
        ChainLayerPath layer = {below_image, below_hashes};
        assert_ok(chain_hashes_open(&layer, 1, &r->geo, &chain, &err), &err);
    }
    assert_ok(repo_disk_folder(r, p->rec.context, no, &folder, &err), &err);
    char image[1200], hashes[1200];
    (void)snprintf(image, sizeof image, "%s/%s.partial-%s", folder, d->image, p->attempt);
    (void)snprintf(hashes, sizeof hashes, "%s/%s.partial-%s", folder, d->hashes, p->attempt);
    WriterSpec spec = {.image_path = image,
                       .hashes_path = hashes,
                       .backing_name = d->backing_name,
                       .size = d->size,
                       .cluster_bits = (uint32_t)__builtin_ctz(r->info.cluster_size),
                       .hash = r->info.hash,
                       .mode = d->mode,
                       .parent = chain,
                       .compression = compression};
    Writer *w;
    HashesSummary s;
    uint8_t *bytes = point_bytes(no, p->fill);
    assert_ok(writer_open(&spec, &w, &err), &err);
    uint32_t first = MIN(131072u, (uint32_t)d->size);
    assert_ok(writer_write(w, bytes, 0, first, &err), &err);
    if (first < d->size)
        assert_ok(writer_write(w, bytes + first, first, (uint32_t)d->size - first, &err), &err);
    assert_ok(writer_seal(w, NULL, &s, &d->hashes_digest, &err), &err);
    writer_free(w);
    chain_hashes_free(chain);
    d->root = s.root;
    d->metadata = s.metadata;
    d->image_bytes = s.image_bytes;
    d->stored_bytes = s.stored_clusters * r->info.cluster_size;
    free(bytes);
    free(folder);
    free(below_image);
    free(below_hashes);
}

// Everything that a backup does before repo_commit(). `second` names it, and orders it.
static inline Point point_make_with(const Repo *r, const char *context, unsigned second, const Point *parent,
                                    uint8_t fill, const char *attempt, unsigned compression)
{
    Point p = {.fill = fill};
    char id[64];
    (void)snprintf(id, sizeof id, "backup-web-%u", second);
    (void)snprintf(p.stem, sizeof p.stem, "backup-web-%u", second);
    (void)snprintf(p.attempt, sizeof p.attempt, "%s", attempt);
    p.rec = (Record){.backup_id = point_dup(id),
                     .vm_id = point_dup(POINT_VM),
                     .vm_name = point_dup("web"),
                     .source_type = point_dup("file"),
                     .repository_uuid = point_dup(r->info.uuid),
                     .context = point_dup(context),
                     .parent_backup_id = parent ? point_dup(parent->rec.backup_id) : NULL,
                     .sequence = second,
                     .requested_type = parent ? BACKUP_INCREMENTAL : BACKUP_FULL,
                     .type = parent ? BACKUP_INCREMENTAL : BACKUP_FULL,
                     .reason = parent ? CHAIN_NONE : CHAIN_FIRST,
                     .consistency = point_dup("crash"),
                     .left_out = point_dup(""),
                     .created_us = second * INT64_C(1000000),
                     .completed_us = second * INT64_C(1000000) + 1};
    p.rec.disks = calloc(POINT_DISKS, sizeof *p.rec.disks);
    assert_non_null(p.rec.disks);
    p.rec.disks_len = POINT_DISKS;
    for (unsigned no = 0; no < POINT_DISKS; no++)
        point_disk(r, &p, parent, no, compression);
    return p;
}

static inline Point point_make(const Repo *r, const char *context, unsigned second, const Point *parent, uint8_t fill,
                               const char *attempt)
{
    return point_make_with(r, context, second, parent, fill, attempt, 0);
}

static inline void point_clear(Point *p)
{
    record_clear(&p->rec);
}

static inline const Record *point_find(void *ctx, const char *backup_id)
{
    const RepoScan *s = ctx;
    for (size_t i = 0; i < s->len; i++)
        if (str_eq(s->records[i].backup_id, backup_id))
            return &s->records[i];
    return NULL;
}

// Is the point listed?
static inline bool point_listed(const RepoScan *s, const Point *p)
{
    for (size_t i = 0; i < s->len; i++)
        if (str_eq(s->stems[i], p->stem))
            return true;
    return false;
}

static inline bool point_disk_whole(const Repo *r, RepoScan *s, const Record *rec, unsigned no, uint8_t fill, Err *err)
{
    RepoChain chain;
    Reader *reader;
    if (!repo_check_layer(r, rec, &rec->disks[no], REPO_CHECK_FILES, err) ||
        !repo_chain(r, rec, rec->disks[no].disk_key, point_find, s, &chain, err))
        return false;
    uint64_t size = point_sizes[no];
    bool ok = reader_open(chain.layers, chain.len, &r->geo, &reader, err);
    if (ok) {
        uint8_t *want = point_bytes(no, fill), *got = malloc(size);
        assert_non_null(got);
        ok = reader_read(reader, got, 0, (uint32_t)size, err) &&
            ((reader_size(reader) == size && memcmp(got, want, size) == 0) ||
             err_set(err, ERR_DAMAGED, "disk %u reads as other bytes", no));
        free(want);
        free(got);
        reader_free(reader);
    }
    repo_chain_clear(&chain);
    return ok;
}

// Listed, and every byte of every disk comes back; else false, and what is wrong.
static inline bool point_whole(const Repo *r, RepoScan *s, const Point *p, Err *err)
{
    const Record *rec = point_find(s, p->rec.backup_id);
    if (!rec)
        return err_set(err, ERR_NOT_FOUND, "%s is not listed", p->stem);
    for (unsigned no = 0; no < POINT_DISKS; no++)
        if (!point_disk_whole(r, s, rec, no, p->fill, err))
            return false;
    return true;
}

static inline void point_check(const Repo *r, RepoScan *s, const Point *p)
{
    Err err = ERR_INIT;
    assert_ok(point_whole(r, s, p, &err), &err);
}

// The number of files below the repository that have this beginning.
static inline unsigned point_count_files(const Repo *r, const char *context, const char *begins)
{
    Err err = ERR_INIT;
    FileList list;
    unsigned n = 0;
    char path[1200];
    for (int no = -1; no < POINT_DISKS; no++) {
        if (no < 0)
            (void)snprintf(path, sizeof path, "%s/%s", r->path, context);
        else
            (void)snprintf(path, sizeof path, "%s/%s/disk-%d", r->path, context, no);
        if (!file_is_dir(path))
            continue;
        assert_ok(file_list(path, 1000, &list, &err), &err);
        for (size_t i = 0; i < list.len; i++)
            n += str_starts(list.names[i], begins);
        file_list_clear(&list);
    }
    return n;
}

// What a recovery leaves: no problem, no orphan, `full` as ever; `incr` whole where it is listed, else without a trace.
static inline void point_check_settled(const Repo *r, RepoScan *scan, const char *context, const Point *full,
                                       const Point *incr, bool listed)
{
    assert_int_equal(scan->problems_len, 0);
    assert_int_equal(scan->orphans_len, 0);
    point_check(r, scan, full);
    assert_int_equal(point_listed(scan, incr), listed);
    if (listed)
        point_check(r, scan, incr);
    assert_int_equal(point_count_files(r, context, incr->stem), listed ? 5 : 0);
}
