// Which bytes of a disk have arrived, without counting any twice (safety rule 6). Whole clusters are
// bits, kept group by group: a group that arrived completely, or not at all, costs a pointer.
// Parts of clusters are byte ranges, of which there is a bounded number. Not thread-safe.
#pragma once

#include "domain/extent.h"

#define COVERED_PARTS_MAX 65536 // parts of clusters waiting for the rest

typedef struct Covered Covered;

// group_clusters: a multiple of 64.
bool covered_new(uint64_t size, uint32_t cluster_size, uint32_t group_clusters, Covered **ret, Err *err) must_check;
void covered_free(Covered *c);
// [offset, offset + length) within [0, size). ret_new: bytes of it that had not arrived before.
// ERR_TOO_LARGE: more than COVERED_PARTS_MAX parts of clusters.
bool covered_add(Covered *c, uint64_t offset, uint64_t length, uint64_t *ret_new, Err *err) must_check;
bool covered_has_cluster(const Covered *c, uint64_t cluster); // all of it
// False if everything has arrived.
bool covered_first_hole(const Covered *c, uint64_t *ret_offset, uint64_t *ret_length);
// Count, bytes and digest of what arrived, neighbours merged.
bool covered_sum(const Covered *c, Coverage *ret, Err *err) must_check;
