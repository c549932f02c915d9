// What Prometheus asks for (text format 0.0.4). docs/reference/metrics.md lists the metrics.
#include "base/clock.h"
#include "base/file.h"
#include "base/str.h"
#include "service/hub/internal.h"

#include <inttypes.h>
#include <search.h>
#include <time.h>

#define TEXT_MAX ((size_t)64 << 20)
#define VMS_STEP 500 // in one question

static const char *const ends[HUB_ENDS] = {"completed", "failed", "cancelled"};

// ---- counting: since this hub was started

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const HubCounters *)a)->vm_name, ((const HubCounters *)b)->vm_name);
}

// The VM's counters; NULL on lack of memory: what is only counted fails no job. The caller holds h->lock.
static HubCounters *counters_of(Hub *h, const char *vm_name)
{
    Err ignored = ERR_INIT;
    const HubCounters looked_for = {.vm_name = (char *)(uintptr_t)vm_name};
    HubCounters *const *found = tfind(&looked_for, &h->counters_by_name, compare_names);
    if (found)
        return *found;
    HubCounters *c = mem_calloc(1, sizeof(*c), &ignored);
    if (!c)
        return NULL;
    if (!(c->vm_name = mem_strdup(vm_name, &ignored)) || !tsearch(c, &h->counters_by_name, compare_names)) {
        free(c->vm_name);
        free(c);
        return NULL;
    }
    c->next = h->counters;
    h->counters = c;
    return c;
}

void hub_count_end(Hub *h, const StoreBackup *b, const char *status)
{
    (void)pthread_mutex_lock(&h->lock);
    HubCounters *c = counters_of(h, b->vm_name);
    for (size_t i = 0; c && i < HUB_ENDS; i++)
        c->ended[i] += str_eq(status, ends[i]);
    if (c && b->started_us > 0)
        c->job_us += MAX(0, clock_utc_us() - b->started_us);
    (void)pthread_mutex_unlock(&h->lock);
}

void hub_count_alarm(Hub *h, const char *vm_name)
{
    (void)pthread_mutex_lock(&h->lock);
    HubCounters *c = counters_of(h, vm_name);
    if (c)
        c->alarms++;
    (void)pthread_mutex_unlock(&h->lock);
}

void hub_count_disks(Hub *h, const StoreBackup *b, const StoreDisk *disks, size_t len)
{
    (void)pthread_mutex_lock(&h->lock);
    HubCounters *c = counters_of(h, b->vm_name);
    for (size_t i = 0; c && i < len; i++) {
        Err odd = ERR_INIT;
        DiskMode mode;
        ChainReason reason;
        if (!disk_mode_parse(disks[i].mode, &mode, &odd) || !chain_reason_parse(disks[i].reason, &reason, &odd))
            continue;
        c->disks[mode][reason]++;
        c->read_bytes += disks[i].read_bytes;
        c->sent_bytes += disks[i].transferred_bytes;
        c->stored_bytes += disks[i].stored_bytes;
    }
    (void)pthread_mutex_unlock(&h->lock);
}

void hub_counters_free(Hub *h)
{
    while (h->counters) {
        HubCounters *c = h->counters;
        (void)tdelete(c, &h->counters_by_name, compare_names);
        h->counters = c->next;
        free(c->vm_name);
        free(c);
    }
}

// ---- telling

