// The judge: what is listed is what must be, and every byte of it is as the guest had it.
#include "check.h"

#include "base/file.h"
#include "base/proc.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

static bool run_tool(const char *const *argv, Err *err)
{
    cleanup_free char *out = NULL, *errors = NULL;
    int status;
    if (!proc_run(argv, NULL, 120000, 1u << 20, &out, &errors, &status, err))
        return false;
    return status == 0 || history_fail(err, "%s %s says %d: %s %s", argv[0], argv[1], status, out, errors);
}

static bool same_file(const char *path, const Reference *ref, uint64_t size, Err *err)
{
    cleanup_free char *bytes = NULL;
    size_t n;
    if (!file_read(path, 1u << 30, &bytes, &n, err))
        return false;
    return (n == size && memcmp(bytes, ref->bytes, ref->size) == 0 && hash_is_zero(bytes + ref->size, n - ref->size)) ||
        history_fail(err, "%s is not the disk", path);
}

// A raw file of the reference; QEMU knows whole sectors only.
static bool write_raw(const char *path, const Reference *ref, Err *err)
{
    (void)unlink(path);
    if (!file_create_durable(path, ref->bytes, ref->size, 0600, err))
        return false;
    return truncate(path, (off_t)align_up(ref->size, GUEST_SECTOR)) == 0 || err_set(err, ERR_IO, "%s: truncate", path);
}

