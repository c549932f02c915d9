// vsphere-simulator: HTTPS, sessions, faults of the line, and what stands for VMware's data path: GET /sim/read, which
// only the stand-in libvixDiskLib asks.
#include "simulator.h"

#include "base/clock.h"
#include "base/file.h"

#include <arpa/inet.h>
#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <microhttpd.h>

#define BODY_MAX (16u << 20)
#define READ_MAX (4u << 20)

static struct MHD_Daemon *daemon_;
// Replaced by http_certificate(); the ones before stay, since a handshake may be using them
static gnutls_pcert_st *certificate;
static gnutls_privkey_t key;

// ---- sessions

Session *session_new(const char *user)
{
    Session *s = sim_more(NULL, 0, sizeof *s);
    sim_new_uuid(s->key);
    s->user = sim_strdup(user);
    s->login_us = clock_utc_us();
    s->active_ms = clock_mono_ms();
    *grow(sim.sessions, sim.n_sessions) = s;
    return s;
}

void session_end(Session *session)
{
    session->gone = true;
    for (size_t i = 0; i < session->n_views; i++)
        session->views[i]->gone = true;
    pthread_cond_broadcast(&sim.changed);
}

Session *session_find(const char *session_key)
{
    for (size_t i = 0; i < sim.n_sessions; i++) {
        Session *s = sim.sessions[i];
        if (s->gone || strcmp(s->key, session_key) != 0)
            continue;
        if (clock_mono_ms() - s->active_ms > sim.session_idle_ms) {
            session_end(s);
            return NULL;
        }
        return s;
    }
    return NULL;
}

static void cookie_of(struct MHD_Connection *connection, char out[UUID_TEXT])
{
    const char *header = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Cookie");
    const char *at = header ? strstr(header, "vmware_soap_session=") : NULL;
    out[0] = 0;
    if (!at)
        return;
    at += strlen("vmware_soap_session=");
    at += *at == '"';
    size_t n = strspn(at, "0123456789abcdef-");
    if (n < UUID_TEXT)
        snprintf(out, UUID_TEXT, "%.*s", (int)n, at);
}

static bool is_user(struct MHD_Connection *connection)
{
    char *password = NULL;
    char *user = MHD_basic_auth_get_username_password(connection, &password);
    bool ok = user && password && strcmp(user, sim.user) == 0 && strcmp(password, sim.password) == 0;
    MHD_free(user);
    MHD_free(password);
    return ok;
}

// ---- faults of the line

static bool is_meant(const Injection *in, const char *call, const ReadOfDisk *read)
{
    if (strcmp(in->call, "*") != 0 && strcmp(in->call, call) != 0)
        return false;
    const ReadOfDisk *least = &in->least;
    return !read ||
        ((!least->key || least->key == read->key) && read->offset >= least->offset && read->n >= least->n &&
         (!in->before || read->offset < in->before));
}

bool inject_take(const char *call, const ReadOfDisk *read, Injection *ret_injection)
{
    for (size_t i = 0; i < sim.n_injections; i++) {
        Injection *in = &sim.injections[i];
        if (in->times == 0 || !is_meant(in, call, read))
            continue;
        if (in->skip) {
            in->skip--;
            continue;
        }
        in->times--;
        *ret_injection = *in;
        return true;
    }
    return false;
}

typedef struct Piece { // a reply that ends before its length
    char *text;
    size_t n;
} Piece;

static ssize_t give_piece(void *opaque, uint64_t at, char *to, size_t max)
{
    const Piece *piece = opaque;
    if (at >= piece->n)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t n = MIN(max, piece->n - (size_t)at);
    memcpy(to, piece->text + at, n);
    return (ssize_t)n;
}

static void free_piece(void *opaque)
{
    Piece *piece = opaque;
    free(piece->text);
    free(piece);
}

