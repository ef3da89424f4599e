/* hepfuzz - send mutated HEP datagrams over UDP, to find what a listener cannot stand. Written for
 * sipsidecar.
 *
 *   cc -O2 -Wall -Wextra -o hepfuzz hepfuzz.c
 *   ./hepfuzz -t 127.0.0.1:9060 -f corpus.lp -c 1000000 -r 40000 --seed 7
 *
 * The corpus is length-prefixed as hepblast writes it: u32 big-endian length, then that many bytes,
 * repeated. The same seed and corpus give the same datagrams. The last line on stdout is one JSON
 * object: how many were sent, by kind of mutation. Targets outside 127.0.0.0/8 are refused.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAXPKT 65507 /* most that UDP over IPv4 carries */
#define BATCH 32

static void die(const char *f, ...) {
    va_list a;
    va_start(a, f);
    fputs("hepfuzz: ", stderr);
    vfprintf(stderr, f, a);
    va_end(a);
    fputc('\n', stderr);
    exit(2);
}
static double mono(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ------------------------------------------------------------------ numbers (splitmix64) */
static uint64_t state;
static uint64_t rnd(void) {
    uint64_t z = state += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
static size_t below(size_t n) { return n ? (size_t)(rnd() % n) : 0; }
static void noise(uint8_t *p, size_t n) { for (size_t i = 0; i < n; i++) p[i] = (uint8_t)rnd(); }

/* ------------------------------------------------------------------ corpus */
typedef struct { uint8_t *p; size_t n; } Rec;
static Rec *recs;
static size_t nrecs;
static void load(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) die("%s: %s", path, strerror(errno));
    uint8_t head[4];
    size_t room = 0;
    while (fread(head, 1, 4, f) == 4) {
        size_t n = (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
        if (n > MAXPKT) die("%s: a record of %zu bytes", path, n);
        if (nrecs == room) {
            room = room ? room * 2 : 1024;
            recs = realloc(recs, room * sizeof *recs);
            if (!recs) die("no memory");
        }
        uint8_t *p = malloc(n ? n : 1);
        if (!p || fread(p, 1, n, f) != n) die("%s is cut", path);
        recs[nrecs++] = (Rec){ p, n };
    }
    fclose(f);
    if (!nrecs) die("%s: no packets", path);
}

/* ------------------------------------------------------------------ chunks of HEP3 */
static unsigned get16(const uint8_t *p) { return (unsigned)(p[0] << 8 | p[1]); }
static void put16(uint8_t *p, unsigned v) { p[0] = (uint8_t)(v >> 8); p[1] = (uint8_t)v; }
/* Offsets of the chunks; how many, 0 when this is no HEP3. */
static int chunks(const uint8_t *p, size_t n, size_t *at, int most) {
    if (n < 12 || memcmp(p, "HEP3", 4)) return 0;
    int found = 0;
    for (size_t o = 6; o + 6 <= n && found < most;) {
        unsigned len = get16(p + o + 4);
        if (len < 6) break;
        at[found++] = o;
        o += len;
    }
    return found;
}
static unsigned wild16(void) {
    static const unsigned odd[] = { 0, 1, 5, 6, 7, 0x7fff, 0x8000, 0xfffe, 0xffff };
    return rnd() & 1 ? odd[below(sizeof odd / sizeof *odd)] : (unsigned)(rnd() & 0xffff);
}

/* ------------------------------------------------------------------ mutations */
enum { M_NONE, M_BITS, M_CUT, M_CHUNK_LENGTH, M_LENGTH, M_CHUNK_KIND, M_CHUNK_LOST, M_CHUNK_ADDED, M_VALUE, M_SPLICE, M_TEXT, M_PLAIN, M_NOISE, M_HUGE, M_EMPTY, M_N };
static const char *NAMES[M_N] = { "as-it-is", "bits", "cut", "chunk-length", "length", "chunk-kind", "chunk-lost", "chunk-added", "value", "splice", "text", "plain", "noise", "huge", "empty" };
static const int MIX[M_N] = { 40, 200, 100, 120, 60, 80, 60, 60, 80, 60, 60, 30, 30, 5, 15 }; /* per mille */

typedef struct { const char *p; size_t n; } Text;
#define T(s) { s, sizeof s - 1 }
/* What parsers trip over, put over the text of a message. */
static const Text TEXTS[] = {
    T("\0"), T("\r\n\r\n"), T("\r\n"), T("\n "), T("%n%s%x"), T("\xff\xfe\xfd"), T("\xc0\x80"), T("\xed\xa0\x80"), T("\x1b]0;x\x07"), T("<script>"),
    T("99999999999999999999"), T("-1"), T("Content-Length: 99999999\r\n"), T("Content-Length: -1\r\n"), T("Via: "), T("Call-ID: \r\n"),
    T("CSeq: 4294967296 INVITE\r\n"), T("\";tag="), T(";;;;;;;;"), T("<<<<>>>>"), T("sip:@:;?"), T("SIP/2.0 999999 x\r\n"), T("m=audio 99999 RTP/AVP 0\r\n"),
};
/* Other protocols, and heads of HEP without a body. */
static const Text PLAIN[] = {
    T("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), T("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), T("OPTIONS sip:x SIP/2.0\r\n\r\n"),
    T("\x02\x10\x02\x03\x13\xc4\x13\xc4\x7f\x00\x00\x01\x7f\x00\x00\x01"), T("\x01\x10\x02\x11\x13\xc4\x13\xc4\x7f\x00\x00\x01\x7f\x00\x00\x01"),
    T("HEP3"), T("HEP3\x00\x06"), T("HEP3\xff\xff"), T("EEP3\x00\x0c\x00\x00\x00\x0f\x00\x06"), T("\r\n\r\n"), T("{\"a\":"),
};

static uint64_t counts[M_N];
static size_t mutate(uint8_t *out) {
    const Rec *r = &recs[below(nrecs)];
    size_t n = r->n, at[64];
    memcpy(out, r->p, n);
    int x = (int)below(1000), kind = 0;
    while (kind < M_N - 1 && x >= MIX[kind]) x -= MIX[kind++];
    counts[kind]++;
    int have = chunks(out, n, at, 64);
    size_t o = have ? at[below((size_t)have)] : 0, len = have ? get16(out + o + 4) : 0;
    if (o + len > n) len = n - o;
    switch (kind) {
    case M_BITS:
        for (size_t i = 1 + below(8); i && n; i--) out[below(rnd() & 1 && n > 60 ? 60 : n)] ^= (uint8_t)(1u << below(8));
        break;
    case M_CUT: n = below(n + 1); break;
    case M_CHUNK_LENGTH: if (have) put16(out + o + 4, wild16()); break;
    case M_LENGTH: if (n >= 6) put16(out + 4, rnd() & 1 ? wild16() : (unsigned)(n + below(9) - 4)); break;
    case M_CHUNK_KIND:
        if (have) { if (rnd() & 1) put16(out + o, wild16()); else put16(out + o + 2, (unsigned)below(64)); }
        break;
    case M_CHUNK_LOST:
        if (have) { memmove(out + o, out + o + len, n - o - len); n -= len; put16(out + 4, (unsigned)n); }
        break;
    case M_CHUNK_ADDED: {
        size_t more = 6 + below(64);
        if (have && n + more <= MAXPKT) {
            memmove(out + o + more, out + o, n - o);
            noise(out + o, more);
            put16(out + o, rnd() & 1 ? 0 : (unsigned)(rnd() & 0xffff));
            put16(out + o + 2, (unsigned)below(40));
            put16(out + o + 4, (unsigned)more);
            n += more;
            put16(out + 4, (unsigned)n);
        }
        break; }
    case M_VALUE: /* addresses, ports, times, kinds: all bits of a chunk's value */
        if (have && len > 6) { if (rnd() & 1) noise(out + o + 6, len - 6); else memset(out + o + 6, rnd() & 1 ? 0xff : 0, len - 6); }
        break;
    case M_SPLICE: {
        const Rec *other = &recs[below(nrecs)];
        size_t keep = below(n + 1), from = below(other->n + 1), more = other->n - from;
        if (keep + more > MAXPKT) more = MAXPKT - keep;
        memcpy(out + keep, other->p + from, more);
        n = keep + more;
        break; }
    case M_TEXT:
        for (size_t i = 1 + below(4); i; i--) {
            const Text *text = &TEXTS[below(sizeof TEXTS / sizeof *TEXTS)];
            size_t where = below(n + 1);
            if (where + text->n <= n) memcpy(out + where, text->p, text->n);
        }
        break;
    case M_PLAIN: {
        const Text *head = &PLAIN[below(sizeof PLAIN / sizeof *PLAIN)];
        memcpy(out, head->p, head->n);
        n = head->n + below(40);
        noise(out + head->n, n - head->n);
        break; }
    case M_NOISE: n = below(1500); noise(out, n); break;
    case M_HUGE: { /* the head of a packet, and text for ever; half of them say so */
        size_t big = 20000 + below(MAXPKT - 20000);
        for (size_t i = n; i < big; i++) out[i] = (uint8_t)('a' + i % 26);
        if (rnd() & 1) put16(out + 4, (unsigned)(big & 0xffff));
        if (have && rnd() & 1) put16(out + at[have - 1] + 4, (unsigned)((big - at[have - 1]) & 0xffff));
        n = big;
        break; }
    case M_EMPTY: n = below(3); break;
    default: break;
    }
    return n;
}

/* ------------------------------------------------------------------ sending */
int main(int argc, char **argv) {
    const char *corpus = NULL, *host = "127.0.0.1";
    int port = 9060;
    uint64_t count = 100000;
    double rate = 0;
    static const struct option L[] = { { "target", 1, 0, 't' }, { "corpus", 1, 0, 'f' }, { "count", 1, 0, 'c' }, { "rate", 1, 0, 'r' }, { "seed", 1, 0, 's' }, { 0, 0, 0, 0 } };
    for (int o; (o = getopt_long(argc, argv, "t:f:c:r:s:", L, NULL)) != -1;) switch (o) {
        case 't': {
            char *colon = strrchr(optarg, ':');
            if (!colon) die("target needs HOST:PORT");
            *colon = 0;
            host = optarg;
            port = atoi(colon + 1);
            break; }
        case 'f': corpus = optarg; break;
        case 'c': count = strtoull(optarg, NULL, 10); break;
        case 'r': rate = atof(optarg); break;
        case 's': state = strtoull(optarg, NULL, 10); break;
        default: return 2;
    }
    if (!corpus) die("--corpus FILE is needed");
    load(corpus);
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    if (inet_pton(AF_INET, host, &to.sin_addr) != 1 || ntohl(to.sin_addr.s_addr) >> 24 != 127) die("target must be in 127.0.0.0/8");
    int fd = socket(AF_INET, SOCK_DGRAM, 0), room = 4 << 20;
    if (fd < 0) die("socket: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect: %s", strerror(errno));
    uint8_t *space = malloc((size_t)BATCH * 65536);
    if (!space) die("no memory");
    struct mmsghdr mm[BATCH] = { 0 };
    struct iovec iov[BATCH];
    uint64_t sent = 0, bytes = 0, refused = 0;
    double began = mono();
    while (sent < count) {
        int n = count - sent < BATCH ? (int)(count - sent) : BATCH;
        for (int i = 0; i < n; i++) {
            uint8_t *p = space + (size_t)i * 65536;
            iov[i] = (struct iovec){ p, mutate(p) };
            mm[i].msg_hdr.msg_iov = &iov[i];
            mm[i].msg_hdr.msg_iovlen = 1;
            bytes += iov[i].iov_len;
        }
        for (int o = 0; o < n;) {
            int r = sendmmsg(fd, mm + o, (unsigned)(n - o), 0);
            if (r >= 0) { o += r; continue; }
            if (errno == ECONNREFUSED) refused++; /* of one before; this one was not sent */
            else if (errno == EAGAIN || errno == ENOBUFS) usleep(50);
            else if (errno != EINTR) die("sendmmsg: %s", strerror(errno));
        }
        sent += (uint64_t)n;
        if (rate > 0) {
            double left = began + (double)sent / rate - mono();
            if (left > 1e-4) {
                struct timespec t = { (time_t)left, (long)((left - (double)(time_t)left) * 1e9) };
                nanosleep(&t, NULL);
            } else if (left < -0.5) began -= left; /* it was held: no burst to catch up */
        }
    }
    double took = mono() - began;
    printf("{\"sent\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"seconds\":%.3f,\"refused\":%" PRIu64 ",\"kinds\":{", sent, bytes, took, refused);
    for (int k = 0; k < M_N; k++) printf("%s\"%s\":%" PRIu64, k ? "," : "", NAMES[k], counts[k]);
    puts("}}");
    for (size_t i = 0; i < nrecs; i++) free(recs[i].p);
    free(recs);
    free(space);
    close(fd);
    return 0;
}
