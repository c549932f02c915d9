// The spec of a VM of type "file": {"type", "disks": [{"key"?, "path" | "uri", "format"?}], "inconsistent"?}.
#pragma once

#include "source/common.h"

typedef enum FileFormat { FILE_PROBED, FILE_RAW, FILE_QCOW2 } FileFormat;

#define FILE_KEY_TEXT 256

typedef struct FileSpecDisk {
    char key[FILE_KEY_TEXT]; // "disk-<index>" where the spec has none
    const char *path;        // borrowed from the spec; NULL: uri
    const char *uri;
    FileFormat format;
} FileSpecDisk;

typedef struct FileSpec {
    FileSpecDisk *disks;
    size_t len;
    bool inconsistent;
} FileSpec;

bool file_spec_read(const json_t *spec, FileSpec *ret, Err *err) must_check;
void file_spec_clear(FileSpec *s);
