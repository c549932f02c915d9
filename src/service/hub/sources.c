// Sources: vCenters that VMs are read through, and their credentials. What asks a vCenter is in vcenter.c.
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/seal.h"
#include "base/str.h"
#include "base/uuid.h"
#include "domain/name.h"
#include "domain/vsphere.h"
#include "service/hub/internal.h"
#include "wire/tls.h"

// ---- the password

// What a password is sealed with: a row that somebody changed in the database does not open, and nothing is sent to
// another address than the one it was given for.
static char *binding(const StoreSource *s, Err *err)
{
    return mem_printf(err, "%s\n%s\n%s\n%s\n%s", s->id, s->address, s->user, s->thumbprint ? s->thumbprint : "",
                      s->ca_pem ? s->ca_pem : "");
}

// A key is made with the first source, and never beside others: it could open none of them.
static bool key_for_sealing(Hub *h, SealKey *ret, Err *err)
{
    uint64_t sources;
    if (!store_source_count(h->store, &sources, err))
        return false;
    if (sources == 0 && !file_exists(h->key_file)) {
        if (!seal_key_make(h->key_file, err))
            return false;
        log_info("key file made; keep a copy of it apart from those of the database", LOG_STR("path", h->key_file));
    }
    return seal_key_read(h->key_file, ret, err);
}

static bool seal(Hub *h, StoreSource *s, const Secret *password, Err *err)
{
    cleanup(seal_key_clear) SealKey key = {0};
    cleanup_free char *bound = binding(s, err), *sealed = NULL;
    if (!bound || !key_for_sealing(h, &key, err) || !seal_secret(&key, password, bound, &sealed, err))
        return false;
    free(s->secret);
    s->secret = mem_take(sealed);
    return true;
}

bool hub_source_password(Hub *h, const StoreSource *s, Secret *ret, Err *err)
{
    cleanup(seal_key_clear) SealKey key = {0};
    cleanup_free char *bound = binding(s, err);
    if (!bound || !seal_key_read(h->key_file, &key, err))
        return false;
    return seal_open(&key, s->secret, bound, ret, err) || err_context(err, "source %s", s->name);
}

void hub_sources_check(Hub *h)
{
    StoreSource *rows = NULL;
    size_t len = 0;
    Err err = ERR_INIT;
    if (!store_source_list(h->store, &rows, &len, &err))
        log_warn("the sources cannot be looked at", LOG_ERR(&err));
    for (size_t i = 0; i < len; i++) {
        cleanup(secret_clear) Secret password = {0};
        Err why = ERR_INIT;
        if (!hub_source_password(h, &rows[i], &password, &why))
            log_warn("the password of a source cannot be opened", LOG_STR("source", rows[i].name), LOG_ERR(&why));
    }
    STORE_LIST_FREE(rows, len, store_source_clear);
}

bool hub_source_of_vm(Hub *h, const char *vm, Err *err)
{
    StoreVm cleanup_vm v = {0};
    cleanup(store_source_clear) StoreSource s = {0};
    cleanup(secret_clear) Secret password = {0};
    return store_vm_find(h->store, vm, &v, err) &&
        (!v.source_id ||
         (store_source_find(h->store, v.source_id, &s, err) && hub_source_password(h, &s, &password, err)));
}

bool hub_source_order(Hub *h, const char *source_id, WorkVcenter *ret, Err *err)
{
    cleanup(store_source_clear) StoreSource s = {0};
    return store_source_find(h->store, source_id, &s, err) && mem_replace(&ret->host, s.address, err) &&
        mem_replace(&ret->user, s.user, err) && mem_replace(&ret->thumbprint, s.thumbprint, err) &&
        mem_replace(&ret->ca_pem, s.ca_pem, err) && hub_source_password(h, &s, &ret->password, err);
}

// ---- what is sent

static bool read_password(const json_t *body, Secret *ret, Err *err)
{
    const char *password;
    return codec_json_text(body, "password", SECRET_MAX, &password, err) &&
        (*password || err_set(err, ERR_INVALID, "password is empty")) && secret_set(ret, password, err);
}

