/* Dense weight -> SparseMatrix, in two passes: `plan` counts and lays out, `fill` writes the entries. */

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "sparse_matrix.h"

/* Rows of each block with their number of non-zeros, most first: counting sort, stable. */
static void sort_rows(const uint16_t *count, int rows, uint8_t *order)
{
    int place[BLOCK + 2] = {0};
    for (int r = 0; r < rows; r++) place[BLOCK - count[r] + 1]++;
    for (int i = 1; i <= BLOCK; i++) place[i] += place[i - 1];
    for (int r = 0; r < rows; r++) order[place[BLOCK - count[r]]++] = (uint8_t)r;
}

/* Cut the rows into chunks of about equal work, at most CHUNK rows each. Returns their number. */
static int64_t cut_rows(const int64_t *work, int64_t rows, int64_t *first_row)
{
    int64_t total = 0, done = 0, chunks = 0;
    for (int64_t r = 0; r < rows; r++) total += work[r];
    int64_t usual = rows / 8;   /* enough chunks for eight threads, ... */
    usual = usual < 64 ? 64 : usual > CHUNK ? CHUNK : usual;   /* ... but not so short that they sort badly */
    const int64_t wanted = ceil_div(rows, usual);
    first_row[0] = 0;
    for (int64_t r = 0; r < rows;) {
        const int64_t end = r + SLICE < rows ? r + SLICE : rows;
        for (; r < end; r++) done += work[r];
        if (r == rows || r - first_row[chunks] == CHUNK || done * wanted >= total * (chunks + 1))
            first_row[++chunks] = r;
    }
    return chunks;
}

/* The number of non-zeros in each row of one block of columns. The inner loop runs along the memory. */
static void count_block(const float *w, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t width,
                        uint16_t *count)
{
    if (col_stride == 1) {
        for (int64_t r = 0; r < rows; r++, w += row_stride) {
            int n = 0;
            for (int64_t k = 0; k < width; k++) n += w[k] != 0;
            count[r] = (uint16_t)n;
        }
        return;
    }
    memset(count, 0, rows * sizeof *count);
    for (int64_t k = 0; k < width; k++, w += col_stride) {
        if (row_stride == 1)
            for (int64_t r = 0; r < rows; r++) count[r] += w[r] != 0;
        else
            for (int64_t r = 0; r < rows; r++) count[r] += w[r * row_stride] != 0;
    }
}

/* Rows of a chunk's block one after the other: copy [rows][BLOCK]. */
static void gather_block(const float *w, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t width,
                         float *copy)
{
    int64_t r = 0;
    for (; r + 16 <= rows; r += 16)   /* one cache line of a transposed weight at a time */
        for (int64_t k = 0; k < width; k++)
            for (int64_t i = r; i < r + 16; i++) copy[i * BLOCK + k] = w[i * row_stride + k * col_stride];
    for (; r < rows; r++)
        for (int64_t k = 0; k < width; k++) copy[r * BLOCK + k] = w[r * row_stride + k * col_stride];
}

/* w: the dense weight, entry (r, k) at w[r * row_stride + k * col_stride].
   Scratch: count [blocks * rows], work [rows]. Results: first_row, first_step [ceil(rows / 4) + 1], length, order (see
   SparseMatrix). Returns the number of chunks. */
int64_t autosparse_plan(const float *w, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols, int threads,
                        uint16_t *count, int64_t *work, int64_t *first_row, int64_t *first_step, uint16_t *length,
                        uint8_t *order)
{
    const int64_t blocks = ceil_div(cols, BLOCK);
    #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t k0 = b * BLOCK, width = cols - k0 < BLOCK ? cols - k0 : BLOCK;
        count_block(w + k0 * col_stride, row_stride, col_stride, rows, width, count + b * rows);
    }
    for (int64_t r = 0; r < rows; r++) {
        work[r] = 16;   /* what a row costs beside its entries */
        for (int64_t b = 0; b < blocks; b++) work[r] += count[b * rows + r];
    }
    const int64_t chunks = cut_rows(work, rows, first_row);
    int64_t steps = 0;
    for (int64_t c = 0; c < chunks; c++) {
        first_step[c] = steps;
        const int64_t first = first_row[c];
        const int n = (int)(first_row[c + 1] - first), slices = (int)ceil_div(n, SLICE);
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t slice = first / SLICE * blocks + b * slices;
            uint8_t *o = order + slice * SLICE;
            sort_rows(count + b * rows + first, n, o);
            for (int r = n; r < slices * SLICE; r++) o[r] = (uint8_t)r;   /* rows that do not exist: all padding */
            for (int s = 0; s < slices; s++) steps += length[slice + s] = count[b * rows + first + o[s * SLICE]];
        }
    }
    first_step[chunks] = steps;
    return chunks;
}

/* The non-zeros of a row's block and their columns, in order; returns their number. Without a branch for each weight,
   which no processor could predict: each is written, and the next one over it if it is 0. */
static int compress(const float *row, int64_t width, float *value, uint8_t *column)
{
    int n = 0;
    for (int64_t k = 0; k < width; k++) {
        value[n] = row[k];
        column[n] = (uint8_t)k;
        n += row[k] != 0;
    }
    return n;
}

/* The nearest bfloat16, ties to even; NaN stays NaN. */
static uint16_t to_half(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Write value or half, and column, of a planned matrix; they hold zeros before. Returns 0, or -1 for want of memory. */
int autosparse_fill(const SparseMatrix *m, const float *w, int64_t row_stride, int64_t col_stride, int threads)
{
    const int64_t blocks = ceil_div(m->cols, BLOCK);
    int failed = 0;
    #pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(| : failed) if (threads > 1)
    for (int64_t c = 0; c < m->chunks; c++) {
        int64_t entry = m->first_step[c] * SLICE;
        float *value = (float *)m->value;
        uint16_t *half = (uint16_t *)m->half;
        uint8_t *column = (uint8_t *)m->column;
        const int64_t first = m->first_row[c], rows = m->first_row[c + 1] - first, slices = ceil_div(rows, SLICE);
        float *copy = col_stride == 1 ? NULL : malloc(rows * BLOCK * sizeof(float));
        if (col_stride != 1 && !copy) {
            failed = 1;
            continue;
        }
        for (int64_t i = 0; i < blocks * slices; i++) {
            const int64_t slice = first / SLICE * blocks + i, k0 = i / slices * BLOCK;
            const int64_t width = m->cols - k0 < BLOCK ? m->cols - k0 : BLOCK;
            const float *block = w + first * row_stride + k0 * col_stride;
            if (copy && i % slices == 0) gather_block(block, row_stride, col_stride, rows, width, copy);
            for (int lane = 0; lane < SLICE; lane++) {
                const int64_t r = m->order[slice * SLICE + lane];
                if (r >= rows) continue;
                float v[BLOCK + 1];
                uint8_t k[BLOCK + 1];
                const int n = compress(copy ? copy + r * BLOCK : block + r * row_stride, width, v, k);
                for (int j = 0; j < n; j++) {
                    if (half) half[entry + j * SLICE + lane] = to_half(v[j]);
                    else value[entry + j * SLICE + lane] = v[j];
                    column[entry + j * SLICE + lane] = k[j];
                }
            }
            entry += m->length[slice] * SLICE;
        }
        free(copy);
    }
    return failed ? -1 : 0;
}
