// sendense-hub: options, wiring, signals, exit status.
#include "base/file.h"
#include "base/log.h"
#include "base/opt.h"
#include "base/proc.h"
#include "base/str.h"
#include "domain/chain.h"
#include "http/api.h"
#include "http/server.h"
#include "service/hub/hub.h"

#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define STOP_MS 10000

typedef struct Options {
    bool auth, let_anybody_in, new_admin_token, help, version;
    uint64_t port, db_port, max_jobs, chain_limit, lease, claim_timeout, export_idle, keep_interrupted, checkpoint,
        audit;
    char *listen, *data_dir, *key_file, *run_dir, *plugin, *client;
    char *db_host, *db_name, *db_user, *db_pass;
} Options;

static void options_clear(Options *o)
{
    char *texts[] = {o->listen, o->data_dir, o->key_file, o->run_dir, o->plugin,
                     o->client, o->db_host,  o->db_name,  o->db_user, o->db_pass};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        free(texts[i]);
}

// From the option, the environment or a file, in this order; one that a file ends with a line feed is without it.
static bool database_password(const Options *o, Secret *ret, Err *err)
{
    const char *said = o->db_pass ? o->db_pass : getenv("SENDENSE_DB_PASS"), *path = getenv("SENDENSE_DB_PASS_FILE");
    cleanup_free char *text = NULL;
    size_t n = 0;
    if (o->db_pass)
        log_warn("a password on a command line is visible to every user of this machine; use SENDENSE_DB_PASS, or a "
                 "file named by SENDENSE_DB_PASS_FILE");
    if (said || !path)
        return secret_set(ret, said, err);
    if (!file_read(path, SECRET_MAX, &text, &n, err))
        return err_context(err, "SENDENSE_DB_PASS_FILE");
    if (n > 0 && text[n - 1] == '\n')
        text[n - 1] = '\0';
    bool ok = secret_set(ret, text, err);
    explicit_bzero(text, n);
    return ok;
}

static bool check_database(const Options *o, Err *err)
{
    if (!o->db_host && (o->db_name || o->db_user || o->db_pass))
        return err_set(err, ERR_USAGE, "--db-name, --db-user and --db-pass go with --db-host");
    if (o->db_host && (!o->db_name || !o->db_user))
        return err_set(err, ERR_USAGE, "--db-host needs --db-name and --db-user");
    return true;
}

// What an option names has to be there now: a job that finds it missing has failed already.
static bool given_file(const char *option, const char *path, int mode, char **ret, Err *err)
{
    if (file_is_dir(path))
        return err_set(err, ERR_USAGE, "--%s: %s is a folder", option, path);
    if (access(path, mode) != 0)
        return err_set(err, ERR_USAGE, "--%s: %s: %s", option, path, strerrordesc_np(errno));
    return mem_replace(ret, path, err);
}

static bool sibling(const char *name, char **ret, Err *err)
{
    cleanup_free char *folder = NULL;
    if (!proc_own_folder(&folder, err))
        return false;
    *ret = file_join(folder, name, err);
    if (!*ret || file_exists(*ret))
        return *ret != NULL;
    // installed: the plugin lies where nbdkit keeps its plugins
    free(*ret);
    *ret = str_ends(name, ".so") ? file_join(SENDENSE_PLUGIN_DIR, name, err) : NULL;
    return (*ret && file_exists(*ret)) ||
        err_set(err, ERR_USAGE, "%s is not beside this program; say where it is by its option", name);
}

static void note_request(void *ctx, const HttpDone *d)
{
    hub_trail_add(ctx,
                  &(HubTrail){.actor = d->actor[0] ? d->actor : HUB_ANYBODY,
                              .role = d->role,
                              .remote = d->remote,
                              .method = d->method,
                              .path = d->path,
                              .status = d->status});
    if (d->status >= 500)
        log_error("request failed", LOG_STR("method", d->method), LOG_STR("path", d->path),
                  LOG_NUM("status", d->status), LOG_ERR(d->err));
    else
        log_debug("request", LOG_STR("method", d->method), LOG_STR("path", d->path), LOG_NUM("status", d->status),
                  LOG_NUM("ms", d->duration_ms));
}