// As certificates are shown: "AB:CD:…".
static bool spell_thumbprint(const char *text, char out[TLS_SHA256_TEXT], Err *err)
{
    static const char digits[] = "0123456789ABCDEF";
    unsigned char bytes[32];
    if (!tls_thumbprint_parse(text, bytes, err))
        return false;
    for (size_t i = 0; i < sizeof(bytes); i++) {
        out[3 * i] = digits[bytes[i] >> 4];
        out[3 * i + 1] = digits[bytes[i] & 15];
        out[3 * i + 2] = ':';
    }
    out[TLS_SHA256_TEXT - 1] = '\0';
    return true;
}

// Either a thumbprint or a CA, in place of what the source had.
static bool read_trust(const json_t *body, StoreSource *s, Err *err)
{
    const char *thumbprint, *ca;
    char digits[TLS_SHA256_TEXT] = "";
    if (!codec_json_text_opt(body, "thumbprint", 256, &thumbprint, err) ||
        !codec_json_text_opt(body, "ca_pem", WORK_CA_MAX, &ca, err))
        return false;
    if (!thumbprint == !ca)
        return err_set(err, ERR_INVALID, "one of thumbprint and ca_pem is needed, to know the server by");
    if (ca && !strstr(ca, "-----BEGIN CERTIFICATE-----"))
        return err_set(err, ERR_INVALID, "ca_pem holds no certificate in PEM");
    return (!thumbprint || spell_thumbprint(thumbprint, digits, err)) &&
        mem_replace(&s->thumbprint, thumbprint ? digits : NULL, err) && mem_replace(&s->ca_pem, ca, err);
}

static bool read_address(const json_t *body, StoreSource *s, Err *err)
{
    const char *address;
    return codec_json_text(body, "vcenter", VSPHERE_ADDRESS_MAX, &address, err) &&
        vsphere_check_address(address, err) && mem_replace(&s->address, address, err);
}

static bool read_user(const json_t *body, StoreSource *s, Err *err)
{
    const char *user;
    return codec_json_text(body, "user", NAME_MAX_BYTES, &user, err) && name_check("user", user, err) &&
        mem_replace(&s->user, user, err);
}

static bool read_new(const json_t *body, StoreSource *s, Secret *password, Err *err)
{
    const char *name, *type;
    char id[UUID_TEXT];
    if (!codec_json_text(body, "name", NAME_MAX_BYTES, &name, err) || !name_check("name", name, err) ||
        !codec_json_text(body, "type", 32, &type, err))
        return false;
    if (str_eq(name, "certificate"))
        return err_set(err, ERR_INVALID, "no source can be named \"certificate\": that path is a call");
    if (!str_eq(type, "vsphere"))
        return err_set(err, ERR_INVALID, "type is \"%s\"; HINT: vsphere; VMs of other types need no source", type);
    s->created_us = clock_utc_us();
    return read_address(body, s, err) && read_user(body, s, err) && read_password(body, password, err) &&
        read_trust(body, s, err) && uuid_new(id, err) && mem_replace(&s->id, id, err) &&
        mem_replace(&s->name, name, err) && mem_replace(&s->type, type, err);
}

// ---- the calls

static bool view(Hub *h, const StoreSource *s, json_t **ret, Err *err)
{
    StoreVm *vms = NULL;
    size_t vms_len = 0;
    if (!store_source_vms(h->store, s->id, &vms, &vms_len, err))
        return false;
    size_t count = vms_len;
    STORE_LIST_FREE(vms, vms_len, store_vm_clear);
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "source_id", s->id, err) &&
        codec_json_set_text(o, "name", s->name, err) && codec_json_set_text(o, "type", s->type, err) &&
        codec_json_set_text(o, "vcenter", s->address, err) && codec_json_set_text(o, "user", s->user, err) &&
        codec_json_set_text(o, "thumbprint", s->thumbprint, err) && codec_json_set_text(o, "ca_pem", s->ca_pem, err) &&
        codec_json_set_time(o, "created_at", s->created_us, err) && codec_json_set_u64(o, "vms", count, err);
    if (!ok) {
        json_decref(o);
        return false;
    }
    *ret = o;
    return true;
}

static bool add(Hub *h, StoreSource *s, const Secret *password, Err *err)
{
    cleanup(store_source_clear) StoreSource taken = {0};
    Err missing = ERR_INIT;
    if (store_source_find(h->store, s->name, &taken, &missing))
        return err_set(err, ERR_EXISTS, "a source named \"%s\" is there already", s->name);
    return seal(h, s, password, err) && store_source_add(h->store, s, err);
}

