// The hub's REST API, from the side that calls it (api/openapi.yaml): for the client and for the CLI. One HubApi
// belongs to one thread.
//
// An answer other than 200, 201 or 202 is an Err: its code by the status, title and details from the answer's
// "error" and "details". An exchange that failed keeps the HTTP client's code (wire/http_client.h).
#pragma once

#include "base/str.h"
#include "codec/work.h"
#include "wire/http_client.h"

typedef struct HubApi HubApi;

// Whom to trust as the hub, as the environment has it: SENDENSE_HUB_THUMBPRINT, or a file of CAs, SENDENSE_HUB_CA.
// ERR_USAGE. Texts of *ret are owned: hub_trust_clear().
bool hub_trust_environment(TlsTrust *ret, Err *err) must_check;
bool hub_trust_copy(const TlsTrust *trust, TlsTrust *ret, Err *err) must_check;
void hub_trust_clear(TlsTrust *trust);

#define HUB_API_URL_DEFAULT "http://localhost:8082"

// url: "http://HOST:PORT" or "https://HOST:PORT", a path after it is kept as a prefix. token and trust are copied; NULL
// or not set: none, and the system's CAs.
bool hub_api_new(const char *url, const Secret *token, const TlsTrust *trust, HubApi **ret, Err *err) must_check;
void hub_api_free(HubApi *h);
void hub_api_set_cancel(HubApi *h,
                        const atomic_bool *cancel);   // for all calls from now on; NULL: none
void hub_api_set_timeout(HubApi *h, int timeout_ms);  // for all calls from now on
void hub_api_set_max_answer(HubApi *h, size_t bytes); // the same; until then WORK_BODY_MAX
int hub_api_status(const HubApi *h);                  // of the last call; 0: there was no answer
// Whether the last call, which failed, may have worked or may work when repeated: no answer, or 408, 429 or 5xx.
bool hub_api_is_unknown(const HubApi *h);

// One segment of a path, percent-encoded (everything but letters, digits and "-._~"), appended.
bool hub_api_segment(StrBuf *path, const char *segment, Err *err) must_check;

const char *hub_api_thumbprint(const HubApi *h); // that it trusts; NULL: none
// Any call. path from "/api/v1" on, encoded. body NULL: none. *ret_answer is the answer's JSON.
bool hub_api_call(HubApi *h, const char *method, const char *path, const json_t *body, json_t **ret_answer, Err *err)
    must_check;
// Server-sent events of path until on_event returns false (true is returned), the stream ends, or nothing comes for
// 30 s. data is parsed JSON, borrowed.
typedef bool (*HubApiEvent)(void *ctx, const char *event, const json_t *data);
bool hub_api_events(HubApi *h, const char *path, HubApiEvent on_event, void *ctx, Err *err) must_check;

// ---- the client's calls. "backup-…" is served below /api/v1/backups/, any other job below /api/v1/replications/.
bool hub_api_is_backup(const char *job_id);
bool hub_api_claim(HubApi *h, const char *job_id, const char *claim_uuid, WorkOrder *ret, Err *err) must_check;
bool hub_api_announce(HubApi *h, const char *job_id, const Announce *a, AnnounceAnswer *ret, Err *err) must_check;
bool hub_api_progress(HubApi *h, const char *job_id, const WorkProgress *p, WorkProgressAnswer *ret, Err *err)
    must_check;
bool hub_api_audit(HubApi *h, const char *job_id, const WorkAudit *a, Err *err) must_check;
bool hub_api_fail(HubApi *h, const char *job_id, const WorkFailure *f, Err *err) must_check;
// 200 is success; for any other status the details are "SHA API returned status 404: <body>".
bool hub_api_complete(HubApi *h, const char *job_id, const Completion *c, Err *err) must_check;
bool hub_api_changeid(HubApi *h, const char *job_id, const ChangeIdReport *r, Err *err) must_check;
// The call that becomes an NBD connection to what the job writes the disk to. New memory.
bool hub_api_disk_path(const char *job_id, const char *disk_key, char **ret, Err *err) must_check;
// The whole URL of complete or changeid for this job, for the log. New memory.
char *hub_api_record_url(const HubApi *h, const char *job_id, Err *err) must_check;
