// What the client does with a job: claim, open the source, announce, copy, complete, clean up.
// docs/internals/client.md.
#pragma once

#include "base/secret.h"
#include "wire/tls.h"

#include <stdatomic.h>

typedef struct ClientSpec { // all borrowed
    const char *job_id;
    const char *hub_url;
    const Secret *token;   // of the job; may be not set
    const TlsTrust *trust; // whose certificate a hub with https:// shows
    const char *scratch;   // folder for a source's scratch images; NULL: the source's default
    unsigned parallel;     // disks copied at a time; 0: as many as the source thinks best
    unsigned connections;  // to each export, 1 to 16
    unsigned reach_s;      // a hub that cannot be reached is asked again for so long before the copy
    unsigned record_s;     // `complete` without a clear answer is repeated for so long
    atomic_bool *stop;     // set by a signal handler, and by the client itself once the job cannot go on
} ClientSpec;

typedef struct ClientResult {
    size_t disks;    // copied
    size_t left_out; // excluded: the point is partial
    uint64_t transferred_bytes;
} ClientResult;

// Runs the job to its end. False: the hub was told, as far as it could be reached, and the source was left clean;
// ERR_CANCELLED where somebody asked to stop. A point is recorded exactly when this returns true, but for one
// case, which the error names: the hub did not answer `complete` clearly.
bool client_backup(const ClientSpec *spec, ClientResult *ret, Err *err) must_check;
