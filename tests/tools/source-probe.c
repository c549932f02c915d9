// Opens a source, copies its disks to raw files, says what it found as JSON lines on stdout: the sources are
// tested with it, without a hub.
//
//   source-probe REQUEST.json
//
// Request: {"spec", "job_id", "vm_id", "repository_uuid", "excluded": [key], "scratch", "out": folder,
//           "parents": [{"disk_key", "change_id", "backing_identity", "tracking", "size"}],
//           "completed": bool, "hold": [phase]}
// A disk whose base_change_id is its parent's is copied as an increment: only what changed and what the map calls
// zero is written into <out>/<key>, which must be there. Any other is copied whole. At each phase of "hold" ("opened",
// "copied") a line is awaited on stdin before it goes on. SIGTERM cancels.
#include "base/file.h"
#include "base/str.h"
#include "codec/json.h"
#include "source/source.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define STEP (UINT64_C(256) << 20)
#define CHUNK (UINT64_C(1) << 20)

static atomic_bool cancelled;

typedef struct Probe {
    json_t *request;
    SourceRequest source;
    const char *out;
} Probe;

typedef struct Done {
    BlocksReq req;
    bool done;
    Err err;
} Done;

typedef struct Counts {
    uint64_t read, zero, changed;
} Counts;

static void say(json_t *line)
{
    char *text = json_dumps(line, JSON_COMPACT | JSON_SORT_KEYS);
    (void)printf("%s\n", text);
    (void)fflush(stdout);
    free(text);
    json_decref(line);
}

static void on_done(BlocksReq *req, const Err *err)
{
    Done *d = req->ctx;
    d->done = true;
    if (err)
        d->err = *err;
}

static bool read_all(Blocks *b, void *p, uint64_t offset, uint32_t length, Err *err)
{
    Done d = {.req = {.done = on_done, .ctx = &d}, .err = ERR_INIT};
    if (!b->ops->read(b, p, offset, length, &d.req, err))
        return false;
    while (!d.done) {
        struct pollfd fds[BLOCKS_FDS_MAX];
        size_t n = b->ops->fds(b, fds);
        if (poll(fds, n, 100) < 0 && errno != EINTR)
            return err_errno(err, errno, "poll");
        bool stop = atomic_load(&cancelled);
        if (stop || !b->ops->dispatch(b, fds, n, err)) {
            if (!d.done)
                b->ops->abort(b);
            return stop ? err_set(err, ERR_CANCELLED, "cancelled") : false;
        }
    }
    if (d.err.code != ERR_NONE)
        *err = d.err;
    return err->code == ERR_NONE;
}

static bool copy_range(Blocks *b, int fd, uint64_t offset, uint64_t length, bool zero, Counts *c, Err *err)
{
    static char buffer[CHUNK], zeros[CHUNK];
    for (uint64_t n; length > 0; offset += n, length -= n) {
        n = MIN(length, CHUNK);
        if (!zero && !read_all(b, buffer, offset, (uint32_t)n, err))
            return false;
        if (!file_pwrite(fd, zero ? zeros : buffer, n, offset, err))
            return false;
        *(zero ? &c->zero : &c->read) += n;
    }
    return true;
}

// [offset, end): zeros first, then what changed (or, in a whole copy, everything), but for those zeros.
static bool copy_step(Blocks *b, int fd, uint64_t offset, uint64_t end, bool increment, Counts *c, Err *err)
{
    ExtentVec changed = {0}, zeros = {0};
    bool ok = b->ops->extents(b, offset, end - offset, &changed, &zeros, err);
    if (ok && !increment)
        ok = extent_vec_push(&changed, (Extent){.offset = offset, .length = end - offset}, err);
    for (size_t i = 0; ok && i < zeros.len; i++)
        ok = (zeros.items[i].zero || err_set(err, ERR_INTERNAL, "zeros that are not marked: they would be read")) &&
            copy_range(b, fd, zeros.items[i].offset, zeros.items[i].length, true, c, err);
    size_t z = 0;
    for (size_t i = 0; ok && i < changed.len; i++) {
        uint64_t at = changed.items[i].offset, stop = at + changed.items[i].length;
        c->changed += changed.items[i].length;
        while (ok && at < stop) {
            while (z < zeros.len && zeros.items[z].offset + zeros.items[z].length <= at)
                z++;
            uint64_t from = z < zeros.len ? MIN(zeros.items[z].offset, stop) : stop;
            if (from > at)
                ok = copy_range(b, fd, at, from - at, false, c, err);
            at = from < stop ? MIN(stop, zeros.items[z].offset + zeros.items[z].length) : stop;
        }
    }
    extent_vec_clear(&changed);
    extent_vec_clear(&zeros);
    return ok;
}

