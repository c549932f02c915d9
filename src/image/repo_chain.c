// The chain of a point's disk as the records tell it, and the check of one layer's files against its record.

#include "base/str.h"
#include "image/metadata.h"
#include "image/repo_internal.h"

#include <errno.h>
#include <sys/stat.h>

static const RecordDisk *find_disk(const Record *rec, const char *disk_key)
{
    for (size_t i = 0; i < rec->disks_len; i++)
        if (str_eq(rec->disks[i].disk_key, disk_key))
            return &rec->disks[i];
    return NULL;
}

void repo_chain_clear(RepoChain *c)
{
    for (size_t i = 0; i < c->len; i++) {
        free((char *)c->layers[i].image);
        free((char *)c->layers[i].hashes);
        free((char *)c->layers[i].backing_name);
    }
    free(c->layers);
    free(c->records);
    free(c->disks);
    *c = (RepoChain){0};
}

static bool add_layer(const Repo *r, const Record *rec, const RecordDisk *d, RepoChain *c, Err *err)
{
    ReaderLayer *l = &c->layers[c->len];
    c->records[c->len] = rec;
    c->disks[c->len] = d;
    c->len++; // from here on repo_chain_clear() knows it
    l->image = repo_path_disk_file(r, rec->context, d->disk_no, d->image, err);
    l->hashes = repo_path_disk_file(r, rec->context, d->disk_no, d->hashes, err);
    if (!l->image || !l->hashes)
        return false;
    return !d->backing_name || (l->backing_name = mem_strdup(d->backing_name, err)) != NULL;
}

// Does the parent continue the chain of (rec, d)? Everything that both records say must agree.
static bool check_parent(const Record *rec, const RecordDisk *d, const Record *parent, const RecordDisk *p, Err *err)
{
    const char *what = NULL;
    if (!p)
        what = "does not hold the disk";
    else if (!str_eq(parent->vm_id, rec->vm_id))
        what = "is a point of another VM";
    else if (!str_eq(parent->repository_uuid, rec->repository_uuid) || !str_eq(parent->context, rec->context) ||
             p->disk_no != d->disk_no)
        what = "lies in another folder";
    else if (!str_eq(p->image, d->backing_name))
        what = "has an image of another name";
    else if (p->chain_length + 1 != d->chain_length || parent->sequence >= rec->sequence)
        what = "is not the point before";
    return !what || err_set(err, ERR_DAMAGED, "the parent %s %s", d->parent_backup_id, what);
}

static bool build(const Repo *r, const Record *rec, const char *disk_key, RepoFind find, void *ctx, RepoChain *c,
                  Err *err)
{
    const RecordDisk *d = find_disk(rec, disk_key);
    if (!d)
        return err_set(err, ERR_NOT_FOUND, "%s holds no disk '%s'", rec->backup_id, disk_key);
    size_t n = d->chain_length;
    if (n == 0 || n > CHAIN_LAYERS_MAX)
        return err_set(err, ERR_DAMAGED, "%s: a chain of %zu images", rec->backup_id, n);
    if (!(c->layers = mem_calloc(n, sizeof *c->layers, err)) ||
        !(c->records = mem_calloc(n, sizeof *c->records, err)) || !(c->disks = mem_calloc(n, sizeof *c->disks, err)) ||
        !add_layer(r, rec, d, c, err))
        return false;
    // chain_length falls by one with each step: no more steps than there is room for.
    while (d->parent_backup_id) {
        const Record *parent = find(ctx, d->parent_backup_id);
        if (!parent)
            return err_set(err, ERR_DAMAGED, "%s stands on %s, which is not there", rec->backup_id,
                           d->parent_backup_id);
        const RecordDisk *p = find_disk(parent, disk_key);
        if (!check_parent(rec, d, parent, p, err) || !add_layer(r, parent, p, c, err))
            return false;
        rec = parent;
        d = p;
    }
    return c->len == n ||
        err_set(err, ERR_DAMAGED, "%s: %zu images, %zu on record", c->records[0]->backup_id, c->len, n);
}

bool repo_chain(const Repo *r, const Record *rec, const char *disk_key, RepoFind find, void *ctx, RepoChain *ret,
                Err *err)
{
    RepoChain c = {0};
    if (!build(r, rec, disk_key, find, ctx, &c, err)) {
        repo_chain_clear(&c);
        return err_context(err, "chain of %s", rec->backup_id);
    }
    *ret = c;
    return true;
}

// ---- one layer's files

// bytes NULL: of any length.
static bool check_file(const char *path, const uint64_t *bytes, Err *err)
{
    struct stat st;
    if (lstat(path, &st) != 0) {
        if (errno != ENOENT && errno != ENOTDIR)
            return err_errno(err, errno, "cannot look at %s", path);
        return err_set(err, ERR_DAMAGED, "%s is missing", path);
    }
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_DAMAGED, "%s is not a regular file", path);
    if (bytes && (uint64_t)st.st_size != *bytes)
        return err_set(err, ERR_DAMAGED, "%s has %llu bytes, its record says %llu", path,
                       (unsigned long long)st.st_size, (unsigned long long)*bytes);
    return true;
}

// A cause of any kind becomes damage, unless it is one that may pass.
static bool as_damage(Err *err, const char *path, const Err *cause)
{
    bool passing = err_retryable(cause->code) || cause->code == ERR_NO_MEMORY || cause->code == ERR_IO;
    return err_set(err, passing ? cause->code : ERR_DAMAGED, "%s: %s", path, cause->details);
}

static bool check_hashes(const Repo *r, const RecordDisk *d, const char *path, Err *err)
{
    Err cause = ERR_INIT;
    Hash digest;
    HashesFile *f;
    if (!check_file(path, NULL, err))
        return false;
    if (!hashes_file_digest(path, &r->info.hash, &digest, &cause))
        return as_damage(err, path, &cause);
    if (!hash_equal(&digest, &d->hashes_digest))
        return err_set(err, ERR_DAMAGED, "%s is not what its record says: its digest differs", path);
    if (!hashes_open(path, &r->geo, &f, &cause))
        return as_damage(err, path, &cause);
    const HashesSummary *s = hashes_summary(f);
    bool same = s->size == d->size && s->image_bytes == d->image_bytes && hash_equal(&s->root, &d->root) &&
        hash_equal(&s->metadata, &d->metadata);
    hashes_free(f);
    return same || err_set(err, ERR_DAMAGED, "%s and its record do not agree", path);
}

bool repo_check_layer(const Repo *r, const Record *rec, const RecordDisk *disk, RepoCheckDepth depth, Err *err)
{
    cleanup_free char *image = repo_path_disk_file(r, rec->context, disk->disk_no, disk->image, err);
    cleanup_free char *hashes = repo_path_disk_file(r, rec->context, disk->disk_no, disk->hashes, err);
    if (!image || !hashes || !check_file(image, &disk->image_bytes, err) || !check_hashes(r, disk, hashes, err))
        return false;
    if (depth == REPO_CHECK_HASHES)
        return true;
    Err cause = ERR_INIT;
    Hash metadata;
    uint64_t bytes;
    if (!image_metadata_hash(image, &r->geo, &metadata, &bytes, &cause))
        return as_damage(err, image, &cause);
    if (bytes != disk->image_bytes || !hash_equal(&metadata, &disk->metadata))
        return err_set(err, ERR_DAMAGED, "%s is not what its record says: header, tables or refcounts differ", image);
    return true;
}
