// Whom a TLS client trusts, and what certificate a server shows. Over OpenSSL.
#pragma once

#include "base/mem.h"

#define TLS_SHA256_TEXT (32 * 3) // "AB:CD:…" and NUL
#define TLS_SHA1_TEXT (20 * 3)
#define TLS_NAME_MAX 512

// thumbprint: the server's certificate has this SHA-256 (of its whole DER), whatever its name, dates and issuer:
// 64 hex digits of either case, colons between bytes or none. Else ca_pem: it is signed by one of these CAs, and names
// the host. Both NULL: by the system's CAs. Borrowed.
typedef struct TlsTrust {
    const char *thumbprint;
    const char *ca_pem;
} TlsTrust;

// Texts are cut to what fits, and hold no control characters.
typedef struct TlsCertificate {
    char sha256[TLS_SHA256_TEXT]; // upper case, with colons
    char sha1[TLS_SHA1_TEXT];     // the same; VDDK's thumbprint=
    char subject[TLS_NAME_MAX];   // RFC 2253: "CN=vc.example.org,O=…"
    char issuer[TLS_NAME_MAX];
    int64_t not_before_us, not_after_us; // UTC since 1970
} TlsCertificate;

// Of an OpenSSL X509. False where OpenSSL fails.
bool tls_certificate_of(const void *x509, TlsCertificate *ret) must_check;

// ERR_INVALID: no SHA-256 in hex. ret: 32 bytes.
bool tls_thumbprint_parse(const char *text, unsigned char ret[32], Err *err) must_check;

// One client's check of its server. tls_check_init() first, tls_check_install() for each new connection; `shown` is of
// the newest one. Not to be moved or freed while a connection is being made.
typedef struct TlsCheck {
    bool any; // every certificate is fine: only to look at it
    bool pinned;
    unsigned char pin[32];
    bool seen, refused; // a certificate was shown; it was not the pinned one
    TlsCertificate shown;
} TlsCheck;

bool tls_check_init(const TlsTrust *trust, TlsCheck *ret, Err *err) must_check;
// ssl_ctx: an OpenSSL SSL_CTX, of one connection. A certificate that is not right ends the handshake: before anything
// of the user's is sent.
void tls_check_install(TlsCheck *c, void *ssl_ctx);
