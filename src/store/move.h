// The whole catalogue from SQLite to MariaDB, or back. docs/internals/mariadb.md says why it is safe.
#pragma once

#include "store/store.h"

#define STORE_DIGEST_TEXT 65

typedef struct StoreMove {
    const char *sqlite; // the file; the caller holds its folder's lock
    const StoreMariadb *mariadb;
    bool to_mariadb;
    // Called for each table once it was read back from both: the same rows. digest: SHA-256 over them, in hex.
    void (*compared)(void *ctx, const char *table, uint64_t rows, const char *digest);
    void *ctx;
} StoreMove;

// The source is only read. A target without rows gets all of them, or none; *ret_before: it had the very same already.
// Once it was cut off it can be called again. ERR_NOT_FOUND: there is no source; ERR_EXISTS: the target has other rows;
// ERR_BUSY: a hub has the database; ERR_UNSUPPORTED: the source's schema is not this program's; ERR_CONFLICT: it has
// tables or columns, or rows, that do not fit; ERR_DAMAGED: what was read back differs.
bool store_move(const StoreMove *m, bool *ret_before, Err *err) must_check;
