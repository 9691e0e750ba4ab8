/* Y = X W^T + bias for a BitmaskMatrix W. Compiled once per instruction set; ISA is its name.

   Few tokens: some rows at a time are expanded into registers, each vector multiplied with all tokens. Many: rows
   are expanded into the L1 cache, part by part, and multiplied as a dense product does, with tokens as lanes.

   Threads share the rows. Every sum is one thread's, in an order that depends on the number of tokens only: results are
   the same to the bit for any number of threads. Zeros are multiplied like other weights, so that NaN and infinite
   activations give what a dense product gives. */

#include <stdlib.h>
#include <string.h>

#include "bitmask_matrix.h"
#include "bitmask_tokens.h"
#include "names.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __clang__
#define UNROLL_ROWS _Pragma("unroll")
#else
#define UNROLL_ROWS _Pragma("GCC unroll 12")
#endif

enum { FEW_TOKENS = 8, FEW_STEP = 4 };   /* step: threads get rows in multiples of it */
enum { CHUNK_ROWS = 24, PART = 512 };   /* many tokens: rows stored together; lanes of a row that are expanded at once */
enum { BATCH = 256 };                   /* tokens whose activations are prepared together */

enum { TILE_VECTORS = 4 };              /* of the widest tile of tokens */

typedef struct {
    const BitmaskMatrix *m;
    const void *bias;
    void *Y;
    int op, type;         /* type: of activations, results and bias */
    int64_t lanes;        /* of a token */
    const char *x;        /* prepared: [tokens][lanes], or in tiles of [lanes][tokens of the tile] */
    const float *scale;   /* INT8: of each token */
    const char *empty;    /* a mask of zeros, for rows beyond the last */
} Product;

typedef struct { int64_t begin, end; } Range;
typedef struct { const char *mask, *value; } Row;

INLINE Row row_of(const Product *p, int64_t row)
{
    const BitmaskMatrix *m = p->m;
    if (row >= m->rows) return (Row){p->empty, m->value};
    return (Row){(const char *)(m->mask + row * words_of(m->cols)),
                 (const char *)m->value + m->first[row] * TYPE_BYTES[m->type]};
}

/* sums: floats, or for INT8 integers, of tokens [token, token + count) for rows from `row` on. */
INLINE void put_type(int type, const Product *p, int64_t token, int count, int64_t row, int rows, const int32_t *sums,
                     int stride)
{
    const BitmaskMatrix *m = p->m;
    for (int t = 0; t < count; t++)
        for (int r = 0; r < rows; r++) {
            const int32_t sum = sums[r * stride + t];
            float y;
            if (p->op == INT8) y = (float)(sum - OFFSET * m->sum[row + r]) * (m->scale[row + r] * p->scale[token + t]);
            else memcpy(&y, &sum, sizeof y);
            if (p->bias) y += element(type, p->bias, row + r);
            set_element(type, p->Y, (token + t) * m->rows + row + r, y);
        }
}

static __attribute__((noinline)) void put(const Product *p, int64_t token, int count, int64_t row, int rows,
                                          const int32_t *sums, int stride)
{
    if (rows > p->m->rows - row) rows = (int)(p->m->rows - row);
    if (p->type == FLOAT32) put_type(FLOAT32, p, token, count, row, rows, sums, stride);
    else if (p->type == BFLOAT16) put_type(BFLOAT16, p, token, count, row, rows, sums, stride);
    else put_type(FLOAT16, p, token, count, row, rows, sums, stride);
}

INLINE int32_t sum_of(int op, Vector a)
{
    if (op == INT8) return sum_of_integers(a);
    return (int32_t)bits_of(sum_of_floats(a));
}

/* ---- Few tokens: T is 1, 2, 4 or 8; those beyond `count` are zeros ---- */

/* As many rows at once as registers hold the sums of. */
#if LANES == 16
#define FEW_ROWS(T) ((T) == 8 ? 2 : 4)
#else
#define FEW_ROWS(T) ((T) == 8 ? 1 : (T) == 4 ? 2 : 4)
#endif

