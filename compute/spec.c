/* Guest specification: checks and its JSON form. */
#include "compute/spec.h"

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"

#define MIB (1ll << 20)
#define SPEC_FORMAT 1

const char *machine_type_name(enum machine_type t) { return t == MACHINE_MICROVM ? "microvm" : "q35"; }
const char *machine_accel_name(enum machine_accel a) { return a == MACHINE_KVM ? "kvm" : "tcg"; }

bool machine_type_parse(const char *text, enum machine_type *ret_t)
{
    if (strcmp(text, "q35") != 0 && strcmp(text, "microvm") != 0)
        return false;
    *ret_t = text[0] == 'm' ? MACHINE_MICROVM : MACHINE_Q35;
    return true;
}

bool machine_accel_parse(const char *text, enum machine_accel *ret_a)
{
    if (strcmp(text, "kvm") != 0 && strcmp(text, "tcg") != 0)
        return false;
    *ret_a = text[0] == 'k' ? MACHINE_KVM : MACHINE_TCG;
    return true;
}

/* TCG's "max" follows the QEMU version, not the host; la57 off saves guests a page-table level. */
const char *machine_default_cpu(enum machine_accel accel) { return accel == MACHINE_KVM ? "host" : "max,la57=off"; }

int64_t machine_ram_bytes(const struct machine_spec *s)
{
    if (s->accel == MACHINE_KVM)
        return (s->memory_bytes + MIB - 1) / MIB * MIB;
    int64_t chunk = 256 << 10;
    return (s->memory_bytes + chunk - 1) / chunk * chunk + (8 << 10);
}

static bool only(const char *s, const char *extra)
{
    for (; *s; s++)
        if (!isalnum((unsigned char)*s) && !strchr(extra, *s))
            return false;
    return true;
}

/* Control characters would end up in logs and QEMU's option parser. */
static bool printable(const char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f)
            return false;
    return true;
}

static bool abs_path(const char *s) { return s[0] == '/' && printable(s); }

static bool mac_valid(const char *m)
{
    if (strlen(m) != 17)
        return false;
    for (int i = 0; i < 17; i++)
        if (i % 3 == 2 ? m[i] != ':' : !isxdigit((unsigned char)m[i]))
            return false;
    return (strtol((char[]){m[0], m[1], 0}, NULL, 16) & 1) == 0; /* not a group address */
}

static int check_devices(const struct machine_spec *s, struct err *e)
{
    unsigned used = 0;
    if (s->n_disks < 0 || s->n_disks > MACHINE_DISKS_MAX)
        return err_set(e, E_INVAL, "%d disks: at most %d", s->n_disks, MACHINE_DISKS_MAX);
    for (int i = 0; i < s->n_disks; i++) {
        const struct machine_disk *d = &s->disks[i];
        if (d->slot < 0 || d->slot >= MACHINE_DISKS_MAX || used & 1u << d->slot)
            return err_set(e, E_INVAL, "disk %d: slot %d is taken or not within 0..%d", i, d->slot, MACHINE_DISKS_MAX - 1);
        used |= 1u << d->slot;
        if (!abs_path(d->socket))
            return err_set(e, E_INVAL, "disk %d: socket is not an absolute path", i);
    }
    used = 0;
    if (s->n_nics < 0 || s->n_nics > MACHINE_NICS_MAX)
        return err_set(e, E_INVAL, "%d NICs: at most %d", s->n_nics, MACHINE_NICS_MAX);
    for (int i = 0; i < s->n_nics; i++) {
        const struct machine_nic *n = &s->nics[i];
        if (n->slot < 0 || n->slot >= MACHINE_NICS_MAX || used & 1u << n->slot)
            return err_set(e, E_INVAL, "NIC %d: slot %d is taken or not within 0..%d", i, n->slot, MACHINE_NICS_MAX - 1);
        used |= 1u << n->slot;
        if (!n->tap[0] || !only(n->tap, "-_"))
            return err_set(e, E_INVAL, "NIC %d: bad tap name", i);
        if (!mac_valid(n->mac))
            return err_set(e, E_INVAL, "NIC %d: \"%s\" is not a unicast MAC address", i, n->mac);
        if (n->mtu != 0 && (n->mtu < 576 || n->mtu > 65535))
            return err_set(e, E_INVAL, "NIC %d: MTU %d is not within 576..65535", i, n->mtu);
    }
    return E_OK;
}

