// The flattened map: for each cluster of a group which layer shows at the tip, and where in its file. Built
// once from every layer's L2 tables, checked against the hashes' idea of the same, kept as long as there is room.

#include "image/reader_parts.h"

#include "base/file.h"

static size_t group_bytes(const HashGeometry *geo)
{
    return (size_t)geo->leaves * (2 + sizeof(uint64_t) + sizeof(uint32_t) + sizeof(Hash)) + sizeof(MapGroup);
}

static void group_free(MapGroup *g)
{
    if (!g)
        return;
    free(g->kinds);
    free(g->layers);
    free(g->offsets);
    free(g->lengths);
    free(g->leaves);
    free(g);
}

// ---- building one

typedef struct Build {
    const Reader *r;
    MapGroup *g;
    uint8_t *decided; // one flag a cluster
    uint32_t open;    // clusters not decided yet
    uint8_t *table;   // an L2 table
} Build;

static void decide(Build *b, uint32_t i, MapKind kind, uint8_t layer, const Qcow2Entry *e)
{
    b->g->kinds[i] = (uint8_t)kind;
    b->g->layers[i] = layer;
    b->g->offsets[i] = e ? e->offset : 0;
    b->g->lengths[i] = e ? e->length : 0;
    b->decided[i] = 1;
    b->open--;
}

static void add_entry(Build *b, uint32_t i, uint8_t layer, const Qcow2Entry *e)
{
    if (e->subclusters) {
        decide(b, i, MAP_MIXED, layer, e);
        return;
    }
    switch (e->kind) {
    case QCOW2_UNALLOCATED: return;
    case QCOW2_ZERO_PLAIN:
    case QCOW2_ZERO_ALLOC: decide(b, i, MAP_ZERO, layer, NULL); return;
    case QCOW2_NORMAL: decide(b, i, MAP_DATA, layer, e); return;
    case QCOW2_COMPRESSED: decide(b, i, MAP_COMPRESSED, layer, e); return;
    }
}

// Clusters of the group that lie within size, counted from its start; the last one may be cut.
static uint32_t clusters_inside(const Reader *r, uint64_t group, uint64_t size)
{
    uint64_t first = group * r->geo.leaves;
    uint64_t clusters = size / r->geo.cluster_size + (size % r->geo.cluster_size != 0);
    return clusters <= first ? 0 : (uint32_t)MIN(clusters - first, r->geo.leaves);
}

static bool add_table(Build *b, uint8_t layer, uint64_t table, uint32_t first, uint32_t end, Err *err)
{
    const ReaderFile *f = &b->r->files[layer];
    if (table >= f->header.l1_size || f->tables[table] == 0)
        return true;
    if (!file_pread(f->fd, b->table, b->r->geo.cluster_size, f->tables[table], err))
        return false;
    for (uint32_t i = first; i < end; i++) {
        Qcow2Entry e;
        if (b->decided[i])
            continue;
        if (!reader_file_entry(f, b->table, i - first, &e, err))
            return err_context(err, "offset %llu",
                               (unsigned long long)((b->g->group * b->r->geo.leaves + i) << b->r->cluster_bits));
        add_entry(b, i, layer, &e);
    }
    return true;
}

static bool add_layer(Build *b, uint8_t layer, Err *err)
{
    const ReaderFile *f = &b->r->files[layer];
    uint32_t leaves = b->r->geo.leaves, inside = clusters_inside(b->r, b->g->group, f->size);
    // Beyond a layer's size everything is zero, whatever lies below (safety rule 1).
    for (uint32_t i = inside; i < leaves; i++)
        if (!b->decided[i])
            decide(b, i, MAP_ZERO, MAP_NOBODY, NULL);
    uint32_t per_table = qcow2_l2_entries(f->header.cluster_bits, f->header.extended_l2);
    uint64_t first_table = b->g->group * (leaves / per_table);
    for (uint32_t first = 0; first < inside; first += per_table)
        if (!add_table(b, layer, first_table + first / per_table, first, MIN(first + per_table, inside), err))
            return reader_file_context(b->r, layer, err);
    return true;
}

// Both maps must tell the same story: the images' own, and the hashes'.
static bool check_hashes(Build *b, Err *err)
{
    const Reader *r = b->r;
    MapGroup *g = b->g;
    uint8_t *layers = b->decided; // no longer needed as flags
    if (!chain_hashes_group(r->chain, g->group, g->leaves, layers, err))
        return false;
    for (uint32_t i = 0; i < r->geo.leaves; i++) {
        unsigned long long at = (g->group * r->geo.leaves + i) << r->cluster_bits;
        size_t blame = MIN(MIN(g->layers[i], layers[i]), r->len - 1);
        if (g->layers[i] != layers[i])
            return err_set(err, ERR_DAMAGED, "offset %llu: layer %zu (%s): the image's map and its hashes do not agree",
                           at, blame, r->files[blame].path);
        if (g->kinds[i] == MAP_ZERO && !hash_equal(&g->leaves[i], &r->geo.zero_leaf))
            return err_set(err, ERR_DAMAGED, "offset %llu: layer %zu (%s): zero by the map, data by its hash", at,
                           blame, r->files[blame].path);
    }
    return true;
}

