// Everything of an image file that is not a data cluster in use: header, L1, L2 tables, refcounts, and
// clusters that a zero mark keeps. One hash over them, in file order, is in the commit record, so that a
// flipped byte anywhere outside the data is seen without reading the data (which its leaves protect).
#pragma once

#include "image/hash.h"

// Walks the finished image at image_path and checks that it is as the writer makes them: a header of our subset
// (codec/qcow2.h), no entries beyond the disk's end, no host cluster used twice, refcount table and blocks in
// use exactly up to the end with every refcount 1, and nothing left over: the file ends with its last used
// cluster. ERR_DAMAGED names what is not so. Standard L2 entries only (ERR_UNSUPPORTED for extended L2
// and compressed clusters, which the writer does not make). ret_length: bytes of the file.
// Memory: 8 bytes for each L2 table, 2 bits for each cluster of the file; time: reading the metadata once.
bool image_metadata_hash(const char *image_path, const HashGeometry *geo, Hash *ret, uint64_t *ret_length, Err *err)
    must_check;

// The same for an image whose header (one cluster) is still to be written.
bool image_metadata_hash_with(const char *image_path, const uint8_t *header, const HashGeometry *geo, Hash *ret,
                              uint64_t *ret_length, Err *err) must_check;