int machine_spec_check(const struct machine_spec *s, struct err *e)
{
    struct id id;
    if (!id_parse(s->id, &id))
        return err_set(e, E_INVAL, "machine id is not a UUID");
    if (!s->name[0] || !only(s->name, "-_."))
        return err_set(e, E_INVAL, "machine name: letters, digits, '-', '_' and '.' only");
    if (s->generation < 0)
        return err_set(e, E_INVAL, "generation is negative");
    if (s->vcpus < 1 || s->vcpus > 240)
        return err_set(e, E_INVAL, "%d processors: 1..240 are possible", s->vcpus);
    if (s->memory_bytes < 16 * MIB || s->memory_bytes > (4ll << 40))
        return err_set(e, E_INVAL, "memory of %lld bytes: 16 MiB to 4 TiB are possible", (long long)s->memory_bytes);
    if (!only(s->cpu, "-_.,=+"))
        return err_set(e, E_INVAL, "bad processor model");
    if (s->kernel[0] ? !abs_path(s->kernel) : s->initrd[0] || s->cmdline[0])
        return err_set(e, E_INVAL, s->kernel[0] ? "kernel is not an absolute path" : "initrd or command line without a kernel");
    if (s->initrd[0] && !abs_path(s->initrd))
        return err_set(e, E_INVAL, "initrd is not an absolute path");
    if (!printable(s->cmdline))
        return err_set(e, E_INVAL, "kernel command line holds control characters");
    if (s->type == MACHINE_MICROVM && !s->kernel[0])
        return err_set(e, E_INVAL, "a microvm needs a kernel image; type q35 boots from a disk");
    if (s->memory_max_bytes < 0 || s->cpu_max_permille < 0)
        return err_set(e, E_INVAL, "negative limit");
    if (s->memory_max_bytes && s->memory_max_bytes < machine_ram_bytes(s))
        return err_set(e, E_INVAL, "memory limit below the guest's memory");
    return check_devices(s, e);
}

char *machine_spec_format(const struct machine_spec *s)
{
    json_t *disks = json_array(), *nics = json_array();
    for (int i = 0; i < s->n_disks; i++)
        json_array_append_new(disks, json_pack("{s:i, s:s}", "slot", s->disks[i].slot, "socket", s->disks[i].socket));
    for (int i = 0; i < s->n_nics; i++) {
        const struct machine_nic *n = &s->nics[i];
        json_array_append_new(nics, json_pack("{s:i, s:s, s:s, s:i, s:b}", "slot", n->slot, "tap", n->tap, "mac", n->mac,
                                              "mtu", n->mtu, "offload", n->offload));
    }
    json_t *j = json_pack("{s:i, s:s, s:s, s:I, s:i, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:b, s:I, s:i}",
                          "format", SPEC_FORMAT, "id", s->id, "name", s->name, "generation", (json_int_t)s->generation,
                          "vcpus", s->vcpus, "memory_bytes", (json_int_t)s->memory_bytes, "type", machine_type_name(s->type),
                          "accel", machine_accel_name(s->accel), "cpu", s->cpu, "kernel", s->kernel, "initrd", s->initrd,
                          "cmdline", s->cmdline, "disks", disks, "nics", nics, "incoming", s->incoming,
                          "memory_max_bytes", (json_int_t)s->memory_max_bytes, "cpu_max_permille", s->cpu_max_permille);
    char *text = j ? json_dumps(j, JSON_INDENT(1)) : NULL;
    json_decref(j);
    return text ? text : xstrdup("{}"); /* only if a text is not UTF-8: refused when read back */
}

struct reader { /* gathers the first failure; every later get is then a no-op */
    struct err *e;
    int rc;
};

static void bad(struct reader *r, const char *key, const char *why)
{
    if (r->rc == E_OK)
        r->rc = err_set(r->e, E_INVAL, "machine specification: %s: %s", key, why);
}

static void get_text(struct reader *r, json_t *o, const char *key, char *out, size_t size)
{
    json_t *v = json_object_get(o, key);
    if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v))
        bad(r, key, "text is missing");
    else if (json_string_length(v) >= size)
        bad(r, key, "too long");
    else
        memcpy(out, json_string_value(v), json_string_length(v) + 1);
}

