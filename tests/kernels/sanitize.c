/* Runs every kernel on odd shapes, in buffers of exactly the right size, and compares with plain loops.
   Built with sanitizers by sanitize.sh. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitmask_matrix.h"
#include "float_types.h"
#include "names.h"
#include "pixel_tile.h"
#include "sparse_matrix.h"

#define CALL(name) JOIN(JOIN(autosparse_, name), JOIN(_, ISA))

int64_t autosparse_plan(const float *, int64_t, int64_t, int64_t, int64_t, int, uint16_t *, int64_t *, int64_t *,
                        int64_t *, uint16_t *, uint8_t *);
int autosparse_fill(const SparseMatrix *, const float *, int64_t, int64_t, int);
int CALL(matmul)(const SparseMatrix *, const float *, float *, int64_t, const float *, const Window *, int);
int CALL(gradient)(const SparseMatrix *, const float *, const float *, float *, int64_t, int64_t, int64_t, int);
int64_t CALL(screen)(float *, const float *, const float *, const float *, const float *, const float *, const float *,
                     const float *, int64_t, int64_t, int64_t, int, int64_t, int);
void CALL(forward)(const float *, const float *, float *, int64_t, int64_t, int, int);
int CALL(backward)(const float *, const float *, const float *, float, float *, float *, int64_t, int64_t, int, int);

void autosparse_bitmask_plan(const void *, int, int64_t, int64_t, int64_t, int64_t, int, uint64_t *, int64_t *, float *,
                             int32_t *, int);
void autosparse_bitmask_fill(const BitmaskMatrix *, const void *, int, int64_t, int64_t, int);
void autosparse_bitmask_expand(const BitmaskMatrix *, int64_t, int64_t, void *, int);
void autosparse_bitmask_align(const uint8_t *, int64_t, int64_t, uint64_t *, int64_t *, int);
int CALL(bitmask_matmul)(const BitmaskMatrix *, int, const void *, void *, int64_t, const void *, int);

static uint32_t state = 1;
static float uniform(void) { return (float)((state = state * 1664525u + 1013904223u) >> 8) / (1 << 24); }

static void *array(size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size);
    if (!p) exit(2);
    return p;
}

static float *noise(int64_t n)
{
    float *p = array(n, sizeof(float));
    for (int64_t i = 0; i < n; i++) p[i] = 2 * uniform() - 1;
    return p;
}

static void expect(int ok, const char *what, int64_t a, int64_t b, int64_t c)
{
    if (ok) return;
    printf("wrong: %s at %lld %lld %lld\n", what, (long long)a, (long long)b, (long long)c);
    exit(1);
}

/* w is what m was made of; the result is written transposed in every other case. */
static void check_gradient(const SparseMatrix *m, const float *w, int64_t n, int threads)
{
    const int64_t rows = m->rows, cols = m->cols, flipped = n % 2;
    float *g = noise(n * rows), *x = noise(n * cols), *d = array(rows * cols, sizeof(float));
    const int64_t row_stride = flipped ? 1 : cols, col_stride = flipped ? rows : 1;
    expect(CALL(gradient)(m, g, x, d, row_stride, col_stride, n, threads) == 0, "status", rows, cols, n);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < cols; k++) {
            double sum = 0, size = 0;
            for (int64_t t = 0; t < n && w[r * cols + k] != 0; t++) {
                const double term = (double)g[t * rows + r] * x[t * cols + k];
                sum += term;
                size += fabs(term);
            }
            expect(fabs(d[r * row_stride + k * col_stride] - sum) <= 1e-6 * size, "gradient", rows, cols, n);
        }
    x[n * cols - 1] = NAN;
    expect(CALL(gradient)(m, g, x, d, cols, 1, n, threads) == 1, "non-finite", rows, cols, n);
    free(g), free(x), free(d);
}

/* kind: 0 for tokens, 1 for the pixels of a 1x1 convolution, then an image of one channel: 2 for a window of one row in
   steps of 1, 3 for one of one column in larger steps. */
