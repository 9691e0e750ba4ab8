/* Between an image's layout, [channels][height][width], and a tile's, which is [features][positions]. */

#ifndef AUTOSPARSE_PIXEL_TILE_H
#define AUTOSPARSE_PIXEL_TILE_H

#include <string.h>

#include "names.h"
#include "vectors.h"

enum { MOST_POSITIONS = 64 };   /* of a tile */

/* What a convolution sees of an image, which is padded already. The features of a position are the image's values under
   its window: [channels][kernel_height][kernel_width], as the columns of the weight are.

   Positions are numbered row by row, `grid_width` in each. With strides of 1 that is the image's width: consecutive
   positions then see consecutive values, which are copied as they lie. The last positions of a row, beyond `out_width`,
   see values of two rows and make no pixel. */
typedef struct {
    int64_t height, width;               /* of the image */
    int64_t kernel_height, kernel_width;
    int64_t stride_height, stride_width;
    int64_t dilation_height, dilation_width;
    int64_t out_height, out_width;       /* of the result */
    int64_t grid_width;
} Window;

static inline int64_t positions_of(const Window *w) { return (w->out_height - 1) * w->grid_width + w->out_width; }

#if defined(__AVX2__)
#define COPIED 8   /* floats at once; divides every size of a tile */
#else
#define COPIED 4
#endif
#define COPIED_V JOIN(v, COPIED)

/* Copy the features of `left` positions from `first` on into a tile, with zeros up to `tokens`. Returns whether all of
   them are finite. */
static inline int load_patches(const float *X, const Window *w, int64_t first, int left, int64_t features, int tokens,
                               float *x)
{
    int64_t at[MOST_POSITIONS];   /* where the windows begin */
    for (int t = 0; t < left; t++) {
        const int64_t row = (first + t) / w->grid_width, column = (first + t) % w->grid_width;
        at[t] = row * w->stride_height * w->width + column * w->stride_width;
    }
    const int contiguous = at[left - 1] - at[0] == left - 1;
    COPIED_V poison = JOIN(splat, COPIED)(0);
    int64_t channel = 0, down = 0, right = 0;
    for (int64_t k = 0; k < features; k++, x += tokens) {
        const int64_t row = channel * w->height + down * w->dilation_height;
        const float *from = X + row * w->width + right * w->dilation_width;
        if (!contiguous || left < tokens) {
            for (int t = 0; t < left; t++) x[t] = from[at[t]];
            for (int t = left; t < tokens; t++) x[t] = 0;
        }
        const float *source = contiguous && left == tokens ? from + at[0] : x;
        for (int t = 0; t < tokens; t += COPIED) {
            const COPIED_V value = JOIN(load, COPIED)(source + t);
            poison += value - value;
            JOIN(store, COPIED)(x + t, value);
        }
        if (++right < w->kernel_width) continue;
        right = 0;
        if (++down < w->kernel_height) continue;
        down = 0;
        channel++;
    }
    float sum = 0;
    for (int i = 0; i < COPIED; i++) sum += poison[i];
    return sum == 0;
}

/* Copy `rows` rows of a tile to the pixels that its positions make. Y: the first row's [pixels], ldy apart. */
static inline void store_pixels(const float *y, int64_t rows, int tokens, const Window *w, int64_t first, int left,
                                float *Y, int64_t ldy)
{
    const int64_t per_row = w->grid_width;
    if (per_row == w->out_width) {   /* each makes a pixel */
        for (int64_t n = 0; n < rows; n++) memcpy(Y + n * ldy + first, y + n * tokens, left * sizeof(float));
        return;
    }
    for (int64_t t = 0, run; t < left; t += run) {   /* run by run: the positions of one row */
        const int64_t row = (first + t) / per_row, column = (first + t) % per_row;
        run = per_row - column < left - t ? per_row - column : left - t;
        const int64_t pixels = w->out_width - column < run ? w->out_width - column : run;
        float *to = Y + row * w->out_width + column;
        for (int64_t n = 0; n < rows && pixels > 0; n++)
            memcpy(to + n * ldy, y + n * tokens + t, pixels * sizeof(float));
    }
}

#endif
