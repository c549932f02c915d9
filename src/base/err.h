// Errors: one table of codes, one fixed-size value that belongs to the caller.
//
// A function that can fail is `bool f(in..., T *ret_x, Err *err)`: it returns false, fills *err
// and leaves every ret_ untouched. The first error wins: err_set() on an Err that already holds
// one does nothing, so cleaning up cannot hide the cause. Code decides HTTP status, exit status
// and whether a repetition can help; the words never do. `err` may not be NULL.
// Thread-safety: an Err belongs to one thread at a time.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define ERR_SHORT_MAX 96
#define ERR_DETAILS_MAX 1024

typedef enum ErrCode {
    ERR_NONE = 0,
    ERR_INTERNAL,     // a bug, or something that should not be possible
    ERR_NO_MEMORY,    //
    ERR_USAGE,        // wrong command line or configuration
    ERR_INVALID,      // input that is malformed or of the wrong type
    ERR_UNAUTHORIZED, // no token where one is needed
    ERR_FORBIDDEN,    // a token that is not right
    ERR_NOT_FOUND,    //
    ERR_METHOD,       // the path exists, the method does not
    ERR_CONFLICT,     // the state of the thing forbids it now
    ERR_BUSY,         // in use by somebody else; later it may work
    ERR_EXISTS,       // a name that is taken
    ERR_LIMITED,      // asked too often; later it may work
    ERR_TOO_LARGE,    // above a ceiling of ours
    ERR_UNSUPPORTED,  // understood, and not built or not possible here
    ERR_NO_SPACE,     // a disk, a quota or a scratch folder is full
    ERR_IO,           // the operating system could not read or write
    ERR_DAMAGED,      // stored bytes are not what was written
    ERR_PROTOCOL,     // a peer (NBD, QMP, SOAP, HTTP) broke its protocol or refused
    ERR_UNAVAILABLE,  // a peer or service cannot be reached now
    ERR_TIMEOUT,      // a deadline passed
    ERR_CANCELLED,    // somebody asked to stop
    ERR_CODES         // (count)
} ErrCode;

typedef struct Err {
    ErrCode code;
    char title[ERR_SHORT_MAX];     // the API's "error": short; "" means the code's own
    char details[ERR_DETAILS_MAX]; // the API's "details": what was wrong and what to do
} Err;

#define ERR_INIT ((Err){.code = ERR_NONE})

#define must_check __attribute__((warn_unused_result))
#define printf_like(fmt, args) __attribute__((format(printf, fmt, args)))

// Set code and details; always returns false, so that `return err_set(...)` reads well.
// Message style: lower case, no full stop, then "; HINT" where there is something to do.
bool err_set(Err *err, ErrCode code, const char *fmt, ...) printf_like(3, 4);

// The same from errno (ENOSPC, EDQUOT -> ERR_NO_SPACE; ENOMEM -> ERR_NO_MEMORY; ENOENT ->
// ERR_NOT_FOUND; EEXIST -> ERR_EXISTS; else ERR_IO); appends ": strerror".
bool err_errno(Err *err, int errnum, const char *fmt, ...) printf_like(3, 4);

bool err_no_memory(Err *err);

// Replace the short title (the API's "error"), where the contract fixes it. Returns false.
bool err_title(Err *err, const char *title);

// Put "context: " before the details, on the way up. No effect on ERR_NONE. Returns false.
bool err_context(Err *err, const char *fmt, ...) printf_like(2, 3);

// Forget an error that was handled.
void err_clear(Err *err);

const char *err_short(const Err *err); // title, or the code's own short text
ErrCode err_code(const char *name);        // the code of that word; ERR_INTERNAL where there is none
const char *err_name(ErrCode code);    // stable word: "not_found"
int err_http(ErrCode code);            // HTTP status
int err_exit(ErrCode code);            // exit status of a program: 0, 1, 2 (usage), 3 (damaged)
bool err_retryable(ErrCode code);      // the same request may succeed later
