#include "wire/tls_server.h"

#include "base/file.h"
#include "base/str.h"

#include <errno.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

// The server's order counts. AES-128 first: as safe as any, and the quickest where the processor knows AES.
#define CIPHERS_13 "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
#define CIPHERS_12 "ECDHE+AESGCM:ECDHE+CHACHA20"
#define YEARS_10 (10L * 365 * 24 * 3600)
#define DAY (24L * 3600)

struct TlsServer {
    pthread_mutex_t lock; // a leaf
    SSL_CTX *ctx;
    TlsCertificate shown;
    char *certificate_file, *key_file;
};

static bool openssl_error(Err *err, ErrCode code, const char *what)
{
    char text[160] = "";
    unsigned long e = ERR_peek_error(); // the oldest tells most
    if (e)
        ERR_error_string_n(e, text, sizeof(text));
    ERR_clear_error();
    return err_set(err, code, "%s: %s", what, text[0] ? text : "OpenSSL does not say why");
}

// A key that others can read is nobody's secret.
static bool check_mode(const char *path, Err *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return err_errno(err, errno, "%s", path);
    return !(st.st_mode & S_IRWXO) ||
        err_set(err, ERR_FORBIDDEN, "%s holds a private key, and every user can read it; HINT: chmod o= %s", path,
                path);
}

static int no_passphrase(char *buf, int size, int writing, void *ctx)
{
    (void)buf;
    (void)size;
    (void)writing;
    (void)ctx;
    return -1; // or OpenSSL asks the terminal
}

static bool fill(SSL_CTX *ctx, const char *certificate_file, const char *key_file, Err *err)
{
    SSL_CTX_set_default_passwd_cb(ctx, no_passphrase);
    (void)SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_NO_TICKET);
    (void)SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    if (SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1 || SSL_CTX_set_ciphersuites(ctx, CIPHERS_13) != 1 ||
        SSL_CTX_set_cipher_list(ctx, CIPHERS_12) != 1)
        return openssl_error(err, ERR_INTERNAL, "TLS cannot be set up");
    if (SSL_CTX_use_certificate_chain_file(ctx, certificate_file) != 1)
        return openssl_error(err, ERR_INVALID, certificate_file);
    if (SSL_CTX_use_PrivateKey_file(ctx, key_file, SSL_FILETYPE_PEM) != 1 || SSL_CTX_check_private_key(ctx) != 1)
        return openssl_error(err, ERR_INVALID, key_file);
    return true;
}

static bool load(const char *certificate_file, const char *key_file, SSL_CTX **ret, TlsCertificate *ret_shown, Err *err)
{
    if (!check_mode(key_file, err))
        return false;
    ERR_clear_error();
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    if (!ctx)
        return err_no_memory(err);
    if (fill(ctx, certificate_file, key_file, err) &&
        (tls_certificate_of(SSL_CTX_get0_certificate(ctx), ret_shown) ||
         openssl_error(err, ERR_INVALID, certificate_file))) {
        *ret = ctx;
        return true;
    }
    SSL_CTX_free(ctx);
    return false;
}

bool tls_server_load(const char *certificate_file, const char *key_file, TlsServer **ret, Err *err)
{
    TlsServer *s = mem_calloc(1, sizeof(*s), err);
    if (!s)
        return false;
    pthread_mutex_init(&s->lock, NULL);
    if (mem_replace(&s->certificate_file, certificate_file, err) && mem_replace(&s->key_file, key_file, err) &&
        load(certificate_file, key_file, &s->ctx, &s->shown, err)) {
        *ret = s;
        return true;
    }
    tls_server_free(s);
    return false;
}

void tls_server_free(TlsServer *s)
{
    if (!s)
        return;
    SSL_CTX_free(s->ctx); // NULL is fine
    pthread_mutex_destroy(&s->lock);
    free(s->certificate_file);
    free(s->key_file);
    free(s);
}

bool tls_server_reload(TlsServer *s, Err *err)
{
    SSL_CTX *ctx;
    TlsCertificate shown = {0};
    if (!load(s->certificate_file, s->key_file, &ctx, &shown, err))
        return false;
    pthread_mutex_lock(&s->lock);
    SSL_CTX *old = s->ctx;
    s->ctx = ctx;
    s->shown = shown;
    pthread_mutex_unlock(&s->lock);
    SSL_CTX_free(old); // connections hold it, too
    return true;
}

void tls_server_certificate(TlsServer *s, TlsCertificate *ret)
{
    pthread_mutex_lock(&s->lock);
    *ret = s->shown;
    pthread_mutex_unlock(&s->lock);
}

