// The states of a job and what may follow what: one table, no other transition exists.
//
//   pending -> running -> committing -> completed
//      |          |            |
//      +----------+------------+--> failed        pending, running -> cancelled
#pragma once

#include "base/err.h"

typedef enum JobState {
    JOB_PENDING,
    JOB_RUNNING,
    JOB_COMMITTING,
    JOB_COMPLETED,
    JOB_FAILED,
    JOB_CANCELLED,
    JOB_STATES
} JobState;

const char *job_state_name(JobState s);
bool job_state_parse(const char *name, JobState *ret, Err *err) must_check;
bool job_state_is_final(JobState s);
bool job_state_may_follow(JobState from, JobState to);

typedef enum BackupType { BACKUP_FULL, BACKUP_INCREMENTAL } BackupType;
const char *backup_type_name(BackupType t); // "full", "incremental"
// Anything else: ERR_INVALID.
bool backup_type_parse(const char *name, BackupType *ret, Err *err) must_check;
