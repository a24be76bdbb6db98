/* The database thread. See dbthread.h. */
#include <config.h>
#include "cluster/dbthread.h"
#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include "fatal-signal.h"
#include "openvswitch/list.h"
#include "openvswitch/poll-loop.h"
#include "openvswitch/vlog.h"
#include "ovs-thread.h"
#include "seq.h"
#include "stream-ssl.h"
#include "timeval.h"

struct hook {
    struct ovs_list node;
    dbthread_fn *run, *wait;
    void *arg;
    bool removed; /* freed by the thread at the end of its turn */
};

struct call {
    struct ovs_list node;
    dbthread_fn *fn;
    void *arg;
    bool done;
};

static pthread_mutex_t user_lock = PTHREAD_MUTEX_INITIALIZER; /* serialises ref and unref */
static int users;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* hooks, calls, stop */
static pthread_cond_t call_done = PTHREAD_COND_INITIALIZER;
static struct ovs_list hooks = OVS_LIST_INITIALIZER(&hooks);
static struct ovs_list calls = OVS_LIST_INITIALIZER(&calls);
static bool stop;
static struct seq *wake;
static pthread_t thread;
static __thread bool on_thread;

static void run_calls(void)
{
    pthread_mutex_lock(&lock);
    while (!ovs_list_is_empty(&calls)) {
        struct call *c = CONTAINER_OF(ovs_list_pop_front(&calls), struct call, node);
        pthread_mutex_unlock(&lock);
        c->fn(c->arg);
        pthread_mutex_lock(&lock);
        c->done = true;
        pthread_cond_broadcast(&call_done);
    }
    pthread_mutex_unlock(&lock);
}

/* Only this thread takes hooks out of the list, others append under the lock: the walk may go without it in between. */
static void run_hooks(bool waiting)
{
    pthread_mutex_lock(&lock);
    for (struct ovs_list *n = hooks.next; n != &hooks; n = n->next) {
        struct hook *h = CONTAINER_OF(n, struct hook, node);
        if (h->removed)
            continue;
        pthread_mutex_unlock(&lock);
        (waiting ? h->wait : h->run)(h->arg);
        pthread_mutex_lock(&lock);
    }
    for (struct ovs_list *n = hooks.next, *next; n != &hooks; n = next) {
        struct hook *h = CONTAINER_OF(n, struct hook, node);
        next = n->next;
        if (h->removed) {
            ovs_list_remove(n);
            free(h);
        }
    }
    pthread_mutex_unlock(&lock);
}

static void *thread_main(void *arg)
{
    on_thread = true;
    for (;;) {
        uint64_t seqno = seq_read(wake);
        run_calls();
        run_hooks(false);
        pthread_mutex_lock(&lock);
        bool end = stop && ovs_list_is_empty(&calls);
        pthread_mutex_unlock(&lock);
        if (end)
            return NULL;
        run_hooks(true);
        seq_wait(wake, seqno);
        poll_block();
    }
}

void dbthread_ref(void)
{
    pthread_mutex_lock(&user_lock);
    if (users++ == 0) {
        if (!wake) {
            /* The process reports on its own; only what OVS calls an error may come through. */
            vlog_set_levels(NULL, VLF_SYSLOG, VLL_OFF);
            vlog_set_levels(NULL, VLF_CONSOLE, VLL_ERR);
            fatal_ignore_sigpipe();
            time_msec(); /* its first use makes a seq; seq_wait() would do that under the lock of all seqs if it came first */
            wake = seq_create();
        }
        stop = false;
        thread = ovs_thread_create("database", thread_main, NULL);
    }
    pthread_mutex_unlock(&user_lock);
}

void dbthread_unref(void)
{
    assert(!on_thread);
    pthread_mutex_lock(&user_lock);
    assert(users > 0);
    if (--users == 0) {
        pthread_mutex_lock(&lock);
        assert(ovs_list_is_empty(&hooks));
        stop = true;
        pthread_mutex_unlock(&lock);
        seq_change(wake);
        pthread_join(thread, NULL);
    }
    pthread_mutex_unlock(&user_lock);
}

void dbthread_wake(void)
{
    seq_change(wake);
}

void dbthread_add(dbthread_fn *run, dbthread_fn *wait, void *arg)
{
    struct hook *h = malloc(sizeof *h);
    if (!h)
        abort();
    *h = (struct hook){.run = run, .wait = wait, .arg = arg};
    pthread_mutex_lock(&lock);
    ovs_list_push_back(&hooks, &h->node);
    pthread_mutex_unlock(&lock);
    dbthread_wake();
}

static void remove_here(void *arg)
{
    pthread_mutex_lock(&lock);
    struct hook *h;
    LIST_FOR_EACH (h, node, &hooks)
        if (h->arg == arg)
            h->removed = true;
    pthread_mutex_unlock(&lock);
}

static void sweep(void *arg)
{
    remove_here(arg);
    pthread_mutex_lock(&lock);
    for (struct ovs_list *n = hooks.next, *next; n != &hooks; n = next) {
        next = n->next;
        struct hook *h = CONTAINER_OF(n, struct hook, node);
        if (h->removed) {
            ovs_list_remove(n);
            free(h);
        }
    }
    pthread_mutex_unlock(&lock);
}

/* From outside it is done between turns (run_calls()), so no hook runs meanwhile and it is gone at once. */
void dbthread_remove(void *arg)
{
    if (on_thread)
        remove_here(arg);
    else
        dbthread_call(sweep, arg);
}

void dbthread_call(dbthread_fn *fn, void *arg)
{
    if (on_thread) {
        fn(arg);
        return;
    }
    struct call c = {.fn = fn, .arg = arg};
    pthread_mutex_lock(&lock);
    ovs_list_push_back(&calls, &c.node);
    pthread_mutex_unlock(&lock);
    dbthread_wake();
    pthread_mutex_lock(&lock);
    while (!c.done)
        pthread_cond_wait(&call_done, &lock);
    pthread_mutex_unlock(&lock);
}

bool dbthread_here(void)
{
    return on_thread;
}

struct ssl_files { const char *key, *cert, *ca; };

static void set_ssl(void *arg)
{
    const struct ssl_files *f = arg;
    stream_ssl_set_key_and_cert(f->key, f->cert);
    stream_ssl_set_ca_cert_file(f->ca, false);
}

void dbthread_set_ssl(const char *key_pem, const char *cert_pem, const char *ca_pem)
{
    struct ssl_files f = {key_pem, cert_pem, ca_pem};
    dbthread_call(set_ssl, &f);
}
