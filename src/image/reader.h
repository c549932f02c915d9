// A restore point's disk, read-only: our own QCOW2 subset, the chain's map flattened group by group,
// each cluster checked against its leaf as it is read: wrong bytes are never handed out (ERR_DAMAGED,
// with offset and layer). Foreign images are refused (safety rule 19).
#pragma once

#include "domain/extent.h"
#include "image/hashes.h"

typedef struct ReaderLayer {
    const char *image;        // path
    const char *hashes;       // path
    const char *backing_name; // what the record says the image's backing file must be called; NULL: none
} ReaderLayer;

typedef struct Reader Reader;

// layers[0] is the point, the last one the full. Headers are checked: magic, version 3, cluster size, size
// equal to the .hashes trailer's (rounded up to 512 in the header), backing name, no encryption, no data
// file, no snapshots, no unknown incompatible bits, extended L2 and zstd clusters accepted.
bool reader_open(const ReaderLayer *layers, size_t n, const HashGeometry *geo, Reader **ret, Err *err) must_check;
void reader_free(Reader *r);
uint64_t reader_size(const Reader *r); // bytes, exact
// Thread-safe; any alignment within [0, size).
bool reader_read(Reader *r, void *p, uint64_t offset, uint32_t length, Err *err) must_check;
// Zero (by every layer) or data, ascending, whole range, cut at cluster bounds or finer.
bool reader_extents(Reader *r, uint64_t offset, uint64_t length, ExtentVec *ret, Err *err) must_check;
// Which layer decides the cluster at offset (0: the point itself); 255 for nobody.
bool reader_layer_at(Reader *r, uint64_t offset, uint8_t *ret_layer, Err *err) must_check;
