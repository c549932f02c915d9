// vsphere-simulator: what a backup client sees of a vCenter, for tests. docs/internals/vsphere-bench.md says what is
// real in it and what is not.
//
// One process is one vCenter, so its state is one global. Everything in it is guarded by sim.lock, which whoever calls
// a function of this header holds, unless its comment says otherwise. Objects are never freed: what is gone is marked,
// since a client may still name it. Lack of memory ends the process.
#pragma once

#include "base/mem.h"
#include "base/uuid.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>

#define ID_MAX 64        // of a managed object reference
#define NAME_MAX_TEXT 96 // of a method, a fault's type, a privilege

// ---- disks (simulator_disk.c)

typedef struct Bits {
    uint64_t *words; // NULL: all clear
    uint64_t n;      // bits
} Bits;

bool bits_get(const Bits *b, uint64_t i);
// The first bit at or behind i that is set (or clear); b->n if there is none.
uint64_t bits_next(const Bits *b, uint64_t i, bool set);

typedef enum Lie { LIE_NONE, LIE_ZERO_LENGTH, LIE_UNORDERED, LIE_OVERLAP, LIE_PAST_END, LIE_BEFORE, LIE_START } Lie;

typedef struct Disk {
    int key;
    int unit;
    uint64_t capacity; // bytes, a multiple of 512
    char *file;        // "[datastore] folder/name.vmdk", as long as there is no snapshot
    char *uuid;
    char *mode;          // persistent, independent_persistent, ...
    char *backing;       // FlatVer2, SparseVer2, RawDiskMappingVer1, RawDiskVer2
    char *sharing;       // NULL: not said
    char *compatibility; // of a mapped raw device: virtualMode, physicalMode
    char *star;          // how "*" is answered: allocated, whole, fault
    char *path;          // the live content: a raw sparse file
    int fd;              // -1 until it is needed
    Bits allocated;      // granules in use
    bool tracking;       // change tracking has taken effect
    char epoch[128];     // the part of a change ID before the slash
    uint32_t sequence;   // of the interval that writes go into now; from 1
    Bits *changed;       // [sequence]: granules changed in that interval; [0] is not used
    bool lost;           // the tracking file is gone: every question fails
    Bits hidden;         // lies: granules that are never told of
    Lie lie;
    unsigned reads; // under way
} Disk;

// What a snapshot keeps of one disk: the granules that were overwritten since, and how things stood.
typedef struct Layer {
    Disk *disk;
    int fd; // -1 until something is kept
    char *path;
    Bits kept;
    Bits allocated;
    uint64_t capacity;
    char *file;        // the name that the disk had at that instant
    char epoch[128];   // "": no change ID
    uint32_t sequence; // of the change ID: changes up to this interval are in the snapshot
} Layer;

typedef struct Vm Vm;
typedef struct Snapshot Snapshot;

bool disk_open(Disk *disk, Err *err) must_check;
// Snapshots and change tracking leave independent disks and raw devices in physical mode alone.
bool disk_can_freeze(const Disk *disk);
// data NULL: zeros, which whole granules get by being given back.
bool disk_write(Vm *vm, Disk *disk, uint64_t offset, const void *data, uint64_t n, Err *err) must_check;
// Tells change tracking only, as VMware's does when it says too much.
bool disk_touch(Disk *disk, uint64_t offset, uint64_t n, Err *err) must_check;
bool disk_resize(Vm *vm, Disk *disk, uint64_t capacity, Err *err) must_check;
void disk_track(Disk *disk);   // tracking takes effect, with a new epoch
void disk_untrack(Disk *disk); // and ends
bool disk_hide(Disk *disk, uint64_t offset, uint64_t n, Err *err) must_check;
bool layer_init(Layer *layer, Disk *disk, const char *id, Err *err) must_check;
// n bytes as they were at the snapshot's instant; offset + n <= capacity.
bool layer_read(const Snapshot *snapshot, const Layer *layer, uint64_t offset, void *p, uint64_t n, Err *err)
    must_check;
// The live disk becomes what the newest snapshot holds of it; change tracking does not hear of it.
bool layer_revert(const Snapshot *snapshot, Layer *layer, Err *err) must_check;
// Hands what `layer` keeps to the next older one, if there is one.
bool layer_merge(Layer *layer, Layer *older, Err *err) must_check;
// The set of granules for an answer: changed after the interval `since` up to the snapshot. Caller frees words.
Bits layer_changed(const Layer *layer, uint32_t since);
Layer *layer_of(const Snapshot *snapshot, const Disk *disk);

// ---- inventory

typedef enum EntityType { FOLDER, DATACENTER, VIRTUAL_MACHINE, HOST, DATASTORE, ENTITY_TYPES } EntityType;

