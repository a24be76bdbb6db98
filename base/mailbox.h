/* Mailbox: the one way from any thread into a libuv loop's thread.
 *
 * mailbox_post() queues a message and wakes the loop, which runs messages in order of posting. The message is the
 * sender's struct with a `struct mail` inside; the handler owns it from then on. */
#ifndef COHORT_BASE_MAILBOX_H
#define COHORT_BASE_MAILBOX_H

#include <pthread.h>
#include <stdbool.h>
#include <uv.h>

struct mail {
    void (*run)(struct mail *m); /* called on the loop's thread */
    struct mail *next;
};

struct mailbox {
    uv_async_t async;
    pthread_mutex_t lock;
    struct mail *head, **tail;
    bool closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

void mailbox_open(struct mailbox *mb, uv_loop_t *loop);          /* on the loop's thread */
void mailbox_post(struct mailbox *mb, struct mail *m);            /* any thread; not after mailbox_close() began */
/* On the loop's thread: runs what is queued, then closes; `closed` (may be NULL) when the memory may go. */
void mailbox_close(struct mailbox *mb, void (*closed)(void *arg), void *arg);
/* Does the handle keep the loop alive? Default: no. */
void mailbox_keep_alive(struct mailbox *mb, bool on);

#endif