static void check_output(const SparseMatrix *m, const float *w, const float *bias, int64_t n, int kind, int threads)
{
    const int64_t rows = m->rows, cols = m->cols, out_height = n % 5 ? 1 : 5, out_width = n / out_height;
    const int64_t high = kind == 3 ? cols : 1, wide = kind == 2 ? cols : 1;
    const int64_t down = kind == 3 ? 3 : 1, right = kind == 3 ? 2 : 1;
    const int64_t height = down * (out_height - 1) + 2 * (high - 1) + 1;
    const int64_t width = right * (out_width - 1) + 3 * (wide - 1) + 1;
    const Window window = {height, width, high, wide, down, right, 2, 3, out_height, out_width,
                           kind == 3 ? out_width : width};
    const int64_t size = kind > 1 ? height * width : n * cols;
    float *x = noise(size), *y = array(n * rows, sizeof(float));
    const Window *given = kind ? &window : NULL;
    expect(CALL(matmul)(m, x, y, n, bias, given, threads) == 0, "status", rows, cols, n);
    for (int64_t t = 0; t < n; t++)
        for (int64_t r = 0; r < rows; r++) {
            double sum = bias[r], magnitude = fabs(bias[r]);
            for (int64_t k = 0; k < cols; k++) {
                const int64_t corner = t / out_width * down * width + t % out_width * right;
                const int64_t at[] = {t * cols + k, k * n + t, corner + 3 * k, corner + 2 * k * width};
                const double term = (double)w[r * cols + k] * x[at[kind]];
                sum += term;
                magnitude += fabs(term);
            }
            expect(fabs(y[kind ? r * n + t : t * rows + r] - sum) <= 1e-6 * magnitude, "product", rows, cols, n);
        }
    x[size - 1] = n % 2 ? NAN : INFINITY;
    expect(CALL(matmul)(m, x, y, n, NULL, given, threads) == 1, "non-finite", rows, cols, n);
    free(x), free(y);
}

/* Logits that are wrong by no more than they may be: the `top` largest come out exact. */
static void check_screen(int64_t rows, int64_t cols, int top, int threads)
{
    const int64_t tokens = 3;
    float *x = noise(tokens * cols), *w = noise(rows * cols), *bias = noise(rows), *offset = noise(rows);
    float *kept = noise(rows), *lost = noise(rows), *y = array(tokens * rows, sizeof(float));
    const float bounds[] = {0.01f, 0.02f, 0.03f, 0, 0, 0.01f};
    double *exact = array(tokens * rows, sizeof(double));
    for (int64_t r = 0; r < rows; r++) kept[r] = fabsf(kept[r]), lost[r] = fabsf(lost[r]);
    for (int64_t i = 0; i < tokens * rows; i++) {
        const int64_t t = i / rows, r = i % rows;
        exact[i] = bias[r];
        for (int64_t k = 0; k < cols; k++) exact[i] += (double)w[r * cols + k] * x[t * cols + k];
        y[i] = (float)exact[i] + (2 * uniform() - 1) * 0.99f * (bounds[2 * t] * kept[r] + bounds[2 * t + 1] * lost[r]);
    }
    const int64_t again =
        CALL(screen)(y, x, w, bias, offset, kept, lost, bounds, tokens, rows, cols, top, rows, threads);
    expect(again >= tokens * top && again <= tokens * rows, "candidates", rows, cols, top);
    for (int64_t i = 0; i < tokens * rows; i++) {
        int64_t larger = 0;
        for (int64_t r = 0; r < rows; r++)
            larger += exact[i / rows * rows + r] + offset[r] > exact[i] + offset[i % rows];
        if (larger < top) expect(fabs(y[i] - exact[i]) <= 1e-5, "largest", rows, cols, top);
    }
    expect(CALL(screen)(y, x, w, bias, offset, kept, lost, bounds, tokens, rows, cols, top, top - 1, threads) == -1, "too many", rows, cols, top);
    free(x), free(w), free(bias), free(offset), free(kept), free(lost), free(y), free(exact);
}

