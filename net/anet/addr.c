/* Addresses of logical networks (addr.h), and the pure helpers of the public header that are about them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/htab.h"
#include "net/anet/addr.h"
#include "net/anet/anet.h"

#define GUEST_MTU_MIN 576   /* RFC 791: every host takes this much */
#define GUEST_MTU_MAX 9000
#define DNS_MAX 8

bool addr_parse_ip(const char *text, uint32_t *ret_ip)
{
    if (!text)
        return false;
    uint32_t ip = 0;
    const char *p = text;
    for (int i = 0; i < 4; i++) {
        unsigned byte = 0;
        int digits = 0;
        while (*p >= '0' && *p <= '9') {
            if (digits && !byte)
                return false; /* "01": octal to some, decimal to others */
            byte = byte * 10 + (unsigned)(*p++ - '0');
            if (++digits > 3)
                return false;
        }
        if (!digits || byte > 255 || (i < 3 && *p++ != '.'))
            return false;
        ip = ip << 8 | byte;
    }
    if (*p)
        return false;
    *ret_ip = ip;
    return true;
}

void addr_format_ip(uint32_t ip, char ret[16])
{
    snprintf(ret, 16, "%u.%u.%u.%u", ip >> 24, ip >> 16 & 255, ip >> 8 & 255, ip & 255);
}

int addr_parse_cidr(const char *text, struct addr_range *ret_range, struct err *e)
{
    char copy[20];
    const char *slash = text ? strchr(text, '/') : NULL;
    if (!slash || (size_t)(slash - text) >= sizeof copy)
        return err_set(e, E_INVAL, "\"%s\" is not an IPv4 network such as 198.18.1.0/24", text ? text : "");
    memcpy(copy, text, (size_t)(slash - text));
    copy[slash - text] = 0;
    uint32_t ip;
    int prefix = 0, digits = 0;
    for (const char *p = slash + 1; *p; p++, digits++) {
        if (*p < '0' || *p > '9' || digits > 1 || (digits && !prefix))
            return err_set(e, E_INVAL, "\"%s\": the prefix length is not a number from 8 to 29", text);
        prefix = prefix * 10 + (*p - '0');
    }
    if (!addr_parse_ip(copy, &ip))
        return err_set(e, E_INVAL, "\"%s\" is not an IPv4 network such as 198.18.1.0/24", text);
    if (!digits || prefix < 8 || prefix > 29)
        return err_set(e, E_INVAL, "\"%s\": the prefix length is not a number from 8 to 29", text);
    struct addr_range r = {.prefix = prefix, .mask = UINT32_MAX << (32 - prefix)};
    r.net = ip & r.mask;
    if (r.net != ip) {
        char right[16];
        addr_format_ip(r.net, right);
        return err_set(e, E_INVAL, "\"%s\" has host bits set; the network is %s/%d", text, right, prefix);
    }
    unsigned top = ip >> 24;
    if (top == 0 || top == 127 || top >= 224)
        return err_set(e, E_INVAL, "\"%s\" is not a range for hosts", text);
    *ret_range = r;
    return 0;
}

bool addr_parse_mac(const char *text, uint8_t ret_mac[6])
{
    if (!text || strlen(text) != 17)
        return false;
    uint8_t mac[6], any = 0;
    for (int i = 0; i < 6; i++) {
        unsigned v = 0;
        for (int k = 0; k < 2; k++) {
            char c = text[i * 3 + k];
            if (c >= '0' && c <= '9')
                v = v << 4 | (unsigned)(c - '0');
            else if ((c | 32) >= 'a' && (c | 32) <= 'f')
                v = v << 4 | (unsigned)((c | 32) - 'a' + 10);
            else
                return false;
        }
        if (i < 5 && text[i * 3 + 2] != ':')
            return false;
        mac[i] = (uint8_t)v;
        any |= mac[i];
    }
    if (!any || (mac[0] & 1))
        return false;
    memcpy(ret_mac, mac, 6);
    return true;
}

bool addr_overlap(const struct addr_range *a, const struct addr_range *b)
{
    uint32_t mask = a->mask & b->mask;
    return (a->net & mask) == (b->net & mask);
}

bool addr_is_host(const struct addr_range *r, uint32_t ip)
{
    return (ip & r->mask) == r->net && ip != r->net && ip != (r->net | ~r->mask);
}

bool addr_is_ifname(const char *name)
{
    size_t n = name ? strlen(name) : 0;
    if (!n || n > 15 || !strcmp(name, ".") || !strcmp(name, ".."))
        return false;
    for (const char *p = name; *p; p++)
        if (*p <= ' ' || *p == '/' || *p == ':' || *p == 127)
            return false;
    return true;
}

/* ---- anet.h ---- */

int anet_guest_mtu(int underlay_mtu)
{
    int mtu = (underlay_mtu > 0 ? underlay_mtu : 1500) - ANET_GENEVE_OVERHEAD;
    return mtu < GUEST_MTU_MIN ? GUEST_MTU_MIN : mtu > GUEST_MTU_MAX ? GUEST_MTU_MAX : mtu;
}

