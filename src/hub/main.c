// sendense-hub: options, wiring, signals, exit status.
#include "base/file.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "http/api.h"
#include "http/server.h"
#include "hub/migrate_database.h"
#include "hub/notify.h"
#include "hub/restore_database.h"
#include "hub/settings.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#define STOP_MS 10000
#define DESCRIPTORS 65536
#define DESCRIPTORS_LEAST 8192

typedef struct Running {
    int argc;
    char *const *argv; // read anew by a reload
    Settings settings; // of the start
    Hub *hub;
    TlsServer *tls; // NULL: without
} Running;

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
    return *ret &&
        (file_exists(*ret) || err_set(err, ERR_USAGE, "%s is not there; say where it is by its option", *ret));
}

static void note_request(void *ctx, const HttpDone *d)
{
    hub_trail_add(ctx,
                  &(HubTrail){.actor = d->actor[0] ? d->actor : HUB_ANYBODY,
                              .role = d->role,
                              .remote = d->remote,
                              .method = d->method,
                              .path = d->path,
                              .object = d->object,
                              .unlogged = (d->flags & HTTP_OFTEN) != 0,
                              .status = d->status});
    if (d->status >= 500)
        log_error("request failed", LOG_STR("method", d->method), LOG_STR("path", d->path),
                  LOG_NUM("status", d->status), LOG_ERR(d->err));
    else
        log_debug("request", LOG_STR("method", d->method), LOG_STR("path", d->path), LOG_NUM("status", d->status),
                  LOG_NUM("ms", d->duration_ms));
}

static void show_certificate(const Running *r)
{
    TlsCertificate shown;
    tls_server_certificate(r->tls, &shown);
    hub_set_thumbprint(r->hub, shown.sha256);
    log_info("certificate", LOG_STR("sha256", shown.sha256), LOG_STR("subject", shown.subject),
             LOG_STR("issuer", shown.issuer));
}

// The certificate that settings name, or one of the hub's own.
static bool open_tls(const Settings *o, TlsServer **ret, Err *err)
{
    if (o->tls_cert)
        return tls_server_load(o->tls_cert, o->tls_key, ret, err);
    cleanup_free char *own = file_join(settings_data_dir(o), "tls.pem", err);
    return own && (file_exists(own) || tls_server_make(own, err)) && tls_server_load(own, own, ret, err);
}

// What may change while it runs does; what may not is told.
static bool reload(void *ctx, json_t *changed, Err *err)
{
    Running *r = ctx;
    Settings now;
    const char *fixed[32];
    notify_reloading();
    bool ok = settings_load(r->argc, r->argv, &now, err) && (!r->tls || tls_server_reload(r->tls, err));
    if (ok && r->tls)
        show_certificate(r);
    if (ok) {
        HubLimits limits = settings_limits(&now);
        size_t n = settings_fixed_changes(&r->settings, &now, fixed, ARRAY_LEN(fixed));
        hub_set_limits(r->hub, &limits);
        for (size_t i = 0; ok && i < n; i++) {
            log_warn("this setting changes with the next start", LOG_STR("setting", fixed[i]));
            ok = codec_json_push(changed, json_string(fixed[i]), err);
        }
        log_info("settings read anew");
    }
    settings_clear(&now);
    notify_ready(NULL);
    return ok;
}

// Until a signal says stop.
static void wait_for_end(Running *r, const sigset_t *signals)
{
    for (;;) {
        int signo = 0;
        while (sigwait(signals, &signo) != 0 && errno == EINTR)
            ;
        if (signo != SIGHUP) {
            log_info("stopping; what runs goes on, and the next hub takes it over", LOG_NUM("signal", signo));
            return;
        }
        Err err = ERR_INIT;
        json_t *answer = NULL;
        bool ok = hub_reload(r->hub, &answer, &err);
        if (!ok)
            log_error("settings could not be read; those of before stay", LOG_ERR(&err));
        json_decref(answer);
        hub_trail_add(r->hub,
                      &(HubTrail){.actor = HUB_ITSELF,
                                  .role = role_name(ROLE_ADMIN),
                                  .remote = "",
                                  .method = "POST",
                                  .path = "/api/v1/reload",
                                  .object = "SIGHUP",
                                  .status = ok ? 200 : 409});
    }
}

static bool serve(Running *r, const sigset_t *signals, Err *err)
{
    HttpServer *server = NULL;
    Hub *hub = r->hub;
    const Settings *o = &r->settings;
    HttpConfig config = {.address = o->listen,
                         .port = (uint16_t)o->port,
                         .tls = r->tls,
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
        if (r->tls)
            show_certificate(r);
        log_info("listening", LOG_STR("url", url), LOG_STR("version", SENDENSE_VERSION));
        notify_ready(url);
        ok = notify_watchdog_start(hub, err);
    }
    if (ok)
        wait_for_end(r, signals);
    notify_stopping();
    hub_quiesce(hub);
    http_server_stop(server, STOP_MS);
    notify_watchdog_stop();
    return ok;
}

