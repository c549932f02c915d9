// Files and folders: bounded reads, whole writes that are durable, folder syncs, locks.
// Paths are bytes; functions never follow what they are told not to. errno becomes an Err.
#pragma once

#include "base/mem.h"

#include <sys/types.h>

// Whole file into new memory with a NUL after it; above max bytes: ERR_TOO_LARGE. Only regular
// files. ret_len may be NULL; then a NUL byte inside is ERR_INVALID.
bool file_read(const char *path, size_t max, char **ret_text, size_t *ret_len, Err *err) must_check;

// Exactly n bytes at offset, however many calls that takes; end of file first: ERR_DAMAGED.
bool file_pread(int fd, void *p, size_t n, uint64_t offset, Err *err) must_check;
bool file_pwrite(int fd, const void *p, size_t n, uint64_t offset, Err *err) must_check;
bool file_write(int fd, const void *p, size_t n, Err *err) must_check;

// New file (O_EXCL, mode and umask) with these bytes, fsynced; ERR_EXISTS. Removed again on failure. Its name
// is durable only after file_fsync_dir() of the folder.
bool file_create_durable(const char *path, const void *p, size_t n, mode_t mode, Err *err)
    must_check;

bool file_exists(const char *path); // lstat: a dangling link exists
bool file_is_dir(const char *path);
bool file_mkdir(const char *path, mode_t mode, Err *err) must_check;   // fine if a folder is there
bool file_mkdir_p(const char *path, mode_t mode, Err *err) must_check; // with parents
// 0700. ERR_FORBIDDEN: what is there is not a folder of our user that nobody else may enter.
bool file_mkdir_private(const char *path, Err *err) must_check;
bool file_fsync_dir(const char *path, Err *err) must_check;
bool file_rename(const char *from, const char *to, Err *err) must_check; // replaces what is there
bool file_link(const char *from, const char *to, Err *err) must_check; // ERR_EXISTS if it is there
bool file_unlink(const char *path, Err *err) must_check;               // fine if it is gone
bool file_realpath(const char *path, char **ret_path, Err *err) must_check;
// "a/b" of "a" and "b". NULL on lack of memory.
char *file_join(const char *folder, const char *name, Err *err) must_check;

// Names in a folder, sorted, without "." and ".."; at most max entries (ERR_TOO_LARGE).
typedef struct FileList {
    char **names;
    size_t len;
} FileList;
bool file_list(const char *path, size_t max, FileList *ret_list, Err *err) must_check;
void file_list_clear(FileList *list);
// A file, link or folder with all it holds; fine if it is gone. Never follows links nor crosses a mount, bind
// mounts included: ERR_BUSY, and part of the tree may be gone. At most 100 folders deep.
bool file_remove_tree(const char *path, Err *err) must_check;

// Free and total bytes of the filesystem that holds path, for an unprivileged writer.
bool file_space(const char *path, uint64_t *ret_free, uint64_t *ret_total, Err *err) must_check;

// An advisory lock (flock) on path, created 0600; held until the descriptor is closed.
// Held by somebody else (another descriptor of this process included): ERR_BUSY. The file stays.
bool file_lock(const char *path, int *ret_fd, Err *err) must_check;

// One of n places at path, which is created 0600: a locked byte (F_OFD_SETLK), held until the descriptor is closed, and
// so never longer than its process lives. All of them taken: ERR_BUSY. The file stays.
bool file_lock_place(const char *path, unsigned n, int *ret_fd, Err *err) must_check;

// The bytes of an open file, by locks of its descriptor (F_OFD_SETLK), held until that is closed. QEMU locks bytes of
// every image that it has open, and opens none on which somebody else holds them. Held by somebody: ERR_BUSY, and the
// details say whether it is a QEMU. Other names of a block device have locks of their own.
bool file_lock_bytes(int fd, const char *path, Err *err) must_check;     // all of them; fd may write
void file_unlock_bytes(int fd);
bool file_bytes_are_free(int fd, const char *path, Err *err) must_check; // only looks; fd may read
