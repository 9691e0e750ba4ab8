/* Template: the product of one chunk and block with a tile of TOKENS tokens, in vectors of WIDTH.

   x [block columns][TOKENS]: activations; y [rows of the chunk][TOKENS]: sums, added to. Each step of a slice is four
   broadcasts and four multiply-adds a vector, into as many registers. Where these are too few to hide the latency of a
   multiply-add, odd steps have sums of their own (SETS = 2). `half` is known when this is compiled. */

#define NV (TOKENS / WIDTH)
#define SETS (NV == 1 ? 2 : 1)
#define V_(name) JOIN(name, WIDTH)
#define STEP(set)                                                                                                      \
    do {                                                                                                               \
        const JOIN(v, WIDTH) q = half ? V_(repeat)(load_half4((const uint16_t *)e.value))                              \
                                      : V_(load_quad)((const float *)e.value);                                         \
        const uint32_t c = four_columns(e.column);                                                                      \
        const float *x0 = x + (c & 255) * TOKENS, *x1 = x + (c >> 8 & 255) * TOKENS;                                   \
        const float *x2 = x + (c >> 16 & 255) * TOKENS, *x3 = x + (c >> 24) * TOKENS;                                  \
        UNROLL for (int v = 0; v < NV; v++) {                                                                          \
            a[set][0][v] += V_(lane)(q, 0) * V_(load)(x0 + v * WIDTH);                                                 \
            a[set][1][v] += V_(lane)(q, 1) * V_(load)(x1 + v * WIDTH);                                                 \
            a[set][2][v] += V_(lane)(q, 2) * V_(load)(x2 + v * WIDTH);                                                 \
            a[set][3][v] += V_(lane)(q, 3) * V_(load)(x3 + v * WIDTH);                                                 \
        }                                                                                                              \
        e.value += half ? 2 * SLICE : 4 * SLICE;                                                                       \
        e.column += SLICE;                                                                                             \
    } while (0)

INLINE Entries JOIN(any_slices, TOKENS)(int half, const uint16_t *length, const uint8_t *order, int slices, Entries e,
                                        const float *x, float *y)
{
    for (int s = 0; s < slices && length[s]; s++, order += SLICE) {   /* longest first: an empty one ends the block */
        JOIN(v, WIDTH) a[SETS][SLICE][NV];
        UNROLL for (int r = 0; r < SLICE; r++)
            UNROLL for (int v = 0; v < NV; v++) {
                a[0][r][v] = V_(load)(y + order[r] * TOKENS + v * WIDTH);
                if (SETS == 2) a[SETS - 1][r][v] = V_(splat)(0);
            }
        int n = length[s];
        for (; n >= SETS; n -= SETS) {
            STEP(0);
            if (SETS == 2) STEP(SETS - 1);
        }
        if (n) STEP(0);
        UNROLL for (int r = 0; r < SLICE; r++)
            UNROLL for (int v = 0; v < NV; v++) {
                if (SETS == 2) a[0][r][v] += a[SETS - 1][r][v];
                V_(store)(y + order[r] * TOKENS + v * WIDTH, a[0][r][v]);
            }
    }
    return e;
}

static Entries JOIN(slices, TOKENS)(int half, const uint16_t *length, const uint8_t *order, int slices, Entries e,
                                    const float *x, float *y)
{
    return half ? JOIN(any_slices, TOKENS)(1, length, order, slices, e, x, y)
                : JOIN(any_slices, TOKENS)(0, length, order, slices, e, x, y);
}

#undef STEP
#undef V_
#undef SETS
#undef NV
#undef TOKENS
#undef WIDTH
