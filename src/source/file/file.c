#include "source/file/file.h"

#include "base/str.h"
#include "source/file/raw.h"
#include "wire/child.h"
#include "wire/nbd.h"

#include <inttypes.h>

#define FILE_CONNECTIONS 4
#define FILE_URI_RECONNECT 4 // of a server that is not ours, maybe far away

typedef struct FileDisk {
    FileLayers layers; // none with a uri
    char *uri;
    Child *child;   // of a QCOW2
    Blocks *keeper; // of a QCOW2 or a uri: lives as long as the source, since qemu-nbd ends with its last client
} FileDisk;

typedef struct FileSource {
    Source s;
    FileDisk *disks;
    bool inconsistent;
} FileSource;

static bool check_spec(const json_t *spec, Err *err)
{
    FileSpec s;
    if (!file_spec_read(spec, &s, err))
        return false;
    file_spec_clear(&s);
    return true;
}

// Commas of a value are doubled in QEMU's options.
static bool add_value(StrBuf *b, const char *value, Err *err)
{
    for (; *value; value++)
        if (!str_add_bytes(b, value, 1, err) || (*value == ',' && !str_add(b, ",", err)))
            return false;
    return true;
}

static bool image_options(const FileLayers *l, bool inconsistent, StrBuf *b, Err *err)
{
    return str_addf(b, err,
                    "driver=qcow2,file.driver=%s,file.filename=", l->items[0].device ? "host_device" : "file") &&
        add_value(b, l->items[0].path, err) && (!inconsistent || str_add(b, ",force-share=on", err));
}

// The server's own words, where it said any, are better than "connection closed".
static bool explain(FileDisk *d, const char *path, Err *err)
{
    Err ignored = ERR_INIT;
    cleanup_free char *said = NULL;
    if (!child_said(d->child, &said, &ignored) || !said[0])
        return err_context(err, "%s", path);
    ErrCode code = strstr(said, " lock") ? ERR_BUSY : ERR_INVALID;
    err_clear(err);
    return err_set(err, code, "%s: %s", path, said);
}

static bool serve(FileDisk *d, bool inconsistent, Err *err)
{
    StrBuf options = STR_BUF(3 * SOURCE_TEXT_MAX);
    const char *path = d->layers.items[0].path;
    bool ok = image_options(&d->layers, inconsistent, &options, err);
    if (ok) {
        const char *argv[] = {"qemu-nbd", "--read-only", "--shared=0", "--image-opts", options.s, NULL};
        ok = child_start(argv, NULL, &d->child, err);
    }
    if (ok) {
        NbdSpec spec = {.socket = child_socket(d->child), .export_name = "", .read_only = true};
        ok = nbd_blocks_open(&spec, &d->keeper, err) || explain(d, path, err);
    }
    str_clear(&options);
    return ok;
}

static uint64_t estimate(const FileDisk *d, uint64_t size)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < d->layers.len; i++)
        sum += d->layers.items[i].allocated;
    return d->layers.len > 0 ? MIN(sum, size) : size;
}

static bool open_file(FileDisk *d, const FileSpecDisk *spec, bool inconsistent, SourceDisk *out, Err *err)
{
    if (!file_layers_open(spec->path, spec->format, inconsistent, &d->layers, err))
        return false;
    bool raw = d->layers.format == FILE_RAW;
    if (!raw && !serve(d, inconsistent, err))
        return false;
    out->size = raw ? d->layers.items[0].size : d->keeper->size;
    if (out->size == 0)
        return err_set(err, ERR_INVALID, "%s is a disk of no bytes", spec->path);
    // What was opened must be what was looked at.
    if (!file_layers_unchanged(&d->layers, inconsistent, err))
        return false;
    out->allocated_bytes = out->estimated_bytes = estimate(d, out->size);
    if (!inconsistent && !file_layers_token(&d->layers, &out->token, err))
        return false;
    out->label = mem_printf(err, "%s (%s)", spec->path, d->layers.format == FILE_QCOW2 ? "qcow2" : "raw");
    return out->label && mem_replace(&out->backing_identity, spec->path, err);
}

static bool open_uri(FileDisk *d, const FileSpecDisk *spec, SourceDisk *out, Err *err)
{
    NbdSpec nbd = {.uri = spec->uri, .read_only = true};
    if (!mem_replace(&d->uri, spec->uri, err) || !nbd_blocks_open(&nbd, &d->keeper, err))
        return false;
    out->size = d->keeper->size;
    if (out->size == 0)
        return err_set(err, ERR_INVALID, "the export has no bytes");
    out->allocated_bytes = out->estimated_bytes = out->size;
    return mem_replace(&out->label, "NBD export", err) && mem_replace(&out->backing_identity, "", err);
}

static bool note_unseen(FileSource *f, const char *key, Err *err)
{
    f->s.consistency_detail =
        mem_printf(err,
                   "disk %s is an NBD export, whose writers cannot be seen: it is of one instant only if nobody "
                   "wrote to it meanwhile",
                   key);
    return f->s.consistency_detail != NULL;
}