static bool serve(Hub *hub, const Options *o, const sigset_t *signals, Err *err)
{
    HttpServer *server = NULL;
    HttpConfig config = {.address = o->listen,
                         .port = (uint16_t)o->port,
                         .routes = api_routes(),
                         .ctx = hub,
                         .admit = api_admit,
                         .done = note_request};
    if (!http_server_start(&config, &server, err))
        return false;
    const char *address = o->listen ? o->listen : "127.0.0.1";
    bool any = str_eq(address, "0.0.0.0") || str_eq(address, "::");
    cleanup_free char *url = mem_printf(err, strchr(address, ':') && !any ? "http://[%s]:%u" : "http://%s:%u",
                                        any ? "127.0.0.1" : address, (unsigned)http_server_port(server));
    bool ok = url && hub_set_url(hub, url, err);
    if (ok) {
        int signo = 0;
        log_info("listening", LOG_STR("url", url), LOG_STR("version", SENDENSE_VERSION));
        while (sigwait(signals, &signo) != 0 && errno == EINTR)
            ;
        log_info("stopping; what runs goes on, and the next hub takes it over", LOG_NUM("signal", signo));
    }
    hub_quiesce(hub);
    http_server_stop(server, STOP_MS);
    return ok;
}

static bool is_loopback(const char *address)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (!address)
        return true; // the default
    return inet_pton(AF_INET, address, &v4) == 1 ? ntohl(v4.s_addr) >> 24 == 127
                                                 : inet_pton(AF_INET6, address, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

static bool check_reach(const Options *o, Err *err)
{
    if (is_loopback(o->listen))
        return true;
    if (!o->auth && !o->let_anybody_in)
        return err_set(err, ERR_USAGE,
                       "-auth=false and --listen %s: whoever reaches that address could read and delete every backup; "
                       "HINT: leave out one of them, or say --let-anybody-in",
                       o->listen);
    log_warn(o->auth ? "tokens and data travel as they are, without TLS; put a proxy with TLS in front"
                     : "anybody who reaches this address may do everything",
             LOG_STR("listen", o->listen));
    return true;
}

static bool run(const Options *o, Err *err)
{
    Hub *hub = NULL;
    cleanup_free char *plugin = NULL, *client = NULL;
    cleanup(secret_clear) Secret password = {0};
    if (!check_reach(o, err) || !check_database(o, err) || !database_password(o, &password, err) ||
        !(o->plugin ? given_file("plugin", o->plugin, R_OK, &plugin, err)
                    : sibling("nbdkit-sendense-plugin.so", &plugin, err)) ||
        !(o->client ? given_file("client", o->client, X_OK, &client, err)
                    : sibling("sendense-backup-client", &client, err)))
        return false;
    // before any thread: all of them leave these to sigwait()
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGHUP);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGCHLD, SIG_DFL); // where it came ignored, the kernel would reap our children itself
    StoreMariadb mariadb = {.host = o->db_host,
                            .port = (unsigned)o->db_port,
                            .name = o->db_name,
                            .user = o->db_user,
                            .password = &password};
    HubConfig config = {.mariadb = o->db_host ? &mariadb : NULL,
                        .data_dir = o->data_dir ? o->data_dir : "/var/lib/sendense",
                        .key_file = o->key_file,
                        .run_dir = o->run_dir,
                        .plugin = plugin,
                        .client = client,
                        .max_jobs = (unsigned)o->max_jobs,
                        .chain_limit = (unsigned)o->chain_limit,
                        .lease_s = (unsigned)o->lease,
                        .claim_s = (unsigned)o->claim_timeout,
                        .export_idle_s = (unsigned)o->export_idle,
                        .keep_hours = (unsigned)o->keep_interrupted,
                        .checkpoint_mib = (unsigned)o->checkpoint,
                        .audit_blocks = (unsigned)o->audit,
                        .auth = o->auth,
                        .new_admin = o->new_admin_token};
    bool ok = hub_open(&config, &hub, err) && serve(hub, o, &signals, err);
    hub_close(hub);
    return ok;
}

