#include "source/vsphere/vsphere.h"

#include "base/clock.h"
#include "base/str.h"
#include "domain/changeid.h"
#include "domain/vsphere.h"
#include "source/vsphere/parts.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>

#define DISKS_AT_ONCE 8 // latency is what bounds the rate of one; of a host's 12 (slots.c) some are left for other VMs
#define AWAY_MS (10 * 60 * 1000) // a vCenter takes minutes to start

bool vsphere_pause(const VsphereSource *v, int ms)
{
    for (int64_t until = clock_mono_ms() + ms, left = ms; left > 0; left = until - clock_mono_ms()) {
        if (v->cancel && atomic_load(v->cancel))
            return false;
        (void)poll(NULL, 0, (int)MIN(left, 50)); // only a wait; the loop looks at the clock
    }
    return true;
}

static bool check_spec(const json_t *spec, Err *err)
{
    VsphereSpec s;
    return vsphere_spec_read(spec, &s, err);
}

static bool log_in(VsphereSource *v, const SourceRequest *req, Err *err)
{
    const SourceVcenter *c = req->vcenter;
    if (!c || !v->spec.moref)
        return err_set(err, ERR_INVALID, "the work order does not say how to reach the vCenter");
    if (!mem_replace(&v->host, c->host, err) || !mem_replace(&v->user, c->user, err) ||
        !mem_replace(&v->moref, v->spec.moref, err) || !secret_set(&v->password, secret_reveal(c->password), err))
        return false;
    VimSpec spec = {.host = v->host,
                    .user = v->user,
                    .password = &v->password,
                    .thumbprint = c->thumbprint,
                    .ca_pem = c->ca_pem,
                    .cancel = req->cancel};
    if (!vim_open(&spec, &v->vim, err))
        return false;
    vim_set_patience(v->vim, AWAY_MS); // it was there: whatever is under way is not lost with a restart
    return mem_replace(&v->thumbprint, vim_shown(v->vim)->sha1, err);
}

// A change ID's epoch is what stands before its slash: another one means that tracking began anew.
static bool same_epoch(const char *a, const char *b)
{
    const char *x = strrchr(a, '/'), *y = strrchr(b, '/');
    return x && y && x - a == y - b && memcmp(a, b, (size_t)(x - a)) == 0;
}

// Is what was recorded then of this very disk, and does the vCenter say what changed since? Why not: in why.
static bool follows(VsphereSource *v, const VimDisk *d, const char *change_id, const char *uuid, uint64_t size,
                    uint64_t *ret_bytes, char why[256], ChainReason *ret_code, Err *err)
{
    Err refused = ERR_INIT;
    why[0] = '\0';
    *ret_code = CHAIN_NONE;
    if (size != d->capacity)
        (void)snprintf(why, 256, "the disk had %" PRIu64 " bytes, and has %" PRIu64, size, d->capacity);
    else if (uuid && uuid[0] && d->uuid[0] && !str_eq(uuid, d->uuid)) {
        *ret_code = CHAIN_REPLACED;
        (void)snprintf(why, 256, "the disk was replaced: its backing has another UUID");
    } else if (!same_epoch(change_id, d->change_id)) {
        *ret_code = CHAIN_EPOCH_CHANGED;
        (void)snprintf(why, 256, "tracking began anew since then: the change ID has another epoch");
    } else if (!vsphere_areas_probe(v, d, change_id, ret_bytes, &refused)) {
        if (refused.code != ERR_CONFLICT && refused.code != ERR_PROTOCOL && refused.code != ERR_INVALID &&
            refused.code != ERR_UNSUPPORTED) {
            *err = refused; // says nothing of tracking
            return false;
        }
        *ret_code = CHAIN_ID_REFUSED;
        (void)snprintf(why, 256, "%.255s", refused.details);
    }
    return true;
}

// For the look at the free space before a full: the areas in use are near enough, and where the vCenter does not name
// them nobody knows. The whole size would refuse every large disk that holds little.
static uint64_t in_use(VsphereSource *v, VsphereDiskState *state, bool tracked)
{
    Err unknown = ERR_INIT;
    uint64_t bytes = 0;
    state->in_use_known = tracked && vsphere_areas_probe(v, &state->disk, "*", &bytes, &unknown);
    return state->in_use_known ? MIN(bytes, state->disk.capacity) : 0;
}

