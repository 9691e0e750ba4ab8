/* Logits from an int8 product made exact where they could be among the largest (hf_autosparse/decoding.py has the
   reasoning). Compiled once per instruction set; ISA is its name. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "names.h"
#include "vectors.h"

enum { PIECE = 256, LANES = 16, MOST_TOP = 64 };

#define VECTOR JOIN(v, WIDEST)
#define V_(name) JOIN(name, WIDEST)

typedef struct {
    const float *offset, *kept, *lost;   /* [rows]; offset may be NULL */
    int64_t rows;
    const float *largest_kept, *largest_lost;   /* of each piece */
} Screen;

static int size_of(int64_t rows, int64_t first) { return (int)(rows - first < PIECE ? rows - first : PIECE); }

/* The lanes are independent, so that the compiler can take them together. */
static float largest(const float *value, int n)
{
    float best[LANES], result = -INFINITY;
    int i = 0;
    for (int j = 0; j < LANES; j++) best[j] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) best[j] = value[i + j] > best[j] ? value[i + j] : best[j];
    for (; i < n; i++) result = value[i] > result ? value[i] : result;
    for (int j = 0; j < LANES; j++) result = best[j] > result ? best[j] : result;
    return result;
}

/* y + offset of a piece of n rows: y itself, or in `sum`. */
static const float *shifted(const Screen *s, const float *y, int64_t first, int n, float *sum)
{
    if (!s->offset) return y + first;
    for (int i = 0; i < n; i++) sum[i] = y[first + i] + s->offset[first + i];
    return sum;
}

static float dot(const float *w, const float *x, int64_t n)
{
    VECTOR a = V_(splat)(0), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 4 * WIDEST <= n; i += 4 * WIDEST) {
        a += V_(load)(w + i) * V_(load)(x + i);
        b += V_(load)(w + i + WIDEST) * V_(load)(x + i + WIDEST);
        c += V_(load)(w + i + 2 * WIDEST) * V_(load)(x + i + 2 * WIDEST);
        d += V_(load)(w + i + 3 * WIDEST) * V_(load)(x + i + 3 * WIDEST);
    }
    a = (a + b) + (c + d);
    float sum = 0;
    for (int j = 0; j < WIDEST; j++) sum += a[j];
    for (; i < n; i++) sum += w[i] * x[i];
    return sum;
}

/* The `top` rows of largest y + offset, in no order, and the largest value of each piece. */
static void largest_rows(const Screen *s, const float *y, int top, int64_t *row, float *of_piece)
{
    float value[MOST_TOP], sum[PIECE];
    int smallest = 0;
    for (int i = 0; i < top; i++) value[i] = -INFINITY, row[i] = i;
    for (int64_t first = 0; first < s->rows; first += PIECE) {
        const int n = size_of(s->rows, first);
        const float *z = shifted(s, y, first, n, sum);
        if (!((of_piece[first / PIECE] = largest(z, n)) > value[smallest])) continue;
        for (int i = 0; i < n; i++) {
            if (!(z[i] > value[smallest])) continue;
            value[smallest] = z[i], row[smallest] = first + i;
            for (int j = 0; j < top; j++)
                if (value[j] < value[smallest]) smallest = j;
        }
    }
}

/* logits [tokens][rows], from int8 with the bias added: those that could be among the `top` largest of their token,
   with `offset` added, are computed again from x [tokens][cols], weight [rows][cols] and bias [rows] or NULL. bounds
   [tokens][2]: what a logit may be wrong by, per unit of kept and of lost. top: 1 to 64, at most rows.

   Returns how many were computed again, or -1 where they are more than `most` of a token: logits are undefined then;
   -2 for want of memory. */
int64_t EXPORT(autosparse_screen)(float *logits, const float *x, const float *weight, const float *bias,
                                  const float *offset, const float *kept, const float *lost, const float *bounds,
                                  int64_t tokens, int64_t rows, int64_t cols, int top, int64_t most, int threads)
{
    const int64_t pieces = (rows + PIECE - 1) / PIECE;
    float *memory = malloc((2 + tokens) * pieces * sizeof(float));
    if (!memory) return -2;
    for (int64_t p = 0; p < pieces; p++) {
        memory[p] = largest(kept + p * PIECE, size_of(rows, p * PIECE));
        memory[pieces + p] = largest(lost + p * PIECE, size_of(rows, p * PIECE));
    }
    const Screen s = {offset, kept, lost, rows, memory, memory + pieces};
    int64_t total = 0, failed = 0;
    #pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : total, failed) if (threads > 1)
    for (int64_t t = 0; t < tokens; t++) {
        float *y = logits + t * rows, *of_piece = memory + (2 + t) * pieces, least = INFINITY, sum[PIECE];
        const float *own = x + t * cols, a = bounds[2 * t], b = bounds[2 * t + 1];
        int64_t row[MOST_TOP], count = 0;
        largest_rows(&s, y, top, row, of_piece);
        for (int i = 0; i < top; i++) {
            const int64_t r = row[i];
            const float exact = dot(weight + r * cols, own, cols) + (bias ? bias[r] : 0) + (offset ? offset[r] : 0);
            least = exact < least ? exact : least;
        }
        for (int64_t p = 0; p < pieces && count <= most; p++) {
            if (of_piece[p] + (a * s.largest_kept[p] + b * s.largest_lost[p]) < least) continue;
            const int64_t first = p * PIECE;
            const int n = size_of(rows, first);
            const float *z = shifted(&s, y, first, n, sum);
            for (int i = 0; i < n; i++) {
                const int64_t r = first + i;
                if (z[i] + (a * kept[r] + b * lost[r]) < least) continue;
                if (++count <= most) y[r] = dot(weight + r * cols, own, cols) + (bias ? bias[r] : 0);
            }
        }
        total += count;
        failed += count > most;
    }
    free(memory);
    return failed ? -1 : total;
}
