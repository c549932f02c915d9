// A client of VMware's vSphere API (vCenter, or an ESXi host): its SOAP calls over HTTPS, as few as a backup needs.
// docs/internals/vim.md has the calls, the faults and the traps. Reference: "vSphere Web Services API", urn:vim25.
//
// One Vim is one session. It belongs to one thread at a time, and no two calls of it overlap: a callback must not call
// into the Vim that calls it.
//
// Texts in answers are never NULL; "" where the server said nothing. They are UTF-8 without control characters but tab
// and line feed.
//
// Errors of every call:
//   ERR_UNAVAILABLE   not reached, connection lost, 502, 503 or 504, or a host behind it is not connected
//   ERR_TIMEOUT       no answer in time
//   ERR_CANCELLED     the cancel flag
//   ERR_PROTOCOL      no sense in the answer, or a certificate that is not trusted (title "certificate not trusted")
//   ERR_TOO_LARGE     an answer above its ceiling
//   ERR_UNAUTHORIZED  InvalidLogin; NotAuthenticated even after logging in once more
//   ERR_FORBIDDEN     NoPermission; the details name the privilege
//   ERR_NOT_FOUND     ManagedObjectNotFound: no such VM or snapshot any more
//   ERR_BUSY          TaskInProgress, ResourceInUse, ConcurrentAccess
//   ERR_CONFLICT      InvalidState, InvalidPowerState, SnapshotFault, quiescing, FileFault and such: the thing's state
//   ERR_UNSUPPORTED   NotSupported, MethodNotFound, MethodDisabled, RestrictedVersion
//   ERR_NO_SPACE      NoDiskSpace, InsufficientResourcesFault
//   ERR_INVALID       InvalidArgument, InvalidRequest and such
//   ERR_PROTOCOL      any other fault
// A fault's details begin with the name of its type; vim_fault() has it too.
//
// An expired session (NotAuthenticated) is renewed once a call, unseen. After a lost connection, a time-out, or 502,
// 503 and 504, calls that change nothing are repeated (three tries in all, no longer than timeout_ms); so is what can
// be seen to have had no effect: vim_snapshot_create() looks for its name first.
#pragma once

#include "base/secret.h"
#include "wire/tls.h"

#include <stdatomic.h>

#define VIM_TIMEOUT_MS 60000

typedef struct Vim Vim;

typedef struct VimSpec {
    const char *host; // "vc.example.org", "host:port", "[::1]:443"; nothing else of a URL. Port 443 if none is given
    const char *user;
    const Secret *password;
    const char *thumbprint;    // SHA-256 of the certificate (wire/tls.h); NULL or "": none
    const char *ca_pem;        // NULL or "": the system's. Not looked at when there is a thumbprint
    int timeout_ms;            // of the server's silence; 0: VIM_TIMEOUT_MS
    const atomic_bool *cancel; // looked at several times a second; NULL: none. Borrowed for the Vim's lifetime
} VimSpec;

// The certificate that host shows, trusted or not, to be shown and pinned. Only a TLS handshake: nothing of the user's
// is sent. ERR_USAGE: no host.
bool vim_certificate(const char *host, int timeout_ms, const atomic_bool *cancel, TlsCertificate *ret, Err *err)
    must_check;

// Logs in. What the spec points to is copied, cancel excepted. ERR_USAGE: host, ERR_INVALID: thumbprint or CA.
// Nothing is sent before the certificate was found right.
bool vim_open(const VimSpec *spec, Vim **ret, Err *err) must_check;
// Logs out, whatever the cancel flag says, waiting 5 s at most: sessions are limited. NULL is fine.
void vim_close(Vim *v);
// From now on; NULL: none. So that cleaning up can go on after a cancel.
void vim_set_cancel(Vim *v, const atomic_bool *cancel);

// From now on calls that may be repeated are repeated for so long while the server is not there (ERR_UNAVAILABLE
// without a fault), as when it is started anew. 0, as it is at first: three tries.
void vim_set_patience(Vim *v, int ms);