static const char *why_untracked(const VsphereSource *v, const VimDisk *d, const Err *odd)
{
    return !v->tracks ? v->why_not : d->change_id[0] ? odd->details : "the vCenter tracks no changes of this disk";
}

static bool describe(VsphereSource *v, size_t i, Err *err)
{
    VsphereDiskState *state = &v->disks[i];
    const VimDisk *d = &state->disk;
    SourceDisk *out = &v->s.disks[i];
    const SourceParent *parent = source_parent(v->req, out->key);
    const SourceInterrupted *before = source_interrupted(v->req, out->key);
    char why[256] = "";
    uint64_t dirty = 0, ignored;
    ChainReason of_resume;
    Err odd = ERR_INIT; // then it is of no use to anybody
    bool tracked = v->tracks && d->change_id[0] && changeid_check(d->change_id, &odd);
    out->disk_id = (uint64_t)d->key;
    out->size = d->capacity;
    out->allocated_bytes = out->estimated_bytes =
        parent && !v->unallocated_zero ? d->capacity : in_use(v, state, tracked);
    out->tracking = tracked ? "cbt" : "none";
    // a full that leaves out what is not in use is not gone on from: the next run may not take that word
    bool may_leave_out = !parent && v->unallocated_zero && state->in_use_known;
    out->label = mem_printf(err, "%.100s: %.700s", d->label, d->file);
    if (!out->label || !mem_replace(&out->backing_identity, d->uuid, err) ||
        (tracked ? !mem_replace(&out->change_id, d->change_id, err) ||
                 (!may_leave_out && !mem_replace(&out->token, d->change_id, err))
                 : !source_mint(&out->change_id, err)))
        return false;
    if (!tracked)
        (void)snprintf(why, sizeof(why), "%.255s", why_untracked(v, d, &odd));
    else if (parent && !parent->tracking)
        (void)snprintf(why, sizeof(why), "the previous backup was not tracked");
    else if (parent &&
             !follows(v, d, parent->change_id, parent->backing_identity, parent->size, &dirty, why, &out->lost_code,
                      err))
        return false;
    if (parent && !why[0]) {
        out->estimated_bytes = MIN(dirty, d->capacity);
        if (!mem_replace(&out->base_change_id, parent->change_id, err) ||
            !mem_replace(&state->base, parent->change_id, err))
            return false;
    } else if (why[0] && !mem_replace(&out->lost, why, err)) {
        return false;
    }
    if (!before || !tracked)
        return true;
    if (!follows(v, d, before->token, NULL, before->size, &ignored, why, &of_resume, err))
        return false;
    out->resumes = !why[0];
    return why[0] || mem_replace(&state->since, before->token, err);
}

static VsphereDisk as_rule(const VimDisk *d)
{
    return (VsphereDisk){.key = d->key,
                         .backing = d->backing,
                         .disk_mode = d->disk_mode,
                         .compatibility_mode = d->compatibility_mode,
                         .sharing = d->sharing,
                         .bus_sharing = d->bus_sharing};
}

// One disk of the VM, as it is in the snapshot, into the list or left out of it.
static bool take_disk(VsphereSource *v, VimDisk *d, Err *err)
{
    char key[VSPHERE_KEY_TEXT];
    VsphereObstacle obstacle;
    VsphereDisk rule = as_rule(d);
    (void)snprintf(key, sizeof(key), "%" PRId32, d->key);
    if (source_is_excluded(v->req, key))
        return source_leave_out(&v->s, key, err);
    if (vsphere_disk_obstacle(&rule, &obstacle)) {
        if (v->spec.skip_unsupported)
            return source_leave_out(&v->s, key, err);
        return err_set(err, ERR_UNSUPPORTED, "disk %s (%s): %s; HINT: --disks-unsupported skip, or --exclude %s", key,
                       d->label, obstacle.text, key);
    }
    if (d->capacity == 0 || d->capacity % 512 != 0 || !d->file[0])
        return err_set(err, ERR_PROTOCOL, "disk %s has no size or no file in the snapshot", key);
    size_t i = v->s.disks_len++;
    v->disks[i].disk = *d;
    *d = (VimDisk){0}; // it is the list's now
    return mem_replace(&v->s.disks[i].key, key, err);
}

