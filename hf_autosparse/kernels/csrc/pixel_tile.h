/* Between an image's layout, [channels][height][width], and a tile's, which is [features][pixels]. */

#ifndef AUTOSPARSE_PIXEL_TILE_H
#define AUTOSPARSE_PIXEL_TILE_H

#include <string.h>

#include "token_tile.h"
#include "vectors.h"

/* What a convolution sees of an image. The features of an output pixel are the image's values under its window:
   [channels][kernel_height][kernel_width], as the columns of the weight are. The image is padded already. */
typedef struct {
    int64_t height, width;               /* of the image */
    int64_t kernel_height, kernel_width;
    int64_t stride_height, stride_width;
    int64_t dilation_height, dilation_width;
    int64_t out_width;                   /* of the result, whose pixels are numbered row by row */
} Window;

/* Copy the features of `left` <= 64 output pixels from `first` on into a tile, with zeros up to `tokens`, a multiple
   of 4. Returns whether all of them are finite. */
static inline int load_patches(const float *X, const Window *w, int64_t first, int left, int64_t features, int tokens,
                               float *x)
{
    v4 poison = splat4(0);
    int64_t at[64];   /* where the windows of the pixels begin */
    for (int t = 0; t < left; t++) {
        const int64_t row = (first + t) / w->out_width, column = (first + t) % w->out_width;
        at[t] = row * w->stride_height * w->width + column * w->stride_width;
    }
    const int contiguous = at[left - 1] - at[0] == left - 1;
    int64_t channel = 0, down = 0, right = 0;
    for (int64_t k = 0; k < features; k++, x += tokens) {
        const float *from = X + (channel * w->height + down * w->dilation_height) * w->width + right * w->dilation_width;
        if (contiguous) memcpy(x, from + at[0], left * sizeof(float));
        else for (int t = 0; t < left; t++) x[t] = from[at[t]];
        if (left < tokens) memset(x + left, 0, (tokens - left) * sizeof(float));
        for (int t = 0; t < tokens; t += 4) poison += load4(x + t) - load4(x + t);
        if (++right < w->kernel_width) continue;
        right = 0;
        if (++down < w->kernel_height) continue;
        down = 0;
        channel++;
    }
    return is_clean(poison);
}

static inline void store_pixels(const float *y, int64_t rows, int tokens, float *Y, int64_t ldy, int left)
{
    for (int64_t n = 0; n < rows; n++) memcpy(Y + n * ldy, y + n * tokens, left * sizeof(float));
}

#endif