static int64_t get_int(struct reader *r, json_t *o, const char *key, int64_t max)
{
    json_t *v = json_object_get(o, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > max) {
        bad(r, key, "number is missing or out of range");
        return 0;
    }
    return json_integer_value(v);
}

static bool get_bool(struct reader *r, json_t *o, const char *key)
{
    json_t *v = json_object_get(o, key);
    if (!json_is_boolean(v))
        bad(r, key, "true or false is missing");
    return json_is_true(v);
}

static void get_devices(struct reader *r, json_t *j, struct machine_spec *s)
{
    json_t *a = json_object_get(j, "disks"), *o;
    size_t i;
    if (!json_is_array(a) || json_array_size(a) > MACHINE_DISKS_MAX)
        bad(r, "disks", "not a list, or too long");
    for (i = 0; r->rc == E_OK && i < json_array_size(a); i++) {
        o = json_array_get(a, i);
        s->disks[i].slot = (int)get_int(r, o, "slot", MACHINE_DISKS_MAX - 1);
        get_text(r, o, "socket", s->disks[i].socket, sizeof s->disks[i].socket);
        s->n_disks++;
    }
    a = json_object_get(j, "nics");
    if (!json_is_array(a) || json_array_size(a) > MACHINE_NICS_MAX)
        bad(r, "nics", "not a list, or too long");
    for (i = 0; r->rc == E_OK && i < json_array_size(a); i++) {
        struct machine_nic *n = &s->nics[i];
        o = json_array_get(a, i);
        n->slot = (int)get_int(r, o, "slot", MACHINE_NICS_MAX - 1);
        get_text(r, o, "tap", n->tap, sizeof n->tap);
        get_text(r, o, "mac", n->mac, sizeof n->mac);
        n->mtu = (int)get_int(r, o, "mtu", 65535);
        n->offload = get_bool(r, o, "offload");
        s->n_nics++;
    }
}

static void get_all(struct reader *r, json_t *j, struct machine_spec *s)
{
    char word[16] = "";
    if (get_int(r, j, "format", 1000) != SPEC_FORMAT)
        bad(r, "format", "not the one that this version knows");
    get_text(r, j, "id", s->id, sizeof s->id);
    get_text(r, j, "name", s->name, sizeof s->name);
    s->generation = get_int(r, j, "generation", INT64_MAX);
    s->vcpus = (int)get_int(r, j, "vcpus", 240);
    s->memory_bytes = get_int(r, j, "memory_bytes", INT64_MAX);
    get_text(r, j, "type", word, sizeof word);
    if (!machine_type_parse(word, &s->type))
        bad(r, "type", "neither q35 nor microvm");
    get_text(r, j, "accel", word, sizeof word);
    if (!machine_accel_parse(word, &s->accel))
        bad(r, "accel", "neither kvm nor tcg");
    get_text(r, j, "cpu", s->cpu, sizeof s->cpu);
    get_text(r, j, "kernel", s->kernel, sizeof s->kernel);
    get_text(r, j, "initrd", s->initrd, sizeof s->initrd);
    get_text(r, j, "cmdline", s->cmdline, sizeof s->cmdline);
    s->incoming = get_bool(r, j, "incoming");
    s->memory_max_bytes = get_int(r, j, "memory_max_bytes", INT64_MAX);
    s->cpu_max_permille = (int)get_int(r, j, "cpu_max_permille", 1000000);
    get_devices(r, j, s);
    if (r->rc == E_OK && json_object_size(j) != 17)
        bad(r, "members", "one that is unknown");
}

int machine_spec_parse(const char *text, size_t len, struct machine_spec *ret_spec, struct err *e)
{
    json_error_t je;
    json_t *j = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    if (!json_is_object(j)) {
        json_decref(j);
        return err_set(e, E_INVAL, "machine specification: not a JSON object: %s", j ? "" : je.text);
    }
    struct machine_spec s = {0};
    struct reader r = {.e = e, .rc = E_OK};
    get_all(&r, j, &s);
    json_decref(j);
    if (r.rc == E_OK)
        r.rc = machine_spec_check(&s, e);
    if (r.rc == E_OK)
        *ret_spec = s;
    return r.rc;
}
