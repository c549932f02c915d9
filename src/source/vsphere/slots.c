// How many disks the clients of this machine read at a time: from one ESXi host, and through one vCenter. What is above
// that is queued: a host refuses what its buffers have no room for, and a vCenter a connection too many.
//
// Each host and each vCenter is a file, each slot a locked byte of it. The lock goes with its process, however that
// ends, so there is no lease and nothing to clean up.
#include "base/file.h"
#include "base/num.h"
#include "base/str.h"
#include "source/vsphere/parts.h"

#include <ctype.h>
#include <stdio.h>
#include <unistd.h>

#define HOST_DISKS 12    // of 4 MiB each (reads.c): an ESXi host has 48 MiB of buffers for all NFC connections
#define VCENTER_DISKS 52 // NFC connections that a vCenter allows
#define DISKS_MAX 1000
#define LOOK_MS 200 // nothing wakes those who wait for any one of several locks

typedef struct Limits {
    char *host_path, *vcenter_path;
    uint64_t host_disks, vcenter_disks;
} Limits;

static void limits_clear(Limits *l)
{
    free(l->host_path);
    free(l->vcenter_path);
}

static bool limit(const char *name, uint64_t other, uint64_t *ret, Err *err)
{
    const char *text = getenv(name);
    *ret = other;
    return !text || !*text || num_u64(text, 1, DISKS_MAX, ret, err) || err_context(err, "%s", name);
}

static bool open_folder(char **ret, Err *err)
{
    const char *set = getenv("SENDENSE_SLOTS_DIR"), *user_dir = getenv("XDG_RUNTIME_DIR");
    *ret = set && *set                   ? mem_strdup(set, err)
        : geteuid() == 0                 ? mem_strdup("/run/sendense-slots", err)
        : user_dir && user_dir[0] == '/' ? mem_printf(err, "%s/sendense-slots", user_dir)
                                         : mem_printf(err, "/tmp/sendense-slots-%u", (unsigned)geteuid());
    return *ret && (file_mkdir_private(*ret, err) || err_context(err, "the folder of the limits for vCenters"));
}

// The server's words become a file's name: two that are written alike share their limit, which does no harm.
static char *make_path(const char *folder, const char *vcenter, const char *of, Err *err)
{
    char *path = mem_printf(err, "%s/%.100s.%.100s", folder, vcenter, of);
    for (char *p = path ? path + strlen(folder) + 1 : NULL; p && *p; p++)
        if (!isalnum((unsigned char)*p) && *p != '-' && *p != '.')
            *p = '_';
    return path;
}

static bool limits_open(const VsphereSource *v, Limits *l, Err *err)
{
    cleanup_free char *folder = NULL;
    const char *uuid = vim_about(v->vim).instance_uuid, *vcenter = uuid[0] ? uuid : v->host;
    return open_folder(&folder, err) && limit("SENDENSE_VSPHERE_HOST_DISKS", HOST_DISKS, &l->host_disks, err) &&
        limit("SENDENSE_VSPHERE_VCENTER_DISKS", VCENTER_DISKS, &l->vcenter_disks, err) &&
        (l->host_path = make_path(folder, vcenter, v->esx[0] ? v->esx : "host", err)) &&
        (l->vcenter_path = make_path(folder, vcenter, "vcenter", err));
}

// Both or neither: whoever waits holds nothing that somebody else waits for.
static bool try_both(const VsphereSource *v, const Limits *l, VsphereSlot *ret, Err *err)
{
    cleanup_close int host = -1, vcenter = -1;
    if (!file_lock_place(l->host_path, (unsigned)l->host_disks, &host, err)) {
        if (err->code != ERR_BUSY)
            return false;
        err_clear(err);
        return err_set(err, ERR_BUSY, "as many disks of the ESXi host %s are being read as may be (%u)", v->esx,
                       (unsigned)l->host_disks);
    }
    if (!file_lock_place(l->vcenter_path, (unsigned)l->vcenter_disks, &vcenter, err)) {
        if (err->code != ERR_BUSY)
            return false;
        err_clear(err);
        return err_set(err, ERR_BUSY, "as many disks of the vCenter %s are being read as may be (%u)", v->host,
                       (unsigned)l->vcenter_disks);
    }
    *ret = (VsphereSlot){.host = mem_take_fd(&host), .vcenter = mem_take_fd(&vcenter)};
    return true;
}

static bool take_in_hand(VsphereSource *v, VsphereSlot *ret)
{
    pthread_mutex_lock(&v->slot_lock);
    *ret = v->slot;
    v->slot = VSPHERE_NO_SLOT;
    pthread_mutex_unlock(&v->slot_lock);
    return ret->host >= 0;
}

static bool wait_for_one(VsphereSource *v, VsphereSlot *ret, bool *ret_waited, Err *err)
{
    cleanup(limits_clear) Limits l = {0};
    bool waited = false;
    if (!limits_open(v, &l, err))
        return false;
    for (;;) {
        Err why = ERR_INIT;
        if (take_in_hand(v, ret) || try_both(v, &l, ret, &why))
            break;
        if (why.code != ERR_BUSY) {
            *err = why;
            return false;
        }
        if (!waited && v->waits)
            v->waits(v->waits_ctx, why.details);
        waited = true;
        if (!vsphere_pause(v, LOOK_MS))
            return err_set(err, ERR_CANCELLED, "cancelled while it was queued: %.400s", why.details);
    }
    if (waited && v->waits)
        v->waits(v->waits_ctx, NULL);
    *ret_waited = waited;
    return true;
}

bool vsphere_slot_reserve(VsphereSource *v, bool *ret_waited, Err *err)
{
    VsphereSlot slot;
    if (!wait_for_one(v, &slot, ret_waited, err))
        return false;
    v->slot = slot; // no other thread is there yet
    return true;
}

bool vsphere_slot_take(VsphereSource *v, VsphereSlot *ret, Err *err)
{
    bool waited;
    if (!wait_for_one(v, ret, &waited, err))
        return false;
    pthread_mutex_lock(&v->slot_lock);
    v->disks_left -= v->disks_left > 0;
    if (v->disks_left == 0)
        vsphere_slot_clear(&v->slot); // one that came back meanwhile
    pthread_mutex_unlock(&v->slot_lock);
    return true;
}

void vsphere_slot_return(VsphereSource *v, VsphereSlot *slot)
{
    pthread_mutex_lock(&v->slot_lock);
    if (v->disks_left > 0 && v->slot.host < 0) {
        v->slot = *slot;
        *slot = VSPHERE_NO_SLOT;
    }
    pthread_mutex_unlock(&v->slot_lock);
    vsphere_slot_clear(slot);
}

void vsphere_slot_clear(VsphereSlot *slot)
{
    mem_cleanup_close(&slot->host);
    mem_cleanup_close(&slot->vcenter);
}