void *tls_server_accept(TlsServer *s)
{
    pthread_mutex_lock(&s->lock);
    SSL *ssl = SSL_new(s->ctx);
    pthread_mutex_unlock(&s->lock);
    if (ssl)
        SSL_set_accept_state(ssl);
    return ssl;
}

void tls_server_end(void *ssl)
{
    SSL_free(ssl);
}

// ---- a certificate of its own

static bool add_extension(X509 *x, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx_nodb(&ctx);
    X509V3_set_ctx(&ctx, x, x, NULL, NULL, 0);
    X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    bool ok = e && X509_add_ext(x, e, -1) == 1;
    X509_EXTENSION_free(e);
    return ok;
}

// The subject is for people to read: whoever trusts this certificate has its thumbprint. A name that does not fit into
// it, or is none for DNS, is left out.
static bool fill_names(X509 *x)
{
    char host[HOST_NAME_MAX + 1] = "", names[HOST_NAME_MAX + 64];
    static const char here[] = "DNS:localhost,IP:127.0.0.1,IP:::1";
    (void)gethostname(host, sizeof(host) - 1); // "" then
    bool plain =
        host[0] && strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") == strlen(host);
    const char *common = plain && strlen(host) <= 64 ? host : "sendense-hub";
    X509_NAME *name = X509_get_subject_name(x);
    (void)snprintf(names, sizeof(names), plain ? "%s,DNS:%s" : "%s", here, host);
    return X509_NAME_add_entry_by_txt(name, "O", MBSTRING_ASC, (const unsigned char *)"Sendense", -1, -1, 0) == 1 &&
        X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)common, -1, -1, 0) == 1 &&
        X509_set_issuer_name(x, name) == 1 && add_extension(x, NID_subject_alt_name, names);
}

static X509 *make_certificate(EVP_PKEY *key)
{
    unsigned char serial[16];
    X509 *x = X509_new();
    BIGNUM *number = NULL;
    bool ok = x && RAND_bytes(serial, sizeof(serial)) == 1;
    serial[0] &= 0x7f; // positive
    ok = ok && (number = BN_bin2bn(serial, sizeof(serial), NULL)) &&
        BN_to_ASN1_INTEGER(number, X509_get_serialNumber(x)) && X509_set_version(x, X509_VERSION_3) == 1 &&
        X509_gmtime_adj(X509_getm_notBefore(x), -DAY) && // a client whose clock is behind
        X509_gmtime_adj(X509_getm_notAfter(x), YEARS_10) && X509_set_pubkey(x, key) == 1 && fill_names(x) &&
        add_extension(x, NID_basic_constraints, "critical,CA:FALSE") &&
        add_extension(x, NID_key_usage, "critical,digitalSignature") &&
        add_extension(x, NID_ext_key_usage, "serverAuth") && X509_sign(x, key, EVP_sha256()) > 0;
    BN_free(number);
    if (ok)
        return x;
    X509_free(x);
    return NULL;
}

// Whole or not at all: half a file would keep the hub from ever starting again, and another key is not the one that
// others trust.
static bool write_whole(const char *path, const char *text, size_t n, Err *err)
{
    cleanup_free char *beside = mem_printf(err, "%s.new", path), *folder = mem_strdup(path, err);
    char *slash = folder ? strrchr(folder, '/') : NULL;
    if (!beside || !folder)
        return false;
    if (slash)
        *slash = '\0';
    return file_unlink(beside, err) && file_create_durable(beside, text, n, 0600, err) &&
        file_link(beside, path, err) && file_unlink(beside, err) && (!slash || file_fsync_dir(folder, err));
}

static bool write_pem(const char *path, EVP_PKEY *key, X509 *x, Err *err)
{
    char *text = NULL;
    BIO *b = BIO_new(BIO_s_mem());
    bool ok =
        (b && PEM_write_bio_X509(b, x) == 1 && PEM_write_bio_PKCS8PrivateKey(b, key, NULL, NULL, 0, NULL, NULL) == 1) ||
        openssl_error(err, ERR_INTERNAL, "writing a certificate");
    long n = ok ? BIO_get_mem_data(b, &text) : 0;
    ok = ok && write_whole(path, text, (size_t)n, err);
    if (text)
        OPENSSL_cleanse(text, (size_t)n);
    BIO_free(b);
    return ok;
}

bool tls_server_make(const char *path, Err *err)
{
    ERR_clear_error();
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = key ? make_certificate(key) : NULL;
    bool ok = x ? write_pem(path, key, x, err) : openssl_error(err, ERR_INTERNAL, "making a certificate");
    X509_free(x);
    EVP_PKEY_free(key);
    return ok;
}
