// Damage: hashes that stay broken until they are repaired, and single bytes that a verify has to find.
#include "steps.h"

#include "base/file.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

typedef struct Target { // a disk of a listed point
    RepoScan scan;
    const Record *rec;
    const RecordDisk *disk;
    const char *stem;
    Reference *ref;
} Target;

static bool pick(History *h, Target *t, Err *err)
{
    if (!repo_scan(&h->site->repo, &t->scan, err))
        return false;
    if (t->scan.len != h->site->len)
        return history_fail(err, "%zu points are listed instead of %zu", t->scan.len, h->site->len);
    size_t i = (size_t)rng_below(&h->rng, t->scan.len);
    const Point *newest = history_newest(h, (size_t)rng_below(&h->rng, h->vms_len));
    if (newest && rng_chance(&h->rng, 50)) // where it matters most
        for (i = 0; !str_eq(t->scan.records[i].backup_id, newest->id);)
            i++;
    t->rec = &t->scan.records[i];
    t->stem = t->scan.stems[i];
    t->disk = &t->rec->disks[rng_below(&h->rng, t->rec->disks_len)];
    Point *p = history_find(h, t->rec->backup_id);
    for (size_t k = 0; k < p->len; k++)
        if (str_eq(p->disks[k].key, t->disk->disk_key))
            t->ref = &p->disks[k];
    return true;
}

static bool put_file(const char *path, const char *bytes, size_t n, Err *err)
{
    cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    if (fd < 0)
        return err_set(err, ERR_IO, "%s cannot be written", path);
    return file_write(fd, bytes, n, err);
}

// Cuts it, or turns one bit over. n > 0.
static size_t spoil(Rng *rng, char *bytes, size_t n, uint64_t *ret_at)
{
    *ret_at = rng_below(rng, n);
    if (rng_chance(rng, 20))
        return (size_t)*ret_at;
    bytes[*ret_at] = (char)(bytes[*ret_at] ^ (char)(1u << rng_below(rng, 7)));
    return n;
}

// ---- hashes that stay damaged

static bool damage_hashes(History *h, const Target *t, const char *path, Err *err)
{
    char *kept = NULL;
    size_t n;
    uint64_t at = 0;
    if (!file_read(path, 1u << 28, &kept, &n, err))
        return false;
    t->ref->hidden = kept;
    t->ref->hidden_len = n;
    bool gone = rng_chance(&h->rng, 30);
    history_note(h, "%s of %s is %s", t->disk->hashes, t->disk->disk_key, gone ? "removed" : "damaged");
    if (gone)
        return unlink(path) == 0 || err_set(err, ERR_IO, "unlink");
    cleanup_free char *bytes = mem_calloc(1, n, err);
    if (!bytes)
        return false;
    memcpy(bytes, kept, n);
    size_t m = spoil(&h->rng, bytes, n, &at);
    return put_file(path, bytes, m, err);
}

static bool repair_hashes(History *h, const Target *t, const char *path, Err *err)
{
    history_note(h, "%s of %s is repaired", t->disk->hashes, t->disk->disk_key);
    if (!put_file(path, t->ref->hidden, t->ref->hidden_len, err))
        return false;
    free(mem_take(t->ref->hidden));
    return true;
}

// ---- a verify must find it

static bool read_all(Reader *r, uint64_t size, Err *err)
{
    cleanup_free uint8_t *p = mem_calloc(1, size, err);
    return p && reader_read(r, p, 0, (uint32_t)size, err);
}

// What `verify` does with one disk. False: damage was found.
static bool verify(History *h, const RepoScan *scan, const Target *t, Err *err)
{
    RepoChain chain;
    Reader *r = NULL;
    if (scan->problems_len > 0)
        return err_set(err, ERR_DAMAGED, "%s", scan->problems[0].error.details);
    const Record *rec = history_find_record((void *)(uintptr_t)scan, t->rec->backup_id);
    if (!rec || !repo_check_layer(&h->site->repo, rec, t->disk, REPO_CHECK_FILES, err) ||
        !repo_chain(&h->site->repo, rec, t->disk->disk_key, history_find_record, (void *)(uintptr_t)scan, &chain, err))
        return false;
    bool ok = reader_open(chain.layers, chain.len, &h->site->repo.geo, &r, err) && read_all(r, reader_size(r), err);
    reader_free(r);
    repo_chain_clear(&chain);
    return ok;
}

static bool spoil_and_verify(History *h, const Target *t, const char *path, Err *err)
{
    cleanup_free char *kept = NULL, *bytes = NULL;
    size_t n;
    uint64_t at = 0;
    RepoScan scan;
    Err found = ERR_INIT;
    if (!file_read(path, 1u << 28, &kept, &n, err) || !(bytes = mem_calloc(1, n, err)))
        return false;
    memcpy(bytes, kept, n);
    bool removed = rng_chance(&h->rng, 15);
    size_t m = removed ? 0 : spoil(&h->rng, bytes, n, &at);
    if (!(removed ? file_unlink(path, err) : put_file(path, bytes, m, err)) || !repo_scan(&h->site->repo, &scan, err))
        return false;
    bool missed = verify(h, &scan, t, &found);
    repo_scan_clear(&scan);
    h->spec->stats->flips++;
    if (missed)
        return history_fail(err, "a verify does not find %s, %s at %" PRIu64 " of %zu bytes", strrchr(path, '/') + 1,
                            removed      ? "removed"
                                : m == n ? "changed"
                                         : "cut",
                            at, n);
    return put_file(path, kept, n, err);
}

static bool spoil_target(History *h, const Target *t, Err *err)
{
    const Repo *r = &h->site->repo;
    cleanup_free char *hashes = repo_path_disk_file(r, t->rec->context, t->disk->disk_no, t->disk->hashes, err);
    cleanup_free char *image = repo_path_disk_file(r, t->rec->context, t->disk->disk_no, t->disk->image, err);
    cleanup_free char *record = repo_path_record(r, t->rec->context, t->stem, err);
    const char *const files[] = {hashes, image, record};
    bool any_hidden = false;
    if (!hashes || !image || !record)
        return false;
    if (t->ref->hidden)
        return repair_hashes(h, t, hashes, err);
    if (rng_chance(&h->rng, 40))
        return damage_hashes(h, t, hashes, err);
    for (size_t i = 0; i < h->site->len; i++)
        for (size_t d = 0; d < h->site->points[i].len; d++)
            any_hidden = any_hidden || h->site->points[i].disks[d].hidden;
    return any_hidden || spoil_and_verify(h, t, files[rng_below(&h->rng, ARRAY_LEN(files))], err);
}

bool steps_spoil(History *h, Err *err)
{
    Target t = {0};
    if (h->site->len == 0)
        return true;
    if (!pick(h, &t, err))
        return false;
    bool ok = spoil_target(h, &t, err);
    repo_scan_clear(&t.scan);
    return ok;
}
