/* Dense weight -> SparseMatrix, in two passes: `plan` counts and lays out, `fill` writes the entries. */

#include <stddef.h>
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

/* w: the dense weight, entry (r, k) at w[r * row_stride + k * col_stride].
   Scratch: count [blocks * rows], work [rows]. Results: first_row, first_step [ceil(rows / 4) + 1], length, order (see
   SparseMatrix). Returns the number of chunks. */
int64_t autosparse_plan(const float *w, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols, int threads,
                        uint16_t *count, int64_t *work, int64_t *first_row, int64_t *first_step, uint16_t *length,
                        uint8_t *order)
{
    const int64_t blocks = ceil_div(cols, BLOCK);
    #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < rows; r++) {
        work[r] = 16;   /* what a row costs beside its entries */
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t end = (b + 1) * BLOCK < cols ? (b + 1) * BLOCK : cols;
            int n = 0;
            for (int64_t k = b * BLOCK; k < end; k++) n += w[r * row_stride + k * col_stride] != 0;
            count[b * rows + r] = (uint16_t)n;
            work[r] += n;
        }
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

/* Write value and column of a planned matrix; both hold zeros before. */
void autosparse_fill(const SparseMatrix *m, const float *w, int64_t row_stride, int64_t col_stride, int threads)
{
    const int64_t blocks = ceil_div(m->cols, BLOCK);
    #pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t c = 0; c < m->chunks; c++) {
        float *value = (float *)m->value + m->first_step[c] * SLICE;
        uint8_t *column = (uint8_t *)m->column + m->first_step[c] * SLICE;
        const int64_t first = m->first_row[c], slices = ceil_div(m->first_row[c + 1] - first, SLICE);
        for (int64_t i = 0; i < blocks * slices; i++) {
            const int64_t slice = first / SLICE * blocks + i, k0 = i / slices * BLOCK;
            const int64_t width = m->cols - k0 < BLOCK ? m->cols - k0 : BLOCK;
            for (int lane = 0; lane < SLICE; lane++) {
                const int64_t r = first + m->order[slice * SLICE + lane];
                if (r >= m->first_row[c + 1]) continue;
                const float *row = w + r * row_stride + k0 * col_stride;
                int64_t at = lane;
                for (int64_t k = 0; k < width; k++) {
                    const float v = row[k * col_stride];
                    if (v == 0) continue;
                    value[at] = v;
                    column[at] = (uint8_t)k;
                    at += SLICE;
                }
            }
            value += m->length[slice] * SLICE;
            column += m->length[slice] * SLICE;
        }
    }
}