INLINE void few_rows(const Product *p, int op, int T, int64_t row, int count)
{
    const int rows = FEW_ROWS(T), step = 4 * GROUP(op) / COLUMNS_OF_LANE(op);   /* bytes of activations under a group */
    const int64_t words = words_of(p->m->cols), stride = p->lanes * 4;
    const char *x = p->x;
    Row w[4];
    Vector a[4][FEW_TOKENS];
    /* Values are fetched two blocks of rows ahead, into the L2 cache: at first use, four short streams would each wait. */
    const int64_t *first = p->m->first + row;
    const int64_t size = TYPE_BYTES[p->m->type], span = row + rows < p->m->rows ? (first[rows] - first[0]) * size : 0;
    const char *ahead = (const char *)p->m->value + first[0] * size + 2 * span;
    UNROLL for (int r = 0; r < rows; r++) {
        w[r] = row_of(p, row + r);
        UNROLL for (int t = 0; t < T; t++) a[r][t] = zeros();
    }
    for (int64_t i = 0; i < words; i++) {
        for (const char *end = ahead + span / words; ahead < end; ahead += 64) __builtin_prefetch(ahead, 0, 2);
        for (int g = 0; g < WORD / GROUP(op); g++, x += step)
            UNROLL for (int r = 0; r < rows; r++) {
                Vector v[2];
                expand(op, &w[r].mask, &w[r].value, v);
                for (int j = 0; j < PER(op); j++)
                    UNROLL for (int t = 0; t < T; t++)
                        a[r][t] = multiply_add(op, a[r][t], v[j], load(x + t * stride + j * 4 * LANES));
            }
    }
    int32_t sums[4][FEW_TOKENS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int t = 0; t < T; t++) sums[r][t] = sum_of(op, a[r][t]);
    put(p, 0, count, row, rows, sums[0], FEW_TOKENS);
}

/* The T that takes `count` tokens. */
static int held_tokens(int count) { return count > 4 ? 8 : count > 2 ? 4 : count; }

#define FEW_OF(op, T)                                                                                                  \
    case T:                                                                                                            \
        for (int64_t row = rows.begin; row < rows.end; row += FEW_ROWS(T)) few_rows(p, op, T, row, count);             \
        break;
#define FEW(op)                                                                                                        \
    static void JOIN(few_, op)(const Product *p, Range rows, int count)                                                \
    {                                                                                                                  \
        switch (held_tokens(count)) { FEW_OF(op, 1) FEW_OF(op, 2) FEW_OF(op, 4) FEW_OF(op, 8) }                        \
    }

#define OPERATIONS(make) make(FLOAT32) make(BFLOAT16) make(FLOAT16) make(INT8) IF_PAIRS(make)
#if HAS_PAIRS
#define IF_PAIRS(make) make(PAIRS)
#else
#define IF_PAIRS(make)
#endif
OPERATIONS(FEW)

#define FEW_CASE(op) case op: JOIN(few_, op)(p, rows, count); break;
static void few(const Product *p, Range rows, int count)
{
    switch (p->op) { OPERATIONS(FEW_CASE) }
}

/* ---- Many tokens: a tile of 1, 2 or 4 vectors of them ---- */

/* The next `lanes` lanes of a row. */
#define PART_OF_ROW(op)                                                                                                \
    static void JOIN(part_, op)(Row *source, int lanes, char *w)                                                       \
    {                                                                                                                  \
        Row from = *source;                                                                                            \
        for (int i = 0; i < lanes; i += PER(op) * LANES, w += PER(op) * sizeof(Vector)) {                              \
            Vector v[2];                                                                                         \
            expand(op, &from.mask, &from.value, v);                                                                    \
            for (int j = 0; j < PER(op); j++) store(w + j * sizeof(Vector), v[j]);                                     \
        }                                                                                                              \
        *source = from;                                                                                                \
    }
OPERATIONS(PART_OF_ROW)

#define PART_CASE(op) case op: JOIN(part_, op)(source, lanes, w); break;
static void part_of_row(int op, Row *source, int lanes, char *w)
{
    switch (op) { OPERATIONS(PART_CASE) }
}

/* sums [rows][vectors] += w [rows][PART] x [lanes][vectors], of which `lanes` are in use. */
INLINE void multiply(int op, int rows, int vectors, const char *w, const char *x, int lanes, Vector *sums)
{
    Vector a[12][4];
    UNROLL_ROWS for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++) a[r][v] = sums[r * vectors + v];
    for (int k = 0; k < lanes; k++, w += 4, x += vectors * sizeof(Vector))
        UNROLL_ROWS for (int r = 0; r < rows; r++) {
            const Vector one = splat(w + r * 4 * PART);
            UNROLL for (int v = 0; v < vectors; v++)
                a[r][v] = multiply_add(op, a[r][v], one, load(x + v * sizeof(Vector)));
        }
    UNROLL_ROWS for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++) sums[r * vectors + v] = a[r][v];
}

/* As many rows at once as registers hold the sums of. */
#if LANES == 16
#define ROWS_AT_ONCE(vectors) ((vectors) == 4 ? 6 : 12)
#else
#define ROWS_AT_ONCE(vectors) ((vectors) == 4 ? 3 : (vectors) == 2 ? 6 : 12)
#endif
#define MULTIPLY(op)                                                                                                   \
    static void JOIN(multiply_, op)(int vectors, const char *w, const char *x, int lanes, Vector *sums)                \
    {                                                                                                                  \
        if (vectors == 1) multiply(op, ROWS_AT_ONCE(1), 1, w, x, lanes, sums);                                         \
        else if (vectors == 2) multiply(op, ROWS_AT_ONCE(2), 2, w, x, lanes, sums);                                    \
        else multiply(op, ROWS_AT_ONCE(4), 4, w, x, lanes, sums);                                                      \
    }
