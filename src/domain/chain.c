#include "domain/chain.h"

#include <string.h>

static const char *const modes[] = {[DISK_FULL] = "full", [DISK_TRACKED] = "tracked", [DISK_COMPARE] = "compare"};

static const struct {
    const char *name;
    const char *text;
} reasons[CHAIN_REASONS] = {
    [CHAIN_NONE] = {"", ""},
    [CHAIN_REQUESTED] = {"full_requested", "a full backup was asked for"},
    [CHAIN_FIRST] = {"first_backup", "the repository has no completed backup of this VM yet"},
    [CHAIN_LIMIT] = {"chain_limit", "the chain has as many restore points as it may have"},
    [CHAIN_NEW_DISK] = {"new_disk", "the previous backup does not hold this disk"},
    [CHAIN_PARENT_DAMAGED] = {"parent_damaged", "the previous backup's files are not what was written"},
    [CHAIN_PARENT_SUSPECT] = {"parent_suspect", "an audit or a verify made the previous backup suspect"},
    [CHAIN_RESIZED] = {"disk_resized", "the disk's size differs from the previous backup's"},
    [CHAIN_NOT_TRACKED] = {"not_tracked", "nothing tracks the changes of this disk"},
    [CHAIN_NEVER_TRACKED] = {"never_tracked", "nothing tracked this disk's changes when the previous backup was made"},
    [CHAIN_ID_REFUSED] = {"id_refused",
                          "the hypervisor does not say what changed since the previous backup's change ID"},
    [CHAIN_EPOCH_CHANGED] = {"epoch_changed", "change tracking began anew since the previous backup"},
    [CHAIN_REPLACED] = {"backing_replaced", "the disk was replaced since the previous backup"},
    [CHAIN_AUDIT_FAILED] = {"audit_failed", "the audit found that change tracking had missed changes"},
    [CHAIN_TRACKING_LOST] = {"tracking_lost",
                             "the source cannot tell what changed since the previous backup's change ID"},
    [CHAIN_OTHER_LAYOUT] = {"other_layout", "the repository's cluster size or hash differs from the previous backup's"},
};

const char *disk_mode_name(DiskMode m)
{
    return modes[m];
}

bool disk_mode_parse(const char *name, DiskMode *ret, Err *err)
{
    for (DiskMode m = DISK_FULL; m <= DISK_COMPARE; m++) {
        if (strcmp(name, modes[m]) == 0) {
            *ret = m;
            return true;
        }
    }
    return err_set(err, ERR_INVALID, "a disk's mode must be full, tracked or compare");
}

const char *chain_reason_name(ChainReason r)
{
    return reasons[r].name;
}

const char *chain_reason_text(ChainReason r)
{
    return reasons[r].text;
}

bool chain_reason_parse(const char *name, ChainReason *ret, Err *err)
{
    for (ChainReason r = CHAIN_NONE; r < CHAIN_REASONS; r++) {
        if (strcmp(name, reasons[r].name) == 0) {
            *ret = r;
            return true;
        }
    }
    return err_set(err, ERR_INVALID, "not a reason for a disk's mode");
}

bool chain_reason_is_loss(ChainReason r)
{
    return r == CHAIN_NEVER_TRACKED || r == CHAIN_ID_REFUSED || r == CHAIN_EPOCH_CHANGED || r == CHAIN_REPLACED ||
        r == CHAIN_TRACKING_LOST;
}

// A change set that starts anywhere else than at the parent would leave holes.
static bool tracking_holds(const ChainInput *in)
{
    return in->base_change_id && in->parent_change_id && strcmp(in->base_change_id, in->parent_change_id) == 0;
}

DiskMode chain_decide(const ChainInput *in, ChainReason *ret_reason)
{
    const struct {
        bool applies;
        ChainReason reason;
        DiskMode mode;
    } rules[] = {
        {in->full_requested, CHAIN_REQUESTED, DISK_FULL},
        {!in->have_parent_point, CHAIN_FIRST, DISK_FULL},
        {in->chain_length >= in->chain_limit, CHAIN_LIMIT, DISK_FULL},
        {!in->have_parent_disk, CHAIN_NEW_DISK, DISK_FULL},
        {in->parent_damaged, CHAIN_PARENT_DAMAGED, DISK_FULL},
        {in->parent_suspect, CHAIN_PARENT_SUSPECT, DISK_COMPARE},
        {in->size != in->parent_size, CHAIN_RESIZED, DISK_COMPARE},
        {!in->source_tracks, CHAIN_NOT_TRACKED, DISK_COMPARE},
        // a minted ID says nothing to a hypervisor
        {!in->parent_tracking, CHAIN_NEVER_TRACKED, DISK_COMPARE},
        {!tracking_holds(in), !in->base_change_id && chain_reason_is_loss(in->lost) ? in->lost : CHAIN_TRACKING_LOST,
         DISK_COMPARE},
    };
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        if (rules[i].applies) {
            *ret_reason = rules[i].reason;
            return rules[i].mode;
        }
    }
    *ret_reason = CHAIN_NONE;
    return DISK_TRACKED;
}
