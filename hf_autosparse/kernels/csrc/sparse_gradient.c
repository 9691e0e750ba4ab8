/* D = G^T X, the gradient of a weight W in Y = X W^T, where a SparseMatrix of W's shape has entries. Compiled once per
   instruction set; ISA is its name.

   Each entry is the dot product of a column of G and a column of X. Both are transposed once, in tiles of TILE tokens
   that are [features][TILE]. The unit of work is one chunk of rows and one block of columns of the format: for each
   tile the part of G's column stays in registers while the row's entries pass, four dot products at a time. Every
   entry is summed by one thread in the order of the tokens: results are the same to the bit for any number of threads. */

#include <stdlib.h>
#include <string.h>

#include "names.h"
#include "sparse_matrix.h"
#include "token_tile.h"
#include "vectors.h"

#define TILE (8 * WIDEST < 64 ? 8 * WIDEST : 64)
#define NV (TILE / WIDEST)
#define VECTOR JOIN(v, WIDEST)
#define V_(name) JOIN(name, WIDEST)

/* sums [steps] += the dot products of one row's entries for one tile. steps: a multiple of 4. g [TILE];
   x [columns of the block][TILE]; at [steps]: where the entries' columns begin in x. */
INLINE void row_dots(int steps, const uint16_t *at, const float *g, const float *x, float *sums)
{
    VECTOR own[NV];
    UNROLL for (int v = 0; v < NV; v++) own[v] = V_(load)(g + v * WIDEST);
    for (int s = 0; s < steps; s += 4) {
        const float *x0 = x + at[s], *x1 = x + at[s + 1], *x2 = x + at[s + 2], *x3 = x + at[s + 3];
        VECTOR a0 = own[0] * V_(load)(x0), a1 = own[0] * V_(load)(x1);
        VECTOR a2 = own[0] * V_(load)(x2), a3 = own[0] * V_(load)(x3);
        UNROLL for (int v = 1; v < NV; v++) {
            a0 += own[v] * V_(load)(x0 + v * WIDEST);
            a1 += own[v] * V_(load)(x1 + v * WIDEST);
            a2 += own[v] * V_(load)(x2 + v * WIDEST);
            a3 += own[v] * V_(load)(x3 + v * WIDEST);
        }
        store4(sums + s, load4(sums + s) + V_(sums)(a0, a1, a2, a3));
    }
}

/* Ask for one feature of a tile, near (3) or less near (2); an address that does not exist does no harm. */
#define fetch(feature, level)                                                                                          \
    do {                                                                                                               \
        for (int b_ = 0; b_ < TILE; b_ += 16) __builtin_prefetch((feature) + b_, 0, level);                            \
    } while (0)

typedef struct {
    const SparseMatrix *m;
    const float *g, *x;   /* [tiles][rows][TILE], [tiles][cols][TILE] */
    float *D;
    int64_t tiles, row_stride, col_stride;
} Gradient;

/* A thread's scratch for one unit, its entries row by row, each row filled up to a multiple of 4. */
typedef struct {
    float sums[CHUNK * BLOCK];
    uint16_t at[CHUNK * BLOCK];
} Scratch;

static int fill_up(int steps) { return (steps + 3) / 4 * 4; }

