// A disk as its guest sees it: the reference that every restore point is compared with. And what a source sees of it:
// the frozen view at one instant, the change set, the map.
#pragma once

#include "tracker.h"

#define GUEST_SECTOR 512
#define GUEST_KEY 32
#define GUEST_CHANGE_ID 64
#define GUEST_COLOURS 4

typedef enum GuestMap { // of a sector, as the source's map may call it
    GUEST_DATA,
    GUEST_MAY_ZERO,  // it is zero, and the map may say so
    GUEST_MUST_ZERO, // it became zero without being marked dirty: the map does say so (safety rule 6)
} GuestMap;

typedef struct GuestDisk {
    char key[GUEST_KEY];
    uint64_t id;
    uint64_t size;
    uint8_t *bytes;
    uint8_t *map;          // GuestMap, one for each sector
    bool tracks;           // this kind of source has dirty bitmaps
    uint64_t cluster_size; // of the repositories: zeros that only the map knows come in whole ones
    Tracker tracker;
} GuestDisk;

bool guest_init(GuestDisk *d, const char *key, uint64_t id, uint64_t size, bool tracks, uint32_t granularity,
                uint64_t cluster_size, Err *err) must_check;
void guest_clear(GuestDisk *d);
uint64_t guest_sectors(uint64_t size);

// ---- the guest's work; offset + length <= size
void guest_write(GuestDisk *d, uint64_t offset, uint64_t length, const uint8_t *p);
// Bytes of this colour at this place: the same ones whenever it comes back. Colour 0 is zero.
void guest_paint(GuestDisk *d, uint64_t offset, uint64_t length, unsigned colour);
// silent: whole clusters within are not marked dirty, only the map knows of them.
void guest_discard(GuestDisk *d, uint64_t offset, uint64_t length, bool silent);
bool guest_resize(GuestDisk *d, uint64_t size, Err *err) must_check;
// Another image with this content takes the disk's place.
bool guest_replace(GuestDisk *d, const uint8_t *bytes, uint64_t size, Err *err) must_check;
// One to some requests of any kind.
void guest_burst(GuestDisk *d, Rng *rng);

// ---- what a source sees
typedef struct GuestView {
    uint64_t size;
    uint8_t *bytes, *map;
    char change_id[GUEST_CHANGE_ID];
    char base_change_id[GUEST_CHANGE_ID]; // "": no change set
    char lost[BITMAPS_WHY];
    uint8_t *changed; // one byte a granule; NULL: no change set
    uint64_t granularity;
} GuestView;

typedef struct GuestParent { // what the work order says of the parent; change_id NULL: none
    const char *change_id;
    bool tracking;
    uint64_t size;
} GuestParent;

typedef enum GuestFault { // planted, to see that the oracle notices
    GUEST_FAULT_NONE,
    GUEST_FAULT_GAP, // a change set without its oldest bitmap, where there are several
} GuestFault;

// Freezes the disk: view, change set and the new bitmap are of one instant.
bool guest_freeze(GuestDisk *d, const BitmapsOwner *owner, const GuestParent *parent, GuestFault fault, GuestView *ret,
                  Err *err) must_check;
void guest_view_clear(GuestView *v);
// The point exists: bitmaps that the next one does not need go.
void guest_settle(GuestDisk *d, const BitmapsOwner *owner, const char *change_id);
