// A stand-in for VMware's libvixDiskLib.so.8, for tests: it serves the frozen disks of vsphere-simulator to nbdkit's
// real vddk plugin. Written from the public reference of the VDDK API; types and constants are laid out as published
// there.
//
// It is as strict as the real one where a client could go wrong: thumbprint (looked at when a disk is opened), user and
// password or session cookie, whole sectors, 2 MiB a request. It reads only.
//
// No function here calls another one by its public name: the plugin exports the same names, and the linker would take
// the plugin's.
#include <curl/curl.h>
#include <openssl/sha.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- as published

typedef uint64_t VixError;
enum {
    VIX_OK = 0,
    VIX_E_FAIL = 1,
    VIX_E_OUT_OF_MEMORY = 2,
    VIX_E_INVALID_ARG = 3,
    VIX_E_FILE_NOT_FOUND = 4,
    VIX_E_NOT_SUPPORTED = 6,
    VIX_E_FILE_READ_ONLY = 9,
    VIX_E_DISK_OUTOFRANGE = 16000 + 11,
    VIX_E_HOST_NETWORK_CONN_REFUSED = 20512,
    VIX_E_HOST_CONNECTION_LOST = 20515,
    VIX_E_INVALID_USER_PASSWORD = 3014,
    VIX_ASYNC = 25000,
};

#define SECTOR 512
#define FLAG_OPEN_READ_ONLY 4

typedef enum { CRED_UID = 1, CRED_SESSIONID = 2 } CredType;

typedef struct {
    char *vmxSpec;
    char *serverName;
    char *thumbPrint;
    long privateUse;
    CredType credType;
    union {
        struct {
            char *userName;
            char *password;
        } uid;
        struct {
            char *cookie;
            char *userName;
            char *key;
        } sessionId;
        void *ticketId;
    } creds;
    uint32_t port;
    uint32_t nfcHostPort;
    char *vimApiVer;
    char reserved[8];
    void *state;
    struct {
        char *id;
        char *datastoreMoRef;
        char *ssId;
    } vStorageObjSpec;
    int specType;
} ConnectParams;

typedef struct {
    uint32_t cylinders, heads, sectors;
} Geometry;

typedef struct {
    Geometry biosGeo, physGeo;
    uint64_t capacity; // sectors
    int adapterType;
    int numLinks;
    char *parentFileNameHint;
    char *uuid;
    uint32_t logicalSectorSize;
    uint32_t physicalSectorSize;
} Info;

typedef struct {
    uint64_t offset, length; // sectors
} Block;

typedef struct {
    uint32_t numBlocks;
    Block blocks[1];
} BlockList;

typedef void LogFunction(const char *fmt, va_list args);
typedef void CompletionFunction(void *data, VixError result);

// ---- ours

#define REQUEST_MAX (2u << 20)
#define WORKERS_MAX 16
#define CHUNK_MIN 128 // sectors, of QueryAllocatedBlocks

typedef struct Connection {
    char *server;
    uint32_t port;
    char *vm;       // moref=vm-16, without "moref="
    char *snapshot; // may be NULL
    char *user;     // user:password, or NULL
    char *cookie;
    uint8_t thumbprint[SHA_DIGEST_LENGTH];
    bool has_thumbprint;
} Connection;

typedef struct Request {
    uint64_t offset, n; // bytes
    uint8_t *buffer;
    CompletionFunction *done;
    void *data;
    struct Request *next;
} Request;

typedef struct Handle {
    Connection *connection;
    char *file; // escaped for a URL
    uint64_t capacity;
    char uuid[64];
    char *allocated; // the areas in use, as the simulator lists them; NULL until somebody asks
    pthread_mutex_t lock;
    pthread_cond_t work;
    pthread_cond_t idle;
    Request *first, *last;
    unsigned pending; // queued or under way
    unsigned n_workers;
    pthread_t workers[WORKERS_MAX];
    bool closing;
} Handle;

static LogFunction *log_function;
static LogFunction *warn_function;

static void say(LogFunction *f, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    if (f)
        f(fmt, args);
    va_end(args);
}

// ---- HTTPS

typedef struct Sink {
    uint8_t *p;
    size_t n, max;
    bool growing;
} Sink;

