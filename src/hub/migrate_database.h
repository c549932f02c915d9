// sendense-hub migrate-database: the catalogue from SQLite to MariaDB, or back.
#pragma once

#include "hub/settings.h"

// Says on stdout what was moved. No hub may run on the data folder or the database meanwhile: ERR_BUSY.
bool migrate_database(const Settings *s, Err *err) must_check;
