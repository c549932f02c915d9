#include "wire/hub_api.h"

#include "base/file.h"

#define CA_MAX ((size_t)1 << 20)

// const: the texts of a trust are not changed, only owned.
void hub_trust_clear(TlsTrust *trust)
{
    free((char *)trust->thumbprint);
    free((char *)trust->ca_pem);
    *trust = (TlsTrust){0};
}

bool hub_trust_copy(const TlsTrust *trust, TlsTrust *ret, Err *err)
{
    TlsTrust copy = {.thumbprint = trust->thumbprint ? mem_strdup(trust->thumbprint, err) : NULL,
                     .ca_pem = trust->ca_pem ? mem_strdup(trust->ca_pem, err) : NULL};
    if ((trust->thumbprint && !copy.thumbprint) || (trust->ca_pem && !copy.ca_pem)) {
        hub_trust_clear(&copy);
        return false;
    }
    *ret = copy;
    return true;
}

bool hub_trust_environment(TlsTrust *ret, Err *err)
{
    const char *pin = getenv("SENDENSE_HUB_THUMBPRINT"), *file = getenv("SENDENSE_HUB_CA");
    cleanup_free char *pem = NULL;
    unsigned char digest[32];
    if (pin && *pin && !tls_thumbprint_parse(pin, digest, err)) {
        err->code = ERR_USAGE;
        return err_context(err, "SENDENSE_HUB_THUMBPRINT");
    }
    if (file && *file && !file_read(file, CA_MAX, &pem, NULL, err)) {
        err->code = ERR_USAGE;
        return err_context(err, "SENDENSE_HUB_CA");
    }
    return hub_trust_copy(&(TlsTrust){.thumbprint = pin && *pin ? pin : NULL, .ca_pem = pem}, ret, err);
}
