#include "history.h"

#include "check.h"
#include "steps.h"
#include "world.h"
#include "../unit/keep_list.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define TRACE_MAX (16u << 20)

static const char *const plants[PLANTS] = {
    [PLANT_NONE] = "none",
    [PLANT_SKIP_ZERO_WRITE] = "skip-zero-write",
    [PLANT_STALE_PARENT] = "stale-parent",
    [PLANT_DROP_LAST_WRITE] = "drop-last-write",
    [PLANT_WRONG_BASE] = "wrong-base",
    [PLANT_SWAPPED_DISKS] = "swapped-disks",
    [PLANT_LATE_BITMAP] = "late-bitmap",
    [PLANT_GAP_IN_LINE] = "gap-in-line",
    [PLANT_RESIZE_BLIND] = "resize-blind",
    [PLANT_HOLE_AS_ZERO] = "hole-as-zero",
    [PLANT_THAWED_VIEW] = "thawed-view",
    [PLANT_FLIPPED_BYTE] = "flipped-byte",
};

const char *history_plant_name(HistoryPlant p)
{
    return plants[p];
}

bool history_plant_parse(const char *name, HistoryPlant *ret, Err *err)
{
    for (HistoryPlant p = PLANT_NONE; p < PLANTS; p++) {
        if (str_eq(name, plants[p])) {
            *ret = p;
            return true;
        }
    }
    StrBuf all = STR_BUF(1024);
    Err full = ERR_INIT;
    for (HistoryPlant p = PLANT_NONE; p < PLANTS; p++)
        (void)!str_addf(&all, &full, " %s", plants[p]);
    (void)err_set(err, ERR_USAGE, "unknown fault; known are%s", all.s);
    str_clear(&all);
    return false;
}

void history_note(History *h, const char *fmt, ...)
{
    char line[512];
    Err full = ERR_INIT; // a trace that is full ends
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    (void)!str_addf(&h->trace, &full, "%s\n", line);
    if (h->spec->verbose)
        printf("    %s\n", line);
}

bool history_fail(Err *err, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return err_set(err, ERR_DAMAGED, "WRONG: %s", text);
}

// ---- points

void history_point_clear(Point *p)
{
    for (size_t i = 0; i < p->len; i++) {
        free(p->disks[i].bytes);
        free(p->disks[i].hidden);
    }
    p->len = 0;
}

Point *history_find(History *h, const char *id)
{
    for (size_t i = 0; i < h->site->len; i++)
        if (str_eq(h->site->points[i].id, id))
            return &h->site->points[i];
    return NULL;
}

Point *history_newest(History *h, size_t vm)
{
    Point *newest = NULL;
    for (size_t i = 0; i < h->site->len; i++)
        if (h->site->points[i].vm == vm && (!newest || h->site->points[i].sequence > newest->sequence))
            newest = &h->site->points[i];
    return newest;
}

void history_forget(History *h, Point *p)
{
    size_t i = (size_t)(p - h->site->points);
    history_point_clear(p);
    h->site->len--;
    memmove(&h->site->points[i], &h->site->points[i + 1], (h->site->len - i) * sizeof *h->site->points);
}

bool history_add(History *h, const Point *p, Err *err)
{
    if (h->site->len == h->site->cap) {
        size_t cap = h->site->cap * 2 + 8;
        Point *points = realloc(h->site->points, cap * sizeof *points);
        if (!points)
            return err_no_memory(err);
        h->site->points = points;
        h->site->cap = cap;
    }
    h->site->points[h->site->len++] = *p;
    h->spec->stats->points++;
    return true;
}

const Record *history_find_record(void *scan, const char *id)
{
    const RepoScan *s = scan;
    for (size_t i = 0; i < s->len; i++)
        if (str_eq(s->records[i].backup_id, id))
            return &s->records[i];
    return NULL;
}

bool history_reopen(History *h, Err *err)
{
    char uuid[UUID_TEXT];
    memcpy(uuid, h->site->repo.info.uuid, sizeof uuid);
    repo_clear(&h->site->repo);
    h->site->open = false;
    h->site->open = repo_open(h->site->path, uuid, &h->site->repo, err);
    return h->site->open;
}

bool history_recover(History *h, const char *given_up, RepoScan *ret_after, Err *err)
{
    const char *keep[HISTORY_VMS];
    size_t n = 0;
    for (size_t i = 0; i < h->running_len; i++)
        if (!given_up || !str_eq(h->running[i], given_up))
            keep[n++] = h->running[i];
    h->spec->stats->recoveries++;
    return history_reopen(h, err) && repo_recover(&h->site->repo, keep_listed, &(KeepList){keep, n}, ret_after, err);
}

