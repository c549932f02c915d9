// sendense-backup-client: does one job and ends. Everything it is told comes by environment, so that no secret is in
// an argument vector.
#include "base/log.h"
#include "base/opt.h"
#include "base/proc.h"
#include "domain/name.h"
#include "service/client/client.h"
#include "wire/hub_api.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define EXIT_PARTIAL 4

static atomic_bool stop;

static void on_signal(int signo)
{
    (void)signo;
    atomic_store(&stop, true);
}

static void catch_signals(void)
{
    struct sigaction ask = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    (void)sigaction(SIGTERM, &ask, NULL); // cannot fail: valid signals
    (void)sigaction(SIGINT, &ask, NULL);
    (void)sigaction(SIGHUP, &ask, NULL);
    (void)sigaction(SIGPIPE, &ignore, NULL);
}

// Out of our environment and /proc/<pid>/environ, so that no child and no reader of /proc finds it.
static bool take_token(Secret *ret, Err *err)
{
    char *token = getenv("SENDENSE_JOB_TOKEN");
    if (!token || !*token)
        return true;
    bool fine = secret_set(ret, token, err);
    explicit_bzero(token, strlen(token));
    (void)unsetenv("SENDENSE_JOB_TOKEN"); // cannot fail: a valid name
    return fine;
}

static void help(const Opt *table)
{
    printf("usage: sendense-backup-client [OPTIONS]\n"
           "\n"
           "Does the one job of the environment: reads a VM's disks and writes them to the hub's exports.\n"
           "\n"
           "  MIGRATEKIT_JOB_ID    the job: backup-… or replication-…\n"
           "  SHA_API_URL          the hub; default " HUB_API_URL_DEFAULT "\n"
           "  SENDENSE_JOB_TOKEN   the job's token\n"
           "  SENDENSE_HUB_THUMBPRINT, SENDENSE_HUB_CA\n"
           "                       SHA-256 of the certificate of an https:// hub, or a file of CAs\n"
           "  SENDENSE_LOG         debug, info, warn or error\n"
           "\n");
    opt_print_help(table);
    printf("\nexit status: 0 done; 1 failed; 2 wrong usage; 4 done, but disks were left out\n");
}

static int failed(const char *msg, const char *job_id, const Err *err)
{
    log_error(msg, LOG_STR("job", job_id ? job_id : ""), LOG_ERR(err));
    return err_exit(err->code) == 2 ? 2 : 1;
}

static int run(ClientSpec *spec)
{
    Err err = ERR_INIT;
    cleanup(secret_clear) Secret token = {0};
    cleanup(hub_trust_clear) TlsTrust trust = {0};
    spec->job_id = getenv("MIGRATEKIT_JOB_ID");
    spec->hub_url = getenv("SHA_API_URL");
    if (!take_token(&token, &err))
        return failed("the job's token cannot be used", spec->job_id, &err);
    if (!hub_trust_environment(&trust, &err))
        return failed("the hub cannot be known", spec->job_id, &err);
    if (!spec->job_id || !*spec->job_id) {
        (void)err_set(&err, ERR_USAGE, "MIGRATEKIT_JOB_ID is not set; set it to the job's ID");
        return failed("there is no job to do", NULL, &err);
    }
    if (!name_check_job_id(spec->job_id, &err)) {
        err.code = ERR_USAGE;
        return failed("MIGRATEKIT_JOB_ID is no job's ID", spec->job_id, &err);
    }
    if (!spec->hub_url || !*spec->hub_url)
        spec->hub_url = HUB_API_URL_DEFAULT;
    spec->token = &token;
    spec->trust = &trust;
    catch_signals();
    ClientResult result;
    if (!client_backup(spec, &result, &err))
        return failed(err.code == ERR_CANCELLED ? "the job was cancelled" : "the job failed", spec->job_id, &err);
    log_info("job done", LOG_STR("job", spec->job_id), LOG_NUM("disks", result.disks),
             LOG_NUM("left_out", result.left_out), LOG_NUM("transferred_bytes", result.transferred_bytes));
    return result.left_out > 0 ? EXIT_PARTIAL : 0;
}

int main(int argc, char **argv)
{
    bool want_help = false, want_version = false;
    uint64_t parallel = 0, connections = 4, reach = 300, record = 600;
    cleanup_free char *scratch = NULL;
    const Opt table[] = {
        {.name = "parallel",
         .kind = OPT_U64,
         .target = &parallel,
         .min = 1,
         .max = 16,
         .value = "N",
         .help = "disks copied at a time (2; of a VM in vCenter 8)"},
        {.name = "connections",
         .kind = OPT_U64,
         .target = &connections,
         .min = 1,
         .max = 16,
         .value = "N",
         .help = "connections to each export (4)"},
        {.name = "scratch",
         .kind = OPT_TEXT,
         .target = &scratch,
         .value = "DIR",
         .help = "folder for scratch images of a running VM"},
        {.name = "reach-for",
         .kind = OPT_U64,
         .target = &reach,
         .min = 0,
         .max = 86400,
         .value = "SECONDS",
         .help = "how long to try to reach the hub before the copy (300)"},
        {.name = "record-for",
         .kind = OPT_U64,
         .target = &record,
         .min = 0,
         .max = 86400,
         .value = "SECONDS",
         .help = "how long to repeat a completion without a clear answer (600)"},
        {.name = "help", .kind = OPT_FLAG, .target = &want_help, .help = "this text"},
        {.name = "version", .kind = OPT_FLAG, .target = &want_version, .help = "the version"},
        {.name = NULL},
    };
    Err err = ERR_INIT;
    cleanup(opt_list_clear_borrowed) OptList args = {0};
    bool fine = proc_fill_standard_fds(&err) && opt_parse(argc, argv, table, false, &args, &err);
    if (fine && args.len > 0)
        fine = err_set(&err, ERR_USAGE, "unexpected argument %s; see --help", args.items[0]);
    if (!fine)
        return failed("wrong usage", getenv("MIGRATEKIT_JOB_ID"), &err);
    if (want_help) {
        help(table);
        return 0;
    }
    if (want_version) {
        printf("sendense-backup-client " SENDENSE_VERSION "\n");
        return 0;
    }
    ClientSpec spec = {.scratch = scratch,
                       .parallel = (unsigned)parallel,
                       .connections = (unsigned)connections,
                       .reach_s = (unsigned)reach,
                       .record_s = (unsigned)record,
                       .stop = &stop};
    return run(&spec);
}
