// A disk of a restore point, served by the hub for as long as it is read: by a socket of the hub's
// machine, or through its port.
#pragma once

#include "cli/cli.h"
#include "image/hash.h"
#include "wire/hub_nbd.h"

typedef struct PointExport {
    Cli *cli; // borrowed
    char *id; // NULL: none
    char *uri;
    HubNbd *way; // to it
    char *root;  // the disk's root hash as text
    uint64_t disk_id, size;
    uint32_t cluster_size;
    HashSpec hash;
    bool suspect;
} PointExport;

// disk: as the backup's "disks" has it. purpose: "restore" or "verify". ERR_DAMAGED: the files are not what was
// written.
bool point_export_open(Cli *c, const char *backup_id, const json_t *disk, const char *purpose, PointExport *ret,
                       Err *err) must_check;
bool point_export_read(const PointExport *e, Blocks **ret, Err *err) must_check;
// Ends it on the hub; says so on standard error where that fails. Fine on a zeroed struct. No Blocks may be left.
void point_export_close(PointExport *e);

// Bytes that are not known to be zero.
bool point_export_data(Blocks *b, uint64_t size, uint64_t *ret, Err *err) must_check;

// After a read of a disk failed with ERR_IO: the first cluster in [start, stop) that the hub's export refuses, which it
// does with exactly those that are not what was written. Through an export of its own: nbdkit 1.32 dies when a client
// leaves with requests in flight. True: *ret_offset is the cluster's, and *why becomes ERR_DAMAGED. False: there is
// none, or it cannot be told, and *why stays; or the hub finds more than a cluster damaged, and *why is what it says.
bool point_export_locate(Cli *c, const char *backup_id, const json_t *disk, uint64_t start, uint64_t stop,
                         uint64_t *ret_offset, Err *why);
