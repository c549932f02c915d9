// The files that a disk is read from: an image, and the backing files of a foreign QCOW2. Held open and
// remembered, to see at the end whether somebody changed one.
#pragma once

#include "source/file/spec.h"

#include <time.h>

typedef struct FileLayer {
    char *path;
    int fd; // O_RDONLY; of a block device O_EXCL as well
    bool device;
    uint64_t dev, ino;
    uint64_t size;      // bytes of the file or device
    uint64_t allocated; // bytes on disk; of a device its size
    struct timespec mtime, ctime;
} FileLayer;

typedef struct FileLayers {
    FileLayer *items; // top first
    size_t len;
    FileFormat format; // of the top: FILE_RAW or FILE_QCOW2
} FileLayers;

// Opens path and what lies below. Refused: what is neither file nor block device; an empty one; a device that
// something else has claimed, and whatever a QEMU writes to (ERR_BUSY, both unless inconsistent; and none can
// start to while the layers are open); a QCOW2 whose format was only guessed and that
// refers to other files (whoever wrote the disk's first sector would choose what is read); backing names that are
// not plain paths, backing files without a format, external data files.
bool file_layers_open(const char *path, FileFormat format, bool inconsistent, FileLayers *ret, Err *err) must_check;

// ERR_CONFLICT that names what changed. With may_be_written only a replaced file and a resized raw disk count.
bool file_layers_unchanged(const FileLayers *l, bool may_be_written, Err *err) must_check;
// Words that differ as soon as one of the files was written to or replaced: device, inode, size, times of each layer.
// NULL in *ret where no such words can be had: of a device, of too many layers, or where the times are so young that a
// later write could have the same.
bool file_layers_token(const FileLayers *l, char **ret, Err *err) must_check;
void file_layers_clear(FileLayers *l);