static int gateway_of(const struct anet_network *net, const struct addr_range *r, uint32_t *ret_ip, struct err *e)
{
    if (!net->gateway || !*net->gateway) {
        *ret_ip = r->net + 1;
        return 0;
    }
    uint32_t ip;
    if (!addr_parse_ip(net->gateway, &ip))
        return err_set(e, E_INVAL, "gateway \"%s\" is not an IPv4 address", net->gateway);
    if (!addr_is_host(r, ip))
        return err_set(e, E_INVAL, "gateway %s is not a host address of %s", net->gateway, net->cidr);
    *ret_ip = ip;
    return 0;
}

int anet_gateway(const struct anet_network *net, char ret[16], struct err *e)
{
    struct addr_range r = {0};
    uint32_t ip = 0;
    int rc = addr_parse_cidr(net->cidr, &r, e);
    if (!rc)
        rc = gateway_of(net, &r, &ip, e);
    if (!rc)
        addr_format_ip(ip, ret);
    return rc;
}

int anet_check_network(const struct anet_network *net, const struct anet_network *others, size_t n, struct err *e)
{
    struct addr_range r = {0}, o;
    uint32_t ip = 0;
    if (!net->id || !*net->id)
        return err_set(e, E_INVAL, "a network without id");
    int rc = addr_parse_cidr(net->cidr, &r, e);
    if (!rc)
        rc = gateway_of(net, &r, &ip, e);
    if (rc)
        return rc;
    if (net->n_dns > DNS_MAX)
        return err_set(e, E_INVAL, "%zu DNS servers, at most %d", net->n_dns, DNS_MAX);
    for (size_t i = 0; i < net->n_dns; i++)
        if (!addr_parse_ip(net->dns[i], &ip))
            return err_set(e, E_INVAL, "DNS server \"%s\" is not an IPv4 address", net->dns[i] ? net->dns[i] : "");
    if (net->mtu && (net->mtu < GUEST_MTU_MIN || net->mtu > GUEST_MTU_MAX))
        return err_set(e, E_INVAL, "mtu %d is not within %d..%d", net->mtu, GUEST_MTU_MIN, GUEST_MTU_MAX);
    for (size_t i = 0; i < n; i++) {
        if (others[i].id && !strcmp(others[i].id, net->id))
            continue;
        if (!addr_parse_cidr(others[i].cidr, &o, NULL) && addr_overlap(&r, &o))
            return err_set(e, E_INVAL, "%s overlaps network %s (%s)", net->cidr,
                           others[i].name ? others[i].name : others[i].id, others[i].cidr);
    }
    return 0;
}

int anet_check_port(const struct anet_network *net, const struct anet_port *port, struct err *e)
{
    struct addr_range r = {0};
    uint32_t ip = 0, gw = 0;
    uint8_t mac[6];
    if (!port->id || !*port->id)
        return err_set(e, E_INVAL, "a port without id");
    int rc = addr_parse_cidr(net->cidr, &r, e);
    if (!rc)
        rc = gateway_of(net, &r, &gw, e);
    if (rc)
        return rc;
    if (!addr_parse_mac(port->mac, mac))
        return err_set(e, E_INVAL, "\"%s\" is not a unicast MAC address", port->mac ? port->mac : "");
    if (!addr_parse_ip(port->ip, &ip))
        return err_set(e, E_INVAL, "\"%s\" is not an IPv4 address", port->ip ? port->ip : "");
    if (!addr_is_host(&r, ip))
        return err_set(e, E_INVAL, "%s is not a host address of %s", port->ip, net->cidr);
    if (ip == gw)
        return err_set(e, E_INVAL, "%s is the gateway of %s", port->ip, net->cidr);
    if (port->migrate_to && *port->migrate_to && (!port->host || !*port->host))
        return err_set(e, E_INVAL, "a port that is nowhere cannot migrate");
    return 0;
}

static int cmp_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int anet_pick_ip(const struct anet_network *net, const char *const *used, size_t n, char ret[16], struct err *e)
{
    struct addr_range r;
    uint32_t gw;
    int rc = addr_parse_cidr(net->cidr, &r, e);
    if (!rc)
        rc = gateway_of(net, &r, &gw, e);
    if (rc)
        return rc;
    uint32_t *taken = xcalloc(n + 1, sizeof *taken);
    size_t k = 0;
    taken[k++] = gw;
    for (size_t i = 0; i < n; i++) {
        uint32_t ip;
        if (addr_parse_ip(used[i], &ip) && addr_is_host(&r, ip))
            taken[k++] = ip;
    }
    qsort(taken, k, sizeof *taken, cmp_u32);
    uint32_t ip = r.net + 1;
    for (size_t i = 0; i < k && taken[i] <= ip; i++)
        if (taken[i] == ip)
            ip++;
    free(taken);
    if (!addr_is_host(&r, ip))
        return err_set(e, E_NOSPC, "no free address in %s", net->cidr);
    addr_format_ip(ip, ret);
    return 0;
}

void anet_mac_of(const char *id, char ret[18])
{
    uint64_t h = hash_bytes(id, strlen(id), 0x616e6574);
    snprintf(ret, 18, "02:%02x:%02x:%02x:%02x:%02x", (unsigned)(h >> 32 & 255), (unsigned)(h >> 24 & 255),
             (unsigned)(h >> 16 & 255), (unsigned)(h >> 8 & 255), (unsigned)(h & 255));
}
