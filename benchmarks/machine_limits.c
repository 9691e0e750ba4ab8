/* What one core can do at most: multiply-adds from registers, and reading memory. See machine_limits.py. */

#ifdef __AVX512F__
enum { BYTES = 64 };
#elif defined(__AVX__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif
enum { LANES = BYTES / sizeof(float), CHAINS = 12 };

typedef float vector __attribute__((vector_size(BYTES)));
typedef float unaligned __attribute__((vector_size(BYTES), aligned(4)));

/* Floating-point operations of one step of multiply_add. */
long operations(void) { return 2L * CHAINS * LANES; }

/* Independent chains x = x * factor + term, enough to hide the latency of a multiply-add. */
float multiply_add(long steps, float factor, float term) {
    vector x[CHAINS], f, t;
    for (int lane = 0; lane < LANES; lane++) f[lane] = factor, t[lane] = term;
    for (int chain = 0; chain < CHAINS; chain++) x[chain] = t;
    for (long step = 0; step < steps; step++)
#pragma GCC unroll 12
        for (int chain = 0; chain < CHAINS; chain++) x[chain] = x[chain] * f + t;
    for (int chain = 1; chain < CHAINS; chain++) x[0] += x[chain];
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[0][lane];
    return sum;
}

/* Read count floats, a multiple of CHAINS * LANES, again and again. */
float read_floats(const float *from, long count, long times) {
    vector sum[CHAINS] = {0};
    for (long time = 0; time < times; time++) {
        for (long i = 0; i < count; i += CHAINS * LANES)
#pragma GCC unroll 12
            for (int chain = 0; chain < CHAINS; chain++)
                sum[chain] += *(const unaligned *)(from + i + chain * LANES);
        __asm__ volatile("" ::: "memory");
    }
    for (int chain = 1; chain < CHAINS; chain++) sum[0] += sum[chain];
    return sum[0][0];
}