static size_t take(char *from, size_t size, size_t n, void *opaque)
{
    Sink *sink = opaque;
    size_t bytes = size * n;
    if (sink->growing) {
        uint8_t *more = realloc(sink->p, sink->n + bytes + 1);
        if (!more)
            return 0;
        sink->p = more;
        sink->max = sink->n + bytes;
        more[sink->n + bytes] = 0;
    }
    if (bytes > sink->max - sink->n)
        return 0;
    memcpy(sink->p + sink->n, from, bytes);
    sink->n += bytes;
    return bytes;
}

// Instead of any chain of trust: the thumbprint.
static int check_thumbprint(X509_STORE_CTX *store, void *opaque)
{
    const Connection *c = opaque;
    X509 *certificate = X509_STORE_CTX_get0_cert(store);
    uint8_t digest[SHA_DIGEST_LENGTH];
    unsigned n = sizeof digest;
    return certificate && X509_digest(certificate, EVP_sha1(), digest, &n) == 1 && n == sizeof digest &&
        memcmp(digest, c->thumbprint, n) == 0;
}

static CURLcode set_up_tls(CURL *curl, void *context, void *opaque)
{
    (void)curl;
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_cert_verify_callback(context, check_thumbprint, opaque);
    return CURLE_OK;
}

static VixError error_of(CURLcode code, long status)
{
    if (code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CONNECT_ERROR)
        return VIX_E_FAIL; // "unknown error" is all that VMware's library says of a wrong thumbprint
    if (code == CURLE_COULDNT_CONNECT)
        return VIX_E_HOST_NETWORK_CONN_REFUSED;
    if (code != CURLE_OK)
        return VIX_E_HOST_CONNECTION_LOST;
    if (status == 401)
        return VIX_E_INVALID_USER_PASSWORD;
    if (status == 404)
        return VIX_E_FILE_NOT_FOUND;
    return status == 200 || status == 206 ? VIX_OK : VIX_E_FAIL;
}

static VixError get(CURL *curl, const Connection *c, const char *what, const char *file, const char *range, Sink *sink)
{
    char url[2048], error[CURL_ERROR_SIZE] = "", cookie[256];
    snprintf(url, sizeof url, "https://%s:%u/sim/%s?vm=%s&snapshot=%s&file=%s", c->server, c->port, what, c->vm,
             c->snapshot ? c->snapshot : "", file);
    curl_easy_reset(curl);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, error);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, sink);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, 10L);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    // curl's own verification reads a bundle of CAs for each connection, which takes longer than a request
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 0L);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 0L);
    curl_easy_setopt(curl, CURLOPT_CAINFO, NULL);
    curl_easy_setopt(curl, CURLOPT_CAPATH, NULL);
    curl_easy_setopt(curl, CURLOPT_SSL_CTX_FUNCTION, set_up_tls);
    curl_easy_setopt(curl, CURLOPT_SSL_CTX_DATA, c);
    if (range)
        curl_easy_setopt(curl, CURLOPT_RANGE, range);
    if (c->cookie) {
        snprintf(cookie, sizeof cookie, "%s%s", strchr(c->cookie, '=') ? "" : "vmware_soap_session=", c->cookie);
        curl_easy_setopt(curl, CURLOPT_COOKIE, cookie);
    } else {
        curl_easy_setopt(curl, CURLOPT_USERPWD, c->user);
    }
    CURLcode code = curl_easy_perform(curl);
    long status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    VixError result = error_of(code, status);
    if (result != VIX_OK)
        say(warn_function, "stand-in: %s %s: %s, status %ld\n", what, range ? range : "", error, status);
    return result;
}

static VixError ask(const Connection *c, const char *what, const char *file, char **ret_text)
{
    CURL *curl = curl_easy_init();
    if (!curl)
        return VIX_E_OUT_OF_MEMORY;
    Sink sink = {.growing = true};
    VixError result = get(curl, c, what, file, NULL, &sink);
    curl_easy_cleanup(curl);
    if (result == VIX_OK && !sink.p)
        result = VIX_E_FAIL;
    if (result == VIX_OK)
        *ret_text = (char *)sink.p;
    else
        free(sink.p);
    return result;
}

// ---- reading: workers are added as long as there is more asked than are at it, each with a connection of its own