// Takes text over. in: what happens to the reply, or NULL.
static enum MHD_Result reply(struct MHD_Connection *connection, int status, const char *type, char *text, size_t len,
                             const Injection *in, const char *cookie)
{
    struct MHD_Response *response;
    if (in && (in->kind == INJECT_DROP_BEFORE || in->kind == INJECT_DROP_AFTER)) {
        free(text);
        return MHD_NO;
    }
    if (in && in->kind == INJECT_503) {
        free(text);
        text = sim_strdup("503 Service Unavailable\n");
        len = strlen(text);
        status = 503;
        type = "text/plain";
    }
    if (in && (in->kind == INJECT_DROP_MIDDLE || in->kind == INJECT_CUT)) {
        Piece *piece = sim_more(NULL, 0, sizeof *piece);
        piece->text = text;
        piece->n = in->kind == INJECT_CUT ? MIN(len, in->amount) : len / 2;
        response = MHD_create_response_from_callback(len, 16384, give_piece, piece, free_piece);
    } else {
        response = MHD_create_response_from_buffer(len, text, MHD_RESPMEM_MUST_FREE);
    }
    if (!response)
        return MHD_NO;
    MHD_add_response_header(response, "Content-Type", type);
    if (cookie && *cookie) {
        char header[128];
        snprintf(header, sizeof header, "vmware_soap_session=\"%s\"; Path=/; HttpOnly; Secure", cookie);
        MHD_add_response_header(response, "Set-Cookie", header);
    }
    enum MHD_Result result = MHD_queue_response(connection, (unsigned)status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result say(struct MHD_Connection *connection, int status, const char *text)
{
    return reply(connection, status, "text/plain", sim_strdup(text), strlen(text), NULL, NULL);
}

// ---- the data path

typedef struct Wanted {
    const Snapshot *snapshot;
    const Layer *layer;
} Wanted;

// 200, or the status to refuse with
static int find_layer(struct MHD_Connection *connection, Wanted *ret_wanted)
{
    const char *vm = MHD_lookup_connection_value(connection, MHD_GET_ARGUMENT_KIND, "vm");
    const char *id = MHD_lookup_connection_value(connection, MHD_GET_ARGUMENT_KIND, "snapshot");
    const char *file = MHD_lookup_connection_value(connection, MHD_GET_ARGUMENT_KIND, "file");
    char cookie[UUID_TEXT];
    cookie_of(connection, cookie);
    Session *session = session_find(cookie);
    if (!session && !is_user(connection))
        return 401;
    if (session)
        session->active_ms = clock_mono_ms();
    if (sim_lacks("VirtualMachine.Provisioning.DiskRandomRead"))
        return 403;
    const Snapshot *snapshot = id ? state_snapshot(id) : NULL;
    if (!vm || !file || !snapshot || snapshot->vm != state_vm(vm))
        return 404;
    for (size_t i = 0; i < snapshot->n_layers; i++) {
        if (strcmp(snapshot->layers[i].file, file) == 0) {
            *ret_wanted = (Wanted){snapshot, &snapshot->layers[i]};
            return 200;
        }
    }
    return 404;
}

static bool parse_range(const char *range, uint64_t capacity, uint64_t *ret_offset, uint64_t *ret_n)
{
    if (!range || strncmp(range, "bytes=", 6) != 0)
        return false;
    char *end;
    uint64_t first = strtoull(range + 6, &end, 10);
    if (*end != '-')
        return false;
    uint64_t last = strtoull(end + 1, &end, 10);
    if (*end || last < first || last >= capacity || last - first >= READ_MAX)
        return false;
    *ret_offset = first;
    *ret_n = last - first + 1;
    return true;
}

static enum MHD_Result give_data(struct MHD_Connection *connection)
{
    Injection in;
    pthread_mutex_lock(&sim.lock);
    sim_count("read");
    sim.reads++;
    sim.reads_most = MAX(sim.reads_most, sim.reads);
    Wanted wanted;
    Disk *disk = find_layer(connection, &wanted) == 200 ? wanted.layer->disk : NULL;
    sim.disks += disk && disk->reads++ == 0;
    sim.disks_most = MAX(sim.disks_most, sim.disks);
    ReadOfDisk read = {.key = disk ? (uint64_t)disk->key : 0};
    const char *range = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Range");
    bool in_range = parse_range(range, disk ? wanted.layer->capacity : 0, &read.offset, &read.n);
    bool injected = inject_take("read", &read, &in);
    if (injected && in.kind == INJECT_DELAY)
        sim_wait((int64_t)in.amount);
    if (sim.read_latency_ms)
        sim_wait(sim.read_latency_ms);
    int status = injected && in.kind == INJECT_FAULT ? 500 : find_layer(connection, &wanted);
    if (status == 200 && !in_range)
        status = 416;
    char *data = NULL;
    Err err = ERR_INIT;
    if (status == 200) {
        data = sim_more(NULL, 0, read.n);
        status = layer_read(wanted.snapshot, wanted.layer, read.offset, data, read.n, &err) ? 206 : 500;
    }
    sim.reads--;
    if (disk && --disk->reads == 0)
        sim.disks--;
    pthread_mutex_unlock(&sim.lock);
    if (status != 206) {
        free(data);
        return say(connection, status, err.details[0] ? err.details : "no\n");
    }
    return reply(connection, status, "application/octet-stream", data, read.n, injected ? &in : NULL, NULL);
}

static enum MHD_Result give_info(struct MHD_Connection *connection, bool areas)
{
    pthread_mutex_lock(&sim.lock);
    sim_count(areas ? "allocated" : "info");
    Wanted wanted;
    int status = find_layer(connection, &wanted);
    char *text = NULL;
    size_t len = 0;
    if (status == 200) {
        FILE *out = open_memstream(&text, &len);
        const Bits *b = &wanted.layer->allocated;
        fprintf(out, "%ju %s\n", (uintmax_t)wanted.layer->capacity, wanted.layer->disk->uuid);
        for (uint64_t at = 0; areas && (at = bits_next(b, at, true)) < b->n;) {
            uint64_t end = bits_next(b, at, false), bytes = MIN(end * sim.granule, wanted.layer->capacity);
            fprintf(out, "%ju %ju\n", (uintmax_t)(at * sim.granule), (uintmax_t)(bytes - at * sim.granule));
            at = end;
        }
        fclose(out);
    }
    pthread_mutex_unlock(&sim.lock);
    if (status != 200)
        return say(connection, status, "no\n");
    return reply(connection, status, "text/plain", text, len, NULL, NULL);
}

// ---- requests

typedef struct Body {
    char *text;
    size_t len;
} Body;

static enum MHD_Result give_soap(struct MHD_Connection *connection, const Body *body)
{
    char cookie[UUID_TEXT];
    cookie_of(connection, cookie);
    Answer answer;
    pthread_mutex_lock(&sim.lock);
    soap_answer(body->text ? body->text : "", body->len, cookie, &answer);
    bool down = sim.down;
    pthread_mutex_unlock(&sim.lock);
    if (down) {
        free(answer.text);
        return MHD_NO;
    }
    if (!answer.text)
        answer.text = sim_strdup("");
    return reply(connection, answer.status, "text/xml; charset=\"utf-8\"", answer.text, answer.len,
                 answer.injected ? &answer.injection : NULL, answer.cookie);
}

static enum MHD_Result handle(void *unused, struct MHD_Connection *connection, const char *url, const char *method,
                              const char *version, const char *upload, size_t *upload_size, void **context)
{
    (void)unused;
    (void)version;
    if (!*context) {
        *context = sim_more(NULL, 0, sizeof(Body));
        return MHD_YES;
    }
    Body *body = *context;
    if (*upload_size) {
        if (body->len + *upload_size > BODY_MAX)
            return MHD_NO;
        char *more = realloc(body->text, body->len + *upload_size);
        if (!more)
            return MHD_NO;
        memcpy(more + body->len, upload, *upload_size);
        body->text = more;
        body->len += *upload_size;
        *upload_size = 0;
        return MHD_YES;
    }
    pthread_mutex_lock(&sim.lock);
    bool down = (sim.down && !(sim.hosts_up && strncmp(url, "/sim/", 5) == 0)) || sim.stopping;
    if (down)
        sim_count("refused");
    pthread_mutex_unlock(&sim.lock);
    if (down)
        return MHD_NO;
    bool get = strcmp(method, "GET") == 0;
    if (strcmp(url, "/sdk") == 0 || strcmp(url, "/sdk/") == 0)
        return get ? say(connection, 405, "POST\n") : give_soap(connection, body);
    if (get && strcmp(url, "/sim/read") == 0)
        return give_data(connection);
    if (get && (strcmp(url, "/sim/info") == 0 || strcmp(url, "/sim/allocated") == 0))
        return give_info(connection, strcmp(url, "/sim/allocated") == 0);
    if (get && strcmp(url, "/sdk/vimServiceVersions.xml") == 0)
        return say(connection, 200,
                   "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<namespaces version=\"1.0\"><namespace>"
                   "<name>urn:vim25</name><version>8.0.1.0</version></namespace></namespaces>\n");
    return say(connection, 404, "no\n");
}

static void done(void *unused, struct MHD_Connection *connection, void **context, enum MHD_RequestTerminationCode code)
{
    (void)unused;
    (void)connection;
    (void)code;
    Body *body = *context;
    if (body)
        free(body->text);
    free(body);
    *context = NULL;
}

static void connected(void *unused, struct MHD_Connection *connection, void **context,
                      enum MHD_ConnectionNotificationCode code)
{
    (void)unused;
    (void)connection;
    (void)context;
    if (code != MHD_CONNECTION_NOTIFY_STARTED)
        return;
    pthread_mutex_lock(&sim.lock);
    sim_count("connections");
    pthread_mutex_unlock(&sim.lock);
}

static enum MHD_Result accept_now(void *unused, const struct sockaddr *address, socklen_t len)
{
    (void)unused;
    (void)address;
    (void)len;
    pthread_mutex_lock(&sim.lock);
    bool down = sim.down && !sim.hosts_up;
    if (down)
        sim_count("refused");
    pthread_mutex_unlock(&sim.lock);
    return down ? MHD_NO : MHD_YES;
}

// ---- TLS

static int give_certificate(gnutls_session_t session, const gnutls_datum_t *names, int n_names,
                            const gnutls_pk_algorithm_t *algorithms, int n_algorithms, gnutls_pcert_st **ret_certs,
                            unsigned *ret_n, gnutls_privkey_t *ret_key)
{
    (void)session;
    (void)names;
    (void)n_names;
    (void)algorithms;
    (void)n_algorithms;
    pthread_mutex_lock(&sim.lock);
    *ret_certs = certificate;
    *ret_key = key;
    pthread_mutex_unlock(&sim.lock);
    *ret_n = 1;
    return 0;
}

bool http_certificate(const char *cert_path, const char *key_path, Err *err)
{
    gnutls_datum_t cert_text = {0}, key_text = {0};
    gnutls_pcert_st *new_cert = sim_more(NULL, 0, sizeof *new_cert);
    gnutls_privkey_t new_key = NULL;
    int why = gnutls_load_file(cert_path, &cert_text);
    why = why ? why : gnutls_load_file(key_path, &key_text);
    why = why ? why : gnutls_pcert_import_x509_raw(new_cert, &cert_text, GNUTLS_X509_FMT_PEM, 0);
    why = why ? why : gnutls_privkey_init(&new_key);
    why = why ? why : gnutls_privkey_import_x509_raw(new_key, &key_text, GNUTLS_X509_FMT_PEM, NULL, 0);
    gnutls_free(cert_text.data);
    gnutls_free(key_text.data);
    if (why)
        return err_set(err, ERR_INVALID, "%s, %s: %s", cert_path, key_path, gnutls_strerror(why));
    pthread_mutex_lock(&sim.lock);
    certificate = new_cert;
    key = new_key;
    pthread_mutex_unlock(&sim.lock);
    return true;
}

bool http_start(const char *address, uint16_t port, uint16_t *ret_port, Err *err)
{
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, address, &where.sin_addr) != 1)
        return err_set(err, ERR_USAGE, "%s is no IPv4 address", address);
    daemon_ =
        MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_TLS, port,
                         accept_now, NULL, handle, NULL, MHD_OPTION_SOCK_ADDR, &where, MHD_OPTION_HTTPS_CERT_CALLBACK,
                         give_certificate, MHD_OPTION_NOTIFY_COMPLETED, done, NULL, MHD_OPTION_NOTIFY_CONNECTION,
                         connected, NULL, MHD_OPTION_CONNECTION_LIMIT, 2000u, MHD_OPTION_END);
    const union MHD_DaemonInfo *info = daemon_ ? MHD_get_daemon_info(daemon_, MHD_DAEMON_INFO_BIND_PORT) : NULL;
    if (!info)
        return err_set(err, ERR_UNAVAILABLE, "cannot listen on %s, port %u", address, port);
    *ret_port = info->port;
    return true;
}

void http_stop(void)
{
    MHD_stop_daemon(daemon_);
}
