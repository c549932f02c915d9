#include "cli/follow.h"

#include "base/clock.h"
#include "cli/progress.h"
#include "cli/stop.h"
#include "domain/chain.h"
#include "domain/job.h"

#include <signal.h>

#define WITHOUT_HUB_MS (10 * 60000)
#define AGAIN_MS 500 // between two attempts to reach the hub, at first
#define AGAIN_MAX_MS 5000

typedef struct Follow {
    Cli *cli;
    const char *id;
    char *path; // of the backup
    Progress progress;
    char phase[128];
    bool said_modes;
    bool cancelling;
    bool said_lost;
    int64_t heard_ms; // when the hub said something
    json_t *final;    // owned
} Follow;

static void follow_clear(Follow *f)
{
    progress_end(&f->progress);
    free(f->path);
    json_decref(f->final);
}

static bool is_final(const json_t *backup)
{
    JobState state;
    Err unknown = ERR_INIT; // a state of a newer hub: not one that we know to be final
    return job_state_parse(cli_text(backup, "status"), &state, &unknown) && job_state_is_final(state);
}

// Those that a user chose, or that are as they are each time.
static bool is_ordinary(const char *name)
{
    ChainReason reason;
    Err unknown = ERR_INIT; // a newer hub's: worth a line
    return chain_reason_parse(name, &reason, &unknown) &&
        (reason == CHAIN_REQUESTED || reason == CHAIN_FIRST || reason == CHAIN_LIMIT || reason == CHAIN_NOT_TRACKED);
}

static void say_modes(Follow *f, const json_t *backup, const json_t *disks)
{
    size_t i;
    json_t *d;
    if (f->said_modes || json_array_size(disks) == 0)
        return;
    f->said_modes = true;
    if (*cli_text(backup, "resumed_from"))
        progress_note(&f->progress, "goes on from %s, which was interrupted", cli_text(backup, "resumed_from"));
    json_array_foreach(disks, i, d)
    {
        if (*cli_text(d, "reason_text") && !(f->cli->values.quiet && is_ordinary(cli_text(d, "reason"))))
            progress_note(&f->progress, "%s: %s, because %s", cli_text(d, "disk_key"), cli_text(d, "mode"),
                          cli_text(d, "reason_text"));
    }
}

static void show_bars(Follow *f, const json_t *disks)
{
    ProgressItem items[PROGRESS_BARS];
    size_t n = 0, i;
    json_t *d;
    json_array_foreach(disks, i, d)
    {
        // What has no bar of its own is added to the last
        ProgressItem item = {
            .label = cli_text(d, "disk_key"), .done = cli_u64(d, "done_bytes"), .size = cli_u64(d, "size")};
        if (n < PROGRESS_BARS) {
            items[n++] = item;
        } else {
            items[n - 1].label = "other disks";
            items[n - 1].done += item.done;
            items[n - 1].size += item.size;
        }
    }
    progress_show(&f->progress, f->id, items, n);
}

static void on_news(Follow *f, const json_t *backup)
{
    const char *phase = cli_text(backup, "phase");
    const json_t *disks = cli_list(backup, "disks");
    f->heard_ms = clock_mono_ms();
    f->said_lost = false;
    say_modes(f, backup, disks);
    if (is_final(backup)) {
        if (!f->final)
            f->final = json_deep_copy(backup); // no memory: it is asked for again
        progress_end(&f->progress);
        return;
    }
    if (!str_eq(phase, f->phase) && !f->cli->values.quiet)
        progress_note(&f->progress, "%s: %s", f->id, phase);
    (void)snprintf(f->phase, sizeof(f->phase), "%s", phase); // cut where it is long
    show_bars(f, disks);
}

static bool on_event(void *ctx, const char *event, const json_t *data)
{
    Follow *f = ctx;
    (void)event; // progress and end both carry the backup, whose state says which it is
    if (json_is_object(data))
        on_news(f, data);
    return !f->final;
}

// Events until they end, for whatever reason; then a look, because an end may have been missed.
static bool listen(Follow *f, Err *err)
{
    HubApi *hub = f->cli->hub;
    cleanup_json json_t *backup = NULL;
    cleanup_free char *events = mem_printf(err, "%s/events", f->path);
    if (!events)
        return false;
    hub_api_set_cancel(hub, stop_flag());
    bool fine = hub_api_events(hub, events, on_event, f, err);
    if (hub_api_status(hub) == 200)
        f->heard_ms = clock_mono_ms();
    fine = fine && (f->final || cli_get(f->cli, f->path, &backup, err));
    hub_api_set_cancel(hub, NULL);
    if (backup)
        on_news(f, backup);
    return fine;
}

static bool on_stop(Follow *f, Err *err)
{
    Err refused = ERR_INIT;
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("backups", f->id, "cancel", err);
    if (!path)
        return false;
    if (stop_signal() != SIGINT || f->cancelling)
        return err_set(err, ERR_CANCELLED, "%s is no longer followed%s; sendense show tells how it ends", f->id,
                       f->cancelling ? " and is being cancelled" : " and goes on");
    f->cancelling = true;
    stop_forget();
    if (cli_send(f->cli, "POST", path, NULL, false, &answer, &refused))
        progress_note(&f->progress, "%s: cancelling; interrupt once more to leave", f->id);
    else
        progress_note(&f->progress, "%s: cannot be cancelled: %s", f->id, refused.details);
    return true;
}

// The hub cannot be reached, or broke off: wait for it, but not for ever.
static bool wait_for_hub(Follow *f, const Err *why, int *again_ms, Err *err)
{
    if (clock_mono_ms() - f->heard_ms > WITHOUT_HUB_MS) {
        *err = *why;
        return err_context(err, "%s is no longer followed and may go on: the hub has not answered for %d minutes",
                           f->id, WITHOUT_HUB_MS / 60000);
    }
    if (why->code != ERR_NONE && !f->said_lost) {
        progress_end(&f->progress);
        progress_note(&f->progress, "%s: the hub does not answer; waiting for it (%s)", f->id, why->details);
        f->said_lost = true;
    }
    (void)stop_wait(*again_ms); // the caller looks at the signal
    *again_ms = MIN(*again_ms * 2, AGAIN_MAX_MS);
    return true;
}

bool follow_backup(Cli *c, const char *backup_id, json_t **ret_backup, Err *err)
{
    cleanup(follow_clear) Follow f = {.cli = c, .id = backup_id, .heard_ms = clock_mono_ms()};
    int again_ms = AGAIN_MS;
    progress_begin(&f.progress, stderr, c->values.quiet);
    f.path = cli_path("backups", backup_id, NULL, err);
    if (!f.path)
        return false;
    while (!f.final) {
        Err why = ERR_INIT;
        int64_t heard = f.heard_ms;
        bool fine = listen(&f, &why);
        if (f.heard_ms != heard)
            again_ms = AGAIN_MS;
        if (f.final)
            break;
        if (stop_signal() != 0) {
            if (!on_stop(&f, err))
                return false;
        } else if (!fine && !hub_api_is_unknown(c->hub)) {
            *err = why;
            return false;
        } else if (!wait_for_hub(&f, &why, &again_ms, err)) {
            return false;
        }
    }
    *ret_backup = mem_take(f.final);
    return true;
}
