// The engine: receives writes in any order from many threads, writes one QCOW2 (version 3) image
// and its .hashes file. Design and the argument why it is right: docs/internals/engine.md.
//
// Host clusters are handed out one after the other; nothing is ever moved. L2 tables and leaves of
// a group (cluster_size / 8 clusters: 512 MiB at 64 KiB) are cached, the least recently used are
// spilled, so memory does not grow with the disk. The header is written last: before writer_seal()
// returns, the file is no valid QCOW2.
#pragma once

#include "domain/chain.h"
#include "image/hashes.h"

typedef struct WriterSpec {
    const char *image_path;   // created, O_EXCL; the caller's name says .partial
    bool image_is_there;      // as an empty file of the caller's, who keeps others from it
    const char *hashes_path;  // created, O_EXCL
    const char *backing_name; // stored in the image; NULL when mode is DISK_FULL, else required
    uint64_t size;            // virtual bytes, > 0, any number (QEMU sees it rounded up to 512)
    uint32_t cluster_bits;    // 12 (4 KiB) to 21 (2 MiB); 16 by default
    HashSpec hash;
    DiskMode mode;
    ChainHashes *parent;   // borrowed until free; NULL when mode is DISK_FULL
    unsigned compression;  // zstd level for clusters that come whole and for the first time; 0: none. None below 16 KiB
    bool direct_io;        // try O_DIRECT for a full; falls back where the filesystem refuses
    unsigned cache_groups; // groups kept in memory; 0: as many as fit 16 MiB, at least 4
    const char *journal_path;  // created, O_EXCL: checkpoints go there (docs/internals/resume.md); NULL: none
    uint64_t checkpoint_bytes; // stored between two of them; 0: 1 GiB
    // Image and journal of an interrupted run of the same disk, mode and parent, which end with it; NULL: none. The
    // image gets image_path's name. ERR_DAMAGED, ERR_CONFLICT: nobody can go on from them; nothing was changed then.
    const char *resume_image, *resume_journal;
} WriterSpec;

typedef struct Writer Writer;

bool writer_open(const WriterSpec *spec, Writer **ret, Err *err) must_check;
void writer_free(Writer *w); // an unsealed image stays as it is: unusable, for the hub to remove

// Thread-safe, any order, any alignment within [0, size). Overlapping requests are ordered by a lock on
// their clusters. A part of a cluster: merged when the mode is full, the image holds the cluster
// already, or the write runs to the disk's end; else ERR_INVALID (safety rule 7).
// A failed write makes the writer broken: everything after, and the seal, fails with the first error.
bool writer_write(Writer *w, const void *p, uint64_t offset, uint32_t length, Err *err) must_check;
bool writer_zero(Writer *w, uint64_t offset, uint64_t length, Err *err) must_check;
// The range's clusters, whole (or up to the disk's end), are what this image shows already; they count as arrived. Held
// ones of an interrupted run are read back and hashed: not what they were, ERR_DAMAGED, and the writer is broken, its
// journal gone. Others only in a comparison, and ERR_INVALID where something else was stored meanwhile.
bool writer_same(Writer *w, uint64_t offset, uint64_t length, Err *err) must_check;
// The leaves of a group as the image shows it now. Thread-safe.
bool writer_leaves(Writer *w, uint64_t group, Hash *ret_leaves, Err *err) must_check;
// Ranges in whole clusters that an interrupted run stored, and this one has neither confirmed nor replaced. ascending.
bool writer_held(Writer *w, uint64_t offset, uint64_t length, ExtentVec *ret, Err *err) must_check;
bool writer_is_resumed(const Writer *w);
// What has arrived can be gone on from, when this returns. Thread-safe; waits for the requests under way.
bool writer_checkpoint(Writer *w, Err *err) must_check;
// Bytes as a reader of the finished image would see them, where this image alone can say; a cluster that
// it does not hold reads as zero in DISK_FULL and is ERR_INVALID otherwise.
bool writer_read(Writer *w, void *p, uint64_t offset, uint32_t length, Err *err) must_check;
// What was acknowledged is on stable storage when this returns (the data; tables come with the seal).
bool writer_flush(Writer *w, Err *err) must_check;

typedef struct WriterProgress {
    uint64_t received_data, received_zero, stored_bytes;
} WriterProgress;
void writer_progress(Writer *w, WriterProgress *ret); // thread-safe, cheap

// What must have arrived. full and compare always need the whole disk; tracked needs exactly this.
typedef struct WriterExpect {
    uint64_t extents, bytes, digest; // of the client's plan (Coverage)
} WriterExpect;
// When all writes have returned. Checks the coverage first: ERR_CONFLICT names what is missing (first hole or the
// differing counts), ERR_INVALID a tracked disk without expect; nothing was changed, what is missing may still come.
// Then, once: writes tables, refcounts, .hashes, truncates to the end, fsyncs, header last, fsync. After it, or after
// an error of its own, nothing is written any more. The journal goes with a seal that went well.
// ret_hashes_digest: of the .hashes file. expect may be NULL unless the mode is tracked.
bool writer_seal(Writer *w, const WriterExpect *expect, HashesSummary *ret, Hash *ret_hashes_digest, Err *err)
    must_check;
