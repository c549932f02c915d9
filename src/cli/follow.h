// Following a backup until it is over, over hubs that restart: bars on a terminal, lines elsewhere, and for each disk
// that is not tracked the reason.
#pragma once

#include "cli/cli.h"

// *ret_backup: the backup in its final state. SIGINT cancels the backup and following goes on; a second one, SIGTERM or
// SIGHUP end it: ERR_CANCELLED. ERR_UNAVAILABLE after ten minutes without the hub.
bool follow_backup(Cli *c, const char *backup_id, json_t **ret_backup, Err *err) must_check;
