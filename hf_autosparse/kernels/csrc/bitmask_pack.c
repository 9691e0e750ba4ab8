/* A dense weight to a BitmaskMatrix and back. Once for all instruction sets.

   Weights are any FLOAT32, BFLOAT16 or FLOAT16, with any strides (in elements); values are of the same type, or BFLOAT16
   for a FLOAT32 weight, or INT8: round(w / scale), with scale = the largest magnitude of the row / 127. What becomes 0
   or -0.0 is not kept; everything else is, to the bit where values are of the weight's own type. */

#include <math.h>
#include <string.h>

#include "bitmask_matrix.h"
#include "float_types.h"

typedef struct { const void *data; int64_t row_stride, col_stride; int type; } Dense;

static uint32_t dense_bits(const Dense *w, int64_t row, int64_t col)
{
    const int64_t i = row * w->row_stride + col * w->col_stride;
    return w->type == FLOAT32 ? ((const uint32_t *)w->data)[i] : ((const uint16_t *)w->data)[i];
}

static float as_float(int type, uint32_t bits)
{
    return type == FLOAT32 ? of_bits(bits) : type == BFLOAT16 ? from_bfloat16((uint16_t)bits) : from_float16((uint16_t)bits);
}

/* The value of one weight as it is stored, in the lowest bytes; 0 where it is not. */
static uint32_t value_of(const Dense *w, int64_t row, int64_t col, int type, float inverse)
{
    const uint32_t bits = dense_bits(w, row, col);
    if (type == w->type) return bits << (type == FLOAT32 ? 1 : 17) ? bits : 0;   /* but for the sign */
    if (type == BFLOAT16) {
        const uint16_t half = to_bfloat16(of_bits(bits));
        return half & 0x7fff ? half : 0;
    }
    const float q = rintf(as_float(w->type, bits) * inverse);
    return (uint8_t)(int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);   /* the inverse of a tiny scale overflows */
}

static float largest_of(const Dense *w, int64_t row, int64_t cols)
{
    float largest = 0;
    for (int64_t k = 0; k < cols; k++) {
        const float size = fabsf(as_float(w->type, dense_bits(w, row, k)));
        if (size > largest) largest = size;
    }
    return largest;
}

/* mask [rows][words], count [rows]: values of each row; for INT8 scale [rows] and sum [rows] too. */
void autosparse_bitmask_plan(const void *data, int from, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols,
                             int type, uint64_t *mask, int64_t *count, float *scale, int32_t *sum, int threads)
{
    const Dense w = {data, row_stride, col_stride, from};
    (void)threads;
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++) {
        float inverse = 0;
        int64_t kept = 0;
        int32_t total = 0;
        if (type == INT8) {
            scale[row] = largest_of(&w, row, cols) / 127;
            inverse = scale[row] > 0 ? 1 / scale[row] : 0;
        }
        for (int64_t k = 0; k < cols; k += WORD) {
            uint64_t word = 0;
            for (int64_t i = k; i < k + WORD && i < cols; i++) {
                const uint32_t value = value_of(&w, row, i, type, inverse);
                word |= (uint64_t)(value != 0) << (i - k);
                total += (int8_t)value;
            }
            mask[row * words_of(cols) + k / WORD] = word;
            kept += __builtin_popcountll(word);
        }
        count[row] = kept;
        if (type == INT8) sum[row] = total;
    }
}

/* m's values, by its other arrays. */
void autosparse_bitmask_fill(const BitmaskMatrix *m, const void *data, int from, int64_t row_stride, int64_t col_stride,
                             int threads)
{
    const Dense w = {data, row_stride, col_stride, from};
    const int type = (int)m->type, size = TYPE_BYTES[type];
    (void)threads;
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < m->rows; row++) {
        char *to = (char *)m->value + m->first[row] * size;
        const float inverse = type == INT8 && m->scale[row] > 0 ? 1 / m->scale[row] : 0;
        for (int64_t i = 0; i < words_of(m->cols); i++)
            for (uint64_t word = m->mask[row * words_of(m->cols) + i]; word; word &= word - 1, to += size) {
                const uint32_t value = value_of(&w, row, i * WORD + __builtin_ctzll(word), type, inverse);
                memcpy(to, &value, size);   /* little-endian: the lowest bytes come first */
            }
    }
}

/* Rows [begin, end) of m, dense, in the type of the values (INT8: FLOAT32): to [end - begin][cols]. */
void autosparse_bitmask_expand(const BitmaskMatrix *m, int64_t begin, int64_t end, void *to, int threads)
{
    const int type = (int)m->type, size = TYPE_BYTES[type], out = type == INT8 ? 4 : size;
    (void)threads;
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = begin; row < end; row++) {
        const char *value = (const char *)m->value + m->first[row] * size;
        char *dense = (char *)to + (row - begin) * m->cols * out;
        memset(dense, 0, m->cols * out);
        for (int64_t i = 0; i < words_of(m->cols); i++)
            for (uint64_t word = m->mask[row * words_of(m->cols) + i]; word; word &= word - 1, value += size) {
                char *at = dense + (i * WORD + __builtin_ctzll(word)) * out;
                if (type == INT8) {
                    const float weight = (float)*(const int8_t *)value * m->scale[row];
                    memcpy(at, &weight, sizeof weight);
                } else memcpy(at, value, size);
            }
    }
}

/* The packed checkpoint's mask, rows one after the other without padding, to whole words a row. packed: the bytes that
   `rows * cols` bits take. Bits beyond the last row are not looked at. */
void autosparse_bitmask_align(const uint8_t *packed, int64_t rows, int64_t cols, uint64_t *mask, int64_t *count, int threads)
{
    const int64_t bytes = (rows * cols + 7) / 8;
    (void)threads;
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++) {
        int64_t kept = 0;
        for (int64_t i = 0; i < words_of(cols); i++) {
            const int64_t bit = row * cols + i * WORD, byte = bit / 8, shift = bit % 8;
            const int64_t columns = cols - i * WORD < WORD ? cols - i * WORD : WORD;
            uint64_t word = 0;
            memcpy(&word, packed + byte, bytes - byte < 8 ? bytes - byte : 8);
            word >>= shift;
            if (shift && byte + 8 < bytes) word |= (uint64_t)packed[byte + 8] << (64 - shift);
            if (columns < WORD) word &= ((uint64_t)1 << columns) - 1;
            mask[row * words_of(cols) + i] = word;
            kept += __builtin_popcountll(word);
        }
        count[row] = kept;
    }
}
