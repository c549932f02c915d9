// The database as one file: taken while the hub works, kept in a repository, and made a database again.
// docs/internals/database-backup.md has the format and says why it is SQLite's for both databases.
#pragma once

#include "base/uuid.h"
#include "store/db.h"

#define DUMP_TEXT_MAX 32

typedef struct DumpInfo { // what a file says of itself
    char hub_id[UUID_TEXT];
    uint64_t number; // counts up
    int64_t created_us;
    char engine[DUMP_TEXT_MAX], version[DUMP_TEXT_MAX];
    uint64_t schema, database_bytes;
} DumpInfo;

// ---- the database and SQLite files of it. Paths that are made must not be there.

// The whole database as it is at one moment. Nobody waits for it.
bool dump_take(Store *s, const char *path, const DbPatience *patience, Err *err) must_check;
// What came out of a file: SQLite finds it sound, and it gets the newest schema. ERR_UNSUPPORTED: it is newer;
// ERR_DAMAGED: it is no database of a hub's.
bool dump_upgrade(const char *path, Err *err) must_check;
// Empty, and of the newest schema.
bool dump_new(const char *path, Err *err) must_check;
// All rows of one that was upgraded, into an empty one.
bool dump_fill(const char *from, const char *to, Err *err) must_check;
// Are there no repositories, VMs, sources or jobs? What cannot be read is not empty.
bool dump_is_empty(const char *path, bool *ret, Err *err) must_check;
bool dump_remove(const char *path, Err *err) must_check; // with SQLite's helpers of it; fine if it is gone
// One file, on the disk: what a crash may have left of its log is in it.
bool dump_settle(const char *path, Err *err) must_check;
// All rows of MariaDB's database go, and those of an SQLite file that dump_new() made come, in one transaction.
bool dump_into(Store *mariadb, const char *from, Err *err) must_check;

// ---- the packed file

// Writes to fd, which is at the start of a new file; info's sizes and schema are found by itself.
bool dump_file_pack(const char *database, int fd, const DumpInfo *info, const DbPatience *patience, Err *err)
    must_check;
// Checks all of it, and writes the database to fd (-1: only checks). ERR_DAMAGED says what is wrong; ERR_UNSUPPORTED: a
// newer format.
bool dump_file_unpack(const char *path, int fd, DumpInfo *ret, const DbPatience *patience, Err *err) must_check;
