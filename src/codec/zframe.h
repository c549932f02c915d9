// zstd frames that hold one cluster each (RFC 8878; QCOW2's compression type 1). Pure: bytes to bytes. A frame lies at
// the start of whole sectors, with zeros behind it; the last 8 bytes are the XXH3-64 of all that is before them,
// little endian. QEMU does not look behind the frame; we do, because a frame has bits that no decoder minds.
#pragma once

#include "base/mem.h"

#define ZFRAME_LEVEL_MAX 19 // of 1 to this
#define ZFRAME_SECTOR 512u  // QCOW2 counts compressed data in sectors; ours begin and end with one

// What compressing needs between two clusters. One thread at a time.
typedef struct ZframePress ZframePress;
bool zframe_press_new(unsigned level, ZframePress **ret, Err *err) must_check;
void zframe_press_free(ZframePress *z);
// Compresses n bytes of p into out, of max bytes (whole sectors). Returns the bytes used, whole sectors; 0 where it
// does not fit.
size_t zframe_press(ZframePress *z, const void *p, size_t n, void *out, size_t max);

// Inflates what a press made, of in_bytes, into exactly out_bytes. ERR_DAMAGED for anything else: what is in a
// repository may be hostile. Thread-safe.
bool zframe_inflate(const void *in, size_t in_bytes, void *out, size_t out_bytes, Err *err) must_check;