static bool copy_disk(const Probe *p, Source *s, size_t i, Err *err)
{
    const SourceDisk *d = &s->disks[i];
    bool increment = false;
    for (size_t j = 0; j < p->source.parents_len; j++)
        if (d->base_change_id && str_eq(p->source.parents[j].disk_key, d->key))
            increment = str_eq(p->source.parents[j].change_id, d->base_change_id);
    cleanup_free char *path = file_join(p->out, d->key, err);
    if (!path)
        return false;
    cleanup_close int fd = open(path, O_RDWR | O_CLOEXEC | (increment ? 0 : O_CREAT | O_TRUNC), 0600);
    if (fd < 0 || ftruncate(fd, (off_t)d->size) != 0)
        return err_errno(err, errno, "%s", path);
    cleanup_blocks Blocks *b = NULL;
    if (!s->ops->blocks(s, i, increment, &b, err))
        return false;
    if (b->size != d->size)
        return err_set(err, ERR_INTERNAL, "the end and the disk differ in size");
    Counts c = {0};
    for (uint64_t at = 0; at < d->size; at += MIN(STEP, d->size - at))
        if (!copy_step(b, fd, at, MIN(d->size, at + STEP), increment, &c, err))
            return false;
    say(json_pack("{s:s, s:s, s:s, s:I, s:I, s:I}", "event", "copied", "key", d->key, "mode",
                  increment ? "tracked" : "whole", "read", (json_int_t)c.read, "zero", (json_int_t)c.zero, "changed",
                  (json_int_t)c.changed));
    return true;
}

static void say_opened(const Source *s)
{
    json_t *disks = json_array(), *left = json_array();
    for (size_t i = 0; i < s->disks_len; i++) {
        const SourceDisk *d = &s->disks[i];
        (void)json_array_append_new(disks,
                                    json_pack("{s:s, s:s, s:s, s:s, s:s, s:s?, s:s?, s:I, s:I, s:I}", "disk_key",
                                              d->key, "label", d->label, "backing_identity", d->backing_identity,
                                              "change_id", d->change_id, "tracking", d->tracking, "base_change_id",
                                              d->base_change_id, "lost", d->lost, "size", (json_int_t)d->size,
                                              "estimated_bytes", (json_int_t)d->estimated_bytes, "allocated_bytes",
                                              (json_int_t)d->allocated_bytes));
    }
    for (size_t i = 0; i < s->left_out_len; i++)
        (void)json_array_append_new(left, json_string(s->left_out[i]));
    say(json_pack("{s:s, s:o, s:o, s:s, s:s?}", "event", "opened", "disks", disks, "left_out", left, "consistency",
                  s->consistency, "consistency_detail", s->consistency_detail));
}

static void hold(const Probe *p, const char *phase)
{
    const json_t *phases = json_object_get(p->request, "hold");
    for (size_t i = 0; i < json_array_size(phases); i++)
        if (str_eq(json_string_value(json_array_get(phases, i)), phase)) {
            say(json_pack("{s:s, s:s}", "event", "hold", "phase", phase));
            struct pollfd p0 = {.fd = STDIN_FILENO, .events = POLLIN};
            while (!atomic_load(&cancelled) && poll(&p0, 1, 50) <= 0)
                ;
            char line[16];
            if (p0.revents && read(STDIN_FILENO, line, sizeof(line)) < 0)
                return; // gone: as good as a line
        }
}