MULTIPLY(FLOAT32)
MULTIPLY(INT8)
IF_PAIRS(MULTIPLY)

static void multiply_part(int op, int vectors, const char *w, const char *x, int lanes, Vector *sums)
{
    if (op == INT8) multiply_INT8(vectors, w, x, lanes, sums);
#if HAS_PAIRS
    else if (op == PAIRS) multiply_PAIRS(vectors, w, x, lanes, sums);
#endif
    else multiply_FLOAT32(vectors, w, x, lanes, sums);
}

/* CHUNK_ROWS rows times a tile x [lanes][vectors], whose first token has the number `token`. */
static void many_rows(const Product *p, int vectors, const char *x, int64_t row, int64_t token, int count)
{
    const int at_once = ROWS_AT_ONCE(vectors);
    char w[12 * PART * 4] __attribute__((aligned(64)));
    Vector sums[CHUNK_ROWS * TILE_VECTORS];
    for (int first = 0; first < CHUNK_ROWS; first += at_once) {
        Row source[12];
        for (int r = 0; r < at_once; r++) source[r] = row_of(p, row + first + r);
        for (int i = 0; i < at_once * vectors; i++) sums[first * vectors + i] = zeros();
        for (int64_t k = 0; k < p->lanes; k += PART) {
            const int lanes = (int)(p->lanes - k < PART ? p->lanes - k : PART);
            for (int r = 0; r < at_once; r++) part_of_row(p->op, source + r, lanes, w + r * PART * 4);
            multiply_part(p->op, vectors, w, x + k * vectors * sizeof(Vector), lanes, sums + first * vectors);
        }
    }
    put(p, token, count, row, CHUNK_ROWS, (const int32_t *)sums, vectors * LANES);
}

/* ---- Threads ---- */

/* Row i of the cut into n parts, a multiple of `step`, each part with about as many bytes. */
static int64_t cut(const BitmaskMatrix *m, int i, int n, int step)
{
    if (i == 0) return 0;
    if (i == n) return m->rows;
    const int64_t mask = words_of(m->cols) * 8, value = TYPE_BYTES[m->type];
    const int64_t target = (m->rows * mask + m->first[m->rows] * value) / n * i;
    int64_t low = 0, high = (m->rows + step - 1) / step;
    while (low < high) {
        const int64_t middle = (low + high) / 2, row = middle * step;
        if (row * mask + m->first[row] * value < target) low = middle + 1;
        else high = middle;
    }
    return low * step < m->rows ? low * step : m->rows;
}

/* A tile has 1, 2 or 4 vectors of tokens: how many tokens the next one takes of those that are left. */
static int tile_of(int64_t left)
{
    const int64_t most = (left > 3 * LANES ? 4 : left > LANES ? 2 : 1) * LANES;
    return (int)(left < most ? left : most);
}

static int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* X [count][cols] -> tile [lanes][whole vectors of tokens]. Returns whether all activations could be taken. */
static int prepare_tile(const Product *p, const char *X, int count, float *scratch, float *rows, char *tile, float *scale)
{
    const int64_t cols = p->m->cols;
    const int width = (count + LANES - 1) / LANES * LANES;
    int clean = 1;
    for (int t = 0; t < width; t += 4) {
        for (int i = 0; i < 4; i++) {
            float *lanes = rows + i * p->lanes;
            if (t + i >= count) {
                memset(lanes, 0, p->lanes * 4);
                continue;
            }
            scale[t + i] = load_token(p->op, p->type, X + (t + i) * cols * TYPE_BYTES[p->type], cols, scratch, lanes);
            clean &= scale[t + i] == scale[t + i];
        }
        transpose_tokens(rows, p->lanes, (float *)tile + t, width);
    }
    return clean;
}

