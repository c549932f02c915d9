// One random history: VMs and their guests, a repository or two, the points that must be in each, and the bytes that
// every point must give back.
#pragma once

#include "base/str.h"
#include "domain/name.h"
#include "guest.h"
#include "image/repo.h"

#define HISTORY_VMS 2
#define HISTORY_SITES 2
#define HISTORY_DISKS 3 // of a VM at a time
#define HISTORY_KEYS 16 // that a VM's disks have over time
#define HISTORY_DISK_ID 2000

typedef enum HistoryPlant { // faults that the oracle must find
    PLANT_NONE,
    PLANT_SKIP_ZERO_WRITE,
    PLANT_STALE_PARENT,
    PLANT_DROP_LAST_WRITE,
    PLANT_WRONG_BASE,
    PLANT_SWAPPED_DISKS,
    PLANT_LATE_BITMAP,
    PLANT_GAP_IN_LINE,
    PLANT_RESIZE_BLIND,
    PLANT_HOLE_AS_ZERO,
    PLANT_THAWED_VIEW,
    PLANT_FLIPPED_BYTE,
    PLANTS
} HistoryPlant;

const char *history_plant_name(HistoryPlant p);
bool history_plant_parse(const char *name, HistoryPlant *ret, Err *err) must_check;

typedef struct HistoryStats { // over all histories: what was exercised
    uint64_t histories, backups, points, refused, deletes, moves, recoveries, disks_checked, qemu_checks, restores,
        flips;
    uint64_t modes[3], reasons[CHAIN_REASONS], kills[16];
} HistoryStats;

typedef struct HistorySpec {
    uint64_t seed;
    unsigned steps;
    unsigned qemu; // percent of the disks that are looked at whose image QEMU is asked about too
    HistoryPlant plant;
    const char *folder; // a new one, empty; everything happens in it
    bool verbose;
    HistoryStats *stats;
} HistorySpec;

typedef struct Reference { // a disk of a point
    char key[GUEST_KEY];
    uint64_t size;
    uint8_t *bytes;
    Hash root;    // from the bytes alone
    char *hidden; // bytes of its .hashes, which was damaged; NULL: it is as it was written
    size_t hidden_len;
} Reference;

typedef struct Point {
    char id[NAME_BACKUP_ID];
    size_t vm;
    uint64_t sequence;
    bool suspect;
    Reference disks[HISTORY_DISKS];
    size_t len;
} Point;

typedef struct Vm {
    size_t index;
    char id[UUID_TEXT];
    char name[64];
    GuestDisk disks[HISTORY_DISKS];
    size_t len;
} Vm;

typedef struct VmAt { // what the hub's database has of a VM in a repository
    char *context;    // NULL: none yet
    uint64_t sequence;
    unsigned numbers[HISTORY_KEYS]; // of the folder of each key; from 1, 0: none
} VmAt;

typedef struct Site { // a repository, and what must be in it
    char *path;
    Repo repo;
    bool open;
    unsigned chain_limit;
    VmAt vms[HISTORY_VMS];
    Point *points;
    size_t len, cap;
} Site;

typedef struct History {
    const HistorySpec *spec;
    Rng rng;       // what happens
    Rng check_rng; // what is looked at, and how
    int64_t now_us;
    unsigned moves;
    Vm vms[HISTORY_VMS];
    size_t vms_len;
    Site sites[HISTORY_SITES];
    size_t sites_len;
    Site *site;                       // the one that this step is about
    uint32_t cluster_size;            // the larger one's
    const char *running[HISTORY_VMS]; // attempts of the jobs that run
    size_t running_len;
    StrBuf trace;
} History;

bool history_run(const HistorySpec *spec, StrBuf *ret_trace, Err *err) must_check;
// A line of the trace.
void history_note(History *h, const char *fmt, ...) printf_like(2, 3);
// A finding of the oracle; returns false.
bool history_fail(Err *err, const char *fmt, ...) printf_like(2, 3);
Point *history_find(History *h, const char *id); // NULL: must not be there
Point *history_newest(History *h, size_t vm);    // NULL: has none
void history_forget(History *h, Point *p);
// Takes what p owns.
bool history_add(History *h, const Point *p, Err *err) must_check;
void history_point_clear(Point *p);
// Opens the repository again, as a hub does that was started anew.
bool history_reopen(History *h, Err *err) must_check;
// ...and clears up what is left of jobs that do not run any more. given_up: an attempt that is over (may be NULL).
bool history_recover(History *h, const char *given_up, RepoScan *ret_after, Err *err) must_check;
const Record *history_find_record(void *scan, const char *id); // RepoFind over a RepoScan

// backup.c: one backup, of all disks of a VM; killed or not.
bool backup_run(History *h, Vm *vm, Err *err) must_check;
