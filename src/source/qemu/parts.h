// What the parts of the QEMU source share.
#pragma once

#include "source/qemu/bitmaps.h"
#include "source/qemu/disks.h"
#include "source/qemu/freeze.h"
#include "source/qemu/guard.h"
#include "source/qemu/scratch.h"
#include "source/qemu/spec.h"
#include "source/qemu/sweep.h"

#include <pthread.h>

typedef struct QemuDisk {
    char *key;
    char *node; // under the guest's device, when the run started
    char *qdev, *filename;
    uint64_t size, allocated;
    bool may_persist;
    bool read_only; // not tracked: what changes it does so behind QEMU's back
    uint64_t parent_size;
    const char *parent_change_id; // borrowed from the request; NULL: no parent
    bool parent_tracking;
    Line line;
    bool continues;          // the line goes on, without a change set since the parent: it is the interrupted run's
    bool resumes;            // the bitmaps from `since` on hold what changed since the interrupted run
    size_t since;            // which of the line's
    char name[BITMAPS_NAME]; // the bitmap that this run adds
    char tag[SWEEP_NAME];    // its scratch node, job and export, all three
} QemuDisk;

typedef struct QemuSource {
    Source s;
    const SourceRequest *req;     // while opening only
    BitmapsOwner owner;           // texts owned
    QemuSpec spec;                // texts owned
    char run[SWEEP_NAME];         // prefix of this run's tags
    char vm[SWEEP_NAME];          // of all runs of the VM
    char temporary[BITMAPS_NAME]; // since the parent
    char since[BITMAPS_NAME];     // since the interrupted run
    QemuDisk *disks;              // as many as s.disks
    Scratch scratch;
    Guard guard;
    Qmp *q; // under lock once the watch runs
    bool listens; // the socket is there, and may be in QEMU
    bool stuck; // the guest may still be frozen

    pthread_mutex_t lock;
    pthread_t watch;
    bool watched;
    int stop; // eventfd: the watch is to end
    uint64_t low_water;
    atomic_bool broken; // the frozen view does not stand any more
    Err why;            // under lock: of broken
} QemuSource;

// view.c: the frozen view of all disks at one instant.
bool view_open(QemuSource *v, const GuestDiskVec *disks, const BitmapVec *bitmaps, Err *err) must_check;
bool view_sweep_earlier(QemuSource *v, Err *err) must_check; // what killed runs of this VM left behind
bool view_close(QemuSource *v, Err *err) must_check;
// Remove this owner's bitmaps, but for those that the next run needs.
bool view_forget_older(QemuSource *v, Err *err) must_check;

// witness.c: put the line's witness on the disk's node. Not there: the next backup is no increment.
bool witness_add(QemuSource *v, QemuDisk *d, bool persistent, Err *err) must_check;

// watch.c: sees a view that breaks, and gives it up before the scratch folder is full.
bool watch_start(QemuSource *v, Err *err) must_check;
void watch_stop(QemuSource *v);
// Is the view whole? Asks QEMU.
bool watch_check(QemuSource *v, Err *err) must_check;
bool watch_broken(QemuSource *v, Err *err); // true: broken, and why

// frozen.c: an end that fails as soon as the view is broken. Takes inner.
bool frozen_blocks(QemuSource *v, Blocks *inner, bool with_changes, Blocks **ret, Err *err) must_check;
