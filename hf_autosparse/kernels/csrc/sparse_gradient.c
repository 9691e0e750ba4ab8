/* D = G^T X, the gradient of a weight W in Y = X W^T, where a SparseMatrix of W's shape has entries. Compiled once per
   instruction set; ISA is its name.

   Each entry is the dot product of a column of G and a column of X. Both are transposed once, in tiles of TILE tokens
   that are [features][TILE]. The unit of work is one chunk of rows and one block of columns of the format: for each
   tile the part of G's column stays in registers while the row's entries pass, four dot products at a time. Every
   entry is summed by one thread in the order of the tokens: results are the same to the bit for any number of threads. */

#include <stdlib.h>
#include <string.h>

#include "sparse_matrix.h"
#include "token_tile.h"
#include "vectors.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define EXPORT(name) JOIN(JOIN(name, _), ISA)

#ifndef TILE
#define TILE 64
#endif
#define NV (TILE / WIDEST)
#define VECTOR JOIN(v, WIDEST)
#define V_(name) JOIN(name, WIDEST)

/* sums [4 lanes][ceil(steps, 4)] += the dot products of a slice's entries for one tile.
   g [rows of the chunk][TILE], x [columns of the block][TILE]. */
static void slice_dots(int steps, const uint8_t *order, int rows, const uint8_t *column, const float *g,
                       const float *x, float *sums)
{
    const int padded = (steps + 3) / 4 * 4;
    for (int lane = 0; lane < SLICE; lane++, sums += padded) {
        if (order[lane] >= rows) continue;   /* a row that does not exist */
        VECTOR own[NV];
        UNROLL for (int v = 0; v < NV; v++) own[v] = V_(load)(g + order[lane] * TILE + v * WIDEST);
        const uint8_t *c = column + lane;
        for (int s = 0; s < steps; s += 4, c += 4 * SLICE) {
            const int left = steps - s;
            const float *x0 = x + c[0] * TILE;
            const float *x1 = left > 1 ? x + c[SLICE] * TILE : x0;
            const float *x2 = left > 2 ? x + c[2 * SLICE] * TILE : x0;
            const float *x3 = left > 3 ? x + c[3 * SLICE] * TILE : x0;
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
}

typedef struct {
    const SparseMatrix *m;
    const float *g, *x;   /* [tiles][rows][TILE], [tiles][cols][TILE] */
    float *D;
    int64_t tiles, row_stride, col_stride;
} Gradient;

/* The entries of one chunk and block. sums: scratch for all of them. */
static void unit(const Gradient *p, int64_t chunk, int64_t block, float *sums)
{
    const SparseMatrix *m = p->m;
    const int64_t blocks = ceil_div(m->cols, BLOCK), first = m->first_row[chunk], k0 = block * BLOCK;
    const int rows = (int)(m->first_row[chunk + 1] - first), slices = (int)ceil_div(rows, SLICE);
    const uint16_t *length = m->length + first / SLICE * blocks;
    int64_t begin = m->first_step[chunk], size = 0;
    for (int64_t i = 0; i < block * slices; i++) begin += length[i];
    length += block * slices;
    const uint8_t *order = m->order + (first / SLICE * blocks + block * slices) * SLICE;
    const uint8_t *column = m->column + begin * SLICE;
    const float *value = m->value + begin * SLICE;
    for (int s = 0; s < slices; s++) size += (length[s] + 3) / 4 * 4 * SLICE;
    memset(sums, 0, size * sizeof(float));
    for (int64_t tile = 0; tile < p->tiles; tile++) {
        const float *g = p->g + (tile * m->rows + first) * TILE, *x = p->x + (tile * m->cols + k0) * TILE;
        const uint8_t *c = column;
        float *to = sums;
        for (int s = 0; s < slices && length[s]; s++) {
            slice_dots(length[s], order + s * SLICE, rows, c, g, x, to);
            c += length[s] * SLICE;
            to += (length[s] + 3) / 4 * 4 * SLICE;
        }
    }
    for (int s = 0; s < slices; s++)
        for (int lane = 0; lane < SLICE; lane++) {
            float *row = p->D + (first + order[s * SLICE + lane]) * p->row_stride + k0 * p->col_stride;
            const int n = length[s];
            for (int i = 0; i < n; i++)   /* a value of 0 is padding */
                if (value[i * SLICE + lane] != 0) row[column[i * SLICE + lane] * p->col_stride] = sums[i];
            sums += (n + 3) / 4 * 4;
            if (lane == SLICE - 1) {
                value += n * SLICE;
                column += n * SLICE;
            }
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
        float *sums = malloc((CHUNK * (BLOCK + 4)) * sizeof(float));
        failed |= !sums;
        #pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < units; i++)
            if (sums) unit(&p, i / blocks, i % blocks, sums);
        free(sums);
    }
    free(memory);
    return failed ? -1 : nonfinite;
}