static bool build(const Reader *r, MapGroup *g, Err *err)
{
    cleanup_free uint8_t *decided = mem_calloc(r->geo.leaves, 1, err);
    cleanup_free uint8_t *table = mem_calloc(r->geo.cluster_size, 1, err);
    uint32_t n = r->geo.leaves;
    g->kinds = mem_calloc(n, 1, err);
    g->layers = mem_calloc(n, 1, err);
    g->offsets = mem_calloc(n, sizeof *g->offsets, err);
    g->lengths = mem_calloc(n, sizeof *g->lengths, err);
    g->leaves = mem_calloc(n, sizeof *g->leaves, err);
    if (!decided || !table || !g->kinds || !g->layers || !g->offsets || !g->lengths || !g->leaves)
        return err_no_memory(err);
    Build b = {.r = r, .g = g, .decided = decided, .open = n, .table = table};
    for (size_t layer = 0; layer < r->len && b.open > 0; layer++)
        if (!add_layer(&b, (uint8_t)layer, err))
            return false;
    for (uint32_t i = 0; i < n; i++)
        if (!decided[i])
            decide(&b, i, MAP_ZERO, MAP_NOBODY, NULL);
    return check_hashes(&b, err);
}

// ---- the cache; the lock is held in all of these

static MapGroup **bucket_of(MapCache *c, uint64_t group)
{
    return &c->buckets[group % MAP_BUCKETS];
}

static void list_remove(MapCache *c, MapGroup *g)
{
    if (g->newer)
        g->newer->older = g->older;
    else
        c->newest = g->older;
    if (g->older)
        g->older->newer = g->newer;
    else
        c->oldest = g->newer;
    g->newer = g->older = NULL;
}

static void list_add(MapCache *c, MapGroup *g)
{
    g->older = c->newest;
    if (c->newest)
        c->newest->newer = g;
    else
        c->oldest = g;
    c->newest = g;
}

static void cache_remove(MapCache *c, MapGroup *g)
{
    MapGroup **at = bucket_of(c, g->group);
    while (*at != g)
        at = &(*at)->next;
    *at = g->next;
    list_remove(c, g);
    c->len--;
}

static void evict(MapCache *c)
{
    for (MapGroup *g = c->oldest, *newer; g && c->len > c->max; g = newer) {
        newer = g->newer;
        if (g->users > 0)
            continue;
        cache_remove(c, g);
        group_free(g);
    }
}

static MapGroup *cache_find(MapCache *c, uint64_t group)
{
    for (MapGroup *g = *bucket_of(c, group); g; g = g->next)
        if (g->group == group)
            return g;
    return NULL;
}

static MapGroup *cache_new(MapCache *c, uint64_t group, Err *err)
{
    MapGroup *g = mem_calloc(1, sizeof *g, err);
    if (!g)
        return NULL;
    g->group = group;
    g->loading = true;
    g->next = *bucket_of(c, group);
    *bucket_of(c, group) = g;
    list_add(c, g);
    c->len++;
    return g;
}

// A group that could not be built is freed by its last user.
static void drop(MapGroup *g)
{
    g->users--;
    if (g->users == 0 && g->error.code != ERR_NONE)
        group_free(g);
}

bool reader_map_get(Reader *r, uint64_t group, MapGroup **ret, Err *err)
{
    MapCache *c = &r->cache;
    (void)pthread_mutex_lock(&c->lock);
    MapGroup *g = cache_find(c, group);
    if (g) {
        list_remove(c, g);
        list_add(c, g);
        g->users++;
        while (g->loading)
            (void)pthread_cond_wait(&c->loaded, &c->lock);
    } else if ((g = cache_new(c, group, err))) {
        g->users++;
        (void)pthread_mutex_unlock(&c->lock);
        Err error = ERR_INIT;
        bool ok = build(r, g, &error);
        (void)pthread_mutex_lock(&c->lock);
        g->loading = false;
        g->error = error;
        if (!ok) // not kept: another try may succeed
            cache_remove(c, g);
        (void)pthread_cond_broadcast(&c->loaded);
        evict(c);
    }
    bool ok = g && g->error.code == ERR_NONE;
    if (g && !ok) {
        err_set(err, g->error.code, "%s", g->error.details);
        drop(g);
    }
    (void)pthread_mutex_unlock(&c->lock);
    if (ok)
        *ret = g;
    return ok;
}

void reader_map_put(Reader *r, MapGroup *g)
{
    if (!g)
        return;
    (void)pthread_mutex_lock(&r->cache.lock);
    drop(g);
    evict(&r->cache);
    (void)pthread_mutex_unlock(&r->cache.lock);
}

bool reader_map_init(Reader *r, Err *err)
{
    MapCache *c = &r->cache;
    c->max = MAX(MAP_CACHE_BYTES / group_bytes(&r->geo), 2);
    if (pthread_mutex_init(&c->lock, NULL) != 0 || pthread_cond_init(&c->loaded, NULL) != 0)
        return err_no_memory(err);
    return true;
}

void reader_map_clear(Reader *r)
{
    MapCache *c = &r->cache;
    while (c->oldest) {
        MapGroup *g = c->oldest;
        cache_remove(c, g);
        group_free(g);
    }
    (void)pthread_cond_destroy(&c->loaded); // nobody waits
    (void)pthread_mutex_destroy(&c->lock);
}