bool check_by_qemu(History *h, const char *image, const Reference *ref, Err *err)
{
    cleanup_free char *raw = mem_printf(err, "%s/raw", h->spec->folder);
    const char *const check[] = {"qemu-img", "check", "-q", "-f", "qcow2", image, NULL};
    const char *const compare[] = {"qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, image, NULL};
    const char *const convert[] = {"qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-t", "unsafe", image, raw, NULL};
    if (!raw || !run_tool(check, err))
        return false;
    h->spec->stats->qemu_checks++;
    bool ok;
    if (rng_chance(&h->check_rng, 50))
        ok = write_raw(raw, ref, err) && run_tool(compare, err);
    else
        ok = run_tool(convert, err) && same_file(raw, ref, align_up(ref->size, GUEST_SECTOR), err);
    (void)unlink(raw);
    return ok;
}

// ---- our own reader

static bool read_whole(History *h, Reader *r, uint8_t *p, uint64_t size, Err *err)
{
    uint64_t most = rng_chance(&h->check_rng, 80) ? size : rng_between(&h->check_rng, 1 + size / 40, size);
    for (uint64_t at = 0, n; at < size; at += n) {
        n = most == size ? size : rng_between(&h->check_rng, 1 + most / 4, most);
        n = MIN(n, size - at);
        if (!reader_read(r, p + at, at, (uint32_t)n, err))
            return false;
    }
    return true;
}

static bool judge_extents(Reader *r, const Reference *ref, Err *err)
{
    cleanup(extent_vec_clear) ExtentVec v = {0};
    uint64_t at = 0;
    if (!reader_extents(r, 0, ref->size, &v, err))
        return false;
    for (size_t i = 0; i < v.len; at += v.items[i++].length) {
        const Extent *e = &v.items[i];
        if (e->offset != at || e->length > ref->size - at)
            return history_fail(err, "the reader's extents have gaps");
        if (e->zero && !hash_is_zero(ref->bytes + at, e->length))
            return history_fail(err, "the reader calls zero what is not, at %" PRIu64, at);
    }
    return at == ref->size || history_fail(err, "the reader's extents end early");
}

static bool judge_reader(History *h, const RepoChain *chain, const Reference *ref, Err *err)
{
    Reader *r = NULL;
    cleanup_free uint8_t *got = mem_calloc(1, ref->size, err);
    if (!got || !reader_open(chain->layers, chain->len, &h->site->repo.geo, &r, err))
        return false;
    bool ok = reader_size(r) == ref->size ||
        history_fail(err, "%" PRIu64 " bytes instead of %" PRIu64, reader_size(r), ref->size);
    ok = ok && read_whole(h, r, got, ref->size, err);
    if (ok && memcmp(got, ref->bytes, ref->size) != 0) {
        uint64_t at = 0;
        while (got[at] == ref->bytes[at])
            at++;
        ok = history_fail(err, "the bytes differ, from %" PRIu64 " on", at);
    }
    ok = ok && judge_extents(r, ref, err);
    if (ok && rng_chance(&h->check_rng, h->spec->qemu)) // a restore in every form
        ok = restore_check(h, r, ref, err);
    reader_free(r);
    return ok;
}

// ---- one disk of one point

static Reference *find_reference(Point *p, const char *key)
{
    for (size_t i = 0; p && i < p->len; i++)
        if (str_eq(p->disks[i].key, key))
            return &p->disks[i];
    return NULL;
}

bool check_is_affected(History *h, const RepoChain *chain, const char *key)
{
    for (size_t i = 0; i < chain->len; i++) {
        const Reference *ref = find_reference(history_find(h, chain->records[i]->backup_id), key);
        if (ref && ref->hidden)
            return true;
    }
    return false;
}

static bool check_chain(History *h, const RepoChain *chain, const RecordDisk *d, const Reference *ref, bool deep,
                        Err *err)
{
    Err why = ERR_INIT;
    bool affected = check_is_affected(h, chain, ref->key);
    for (size_t i = 0; deep && !affected && i < chain->len; i++)
        if (!repo_check_layer(&h->site->repo, chain->records[i], chain->disks[i], REPO_CHECK_FILES, err))
            return false;
    if (!judge_reader(h, chain, ref, &why)) {
        // With damaged hashes below, an error is right; wrong bytes never are.
        if (!affected || str_starts(why.details, "WRONG"))
            return err_set(err, why.code, "%s", why.details);
    }
    if (!hash_equal(&d->root, &ref->root))
        return history_fail(err, "the record's root hash is not the disk's");
    return !rng_chance(&h->check_rng, h->spec->qemu) || check_by_qemu(h, chain->layers[0].image, ref, err);
}

static bool check_disk(History *h, RepoScan *scan, const Record *rec, const RecordDisk *d, bool deep, Err *err)
{
    RepoChain chain;
    const Reference *ref = find_reference(history_find(h, rec->backup_id), d->disk_key);
    if (!ref)
        return history_fail(err, "the disk %s is not of this point", d->disk_key);
    if (!repo_chain(&h->site->repo, rec, d->disk_key, history_find_record, scan, &chain, err))
        return false;
    bool ok = check_chain(h, &chain, d, ref, deep, err);
    repo_chain_clear(&chain);
    h->spec->stats->disks_checked++;
    return ok || err_context(err, "disk %s (%s)", d->disk_key, disk_mode_name(d->mode));
}

// ---- all of it

static bool check_list(History *h, const RepoScan *scan, Err *err)
{
    bool hidden = false;
    for (size_t i = 0; i < h->site->len; i++) {
        if (!history_find_record((void *)(uintptr_t)scan, h->site->points[i].id))
            return history_fail(err, "%s is not listed any more", h->site->points[i].id);
        for (size_t d = 0; d < h->site->points[i].len; d++)
            hidden = hidden || h->site->points[i].disks[d].hidden;
    }
    if (scan->len != h->site->len)
        return history_fail(err, "%zu points are listed instead of %zu", scan->len, h->site->len);
    if (scan->problems_len > 0 && !hidden)
        return history_fail(err, "%s: %s", scan->problems[0].path, scan->problems[0].error.details);
    return scan->orphans_len == 0 || history_fail(err, "left behind: %s", scan->orphans[0]);
}

static bool check_point(History *h, RepoScan *scan, const Record *rec, bool deep, Err *err)
{
    const Point *p = history_find(h, rec->backup_id);
    if (rec->disks_len != p->len)
        return history_fail(err, "%zu disks instead of %zu", rec->disks_len, p->len);
    for (size_t i = 0; i < rec->disks_len; i++)
        if (!check_disk(h, scan, rec, &rec->disks[i], deep, err))
            return false;
    return true;
}

bool check_all(History *h, bool at_the_end, Err *err)
{
    RepoScan scan;
    if (!repo_scan(&h->site->repo, &scan, err))
        return false;
    bool ok = check_list(h, &scan, err);
    for (size_t i = 0; ok && i < scan.len; i++) {
        const Record *rec = &scan.records[i];
        const Point *newest = history_newest(h, history_find(h, rec->backup_id)->vm);
        bool deep = at_the_end || str_eq(newest->id, rec->backup_id);
        ok = check_point(h, &scan, rec, deep, err) || err_context(err, "point %s", rec->backup_id);
    }
    // However few are asked for, QEMU sees some image of every third history.
    if (ok && at_the_end && scan.len > 0 && rng_chance(&h->check_rng, MIN(100, h->spec->qemu * 35))) {
        const Record *rec = &scan.records[rng_below(&h->check_rng, scan.len)];
        const RecordDisk *d = &rec->disks[rng_below(&h->check_rng, rec->disks_len)];
        cleanup_free char *image = repo_path_disk_file(&h->site->repo, rec->context, d->disk_no, d->image, err);
        ok = image &&
            (check_by_qemu(h, image, find_reference(history_find(h, rec->backup_id), d->disk_key), err) ||
             err_context(err, "point %s, disk %s", rec->backup_id, d->disk_key));
    }
    repo_scan_clear(&scan);
    return ok;
}