static int few_product(Product p, const char *X, int count, int threads)
{
    const int64_t cols = p.m->cols, padded = words_of(cols) * WORD;
    const int held = held_tokens(count);
    const int64_t x_bytes = held * p.lanes * 4;
    float scale[FEW_TOKENS];
    char *memory;
    if (posix_memalign((void **)&memory, 64, x_bytes + padded * 4 + padded / 8)) return -1;
    float *scratch = (float *)(memory + x_bytes);
    memset(scratch + padded, 0, padded / 8);
    p.x = memory, p.scale = scale, p.empty = (const char *)(scratch + padded);
    int clean = 1;
    for (int t = 0; t < held; t++) {
        char *lanes = memory + t * p.lanes * 4;
        if (t >= count) {
            memset(lanes, 0, p.lanes * 4);
            continue;
        }
        scale[t] = load_token(p.op, p.type, X + t * cols * TYPE_BYTES[p.type], cols, scratch, lanes);
        clean &= scale[t] == scale[t];
    }
    if (clean) {
#ifdef _OPENMP
        #pragma omp parallel num_threads(threads) if (threads > 1)
        {
            const int id = omp_get_thread_num(), n = omp_get_num_threads();
            few(&p, (Range){cut(p.m, id, n, FEW_STEP), cut(p.m, id + 1, n, FEW_STEP)}, count);
        }
#else
        few(&p, (Range){0, p.m->rows}, count);
#endif
    }
    free(memory);
    return !clean;
}

/* Thread `id` of n: prepare tiles of a batch, wait for the others, multiply some rows with all of them. */
static int many_work(Product p, const char *X, int64_t tokens, char *x, float *scale, float *own, int id, int n)
{
    const int64_t cols = p.m->cols, padded = words_of(cols) * WORD, size = TYPE_BYTES[p.type];
    const Range rows = {cut(p.m, id, n, CHUNK_ROWS), cut(p.m, id + 1, n, CHUNK_ROWS)};
    int clean = 1;
    p.scale = scale;
    for (; tokens > 0; tokens -= BATCH, X += BATCH * cols * size, p.Y = (char *)p.Y + BATCH * p.m->rows * size) {
        const int64_t here = tokens < BATCH ? tokens : BATCH;
        int64_t t = 0;
        for (int i = 0; t < here; t += tile_of(here - t), i++)
            if (i % n == id)
                clean &= prepare_tile(&p, X + t * cols * size, tile_of(here - t), own, own + padded,
                                      x + t * p.lanes * 4, scale + t);
#ifdef _OPENMP
        #pragma omp barrier
#endif
        for (t = 0; t < here; t += tile_of(here - t))
            for (int64_t row = rows.begin; row < rows.end; row += CHUNK_ROWS)
                many_rows(&p, (tile_of(here - t) + LANES - 1) / LANES, x + t * p.lanes * 4, row, t, tile_of(here - t));
#ifdef _OPENMP
        #pragma omp barrier
#endif
    }
    return clean;
}

static int many_product(Product p, const char *X, int64_t tokens, int threads)
{
    const int64_t batch = tokens < BATCH ? tokens : BATCH, padded = words_of(p.m->cols) * WORD;
    const int64_t x_bytes = (batch + LANES - 1) / LANES * LANES * p.lanes * 4, empty_bytes = whole_lines(padded / 8);
    const int64_t own = padded + 4 * p.lanes;   /* floats of each thread */
    char *memory;
    if (posix_memalign((void **)&memory, 64, x_bytes + empty_bytes + BATCH * 4 + threads * own * 4)) return -1;
    memset(memory + x_bytes, 0, empty_bytes);
    p.empty = memory + x_bytes;
    float *scale = (float *)(memory + x_bytes + empty_bytes), *floats = scale + BATCH;
    int clean = 1;
#ifdef _OPENMP
    #pragma omp parallel num_threads(threads) if (threads > 1) reduction(& : clean)
    {
        const int id = omp_get_thread_num();
        clean = many_work(p, X, tokens, memory, scale, floats + id * own, id, omp_get_num_threads());
    }
#else
    clean = many_work(p, X, tokens, memory, scale, floats, 0, 1);
#endif
    free(memory);
    return !clean;
}

/* X [tokens][cols], Y [tokens][rows] and bias ([rows] or NULL) of one type: FLOAT32, BFLOAT16 or FLOAT16.

   Returns 0, or: 1 where values are INT8 and an activation is infinite or NaN, with Y in an undefined state. -1 for want
   of memory. */
int EXPORT(autosparse_bitmask_matmul)(const BitmaskMatrix *m, int type, const void *X, void *Y, int64_t tokens,
                                      const void *bias, int threads)
{
    const int op = HAS_PAIRS && m->type == BFLOAT16 && type == BFLOAT16 ? PAIRS : (int)m->type;
    const int64_t lanes = words_of(m->cols) * WORD / COLUMNS_OF_LANE(op);
    const Product p = {.m = m, .bias = bias, .Y = Y, .op = op, .type = type, .lanes = lanes};
    /* Waking a thread costs some microseconds: give each enough to do. */
    const int64_t enough = m->rows * m->cols / 65536 * (tokens < 16 ? 1 : tokens / 16);
    if (threads > enough) threads = enough ? (int)enough : 1;
    return tokens <= FEW_TOKENS ? few_product(p, X, (int)tokens, threads) : many_product(p, X, tokens, threads);
}
