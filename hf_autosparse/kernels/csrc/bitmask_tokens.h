/* Activations as an operation takes them: rows of 32-bit lanes, padded with zeros to whole mask words. */

#ifndef AUTOSPARSE_BITMASK_TOKENS_H
#define AUTOSPARSE_BITMASK_TOKENS_H

#include "bitmask_expand.h"
#include "token_tile.h"

INLINE float element(int type, const void *X, int64_t i)
{
    if (type == FLOAT32) return ((const float *)X)[i];
    const uint16_t h = ((const uint16_t *)X)[i];
    return type == BFLOAT16 ? from_bfloat16(h) : from_float16(h);
}

INLINE void set_element(int type, void *Y, int64_t i, float y)
{
    if (type == FLOAT32) ((float *)Y)[i] = y;
    else ((uint16_t *)Y)[i] = type == BFLOAT16 ? to_bfloat16(y) : to_float16(y);
}

static void to_floats(int type, const void *X, int64_t n, float *x)
{
    int64_t i = 0;
#if defined(__AVX2__)
    if (type == FLOAT16)
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(x + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)X + i))));
#endif
    if (type == BFLOAT16) for (; i < n; i++) x[i] = from_bfloat16(((const uint16_t *)X)[i]);
    else for (; i < n; i++) x[i] = element(type, X, i);
}

/* Symmetric: lane = round(x / scale) + OFFSET. Returns the scale, or NaN where an activation is infinite or NaN. */
static float quantize(float *x, int64_t n, void *lanes)
{
    float largest = 0, poison = 0;
    for (int64_t i = 0; i < n; i++) {
        const float size = __builtin_fabsf(x[i]);
        largest = size > largest ? size : largest;
        poison += x[i] - x[i];
    }
    if (poison != 0) return __builtin_nanf("");
    const float scale = largest / 127, inverse = scale > 0 ? 1 / scale : 0;
    for (int64_t i = 0; i < n; i++) {
        float q = __builtin_rintf(x[i] * inverse);
        q = q > 127 ? 127 : q < -127 ? -127 : q;   /* the inverse of a tiny scale overflows */
        if (COLUMNS_OF_LANE(INT8) == 4) ((uint8_t *)lanes)[i] = (uint8_t)((int32_t)q + OFFSET);
        else ((uint32_t *)lanes)[i] = (uint32_t)(int32_t)q & ACTIVATION_BITS;
    }
    return scale;
}

/* One token. scratch: [padded] floats; lanes: [padded / COLUMNS_OF_LANE] of 32 bits. Returns the scale for INT8. */
static float load_token(int op, int type, const void *X, int64_t cols, float *scratch, void *lanes)
{
    const int64_t padded = words_of(cols) * WORD;
    if (op == PAIRS) {
        memcpy(lanes, X, cols * 2);
        memset((uint16_t *)lanes + cols, 0, (padded - cols) * 2);
        return 1;
    }
    float *x = SPLIT(op) || op == INT8 ? scratch : lanes;
    to_floats(type, X, cols, x);
    memset(x + cols, 0, (padded - cols) * sizeof(float));
    if (op == INT8) return quantize(x, padded, lanes);
    if (SPLIT(op))
        for (int64_t i = 0; i < padded; i += 32)
            for (int j = 0; j < 16; j++) {
                ((float *)lanes)[i + j] = x[i + 2 * j];
                ((float *)lanes)[i + 16 + j] = x[i + 2 * j + 1];
            }
    return 1;
}

/* Four tokens, rows [4][lanes], into their columns of a tile [lanes][width]. */
static void transpose_tokens(const float *rows, int64_t lanes, float *tile, int width)
{
    for (int64_t k = 0; k < lanes; k += 4) {
        v4 r[4];
        UNROLL for (int i = 0; i < 4; i++) r[i] = load4(rows + i * lanes + k);
        transpose(r);
        UNROLL for (int i = 0; i < 4; i++) store4(tile + (k + i) * width, r[i]);
    }
}

#endif
