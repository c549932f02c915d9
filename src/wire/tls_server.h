// The hub's side of TLS: its certificate and key, and the connections that are made with them. TLS 1.2 and 1.3. Over
// OpenSSL.
#pragma once

#include "wire/tls.h"

typedef struct TlsServer TlsServer;

// PEM; the certificate's chain may follow it, and the key may be in the same file. ERR_INVALID: not what is needed, or
// the key is another's; ERR_FORBIDDEN: others than its owner and group can read the key.
bool tls_server_load(const char *certificate_file, const char *key_file, TlsServer **ret, Err *err) must_check;
void tls_server_free(TlsServer *s); // NULL is fine; connections go on
// The same files, as they are now, for connections from here on. Where it fails nothing changes. Thread-safe.
bool tls_server_reload(TlsServer *s, Err *err) must_check;
// What it shows. Thread-safe.
void tls_server_certificate(TlsServer *s, TlsCertificate *ret);

// An OpenSSL SSL that waits for a client's handshake; NULL on lack of memory. Thread-safe.
void *tls_server_accept(TlsServer *s) must_check;
void tls_server_end(void *ssl); // frees what accept gave

// A new key (ECDSA P-256) and a certificate for it, signed by itself, for this machine's names, good for ten years,
// into one file of mode 0600. ERR_EXISTS: the file is there.
bool tls_server_make(const char *path, Err *err) must_check;
