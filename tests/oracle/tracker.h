// What a hypervisor's dirty bitmaps do, modelled after QEMU's: bitmaps sit on block nodes, record while enabled, are
// cut and extended with the disk (and lose what is cut), and break when QEMU does not end cleanly. The client's part
// (names,
// lines, what may be merged) is the product's own src/source/qemu/bitmaps.c, fed with what this model answers.
#pragma once

#include "rng.h"
#include "source/qemu/bitmaps.h"

#define TRACKER_BITMAPS_MAX 256
#define TRACKER_NODE 16

typedef struct TrackerBitmap {
    char name[BITMAPS_NAME];
    char node[TRACKER_NODE];
    bool recording, busy, inconsistent, tampered;
    uint8_t *bits; // one byte a granule
    size_t granules;
} TrackerBitmap;

typedef struct Tracker {
    uint64_t size; // bytes of the disk
    uint32_t granularity;
    char node[TRACKER_NODE]; // under the guest's device
    unsigned nodes;          // made so far
    TrackerBitmap bitmaps[TRACKER_BITMAPS_MAX];
    size_t len;
    // After an external snapshot, until it is committed back
    char below[TRACKER_NODE]; // "": there is none
    uint8_t *written;         // by granule of the overlay
} Tracker;

void tracker_init(Tracker *t, uint64_t size, uint32_t granularity);
void tracker_clear(Tracker *t);

// What the guest and its host do.
void tracker_mark(Tracker *t, uint64_t offset, uint64_t length);
bool tracker_resize(Tracker *t, uint64_t size, Err *err) must_check;
void tracker_crash(Tracker *t, bool persistent); // QEMU was killed: persistent bitmaps are inconsistent, others gone
bool tracker_snapshot(Tracker *t, Err *err) must_check; // external: the guest writes to a new node from now on
void tracker_commit(Tracker *t);                        // ...and back again
void tracker_forget(Tracker *t);                        // another image: no bitmap is left
// Somebody breaks one of the bitmaps. Returns what was done, for the trace.
const char *tracker_tamper(Tracker *t, Rng *rng);

// What a client does by QMP.
json_t *tracker_describe(const Tracker *t); // query-named-block-nodes; NULL: no memory
bool tracker_add(Tracker *t, const char *name, bool recording, Err *err) must_check; // on the device's node
TrackerBitmap *tracker_find(Tracker *t, const char *name);                           // on the device's node
void tracker_remove(Tracker *t, const char *node, const char *name);
