// Max pooling in three parts: where the largest value of each window stands, fetching values from there, and
// adding values there.  The latter two are linear and each other's adjoint, so that derivatives of any order
// are made of them.  Planes are those of NCHW tensors; a place is the offset within its plane.
#include <algorithm>

#include "runtime.h"

namespace da {
namespace {
// What the tensor `geometry` of the Python side holds.
struct Window {
    explicit Window(const int64_t *g) : kernel{g[0], g[1]}, stride{g[2], g[3]} {}
    int64_t kernel[2], stride[2];
};

int64_t planes(const int64_t *shape) { return shape[0] * shape[1]; }
int64_t area(const int64_t *shape) { return shape[2] * shape[3]; }

// Runs fn(plane) for every plane, on all threads.
void each_plane(int64_t count, const std::function<void(int64_t)> &fn) {
    const int parts = int(std::min<int64_t>(count, threads()));
    parallel(parts, [&](int i) {
        const auto [begin, end] = part(count, i, parts);
        for (int64_t p = begin; p < end; ++p) fn(p);
    });
}

// Of equal values the first counts; what is not a number counts as the largest.
void places(const float *x, int64_t width, const int64_t *out, const Window &w, int32_t *index) {
    for (int64_t row = 0; row < out[2]; ++row)
        for (int64_t column = 0; column < out[3]; ++column) {
            const int64_t corner = row * w.stride[0] * width + column * w.stride[1];
            int64_t best = corner;
            for (int64_t i = 0; i < w.kernel[0]; ++i)
                for (int64_t j = 0; j < w.kernel[1]; ++j) {
                    const int64_t place = corner + i * width + j;
                    if (x[place] > x[best] || (x[place] != x[place] && x[best] == x[best])) best = place;
                }
            *index++ = int32_t(best);
        }
}
}  // namespace
}  // namespace da

extern "C" {
// x (N, C, H, W), geometry (kernel and stride, each height, width) -> places int32 (N, C, H', W')
int pool_places(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("pool_places", [&] {
        const da::Window window(static_cast<const int64_t *>(data[1]));
        const int64_t *in = shapes[0], *out = shapes[2];
        const auto *x = static_cast<const float *>(data[0]);
        auto *index = static_cast<int32_t *>(data[2]);
        da::each_plane(da::planes(in), [&](int64_t p) {
            da::places(x + p * da::area(in), in[3], out, window, index + p * da::area(out));
        });
    });
}

// x (N, C, H, W), places (N, C, H', W') -> the values there (N, C, H', W')
int pool_fetch(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("pool_fetch", [&] {
        const int64_t from = da::area(shapes[0]), to = da::area(shapes[2]);
        const auto *x = static_cast<const float *>(data[0]);
        const auto *index = static_cast<const int32_t *>(data[1]);
        auto *y = static_cast<float *>(data[2]);
        da::each_plane(da::planes(shapes[0]), [&](int64_t p) {
            for (int64_t i = p * to; i < (p + 1) * to; ++i) y[i] = x[p * from + index[i]];
        });
    });
}

// y (N, C, H', W'), places (N, C, H', W'), x for its shape (N, C, H, W) -> sums of the values of y at each place
int pool_add(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("pool_add", [&] {
        const int64_t from = da::area(shapes[0]), to = da::area(shapes[3]);
        const auto *y = static_cast<const float *>(data[0]);
        const auto *index = static_cast<const int32_t *>(data[1]);
        auto *x = static_cast<float *>(data[3]);
        da::each_plane(da::planes(shapes[0]), [&](int64_t p) {
            std::fill(x + p * to, x + (p + 1) * to, 0.0f);
            for (int64_t i = p * from; i < (p + 1) * from; ++i) x[p * to + index[i]] += y[i];
        });
    });
}
}
