/* Parts of a bitmask row expanded into vectors of 32-bit lanes, as far as the instruction set has what it takes.

   An operation names how values and activations meet:

       FLOAT32, BFLOAT16, FLOAT16   values become float; a lane is one column
       PAIRS                        bfloat16 values and activations as they are; a lane is two columns
       INT8                         with VNNI a lane is four columns, activations are unsigned, 128 too large; else a
                                    lane is one column, and products of 16 bits want its upper half 0 in one of the two

   `expand` takes the next GROUP(op) columns of a row and gives PER(op) vectors; it moves the mask and the values on.
   Lanes are columns in order, but for BFLOAT16 with VBMI2: SPLIT, there come the 16 even columns of 32, then the odd. */

#ifndef AUTOSPARSE_BITMASK_EXPAND_H
#define AUTOSPARSE_BITMASK_EXPAND_H

#include "bitmask_matrix.h"
#include "float_types.h"
#include "vectors.h"

enum { PAIRS = INT8 + 1 };

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__)
#define COLUMNS_OF_LANE(op) ((int)(op) == PAIRS ? 2 : (int)(op) == INT8 ? 4 : 1)
#define GROUP(op) ((int)(op) == FLOAT32 ? 16 : (int)(op) == INT8 ? 64 : 32)
#define PER(op) ((int)(op) == BFLOAT16 || (int)(op) == FLOAT16 ? 2 : 1)
#define SPLIT(op) ((int)(op) == BFLOAT16)
#define OFFSET 128
#else
#define COLUMNS_OF_LANE(op) 1
#define SPLIT(op) 0
#define OFFSET 0
#endif

#if defined(__AVX2__)
#define ACTIVATION_BITS 0xffff
#else
#define ACTIVATION_BITS 0xffffffff
#endif

#if defined(__AVX512BF16__)
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif

#if defined(__AVX512F__)

#define LANES 16
typedef __m512i Vector;
INLINE Vector zeros(void) { return _mm512_setzero_si512(); }
INLINE Vector load(const void *p) { return _mm512_loadu_si512(p); }
INLINE void store(void *p, Vector v) { _mm512_storeu_si512(p, v); }
INLINE Vector splat(const void *p) { int32_t i; memcpy(&i, p, sizeof i); return _mm512_set1_epi32(i); }
INLINE Vector add(int op, Vector a, Vector b)
{
    return op == INT8 ? _mm512_add_epi32(a, b) : (Vector)_mm512_add_ps((__m512)a, (__m512)b);
}
INLINE float sum_of_floats(Vector a) { return _mm512_reduce_add_ps((__m512)a); }
INLINE int32_t sum_of_integers(Vector a) { return _mm512_reduce_add_epi32(a); }

/* a + w x, the weight's lanes first. */
INLINE Vector multiply_add(int op, Vector a, Vector w, Vector x)
{
#if defined(__AVX512BF16__)
    if (op == PAIRS) return (Vector)_mm512_dpbf16_ps((__m512)a, (__m512bh)w, (__m512bh)x);
#endif
#if OFFSET
    if (op == INT8) return _mm512_dpbusd_epi32(a, x, w);
#else
    if (op == INT8) return _mm512_add_epi32(a, _mm512_madd_epi16(w, x));
#endif
    return (Vector)_mm512_fmadd_ps((__m512)w, (__m512)x, (__m512)a);
}

#elif defined(__AVX2__)

#define LANES 8
typedef __m256i Vector;
INLINE Vector zeros(void) { return _mm256_setzero_si256(); }
INLINE Vector load(const void *p) { return _mm256_loadu_si256(p); }
INLINE void store(void *p, Vector v) { _mm256_storeu_si256(p, v); }
INLINE Vector splat(const void *p) { int32_t i; memcpy(&i, p, sizeof i); return _mm256_set1_epi32(i); }
INLINE Vector add(int op, Vector a, Vector b)
{
    return op == INT8 ? _mm256_add_epi32(a, b) : (Vector)_mm256_add_ps((__m256)a, (__m256)b);
}
INLINE float sum_of_floats(Vector a)
{
    const v4 s = (v4)_mm256_castps256_ps128((__m256)a) + (v4)_mm256_extractf128_ps((__m256)a, 1);
    return s[0] + s[1] + (s[2] + s[3]);
}
INLINE int32_t sum_of_integers(Vector a)
{
    int32_t s[LANES];
    store(s, a);
    return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}
INLINE Vector multiply_add(int op, Vector a, Vector w, Vector x)
{
    if (op == INT8) return _mm256_add_epi32(a, _mm256_madd_epi16(w, x));
    return (Vector)_mm256_fmadd_ps((__m256)w, (__m256)x, (__m256)a);
}

#else