typedef struct VimAbout {      // borrowed from the Vim
    const char *full_name;     // "VMware vCenter Server 8.0.2 build-…"
    const char *api_type;      // "VirtualCenter"; "HostAgent" for an ESXi host
    const char *api_version;   // "8.0.2.0"
    const char *instance_uuid; // of the vCenter; "" for a host
} VimAbout;
VimAbout vim_about(const Vim *v);
// What the server showed when the Vim was opened: its SHA-1 is what VDDK wants to know.
const TlsCertificate *vim_shown(const Vim *v);
// The session as VDDK's cookie= takes it: "vmware_soap_session=…", quotes included if the server gave some. It changes
// when the session is renewed, and is dead after vim_close(). Borrowed until the next call.
const Secret *vim_session_cookie(const Vim *v);
// To be called every now and then while nothing else is: asks for the time if no call was made for idle_ms, and waits
// 5 s at most. A session that has ended is left for the next call to renew. The last call's fault stays.
void vim_keep_alive(Vim *v, int idle_ms);

// The fault that the last call, or the task that it waited for, ended with; all "" if none did.
typedef struct VimFault {
    char type[64];     // "FileFault"
    char property[64]; // of InvalidArgument: invalidProperty, "changeId"; of NoPermission: privilegeId
    char text[512];    // for people
    bool quiescing;    // the guest could not be quiesced
} VimFault;
const VimFault *vim_fault(const Vim *v);

// ---- what there is

typedef enum VimSaid { VIM_UNSAID, VIM_NO, VIM_YES } VimSaid;

// One virtual disk of a VM, as it is now or as a snapshot has it. Joined by key, never by position.
typedef struct VimDisk {
    int32_t key;
    char *label;              // "Hard disk 1"
    uint64_t capacity;        // bytes, exact; 0: not said
    char *file;               // "[datastore1] web/web_1.vmdk"; of a VM with snapshots: its newest delta
    char *uuid;               // of the backing
    char *change_id;          // opaque, as it came; "" when CBT is off or the disk cannot be tracked
    char *backing;            // "FlatVer2", "SparseVer2", "SeSparse", "RawDiskMappingVer1", "RawDiskVer2", or whatever
                              // stands before BackingInfo in its type, "VirtualDisk" taken off
    char *disk_mode;          // "persistent", "independent_persistent", "independent_nonpersistent", …
    char *compatibility_mode; // of an RDM: "physicalMode", "virtualMode"
    char *sharing;            // "sharingNone", "sharingMultiWriter"
    char *bus_sharing;        // of its controller: "noSharing", "virtualSharing", "physicalSharing"
} VimDisk;

typedef struct VimDisks {
    VimDisk *items; // in the server's order
    size_t len;
} VimDisks;
void vim_disk_clear(VimDisk *d);
void vim_disks_clear(VimDisks *d);

typedef struct VimSnapshot {
    char *moref;
    char *name;
    char *description;
    char *created; // as the server writes it: "2026-01-02T03:04:05.678Z"
    int parent;    // index of the one that it was made on; -1: a root. Parents come before their children
    bool quiesced;
} VimSnapshot;

typedef struct VimVm {
    char *moref; // "vm-62"
    char *name;  // for people: %2f, %5c and %25 are decoded
    char *path;  // "/DC0/vm/Folder/NAME" as vim_find() takes it: a "/" in a name is %2f, a "\" is %5c, a "%" is %25.
                 // "" when a folder above it cannot be seen
    char *uuid;  // config.uuid (BIOS)
    char *instance_uuid;       // config.instanceUuid: its identity within a vCenter
    char *power_state;         // "poweredOn", "poweredOff", "suspended"
    char *connection_state;    // "connected", "disconnected", "orphaned", "inaccessible", "invalid"
    char *vmx_file;            // "[datastore1] web/web.vmx"
    char *host;                // moref of the ESXi host that it runs on
    char *host_name;           // "" from vim_vm() and vim_find()
    char *tools_status;        // guest.toolsRunningStatus: "guestToolsRunning", …: whether quiescing can work
    char *current_snapshot;    // moref
    unsigned hardware_version; // 19 of "vmx-19"; 0: not said
    bool is_described;         // false: its configuration cannot be read (no right to it, or it is inaccessible)
    bool is_template;
    bool consolidation_needed;
    VimSaid tracking;           // config.changeTrackingEnabled
    VimSaid tracking_supported; // capability.changeTrackingSupported
    VimDisks disks;
    VimSnapshot *snapshots;
    size_t snapshots_len;
    char **datastores; // morefs
    size_t datastores_len;
} VimVm;
void vim_vm_clear(VimVm *vm);