bool hub_source_add(Hub *h, const json_t *body, json_t **ret, Err *err)
{
    cleanup(store_source_clear) StoreSource s = {0};
    cleanup(secret_clear) Secret password = {0};
    if (!read_new(body, &s, &password, err))
        return false;
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err))
        t.ok = add(h, &s, &password, err);
    if (!t.ok)
        return false;
    log_info("source added", LOG_STR("source", s.name), LOG_STR("vcenter", s.address), LOG_STR("user", s.user));
    return view(h, &s, ret, err);
}

bool hub_source_list(Hub *h, json_t **ret, Err *err)
{
    StoreSource *rows = NULL;
    size_t len = 0;
    json_t *list = json_array();
    bool ok = store_source_list(h->store, &rows, &len, err);
    for (size_t i = 0; ok && i < len; i++) {
        json_t *item = NULL;
        ok = view(h, &rows[i], &item, err) && codec_json_push(list, item, err);
    }
    STORE_LIST_FREE(rows, len, store_source_clear);
    return codec_json_wrap(ok, "sources", list, ret, err);
}

bool hub_source_show(Hub *h, const char *source, json_t **ret, Err *err)
{
    cleanup(store_source_clear) StoreSource s = {0};
    return store_source_find(h->store, source, &s, err) && view(h, &s, ret, err);
}

static bool change(Hub *h, const char *source, const json_t *body, StoreSource *s, Err *err)
{
    cleanup(secret_clear) Secret password = {0};
    if (!store_source_find(h->store, source, s, err))
        return false;
    // whoever may call us, but does not know the password, must not have it sent to a machine of his own
    bool given = json_object_get(body, "password") != NULL;
    if (json_object_get(body, "vcenter") && !given)
        return err_set(err, ERR_INVALID, "another vcenter needs the password, too");
    if (!(given ? read_password(body, &password, err) : hub_source_password(h, s, &password, err)))
        return false;
    bool trust = json_object_get(body, "thumbprint") || json_object_get(body, "ca_pem");
    return (!json_object_get(body, "vcenter") || read_address(body, s, err)) &&
        (!json_object_get(body, "user") || read_user(body, s, err)) && (!trust || read_trust(body, s, err)) &&
        seal(h, s, &password, err) && store_source_update(h->store, s, err);
}

bool hub_source_change(Hub *h, const char *source, const json_t *body, json_t **ret, Err *err)
{
    cleanup(store_source_clear) StoreSource s = {0};
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        store_source_clear(&s);
        t.ok = change(h, source, body, &s, err);
    }
    if (!t.ok)
        return false;
    log_info("source changed", LOG_STR("source", s.name), LOG_STR("vcenter", s.address), LOG_STR("user", s.user));
    return view(h, &s, ret, err);
}

static bool is_unused(Hub *h, const StoreSource *s, Err *err)
{
    StoreVm *vms = NULL;
    size_t len = 0;
    if (!store_source_vms(h->store, s->id, &vms, &len, err))
        return false;
    bool ok = len == 0 ||
        err_set(err, ERR_CONFLICT,
                "%zu VMs are read through source \"%s\", \"%s\" among them; remove them, or give them "
                "another source",
                len, s->name, vms[0].name);
    STORE_LIST_FREE(vms, len, store_vm_clear);
    return ok;
}

bool hub_source_remove(Hub *h, const char *source, json_t **ret, Err *err)
{
    cleanup(store_source_clear) StoreSource s = {0};
    StoreTurn t = STORE_TURN(h->store);
    while (store_turn(&t, err)) {
        store_source_clear(&s);
        t.ok = store_source_find(h->store, source, &s, err) && is_unused(h, &s, err) &&
            store_source_remove(h->store, s.id, err);
    }
    if (!t.ok)
        return false;
    log_info("source removed", LOG_STR("source", s.name));
    json_t *o = json_object();
    bool ok = (o != NULL || err_no_memory(err)) && codec_json_set_text(o, "status", "removed", err) &&
        codec_json_set_text(o, "source_id", s.id, err);
    *ret = o;
    return ok;
}
