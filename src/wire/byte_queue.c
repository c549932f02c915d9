#include "wire/byte_queue.h"

#include <pthread.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static BIO_METHOD *method; // of all of them, for good

bool byte_queue_init(ByteQueue *q, size_t max, Err *err)
{
    *q = (ByteQueue){.bytes = malloc(max), .max = max};
    return q->bytes || err_no_memory(err);
}

void byte_queue_clear(ByteQueue *q)
{
    free(q->bytes);
    *q = (ByteQueue){0};
}

void byte_queue_drop(ByteQueue *q, size_t n)
{
    q->at += n;
    if (q->at == q->len)
        q->at = q->len = 0;
}

static int on_read(BIO *bio, char *to, int room)
{
    ByteQueue *q = BIO_get_data(bio);
    size_t n = MIN(byte_queue_pending(q), (size_t)MAX(room, 0));
    BIO_clear_retry_flags(bio);
    if (n == 0) {
        BIO_set_retry_read(bio);
        return -1;
    }
    memcpy(to, q->bytes + q->at, n);
    byte_queue_drop(q, n);
    return (int)n;
}

static int on_write(BIO *bio, const char *from, int len)
{
    ByteQueue *q = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (len < 0 || (size_t)len > byte_queue_room(q))
        return -1;
    memcpy(byte_queue_end(q), from, (size_t)len);
    q->len += (size_t)len;
    return len;
}

static long on_ctrl(BIO *bio, int command, long number, void *pointer)
{
    (void)number;
    (void)pointer;
    switch (command) {
    case BIO_CTRL_PENDING: return (long)byte_queue_pending(BIO_get_data(bio));
    case BIO_CTRL_FLUSH: return 1; // each write is all that there is to do
    default: return 0;
    }
}

static void make_method(void)
{
    BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "byte queue");
    if (m && BIO_meth_set_read(m, on_read) && BIO_meth_set_write(m, on_write) && BIO_meth_set_ctrl(m, on_ctrl))
        method = m;
    else
        BIO_meth_free(m);
}

bool byte_queue_bio(ByteQueue *q, BIO **ret, Err *err)
{
    (void)pthread_once(&once, make_method); // cannot fail
    BIO *bio = method ? BIO_new(method) : NULL;
    if (!bio)
        return err_no_memory(err);
    BIO_set_data(bio, q);
    BIO_set_init(bio, 1);
    *ret = bio;
    return true;
}
