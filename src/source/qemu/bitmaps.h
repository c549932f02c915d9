// Which dirty bitmaps say what changed since the parent: pure, on what QEMU answered. Safety rules 10, 12, 13.
//
// A bitmap's name is "sendense.<repository>.<vm>.<line>.<sequence>", and its change ID "<line>/<sequence>": UUIDs, and
// a number whose upper bits, its place, count on within the line, and whose lower ones are random: a disk that went
// back to an earlier state gets a bitmap of a place that another run's already had, which may come back, too. The
// bitmap of place n records from the backup of that change ID on; the next backup disables it in the instant in which
// it adds n + 1. Sequence 0 is the line's witness: its one dirty bit, at the disk's end, is lost when the disk shrinks,
// however it grows again.
#pragma once

#include "base/uuid.h"
#include "base/vec.h"
#include "domain/changeid.h"

#include <jansson.h>

#define BITMAPS_NAME 192
#define BITMAPS_GRANULARITY 65536
#define BITMAPS_LINE_MAX 16 // bitmaps of one line: so many backups in a row failed; then a new line
#define BITMAPS_WHY 256
#define BITMAPS_PLACE_SHIFT 40 // of a sequence; below it is the random part
#define BITMAPS_PLACES (UINT64_C(1) << 22)

typedef struct BitmapsOwner { // UUIDs
    const char *repository, *vm; // repository NULL: any
} BitmapsOwner;

typedef struct Bitmap { // texts borrowed from QEMU's answer
    const char *node, *name;
    char repository[UUID_TEXT];
    char line[UUID_TEXT]; // "" for a temporary one
    uint64_t sequence;
    bool recording, busy, inconsistent;
    uint64_t count; // dirty bytes, in whole granules
} Bitmap;

VEC_DEFINE(BitmapVec, bitmap_vec, Bitmap)

void bitmaps_name(const BitmapsOwner *o, const char *line, uint64_t sequence, char out[BITMAPS_NAME]);
// Of a run: where the changes are brought together. nonce: at most 32 characters, no dots.
void bitmaps_temporary(const BitmapsOwner *o, const char *nonce, char out[BITMAPS_NAME]);

// All bitmaps with this owner's names, on every node. nodes: the answer of query-named-block-nodes; it must outlive
// the vector. ERR_PROTOCOL when it is not as QEMU documents it.
bool bitmaps_collect(const json_t *nodes, const BitmapsOwner *o, BitmapVec *ret, Err *err) must_check;

typedef struct LineInput {
    const BitmapVec *all;
    const char *node;             // under the guest's device now
    const char *parent_change_id; // NULL: no parent
    bool parent_tracking;
    uint64_t size, parent_size;
    const char *fresh; // a new random UUID: for a new line, and of it the random part of the next sequence
} LineInput;

typedef struct Line {
    char uuid[UUID_TEXT];
    bool tracked; // the bitmaps hold what changed since the parent; the last one is still recording
    uint64_t bitmaps[BITMAPS_LINE_MAX]; // sequences, in the order of their places; the first is the parent's
    size_t len;
    uint64_t next;          // sequence of the bitmap to add; at place 1 in a new line
    char lost[BITMAPS_WHY]; // why there is a new line, for people; "" without a parent, or when tracked
} Line;

typedef struct BitmapsNeed { // a later backup will ask what changed since that change ID
    const char *repository, *change_id;
} BitmapsNeed;
// Does a later backup start from it? A temporary one: never. Of a change ID that is none of a bitmap's all of its
// repository is needed.
bool bitmaps_is_needed(const Bitmap *b, const BitmapsNeed *needs, size_t len);

void bitmaps_resolve(const LineInput *in, Line *ret);
// A line that nothing is known of.
void bitmaps_begin(const char *fresh, Line *ret);

// Is the line's witness on this node, and has its bit? Else the disk may have been resized.
bool bitmaps_witness(const BitmapVec *all, const char *node, const char *line);