static void serve(Handle *h, CURL *curl, const Request *r)
{
    char range[64];
    snprintf(range, sizeof range, "%ju-%ju", (uintmax_t)r->offset, (uintmax_t)(r->offset + r->n - 1));
    Sink sink = {.p = r->buffer, .max = r->n};
    VixError result = get(curl, h->connection, "read", h->file, range, &sink);
    if (result == VIX_OK && sink.n != r->n)
        result = VIX_E_HOST_CONNECTION_LOST;
    r->done(r->data, result);
}

static void *work(void *opaque)
{
    Handle *h = opaque;
    CURL *curl = curl_easy_init();
    pthread_mutex_lock(&h->lock);
    for (;;) {
        while (!h->first && !h->closing)
            pthread_cond_wait(&h->work, &h->lock);
        Request *r = h->first;
        if (!r)
            break;
        h->first = r->next;
        pthread_mutex_unlock(&h->lock);
        if (curl)
            serve(h, curl, r);
        else
            r->done(r->data, VIX_E_OUT_OF_MEMORY);
        free(r);
        pthread_mutex_lock(&h->lock);
        if (--h->pending == 0)
            pthread_cond_broadcast(&h->idle);
    }
    pthread_mutex_unlock(&h->lock);
    curl_easy_cleanup(curl);
    return NULL;
}

static VixError read_async(Handle *h, uint64_t sector, uint64_t n, uint8_t *buffer, CompletionFunction *done,
                           void *data)
{
    if (n == 0 || n > REQUEST_MAX / SECTOR)
        return VIX_E_INVALID_ARG;
    if (sector > h->capacity / SECTOR || n > h->capacity / SECTOR - sector)
        return VIX_E_DISK_OUTOFRANGE;
    Request *r = malloc(sizeof *r);
    if (!r)
        return VIX_E_OUT_OF_MEMORY;
    *r = (Request){.offset = sector * SECTOR, .n = n * SECTOR, .buffer = buffer, .done = done, .data = data};
    pthread_mutex_lock(&h->lock);
    if (h->first)
        h->last->next = r;
    else
        h->first = r;
    h->last = r;
    h->pending++;
    if (h->pending > h->n_workers && h->n_workers < WORKERS_MAX &&
        pthread_create(&h->workers[h->n_workers], NULL, work, h) == 0)
        h->n_workers++;
    bool served = h->n_workers > 0;
    pthread_cond_signal(&h->work);
    pthread_mutex_unlock(&h->lock);
    return served ? VIX_ASYNC : VIX_E_OUT_OF_MEMORY;
}

static void wait_idle(Handle *h)
{
    pthread_mutex_lock(&h->lock);
    while (h->pending)
        pthread_cond_wait(&h->idle, &h->lock);
    pthread_mutex_unlock(&h->lock);
}

typedef struct Once {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool over;
    VixError result;
} Once;

static void note(void *opaque, VixError result)
{
    Once *once = opaque;
    pthread_mutex_lock(&once->lock);
    once->over = true;
    once->result = result;
    pthread_cond_signal(&once->cond);
    pthread_mutex_unlock(&once->lock);
}

// ---- what the plugin calls

#define PUBLIC __attribute__((visibility("default")))

PUBLIC VixError VixDiskLib_InitEx(uint32_t major, uint32_t minor, LogFunction *log, LogFunction *warn,
                                  LogFunction *panic, const char *libdir, const char *config);
PUBLIC VixError VixDiskLib_InitEx(uint32_t major, uint32_t minor, LogFunction *log, LogFunction *warn,
                                  LogFunction *panic, const char *libdir, const char *config)
{
    (void)minor;
    (void)panic;
    (void)config;
    log_function = log;
    warn_function = warn;
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != 0)
        return VIX_E_FAIL;
    say(log_function, "stand-in for VDDK, API %u, from %s\n", major, libdir ? libdir : "nowhere");
    return VIX_OK;
}

PUBLIC void VixDiskLib_Exit(void);
PUBLIC void VixDiskLib_Exit(void)
{
    curl_global_cleanup();
}

