// The inside of the writer, shared by writer*.c only. docs/internals/engine.md.
#pragma once

#include "image/covered.h"
#include "image/writer.h"

#include <pthread.h>
#include <stdatomic.h>

#define WRITER_CHUNK (1u << 20)    // a request is worked on in pieces of this (or one cluster, if that is more)
#define WRITER_BUFFERS (32u << 20) // bytes of bounce buffers at most
#define WRITER_CHUNK_CLUSTERS (WRITER_CHUNK >> 12)
#define WRITER_ALIGN 4096 // of memory, for direct I/O; clusters are never smaller

// What this image says of a group of clusters, and the leaves as a reader would see them now: the
// parent's where an entry is 0. Held by pins; elements belong to who holds the clusters' range.
typedef struct WriterGroup {
    uint64_t number;
    unsigned pins;
    bool dirty; // differs from what the spill file has
    struct WriterGroup *older, *newer;
    uint64_t *entries; // L2 entries, host byte order
    Hash *leaves;
} WriterGroup;

// A request at work, or waiting: in order of arrival. It runs when nothing before it overlaps.
typedef struct WriterRange {
    uint64_t first, end; // clusters
    struct WriterRange *next;
} WriterRange;

struct Writer {
    HashGeometry geo;
    DiskMode mode;
    ChainHashes *parent; // borrowed
    uint64_t size, clusters, groups;
    uint32_t cluster_bits, cluster_size, chunk_bytes;
    char *image_path, *hashes_path, *backing_name;
    int fd;
    bool direct;

    // No lock is ever taken while another one is held.
    pthread_mutex_t lock; // ranges, error, sealed, buffers
    pthread_cond_t ranges_changed, buffer_freed;
    WriterRange *ranges;
    Err error; // the first one, for good
    bool sealed;
    void **buffers; // free ones
    unsigned buffers_free, buffers_made, buffers_max;

    pthread_mutex_t cache_lock; // groups and the spill file
    WriterGroup **index;        // by number; NULL: not in memory
    uint8_t *changed;           // by number: this image says something of it
    uint8_t *spilled;           // by number: the spill file has it
    WriterGroup *oldest, *newest;
    unsigned cached, cache_max;
    int spill_fd;

    pthread_mutex_t space_lock; // host clusters
    uint64_t next;              // offset of the next free one
    uint64_t ahead;             // allocated in the filesystem up to here
    uint64_t ahead_step;        // 0: not supported here
    uint64_t most;              // the image cannot grow beyond this

    pthread_mutex_t account_lock;
    Covered *covered;

    _Atomic uint64_t received_data, received_zero, stored_bytes;
};

// writer.c: false when the writer is broken or sealed. Every request holds its clusters between these two.
bool writer_range_lock(Writer *w, WriterRange *range, Err *err) must_check;
void writer_range_unlock(Writer *w, WriterRange *range);
// Remember *err as the writer's error; returns false.
bool writer_break(Writer *w, const Err *err);

// writer_space.c
// Host clusters, one after the other; their space is allocated ahead where the filesystem can.
bool writer_space_take(Writer *w, uint64_t clusters, uint64_t *ret_offset, Err *err) must_check;
// chunk_bytes of aligned memory; waits while all are in use.
bool writer_space_buffer(Writer *w, uint8_t **ret, Err *err) must_check;
void writer_space_buffer_back(Writer *w, uint8_t *buffer);

// writer_groups.c
bool writer_groups_init(Writer *w, unsigned cache_max, Err *err) must_check;
void writer_groups_clear(Writer *w);
bool writer_groups_get(Writer *w, uint64_t number, WriterGroup **ret, Err *err) must_check; // pinned
void writer_groups_put(Writer *w, WriterGroup *g, bool changed);
bool writer_groups_changed(Writer *w, uint64_t number);
// The group as it is before this image says anything: the parent's, cut at the disk's end.
bool writer_groups_initial(const Writer *w, uint64_t number, Hash *ret_leaves, Err *err) must_check;