typedef struct Entity {
    EntityType type;
    char id[ID_MAX];
    char *name;
    struct Entity *parent;
    struct Entity **children;
    size_t n_children;
    Vm *vm;        // of a VIRTUAL_MACHINE
    uint64_t seen; // the last walk that took it
} Entity;

struct Snapshot {
    char id[ID_MAX];
    int number;
    char *name;
    char *description;
    bool quiesced;
    bool gone;
    int64_t created_us;
    Vm *vm;
    bool cbt; // config.changeTrackingEnabled of then
    Layer *layers;
    size_t n_layers;
};

typedef enum Cbt { CBT_UNSET, CBT_OFF, CBT_ON } Cbt;

struct Vm {
    Entity *entity;
    char *folder_name; // in the datastore
    char *datastore;
    char *power;
    char *version; // vmx-15
    char uuid[UUID_TEXT];
    char instance_uuid[UUID_TEXT];
    Cbt cbt;
    bool cbt_pending;  // switched on, and without effect until the next stun
    bool cbt_poisoned; // switched on while there was a snapshot: answers are empty, and no fault tells
    bool quiesce_fails;
    bool consolidation_needed;
    bool consolidation_fails; // removing a snapshot succeeds, and leaves consolidation_needed
    bool is_template;
    int64_t index; // within its group, for a name that is made when it is asked for
    Disk **disks;
    size_t n_disks;
    Snapshot **snapshots; // oldest first; a chain, as there is no revert
    size_t n_snapshots;
    int snapshots_made;
};

// ---- tasks

typedef struct Fault {
    char type[NAME_MAX_TEXT]; // "": none
    char text[256];
    char body[512]; // XML inside of the detail
} Fault;

typedef enum TaskState { TASK_RUNNING, TASK_SUCCESS, TASK_ERROR } TaskState;

typedef struct Task {
    char id[ID_MAX];
    const char *method;
    Vm *vm;
    TaskState state;
    bool held;
    bool not_cancelable; // TaskInfo.cancelable
    int64_t due_ms;
    int64_t queued_us;
    int64_t done_us;
    int progress;
    Fault fault; // how it will end, or has
    // What it was asked
    char *name;
    char *description;
    bool quiesce;
    bool children;
    Cbt cbt;
    Snapshot *snapshot; // to remove; or the result
} Task;

// ---- sessions

typedef struct Ref {
    const char *type;
    const char *id;
    void *p; // Entity, Snapshot, Task, View or Session's own, by the type
} Ref;

typedef struct PropSet {
    char *type;
    bool all;
    char **paths;
    size_t n_paths;
} PropSet;

typedef struct View {
    char *id;
    Entity *container;
    char **types;
    size_t n_types;
    bool recursive;
    bool gone;
} View;

typedef struct Filter {
    char *id;
    PropSet *props;
    size_t n_props;
    Ref *refs;
    size_t n_refs;
    char **sent; // by ref: what the client was told last, NULL before that
    bool gone;
} Filter;

typedef struct Page {
    char token[UUID_TEXT];
    PropSet *props;
    size_t n_props;
    Ref *refs;
    size_t n_refs;
    size_t at;
    size_t max;
} Page;

typedef struct Session {
    char key[UUID_TEXT];
    char *user;
    int64_t login_us;
    int64_t active_ms;
    bool gone;
    View **views;
    size_t n_views;
    Filter **filters;
    size_t n_filters;
    Page **pages;
    size_t n_pages;
    uint64_t version;
} Session;

// ---- faults on command

typedef enum InjectKind {
    INJECT_FAULT,
    INJECT_503,
    INJECT_DROP_BEFORE,
    INJECT_DROP_MIDDLE,
    INJECT_DROP_AFTER,
    INJECT_DELAY,
    INJECT_CUT
} InjectKind;

typedef struct ReadOfDisk {
    uint64_t key;
    uint64_t offset;
    uint64_t n;
} ReadOfDisk;

typedef struct Injection {
    char call[NAME_MAX_TEXT]; // "*": any; "read": the data path
    ReadOfDisk least;         // of the data path: only this disk (0: any), at and behind that offset, of that length
    uint64_t before;          // of the data path: only before that offset (0: anywhere)
    InjectKind kind;
    uint64_t skip;
    uint64_t times;
    uint64_t amount; // milliseconds of a delay; bytes that a cut lets through
    Fault fault;
} Injection;

// What a task of this kind shall do; used up one after the other
typedef struct Plan {
    char call[NAME_MAX_TEXT];
    uint64_t times;
    int64_t ms;
    bool held;
    bool not_cancelable; // TaskInfo.cancelable
    Fault fault;
} Plan;

typedef struct Count {
    char name[NAME_MAX_TEXT];
    uint64_t n;
} Count;

// ---- the vCenter