PUBLIC char *VixDiskLib_GetErrorText(VixError error, const char *locale);
PUBLIC char *VixDiskLib_GetErrorText(VixError error, const char *locale)
{
    (void)locale;
    switch (error) {
    case VIX_OK: return strdup("The operation was successful");
    case VIX_E_OUT_OF_MEMORY: return strdup("Memory allocation failed. Out of memory");
    case VIX_E_INVALID_ARG: return strdup("One of the parameters was invalid");
    case VIX_E_FILE_NOT_FOUND: return strdup("A file was not found");
    case VIX_E_NOT_SUPPORTED: return strdup("The operation is not supported");
    case VIX_E_FILE_READ_ONLY: return strdup("File is read-only");
    case VIX_E_DISK_OUTOFRANGE: return strdup("One of the parameters supplied is invalid: beyond the disk's end");
    case VIX_E_HOST_NETWORK_CONN_REFUSED: return strdup("The server refused connection");
    case VIX_E_HOST_CONNECTION_LOST: return strdup("The connection was lost");
    case VIX_E_INVALID_USER_PASSWORD:
        return strdup("Insufficient permissions in the host operating system: "
                      "incorrect user name or password");
    default: return strdup("Unknown error");
    }
}

PUBLIC void VixDiskLib_FreeErrorText(char *text);
PUBLIC void VixDiskLib_FreeErrorText(char *text)
{
    free(text);
}

PUBLIC ConnectParams *VixDiskLib_AllocateConnectParams(void);
PUBLIC ConnectParams *VixDiskLib_AllocateConnectParams(void)
{
    return calloc(1, sizeof(ConnectParams));
}

// The struct alone: its texts are the plugin's.
PUBLIC void VixDiskLib_FreeConnectParams(ConnectParams *params);
PUBLIC void VixDiskLib_FreeConnectParams(ConnectParams *params)
{
    free(params);
}

static void free_connection(Connection *c)
{
    free(c->server);
    free(c->vm);
    free(c->snapshot);
    free(c->user);
    free(c->cookie);
    free(c);
}

// "AA:BB:..." of 20 bytes
static bool parse_thumbprint(const char *text, uint8_t out[SHA_DIGEST_LENGTH])
{
    for (size_t i = 0; i < SHA_DIGEST_LENGTH; i++) {
        char digits[3] = {text[0], text[0] ? text[1] : 0, 0}, *end;
        out[i] = (uint8_t)strtoul(digits, &end, 16);
        if (end != digits + 2)
            return false;
        text += 2;
        if (*text == ':' && i + 1 < SHA_DIGEST_LENGTH)
            text++;
    }
    return *text == 0;
}

static bool copy_connection(Connection *c, const ConnectParams *p, const char *snapshot)
{
    c->server = strdup(p->serverName);
    c->port = p->port ? p->port : 443;
    c->vm = strdup(p->vmxSpec + strlen("moref="));
    c->snapshot = snapshot ? strdup(snapshot) : NULL;
    if (p->credType == CRED_SESSIONID)
        c->cookie = strdup(p->creds.sessionId.cookie);
    else if (asprintf(&c->user, "%s:%s", p->creds.uid.userName, p->creds.uid.password) < 0)
        c->user = NULL;
    c->has_thumbprint = p->thumbPrint && parse_thumbprint(p->thumbPrint, c->thumbprint);
    return c->server && c->vm && (c->cookie || c->user) && (c->snapshot || !snapshot);
}

PUBLIC VixError VixDiskLib_ConnectEx(const ConnectParams *params, char read_only, const char *snapshot,
                                     const char *transports, Connection **ret_connection);
PUBLIC VixError VixDiskLib_ConnectEx(const ConnectParams *params, char read_only, const char *snapshot,
                                     const char *transports, Connection **ret_connection)
{
    if (!params || !params->serverName || !params->vmxSpec || strncmp(params->vmxSpec, "moref=", 6) != 0)
        return VIX_E_INVALID_ARG;
    bool by_cookie = params->credType == CRED_SESSIONID && params->creds.sessionId.cookie;
    bool by_password = params->credType == CRED_UID && params->creds.uid.userName && params->creds.uid.password;
    if (!by_cookie && !by_password)
        return VIX_E_INVALID_ARG;
    if (transports && !strstr(transports, "nbd") && strcmp(transports, "") != 0)
        return VIX_E_NOT_SUPPORTED;
    if (!read_only)
        return VIX_E_FILE_READ_ONLY;
    Connection *c = calloc(1, sizeof *c);
    if (!c)
        return VIX_E_OUT_OF_MEMORY;
    if (!copy_connection(c, params, snapshot)) {
        free_connection(c);
        return VIX_E_OUT_OF_MEMORY;
    }
    *ret_connection = c;
    return VIX_OK;
}