static bool run(const Probe *p, Err *err)
{
    const char *type = json_string_value(json_object_get(p->source.spec, "type"));
    const SourceOps *ops = source_find(type ? type : "", err);
    Source *s = NULL;
    if (!ops || !ops->check_spec(p->source.spec, err))
        return false;
    if (!ops->open(&p->source, &s, err)) {
        Err closing = ERR_INIT; // the first error is the one that counts
        if (s && !s->ops->close(s, false, &closing))
            fprintf(stderr, "not left as it should be: %s\n", closing.details);
        return false;
    }
    say_opened(s);
    hold(p, "opened");
    bool ok = true;
    for (size_t i = 0; ok && i < s->disks_len; i++)
        ok = copy_disk(p, s, i, err);
    hold(p, "copied");
    ok = ok && s->ops->intact(s, err);
    bool completed = ok && json_is_true(json_object_get(p->request, "completed"));
    return s->ops->close(s, completed, err) && ok;
}

static bool read_parents(Probe *p, Err *err)
{
    const json_t *list = json_object_get(p->request, "parents");
    size_t n = json_array_size(list);
    SourceParent *parents = mem_calloc(n, sizeof(*parents), err);
    if (!parents)
        return false;
    for (size_t i = 0; i < n; i++) {
        json_t *o = json_array_get(list, i);
        parents[i] = (SourceParent){
            .disk_key = json_string_value(json_object_get(o, "disk_key")),
            .change_id = json_string_value(json_object_get(o, "change_id")),
            .backing_identity = json_string_value(json_object_get(o, "backing_identity")),
            .tracking = json_is_true(json_object_get(o, "tracking")),
            .size = (uint64_t)json_integer_value(json_object_get(o, "size")),
        };
    }
    p->source.parents = parents;
    p->source.parents_len = n;
    return true;
}

static bool prepare(Probe *p, const char *path, const char **excluded, size_t max, Err *err)
{
    cleanup_free char *text = NULL;
    size_t n;
    if (!file_read(path, 1 << 20, &text, &n, err) || !codec_json_parse(text, n, 1 << 20, &p->request, err))
        return false;
    const json_t *list = json_object_get(p->request, "excluded");
    for (size_t i = 0; i < json_array_size(list) && i < max; i++)
        excluded[i] = json_string_value(json_array_get(list, i));
    p->source.spec = json_object_get(p->request, "spec");
    p->source.excluded = excluded;
    p->source.cancel = &cancelled;
    p->source.scratch = json_string_value(json_object_get(p->request, "scratch"));
    return codec_json_text(p->request, "job_id", 299, &p->source.job_id, err) &&
        codec_json_text(p->request, "vm_id", 64, &p->source.vm_id, err) &&
        codec_json_text(p->request, "repository_uuid", 64, &p->source.repository_uuid, err) &&
        codec_json_text(p->request, "out", 4096, &p->out, err) && read_parents(p, err);
}

static void on_term(int signo)
{
    (void)signo;
    atomic_store(&cancelled, true);
}

int main(int argc, char **argv)
{
    struct sigaction sa = {.sa_handler = on_term}; // reads are interrupted, too
    (void)sigaction(SIGTERM, &sa, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    Probe p = {0};
    const char *excluded[64] = {NULL};
    Err err = ERR_INIT;
    bool ok = argc == 2 && prepare(&p, argv[1], excluded, ARRAY_LEN(excluded) - 1, &err) && run(&p, &err);
    if (!ok)
        say(json_pack("{s:s, s:s, s:s}", "event", "error", "error", err_name(err.code), "details", err.details));
    else
        say(json_pack("{s:s}", "event", "end"));
    free((void *)(uintptr_t)p.source.parents);
    json_decref(p.request);
    return ok ? 0 : err_exit(err.code);
}
