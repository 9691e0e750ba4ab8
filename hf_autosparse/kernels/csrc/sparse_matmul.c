/* Y = X W^T + bias for a SparseMatrix W, in float32. Compiled once per instruction set; ISA is its name.

   Threads share out tiles of tokens or chunks of rows. Every sum is one thread's, in an order that depends on the
   weight and on the number of tokens only: results are the same to the bit for any number of threads. */

#include <stdlib.h>
#include <string.h>

#include "names.h"
#include "pixel_tile.h"
#include "sparse_matrix.h"
#include "token_tile.h"
#include "vectors.h"

#ifdef _OPENMP
#include <omp.h>
#endif

typedef struct {
    const char *value;   /* float or bfloat16 */
    const uint8_t *column;
} Entries;

/* Four columns by one load: taken apart in a register, because loads are what runs out first. */
INLINE uint32_t four_columns(const uint8_t *column)
{
    uint32_t c;
    memcpy(&c, column, sizeof c);
    return c;   /* little-endian: the first column is the lowest byte */
}

/* ---- One token: the four lanes of a vector are the four rows of a slice ---- */

INLINE v4 gather(const float *x, const uint8_t *column)
{
    const uint32_t c = four_columns(column);
    return (v4){x[c & 255], x[c >> 8 & 255], x[c >> 16 & 255], x[c >> 24]};
}

INLINE v4 load_values(int half, const char *value)
{
    return half ? load_half4((const uint16_t *)value) : load4((const float *)value);
}

INLINE Entries any_slices1(int half, const uint16_t *length, const uint8_t *order, int slices, Entries e, const float *x,
                           float *y)
{
    const int step = half ? 2 * SLICE : 4 * SLICE;   /* bytes */
    for (int s = 0; s < slices && length[s]; s++, order += SLICE) {
        v4 a = gather(y, order), b = splat4(0);
        int n = length[s];
        for (; n >= 2; n -= 2, e.value += 2 * step, e.column += 2 * SLICE) {
            a += load_values(half, e.value) * gather(x, e.column);
            b += load_values(half, e.value + step) * gather(x, e.column + SLICE);
        }
        if (n) {
            a += load_values(half, e.value) * gather(x, e.column);
            e.value += step;
            e.column += SLICE;
        }
        a += b;
        UNROLL for (int r = 0; r < SLICE; r++) y[order[r]] = a[r];
    }
    return e;
}

static Entries slices1(int half, const uint16_t *length, const uint8_t *order, int slices, Entries e, const float *x,
                       float *y)
{
    return half ? any_slices1(1, length, order, slices, e, x, y) : any_slices1(0, length, order, slices, e, x, y);
}

/* ---- Several tokens: tiles of three sizes, the largest such that one block of it stays in the L1 cache ---- */

#if defined(__AVX512F__)
#define SMALL 8
#define MIDDLE 16
#define LARGE 32
#elif defined(__AVX2__)
#define SMALL 8
#define MIDDLE 16
#define LARGE 24
#else
#define SMALL 4
#define MIDDLE 8
#define LARGE 16
#endif

#define TOKENS SMALL
#define WIDTH SMALL
#include "sparse_tile.h"

#define TOKENS MIDDLE
#define WIDTH WIDEST
#include "sparse_tile.h"

#define TOKENS LARGE
#define WIDTH WIDEST
#include "sparse_tile.h"

static Entries slices(int tokens, int half, const uint16_t *length, const uint8_t *order, int count, Entries e,
                      const float *x, float *y)
{
    switch (tokens) {
    case 1: return slices1(half, length, order, count, e, x, y);
    case SMALL: return JOIN(slices, SMALL)(half, length, order, count, e, x, y);
    case MIDDLE: return JOIN(slices, MIDDLE)(half, length, order, count, e, x, y);
    default: return JOIN(slices, LARGE)(half, length, order, count, e, x, y);
    }
}

static int tile_for(int64_t tokens)
{
    return tokens > MIDDLE ? LARGE : tokens > SMALL ? MIDDLE : SMALL;
}

/* ---- Between the caller's layout and a tile's (token_tile.h) ---- */

static int all_finite(const float *x, int64_t n)
{
    v4 poison = splat4(0);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) poison += load4(x + i) - load4(x + i);
    for (; i < n; i++) poison[0] += x[i] - x[i];
    return is_clean(poison);
}

static void store_tokens(const float *y, int64_t rows, int tokens, float *Y, int64_t ldy, int left)
{
    int t = 0;
    for (; t + 4 <= left; t += 4) {
        int64_t n = 0;
        for (; n + 4 <= rows; n += 4) {
            v4 r[4];
            UNROLL for (int i = 0; i < 4; i++) r[i] = load4(y + (n + i) * tokens + t);
            transpose(r);
            UNROLL for (int i = 0; i < 4; i++) store4(Y + (t + i) * ldy + n, r[i]);
        }
        for (; n < rows; n++)
            for (int i = 0; i < 4; i++) Y[(t + i) * ldy + n] = y[n * tokens + t + i];
    }
    for (; t < left; t++)
        for (int64_t n = 0; n < rows; n++) Y[t * ldy + n] = y[n * tokens + t];
}

/* ---- The product ---- */

typedef struct {
    const SparseMatrix *m;
    const float *X, *bias;
    float *Y;
    int64_t tokens;         /* or positions of the window */
    const Window *window;   /* NULL: X [tokens][cols], Y [tokens][rows] */
    int64_t pixels;         /* with a window: Y [rows][pixels] */
} Product;

