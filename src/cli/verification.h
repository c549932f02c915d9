// What reading a restore point showed, for the hub's catalogue: POST /backups/{id}/verification.
#pragma once

#include "cli/cli.h"

// disk: as the backup's "disks" has it; NULL where all of them are meant. offset: of the first damaged cluster; NULL:
// not known. details: what was wrong; NULL: nothing. True: *ret_answer names the points that are "affected" and, where
// it is known, the damaged "file". False: the hub was not told, and standard error says so; the catalogue is wrong.
bool verification_report(Cli *c, const char *backup_id, const char *result, const json_t *disk, const uint64_t *offset,
                         const char *details, json_t **ret_answer) must_check;
