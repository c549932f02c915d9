// The oracle: random histories, judged byte for byte. docs/internals/oracle.md.
#include "base/clock.h"
#include "base/file.h"
#include "base/opt.h"
#include "history.h"
#include "job.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/uio.h>
#include <unistd.h>

#define FAILURES_MAX 3
#define TRACE_LINES 40
#define ENOUGH 100 // histories, after which everything must have happened

typedef struct Options {
    uint64_t seed, histories, steps, minutes, qemu;
    bool expect_failure, verbose, keep, help;
    char *plant_name, *folder;
    HistoryPlant plant;
} Options;

static char dying[256]; // what to say when this process crashes or is ended

static void on_signal(int signo)
{
    const char *name = sigabbrev_np(signo); // a constant
    struct iovec text[] = {{.iov_base = dying, .iov_len = strlen(dying)},
                           {.iov_base = (void *)(uintptr_t)name, .iov_len = strlen(name)},
                           {.iov_base = (void *)(uintptr_t) "\n", .iov_len = 1}};
    ssize_t ignored = writev(STDERR_FILENO, text, (int)ARRAY_LEN(text));
    (void)ignored;
    (void)signal(signo, SIG_DFL);
    (void)raise(signo);
}

static void print_how(FILE *to, const Options *o, uint64_t seed)
{
    (void)fprintf(to, "  again: oracle --seed=%" PRIu64 " --histories=1 --steps=%" PRIu64 " --qemu=%" PRIu64, seed,
                  o->steps, o->qemu);
    if (o->plant != PLANT_NONE)
        (void)fprintf(to, " --plant=%s", history_plant_name(o->plant));
    (void)fprintf(to, " --verbose\n");
}

static void print_tail(const char *trace)
{
    const char *p = trace + strlen(trace);
    for (int lines = 0; p > trace && lines <= TRACE_LINES; lines += *p == '\n')
        p--;
    printf("%s%s\n", p > trace ? "    ..." : "", p);
}

// *ret_wrong: the history failed.
static bool run_one(const Options *o, uint64_t seed, HistoryPlant plant, HistoryStats *stats, bool quiet,
                    bool *ret_wrong, Err *err)
{
    Err wrong = ERR_INIT;
    StrBuf trace = {0};
    cleanup_free char *folder = mem_printf(err, "%s/%016" PRIx64, o->folder, seed);
    if (!folder || !file_mkdir(folder, 0700, err))
        return false;
    (void)snprintf(dying, sizeof dying,
                   "oracle: ended in the history of seed %" PRIu64 " (--steps=%" PRIu64 ", fault: %s) by SIG", seed,
                   o->steps, history_plant_name(plant));
    HistorySpec spec = {.seed = seed,
                        .steps = (unsigned)o->steps,
                        .qemu = (unsigned)o->qemu,
                        .plant = plant,
                        .folder = folder,
                        .verbose = o->verbose,
                        .stats = stats};
    *ret_wrong = !history_run(&spec, &trace, &wrong);
    if (*ret_wrong && !quiet) {
        printf("FAILED: seed %" PRIu64 ": %s\n", seed, wrong.details);
        if (!o->verbose && trace.s)
            print_tail(trace.s);
        print_how(stdout, o, seed);
    }
    str_clear(&trace);
    if (*ret_wrong && o->keep)
        printf("  its files: %s\n", folder);
    return (*ret_wrong && o->keep) || file_remove_tree(folder, err);
}

static void print_stats(const HistoryStats *s)
{
    printf("%" PRIu64 " histories: %" PRIu64 " backups, %" PRIu64 " points, %" PRIu64 " deletes, %" PRIu64
           " moves, %" PRIu64 " recoveries, %" PRIu64 " flips\n",
           s->histories, s->backups, s->points, s->deletes, s->moves, s->recoveries, s->flips);
    printf("looked at: %" PRIu64 " disks, %" PRIu64 " of them by QEMU, %" PRIu64 " restores\n", s->disks_checked,
           s->qemu_checks, s->restores);
    printf("disks:");
    for (DiskMode m = DISK_FULL; m <= DISK_COMPARE; m++)
        printf(" %" PRIu64 " %s%s", s->modes[m], disk_mode_name(m), m == DISK_COMPARE ? "\nreasons:" : ",");
    for (ChainReason r = CHAIN_REQUESTED; r < CHAIN_REASONS; r++)
        printf(" %" PRIu64 " %s%s", s->reasons[r], chain_reason_name(r), r + 1 == CHAIN_REASONS ? "\nended:" : ",");
    for (JobKill k = KILL_FROZEN; k < JOB_KILLS; k++)
        printf(" %" PRIu64 " %s%s", s->kills[k], job_kill_name(k), k + 1 == JOB_KILLS ? "\n" : ",");
}

// A test in which nothing happened would pass.
static bool everything_happened(const HistoryStats *s)
{
    bool all = s->points && s->deletes && s->moves && s->recoveries && s->refused && s->flips && s->disks_checked;
    for (DiskMode m = DISK_FULL; m <= DISK_COMPARE; m++)
        all = all && s->modes[m];
    for (ChainReason r = CHAIN_REQUESTED; r <= CHAIN_NOT_TRACKED; r++)
        all = all && s->reasons[r];
    all = all && s->reasons[CHAIN_TRACKING_LOST]; // the model has no other loss, no audits, one layout
    for (JobKill k = KILL_FROZEN; k < JOB_KILLS; k++)
        all = all && s->kills[k];
    if (!all)
        printf("FAILED: not everything that the oracle is for has happened in these histories\n");
    return all;
}