static int by_key(const void *a, const void *b)
{
    int32_t x = ((const VimDisk *)a)->key, y = ((const VimDisk *)b)->key;
    return x < y ? -1 : x > y;
}

static bool take_disks(VsphereSource *v, Err *err)
{
    cleanup(vim_disks_clear) VimDisks disks = {0};
    if (!vim_snapshot_disks(v->vim, v->snapshot, &disks, err))
        return err_context(err, "the snapshot's disks");
    if (disks.len > SOURCE_DISKS_MAX)
        return err_set(err, ERR_UNSUPPORTED, "the VM has %zu disks; %d are the limit", disks.len, SOURCE_DISKS_MAX);
    if (disks.len > 0)
        qsort(disks.items, disks.len, sizeof(*disks.items), by_key); // the VM's first disk first
    v->disks = mem_calloc(disks.len, sizeof(*v->disks), err);
    v->s.disks = mem_calloc(disks.len, sizeof(*v->s.disks), err);
    if (!v->disks || !v->s.disks)
        return false;
    for (size_t i = 0; i < disks.len; i++)
        if (!take_disk(v, &disks.items[i], err))
            return false;
    for (size_t i = 0; i < v->s.disks_len; i++)
        if (!describe(v, i, err))
            return err_context(err, "disk %s", v->s.disks[i].key);
    v->disks_left = v->s.disks_len;
    return v->s.disks_len > 0 || err_set(err, ERR_NOT_FOUND, "the VM has no disk that is not left out");
}

static void clear_states(VsphereDiskState *states, size_t n)
{
    for (size_t i = 0; states && i < n; i++) {
        vim_disk_clear(&states[i].disk);
        free(states[i].base);
        free(states[i].since);
    }
    free(states);
}

// The disk is what it was and its tracking does not even know its own last ID: it stays so until it is switched off and
// on.
static bool is_lost_for_good(VsphereSource *v, size_t i)
{
    const VimDisk *d = &v->disks[i].disk;
    const SourceParent *parent = source_parent(v->req, v->s.disks[i].key);
    uint64_t ignored;
    Err refused = ERR_INIT; // what else is wrong shows elsewhere
    return v->s.disks[i].lost && v->tracks && parent && parent->tracking && d->change_id[0] &&
        same_epoch(parent->change_id, d->change_id) && !vsphere_areas_probe(v, d, d->change_id, &ignored, &refused) &&
        str_eq(vim_fault(v->vim)->type, "FileFault");
}

static bool say_besides(SourceDisk *d, const char *lost, const char *besides, Err *err)
{
    char *text = mem_printf(err, "%.400s; %s", lost, besides);
    if (!text)
        return false;
    free(d->lost);
    d->lost = text;
    return true;
}

// The disks of the new snapshot; what was wrong with them before stays said.
static bool take_disks_anew(VsphereSource *v, Err *err)
{
    Source before = v->s;
    clear_states(mem_take(v->disks), before.disks_len);
    v->s = (Source){.ops = before.ops, .consistency = before.consistency, .parallel = before.parallel};
    v->s.consistency_detail = mem_take(before.consistency_detail);
    bool ok = take_disks(v, err);
    for (size_t i = 0; ok && i < v->s.disks_len; i++)
        for (size_t k = 0; ok && k < before.disks_len; k++)
            if (v->s.disks[i].lost && before.disks[k].lost && str_eq(v->s.disks[i].key, before.disks[k].key)) {
                v->s.disks[i].lost_code = before.disks[k].lost_code;
                ok = say_besides(&v->s.disks[i], before.disks[k].lost, "change tracking was switched off and on", err);
            }
    source_clear(&before);
    return ok;
}