#define LANES 4
typedef int32_t Vector __attribute__((vector_size(16)));
INLINE Vector zeros(void) { return (Vector){0, 0, 0, 0}; }
INLINE Vector load(const void *p) { Vector v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(void *p, Vector v) { memcpy(p, &v, sizeof v); }
INLINE Vector splat(const void *p) { int32_t i; memcpy(&i, p, sizeof i); return (Vector){i, i, i, i}; }
INLINE Vector add(int op, Vector a, Vector b) { return op == INT8 ? a + b : (Vector)((v4)a + (v4)b); }
INLINE float sum_of_floats(Vector a) { const v4 s = (v4)a; return s[0] + s[1] + (s[2] + s[3]); }
INLINE int32_t sum_of_integers(Vector a) { return a[0] + a[1] + a[2] + a[3]; }
INLINE Vector multiply_add(int op, Vector a, Vector w, Vector x)
{
    return op == INT8 ? a + w * x : (Vector)((v4)a + (v4)w * (v4)x);
}

#endif

/* ---- The next group of columns ---- */

#if defined(__AVX512F__)
/* Expanding straight from memory is microcode on AMD's processors, many times slower than from a register. */
INLINE Vector in_register(Vector v)
{
    __asm__("" : "+v"(v));
    return v;
}
#endif

#if OFFSET   /* AVX-512 with VBMI2 and VNNI: values of every width are expanded as they are */

INLINE void expand(int op, const char **mask, const char **value, Vector *w)
{
    const Vector v = in_register(load(*value));
    if (op == FLOAT32) {
        uint16_t m;
        memcpy(&m, *mask, sizeof m);
        w[0] = _mm512_maskz_expand_epi32(m, v);
        *value += 4 * __builtin_popcount(m);
    } else if (op == INT8) {
        uint64_t m;
        memcpy(&m, *mask, sizeof m);
        w[0] = _mm512_maskz_expand_epi8(m, v);
        *value += __builtin_popcountll(m);
    } else {
        uint32_t m;
        memcpy(&m, *mask, sizeof m);
        const Vector e = _mm512_maskz_expand_epi16(m, v);
        *value += 2 * __builtin_popcount(m);
        if (op == PAIRS) w[0] = e;
        if (op == BFLOAT16) {
            w[0] = _mm512_slli_epi32(e, 16);
            w[1] = _mm512_and_si512(e, _mm512_set1_epi32((int)0xffff0000));
        }
        if (op == FLOAT16) {
            w[0] = (Vector)_mm512_cvtph_ps(_mm512_castsi512_si256(e));
            w[1] = (Vector)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(e, 1));
        }
    }
    *mask += GROUP(op) / 8;
}

#elif defined(__AVX512F__)   /* only lanes of 32 bits can be expanded: values are widened first */

#define GROUP(op) 16
#define PER(op) 1

INLINE void expand(int op, const char **mask, const char **value, Vector *w)
{
    uint16_t m;
    memcpy(&m, *mask, sizeof m);
    Vector v;
    if (op == FLOAT32) v = load(*value);
    else if (op == INT8) v = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)*value));
    else {
        const __m256i h = _mm256_loadu_si256((const __m256i *)*value);
        v = op == BFLOAT16 ? _mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16) : (Vector)_mm512_cvtph_ps(h);
    }
    w[0] = _mm512_maskz_expand_epi32(m, in_register(v));
    *mask += 2;
    *value += (op == FLOAT32 ? 4 : op == INT8 ? 1 : 2) * __builtin_popcount(m);
}

#elif defined(__AVX2__)   /* eight values are put in their places by a shuffle from a table */

#define GROUP(op) 8
#define PER(op) 1

/* place[m][i]: the number of bits set in m below bit i where bit i is set, else 128, which a byte shuffle makes 0. */
static uint8_t place[256][8] __attribute__((aligned(64)));

__attribute__((constructor)) static void fill_places(void)
{
    for (int m = 0; m < 256; m++)
        for (int i = 0, n = 0; i < 8; i++) place[m][i] = m >> i & 1 ? n++ : 128;
}

INLINE void expand(int op, const char **mask, const char **value, Vector *w)
{
    const uint8_t m = (uint8_t)**mask;
    const __m128i places = _mm_loadl_epi64((const __m128i *)place[m]);
    if (op == FLOAT32) {
        const __m256i from = _mm256_cvtepi8_epi32(places);   /* 128 is negative now: kept out by the mask */
        const __m256i v = (__m256i)_mm256_permutevar8x32_ps(_mm256_loadu_ps((const float *)*value), from);
        w[0] = _mm256_andnot_si256(_mm256_srai_epi32(from, 31), v);
    } else if (op == INT8) {
        w[0] = _mm256_cvtepi8_epi32(_mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)*value), places));
    } else {   /* the two bytes of place n are 2n and 2n + 1 */
        const __m128i twice = _mm_adds_epu8(places, places), pair = _mm_unpacklo_epi8(twice, twice);
        const __m128i from = _mm_or_si128(pair, _mm_set1_epi16(0x0100));
        const __m128i v = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)*value), from);
        w[0] = op == BFLOAT16 ? _mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16) : (Vector)_mm256_cvtph_ps(v);
    }
    *mask += 1;
    *value += (op == FLOAT32 ? 4 : op == INT8 ? 1 : 2) * __builtin_popcount(m);
}

#else   /* one value after the other */

#define GROUP(op) 8
#define PER(op) 2

INLINE void expand(int op, const char **mask, const char **value, Vector *w)
{
    const unsigned m = (uint8_t)**mask;
    for (int i = 0; i < 8; i++) {
        const int kept = m >> i & 1;
        uint16_t h;
        uint32_t b;
        if (op == FLOAT32) memcpy(&b, *value, sizeof b), *value += 4 * kept;
        else if (op == INT8) b = (uint32_t)(int32_t)(int8_t)**value, *value += kept;
        else {
            memcpy(&h, *value, sizeof h), *value += 2 * kept;
            b = op == BFLOAT16 ? (uint32_t)h << 16 : bits_of(from_float16(h));
        }
        w[i / 4][i % 4] = kept ? (int32_t)b : 0;
    }
    *mask += 1;
}

#endif

#endif
