/* Mailbox. uv_async_send() coalesces, so the callback takes the whole queue each time. See mailbox.h. */
#include "base/mailbox.h"

#include <assert.h>
#include "base/htab.h"

static struct mail *take_all(struct mailbox *mb)
{
    pthread_mutex_lock(&mb->lock);
    struct mail *m = mb->head;
    mb->head = NULL;
    mb->tail = &mb->head;
    pthread_mutex_unlock(&mb->lock);
    return m;
}

static void run_queue(struct mailbox *mb)
{
    for (struct mail *m = take_all(mb), *next; m; m = next) {
        next = m->next; /* the handler may free it */
        m->run(m);
    }
}

static void on_async(uv_async_t *h) { run_queue(container_of(h, struct mailbox, async)); }

void mailbox_open(struct mailbox *mb, uv_loop_t *loop)
{
    *mb = (struct mailbox){0};
    mb->tail = &mb->head;
    pthread_mutex_init(&mb->lock, NULL);
    int rc = uv_async_init(loop, &mb->async, on_async);
    assert(rc == 0); /* fails only without descriptors for the loop's own pipe */
    uv_unref((uv_handle_t *)&mb->async);
}

void mailbox_post(struct mailbox *mb, struct mail *m)
{
    m->next = NULL;
    pthread_mutex_lock(&mb->lock);
    assert(!mb->closing);
    *mb->tail = m;
    mb->tail = &m->next;
    /* Under the lock: mailbox_close() cannot end the handle between the queueing and the wake-up. */
    uv_async_send(&mb->async);
    pthread_mutex_unlock(&mb->lock);
}

static void on_closed(uv_handle_t *h)
{
    struct mailbox *mb = container_of((uv_async_t *)h, struct mailbox, async);
    pthread_mutex_destroy(&mb->lock);
    if (mb->closed)
        mb->closed(mb->closed_arg);
}

void mailbox_close(struct mailbox *mb, void (*closed)(void *arg), void *arg)
{
    mb->closed = closed;
    mb->closed_arg = arg;
    run_queue(mb);
    pthread_mutex_lock(&mb->lock);
    mb->closing = true;
    pthread_mutex_unlock(&mb->lock);
    run_queue(mb); /* what came in between */
    uv_close((uv_handle_t *)&mb->async, on_closed);
}

void mailbox_keep_alive(struct mailbox *mb, bool on)
{
    if (on)
        uv_ref((uv_handle_t *)&mb->async);
    else
        uv_unref((uv_handle_t *)&mb->async);
}
