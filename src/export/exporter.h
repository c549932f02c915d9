// An exporter: nbdkit with our plugin, a supervised child for each disk, on a unix socket. It outlives the
// hub (pid and start time are on record, the next hub adopts it), and is never restarted within a job
// (safety rule 8). Each has a folder of its own below the run folder:
//   <run>/<id>/nbd.sock, ctl.sock, config.json, log
// Thread-safe: an Exporter is a value; functions on different exporters may run at once.
#pragma once

#include "base/proc.h"
#include "codec/engine.h"

#include <stdatomic.h>

typedef struct Exporter {
    Proc proc;
    char *folder;
    char *socket, *control, *export_name;
} Exporter;

#define EXPORTER_NONE ((Exporter){.proc = PROC_NONE})

// Fills config's export_name and control (with a fresh nonce in the name), writes the configuration, starts
// nbdkit and waits until the control socket answers. `run` must be short: unix sockets have 108 bytes.
// Nothing is left behind on failure; ERR_INVALID, ERR_DAMAGED … are the engine's own words.
bool exporter_start(const char *run, const char *plugin, const char *label, EngineConfig *config, Exporter *ret,
                    Err *err) must_check;
// Take hold of one that an earlier hub started. ERR_NOT_FOUND if it is gone.
bool exporter_adopt(int64_t pid, uint64_t start, const char *socket, const char *control, const char *export_name,
                    Exporter *ret, Err *err) must_check;
// One question on the control socket. A refusal of the engine comes back as err. timeout_ms bounds the whole.
bool exporter_call(const char *control, const EngineRequest *req, int timeout_ms, EngineAnswer *ret, Err *err)
    must_check;
// The same; *stop becoming true ends it soon, with ERR_CANCELLED. NULL: nothing does.
bool exporter_call_until(const char *control, const EngineRequest *req, int timeout_ms, const atomic_bool *stop,
                         EngineAnswer *ret, Err *err) must_check;
// A connection to the exporter's unix socket, for NBD or for control, not blocking. ERR_UNAVAILABLE: nobody listens;
// ERR_TIMEOUT: its queue is full.
bool exporter_connect(const char *path, int timeout_ms, int *ret_fd, Err *err) must_check;
// "nbd+unix:///NAME?socket=PATH"
char *exporter_uri(const char *socket, const char *export_name, Err *err) must_check;
// Ends it (asks, then SIGTERM, then SIGKILL) and removes its folder. Always succeeds in the end; fine on NONE.
void exporter_stop(Exporter *x);
// The same at once, for one whose work is to be thrown away.
void exporter_kill(Exporter *x);
// Ends one that is known by its record alone; fine if it is gone.
void exporter_stop_recorded(int64_t pid, uint64_t start, const char *socket, const char *control);
void exporter_clear(Exporter *x); // frees; the child goes on
// Names of exporters of this run folder, 8 hex digits, that no socket in keep belongs to: of their folders, or, where
// that is gone, of their processes. Sorted.
bool exporter_strays(const char *run, const char *const *keep_sockets, size_t keep_len, FileList *ret_names, Err *err)
    must_check;
// Does it answer, and is somebody connected to it?
bool exporter_stray_is_read(const char *run, const char *name);
// Ends it, and removes its folder. ERR_IO: something is still there.
bool exporter_stray_end(const char *run, const char *name, Err *err) must_check;
// All of them, whatever they do.
bool exporter_sweep(const char *run, const char *const *keep_sockets, size_t keep_len, Err *err) must_check;
