// What the files of hub_api.h share. Private to wire/hub_api*.c.
#pragma once

#include "wire/hub_api.h"

struct HubApi {
    HttpClient *http;
    char *url; // without a slash at the end
    Secret token;
    TlsTrust trust;            // texts owned
    const atomic_bool *cancel; // borrowed
    int timeout_ms;
    size_t max_answer; // 0: the HTTP client's default
    int status;
};

ErrCode hub_api_code(int status); // of an answer that is no success
// An answer that is no success, in the hub's own words where it has some. Returns false.
bool hub_api_refused(const char *method, const char *url, const HttpAnswer *a, Err *err);
// Sends; true for any answer.
bool hub_api_exchange(HubApi *h, const char *method, const char *path, const char *body, HttpAnswer *ret, Err *err)
    must_check;
// Sends; an answer other than 200 to 202 is an error.
bool hub_api_ask(HubApi *h, const char *method, const char *path, const char *body, HttpAnswer *ret, Err *err)
    must_check;
// "/api/v1/backups/ID/CALL" or the replications' path. New memory.
bool hub_api_job_path(const char *job_id, const char *call, char **ret, Err *err) must_check;