static bool open_disk(FileSource *f, const FileSpecDisk *spec, const SourceRequest *req, Err *err)
{
    size_t i = f->s.disks_len++; // what there is of it is freed with the source
    SourceDisk *out = &f->s.disks[i];
    out->tracking = "none";
    if (source_cancelled(req))
        return err_set(err, ERR_CANCELLED, "cancelled while the source was opened");
    if (!mem_replace(&out->key, spec->key, err) || !source_mint(&out->change_id, err))
        return false;
    if (source_parent(req, spec->key) && !mem_replace(&out->lost, "nothing tracks a file's changes", err))
        return false;
    bool ok =
        spec->path ? open_file(&f->disks[i], spec, f->inconsistent, out, err) : open_uri(&f->disks[i], spec, out, err);
    const SourceInterrupted *before = source_interrupted(req, spec->key);
    out->resumes = ok && before && out->token && str_eq(before->token, out->token);
    return (ok && (!spec->uri || f->s.consistency_detail || note_unseen(f, spec->key, err))) ||
        err_context(err, "disk %s", spec->key);
}

static bool open_disks(FileSource *f, const FileSpec *spec, const SourceRequest *req, Err *err)
{
    f->inconsistent = spec->inconsistent;
    f->disks = mem_calloc(spec->len, sizeof(*f->disks), err);
    f->s.disks = mem_calloc(spec->len, sizeof(*f->s.disks), err);
    if (!f->disks || !f->s.disks)
        return false;
    for (size_t i = 0; i < spec->len; i++) {
        bool excluded = source_is_excluded(req, spec->disks[i].key);
        if (excluded ? !source_leave_out(&f->s, spec->disks[i].key, err) : !open_disk(f, &spec->disks[i], req, err))
            return false;
    }
    if (f->s.disks_len == 0)
        return err_set(err, ERR_INVALID, "all disks are excluded");
    return true;
}

static bool file_close(Source *s, bool completed, Err *err);

static bool file_open(const SourceRequest *req, Source **ret, Err *err)
{
    FileSpec spec;
    FileSource *f = mem_calloc(1, sizeof(*f), err);
    if (!f)
        return false;
    f->s.ops = &source_file_ops;
    f->s.consistency = "crash";
    bool ok = file_spec_read(req->spec, &spec, err);
    if (ok) {
        if (spec.inconsistent)
            f->s.consistency = "inconsistent";
        ok = open_disks(f, &spec, req, err);
        file_spec_clear(&spec);
    }
    if (!ok) {
        (void)file_close(&f->s, false, err); // nothing of a file source can fail to close
        return false;
    }
    *ret = &f->s;
    return true;
}

static bool file_blocks(Source *s, size_t disk, bool with_changes, Blocks **ret, Err *err)
{
    FileSource *f = (FileSource *)s;
    const FileDisk *d = &f->disks[disk];
    if (with_changes)
        return err_set(err, ERR_UNSUPPORTED, "nothing tracks a file's changes");
    if (!d->keeper)
        return file_raw_open(&d->layers.items[0], ret, err);
    NbdSpec spec = {
        .uri = d->uri,
        .socket = d->child ? child_socket(d->child) : NULL,
        .connections = FILE_CONNECTIONS,
        .read_only = true,
        .want_zeros = true,
        .require_zeros = d->child != NULL,
        .reconnects = d->uri ? FILE_URI_RECONNECT : 0,
    };
    Blocks *b;
    if (!nbd_blocks_open(&spec, &b, err))
        return err_context(err, "disk %s", s->disks[disk].key);
    if (!nbd_blocks_same(b, d->keeper)) {
        b->ops->free(b);
        return err_set(err, ERR_CONFLICT, "disk %s: another export is served than when the backup began",
                       s->disks[disk].key);
    }
    *ret = b;
    return true;
}

static bool file_since(Source *s, size_t disk, Blocks **ret, Err *err)
{
    (void)s, (void)disk, (void)err;
    *ret = NULL; // its files are the very same
    return true;
}

static bool file_intact(Source *s, Err *err)
{
    FileSource *f = (FileSource *)s;
    for (size_t i = 0; i < s->disks_len; i++) {
        const FileDisk *d = &f->disks[i];
        if (d->child && !child_alive(d->child))
            return err_set(err, ERR_UNAVAILABLE, "disk %s: its qemu-nbd ended early", s->disks[i].key);
        if (!file_layers_unchanged(&d->layers, f->inconsistent, err))
            return err_context(err, "disk %s", s->disks[i].key);
    }
    return true;
}

static bool file_close(Source *s, bool completed, Err *err)
{
    FileSource *f = (FileSource *)s;
    (void)completed; // no tracking that could go
    (void)err;
    for (size_t i = 0; i < s->disks_len; i++) {
        FileDisk *d = &f->disks[i];
        blocks_cleanup(&d->keeper);
        child_stop(d->child);
        file_layers_clear(&d->layers);
        free(d->uri);
    }
    free(f->disks);
    source_clear(s);
    free(f);
    return true;
}

const SourceOps source_file_ops = {
    .type = "file",
    .check_spec = check_spec,
    .open = file_open,
    .blocks = file_blocks,
    .since = file_since,
    .intact = file_intact,
    .close = file_close,
};
