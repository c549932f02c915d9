// A running job, shared by the client's threads. Private to service/client/.
//
// Threads: the main one (everything but what follows), one for the heartbeat, one for each disk that is being
// copied. `lock` guards what is marked; nothing is called with it held.
#pragma once

#include "mover/audit.h"
#include "service/client/client.h"
#include "source/source.h"
#include "wire/hub_api.h"

#include <pthread.h>
#include <stdint.h>

typedef struct JobDisk {
    const SourceDisk *source;         // borrowed from the Source
    const AnnounceAnswerDisk *answer; // borrowed from the job
    MoverProgress progress;           // lock
    MoverResult result;               // lock; valid once `copied`
    uint64_t audited_bytes;           // lock; the same
    bool copied;                      // lock
} JobDisk;

typedef struct Job {
    const ClientSpec *spec;
    HubApi *hub; // the main thread's
    WorkOrder order;
    Source *source;
    AnnounceAnswer answer;
    int64_t opening_ms; // from the claim to the first copy
    JobDisk *disks;     // all of them are known before the first is copied
    size_t disks_len;

    pthread_mutex_t lock;
    pthread_cond_t changed; // phase, disks, end
    const char *phase;      // lock; static
    bool disks_known;       // lock
    unsigned copying;       // lock; threads
    Err error;              // lock; the first
    bool recording;         // lock; `complete` may have been heard: only its answer counts from here on
    pthread_t heartbeat;
    bool heartbeat_runs; // main thread only
    atomic_bool heartbeat_end;
} Job;

bool job_init(Job *j, const ClientSpec *spec, Err *err) must_check;
void job_clear(Job *j); // the source must have been closed, the heartbeat ended
void job_phase(Job *j, const char *phase);
// The first error wins; the rest of the job stops.
void job_fail(Job *j, const Err *why);
// True unless the job failed or was asked to stop; then *err says why.
bool job_goes_on(Job *j, Err *err) must_check;
// Waits for ms, or until the client is asked to stop (false).
bool job_pause(const Job *j, int ms);

// ---- heartbeat.c
bool heartbeat_start(Job *j, Err *err) must_check;
void heartbeat_stop(Job *j); // fine if it never started

// ---- audit.c: some of the blocks that a tracked disk's copy did not send, drawn by `audit` while it ran; the hub is
// told what was found. copied_ms: how long the copy took. Called by the disk's thread.
bool audit_disk(Job *j, const JobDisk *d, Audit *audit, Blocks *from, const MoverKnown *known, int64_t copied_ms,
                AuditResult *ret, Err *err) must_check;

// ---- copy.c: all disks, spec->parallel at a time. Opens and frees both ends of each.
bool copy_disks(Job *j, Err *err) must_check;

// ---- record.c: complete, or changeid for each disk. *ret_unknown: it failed without a clear answer, so the point may
// exist.
bool record_job(Job *j, bool *ret_unknown, Err *err) must_check;