PUBLIC VixError VixDiskLib_Disconnect(Connection *connection);
PUBLIC VixError VixDiskLib_Disconnect(Connection *connection)
{
    free_connection(connection);
    return VIX_OK;
}

static VixError fill_handle(Handle *h, const char *path)
{
    CURL *curl = curl_easy_init();
    char *escaped = curl ? curl_easy_escape(curl, path, 0) : NULL;
    h->file = escaped ? strdup(escaped) : NULL;
    curl_free(escaped);
    curl_easy_cleanup(curl);
    if (!h->file)
        return VIX_E_OUT_OF_MEMORY;
    char *text;
    VixError result = ask(h->connection, "info", h->file, &text);
    if (result != VIX_OK)
        return result;
    char *end;
    h->capacity = strtoull(text, &end, 10);
    snprintf(h->uuid, sizeof h->uuid, "%.*s", (int)strcspn(end + (*end == ' '), "\n"), end + (*end == ' '));
    free(text);
    return h->capacity ? VIX_OK : VIX_E_FAIL;
}

PUBLIC VixError VixDiskLib_Open(Connection *connection, const char *path, uint32_t flags, Handle **ret_handle);
PUBLIC VixError VixDiskLib_Open(Connection *connection, const char *path, uint32_t flags, Handle **ret_handle)
{
    if (!(flags & FLAG_OPEN_READ_ONLY))
        return VIX_E_FILE_READ_ONLY;
    if (!connection->has_thumbprint)
        return VIX_E_FAIL;
    Handle *h = calloc(1, sizeof *h);
    if (!h)
        return VIX_E_OUT_OF_MEMORY;
    h->connection = connection;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->work, NULL);
    pthread_cond_init(&h->idle, NULL);
    VixError result = fill_handle(h, path);
    if (result != VIX_OK) {
        free(h->file);
        free(h);
        return result;
    }
    *ret_handle = h;
    return VIX_OK;
}

PUBLIC VixError VixDiskLib_Close(Handle *handle);
PUBLIC VixError VixDiskLib_Close(Handle *handle)
{
    wait_idle(handle);
    pthread_mutex_lock(&handle->lock);
    handle->closing = true;
    pthread_cond_broadcast(&handle->work);
    pthread_mutex_unlock(&handle->lock);
    for (unsigned i = 0; i < handle->n_workers; i++)
        pthread_join(handle->workers[i], NULL);
    free(handle->allocated);
    free(handle->file);
    free(handle);
    return VIX_OK;
}

PUBLIC const char *VixDiskLib_GetTransportMode(Handle *handle);
PUBLIC const char *VixDiskLib_GetTransportMode(Handle *handle)
{
    (void)handle;
    return "nbdssl";
}

PUBLIC const char *VixDiskLib_ListTransportModes(void);
PUBLIC const char *VixDiskLib_ListTransportModes(void)
{
    return "nbdssl:nbd";
}

PUBLIC VixError VixDiskLib_GetInfo(Handle *handle, Info **ret_info);
PUBLIC VixError VixDiskLib_GetInfo(Handle *handle, Info **ret_info)
{
    Info *info = calloc(1, sizeof *info);
    if (!info)
        return VIX_E_OUT_OF_MEMORY;
    *info = (Info){.capacity = handle->capacity / SECTOR,
                   .adapterType = 3,
                   .numLinks = 1,
                   .uuid = handle->uuid,
                   .logicalSectorSize = SECTOR,
                   .physicalSectorSize = SECTOR};
    *ret_info = info;
    return VIX_OK;
}

PUBLIC void VixDiskLib_FreeInfo(Info *info);
PUBLIC void VixDiskLib_FreeInfo(Info *info)
{
    free(info);
}

PUBLIC VixError VixDiskLib_ReadAsync(Handle *handle, uint64_t sector, uint64_t n, uint8_t *buffer,
                                     CompletionFunction *done, void *data);
PUBLIC VixError VixDiskLib_ReadAsync(Handle *handle, uint64_t sector, uint64_t n, uint8_t *buffer,
                                     CompletionFunction *done, void *data)
{
    return read_async(handle, sector, n, buffer, done, data);
}

