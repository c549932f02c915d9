#include "domain/vsphere.h"

#include "base/num.h"
#include "base/str.h"

// ---- names

static bool is_alnum(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

// The length of a host's name or address at the start of s; 0: there is none.
static size_t host_length(const char *s)
{
    if (*s == '[') {
        size_t n = strspn(s + 1, "0123456789abcdefABCDEF:.");
        return n >= 2 && s[n + 1] == ']' ? n + 2 : 0;
    }
    size_t n = 0;
    while (is_alnum(s[n]) || s[n] == '.' || s[n] == '-' || s[n] == '_')
        n++;
    return n > 0 && n <= 255 && is_alnum(s[0]) ? n : 0;
}

bool vsphere_check_address(const char *address, Err *err)
{
    Err bad = ERR_INIT;
    uint64_t port;
    size_t n = host_length(address);
    bool fine = n > 0 && strlen(address) <= VSPHERE_ADDRESS_MAX &&
        (address[n] == '\0' || (address[n] == ':' && num_u64(address + n + 1, 1, 65535, &port, &bad)));
    return fine ||
        err_set(err, ERR_INVALID,
                "vcenter is no host or host:port; HINT: vc.example.org, 192.0.2.1:443, [2001:db8::1]");
}

bool vsphere_is_moref(const char *text)
{
    size_t n = str_starts(text, "vm-") ? strspn(text + 3, "0123456789") : 0;
    return n > 0 && n <= 20 && text[3 + n] == '\0';
}

bool vsphere_check_vm(const char *text, Err *err)
{
    size_t n = strnlen(text, VSPHERE_PATH_MAX + 1);
    if (vsphere_is_moref(text))
        return true;
    if (text[0] != '/' || n < 2)
        return err_set(
            err, ERR_INVALID,
            "vm is neither an inventory path nor a moref; HINT: /DC/vm/NAME, or vm-16; discovery lists them");
    if (n > VSPHERE_PATH_MAX || !str_is_utf8(text, n) || !str_has_no_controls(text))
        return err_set(err, ERR_INVALID,
                       "vm is no inventory path: at most %d bytes of UTF-8 without control characters",
                       VSPHERE_PATH_MAX);
    return true;
}

// ---- what stands in a backup's way

#define OBSTACLE(c, t) ((VsphereObstacle){.code = (c), .text = (t)})

// Backings that carry a changeId: the disks whose changes vSphere tracks.
static bool is_tracked_backing(const char *backing)
{
    static const char *const known[] = {"FlatVer2", "SparseVer2", "SeSparse", "RawDiskMappingVer1", "RawDiskVer2"};
    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        if (str_eq(backing, known[i]))
            return true;
    return false;
}

bool vsphere_disk_obstacle(const VsphereDisk *disk, VsphereObstacle *ret)
{
    VsphereObstacle o = {.code = NULL};
    if (str_eq(disk->compatibility_mode, "physicalMode"))
        o = OBSTACLE("physical_rdm",
                     "a raw device mapping in physical mode: no snapshot holds it; back it up from within "
                     "the guest, or leave it out");
    else if (str_starts(disk->disk_mode, "independent"))
        o = OBSTACLE("independent_disk",
                     "an independent disk: no snapshot holds it; make it dependent, or leave it out");
    else if (str_eq(disk->sharing, "sharingMultiWriter") || str_eq(disk->bus_sharing, "virtualSharing") ||
             str_eq(disk->bus_sharing, "physicalSharing"))
        o = OBSTACLE("shared_disk",
                     "a disk that several VMs write to: no snapshot can be made while it is shared; back "
                     "it up from within the guest");
    else if (!is_tracked_backing(disk->backing))
        o = OBSTACLE("unknown_backing", "a disk of a kind that has no change tracking; leave it out");
    o.disk = disk;
    if (o.code)
        *ret = o;
    return o.code != NULL;
}

size_t vsphere_obstacles(const VsphereVm *vm, VsphereObstacle *ret)
{
    size_t n = 0;
    if (vm->hardware_version > 0 && vm->hardware_version < 7)
        ret[n++] = OBSTACLE("hardware_version",
                            "its virtual hardware is older than version 7, and has no change tracking; upgrade it");
    else if (vm->cbt_unsupported)
        ret[n++] = OBSTACLE("cbt_not_supported", "vCenter says that its changes cannot be tracked");
    if (vm->is_template)
        ret[n++] = OBSTACLE("template", "it is a template; make a VM of it");
    if (!str_eq(vm->connection_state, "connected") && *vm->connection_state)
        ret[n++] = OBSTACLE("not_connected", "its host is not connected, or its files are not reached from there");
    if (!vm->is_described) {
        ret[n++] =
            OBSTACLE("not_described", "its configuration cannot be read: the account may not, or it is not reached");
        return n;
    }
    if (vm->disks_len == 0)
        ret[n++] = OBSTACLE("no_disks", "it has no disk");
    for (size_t i = 0; i < vm->disks_len; i++)
        n += vsphere_disk_obstacle(&vm->disks[i], &ret[n]);
    if (!vm->cbt_on && vm->snapshots > 0)
        ret[n++] = OBSTACLE("cbt_off_with_snapshots",
                            "change tracking is off, and is not switched on while there are "
                            "snapshots, or it would be wrong; remove them");
    if (vm->consolidation_needed)
        ret[n++] = OBSTACLE("consolidation_needed",
                            "disks of removed snapshots are still in use; consolidate them in vCenter");
    return n;
}
