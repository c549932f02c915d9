// What the files reader*.c share. docs/internals/reader.md.
#pragma once

#include "codec/qcow2.h"
#include "image/reader.h"

#include <pthread.h>

// One image of the chain, open.
typedef struct ReaderFile {
    char *path;
    int fd;
    uint64_t bytes; // of the file
    uint64_t size;  // virtual, exact
    uint64_t limit; // the smallest size from the tip down to this layer: what is beyond never shows
    Qcow2Header header;
    uint64_t *tables; // offsets of its L2 tables, 0 for none; header.l1_size of them
} ReaderFile;

// How a cluster is read.
typedef enum MapKind {
    MAP_ZERO,
    MAP_DATA,       // one host cluster
    MAP_COMPRESSED, // a zstd frame
    MAP_MIXED,      // subclusters of several layers: looked up when it is read
} MapKind;

#define MAP_NOBODY 255 // no layer says anything: zero

// The flattened map of one group (hash.h): what shows at the tip, cluster by cluster.
typedef struct MapGroup {
    uint64_t group;
    struct MapGroup *next;          // in its bucket
    struct MapGroup *newer, *older; // by last use
    unsigned users;                 // pinned while above 0
    bool loading;
    Err error; // of the load; such a group is not in the cache any more
    uint8_t *kinds, *layers;
    uint64_t *offsets; // in the layer's file
    uint32_t *lengths; // MAP_COMPRESSED: most bytes that it can take
    Hash *leaves;
} MapGroup;

#define MAP_BUCKETS 1024
#define MAP_CACHE_BYTES (64u << 20) // of flattened maps; pinned groups may add to it

typedef struct MapCache {
    pthread_mutex_t lock;  // everything in here, and users, loading, links of the groups
    pthread_cond_t loaded; // a group left `loading`
    MapGroup *buckets[MAP_BUCKETS];
    MapGroup *newest, *oldest;
    size_t len, max;
} MapCache;

struct Reader {
    HashGeometry geo;
    uint32_t cluster_bits;
    uint64_t size;
    ReaderFile *files; // [0] is the tip
    size_t len;
    ChainHashes *chain;
    MapCache cache;
};

// ---- reader_map.c: thread-safe
bool reader_map_init(Reader *r, Err *err) must_check;
void reader_map_clear(Reader *r); // nobody uses it any more
// Pins the group; every pointer in it stays as it is until reader_map_put().
bool reader_map_get(Reader *r, uint64_t group, MapGroup **ret, Err *err) must_check;
void reader_map_put(Reader *r, MapGroup *g);

// ---- reader_file.c: one layer
bool reader_file_open(const ReaderLayer *layer, const HashGeometry *geo, ReaderFile *ret, Err *err)
    must_check;
void reader_file_clear(ReaderFile *f);
// One cluster's L2 entry, from a table that is in memory, or read for it alone.
bool reader_file_entry(const ReaderFile *f, const uint8_t *table, uint32_t index, Qcow2Entry *ret,
                       Err *err) must_check;
bool reader_file_lookup(const ReaderFile *f, uint64_t cluster, Qcow2Entry *ret, Err *err)
    must_check;
// Bytes of the file; behind its end: zeros.
bool reader_file_read(const ReaderFile *f, uint64_t offset, void *p, size_t n, Err *err) must_check;
// Inflates what lies at offset into exactly cluster_size bytes.
bool reader_file_inflate(const ReaderFile *f, uint64_t offset, uint32_t length, void *p, Err *err)
    must_check;
// "layer 2 (path)" before an error's words.
bool reader_file_context(const Reader *r, size_t layer, Err *err);
