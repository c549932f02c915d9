// A new QCOW2 image as the sink of a copy, through the same writer that makes restore points.
#pragma once

#include "wire/blocks.h"

typedef struct SinkImageSpec {
    const char *path;
    uint64_t size; // bytes of the disk; the image's is rounded up to 512, as everywhere in QCOW2
    uint32_t cluster_size;
    bool replace; // an existing file may be replaced
} SinkImageSpec;

// Written as PATH.partial (mover/sink_path.h), which becomes PATH in sink_image_finish(). Requests complete at once.
bool sink_image_open(const SinkImageSpec *spec, Blocks **ret, Err *err) must_check;
// After a copy of the whole disk that went well: writes the tables and gives the image its name, durably. Freeing a
// sink that was not finished removes the unfinished file.
bool sink_image_finish(Blocks *b, Err *err) must_check;
