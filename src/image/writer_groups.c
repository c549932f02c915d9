// The cache of groups. What leaves it goes to fixed places of a nameless, sparse working file.
#include "image/writer_parts.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <unistd.h>

#define CACHE_BYTES (16u << 20)
#define CACHE_MIN 4

static size_t entries_bytes(const Writer *w)
{
    return w->geo.leaves * sizeof(uint64_t);
}

static size_t leaves_bytes(const Writer *w)
{
    return w->geo.leaves * sizeof(Hash);
}

static uint64_t slot(const Writer *w, uint64_t number)
{
    return number * (entries_bytes(w) + leaves_bytes(w));
}

// In the folder of the hashes: the repository's own filesystem, which has the room if anything has.
static bool open_spill(Writer *w, Err *err)
{
    cleanup_free char *copy = mem_strdup(w->hashes_path, err);
    if (!copy)
        return false;
    w->spill_fd = open(dirname(copy), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (w->spill_fd >= 0)
        return true;
    cleanup_free char *name = mem_printf(err, "%s.work", w->hashes_path);
    if (!name)
        return false;
    w->spill_fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (w->spill_fd < 0)
        return err_errno(err, errno, "cannot create %s", name);
    return file_unlink(name, err);
}

bool writer_groups_init(Writer *w, unsigned cache_max, Err *err)
{
    w->cache_max = cache_max;
    if (cache_max == 0)
        w->cache_max = (unsigned)MAX(CACHE_MIN, CACHE_BYTES / (entries_bytes(w) + leaves_bytes(w)));
    w->index = mem_calloc(w->groups, sizeof *w->index, err);
    w->changed = mem_calloc(w->groups, 1, err);
    w->spilled = mem_calloc(w->groups, 1, err);
    return w->index && w->changed && w->spilled && open_spill(w, err);
}

static void group_free(WriterGroup *g)
{
    if (!g)
        return;
    free(g->entries);
    free(g->leaves);
    free(g);
}

static WriterGroup *group_new(const Writer *w, Err *err)
{
    WriterGroup *g = mem_calloc(1, sizeof *g, err);
    if (!g)
        return NULL;
    g->entries = mem_calloc(1, entries_bytes(w), err);
    g->leaves = mem_calloc(1, leaves_bytes(w), err);
    if (!g->entries || !g->leaves) {
        group_free(g);
        return NULL;
    }
    return g;
}

void writer_groups_clear(Writer *w)
{
    for (WriterGroup *g = w->oldest, *next; g; g = next) {
        next = g->newer;
        group_free(g);
    }
    if (w->spill_fd >= 0)
        (void)close(w->spill_fd); // nameless: nothing of it is needed
    free(w->index);
    free(w->changed);
    free(w->spilled);
}

static void list_remove(Writer *w, WriterGroup *g)
{
    *(g->older ? &g->older->newer : &w->oldest) = g->newer;
    *(g->newer ? &g->newer->older : &w->newest) = g->older;
    g->older = g->newer = NULL;
}

static void list_append(Writer *w, WriterGroup *g)
{
    g->older = w->newest;
    g->newer = NULL;
    *(w->newest ? &w->newest->newer : &w->oldest) = g;
    w->newest = g;
}

static bool spill(Writer *w, WriterGroup *g, Err *err)
{
    uint64_t at = slot(w, g->number);
    if (!file_pwrite(w->spill_fd, g->entries, entries_bytes(w), at, err) ||
        !file_pwrite(w->spill_fd, g->leaves, leaves_bytes(w), at + entries_bytes(w), err))
        return err_context(err, "working file");
    w->spilled[g->number] = 1;
    g->dirty = false;
    return true;
}

// The least recently used group that nobody holds leaves memory; its memory is *ret. NULL: all are held.
static bool evict(Writer *w, WriterGroup **ret, Err *err)
{
    WriterGroup *g = w->oldest;
    while (g && g->pins > 0)
        g = g->newer;
    if (g) {
        if (g->dirty && !spill(w, g, err))
            return false;
        list_remove(w, g);
        w->index[g->number] = NULL;
        w->cached--;
    }
    *ret = g;
    return true;
}

bool writer_groups_initial(const Writer *w, uint64_t number, Hash *ret_leaves, Err *err)
{
    uint64_t first = number * w->geo.leaves;
    if (w->parent && !chain_hashes_group(w->parent, number, ret_leaves, NULL, err))
        return err_context(err, "parent");
    uint64_t keep = w->parent ? MIN(w->geo.leaves, w->clusters - first) : 0;
    for (uint64_t i = keep; i < w->geo.leaves; i++)
        ret_leaves[i] = w->geo.zero_leaf;
    return true;
}

// Their elements belong to who holds the clusters.
bool writer_leaves(Writer *w, uint64_t group, Hash *ret_leaves, Err *err)
{
    if (group >= w->groups)
        return err_set(err, ERR_INVALID, "no such group");
    WriterRange range = {.first = group * w->geo.leaves, .end = (group + 1) * w->geo.leaves};
    if (!writer_range_lock(w, &range, err))
        return false;
    WriterGroup *g;
    bool ok = true;
    if (!writer_groups_changed(w, group)) {
        ok = writer_groups_initial(w, group, ret_leaves, err);
    } else if ((ok = writer_groups_get(w, group, &g, err))) {
        memcpy(ret_leaves, g->leaves, leaves_bytes(w));
        writer_groups_put(w, g, false);
    }
    writer_range_unlock(w, &range);
    return ok;
}

static bool load(Writer *w, WriterGroup *g, Err *err)
{
    if (w->spilled[g->number]) {
        uint64_t at = slot(w, g->number);
        if (!file_pread(w->spill_fd, g->entries, entries_bytes(w), at, err) ||
            !file_pread(w->spill_fd, g->leaves, leaves_bytes(w), at + entries_bytes(w), err))
            return err_context(err, "working file");
        return true;
    }
    memset(g->entries, 0, entries_bytes(w));
    return writer_groups_initial(w, g->number, g->leaves, err);
}

static bool get_locked(Writer *w, uint64_t number, WriterGroup **ret, Err *err)
{
    WriterGroup *g = w->index[number];
    if (g) {
        list_remove(w, g);
    } else {
        if (w->cached >= w->cache_max && !evict(w, &g, err))
            return false;
        if (!g)
            g = group_new(w, err);
        if (!g)
            return false;
        g->number = number;
        g->dirty = false;
        if (!load(w, g, err)) {
            group_free(g);
            return false;
        }
        w->index[number] = g;
        w->cached++;
    }
    list_append(w, g);
    g->pins++;
    *ret = g;
    return true;
}

bool writer_groups_get(Writer *w, uint64_t number, WriterGroup **ret, Err *err)
{
    pthread_mutex_lock(&w->cache_lock);
    bool ok = get_locked(w, number, ret, err);
    pthread_mutex_unlock(&w->cache_lock);
    return ok;
}

void writer_groups_put(Writer *w, WriterGroup *g, bool changed)
{
    pthread_mutex_lock(&w->cache_lock);
    g->pins--;
    if (changed) {
        g->dirty = true;
        w->changed[g->number] = 1;
    }
    pthread_mutex_unlock(&w->cache_lock);
}

bool writer_groups_changed(Writer *w, uint64_t number)
{
    pthread_mutex_lock(&w->cache_lock);
    bool changed = w->changed[number] != 0;
    pthread_mutex_unlock(&w->cache_lock);
    return changed;
}
