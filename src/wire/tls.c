#include "wire/tls.h"

#include "base/str.h"

#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <time.h>

bool tls_thumbprint_parse(const char *text, unsigned char ret[32], Err *err)
{
    char hex[65];
    size_t n = 0;
    for (const char *p = text; *p; p++) {
        // A colon stands between two bytes
        if (*p == ':' && n > 0 && n % 2 == 0 && p[-1] != ':' && p[1])
            continue;
        if (n == sizeof(hex) - 1)
            n++;
        if (n >= sizeof(hex))
            break;
        hex[n++] = *p;
    }
    hex[MIN(n, sizeof(hex) - 1)] = '\0';
    unsigned char pin[32];
    if (n != 64 || !str_unhex(hex, pin, sizeof(pin)))
        return err_set(err, ERR_INVALID,
                       "'%.120s' is no SHA-256 thumbprint: 64 hex digits, with or without colons between the bytes",
                       text);
    memcpy(ret, pin, sizeof(pin));
    return true;
}

static void print_digest(const unsigned char *bytes, size_t n, char *out)
{
    static const char digits[] = "0123456789ABCDEF";
    for (size_t i = 0; i < n; i++) {
        *out++ = digits[bytes[i] >> 4];
        *out++ = digits[bytes[i] & 15];
        *out++ = i + 1 < n ? ':' : '\0';
    }
}

static void print_name(const X509_NAME *name, char out[TLS_NAME_MAX])
{
    // XN_FLAG_RFC2253 escapes control characters, and what is no ASCII
    out[0] = '\0';
    BIO *b = BIO_new(BIO_s_mem());
    if (!b)
        return;
    if (X509_NAME_print_ex(b, name, 0, XN_FLAG_RFC2253) >= 0) {
        int n = BIO_read(b, out, TLS_NAME_MAX - 1);
        out[MAX(n, 0)] = '\0';
    }
    BIO_free(b);
}

static int64_t time_of(const ASN1_TIME *t)
{
    struct tm tm = {0};
    return ASN1_TIME_to_tm(t, &tm) == 1 ? (int64_t)timegm(&tm) * 1000000 : 0;
}

// Digest and texts of the certificate that the server shows.
static bool look_at(const X509 *x, TlsCertificate *ret, unsigned char sha256[32])
{
    unsigned char sha1[20];
    unsigned n = 0;
    if (X509_digest(x, EVP_sha256(), sha256, &n) != 1 || X509_digest(x, EVP_sha1(), sha1, &n) != 1)
        return false;
    print_digest(sha256, 32, ret->sha256);
    print_digest(sha1, sizeof(sha1), ret->sha1);
    print_name(X509_get_subject_name(x), ret->subject);
    print_name(X509_get_issuer_name(x), ret->issuer);
    ret->not_before_us = time_of(X509_get0_notBefore(x));
    ret->not_after_us = time_of(X509_get0_notAfter(x));
    return true;
}

bool tls_certificate_of(const void *x509, TlsCertificate *ret)
{
    unsigned char sha256[32];
    return look_at(x509, ret, sha256);
}

static int verify(X509_STORE_CTX *ctx, void *arg)
{
    TlsCheck *c = arg;
    unsigned char sha256[32];
    const X509 *leaf = X509_STORE_CTX_get0_cert(ctx);
    c->seen = leaf && look_at(leaf, &c->shown, sha256);
    if (!c->pinned && !c->any)
        return X509_verify_cert(ctx);
    if (c->seen && (c->any || memcmp(sha256, c->pin, sizeof(sha256)) == 0)) {
        X509_STORE_CTX_set_error(ctx, X509_V_OK);
        return 1;
    }
    c->refused = true;
    X509_STORE_CTX_set_error(ctx, X509_V_ERR_APPLICATION_VERIFICATION);
    return 0;
}

bool tls_check_init(const TlsTrust *trust, TlsCheck *ret, Err *err)
{
    TlsCheck c = {0};
    c.pinned = trust->thumbprint && *trust->thumbprint;
    if (c.pinned && !tls_thumbprint_parse(trust->thumbprint, c.pin, err))
        return false;
    *ret = c;
    return true;
}

void tls_check_install(TlsCheck *c, void *ssl_ctx)
{
    c->seen = c->refused = false;
    SSL_CTX_set_cert_verify_callback(ssl_ctx, verify, c);
}