/* The entries of one chunk and block. */
static void unit(const Gradient *p, int64_t chunk, int64_t block, Scratch *scratch)
{
    const SparseMatrix *m = p->m;
    const int64_t blocks = ceil_div(m->cols, BLOCK), first = m->first_row[chunk], k0 = block * BLOCK;
    const int rows = (int)(m->first_row[chunk + 1] - first), slices = (int)ceil_div(rows, SLICE);
    const uint16_t *length = m->length + first / SLICE * blocks;
    int64_t begin = m->first_step[chunk];
    for (int64_t i = 0; i < block * slices; i++) begin += length[i];
    length += block * slices;
    const uint8_t *order = m->order + (first / SLICE * blocks + block * slices) * SLICE;
    const uint8_t *column = m->column + begin * SLICE;
    const float *value = m->value + begin * SLICE;

    int64_t size = 0;
    const uint8_t *c = column;
    for (int s = 0; s < slices; c += length[s++] * SLICE)
        for (int lane = 0; lane < SLICE; lane++, size += fill_up(length[s])) {
            uint16_t *at = scratch->at + size;
            for (int i = 0; i < length[s]; i++) at[i] = (uint16_t)(c[i * SLICE + lane] * TILE);
            for (int i = length[s]; i < fill_up(length[s]); i++) at[i] = 0;
        }
    const int share = (int)ceil_div(BLOCK, slices * SLICE);   /* of the next tile's columns, for each row */
    memset(scratch->sums, 0, size * sizeof(float));
    for (int64_t tile = 0; tile < p->tiles; tile++) {
        const float *g = p->g + (tile * m->rows + first) * TILE, *x = p->x + (tile * m->cols + k0) * TILE;
        int64_t i = 0;
        for (int n = 0; n < slices * SLICE && length[n / SLICE]; n++) {
            const int steps = fill_up(length[n / SLICE]);
            /* The rows come in no order that the processor could foresee, nor does the next tile. */
            fetch(g + order[n + 1 < slices * SLICE ? n + 1 : n] * TILE, 3);
            fetch(g + (m->rows + n) * TILE, 2);
            for (int j = n * share; j < (n + 1) * share; j++) fetch(x + (m->cols + j) * TILE, 2);
            if (order[n] < rows) row_dots(steps, scratch->at + i, g + order[n] * TILE, x, scratch->sums + i);
            i += steps;
        }
    }
    const float *sums = scratch->sums;
    for (int s = 0; s < slices; s++) {
        const int n = length[s];
        for (int lane = 0; lane < SLICE; lane++, sums += fill_up(n)) {
            const int64_t r = first + order[s * SLICE + lane];
            for (int i = 0; i < n; i++) {
                if (value[i * SLICE + lane] == 0) continue;   /* padding */
                p->D[r * p->row_stride + (k0 + column[i * SLICE + lane]) * p->col_stride] = sums[i];
            }
        }
        value += n * SLICE;
        column += n * SLICE;
    }
}

/* G [tokens][rows], X [tokens][cols]. D: entry (r, k) at D[r * row_stride + k * col_stride]; entries that the matrix
   does not have are not written. The matrix's values matter only by not being 0.

   Returns 0, or: 1 where G or X has an infinity or NaN, with D in an undefined state: the caller takes the dense
   product. -1 for want of memory. */
int EXPORT(autosparse_gradient)(const SparseMatrix *m, const float *G, const float *X, float *D, int64_t row_stride,
                                int64_t col_stride, int64_t tokens, int threads)
{
    const int64_t tiles = ceil_div(tokens, TILE), blocks = ceil_div(m->cols, BLOCK), units = m->chunks * blocks;
    void *memory;
    if (posix_memalign(&memory, 64, tiles * TILE * (m->rows + m->cols) * sizeof(float))) return -1;
    float *g = memory, *x = g + tiles * TILE * m->rows;
    const Gradient p = {m, g, x, D, tiles, row_stride, col_stride};
    int nonfinite = 0, failed = 0;
    #pragma omp parallel num_threads(threads) reduction(| : nonfinite, failed) if (threads > 1)
    {
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < tiles; i++) {
            const int64_t t = i * TILE;
            const int left = (int)(tokens - t < TILE ? tokens - t : TILE);
            nonfinite |= !load_tokens(G + t * m->rows, m->rows, left, m->rows, TILE, g + t * m->rows);
            nonfinite |= !load_tokens(X + t * m->cols, m->cols, left, m->cols, TILE, x + t * m->cols);
        }
        Scratch *scratch = malloc(sizeof *scratch);
        failed |= !scratch;
        #pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < units; i++)
            if (scratch) unit(&p, i / blocks, i % blocks, scratch);
        free(scratch);
    }
    free(memory);
    return failed ? -1 : nonfinite;
}
