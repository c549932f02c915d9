// What hub and engine say to each other: the plugin's configuration file, and the control socket's
// lines (one JSON object a line, request then answer). docs/internals/engine.md.
#pragma once

#include "codec/json.h"
#include "domain/chain.h"

#define ENGINE_LINE_MAX 65536
#define ENGINE_CONFIG_MAX (1u << 20)

typedef enum EngineRole { ENGINE_INGEST, ENGINE_SERVE } EngineRole;

typedef struct EngineLayer {
    char *image, *hashes, *backing_name; // paths; backing_name NULL for the full
} EngineLayer;

// An ingest's second export, read-only: the leaves of what the image shows before anything arrives, one after the
// other. Its name is the export's with this behind it.
#define ENGINE_LEAVES ".leaves"

// Passed as `config=PATH` (a file of mode 0600) to the plugin.
typedef struct EngineConfig {
    EngineRole role;
    char *export_name; // with a nonce: a connection to another instance fails
    char *control;     // path of the control socket, bound by the plugin
    uint32_t cluster_size;
    char *hash_algorithm;
    uint64_t hash_seed;
    // ingest
    char *image, *hashes, *backing_name;
    char *journal;                       // NULL: none
    uint64_t checkpoint_bytes;           // 0: the engine's default
    char *resume_image, *resume_journal; // of an interrupted run; both or none
    uint64_t size;
    DiskMode mode;
    unsigned compression; // level, 0: none
    // the parent's chain (ingest), or the point's (serve); layers[0] is the newest
    EngineLayer *layers;
    size_t layers_len;
} EngineConfig;

void engine_config_clear(EngineConfig *c);
bool engine_config_encode(const EngineConfig *c, char **ret_text, Err *err) must_check;
bool engine_config_decode(const char *text, size_t n, EngineConfig *ret, Err *err) must_check;

typedef enum EngineOp { ENGINE_STATUS, ENGINE_SEAL, ENGINE_STOP, ENGINE_CHECKPOINT } EngineOp;

typedef struct EngineRequest {
    EngineOp op;
    bool have_expect; // seal
    uint64_t extents, bytes, digest;
} EngineRequest;
bool engine_request_encode(const EngineRequest *r, char **ret_line, Err *err) must_check;
bool engine_request_decode(const char *line, size_t n, EngineRequest *ret, Err *err) must_check;

// Hashes as hex text, so that this needs nothing of image/.
typedef struct EngineAnswer {
    bool ok;
    ErrCode code; // when not ok
    char details[ERR_DETAILS_MAX];
    // status
    uint64_t received_data, received_zero, stored_bytes;
    unsigned connections;
    bool sealed;
    // after a seal
    uint64_t image_bytes, stored_clusters, zeroed_clusters, skipped_clusters;
    char root[65], metadata[65], hashes_digest[65];
} EngineAnswer;
bool engine_answer_encode(const EngineAnswer *a, char **ret_line, Err *err) must_check;
bool engine_answer_decode(const char *line, size_t n, EngineAnswer *ret, Err *err) must_check;