int main(int argc, char **argv)
{
    Options o = {.auth = true,
                 .port = 8082,
                 .db_port = 3306,
                 .max_jobs = 4,
                 .chain_limit = CHAIN_LIMIT_DEFAULT,
                 .lease = 30,
                 .claim_timeout = 600,
                 .export_idle = 600,
                 .keep_interrupted = 72,
                 .checkpoint = 1024,
                 .audit = AUDIT_BLOCKS_DEFAULT};
    const Opt table[] = {
        {"port", OPT_U64, &o.port, 0, 65535, "PORT", "port of the API, 0 for any free one; default 8082"},
        {"listen", OPT_TEXT, &o.listen, 0, 0, "ADDRESS", "address to listen on; default 127.0.0.1"},
        {"auth", OPT_FLAG, &o.auth, 0, 0, NULL, "-auth=false: nobody has to authenticate"},
        {"let-anybody-in", OPT_FLAG, &o.let_anybody_in, 0, 0, NULL,
         "with -auth=false: also on an address that others reach"},
        {"new-admin-token", OPT_FLAG, &o.new_admin_token, 0, 0, NULL,
         "make another token of an admin, in DIR/admin-token"},
        {"data-dir", OPT_TEXT, &o.data_dir, 0, 0, "DIR", "database and logs; default /var/lib/sendense"},
        {"key-file", OPT_TEXT, &o.key_file, 0, 0, "FILE", "opens the sources' passwords; default: DIR/secret.key"},
        {"run-dir", OPT_TEXT, &o.run_dir, 0, 0, "DIR", "sockets; default: a short folder below /run or /tmp"},
        {"max-jobs", OPT_U64, &o.max_jobs, 1, 256, "N", "jobs that run at a time; default 4"},
        {"chain-limit", OPT_U64, &o.chain_limit, 1, 200, "N", "points in a chain, then a full; default 30"},
        {"lease", OPT_U64, &o.lease, 2, 86400, "SECONDS", "a client silent for longer has failed; default 30"},
        {"claim-timeout", OPT_U64, &o.claim_timeout, 1, 86400, "SECONDS", "for a job that nobody claims; default 600"},
        {"export-idle", OPT_U64, &o.export_idle, 1, 86400, "SECONDS", "for an export that nobody reads; default 600"},
        {"keep-interrupted", OPT_U64, &o.keep_interrupted, 0, 8760, "HOURS",
         "what a failed backup left, for the next to go on from; default 72"},
        {"checkpoint-mib", OPT_U64, &o.checkpoint, 1, 1048576, "N",
         "MiB after which an interrupted backup can go on; default 1024"},
        {"audit-blocks", OPT_U64, &o.audit, 0, AUDIT_BLOCKS_MAX, "N",
         "of each increment, looked at though tracking calls them unchanged; default 3000"},
        {"plugin", OPT_TEXT, &o.plugin, 0, 0, "FILE", "nbdkit-sendense-plugin.so; default: beside this program"},
        {"client", OPT_TEXT, &o.client, 0, 0, "FILE", "sendense-backup-client; default: beside this program"},
        {"db-host", OPT_TEXT, &o.db_host, 0, 0, "HOST",
         "MariaDB's host, or the path of its socket; without it: embedded SQLite"},
        {"db-port", OPT_U64, &o.db_port, 1, 65535, "PORT", "MariaDB's port; default 3306"},
        {"db-name", OPT_TEXT, &o.db_name, 0, 0, "NAME", "MariaDB's database"},
        {"db-user", OPT_TEXT, &o.db_user, 0, 0, "USER", "MariaDB's user"},
        {"db-pass", OPT_TEXT, &o.db_pass, 0, 0, "PASSWORD", "MariaDB's password (visible to all users here)"},
        {"help", OPT_FLAG, &o.help, 0, 0, NULL, "this text"},
        {"version", OPT_FLAG, &o.version, 0, 0, NULL, "the version"},
        {NULL, OPT_FLAG, NULL, 0, 0, NULL, NULL},
    };
    Err err = ERR_INIT;
    OptList rest = {0};
    bool ok = proc_fill_standard_fds(&err) && opt_parse(argc, argv, table, false, &rest, &err);
    if (ok && o.help) {
        (void)printf("usage: sendense-hub --data-dir DIR [-port=8082] [-auth=false]\n\n");
        opt_print_help(table);
    } else if (ok && o.version) {
        (void)printf("sendense-hub %s\n", SENDENSE_VERSION);
    } else {
        ok = ok && (rest.len == 0 || err_set(&err, ERR_USAGE, "\"%s\" is not an option; see --help", rest.items[0])) &&
            run(&o, &err);
    }
    opt_list_clear_borrowed(&rest);
    options_clear(&o);
    if (!ok)
        (void)fprintf(stderr, "sendense-hub: %s: %s\n", err_short(&err), err.details);
    return ok ? 0 : err_exit(err.code);
}
