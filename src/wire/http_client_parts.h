// What http_client.c and http_upgrade.c share.
#pragma once

#include "base/str.h"
#include "wire/http_client.h"

#include <curl/curl.h>

#define HTTP_CLIENT_POLL_MS 100 // at most so long until the cancel flag is looked at

struct HttpClient {
    CURLM *multi; // keeps the connections
    CURL *curl;
    char error[CURL_ERROR_SIZE];
    TlsCheck tls;
    char *ca_pem; // NULL: the system's
    // of the running exchange
    const HttpRequest *request;
    struct curl_slist *headers;
    StrBuf ahead; // arrived,
    size_t taken; // and read
    bool paused;
    bool done;
    CURLcode result;
    Err failed; // memory is gone
};

#define SET(option, value) (curl_easy_setopt(c->curl, (option), (value)) == CURLE_OK)

// A connection to r->url, with its TLS handshake, and nothing sent. http_client_end() after it, or http_client_free().
bool http_client_connect(HttpClient *c, const HttpRequest *r, Err *err) must_check;
int http_client_silence(const HttpRequest *r); // r's, or the default
// An Err from libcurl's code. Returns false.
bool http_client_error(const HttpClient *c, CURLcode code, Err *err);
