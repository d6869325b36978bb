// A stage of a network in one go: convolution, then batch normalisation, max-pooling and activation, each of
// them optional.  What lies between stays in the blocked layout (N, C / block, H, W, block).
//
// Sums over a batch are formed per image and then over images in order, so they do not depend on the threads.
#include <cmath>

#include "conv.h"

namespace da {
namespace {
enum Norm { kNone, kInference, kTraining };
enum Activation { kLinear, kRelu, kRelu6 };

// What follows the convolution; continues the integers of Problem.
struct Tail {
    Norm norm;
    dim_t kernel[2], stride[2];
    Activation activation;
    float epsilon, momentum;
    Tail(const int64_t *g, const float *c)
        : norm(Norm(g[11])), kernel{g[12], g[13]}, stride{g[14], g[15]}, activation(Activation(g[16])),
          epsilon(c[0]), momentum(c[1]) {}
};

template <int B>
struct Vector {
    typedef float type __attribute__((vector_size(B * 4), aligned(4)));
    typedef int mask __attribute__((vector_size(B * 4)));
};

// The shapes of one stage: z (N, C, H, W) blocked, y (N, C, OH, OW) plain.
struct Shape {
    dim_t n, c, blocks, h, w, oh, ow;
    Shape(const Problem &p, const Tail &t, int block)
        : n(p.y[0]), c(p.y[1]), blocks((p.y[1] + block - 1) / block), h(p.y[2]), w(p.y[3]),
          oh((h - t.kernel[0]) / t.stride[0] + 1), ow((w - t.kernel[1]) / t.stride[1] + 1) {}
};

// Per channel, padded to whole blocks: value = scale * z + shift, and xhat = (z - mean) * inverse.
struct Affine {
    std::vector<float> scale, shift, mean, inverse;
    explicit Affine(size_t channels) : scale(channels, 0), shift(channels, 0), mean(channels, 0), inverse(channels, 0) {}
    void set(size_t c, float gamma, float beta, float m, float i) {
        mean[c] = m;
        inverse[c] = i;
        scale[c] = gamma * i;
        shift[c] = beta - m * gamma * i;
    }
};

// Mean and sum of squared deviations of every channel over N, H and W (Chan et al. 1983: combined image by image).
template <int B>
void moments(const Shape &s, const float *z, std::vector<double> &mean, std::vector<double> &squares) {
    using V = typename Vector<B>::type;
    const dim_t area = s.h * s.w, padded = s.blocks * B;
    std::vector<float> image_mean(s.n * padded), image_squares(s.n * padded);
    parallel(int(s.n * s.blocks), [&](int job) {
        const V *tile = reinterpret_cast<const V *>(z + job * area * B);
        V sum[4] = {};
        for (dim_t i = 0; i < area; ++i) sum[i & 3] += tile[i];
        const V average = (sum[0] + sum[1] + sum[2] + sum[3]) / float(area);
        V square[4] = {};
        for (dim_t i = 0; i < area; ++i) {
            const V d = tile[i] - average;
            square[i & 3] += d * d;
        }
        reinterpret_cast<V *>(image_mean.data())[job] = average;
        reinterpret_cast<V *>(image_squares.data())[job] = square[0] + square[1] + square[2] + square[3];
    });
    for (dim_t c = 0; c < s.c; ++c) {
        double m = 0, q = 0;
        for (dim_t n = 0; n < s.n; ++n) {
            const double delta = image_mean[n * padded + c] - m;
            m += delta / double(n + 1);
            q += image_squares[n * padded + c] + delta * delta * double(area) * double(n) / double(n + 1);
        }
        mean[c] = m;
        squares[c] = q;
    }
}

template <int B>
typename Vector<B>::type activate(typename Vector<B>::type v, Activation a) {
    using V = typename Vector<B>::type;
    const V zero = {}, six = zero + 6.0f;
    if (a != kLinear) v = v < zero ? zero : v;  // keeps NaN
    if (a == kRelu6) v = v > six ? six : v;
    return v;
}

// Largest value of the window at (oh, ow); a NaN in the window wins.
template <int B>
typename Vector<B>::type window(const Shape &s, const Tail &t, const float *tile, dim_t oh, dim_t ow,
                                typename Vector<B>::type scale, typename Vector<B>::type shift) {
    using V = typename Vector<B>::type;
    const V *row = reinterpret_cast<const V *>(tile) + oh * t.stride[0] * s.w + ow * t.stride[1];
    V best = row[0] * scale + shift;
    for (dim_t i = 0; i < t.kernel[0]; ++i, row += s.w)
        for (dim_t j = 0; j < t.kernel[1]; ++j) {
            const V v = row[j] * scale + shift;
            best = v <= best ? best : (best != best ? best : v);
        }
    return best;
}

// z -> y: normalise, pool and activate one block of channels of one image after the other.
template <int B>
void finish(const Shape &s, const Tail &t, const Affine &affine, const float *z, float *y) {
    using V = typename Vector<B>::type;
    const dim_t area = s.oh * s.ow;
    parallel(int(s.n * s.blocks), [&](int job) {
        const dim_t n = job / s.blocks, b = job % s.blocks;
        const float *tile = z + job * s.h * s.w * B;
        const V scale = reinterpret_cast<const V *>(affine.scale.data())[b];
        const V shift = reinterpret_cast<const V *>(affine.shift.data())[b];
        Buffer buffer(area * B * sizeof(float));
        V *out = static_cast<V *>(buffer.get());
        if (t.kernel[0] * t.kernel[1] == 1 && t.stride[0] * t.stride[1] == 1) {
            const V *in = reinterpret_cast<const V *>(tile);
            for (dim_t i = 0; i < area; ++i) out[i] = activate<B>(in[i] * scale + shift, t.activation);
        } else {
            for (dim_t i = 0; i < s.oh; ++i)
                for (dim_t j = 0; j < s.ow; ++j)
                    out[i * s.ow + j] = activate<B>(window<B>(s, t, tile, i, j, scale, shift), t.activation);
        }
        const float *from = buffer.floats();
        float *to = y + (n * s.c + b * B) * area;
        for (dim_t c = 0; c < B && b * B + c < s.c; ++c)
            for (dim_t i = 0; i < area; ++i) to[c * area + i] = from[i * B + c];
    });
}

// Spreads one block of dy back over z's positions: the first of a window's largest values gets the gradient.
template <int B>
void spread(const Shape &s, const Tail &t, const float *tile, const float *dy, dim_t channels,
            typename Vector<B>::type scale, typename Vector<B>::type shift, float *dv) {
    using V = typename Vector<B>::type;
    using M = typename Vector<B>::mask;
    const dim_t area = s.oh * s.ow;
    Buffer buffer(area * B * sizeof(float));
    float *g = buffer.floats();
    if (channels < B) memset(g, 0, area * B * sizeof(float));
    for (dim_t c = 0; c < channels; ++c)
        for (dim_t i = 0; i < area; ++i) g[i * B + c] = dy[c * area + i];
    const V zero = {}, six = zero + 6.0f;
    const bool single = t.kernel[0] * t.kernel[1] == 1 && t.stride[0] * t.stride[1] == 1;
    const V *z = reinterpret_cast<const V *>(tile);
    V *d = reinterpret_cast<V *>(dv);
    if (!single) memset(dv, 0, s.h * s.w * B * sizeof(float));
    for (dim_t o = 0; o < area; ++o) {
        V grad = reinterpret_cast<const V *>(g)[o];
        const V best = single ? V(z[o] * scale + shift) : window<B>(s, t, tile, o / s.ow, o % s.ow, scale, shift);
        if (t.activation != kLinear) grad = best <= zero ? zero : grad;
        if (t.activation == kRelu6) grad = best >= six ? zero : grad;
        if (single) {
            d[o] = grad;
            continue;
        }
        dim_t at = o / s.ow * t.stride[0] * s.w + o % s.ow * t.stride[1];
        M open = zero == zero;
        for (dim_t i = 0; i < t.kernel[0]; ++i, at += s.w)
            for (dim_t j = 0; j < t.kernel[1]; ++j) {
                const M hit = open & ((z[at + j] * scale + shift) == best);
                d[at + j] += hit ? grad : zero;
                open &= ~hit;
            }
    }
}

// dy -> dz, with dgamma and dbeta (Ioffe & Szegedy 2015, section 3).
template <int B>
void back(const Shape &s, const Tail &t, const Affine &affine, const float *z, const float *dy, float *dz,
          float *dgamma, float *dbeta) {
    using V = typename Vector<B>::type;
    const dim_t area = s.h * s.w, padded = s.blocks * B;
    auto at = [](const std::vector<float> &v, dim_t b) { return reinterpret_cast<const V *>(v.data())[b]; };
    std::vector<float> sums(s.n * padded), products(s.n * padded);
    parallel(int(s.n * s.blocks), [&](int job) {
        const dim_t n = job / s.blocks, b = job % s.blocks, left = s.c - b * B;
        const float *tile = z + job * area * B;
        float *dv = dz + job * area * B;
        spread<B>(s, t, tile, dy + (n * s.c + b * B) * s.oh * s.ow, left < B ? left : B, at(affine.scale, b),
                  at(affine.shift, b), dv);
        if (t.norm == kNone) return;
        const V mean = at(affine.mean, b);
        const V *zs = reinterpret_cast<const V *>(tile), *ds = reinterpret_cast<const V *>(dv);
        V sum[2] = {}, product[2] = {};
        for (dim_t i = 0; i < area; ++i) {
            sum[i & 1] += ds[i];
            product[i & 1] += ds[i] * (zs[i] - mean);
        }
        reinterpret_cast<V *>(sums.data())[job] = sum[0] + sum[1];
        reinterpret_cast<V *>(products.data())[job] = (product[0] + product[1]) * at(affine.inverse, b);
    });
    if (t.norm == kNone) return;
    std::vector<float> mean_sum(padded, 0), mean_product(padded, 0);
    const double count = double(s.n) * double(area);
    for (dim_t c = 0; c < s.c; ++c) {
        double sum = 0, product = 0;
        for (dim_t n = 0; n < s.n; ++n) {
            sum += sums[n * padded + c];
            product += products[n * padded + c];
        }
        dbeta[c] = float(sum);
        dgamma[c] = float(product);
        if (t.norm == kTraining) {
            mean_sum[c] = float(sum / count);
            mean_product[c] = float(product / count);
        }
    }
    parallel(int(s.n * s.blocks), [&](int job) {
        const dim_t b = job % s.blocks;
        const V *zs = reinterpret_cast<const V *>(z + job * area * B);
        V *ds = reinterpret_cast<V *>(dz + job * area * B);
        const V scale = at(affine.scale, b), mean = at(affine.mean, b);
        const V slope = at(mean_product, b) * at(affine.inverse, b), offset = at(mean_sum, b);
        for (dim_t i = 0; i < area; ++i) ds[i] = scale * (ds[i] - offset - (zs[i] - mean) * slope);
    });
}

template <int B>
void stage_forward(void **data, int64_t **shapes) {
    const auto *geometry = static_cast<const int64_t *>(data[7]);
    const Problem p(shapes[0], shapes[1], geometry, geometry[Problem::kGeometry] != 0);
    const Tail t(geometry, static_cast<const float *>(data[8]));
    const Shape s(p, t, B);
    auto floats = [&](int i) { return static_cast<float *>(data[i]); };
    float *y = floats(9), *z = floats(10), *statistics = floats(11);
    forward(p, B == 16 ? kNchw16c : kNchw8c)->run_blocked(data[0], data[1], data[2], z);
    Affine affine(s.blocks * B);
    std::vector<double> mean(s.c), squares(s.c);
    if (t.norm == kTraining) moments<B>(s, z, mean, squares);
    const double count = double(s.n) * double(s.h) * double(s.w);
    for (dim_t c = 0; c < s.c; ++c) {
        if (t.norm == kNone) {
            affine.set(c, 1, 0, 0, 1);
            continue;
        }
        const float old_mean = floats(5)[c], old_variance = floats(6)[c];
        double m = old_mean, v = old_variance;
        if (t.norm == kTraining) {
            m = mean[c];
            v = squares[c] / count;
            const double unbiased = count > 1 ? squares[c] / (count - 1) : v;
            floats(12)[c] = float(old_mean + t.momentum * (m - old_mean));
            floats(13)[c] = float(old_variance + t.momentum * (unbiased - old_variance));
        }
        affine.set(c, floats(3)[c], floats(4)[c], float(m), float(1 / std::sqrt(v + t.epsilon)));
        statistics[c] = affine.mean[c];
        statistics[s.c + c] = affine.inverse[c];
    }
    finish<B>(s, t, affine, z, y);
}

template <int B>
void stage_backward(void **data, int64_t **shapes) {
    const auto *geometry = static_cast<const int64_t *>(data[6]);
    const bool bias = geometry[Problem::kGeometry] != 0;
    const Problem p(shapes[0], shapes[8], geometry, bias);
    const Tail t(geometry, static_cast<const float *>(data[7]));
    const Shape s(p, t, B);
    auto floats = [&](int i) { return static_cast<float *>(data[i]); };
    Affine affine(s.blocks * B);
    for (dim_t c = 0; c < s.c; ++c) {
        if (t.norm == kNone)
            affine.set(c, 1, 0, 0, 1);
        else
            affine.set(c, floats(4)[c], floats(5)[c], floats(3)[c], floats(3)[s.c + c]);
    }
    back<B>(s, t, affine, floats(2), floats(1), floats(12), floats(10), floats(11));
    backward_weights(p, B == 16 ? kNchw16c : kNchw8c)->run(data[0], data[12], data[8], bias ? data[9] : nullptr);
}
}  // namespace
}  // namespace da

extern "C" {
// x, w, bias, gamma, beta, moving mean, moving variance, geometry, coefficients (epsilon, momentum)
// -> y, z blocked, statistics (mean and 1 / deviation), new moving mean, new moving variance.
// Without bias or normalisation their tensors are there but neither read nor written.
int stage_forward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("stage_forward", [&] {
        da::block() == 16 ? da::stage_forward<16>(data, shapes) : da::stage_forward<8>(data, shapes);
    });
}

// x, dy, z, statistics, gamma, beta, geometry, coefficients -> dw, dbias, dgamma, dbeta, dz blocked
int stage_backward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("stage_backward", [&] {
        da::block() == 16 ? da::stage_backward<16>(data, shapes) : da::stage_backward<8>(data, shapes);
    });
}

// x (for its shape), w, dz blocked, geometry -> dx
int stage_backward_data(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
    return da::guarded("stage_backward_data", [&] {
        const auto *geometry = static_cast<const int64_t *>(data[3]);
        const da::Problem p(shapes[0], shapes[1], geometry, geometry[da::Problem::kGeometry] != 0);
        da::backward_data(p, da::block() == 16 ? da::kNchw16c : da::kNchw8c)->run(data[2], data[1], data[4]);
    });
}
}