// ---- a history's life

static bool make_vm(History *h, size_t index, Err *err)
{
    // One name may be that of two VMs; others need a slug.
    static const char *const names[] = {"web", "web", "a vm: with/odd.names", "\xc3\xa4\xc3\xb6\xc3\xbc"};
    Vm *vm = &h->vms[index];
    vm->index = index;
    (void)snprintf(vm->name, sizeof vm->name, "%s", names[rng_below(&h->rng, ARRAY_LEN(names))]);
    h->vms_len = index + 1;
    return uuid_new(vm->id, err);
}

static bool make_site(History *h, size_t index, Err *err)
{
    Site *site = h->site = &h->sites[index];
    uint32_t cluster = rng_chance(&h->rng, 55) ? 65536 : 4096;
    HashAlgorithm algorithm = rng_chance(&h->rng, 70) ? HASH_XXH3_128 : HASH_SHA256;
    site->chain_limit = (unsigned)rng_between(&h->rng, 3, 30);
    if (rng_chance(&h->rng, 30))
        site->chain_limit = (unsigned)rng_between(&h->rng, 1, 4);
    h->sites_len = index + 1;
    h->cluster_size = MAX(h->cluster_size, cluster);
    history_note(h, "repository %zu: clusters of %" PRIu32 ", %s, chains of at most %u", index, cluster,
                 hash_algorithm_name(algorithm), site->chain_limit);
    site->path = mem_printf(err, "%s/repository%u", h->spec->folder, h->moves++);
    site->open = site->path && repo_create(site->path, cluster, algorithm, &site->repo, err);
    return site->open;
}

static bool set_up(History *h, Err *err)
{
    size_t vms = rng_chance(&h->rng, 25) ? 2 : 1, sites = rng_chance(&h->rng, 20) ? 2 : 1;
    h->now_us = INT64_C(1700000000000000);
    for (size_t i = 0; i < vms; i++)
        if (!make_vm(h, i, err))
            return false;
    for (size_t i = 0; i < sites; i++)
        if (!make_site(h, i, err))
            return false;
    return true;
}

static bool live(History *h, Err *err)
{
    if (!set_up(h, err))
        return err_context(err, "setting up");
    for (unsigned step = 0; step < h->spec->steps; step++) {
        h->now_us += (int64_t)rng_between(&h->rng, 1, 3000) * 1000000;
        h->site = &h->sites[rng_below(&h->rng, h->sites_len)];
        Vm *vm = &h->vms[rng_below(&h->rng, h->vms_len)];
        bool backup = vm->len > 0 && rng_chance(&h->rng, 30);
        bool ok = backup ? backup_run(h, vm, err) && check_all(h, false, err) : steps_any(h, err);
        if (!ok)
            return err_context(err, "step %u", step);
    }
    history_note(h, "the end");
    for (size_t i = 0; i < h->sites_len; i++) {
        h->site = &h->sites[i];
        if (!check_all(h, true, err))
            return false;
    }
    return true;
}

static void site_clear(Site *s)
{
    for (size_t i = 0; i < s->len; i++)
        history_point_clear(&s->points[i]);
    free(s->points);
    for (size_t i = 0; i < HISTORY_VMS; i++)
        free(s->vms[i].context);
    if (s->open)
        repo_clear(&s->repo);
    free(s->path);
}

static void tear_down(History *h)
{
    world_revive();
    for (size_t i = 0; i < h->vms_len; i++)
        for (size_t d = 0; d < h->vms[i].len; d++)
            guest_clear(&h->vms[i].disks[d]);
    for (size_t i = 0; i < h->sites_len; i++)
        site_clear(&h->sites[i]);
}

bool history_run(const HistorySpec *spec, StrBuf *ret_trace, Err *err)
{
    History *h = mem_calloc(1, sizeof *h, err);
    if (!h)
        return false;
    h->spec = spec;
    h->trace.max = TRACE_MAX;
    h->rng.state = spec->seed;
    h->check_rng.state = spec->seed ^ UINT64_C(0x6a09e667f3bcc908);
    world_seed(spec->seed ^ UINT64_C(0xbb67ae8584caa73b));
    bool ok = live(h, err);
    tear_down(h);
    spec->stats->histories++;
    *ret_trace = h->trace;
    free(h);
    return ok;
}
