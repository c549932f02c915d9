// What a vCenter answers. The input: a byte that says what is asked, then the replies to it, each '2' (status 200), '5'
// (500) or 'b' (the connection breaks after it) and its body, up to a NUL. Logging in went well before. Linked with the
// HTTP client's calls and the clock (--wrap): no network, and each look at the clock is a moment later.
#include "fuzz.h"

#include "wire/http_client.h"
#include "wire/vim.h"

static struct {
    const uint8_t *p; // replies that are left
    size_t n;
    const uint8_t *body; // the one that is being read
    size_t body_n;
    bool breaks;
    int64_t now;
} peer;

int64_t __wrap_clock_mono_ms(void);
int64_t __wrap_clock_mono_ms(void)
{
    return peer.now += 50;
}

static void give(const char *text)
{
    peer.body = (const uint8_t *)text;
    peer.body_n = strlen(text);
    peer.breaks = false;
}

bool __wrap_http_client_open(HttpClient *c, const HttpRequest *r, int *ret_status, Err *err);
bool __wrap_http_client_open(HttpClient *c, const HttpRequest *r, int *ret_status, Err *err)
{
    static const char content[] =
        "<e:Envelope xmlns:e='http://schemas.xmlsoap.org/soap/envelope/'><e:Body><RetrieveServiceContentResponse>"
        "<returnval>"
        "<rootFolder>r</rootFolder><propertyCollector>p</propertyCollector><viewManager>v</viewManager>"
        "<sessionManager>s</sessionManager><searchIndex>i</searchIndex><about><apiVersion>8.0</apiVersion></about>"
        "</returnval></RetrieveServiceContentResponse></e:Body></e:Envelope>";
    static const char session[] =
        "<e:Envelope xmlns:e='http://schemas.xmlsoap.org/soap/envelope/'><e:Body><LoginResponse><returnval><key>k</key>"
        "</returnval></LoginResponse></e:Body></e:Envelope>";
    (void)c;
    fuzz_check(strstr(r->body, "<soapenv:Body>"));
    if (strstr(r->body, "<RetrieveServiceContent ") || strstr(r->body, "<Login ")) {
        give(strstr(r->body, "<Login ") ? session : content);
        *ret_status = 200;
        return true;
    }
    if (peer.n == 0)
        return err_set(err, ERR_PROTOCOL, "no more replies");
    const uint8_t *end = memchr(peer.p, 0, peer.n);
    size_t n = end ? (size_t)(end - peer.p) : peer.n;
    peer.body = peer.p + (n > 0);
    peer.body_n = n - (n > 0);
    peer.breaks = n > 0 && *peer.p == 'b';
    *ret_status = n > 0 && *peer.p == '5' ? 500 : 200;
    peer.p += n;
    peer.n -= n;
    if (peer.n > 0) {
        peer.p++;
        peer.n--;
    }
    return true;
}

bool __wrap_http_client_read(HttpClient *c, void *buf, size_t cap, size_t *ret_n, Err *err);
bool __wrap_http_client_read(HttpClient *c, void *buf, size_t cap, size_t *ret_n, Err *err)
{
    (void)c;
    if (peer.body_n == 0 && peer.breaks)
        return err_set(err, ERR_UNAVAILABLE, "broken");
    *ret_n = MIN(cap, peer.body_n);
    memcpy(buf, peer.body, *ret_n);
    peer.body += *ret_n;
    peer.body_n -= *ret_n;
    return true;
}

void __wrap_http_client_end(HttpClient *c);
void __wrap_http_client_end(HttpClient *c)
{
    (void)c;
}

const char *__wrap_http_client_header(HttpClient *c, const char *name, size_t index);
const char *__wrap_http_client_header(HttpClient *c, const char *name, size_t index)
{
    (void)c, (void)name;
    return index == 0 ? "vmware_soap_session=\"k\"; Path=/" : NULL;
}

static void check_disks(const VimDisks *disks)
{
    for (size_t i = 0; i < disks->len; i++) {
        const VimDisk *d = &disks->items[i];
        fuzz_check(d->label && d->file && d->uuid && d->change_id && d->backing && d->disk_mode && d->bus_sharing);
        fuzz_check(d->capacity <= DISK_SIZE_MAX);
        for (size_t k = 0; k < i; k++)
            fuzz_check(disks->items[k].key != d->key);
    }
}

static bool on_vm(void *ctx, const VimVm *vm, Err *err)
{
    (void)ctx, (void)err;
    fuzz_check(vm->moref && *vm->moref && vm->name && vm->path && vm->host && vm->power_state);
    check_disks(&vm->disks);
    for (size_t i = 0; i < vm->snapshots_len; i++)
        fuzz_check(*vm->snapshots[i].moref && vm->snapshots[i].name && vm->snapshots[i].parent < (int)i);
    return true;
}

#define START 1000u
#define CAPACITY 1000000u

static bool on_area(void *ctx, uint64_t offset, uint64_t length, Err *err)
{
    uint64_t *end = ctx;
    (void)err;
    fuzz_check(length > 0 && offset >= *end && offset < CAPACITY && length <= CAPACITY - offset);
    *end = offset + length;
    return true;
}

static bool areas(Vim *v, Err *err)
{
    const VimDisk disk = {.key = 2000, .capacity = CAPACITY};
    uint64_t end = START, next = 0;
    if (!vim_changed_areas(v, "vm-1", "snapshot-1", &disk, START, "*", on_area, &end, &next, err))
        return false;
    fuzz_check(next > START && next <= CAPACITY && end <= next);
    return true;
}

static bool ask(Vim *v, uint8_t what, Err *err)
{
    VimVm vm = {0};
    VimDisks disks = {0};
    const char **missing = NULL;
    char *moref = NULL;
    bool fine;
    switch (what) {
    case 'f':
        fine = vim_find(v, "/DC0/vm/x", &vm, err) && on_vm(NULL, &vm, err);
        vim_vm_clear(&vm);
        return fine;
    case 'l': return vim_list(v, on_vm, NULL, err);
    case 'd':
        fine = vim_snapshot_disks(v, "snapshot-1", &disks, err);
        check_disks(&disks);
        vim_disks_clear(&disks);
        return fine;
    case 's':
        fine = vim_snapshot_create(v, "vm-1", "n", "d", true, 10000, &moref, err);
        fuzz_check(!fine || *moref);
        free(moref);
        return fine;
    case 'r': return vim_snapshot_remove(v, "snapshot-1", 10000, err);
    case 'c': return vim_set_cbt(v, "vm-1", true, 10000, err);
    case 'p':
        fine = vim_privileges(v, "vm-1", &missing, err);
        free(missing);
        return fine;
    default: return areas(v, err);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    Err err = ERR_INIT;
    Vim *v = NULL;
    Secret password = {0};
    if (n == 0)
        return 0;
    peer.p = data + 1;
    peer.n = n - 1;
    fuzz_check(secret_set(&password, "x", &err));
    const VimSpec spec = {.host = "vc", .user = "u", .password = &password, .timeout_ms = 1000};
    fuzz_check(vim_open(&spec, &v, &err));
    if (!ask(v, data[0], &err))
        fuzz_check(err.code != ERR_NONE && err.code != ERR_INTERNAL && err.code != ERR_NO_MEMORY);
    peer.n = 0;
    vim_close(v);
    secret_clear(&password);
    return 0;
}
