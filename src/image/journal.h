// What of a partial image is durable: the engine's notes, from which an interrupted backup goes on.
// docs/internals/resume.md. One thread at a time.
#pragma once

#include "domain/chain.h"
#include "image/hash.h"

#define JOURNAL_ITEMS_MAX 131072 // of one record

typedef enum JournalKind {
    JOURNAL_CLUSTER, // one cluster that arrived: its entry and its leaf
    JOURNAL_NOTHING, // clusters that arrived and of which the image says nothing
    JOURNAL_ZERO,    // clusters that arrived and have a zero mark without a host cluster
    JOURNAL_PART,    // one cluster that has an entry, but has not arrived as a whole
} JournalKind;

typedef struct JournalItem {
    uint64_t first; // cluster of the disk
    uint32_t count; // > 0
    JournalKind kind;
    uint64_t entry; // L2, of CLUSTER and PART
    Hash leaf;      // of CLUSTER and PART
} JournalItem;

typedef struct JournalSpec { // what image it is about
    HashSpec hash;
    uint64_t size;
    uint32_t cluster_size;
    DiskMode mode;
} JournalSpec;

typedef struct Journal Journal;

// Creates path (O_EXCL); its header is written with the first record.
bool journal_create(const char *path, const JournalSpec *spec, Journal **ret, Err *err) must_check;
// One record, durable when this returns. next: offset of the image's next free host cluster. n at most
// JOURNAL_ITEMS_MAX. After an error nothing may be added any more.
bool journal_append(Journal *j, const JournalItem *items, size_t n, uint64_t next, Err *err) must_check;
void journal_free(Journal *j); // leaves the file; fine on NULL

// Record by record; ends without an error at the first that is not whole. ERR_DAMAGED: no header, or an item that
// cannot be; ERR_CONFLICT: of another disk, mode or geometry. *ret_records: how many were whole.
typedef bool (*JournalOnRecord)(void *ctx, const JournalItem *items, size_t n, uint64_t next, Err *err);
bool journal_read(const char *path, const JournalSpec *spec, JournalOnRecord on_record, void *ctx,
                  uint64_t *ret_records, Err *err) must_check;
