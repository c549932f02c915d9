#include "domain/job.h"

#include <string.h>

static const char *const names[JOB_STATES] = {
    [JOB_PENDING] = "pending",     [JOB_RUNNING] = "running", [JOB_COMMITTING] = "committing",
    [JOB_COMPLETED] = "completed", [JOB_FAILED] = "failed",   [JOB_CANCELLED] = "cancelled",
};

static const bool follows[JOB_STATES][JOB_STATES] = {
    [JOB_PENDING] = {[JOB_RUNNING] = true, [JOB_FAILED] = true, [JOB_CANCELLED] = true},
    [JOB_RUNNING] = {[JOB_COMMITTING] = true, [JOB_FAILED] = true, [JOB_CANCELLED] = true},
    [JOB_COMMITTING] = {[JOB_COMPLETED] = true, [JOB_FAILED] = true},
};

const char *job_state_name(JobState s)
{
    return names[s];
}

bool job_state_parse(const char *name, JobState *ret, Err *err)
{
    for (JobState s = JOB_PENDING; s < JOB_STATES; s++) {
        if (strcmp(name, names[s]) == 0) {
            *ret = s;
            return true;
        }
    }
    return err_set(
        err, ERR_INVALID,
        "not a job's state; pending, running, committing, completed, failed and cancelled are");
}

bool job_state_is_final(JobState s)
{
    return s == JOB_COMPLETED || s == JOB_FAILED || s == JOB_CANCELLED;
}

bool job_state_may_follow(JobState from, JobState to)
{
    return follows[from][to];
}

const char *backup_type_name(BackupType t)
{
    return t == BACKUP_FULL ? "full" : "incremental";
}

bool backup_type_parse(const char *name, BackupType *ret, Err *err)
{
    if (strcmp(name, "full") == 0)
        *ret = BACKUP_FULL;
    else if (strcmp(name, "incremental") == 0)
        *ret = BACKUP_INCREMENTAL;
    else
        return err_set(err, ERR_INVALID, "backup_type must be full or incremental");
    return true;
}