// Every VM that the user may see, templates included, each handed to on_vm once; false from it (with err) ends the
// call. However many VMs there are, the number of calls is in proportion to pages of VIM_PAGE, and memory to one page,
// and the number of folders and hosts. ERR_UNAVAILABLE if session or connection end in between: start anew.
#define VIM_PAGE 200
typedef bool (*VimOnVm)(void *ctx, const VimVm *vm, Err *err);
bool vim_list(Vim *v, VimOnVm on_vm, void *ctx, Err *err) must_check;

// One VM: by moref, or by its path (anything with a "/" in it). ERR_NOT_FOUND: there is none, or it is not a VM.
bool vim_vm(Vim *v, const char *moref, VimVm *ret, Err *err) must_check;
bool vim_find(Vim *v, const char *moref_or_path, VimVm *ret, Err *err) must_check;

// Which of the privileges that a backup needs the user lacks: on the VM (and its datastores); moref NULL: on the root
// folder. *ret: NULL-terminated, static names, the array the caller's to free(); empty: none is missing.
bool vim_privileges(Vim *v, const char *moref, const char ***ret_missing, Err *err) must_check;

// ---- what a backup does. Each waits for its task: ERR_TIMEOUT after timeout_ms, ERR_CANCELLED; the task was then
// asked to stop, and may still come to an end of its own.

// Switches change tracking. On: ERR_CONFLICT while the VM has snapshots (since vSphere 6.5 its answers would be wrong
// without an error); and it takes effect only with the next snapshot that is made and removed.
bool vim_set_cbt(Vim *v, const char *moref, bool on, int timeout_ms, Err *err) must_check;

// Without the guest's memory. ret_moref: the snapshot, the caller's. ERR_INVALID: a name with "/", "\" or "%", which
// the server would write differently. ERR_EXISTS: the VM has one of that name; looked at before anything is done. A
// guest that cannot be quiesced: vim_fault()->quiescing. After any other failure the snapshot may exist, or come about
// later: it is to be looked for by its name.
bool vim_snapshot_create(Vim *v, const char *moref, const char *name, const char *description, bool quiesce,
                         int timeout_ms, char **ret_moref, Err *err) must_check;
// Waits until what runs on the VM has ended, whatever became of it: a task that was cancelled may go on.
bool vim_settle(Vim *v, const char *moref, int timeout_ms, Err *err) must_check;
// That one alone, its children stay; disks are consolidated. True as well if it is gone already.
bool vim_snapshot_remove(Vim *v, const char *snapshot, int timeout_ms, Err *err) must_check;

// The disks as the snapshot froze them: its config.hardware.device.
bool vim_snapshot_disks(Vim *v, const char *snapshot, VimDisks *ret, Err *err) must_check;

// What changed on a disk of that snapshot since change_id ("*": the areas in use), from the offset `start` on, as far
// as the server answers in one go: *ret_next is where to go on, and the capacity at the end. Of `disk` (as
// vim_snapshot_disks() gave it) only key and capacity are looked at. Each area goes to on_area as it arrives (bytes;
// length > 0; ascending, without overlap, within [start, *ret_next)); false from it (with err) ends the call. Areas
// that were given before a failure count for nothing. start must be below the capacity (ERR_INTERNAL).
//
// ERR_CONFLICT: the server refused, so tracking is lost for this disk; details begin with the fault's type.
// ERR_PROTOCOL: it answered what cannot be right (a length of 0, an area outside the window or out of order): not to be
// believed either. The other codes of every call say nothing of tracking.
typedef bool (*VimOnArea)(void *ctx, uint64_t offset, uint64_t length, Err *err);
bool vim_changed_areas(Vim *v, const char *moref, const char *snapshot, const VimDisk *disk, uint64_t start,
                       const char *change_id, VimOnArea on_area, void *ctx, uint64_t *ret_next, Err *err) must_check;
