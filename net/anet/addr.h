/* IPv4 and MAC texts of networks and ports: parsing, and the arithmetic of address ranges. Pure; any thread. */
#ifndef COHORT_NET_ANET_ADDR_H
#define COHORT_NET_ANET_ADDR_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

struct addr_range { /* host byte order */
    uint32_t net, mask;
    int prefix;
};

/* Dotted quad, decimal, no leading zeros or spaces. */
bool addr_parse_ip(const char *text, uint32_t *ret_ip);
void addr_format_ip(uint32_t ip, char ret[16]);
/* "a.b.c.d/n" whose host bits are zero and n is within [8, 29]: room for a gateway and guests. */
MUST_CHECK int addr_parse_cidr(const char *text, struct addr_range *ret_range, struct err *e);
/* Six lower- or upper-case hex bytes; unicast, not all zero. */
bool addr_parse_mac(const char *text, uint8_t ret_mac[6]);
bool addr_overlap(const struct addr_range *a, const struct addr_range *b);
/* A host address of `r`: inside and neither its first nor its last. */
bool addr_is_host(const struct addr_range *r, uint32_t ip);
/* A name Linux takes for a network interface (1..15 characters, no '/' or space, not "." or ".."). */
bool addr_is_ifname(const char *name);

#endif
