/* Kernel images as files on this node: fetched from their sealed volumes when a guest needs them. Main loop. */
#ifndef COHORT_DAEMON_IMAGES_H
#define COHORT_DAEMON_IMAGES_H

#include "compute/spec.h"
#include "daemon/daemon.h"

struct images;
/* `ready` is called when a fetch ended, well or not. */
struct images *images_open(struct daemon *d, void (*ready)(void *arg), void *arg);
void images_close(struct images *im);
/* Is image `id` on this node, verified in this life of the daemon? If not, its fetching has begun or goes on. */
bool images_ready(struct images *im, const char *id);
/* Kernel, initrd and command line (the image's, then the machine's) of m's image into `s`. */
MUST_CHECK int images_spec(struct images *im, const struct cdb_view *v, const struct cdb_machine *m, struct machine_spec *s,
                           struct err *e);

#endif