PUBLIC VixError VixDiskLib_Read(Handle *handle, uint64_t sector, uint64_t n, uint8_t *buffer);
PUBLIC VixError VixDiskLib_Read(Handle *handle, uint64_t sector, uint64_t n, uint8_t *buffer)
{
    Once once = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    VixError result = read_async(handle, sector, n, buffer, note, &once);
    if (result != VIX_ASYNC)
        return result;
    pthread_mutex_lock(&once.lock);
    while (!once.over)
        pthread_cond_wait(&once.cond, &once.lock);
    pthread_mutex_unlock(&once.lock);
    return once.result;
}

PUBLIC VixError VixDiskLib_Wait(Handle *handle);
PUBLIC VixError VixDiskLib_Wait(Handle *handle)
{
    wait_idle(handle);
    return VIX_OK;
}

// This end writes nothing.
PUBLIC VixError VixDiskLib_Write(Handle *handle, uint64_t sector, uint64_t n, const uint8_t *buffer);
PUBLIC VixError VixDiskLib_Write(Handle *handle, uint64_t sector, uint64_t n, const uint8_t *buffer)
{
    (void)handle;
    (void)sector;
    (void)n;
    (void)buffer;
    return VIX_E_FILE_READ_ONLY;
}

PUBLIC VixError VixDiskLib_WriteAsync(Handle *handle, uint64_t sector, uint64_t n, const uint8_t *buffer,
                                      CompletionFunction *done, void *data);
PUBLIC VixError VixDiskLib_WriteAsync(Handle *handle, uint64_t sector, uint64_t n, const uint8_t *buffer,
                                      CompletionFunction *done, void *data)
{
    (void)handle;
    (void)sector;
    (void)n;
    (void)buffer;
    (void)done;
    (void)data;
    return VIX_E_FILE_READ_ONLY;
}

PUBLIC VixError VixDiskLib_Flush(Handle *handle);
PUBLIC VixError VixDiskLib_Flush(Handle *handle)
{
    (void)handle;
    return VIX_OK;
}

PUBLIC VixError VixDiskLib_Create(Connection *connection, const char *path, const void *params,
                                  bool (*progress)(void *, int), void *data);
PUBLIC VixError VixDiskLib_Create(Connection *connection, const char *path, const void *params,
                                  bool (*progress)(void *, int), void *data)
{
    (void)connection;
    (void)path;
    (void)params;
    (void)progress;
    (void)data;
    return VIX_E_NOT_SUPPORTED;
}

// Areas in whole chunks within the range asked for.
PUBLIC VixError VixDiskLib_QueryAllocatedBlocks(Handle *handle, uint64_t sector, uint64_t n, uint64_t chunk,
                                                BlockList **ret_list);
PUBLIC VixError VixDiskLib_QueryAllocatedBlocks(Handle *handle, uint64_t sector, uint64_t n, uint64_t chunk,
                                                BlockList **ret_list)
{
    if (chunk < CHUNK_MIN || sector % chunk || n % chunk)
        return VIX_E_INVALID_ARG;
    // One thread of the plugin makes these calls
    VixError result =
        handle->allocated ? VIX_OK : ask(handle->connection, "allocated", handle->file, &handle->allocated);
    if (result != VIX_OK)
        return result;
    char *text = handle->allocated;
    size_t lines = 0;
    for (const char *s = text; (s = strchr(s, '\n')); s++)
        lines++;
    BlockList *list = calloc(1, sizeof *list + lines * sizeof(Block));
    uint64_t reached = sector;
    char *at = strchr(text, '\n');
    while (list && at && at[1]) {
        uint64_t start = strtoull(at + 1, &at, 10) / SECTOR, length = strtoull(at, &at, 10) / SECTOR;
        uint64_t from = start / chunk * chunk, to = (start + length + chunk - 1) / chunk * chunk;
        from = from > reached ? from : reached;
        to = to < sector + n ? to : sector + n;
        if (from < to) {
            list->blocks[list->numBlocks++] = (Block){from, to - from};
            reached = to;
        }
        at = strchr(at, '\n');
    }
    if (!list)
        return VIX_E_OUT_OF_MEMORY;
    *ret_list = list;
    return VIX_OK;
}

PUBLIC VixError VixDiskLib_FreeBlockList(BlockList *list);
PUBLIC VixError VixDiskLib_FreeBlockList(BlockList *list)
{
    free(list);
    return VIX_OK;
}
