/* From the caller's layout, [tokens][features], to a tile's, which is [features][tokens]. */

#ifndef AUTOSPARSE_TOKEN_TILE_H
#define AUTOSPARSE_TOKEN_TILE_H

#include "vectors.h"

INLINE void transpose(v4 r[4])
{
    const v4 a = SHUFFLE(r[0], r[1], 0, 4, 1, 5), b = SHUFFLE(r[2], r[3], 0, 4, 1, 5);
    const v4 c = SHUFFLE(r[0], r[1], 2, 6, 3, 7), d = SHUFFLE(r[2], r[3], 2, 6, 3, 7);
    r[0] = SHUFFLE(a, b, 0, 1, 4, 5);
    r[1] = SHUFFLE(a, b, 2, 3, 6, 7);
    r[2] = SHUFFLE(c, d, 0, 1, 4, 5);
    r[3] = SHUFFLE(c, d, 2, 3, 6, 7);
}

/* A sum of x - x stays 0 until it meets an infinity or a NaN. */
static inline int is_clean(v4 poison) { return poison[0] + poison[1] + poison[2] + poison[3] == 0; }

/* Copy `left` tokens of X [tokens][features] into a tile, with zeros for those up to `tokens`. Returns whether all of
   them are finite. */
static inline int load_tokens(const float *X, int64_t ldx, int left, int64_t features, int tokens, float *x)
{
    v4 poison = splat4(0);
    int t = 0;
    for (; t + 4 <= left; t += 4) {
        int64_t k = 0;
        for (; k + 4 <= features; k += 4) {
            v4 r[4];
            UNROLL for (int i = 0; i < 4; i++) {
                r[i] = load4(X + (t + i) * ldx + k);
                poison += r[i] - r[i];
            }
            transpose(r);
            UNROLL for (int i = 0; i < 4; i++) store4(x + (k + i) * tokens + t, r[i]);
        }
        for (; k < features; k++)
            for (int i = 0; i < 4; i++) {
                const float value = X[(t + i) * ldx + k];
                poison[0] += value - value;
                x[k * tokens + t + i] = value;
            }
    }
    for (; t < tokens; t++)
        for (int64_t k = 0; k < features; k++) {
            const float value = t < left ? X[t * ldx + k] : 0;
            poison[0] += value - value;
            x[k * tokens + t] = value;
        }
    return is_clean(poison);
}

#endif
