/* Messages between a shard's owner and its replicas, as the two cores see them: proto/storage.proto without the wire.
 * Plain values; buffers are references that the receiver keeps only by iobuf_ref(). Types come from store.h, nothing else. */
#ifndef COHORT_STORAGE_REPL_MSG_H
#define COHORT_STORAGE_REPL_MSG_H

#include <stdbool.h>
#include <stdint.h>
#include "storage/asan/store/store.h"

enum repl_kind {
    REPL_FENCE,    /* install `epoch`, begin `session`; answer: `last`, once all accepted before it is durable */
    REPL_TAIL,     /* records above the commit mark and above `version`; answer: `tail`, `more` */
    REPL_READ,     /* answer: `data` (NULL = zeroes), `crc`; with `map`: store_map()'s bytes instead; `digest`: struct repl_digest */
    REPL_WRITE,
    REPL_VERSIONS, /* of `count` chunks from `chunk`; answer: `versions` */
    REPL_COPY,     /* replace chunk `chunk` by `data`, with `version` */
    REPL_COMMIT,   /* every write of `epoch` up to commit_seq, and every one of an older epoch, is settled */
};

struct repl_msg {
    enum repl_kind kind;
    uint64_t tag;             /* comes back in the answer */
    uint64_t incarnation;     /* of the replica's disk, as the owner knows it */
    uint64_t epoch;
    uint64_t session;         /* counts in FENCE, WRITE, COPY (replica.h); in all it tells late answers from current ones */
    uint64_t shard_bytes;     /* FENCE */
    uint64_t seq, prev_seq;   /* WRITE; COPY: seq numbers the session's copies from 1 */
    uint64_t commit_seq;      /* WRITE (0 = nothing new), COMMIT, FENCE with `settled` */
    bool settled;             /* FENCE: the owner serves, so it tells the mark at once: a replica whose journal is full of what
                               * was never settled could otherwise neither answer nor learn what settles it */
    uint64_t offset;          /* READ, WRITE: bytes in the shard */
    uint32_t length;
    bool map, digest;         /* READ */
    uint64_t chunk;           /* VERSIONS, COPY */
    uint32_t count;           /* VERSIONS */
    struct store_version version; /* COPY: the source's; TAIL: only records above it */
    bool use_reserve;         /* WRITE: to be carried out even where the disk counts as full, for it is under way elsewhere */
    bool zero;                /* WRITE, COPY: no data */
    uint16_t lost;            /* COPY: bit per OWNER_CHECK_BLOCK that nobody has: to read as damaged. Not with `zero` */
    bool through;             /* READ: on behalf of an operation: say in `absent` what this replica never had */
    bool fill;                /* with `through`: the bytes are to be written again: absent chunks come from the layer below */
    uint32_t crc;             /* crc32c of the data */
    struct iobuf *data;
    size_t data_off;
};

/* Answer to a READ with `digest`: little-endian on the wire and in memory. */
#define OWNER_CHECK_BLOCK 4096u
#define OWNER_CHECK_BYTES (256u << 10) /* most that one asks for */
struct repl_digest {
    uint64_t unreadable;      /* bit per block: its checksum does not match */
    uint32_t crc[OWNER_CHECK_BYTES / OWNER_CHECK_BLOCK]; /* crc32c of each block that can be read */
};

struct repl_answer {
    uint64_t tag, session;    /* the message's */
    int status;               /* E_STALE: `detail` is the installed epoch */
    uint64_t detail;
    struct store_version last;             /* FENCE: the last write of the session's chain */
    const struct store_tail_rec *tail;     /* TAIL; valid during the call */
    size_t n_tail;
    bool more;
    const struct store_version *versions;  /* VERSIONS: as many as were asked for; valid during the call */
    struct iobuf *data;                    /* READ: checked against crc by the receiver of the frame; NULL = zeroes */
    size_t data_off;
    uint32_t crc;
    uint64_t absent;                       /* READ with `through`: bit per chunk touched, from the first: never written */
};

#endif
