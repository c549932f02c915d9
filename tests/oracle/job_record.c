#include "job.h"

static bool fill_disk(const Job *j, const JobDisk *d, RecordDisk *r, Err *err)
{
    r->disk_id = d->guest->id;
    r->disk_no = d->no;
    r->size = d->view.size;
    r->mode = d->mode;
    r->reason = d->reason;
    r->tracking = d->guest->tracks;
    r->chain_length = d->chain_length;
    r->image_bytes = d->summary.image_bytes;
    r->stored_bytes = d->summary.stored_clusters * j->h->site->repo.info.cluster_size;
    r->transferred_bytes = d->transferred;
    r->changed_bytes = d->changed;
    r->root = d->summary.root;
    r->metadata = d->summary.metadata;
    r->hashes_digest = d->digest;
    bool full = d->mode == DISK_FULL;
    return mem_replace(&r->disk_key, d->guest->key, err) && mem_replace(&r->label, "", err) &&
        mem_replace(&r->backing_identity, d->guest->key, err) && mem_replace(&r->reason_text, d->view.lost, err) &&
        mem_replace(&r->change_id, d->view.change_id, err) &&
        mem_replace(&r->parent_backup_id, full ? NULL : j->base->backup_id, err) &&
        mem_replace(&r->image, d->image, err) && mem_replace(&r->hashes, d->hashes_name, err) &&
        mem_replace(&r->backing_name, full ? NULL : d->backing_name, err);
}

bool job_record_make(Job *j, Err *err)
{
    Record *r = &j->rec;
    bool all_full = true;
    for (size_t i = 0; i < j->len; i++)
        all_full = all_full && j->disks[i].mode == DISK_FULL;
    r->sequence = j->sequence;
    r->requested_type = j->full_requested ? BACKUP_FULL : BACKUP_INCREMENTAL;
    r->type = all_full ? BACKUP_FULL : BACKUP_INCREMENTAL;
    r->reason = all_full ? j->disks[0].reason : CHAIN_NONE;
    r->partial = j->left_out[0] != '\0';
    r->created_us = j->h->now_us;
    r->completed_us = j->h->now_us + 1000000;
    if (!mem_replace(&r->backup_id, j->id, err) || !mem_replace(&r->vm_id, j->vm->id, err) ||
        !mem_replace(&r->vm_name, j->vm->name, err) || !mem_replace(&r->source_type, "qemu", err) ||
        !mem_replace(&r->repository_uuid, j->h->site->repo.info.uuid, err) ||
        !mem_replace(&r->context, j->at->context, err) ||
        !mem_replace(&r->parent_backup_id, all_full ? NULL : j->base->backup_id, err) ||
        !mem_replace(&r->consistency, "crash", err) || !mem_replace(&r->left_out, j->left_out, err) ||
        !(r->disks = mem_calloc(j->len, sizeof *r->disks, err)))
        return false;
    r->disks_len = j->len;
    for (size_t i = 0; i < j->len; i++)
        if (!fill_disk(j, &j->disks[i], &r->disks[i], err))
            return false;
    return true;
}
