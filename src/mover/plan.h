// What a copy sends, in ascending order: a disk is planned window by window from its source's map, so that
// memory does not grow with the disk. docs/internals/pipeline.md. Belongs to one pipeline.
#pragma once

#include "mover/mover.h"

typedef enum PlanKind { PLAN_END, PLAN_DATA, PLAN_ZERO, PLAN_KEEP } PlanKind;

typedef struct Plan {
    Blocks *from;              // borrowed
    Blocks *to;                // borrowed; whose map says what is held of an interrupted copy
    const MoverResume *resume; // borrowed; NULL: nothing is
    void (*on_taken)(void *ctx, uint64_t offset, uint64_t length);
    void *on_taken_ctx;
    uint64_t size;
    uint64_t cluster_size;
    uint32_t request_bytes; // data is cut at multiples of it
    MoverPlan kind;
    // private
    uint64_t window;   // bytes of the next window: multiple of the cluster size, grows while maps are short
    uint64_t planned;  // everything below was planned
    ExtentVec items;   // of the current window
    ExtentVec keep;    // of them, in whole clusters
    size_t next_keep;  // the first that is not behind us
    size_t next;       // first item that is not wholly taken
    uint64_t taken;    // bytes of it that are
    Coverage coverage; // of everything taken
    uint64_t areas, area_bytes, area_end; // that the source called changed, joined where a window cuts them
} Plan;

void plan_init(Plan *p, const MoverSpec *spec, uint32_t request_bytes);
void plan_clear(Plan *p);
// The next request, not yet taken: whole clusters (cut at the disk's end); data has at most request_bytes. PLAN_END:
// there is none, the disk is done. Asks the source for its map when the window is used up, which
// blocks for as long as the source's extents() does. What the source says is checked: ERR_PROTOCOL.
bool plan_peek(Plan *p, Extent *ret, PlanKind *ret_kind, Err *err) must_check;
// Takes what plan_peek() showed, and accounts for it.
bool plan_take(Plan *p, const Extent *e, PlanKind kind, Err *err) must_check;
// Everything below was taken or need not be sent.
uint64_t plan_position(const Plan *p);
