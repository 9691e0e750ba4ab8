/* The annealed soft threshold (hf_autosparse/functional.py has the maths), each direction in one pass over the weight.
   Compiled once per instruction set; ISA is its name.

   One threshold for the whole weight is rows = 1. By rows: w [rows][cols] has a threshold a row. By columns: w
   [rows][cols] has a threshold a column. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "names.h"

/* A unit of work: a piece of one row, or some columns. The sums of the units are added in a fixed order: the same for
   any number of threads. They are taken in double: memory is the limit, so it costs nothing. */
enum { PIECE = 8192, STRIPE = 64 };

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* As torch's w - clamp(w, -t, t), to the bit; NaN for a threshold that is NaN. */
static inline float shrink(float w, float t)
{
    float c = w < -t ? -t : w;
    c = c > t ? t : c;
    const float d = w - c;
    return t == t ? d : t;
}

static void forward_piece(const float *restrict w, float t, float *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = shrink(w[i], t);
}

static void forward_columns(const float *restrict w, const float *restrict t, float *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float x = w[i], threshold = t[i];
        out[i] = shrink(x, threshold);
    }
}

void EXPORT(autosparse_forward)(const float *w, const float *threshold, float *out, int64_t rows, int64_t cols,
                                int by_columns, int threads)
{
    const int64_t pieces = (cols + PIECE - 1) / PIECE;
    if (by_columns) {
        #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t r = 0; r < rows; r++)
            forward_columns(w + r * cols, threshold, out + r * cols, cols);
        return;
    }
    #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t u = 0; u < rows * pieces; u++) {
        const int64_t r = u / pieces, begin = u % pieces * PIECE;
        forward_piece(w + r * cols + begin, threshold[r], out + r * cols + begin, smaller(PIECE, cols - begin));
    }
}

/* Gradient of one weight. */
static inline float pass(float w, float t, float grad, float alpha)
{
    const float damped = grad * alpha;
    return fabsf(w) > t ? grad : damped;
}

static inline float sign(float x) { return (float)(x > 0) - (float)(x < 0); }

/* Gradients of a piece; returns its sum of sign(w) * grad_w. */
static double backward_piece(const float *restrict w, float t, const float *restrict grad, float alpha,
                             float *restrict grad_w, int64_t n)
{
    double sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        const float g = pass(w[i], t, grad[i], alpha);
        grad_w[i] = g;
        sum += sign(w[i]) * g;
    }
    return sum;
}

static void backward_columns(const float *restrict w, const float *restrict t, const float *restrict grad, float alpha,
                             float *restrict grad_w, double *restrict sum, int64_t n)
{
    for (int64_t c = 0; c < n; c++) {
        const float x = w[c], g = pass(x, t[c], grad[c], alpha);
        grad_w[c] = g;
        sum[c] += sign(x) * g;
    }
}

/* grad_w [rows][cols] and grad_t, a number for each threshold. Returns 0, or -1 for want of memory. */
int EXPORT(autosparse_backward)(const float *w, const float *threshold, const float *grad, float alpha, float *grad_w,
                                float *grad_t, int64_t rows, int64_t cols, int by_columns, int threads)
{
    if (by_columns) {
        const int64_t stripes = (cols + STRIPE - 1) / STRIPE;
        #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t s = 0; s < stripes; s++) {
            const int64_t c = s * STRIPE, n = smaller(STRIPE, cols - c);
            double sum[STRIPE] = {0};
            for (int64_t at = c; at < rows * cols; at += cols)
                backward_columns(w + at, threshold + c, grad + at, alpha, grad_w + at, sum, n);
            for (int64_t i = 0; i < n; i++) grad_t[c + i] = (float)-sum[i];
        }
        return 0;
    }
    const int64_t pieces = (cols + PIECE - 1) / PIECE;
    double *sums = malloc((rows * pieces + 1) * sizeof(double));
    if (!sums) return -1;
    #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t u = 0; u < rows * pieces; u++) {
        const int64_t r = u / pieces, begin = u % pieces * PIECE, at = r * cols + begin;
        sums[u] = backward_piece(w + at, threshold[r], grad + at, alpha, grad_w + at, smaller(PIECE, cols - begin));
    }
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int64_t i = 0; i < pieces; i++) sum += sums[r * pieces + i];
        grad_t[r] = (float)-sum;
    }
    free(sums);
    return 0;
}