// Else every later backup would be a comparison, too.
static bool renew_lost_tracking(VsphereSource *v, Err *err)
{
    size_t i = 0;
    bool possible;
    while (i < v->s.disks_len && !is_lost_for_good(v, i))
        i++;
    if (i == v->s.disks_len)
        return true;
    if (!vsphere_snapshot_renew(v, &possible, err))
        return err_context(err, "switching change tracking off and on");
    return possible ? take_disks_anew(v, err)
                    : say_besides(&v->s.disks[i], v->s.disks[i].lost,
                                  "change tracking cannot be switched off and on while the VM has other snapshots; "
                                  "remove them",
                                  err);
}

static bool vsphere_open(const SourceRequest *req, Source **ret, Err *err)
{
    VsphereSource *v = mem_calloc(1, sizeof(*v), err);
    if (!v)
        return false;
    v->s.ops = &source_vsphere_ops;
    v->s.consistency = "crash";
    v->s.parallel = DISKS_AT_ONCE;
    v->req = req;
    v->cancel = req->cancel;
    v->waits = req->waits;
    v->waits_ctx = req->waits_ctx;
    v->slot = VSPHERE_NO_SLOT;
    (void)pthread_mutex_init(&v->lock, NULL); // cannot fail with glibc
    (void)pthread_mutex_init(&v->slot_lock, NULL);
    bool ok = vsphere_spec_read(req->spec, &v->spec, err);
    v->unallocated_zero = v->spec.unallocated_zero;
    ok = ok && vsphere_reads_check(err) && log_in(v, req, err) && vsphere_snapshot_open(v, err) && take_disks(v, err) &&
        renew_lost_tracking(v, err) && vsphere_alive_start(v, err);
    v->req = NULL;
    v->spec = (VsphereSpec){0};
    *ret = &v->s;
    return ok;
}

static bool vsphere_blocks(Source *s, size_t disk, bool with_changes, Blocks **ret, Err *err)
{
    VsphereSource *v = (VsphereSource *)s;
    Blocks *areas = NULL;
    if (with_changes && !v->disks[disk].base)
        return err_set(err, ERR_INVALID, "disk %s has no change set", s->disks[disk].key);
    bool in_use = !with_changes && v->unallocated_zero && v->disks[disk].in_use_known;
    const char *since = with_changes ? v->disks[disk].base : "*";
    return (!(with_changes || in_use) || vsphere_areas_open(v, disk, since, &areas, err)) &&
        vsphere_reads_open(v, disk, areas, in_use, ret, err);
}

static bool vsphere_since(Source *s, size_t disk, Blocks **ret, Err *err)
{
    VsphereSource *v = (VsphereSource *)s;
    if (!v->disks[disk].since)
        return err_set(err, ERR_INVALID, "disk %s cannot be compared with the interrupted backup's",
                       s->disks[disk].key);
    return vsphere_areas_open(v, disk, v->disks[disk].since, ret, err);
}

static bool vsphere_intact(Source *s, Err *err)
{
    vsphere_alive_stop((VsphereSource *)s); // nobody else asks from here on
    return vsphere_snapshot_stands((VsphereSource *)s, err);
}

static bool vsphere_close(Source *s, bool completed, Err *err)
{
    VsphereSource *v = (VsphereSource *)s;
    vsphere_alive_stop(v);
    if (v->vim)
        vim_set_patience(v->vim, completed ? AWAY_MS : 0); // a job that failed or was cancelled ends soon
    bool ok = !v->vim || vsphere_snapshot_close(v, err);
    vim_close(v->vim);
    vsphere_slot_clear(&v->slot);
    clear_states(v->disks, s->disks_len);
    source_clear(s);
    free(v->moref);
    free(v->snapshot_name);
    free(v->snapshot);
    free(v->thumbprint);
    free(v->host);
    free(v->esx);
    free(v->user);
    secret_clear(&v->password);
    (void)pthread_mutex_destroy(&v->lock);
    (void)pthread_mutex_destroy(&v->slot_lock);
    free(v);
    return ok;
}

const SourceOps source_vsphere_ops = {
    .type = "vsphere",
    .check_spec = check_spec,
    .open = vsphere_open,
    .blocks = vsphere_blocks,
    .since = vsphere_since,
    .intact = vsphere_intact,
    .close = vsphere_close,
    .sweep = vsphere_sweep,
};
