// Depthwise convolution of single tiles in the blocked layout: kernels 3x3 and 5x5, strides 1 and 2, and a padding
// below the kernel's size on each side.
#pragma once
#include <algorithm>

#include "normalise.h"

namespace da {
// Shapes of one depthwise convolution: `h` x `w` positions -> `oh` x `ow`, with `top` rows and `left` columns of
// zeros before the input's; how many follow it is told by the output.
struct Depthwise {
    dim_t kernel, stride, top, left, h, w, oh, ow;
    explicit Depthwise(const Problem &p)
        : kernel(p.w[2]), stride(p.strides[0]), top(p.pad_l[0]), left(p.pad_l[1]), h(p.x[2]), w(p.x[3]), oh(p.y[2]),
          ow(p.y[3]) {}
    dim_t taps() const { return kernel * kernel; }
};

// The weights (C, 1, k, k) as one vector per block and tap.
template <int B>
std::vector<float> by_tap(const float *w, dim_t channels, dim_t blocks, dim_t taps) {
    std::vector<float> out(blocks * taps * B, 0);
    for (dim_t c = 0; c < channels; ++c)
        for (dim_t k = 0; k < taps; ++k) out[(c / B * taps + k) * B + c % B] = w[c * taps + k];
    return out;
}

// A tile inside a border of zeros.
template <int B>
class Bordered {
  public:
    using V = typename Vector<B>::type;
    // `above` and `left` positions of border, and what is needed for `rows` x `columns` in all; fill(i, to) writes
    // row i of the tile.
    template <typename Fill>
    Bordered(dim_t height, dim_t width, dim_t above, dim_t left, dim_t rows, dim_t columns, const Fill &fill)
        : line(std::max(columns, left + width)), buffer_(std::max(rows, above + height) * line * sizeof(V)) {
        const dim_t total = std::max(rows, above + height), right = line - left - width;
        memset(row(0), 0, above * line * sizeof(V));
        for (dim_t i = 0; i < height; ++i) {
            V *to = row(above + i);
            memset(to, 0, left * sizeof(V));
            fill(i, to + left);
            memset(to + left + width, 0, right * sizeof(V));
        }
        memset(row(above + height), 0, (total - above - height) * line * sizeof(V));
    }
    V *row(dim_t i) const { return static_cast<V *>(buffer_.get()) + i * line; }
    const dim_t line;

  private:
    Buffer buffer_;
};

// out[i][j] = sum over rows a and columns b of w[a][b] * tile[i * stride + a][j * stride + b]
template <int B, int kernel, int stride>
void correlate(const Bordered<B> &tile, const typename Vector<B>::type *w, dim_t oh, dim_t ow,
               typename Vector<B>::type *out) {
    using V = typename Vector<B>::type;
    V taps[kernel * kernel];
    for (int k = 0; k < kernel * kernel; ++k) taps[k] = w[k];
    for (dim_t i = 0; i < oh; ++i, out += ow) {
        const V *from = tile.row(i * stride);
        for (dim_t j = 0; j < ow; ++j, from += stride) {
            V sum;
#pragma GCC unroll 5
            for (int a = 0; a < kernel; ++a) {
                const V *r = from + a * tile.line, *t = taps + a * kernel;
                V part = r[0] * t[0] + r[1] * t[1];
#pragma GCC unroll 5
                for (int b = 2; b < kernel; ++b) part += r[b] * t[b];
                sum = a ? sum + part : part;
            }
            out[j] = sum;
        }
    }
}

// sums[a][b] = sum over i and j of d[i][j] * tile[i * stride + a][j * stride + b]; d has `pitch` positions a row.
// Row by row of the kernel where its taps would not fit into registers.
template <int B, int kernel, int stride>
void correlate_weights(const Bordered<B> &tile, const typename Vector<B>::type *d, dim_t pitch, dim_t oh, dim_t ow,
                       typename Vector<B>::type *sums) {
    using V = typename Vector<B>::type;
    constexpr int kRows = B == 16 || kernel == 3 ? kernel : 1;
    for (int first = 0; first < kernel; first += kRows) {
        V all[kRows * kernel] = {};
        for (dim_t i = 0; i < oh; ++i) {
            const V *from = tile.row(i * stride + first), *gradient = d + i * pitch;
            for (dim_t j = 0; j < ow; ++j, from += stride) {
                const V g = gradient[j];
#pragma GCC unroll 5
                for (int a = 0; a < kRows; ++a)
#pragma GCC unroll 5
                    for (int b = 0; b < kernel; ++b) all[a * kernel + b] += g * from[a * tile.line + b];
            }
        }
        memcpy(sums + first * kernel, all, sizeof(all));
    }
}

// Two columns at a time of a row that `rows` rows of the gradient reach, through every second of their taps.
template <int B, int kernel, int rows>
void spread_row(const typename Vector<B>::type *const *d, const typename Vector<B>::type *const *taps, dim_t pairs,
                typename Vector<B>::type *out) {
    using V = typename Vector<B>::type;
    V t[rows][kernel];
    for (int k = 0; k < rows; ++k)
        for (int b = 0; b < kernel; ++b) t[k][b] = taps[k][b];
    for (dim_t j = 0; j < pairs; ++j) {
        V even = d[0][j] * t[0][0] + d[0][j - 1] * t[0][2], odd = V{} + d[0][j] * t[0][1];
        if (kernel == 5) {
            even += d[0][j - 2] * t[0][4];
            odd += d[0][j - 1] * t[0][3];
        }
#pragma GCC unroll 3
        for (int k = 1; k < rows; ++k) {
#pragma GCC unroll 3
            for (int b = 0; b < kernel; b += 2) even += d[k][j - b / 2] * t[k][b];
#pragma GCC unroll 3
            for (int b = 1; b < kernel; b += 2) odd += d[k][j - b / 2] * t[k][b];
        }
        out[2 * j] = even;
        out[2 * j + 1] = odd;
    }
}

// Row `at` of the gradient of the input with its border, 2 * pairs columns, of stride 2:
// out[c] = sum over a and b of w[a][b] * d[(at - a) / 2][(c - b) / 2] where both divide evenly.
// `d` has kernel / 2 positions of border above and to the left.
template <int B, int kernel>
void spread(const Bordered<B> &d, const typename Vector<B>::type *w, dim_t at, dim_t pairs,
            typename Vector<B>::type *out) {
    using V = typename Vector<B>::type;
    constexpr int half = kernel / 2, most = half + 1;
    // The rows of d that reach this one: row (at - a) / 2 through row a of the taps.
    const V *rows[most], *taps[most];
    int count = 0;
    for (int a = kernel - 1 - int((kernel - 1 - at) & 1); a >= 0; a -= 2, ++count) {
        rows[count] = d.row((at - a) / 2 + half) + half;
        taps[count] = w + a * kernel;
    }
    (count == most ? spread_row<B, kernel, most> : spread_row<B, kernel, most - 1>)(rows, taps, pairs, out);
}
}  // namespace da