/* With a weight that bfloat16 holds exactly, both kinds of values give the same bits. Changes m's values. */
static void check_half(SparseMatrix *m, const float *w, int64_t n, int threads)
{
    const int64_t size = m->rows * m->cols, entries = m->first_step[m->chunks] * SLICE;
    float *rounded = array(size, sizeof(float));
    memcpy(rounded, w, size * sizeof(float));
    for (int64_t i = 0; i < size; i++) memset(rounded + i, 0, 2);   /* little-endian: the lower half */
    SparseMatrix h = *m;
    h.value = NULL;
    h.half = array(entries, sizeof(uint16_t));
    expect(autosparse_fill(m, rounded, m->cols, 1, threads) == 0, "status", m->rows, m->cols, 0);
    expect(autosparse_fill(&h, rounded, m->cols, 1, threads) == 0, "status", m->rows, m->cols, 0);
    float *x = noise(n * m->cols), *y = array(n * m->rows, sizeof(float)), *z = array(n * m->rows, sizeof(float));
    expect(CALL(matmul)(m, x, y, n, NULL, NULL, threads) == 0, "status", m->rows, m->cols, n);
    expect(CALL(matmul)(&h, x, z, n, NULL, NULL, threads) == 0, "status", m->rows, m->cols, n);
    expect(!memcmp(y, z, n * m->rows * sizeof(float)), "half", m->rows, m->cols, n);
    free(rounded), free((void *)h.half), free(x), free(y), free(z);
}

static void check_product(int64_t rows, int64_t cols, float sparsity, int threads)
{
    const int64_t blocks = ceil_div(cols, BLOCK), slices = ceil_div(rows, SLICE);
    float *w = noise(rows * cols), *bias = noise(rows);
    for (int64_t i = 0; i < rows * cols; i++)
        if (uniform() < sparsity) w[i] = 0;
    uint16_t *count = array(blocks * rows, sizeof *count), *length = array(slices * blocks, sizeof *length);
    int64_t *work = array(rows, sizeof *work);
    int64_t *first_row = array(slices + 1, sizeof *first_row), *first_step = array(slices + 1, sizeof *first_step);
    uint8_t *order = array(slices * blocks * SLICE, 1);
    SparseMatrix m = {rows, cols, 0, first_row, first_step, length, order, NULL, NULL};
    m.chunks = autosparse_plan(w, cols, 1, rows, cols, threads, count, work, first_row, first_step, length, order);
    m.value = array(first_step[m.chunks] * SLICE, sizeof(float));
    m.column = array(first_step[m.chunks] * SLICE, 1);
    expect(autosparse_fill(&m, w, cols, 1, threads) == 0, "status", rows, cols, 0);
    float *flipped = array(rows * cols, sizeof(float));
    for (int64_t i = 0; i < rows * cols; i++) flipped[i % cols * rows + i / cols] = w[i];
    SparseMatrix again = m;
    again.value = array(first_step[m.chunks] * SLICE, sizeof(float));
    again.column = array(first_step[m.chunks] * SLICE, 1);
    expect(autosparse_plan(flipped, 1, rows, rows, cols, threads, count, work, first_row, first_step, length, order) ==
           m.chunks, "chunks", rows, cols, 0);
    expect(autosparse_fill(&again, flipped, 1, rows, threads) == 0, "status", rows, cols, 0);
    expect(!memcmp(m.value, again.value, first_step[m.chunks] * SLICE * sizeof(float)), "transposed", rows, cols, 0);
    expect(!memcmp(m.column, again.column, first_step[m.chunks] * SLICE), "transposed", rows, cols, 0);
    free(flipped), free((void *)again.value), free((void *)again.column);
    static const int64_t trained[] = {1, 31, 70};
    for (int i = 0; i < 3; i++) check_gradient(&m, w, trained[i], threads);

    static const int64_t tokens[] = {1, 2, 4, 5, 8, 9, 15, 16, 17, 23, 24, 25, 32, 49, 70};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        for (int kind = 0; kind < (i % 3 ? 2 : 4); kind++) check_output(&m, w, bias, tokens[i], kind, threads);
    for (int i = 0; i < 4; i++) check_half(&m, w, tokens[3 * i], threads);
    free(w), free(bias), free(count), free(length), free(work), free(first_row), free(first_step), free(order);
    free((void *)m.value), free((void *)m.column);
}

/* n numbers in a buffer of a type, and what they are after rounding. */
static void *rounded(int type, float *x, int64_t n)
{
    char *p = array(n, TYPE_BYTES[type]);
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = type == BFLOAT16 ? to_bfloat16(x[i]) : to_float16(x[i]);
        if (type == FLOAT32) memcpy(p + 4 * i, x + i, 4);
        else memcpy(p + 2 * i, &h, 2), x[i] = type == BFLOAT16 ? from_bfloat16(h) : from_float16(h);
    }
    return p;
}