// The files that settings name.
static bool find_files(const Settings *o, char **ret_plugin, char **ret_client, Err *err)
{
    return (o->plugin ? given_file("plugin", o->plugin, R_OK, ret_plugin, err)
                      : sibling("nbdkit-sendense-plugin.so", ret_plugin, err)) &&
        (o->client ? given_file("client", o->client, X_OK, ret_client, err)
                   : sibling("sendense-backup-client", ret_client, err));
}

static void warn_of_address(const Settings *o)
{
    if (!o->auth)
        log_warn("anybody who reaches this address may do everything", LOG_STR("listen", o->listen));
    else if (!o->tls)
        log_warn("tokens travel as they are, without TLS; put a proxy with TLS in front", LOG_STR("listen", o->listen));
}

static void warn(const Settings *o)
{
    if (o->pass_on_command_line)
        log_warn("a password on a command line is visible to every user of this machine; use db-pass-file, in the "
                 "settings or as SENDENSE_DB_PASS_FILE");
    if (o->listen && !str_starts(o->listen, "127.") && !str_eq(o->listen, "::1"))
        warn_of_address(o);
}

// A connection with TLS takes three, an exporter and a repository's files some more; the usual limit is 1024, and
// the system lets a program have many more.
static void raise_descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = MIN(limit.rlim_max, (rlim_t)DESCRIPTORS);
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < DESCRIPTORS_LEAST)
        log_warn("this process may have few descriptors: many connections at a time keep backups from starting",
                 LOG_NUM("limit", limit.rlim_cur), LOG_NUM("better", DESCRIPTORS_LEAST));
}

static bool run(Running *r, Err *err)
{
    const Settings *o = &r->settings;
    cleanup_free char *plugin = NULL, *client = NULL;
    cleanup(secret_clear) Secret password = {0};
    StoreMariadb mariadb = {0};
    if (o->to)
        return err_set(err, ERR_USAGE, "--to goes with migrate-database");
    if (!settings_database_password(o, &password, err) || !find_files(o, &plugin, &client, err) ||
        (o->db_host && !settings_mariadb(o, &password, &mariadb, err)))
        return false;
    if (o->check_config && o->tls_cert && !open_tls(o, &r->tls, err))
        return false;
    if (o->check_config) {
        tls_server_free(r->tls);
        settings_print(o);
        return true;
    }
    warn(o);
    raise_descriptors();
    // before any thread: all of them leave these to sigwait()
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGHUP);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGCHLD, SIG_DFL); // where it came ignored, the kernel would reap our children itself
    (void)signal(SIGHUP, SIG_DFL);  // the same: it would never come
    HubConfig config = {.mariadb = o->db_host ? &mariadb : NULL,
                        .data_dir = settings_data_dir(o),
                        .key_file = o->key_file,
                        .run_dir = o->run_dir,
                        .dump_to = o->dump_to,
                        .hub_name = o->hub_name,
                        .hub_lease_s = (unsigned)o->hub_lease,
                        .plugin = plugin,
                        .client = client,
                        .limits = settings_limits(o),
                        .auth = o->auth,
                        .new_admin = o->new_admin_token,
                        .reload = reload,
                        .reload_ctx = r};
    notify_starting();
    bool ok = hub_open(&config, &r->hub, err) && (!o->tls || open_tls(o, &r->tls, err)) && serve(r, &signals, err);
    hub_close(r->hub);
    tls_server_free(r->tls);
    return ok;
}

int main(int argc, char **argv)
{
    if (argc > 1 && str_eq(argv[1], "restore-database"))
        return restore_database(argc - 1, argv + 1);
    Err err = ERR_INIT;
    bool migrate = argc > 1 && str_eq(argv[1], "migrate-database");
    if (migrate) { // its options are the hub's
        argv[1] = argv[0];
        argv++;
        argc--;
    }
    Running r = {.argc = argc, .argv = argv};
    bool ok = proc_fill_standard_fds(&err) && settings_load(argc, argv, &r.settings, &err);
    if (ok && r.settings.help) {
        (void)printf("usage: sendense-hub --data-dir DIR [-port=8082] [-auth=false]\n"
                     "       sendense-hub migrate-database --to mariadb|embedded --data-dir DIR --db-host HOST …\n"
                     "       sendense-hub restore-database --help\n\n");
        settings_print_help();
    } else if (ok && r.settings.version) {
        (void)printf("sendense-hub %s\n", SENDENSE_VERSION);
    } else if (migrate) {
        ok = ok && migrate_database(&r.settings, &err);
    } else {
        ok = ok && run(&r, &err);
    }
    settings_clear(&r.settings);
    if (!ok)
        (void)fprintf(stderr, "sendense-hub: %s: %s\n", err_short(&err), err.details);
    return ok ? 0 : err_exit(err.code);
}