static bool about(StrBuf *out, const char *name, const char *type, const char *help, Err *err)
{
    return str_addf(out, err, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

// A label's value: what would end it is escaped.
static bool add_value(StrBuf *out, const char *text, Err *err)
{
    for (; *text; text++) {
        bool ok = *text == '\\' ? str_add(out, "\\\\", err)
            : *text == '"'      ? str_add(out, "\\\"", err)
            : *text == '\n'     ? str_add(out, "\\n", err)
                                : str_add_bytes(out, text, 1, err);
        if (!ok)
            return false;
    }
    return true;
}

// name{key="value",…} number. Labels: keys and values in turn, NULL ends them.
static bool sample(StrBuf *out, const char *name, const char *const *labels, double number, Err *err)
{
    bool ok = str_add(out, name, err);
    for (size_t i = 0; ok && labels[i]; i += 2)
        ok = str_addf(out, err, "%s%s=\"", i ? "," : "{", labels[i]) && add_value(out, labels[i + 1], err) &&
            str_add(out, "\"", err);
    return ok && str_addf(out, err, "%s %.17g\n", labels[0] ? "}" : "", number);
}
#define LABELS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define NO_LABELS ((const char *const[]){NULL})

static bool plain(StrBuf *out, const char *name, const char *help, double number, Err *err)
{
    return about(out, name, "gauge", help, err) && sample(out, name, NO_LABELS, number, err);
}

static bool tell_hub(Hub *h, StrBuf *out, Err *err)
{
    static const char *const states[] = {"pending", "running", "committing"};
    uint64_t n, room = 0, total;
    Err away = ERR_INIT;
    bool ok = about(out, "sendense_build_info", "gauge", "Version and database of this hub.", err) &&
        sample(out, "sendense_build_info", LABELS("version", SENDENSE_VERSION, "database", store_engine(h->store)), 1,
               err) &&
        about(out, "sendense_jobs", "gauge", "Backup jobs that are not over; pending ones wait for their turn.", err);
    for (size_t i = 0; ok && i < ARRAY_LEN(states); i++)
        ok = store_backup_count(h->store, states[i], &n, err) &&
            sample(out, "sendense_jobs", LABELS("status", states[i]), (double)n, err);
    ok = ok && store_exporter_count(h->store, &n, err) &&
        plain(out, "sendense_exporters", "Disks that are being written to.", (double)n, err) &&
        store_export_count(h->store, &n, err) &&
        plain(out, "sendense_exports", "Restore points that are being read.", (double)n, err);
    if (ok && file_space(h->data_dir, &room, &total, &away))
        ok = plain(out, "sendense_data_dir_free_bytes", "Room for the hub's database and logs.", (double)room, err);
    return ok;
}

static bool tell_repository(Hub *h, const StoreRepository *r, bool *ret_up, uint64_t *ret_free, uint64_t *ret_points,
                            uint64_t *ret_stored, Err *err)
{
    Repo cleanup_repo repo = {0};
    Err away = ERR_INIT;
    uint64_t total;
    *ret_free = 0;
    *ret_up = hub_repo_open(h, r, &repo, &away) && file_space(repo.path, ret_free, &total, &away);
    return store_repository_totals(h->store, r->id, ret_points, ret_stored, err);
}

static bool tell_repositories(Hub *h, StrBuf *out, Err *err)
{
    static const struct {
        const char *name, *help;
    } metrics[] = {
        {"sendense_repository_up", "1: the repository is there."},
        {"sendense_repository_free_bytes", "Room in the repository; 0 while it is away."},
        {"sendense_repository_points", "Completed restore points."},
        {"sendense_repository_stored_bytes", "What the points have stored."},
    };
    StoreRepository *rows = NULL;
    size_t len = 0;
    double(*values)[ARRAY_LEN(metrics)] = NULL;
    bool ok =
        store_repository_list(h->store, &rows, &len, err) && (values = mem_calloc(len, sizeof(*values), err)) != NULL;
    for (size_t i = 0; ok && i < len; i++) {
        bool up;
        uint64_t room, points, stored;
        ok = tell_repository(h, &rows[i], &up, &room, &points, &stored, err);
        if (ok) {
            values[i][0] = up;
            values[i][1] = (double)room;
            values[i][2] = (double)points;
            values[i][3] = (double)stored;
        }
    }
    for (size_t m = 0; ok && m < ARRAY_LEN(metrics); m++) {
        ok = about(out, metrics[m].name, "gauge", metrics[m].help, err);
        for (size_t i = 0; ok && i < len; i++)
            ok = sample(out, metrics[m].name, LABELS("repository", rows[i].name), values[i][m], err);
    }
    free(values);
    STORE_LIST_FREE(rows, len, store_repository_clear);
    return ok;
}

static int64_t mono_us(void) // a question is often less than a millisecond
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t); // cannot fail for this clock
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static bool tell_database(Hub *h, StrBuf *out, Err *err)
{
    static const char name[] = "sendense_database_backup_age_seconds";
    StoreRepository *rows = NULL;
    size_t len = 0;
    char problem[HUB_DUMP_PROBLEM];
    int64_t now = clock_utc_us(), at;
    hub_database_problem(h, problem);
    uint64_t n;
    int64_t began = mono_us();
    bool ok = store_backup_count_active(h->store, &n, err) &&
        plain(out, "sendense_database_seconds", "What one question to the database takes, its place in line included.",
              (double)(mono_us() - began) / 1e6, err) &&
        store_bytes(h->store, &n, err) &&
        plain(out, "sendense_database_bytes", "What the hub's database takes.", (double)n, err) &&
        plain(out, "sendense_database_backup_failed", "1: the last backup of the hub's database failed.",
              problem[0] != '\0', err) &&
        about(out, name, "gauge", "Age of the newest backup of the hub's database in a repository; absent: none.",
              err) &&
        store_repository_list(h->store, &rows, &len, err);
    for (size_t i = 0; ok && i < len; i++)
        ok = store_dumped(h->store, rows[i].id, &at, err) &&
            (at == 0 || sample(out, name, LABELS("repository", rows[i].name), (double)MAX(0, now - at) / 1e6, err));
    STORE_LIST_FREE(rows, len, store_repository_clear);
    return ok;
}

static bool age(StrBuf *out, const char *name, const StoreVmPoints *v, int64_t at_us, int64_t now_us, Err *err)
{
    return at_us == 0 ||
        sample(out, name, LABELS("vm", v->vm_name, "repository", v->repository ? v->repository : ""),
               (double)MAX(0, now_us - at_us) / 1e6, err);
}

// In pages: nobody else waits for the database until all of them were counted.
static bool points_of_all(Hub *h, StoreVmPoints **ret, size_t *ret_len, Err *err)
{
    StoreVmPoints *all = NULL;
    size_t all_len = 0;
    bool ok = true, more = true;
    while (ok && more) {
        StoreVmPoints *rows = NULL;
        size_t len = 0;
        ok = store_points_of_vms(h->store, all_len ? all[all_len - 1].vm_name : NULL, VMS_STEP, &rows, &len, err);
        more = len > 0;
        StoreVmPoints *longer = ok && more ? reallocarray(all, all_len + len, sizeof(*all)) : NULL;
        if (longer) {
            all = longer;
            memcpy(all + all_len, rows, len * sizeof(*rows));
            all_len += len;
            free(rows); // its texts are the list's
        } else {
            ok = ok && (!more || err_no_memory(err));
            STORE_LIST_FREE(rows, len, store_vm_points_clear);
        }
    }
    if (!ok) {
        STORE_LIST_FREE(all, all_len, store_vm_points_clear);
        return false;
    }
    *ret = all;
    *ret_len = all_len;
    return true;
}

static bool tell_points(Hub *h, StrBuf *out, Err *err)
{
    static const char good[] = "sendense_vm_good_point_age_seconds";
    static const char verified[] = "sendense_vm_verified_point_age_seconds";
    StoreVmPoints *rows = NULL;
    size_t len = 0;
    int64_t now = clock_utc_us();
    bool ok = points_of_all(h, &rows, &len, err);
    (void)pthread_mutex_lock(&h->lock);
    for (size_t i = 0; ok && i < len; i++)
        (void)counters_of(h, rows[i].vm_name); // from zero on: what begins at one has not increased
    (void)pthread_mutex_unlock(&h->lock);
    ok = ok &&
        about(out, "sendense_vm_points", "gauge", "Restore points of a registered VM; 0 in no repository: none.", err);
    for (size_t i = 0; ok && i < len; i++)
        ok = sample(out, "sendense_vm_points",
                    LABELS("vm", rows[i].vm_name, "repository", rows[i].repository ? rows[i].repository : ""),
                    (double)rows[i].points, err);
    ok = ok && about(out, good, "gauge", "Age of the newest point that is not suspect; absent: there is none.", err);
    for (size_t i = 0; ok && i < len; i++)
        ok = age(out, good, &rows[i], rows[i].good_us, now, err);
    ok = ok && about(out, verified, "gauge", "Age of the newest point that was verified and found right.", err);
    for (size_t i = 0; ok && i < len; i++)
        ok = age(out, verified, &rows[i], rows[i].verified_us, now, err);
    STORE_LIST_FREE(rows, len, store_vm_points_clear);
    return ok;
}

// The caller holds h->lock.
static bool tell_counters(const Hub *h, StrBuf *out, Err *err)
{
    static const struct {
        const char *name, *help;
        size_t offset;
    } sums[] = {
        {"sendense_vm_read_bytes_total", "Read from the VM's disks.", offsetof(HubCounters, read_bytes)},
        {"sendense_vm_sent_bytes_total", "Sent to the hub.", offsetof(HubCounters, sent_bytes)},
        {"sendense_vm_stored_bytes_total", "Stored in images.", offsetof(HubCounters, stored_bytes)},
        {"sendense_vm_audit_alarms_total", "Disks whose change tracking was found wrong.",
         offsetof(HubCounters, alarms)},
    };
    bool ok = about(out, "sendense_vm_jobs_ended_total", "counter", "Jobs that ended, by how.", err);
    for (const HubCounters *c = h->counters; ok && c; c = c->next)
        for (size_t i = 0; ok && i < HUB_ENDS; i++)
            ok = sample(out, "sendense_vm_jobs_ended_total", LABELS("vm", c->vm_name, "status", ends[i]),
                        (double)c->ended[i], err);
    ok = ok && about(out, "sendense_vm_job_seconds_total", "counter", "Time that jobs took, from their claim on.", err);
    for (const HubCounters *c = h->counters; ok && c; c = c->next)
        ok = sample(out, "sendense_vm_job_seconds_total", LABELS("vm", c->vm_name), (double)c->job_us / 1e6, err);
    ok = ok && about(out, "sendense_vm_disks_total", "counter", "Disks of completed backups, by mode and reason.", err);
    for (const HubCounters *c = h->counters; ok && c; c = c->next)
        for (unsigned mode = 0; ok && mode < HUB_MODES; mode++)
            for (unsigned reason = 0; ok && reason < CHAIN_REASONS; reason++)
                ok = c->disks[mode][reason] == 0 ||
                    sample(out, "sendense_vm_disks_total",
                           LABELS("vm", c->vm_name, "mode", disk_mode_name((DiskMode)mode), "reason",
                                  chain_reason_name((ChainReason)reason)),
                           (double)c->disks[mode][reason], err);
    for (size_t i = 0; ok && i < ARRAY_LEN(sums); i++) {
        ok = about(out, sums[i].name, "counter", sums[i].help, err);
        for (const HubCounters *c = h->counters; ok && c; c = c->next)
            ok = sample(out, sums[i].name, LABELS("vm", c->vm_name),
                        (double)*(const uint64_t *)(const void *)((const char *)c + sums[i].offset), err);
    }
    return ok;
}

static bool gather(Hub *h, char **ret, Err *err)
{
    StrBuf out = STR_BUF(TEXT_MAX);
    int64_t began = clock_mono_ms();
    bool ok = tell_hub(h, &out, err) && tell_repositories(h, &out, err) && tell_database(h, &out, err) &&
        tell_points(h, &out, err) &&
        plain(&out, "sendense_metrics_seconds", "What it took to gather the above, the database's time for the most.",
              (double)(clock_mono_ms() - began) / 1e3, err);
    if (ok) {
        (void)pthread_mutex_lock(&h->lock);
        ok = tell_counters(h, &out, err);
        (void)pthread_mutex_unlock(&h->lock);
    }
    if (!ok) {
        str_clear(&out);
        return false;
    }
    *ret = out.s;
    return true;
}

bool hub_metrics(Hub *h, char **ret, Err *err)
{
    // a repository that hangs holds one of these, not each that comes after it
    if (atomic_flag_test_and_set(&h->gathering))
        return err_set(err, ERR_UNAVAILABLE,
                       "an earlier question for metrics is not answered yet; does a repository hang?");
    bool ok = gather(h, ret, err);
    atomic_flag_clear(&h->gathering);
    return ok;
}