/* type: of the weight, activations and results; values: of the non-zeros. */
static void check_bitmask_product(const BitmaskMatrix *m, const float *w, int type, int64_t n, int threads)
{
    const int64_t rows = m->rows, cols = m->cols;
    float *x = noise(n * cols), *bias = noise(rows);
    void *X = rounded(type, x, n * cols), *B = rounded(type, bias, rows), *Y = array(n * rows, TYPE_BYTES[type]);
    expect(CALL(bitmask_matmul)(m, type, X, Y, n, B, threads) == 0, "status", rows, cols, n);
    const double rounding = type == FLOAT32 ? 0 : type == BFLOAT16 ? 1.0 / 256 : 1.0 / 2048;
    for (int64_t t = 0; t < n; t++) {
        float largest = 0;
        for (int64_t k = 0; k < cols; k++) largest = fmaxf(largest, fabsf(x[t * cols + k]));
        for (int64_t r = 0; r < rows; r++) {
            double sum = bias[r], magnitude = fabs(bias[r]), weights = 0;
            for (int64_t k = 0; k < cols; k++) {
                const double term = (double)w[r * cols + k] * x[t * cols + k];
                sum += term;
                magnitude += fabs(term);
                weights += fabs(w[r * cols + k]);
            }
            const double off = m->type == INT8 ? weights * largest / 253 : 0;   /* of each activation: half a scale */
            float y;
            if (type == FLOAT32) y = ((float *)Y)[t * rows + r];
            else y = type == BFLOAT16 ? from_bfloat16(((uint16_t *)Y)[t * rows + r]) : from_float16(((uint16_t *)Y)[t * rows + r]);
            expect(fabs(y - sum) <= 1e-6 * magnitude + off + rounding * (fabs(sum) + off) + 1e-7, "bitmask", rows, cols, n);
        }
    }
    memset((char *)X + (n * cols - 1) * TYPE_BYTES[type], 0xff, TYPE_BYTES[type]);   /* NaN */
    expect(CALL(bitmask_matmul)(m, type, X, Y, n, NULL, threads) == (m->type == INT8), "non-finite", rows, cols, n);
    free(x), free(bias), free(X), free(B), free(Y);
}

static void check_bitmask(int64_t rows, int64_t cols, float sparsity, int type, int values, int threads)
{
    const int64_t words = words_of(cols), size = rows * cols;
    float *w = noise(size), *scale = array(rows, sizeof(float));
    for (int64_t i = 0; i < size; i++)
        if (uniform() < sparsity) w[i] = 0;
    void *W = rounded(type, w, size);
    uint64_t *mask = array(rows * words, 8);
    int64_t *first = array(rows + 1, 8);
    int32_t *sum = array(rows, 4);
    autosparse_bitmask_plan(W, type, cols, 1, rows, cols, values, mask, first + 1, scale, sum, threads);
    for (int64_t r = 0; r < rows; r++) first[r + 1] += first[r];
    void *value = array(first[rows] * TYPE_BYTES[values] + VALUE_PADDING, 1);
    const BitmaskMatrix m = {rows, cols, values, mask, first, value, scale, sum};
    autosparse_bitmask_fill(&m, W, type, cols, 1, threads);
    void *dense = array(size, values == INT8 ? 4 : TYPE_BYTES[values]);
    autosparse_bitmask_expand(&m, 0, rows, dense, threads);
    if (values == type) expect(!memcmp(dense, W, size * TYPE_BYTES[type]), "expanded", rows, cols, type);
    for (int64_t i = 0; i < size; i++) {
        const float kept = values == FLOAT16 ? from_float16(((uint16_t *)dense)[i])
                           : values == BFLOAT16 ? from_bfloat16(((uint16_t *)dense)[i]) : ((float *)dense)[i];
        expect(fabsf(kept - w[i]) <= (values == INT8 ? scale[i / cols] * 0.501f : fabsf(w[i]) / 256), "rounded", rows, cols, i);
        w[i] = kept;
    }
    uint8_t *packed = array((size + 7) / 8, 1);
    for (int64_t i = 0; i < size; i++) packed[i / 8] |= (uint8_t)((w[i] != 0) << i % 8);
    uint64_t *again = array(rows * words, 8);
    int64_t *count = array(rows, 8);
    autosparse_bitmask_align(packed, rows, cols, again, count, threads);
    expect(!memcmp(again, mask, rows * words * 8), "aligned", rows, cols, type);
    for (int64_t r = 0; r < rows; r++) expect(count[r] == first[r + 1] - first[r], "counted", rows, cols, r);
    static const int64_t tokens[] = {1, 2, 3, 4, 7, 8, 9, 17, 33, 70};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) check_bitmask_product(&m, w, type, tokens[i], threads);
    if (rows * cols < 100) check_bitmask_product(&m, w, type, 300, threads);
    free(w), free(scale), free(W), free(mask), free(first), free(sum), free(value), free(dense), free(packed), free(again), free(count);
}

