// The inside of the writer, shared by writer*.c only. docs/internals/engine.md.
#pragma once

#include "codec/qcow2.h"
#include "codec/zframe.h"
#include "image/covered.h"
#include "image/journal.h"
#include "image/writer.h"

#include <pthread.h>
#include <stdatomic.h>

#define WRITER_CHUNK (1u << 20)    // a request is worked on in pieces of this (or one cluster, if that is more)
#define WRITER_BUFFERS (32u << 20) // bytes of bounce buffers at most
#define WRITER_CHUNK_CLUSTERS (WRITER_CHUNK >> 12)
#define WRITER_ALIGN 4096 // of memory and of places in the file, for direct I/O; clusters are never smaller
#define WRITER_PRESSES 16 // at work at a time, at most

VEC_DEFINE(JournalItemVec, journal_item_vec, JournalItem)

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

// What compresses the clusters of one piece of a request: their frames, one behind the other.
typedef struct WriterPress {
    ZframePress *z;
    uint8_t *out; // chunk_bytes, aligned
    uint32_t used;
} WriterPress;

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

    // No lock is ever taken while another one is held, but under checkpoint_lock.
    pthread_mutex_t lock; // ranges, error, sealed, buffers, presses
    pthread_cond_t ranges_changed, buffer_freed, press_freed;
    WriterRange *ranges;
    Err error; // the first one, for good
    bool sealed;
    void **buffers; // free ones
    unsigned buffers_free, buffers_made, buffers_max;
    unsigned compression;                 // 0: none
    WriterPress *presses[WRITER_PRESSES]; // free ones
    unsigned presses_free, presses_made;

    pthread_mutex_t cache_lock; // groups and the spill file
    WriterGroup **index;        // by number; NULL: not in memory
    uint8_t *changed;           // by number: this image says something of it
    uint8_t *spilled;           // by number: the spill file has it
    WriterGroup *oldest, *newest;
    unsigned cached, cache_max;
    int spill_fd;

    pthread_mutex_t space_lock;   // host clusters
    uint64_t next;                // offset of the next free one
    uint64_t pack_next, pack_end; // room that is left in the clusters that compressed data was put into last
    uint64_t ahead;               // allocated in the filesystem up to here
    uint64_t ahead_step;          // 0: not supported here
    uint64_t most;                // the image cannot grow beyond this

    pthread_mutex_t write_lock; // one write at a time where they are not direct
    uint64_t behind;            // what lies before that in the file is on its way to the disk

    pthread_mutex_t account_lock;
    Covered *covered;

    pthread_mutex_t checkpoint_lock; // one checkpoint at a time: journal
    Journal *journal;                // NULL: none
    char *journal_path;
    uint64_t journal_next;  // what its last record says
    _Atomic uint64_t *held; // a bit for each cluster that an interrupted run left; NULL: there was none

    pthread_mutex_t journal_lock; // the rest
    JournalItemVec pending;       // since the last checkpoint
    bool journal_ended;
    uint64_t checkpoint_bytes, checkpoint_at_bytes;
    int64_t checkpoint_at_ms;

    _Atomic uint64_t received_data, received_zero, received_same, stored_bytes;
};

// An entry's zero bit; in a compressed cluster's that bit is part of its place.
static inline bool writer_is_zero(uint64_t entry)
{
    return !(entry & QCOW2_OFLAG_COMPRESSED) && (entry & QCOW2_OFLAG_ZERO);
}

// writer.c: false when the writer is broken or sealed. Every request holds its clusters between these two.
bool writer_range_lock(Writer *w, WriterRange *range, Err *err) must_check;
void writer_range_unlock(Writer *w, WriterRange *range);
// Remember *err as the writer's error; returns false.
bool writer_break(Writer *w, const Err *err);

// writer_space.c
// Host clusters, one after the other; their space is allocated ahead where the filesystem can.
bool writer_space_take(Writer *w, uint64_t clusters, uint64_t *ret_offset, Err *err) must_check;
// Room for compressed data, aligned: at least `least` bytes and at most `most` (multiples of WRITER_ALIGN).
bool writer_space_pack(Writer *w, uint64_t least, uint64_t most, uint64_t *ret_offset, uint64_t *ret_room, Err *err)
    must_check;
// Where it goes through the page cache, not much waits there for the disk.
bool writer_space_write(Writer *w, const void *p, size_t n, uint64_t offset, Err *err) must_check;
// chunk_bytes of aligned memory; waits while all are in use.
bool writer_space_buffer(Writer *w, uint8_t **ret, Err *err) must_check;
void writer_space_buffer_back(Writer *w, uint8_t *buffer);

// writer_pack.c
bool writer_press_take(Writer *w, WriterPress **ret, Err *err) must_check; // waits while all are in use
void writer_press_back(Writer *w, WriterPress *p);
void writer_press_clear(Writer *w);
// The cluster's frame behind those that are there; its bytes (whole sectors), 0 where that saves too little.
uint32_t writer_press_add(const Writer *w, WriterPress *p, const uint8_t *cluster);
// Writes the press's frames, of lengths[0..n), to the image; their places in *ret_offsets.
bool writer_press_store(Writer *w, WriterPress *p, const uint32_t *lengths, uint32_t n, uint64_t *ret_offsets, Err *err)
    must_check;
// A whole cluster that an L2 entry of this image says is data; place: aligned memory.
bool writer_host_read(Writer *w, uint64_t entry, uint8_t *place, Err *err) must_check;

// writer_journal.c
// With resume_image: where its host clusters end (w->next), and where what its items name does (*ret_used). Before
// anything is changed.
bool writer_journal_measure(Writer *w, const WriterSpec *spec, uint64_t *ret_used, Err *err) must_check;
bool writer_journal_open(Writer *w, const WriterSpec *spec, Err *err) must_check;
// [offset, end) has arrived; its clusters are locked.
bool writer_journal_note(Writer *w, uint64_t offset, uint64_t end, Err *err) must_check;
void writer_journal_tick(Writer *w); // a checkpoint, where one is due; the caller holds no range
bool writer_journal_is_held(const Writer *w, uint64_t cluster);
void writer_journal_overwritten(Writer *w, uint64_t first, uint64_t end); // clusters, locked
void writer_journal_end(Writer *w);                                       // it goes, for good
void writer_journal_clear(Writer *w);

// writer_groups.c
bool writer_groups_init(Writer *w, unsigned cache_max, Err *err) must_check;
void writer_groups_clear(Writer *w);
bool writer_groups_get(Writer *w, uint64_t number, WriterGroup **ret, Err *err) must_check; // pinned
void writer_groups_put(Writer *w, WriterGroup *g, bool changed);
bool writer_groups_changed(Writer *w, uint64_t number);
// The group as it is before this image says anything: the parent's, cut at the disk's end.
bool writer_groups_initial(const Writer *w, uint64_t number, Hash *ret_leaves, Err *err) must_check;
