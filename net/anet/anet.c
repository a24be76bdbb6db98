/* aNet's main-loop side (anet.h): hands what is wanted to the parts in the database thread, and starts the OVN programs
 * when what they need is there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/htab.h"
#include "base/log.h"
#include "cluster/dbthread.h"
#include "net/anet/addr.h"
#include "net/anet/anet_priv.h"

LOG_MODULE("anet")

#define ARGS_MAX 16

/* ---- supervised programs ---- */

struct args {
    const char *v[ARGS_MAX];
    char *own[ARGS_MAX];
    int n, n_own;
};

static void arg_add(struct args *a, const char *prefix, const char *value)
{
    if (a->n + 1 >= ARGS_MAX)
        abort();
    a->own[a->n_own] = xasprintf("%s%s", prefix, value);
    a->v[a->n++] = a->own[a->n_own++];
}

static void arg_common(const struct anet *a, struct args *args)
{
    arg_add(args, "-vconsole:info", "");
    arg_add(args, "-vsyslog:off", "");
    if (a->key_pem) {
        arg_add(args, "--private-key=", a->key_pem);
        arg_add(args, "--certificate=", a->cert_pem);
        arg_add(args, "--ca-cert=", a->ca_pem);
    }
}

static void args_free(struct args *args)
{
    for (int i = 0; i < args->n_own; i++)
        free(args->own[i]);
}

/* northd follows the leaders of NB and SB: it gets every voter, the local socket among them. */
static void want_northd(struct anet *a)
{
    struct args args = {0};
    char *remotes = *a->remote_voters ? xasprintf("%s,%s", a->remote_local, a->remote_voters) : xstrdup(a->remote_local);
    arg_add(&args, "ovn-northd", "");
    arg_add(&args, "--ovnnb-db=", remotes);
    arg_add(&args, "--ovnsb-db=", remotes);
    char *ctl = xasprintf("%s/ovn-northd.ctl", a->run_dir);
    arg_add(&args, "--unixctl=", ctl); /* ovn-controller does not know this option: OVN_RUNDIR/ovn-controller.PID.ctl */
    free(ctl);
    arg_common(a, &args);
    service_want(a->northd, args.v);
    args_free(&args);
    free(remotes);
}

static void want_controller(struct anet *a)
{
    struct args args = {0};
    arg_add(&args, "ovn-controller", "");
    arg_add(&args, a->ovs_db, "");
    arg_common(a, &args);
    service_want(a->controller, args.v);
    args_free(&args);
}

static void converge(struct anet *a)
{
    struct sb_status sb;
    struct local_status local;
    if (!a->supervise || a->stopped)
        return;
    sb_get_status(a->sb, &sb);
    local_get_status(a->local, &local);
    struct service_status northd;
    service_get_status(a->northd, &northd);
    if (*a->remote_local) {
        want_northd(a);
        if (sb.leader_gains != a->leader_gains && northd.pid)
            northd_follow(a->follower);
    } else {
        northd_let(a->follower);
        service_stop(a->northd);
    }
    a->leader_gains = sb.leader_gains;
    if (sb.ready && local.ready) /* from then on it stays, whatever happens to the databases */
        want_controller(a);
    sb_status_free(&sb);
    local_status_free(&local);
}

/* ---- news from the database thread ---- */

static void port_news(void *arg, const char *id, bool up)
{
    struct anet *a = arg;
    if (a->events.port_up)
        a->events.port_up(a->events.arg, id, up);
}

static void on_news(struct mail *m)
{
    struct anet *a = container_of(m, struct anet, news);
    __atomic_store_n(&a->news_posted, false, __ATOMIC_SEQ_CST); /* before reading: what comes now posts again */
    if (!a->local)
        return; /* closing */
    converge(a);
    local_take_news(a->local, port_news, a);
}

static void post_news(void *arg)
{
    struct anet *a = arg;
    if (!__atomic_exchange_n(&a->news_posted, true, __ATOMIC_SEQ_CST))
        mailbox_post(&a->mailbox, &a->news);
}

/* ---- interface ---- */

static int check_conf(const struct anet_conf *c, struct err *e)
{
    uint32_t ip;
    if (!c->node_id || !*c->node_id)
        return err_set(e, E_INVAL, "aNet: no node id");
    if (!addr_parse_ip(c->address, &ip))
        return err_set(e, E_INVAL, "aNet: address \"%s\" is not IPv4", c->address ? c->address : "");
    if (c->uplink && *c->uplink && !addr_is_ifname(c->uplink))
        return err_set(e, E_INVAL, "aNet: uplink \"%s\" cannot be an interface", c->uplink);
    if (!c->run_dir || !*c->run_dir)
        return err_set(e, E_INVAL, "aNet: no run directory");
    if (c->datapath && *c->datapath && strcmp(c->datapath, "netdev") && strcmp(c->datapath, "system"))
        return err_set(e, E_INVAL, "aNet: datapath \"%s\" is neither \"netdev\" nor \"system\"", c->datapath);
    if (!c->key_pem != !c->cert_pem || !c->key_pem != !c->ca_pem)
        return err_set(e, E_INVAL, "aNet: key, certificate and CA go together");
    return 0;
}

static char *copy_or_null(const char *text)
{
    return text ? xstrdup(text) : NULL;
}