static void check_threshold(int64_t rows, int64_t cols, int by_columns, int threads)
{
    const int64_t n = rows * cols, thresholds = by_columns ? cols : rows;
    float *w = noise(n), *g = noise(n), *t = noise(thresholds);
    float *out = array(n, sizeof(float)), *gw = array(n, sizeof(float)), *gt = array(thresholds, sizeof(float));
    for (int64_t i = 0; i < thresholds; i++) t[i] = fabsf(t[i]);
    CALL(forward)(w, t, out, rows, cols, by_columns, threads);
    expect(CALL(backward)(w, t, g, 0.25f, gw, gt, rows, cols, by_columns, threads) == 0, "status", rows, cols, 0);
    double *sum = array(thresholds, sizeof(double)), *size = array(thresholds, sizeof(double));
    for (int64_t i = 0; i < n; i++) {
        const int64_t j = by_columns ? i % cols : i / cols;
        const float kept = fmaxf(fabsf(w[i]) - t[j], 0), grad = fabsf(w[i]) > t[j] ? g[i] : 0.25f * g[i];
        expect(out[i] == copysignf(kept, w[i]) && gw[i] == grad, "threshold", rows, cols, i);
        sum[j] -= w[i] > 0 ? grad : w[i] < 0 ? -grad : 0;
        size[j] += fabsf(grad);
    }
    for (int64_t j = 0; j < thresholds; j++) expect(fabs(gt[j] - sum[j]) <= 1e-6 * size[j], "sum", rows, cols, j);
    free(w), free(g), free(t), free(out), free(gw), free(gt), free(sum), free(size);
}

int main(void)
{
    static const int64_t sizes[] = {1, 3, 4, 5, 63, 64, 65, 255, 256, 257, 300, 513};
    const int n = sizeof sizes / sizeof *sizes;
    for (int threads = 1; threads <= 3; threads += 2) {
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) check_product(sizes[i], sizes[j], (float)((i + j) % 4) / 3, threads);
        check_product(1100, 40, 0.9f, threads);
        static const int kinds[][2] = {{FLOAT32, FLOAT32}, {BFLOAT16, BFLOAT16}, {FLOAT16, FLOAT16}, {FLOAT32, BFLOAT16},
                                       {FLOAT32, INT8}, {BFLOAT16, INT8}, {FLOAT16, INT8}};
        for (int i = 0; i < n; i++)
            for (int j = 0; j < 7; j++)
                check_bitmask(sizes[i], sizes[(5 * i + j) % n], (float)((i + j) % 4) / 3, kinds[j][0], kinds[j][1], threads);
        for (int i = 0; i < n; i++) {
            check_screen(sizes[i], sizes[n - 1 - i], 1, threads);
            check_screen(sizes[i] + 64, sizes[i], i % 2 ? 4 : 64, threads);
        }
        for (int i = 0; i < n; i++)
            for (int by_columns = 0; by_columns < 2; by_columns++) {
                check_threshold(sizes[i], sizes[n - 1 - i], by_columns, threads);
                check_threshold(1, 8191 + i, by_columns, threads);
            }
        check_threshold(3, 20000, 0, threads);
    }
    puts("all as plain loops compute it");
    return 0;
}