typedef struct Sim {
    pthread_mutex_t lock;
    pthread_cond_t changed; // on CLOCK_MONOTONIC: a task's state, a session's end, stopping
    char *folder;
    char *user;
    char *password;
    char *prefix; // of xsi:type in values
    uint64_t granule;
    uint64_t max_areas;
    uint64_t max_length;
    bool change_id_blanks;
    bool cbt_at_snapshot; // tracking takes effect when a snapshot is made; else when one is removed
    int64_t read_latency_ms;
    int64_t soap_latency_ms;
    int64_t session_idle_ms;
    uint64_t max_sessions;
    uint64_t page_max; // no page of properties holds more objects
    bool down;
    bool hosts_up; // though it is down: disks can be read
    bool stopping;
    uint64_t reads; // under way on the data path, and the most that ever were
    uint64_t reads_most;
    uint64_t disks; // that are being read, and the most that ever were at once
    uint64_t disks_most;
    int next_id;
    uint64_t walk;
    Entity *root;
    Entity **entities;
    size_t n_entities;
    Snapshot **snapshots;
    size_t n_snapshots;
    Task **tasks;
    size_t n_tasks;
    Session **sessions;
    size_t n_sessions;
    uint64_t healed; // how often
    Injection *injections;
    size_t n_injections;
    Plan *plans;
    size_t n_plans;
    char **missing_privileges;
    size_t n_missing_privileges;
    Count *counts;
    size_t n_counts;
} Sim;

extern Sim sim;

// Room for one more at the end of an array; returns it, zeroed.
#define grow(array, n)                                     \
    ({                                                     \
        (array) = sim_more((array), (n), sizeof *(array)); \
        &(array)[(n)++];                                   \
    })
void *sim_more(void *array, size_t n, size_t size);
char *sim_strdup(const char *s);
char *sim_printf(const char *fmt, ...) printf_like(1, 2);
void sim_count(const char *name);
void sim_wait(int64_t ms); // gives the lock away for that time, or until the simulator heals or stops
void sim_new_uuid(char out[UUID_TEXT]);
bool sim_lacks(const char *privilege);

// simulator_state.c
bool state_load(const char *path, Err *err) must_check;
bool state_add_disk(Vm *vm, const json_t *from, Disk **ret_disk, Err *err) must_check;
Vm *state_vm(const char *id_or_path);
Entity *state_entity(const char *id);
Entity *state_find(const char *path);
Disk *state_disk(const Vm *vm, int key);
Snapshot *state_snapshot(const char *id);
// A snapshot of all disks at this instant.
bool state_freeze(Vm *vm, const char *name, const char *description, bool quiesced, Snapshot **ret_snapshot, Err *err)
    must_check;
bool state_thaw(Snapshot *snapshot, bool children, Err *err) must_check;
void state_switch_cbt(Vm *vm, bool on);
char *state_file_now(const Vm *vm, const Disk *disk); // the disk's name with that many snapshots; caller frees
void state_change_id(const char *epoch, uint32_t sequence, char out[192]); // as VMware spells it

// simulator_task.c
Task *task_new(const char *method, Vm *vm);
bool task_start_thread(Err *err) must_check;

// simulator_http.c; these two don't want the lock
bool http_start(const char *address, uint16_t port, uint16_t *ret_port, Err *err) must_check;
void http_stop(void);
bool http_certificate(const char *cert_path, const char *key_path, Err *err) must_check;
// These do
Session *session_find(const char *key);
Session *session_new(const char *user);
void session_end(Session *session);
// read: of the data path; NULL: a call.
bool inject_take(const char *call, const ReadOfDisk *read, Injection *ret_injection);

// simulator_soap.c: one request. *ret_reply is malloc()ed. *ret_session: whose call it was, or who has logged in.
typedef struct Answer {
    int status;
    char *text;
    size_t len;
    char cookie[UUID_TEXT]; // to be set
    Injection injection;    // what happens to the answer
    bool injected;
} Answer;
void soap_answer(const char *body, size_t len, const char *cookie, Answer *ret_answer);
bool fault_set(Fault *fault, const char *type, const char *body, const char *fmt, ...) printf_like(4, 5);

// simulator_props.c
bool ref_find(const char *id, Ref *ret_ref, Session *session);
bool prop_render(const Ref *ref, const char *path, FILE *out, bool *ret_known); // false: it is not set
extern const char *const prop_paths_vm[];
const char *entity_type_name(EntityType type);
bool ref_is(const Ref *ref, const char *type);
bool entity_is(const Entity *entity, const char *type);

// XML
void x_text(FILE *out, const char *s);
void x_element(FILE *out, const char *name, const char *fmt, ...) printf_like(3, 4);
void x_ref(FILE *out, const char *name, const char *type, const char *id);
void x_fault(FILE *out, const Fault *fault); // as a LocalizedMethodFault's inside
void x_time(int64_t utc_us, char out[40]);

// simulator_control.c; doesn't want the lock
bool control_start(const char *path, Err *err) must_check;