// A planted fault must be found; and it must be the fault that was found.
static bool run_expecting(const Options *o, int *ret_exit, Err *err)
{
    HistoryStats stats = {0}, ignored = {0};
    for (uint64_t i = 0; i < o->histories; i++) {
        bool wrong, wrong_anyway;
        if (!run_one(o, o->seed + i, o->plant, &stats, true, &wrong, err))
            return false;
        if (!wrong)
            continue;
        if (!run_one(o, o->seed + i, PLANT_NONE, &ignored, false, &wrong_anyway, err))
            return false;
        printf("%s: found in history %" PRIu64 " of seed %" PRIu64 "%s\n", history_plant_name(o->plant), i + 1, o->seed,
               wrong_anyway ? ", which fails without it too" : "");
        *ret_exit = wrong_anyway;
        return true;
    }
    printf("FAILED: %s was not found in %" PRIu64 " histories from seed %" PRIu64 " on\n", history_plant_name(o->plant),
           o->histories, o->seed);
    *ret_exit = 1;
    return true;
}

static bool run_all(const Options *o, int *ret_exit, Err *err)
{
    HistoryStats stats = {0};
    unsigned failures = 0;
    int64_t end = clock_mono_ms() + (int64_t)o->minutes * 60000;
    for (uint64_t i = 0; failures < FAILURES_MAX; i++) {
        bool wrong;
        if (o->minutes > 0 ? clock_mono_ms() >= end : i == o->histories)
            break;
        if (!run_one(o, o->seed + i, o->plant, &stats, false, &wrong, err))
            return false;
        failures += wrong;
    }
    print_stats(&stats);
    bool enough = o->plant != PLANT_NONE || stats.histories < ENOUGH || everything_happened(&stats);
    *ret_exit = failures > 0 || !enough;
    return true;
}

static bool run(Options *o, int *ret_exit, Err *err)
{
    const char *tmp = o->folder ? o->folder : getenv("TMPDIR");
    char *folder = mem_printf(err, "%s/oracle-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    free(o->folder);
    o->folder = folder;
    if (!folder)
        return false;
    if (!mkdtemp(folder))
        return err_set(err, ERR_IO, "%s cannot be made", folder);
    printf("seed %" PRIu64 "\n", o->seed);
    bool ok = o->expect_failure ? run_expecting(o, ret_exit, err) : run_all(o, ret_exit, err);
    if (!o->keep || rmdir(folder) == 0) {
        Err left = ERR_INIT;
        if (!o->keep && !file_remove_tree(folder, &left))
            (void)fprintf(stderr, "%s\n", left.details);
    }
    return ok;
}

int main(int argc, char **argv)
{
    Options o = {.seed = (uint64_t)clock_utc_us(), .histories = 100, .steps = 40, .qemu = 3};
    const Opt table[] = {
        {"seed", OPT_U64, &o.seed, 0, UINT64_MAX, "N", "of the first history; the next ones count on from it"},
        {"histories", OPT_U64, &o.histories, 1, UINT64_MAX, "N", "how many"},
        {"steps", OPT_U64, &o.steps, 1, 1000000, "N", "of each history"},
        {"minutes", OPT_U64, &o.minutes, 1, 1000000, "N", "how long, instead of how many"},
        {"qemu", OPT_U64, &o.qemu, 0, 100, "PERCENT", "of the disks that are looked at by QEMU too"},
        {"plant", OPT_TEXT, &o.plant_name, 0, 0, "FAULT", "plant a fault, which the oracle must find"},
        {"expect-failure", OPT_FLAG, &o.expect_failure, 0, 0, NULL, "succeed when the planted fault is found"},
        {"folder", OPT_TEXT, &o.folder, 0, 0, "DIR", "where to work, instead of TMPDIR"},
        {"keep", OPT_FLAG, &o.keep, 0, 0, NULL, "leave the files of a history that failed"},
        {"verbose", OPT_FLAG, &o.verbose, 0, 0, NULL, "say what happens"},
        {"help", OPT_FLAG, &o.help, 0, 0, NULL, "print this"},
        {NULL, OPT_FLAG, NULL, 0, 0, NULL, NULL},
    };
    OptList args = {0};
    Err err = ERR_INIT;
    int status = 1;
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < 5; i++)
        (void)signal((int[]){SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGTERM}[i], on_signal);
    bool ok = opt_parse(argc, argv, table, false, &args, &err) &&
        (args.len == 0 || err_set(&err, ERR_USAGE, "no arguments are expected")) &&
        (!o.plant_name || history_plant_parse(o.plant_name, &o.plant, &err));
    if (ok && o.help) {
        opt_print_help(table);
        status = 0;
    } else if (ok) {
        ok = run(&o, &status, &err);
    }
    if (!ok)
        (void)fprintf(stderr, "oracle: %s\n", err.details);
    opt_list_clear_borrowed(&args);
    free(o.folder);
    free(o.plant_name);
    return ok ? status : err_exit(err.code);
}