int anet_open(uv_loop_t *loop, const struct anet_conf *conf, const struct anet_events *events, struct anet **ret_anet,
              struct err *e)
{
    int rc = check_conf(conf, e);
    if (rc)
        return rc;
    struct anet *a = xcalloc(1, sizeof *a);
    a->loop = loop;
    if (events)
        a->events = *events;
    a->node_id = xstrdup(conf->node_id);
    a->run_dir = xstrdup(conf->run_dir);
    a->ovs_db = xstrdup(conf->ovs_db ? conf->ovs_db : "unix:/run/openvswitch/db.sock");
    a->key_pem = copy_or_null(conf->key_pem);
    a->cert_pem = copy_or_null(conf->cert_pem);
    a->ca_pem = copy_or_null(conf->ca_pem);
    a->supervise = conf->supervise;
    a->remote_local = xstrdup("");
    a->remote_voters = xstrdup("");
    a->news.run = on_news;
    mailbox_open(&a->mailbox, loop);

    char *ovs_rundir = xasprintf("OVS_RUNDIR=%s", conf->ovs_rundir ? conf->ovs_rundir : "/run/openvswitch");
    char *ovn_rundir = xasprintf("OVN_RUNDIR=%s", a->run_dir);
    const char *env[] = {ovs_rundir, ovn_rundir, NULL};
    a->northd = service_open(loop, "ovn-northd", a->run_dir, env);
    a->controller = service_open(loop, "ovn-controller", a->run_dir, env);
    char *ctl = xasprintf("%s/ovn-northd.ctl", a->run_dir);
    a->follower = northd_open(loop, a->northd, ctl);
    free(ctl);
    free(ovs_rundir);
    free(ovn_rundir);
    if (a->supervise) {
        service_adopt(a->northd);
        service_adopt(a->controller);
    }
    dbthread_ref();
    if (a->key_pem)
        dbthread_set_ssl(a->key_pem, a->cert_pem, a->ca_pem);
    const struct local_conf lc = {.ovs_db = a->ovs_db, .node_id = a->node_id, .address = conf->address,
                                  .uplink = conf->uplink ? conf->uplink : "",
                                  .datapath = conf->datapath ? conf->datapath : ""};
    a->nb = nb_open();
    a->sb = sb_open(post_news, a);
    a->local = local_open(&lc, post_news, a);
    *ret_anet = a;
    return 0;
}

static void on_mailbox_closed(void *arg)
{
    struct anet *a = arg;
    free(a->node_id);
    free(a->run_dir);
    free(a->ovs_db);
    free(a->ca_pem);
    free(a->cert_pem);
    free(a->key_pem);
    free(a->remote_local);
    free(a->remote_voters);
    free(a);
}

void anet_close(struct anet *a)
{
    if (!a)
        return;
    nb_close(a->nb);
    sb_close(a->sb);
    local_close(a->local); /* after these three nothing posts any more */
    dbthread_unref();
    a->nb = NULL;
    a->sb = NULL;
    a->local = NULL;
    northd_close(a->follower);
    service_close(a->northd);
    service_close(a->controller);
    mailbox_close(&a->mailbox, on_mailbox_closed, a);
}

void anet_stop_services(struct anet *a)
{
    a->stopped = true;
    northd_let(a->follower);
    service_stop(a->controller);
    service_stop(a->northd);
}

void anet_set_remotes(struct anet *a, const char *local, const char *voters)
{
    free(a->remote_local);
    free(a->remote_voters);
    a->remote_local = xstrdup(local ? local : "");
    a->remote_voters = xstrdup(voters ? voters : "");
    const char *remote = *a->remote_local ? a->remote_local : a->remote_voters;
    nb_set_remote(a->nb, remote);
    sb_set_remote(a->sb, remote, a->remote_local);
    local_set_ovn_remote(a->local, remote);
    if (*remote)
        converge(a);
}

void anet_set_writer(struct anet *a, int64_t term)
{
    nb_set_term(a->nb, term);
    sb_set_term(a->sb, term);
}

void anet_db_leader_changed(struct anet *a)
{
    if (a->supervise && !a->stopped)
        northd_follow(a->follower);
}

int anet_set_desired(struct anet *a, const struct anet_desired *d, struct err *e)
{
    struct nb_model *m;
    struct err why = {0};
    int rc = nb_model_build(d, &m, &a->skipped, &why);
    snprintf(a->skipped_why, sizeof a->skipped_why, "%.255s", why.msg);
    nb_set_model(a->nb, m);
    sb_set_nodes(a->sb, d->nodes, d->n_nodes);
    if (rc && e)
        *e = why;
    return rc;
}

static int plug(struct anet *a, const char *port_id, const char *name, bool internal, struct err *e)
{
    if (!port_id || !*port_id)
        return err_set(e, E_INVAL, "plug: no port id");
    if (!addr_is_ifname(name) || !strcmp(name, BR_INT) || !strcmp(name, BR_PHY))
        return err_set(e, E_INVAL, "plug port %s: \"%s\" cannot be its interface", port_id, name ? name : "");
    local_plug(a->local, port_id, name, internal);
    return 0;
}

int anet_plug(struct anet *a, const char *port_id, const char *tap, struct err *e)
{
    return plug(a, port_id, tap, false, e);
}

int anet_plug_internal(struct anet *a, const char *port_id, const char *name, struct err *e)
{
    return plug(a, port_id, name, true, e);
}

void anet_unplug(struct anet *a, const char *port_id)
{
    local_unplug(a->local, port_id);
}

bool anet_port_is_up(const struct anet *a, const char *port_id)
{
    return local_port_is_up(a->local, port_id);
}