/* Columns of the result for one chunk of rows and one tile. y [rows of the chunk, rounded up to 4][tokens]. */
static void chunk_times_tile(const SparseMatrix *m, int64_t chunk, const float *x, const float *bias, int tokens,
                             float *y)
{
    const int64_t blocks = ceil_div(m->cols, BLOCK), first = m->first_row[chunk];
    const int rows = (int)(m->first_row[chunk + 1] - first), count = (int)ceil_div(rows, SLICE);
    memset(y, 0, count * SLICE * tokens * sizeof(float));
    if (bias && tokens == 1) memcpy(y, bias + first, rows * sizeof(float));
    if (bias && tokens > 1)
        for (int r = 0; r < rows; r++)
            for (int t = 0; t < tokens; t += 4) store4(y + r * tokens + t, splat4(bias[first + r]));
    const int64_t slice = first / SLICE * blocks;
    const int64_t entry = m->first_step[chunk] * SLICE;
    const int half = m->half != NULL;
    Entries e = {half ? (const char *)(m->half + entry) : (const char *)(m->value + entry), m->column + entry};
    for (int64_t b = 0; b < blocks; b++)
        e = slices(tokens, half, m->length + slice + b * count, m->order + (slice + b * count) * SLICE, count, e,
                   x + b * BLOCK * tokens, y);
}

typedef struct {
    int64_t begin, end, stride;
} Range;

/* A share of the work: a range of chunks times a range of tiles. Returns as autosparse_matmul. */
static int work(const Product *p, Range chunks, Range tiles)
{
    const SparseMatrix *m = p->m;
    float y[CHUNK * LARGE] __attribute__((aligned(64)));
    if (tiles.begin >= tiles.end || chunks.begin == chunks.end) return 0;
    if (p->tokens == 1 && !p->window) {
        if (!all_finite(p->X, m->cols)) return 1;
        for (int64_t c = chunks.begin; c < chunks.end; c++) {
            const int64_t first = m->first_row[c];
            chunk_times_tile(m, c, p->X, p->bias, 1, y);
            memcpy(p->Y + first, y, (m->first_row[c + 1] - first) * sizeof(float));
        }
        return 0;
    }
    const int64_t widest = tile_for(p->tokens);
    void *memory;
    if (posix_memalign(&memory, 64, m->cols * widest * sizeof(float))) return -1;
    float *x = memory;
    int status = 0;
    for (int64_t i = tiles.begin; i < tiles.end && !status; i += tiles.stride) {
        const int64_t t = i * widest;
        const int left = (int)(p->tokens - t < widest ? p->tokens - t : widest), tokens = tile_for(left);
        const int clean = p->window ? load_patches(p->X, p->window, t, left, m->cols, tokens, x)
                                    : load_tokens(p->X + t * m->cols, m->cols, left, m->cols, tokens, x);
        status = !clean;
        for (int64_t c = chunks.begin; c < chunks.end && !status; c++) {
            const int64_t first = m->first_row[c], rows = m->first_row[c + 1] - first;
            chunk_times_tile(m, c, x, p->bias, tokens, y);
            if (p->window) store_pixels(y, rows, tokens, p->window, t, left, p->Y + first * p->pixels, p->pixels);
            else store_tokens(y, rows, tokens, p->Y + t * m->rows + first, m->rows, left);
        }
    }
    free(memory);
    return status;
}

/* The first chunk of part i of n, each with about as many steps. */
static int64_t part(const SparseMatrix *m, int i, int n)
{
    const int64_t target = m->first_step[m->chunks] * i / n;
    int64_t c = 0;
    if (i == n) return m->chunks;
    while (c < m->chunks && m->first_step[c] + m->first_step[c + 1] < 2 * target) c++;
    return c;
}

/* X [tokens][cols] and Y [tokens][rows]; with a window, an image X [channels][height][width], Y [rows][pixels], and
   `tokens` is not read. bias: [rows] or NULL.

   Returns 0, or: 1 where an activation is infinite or NaN, with Y in an undefined state: in a dense product such a
   value meets the zeros of W too and makes NaN, so the caller takes that. -1 for want of memory. */
int EXPORT(autosparse_matmul)(const SparseMatrix *m, const float *X, float *Y, int64_t tokens, const float *bias,
                              const Window *window, int threads)
{
    if (window) tokens = positions_of(window);
    const Product p = {m, X, bias, Y, tokens, window, window ? window->out_height * window->out_width : 0};
    const int64_t tiles = ceil_div(tokens, tile_for(tokens));
    const Range all = {0, m->chunks, 1};
#ifdef _OPENMP
    /* Waking a thread costs some microseconds: give each enough to do. */
    const int64_t enough = m->first_step[m->chunks] * tiles / 2048;
    if (threads > enough) threads = (int)enough;
    if (threads > 1) {
        int nonfinite = 0, failed = 0;
        #pragma omp parallel num_threads(threads) reduction(| : nonfinite, failed)
        {
            /* As many tiles as can be are dealt out whole; the rows of the others are shared. */
            const int id = omp_get_thread_num(), n = omp_get_num_threads();
            const int64_t dealt = tiles / n * n;
            int status = work(&p, all, (Range){id, dealt, n});
            if (!status) status = work(&p, (Range){part(m, id, n), part(m, id + 1, n), 1}, (Range){dealt, tiles, 1});
            nonfinite |= status > 0;
            failed |= status < 0;
        }
        return failed ? -1 : nonfinite;
    }
#endif
    (void)threads;
    return work(&p, all, (Range){0, tiles, 1});
}
