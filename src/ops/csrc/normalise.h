// Batch normalisation and activation of tensors in the blocked layout (N, C / B, H, W, B), B channels a vector.
//
// A tile is one block of channels of one image.  Sums over a batch are formed per tile and then over images in
// order, so they do not depend on the threads.
#pragma once
#include <cmath>

#include "conv.h"

namespace da {
enum Norm { kNone, kInference, kTraining };
enum Activation { kLinear, kRelu, kRelu6 };

template <int B>
struct Vector {
    typedef float type __attribute__((vector_size(B * 4), aligned(4)));
    typedef int mask __attribute__((vector_size(B * 4)));
};

template <int B>
typename Vector<B>::type activate(typename Vector<B>::type v, Activation a) {
    using V = typename Vector<B>::type;
    const V zero = {}, six = zero + 6.0f;
    if (a != kLinear) v = v < zero ? zero : v;  // keeps NaN
    if (a == kRelu6) v = v > six ? six : v;
    return v;
}

// The gradient of activate(v): `grad` where v is strictly between its bounds.
template <int B>
typename Vector<B>::type activate_back(typename Vector<B>::type v, typename Vector<B>::type grad, Activation a) {
    using V = typename Vector<B>::type;
    const V zero = {}, six = zero + 6.0f;
    if (a != kLinear) grad = v <= zero ? zero : grad;
    if (a == kRelu6) grad = v >= six ? zero : grad;
    return grad;
}

// Exchanges rows and columns of B x B values in registers.
template <int B>
void transpose(typename Vector<B>::type (&rows)[B]) {
    using V = typename Vector<B>::type;
    using M = typename Vector<B>::mask;
#pragma GCC unroll 4
    for (int step = 1; step < B; step *= 2) {
        M low, high;
        for (int k = 0; k < B; ++k) {
            low[k] = k & step ? B + k - step : k;
            high[k] = k & step ? B + k : k + step;
        }
#pragma GCC unroll 16
        for (int r = 0; r < B; ++r) {
            if (r & step) continue;
            const V a = rows[r], b = rows[r + step];
            rows[r] = __builtin_shuffle(a, b, low);
            rows[r + step] = __builtin_shuffle(a, b, high);
        }
    }
}

// A tile of `area` positions -> `channels` planes, and back (channels beyond get zeros).
template <int B>
void to_planes(const float *tile, dim_t channels, dim_t area, float *planes) {
    using V = typename Vector<B>::type;
    dim_t i = 0;
    for (; i + B <= area; i += B) {
        V rows[B];
        for (int k = 0; k < B; ++k) rows[k] = reinterpret_cast<const V *>(tile)[i + k];
        transpose<B>(rows);
        for (int c = 0; c < B && c < channels; ++c) *reinterpret_cast<V *>(planes + c * area + i) = rows[c];
    }
    for (; i < area; ++i)
        for (dim_t c = 0; c < channels; ++c) planes[c * area + i] = tile[i * B + c];
}
template <int B>
void from_planes(const float *planes, dim_t channels, dim_t area, float *tile) {
    using V = typename Vector<B>::type;
    dim_t i = 0;
    for (; i + B <= area; i += B) {
        V rows[B];
        for (int c = 0; c < B; ++c)
            rows[c] = c < channels ? *reinterpret_cast<const V *>(planes + c * area + i) : V{};
        transpose<B>(rows);
        for (int k = 0; k < B; ++k) reinterpret_cast<V *>(tile)[i + k] = rows[k];
    }
    for (; i < area; ++i)
        for (dim_t c = 0; c < B; ++c) tile[i * B + c] = c < channels ? planes[c * area + i] : 0.0f;
}

// Images, channels and positions of a blocked tensor.
struct Tiles {
    dim_t n, c, blocks, area;
    Tiles(dim_t n, dim_t c, dim_t area, int block) : n(n), c(c), blocks((c + block - 1) / block), area(area) {}
    int count() const { return int(n * blocks); }
    dim_t padded(int block) const { return blocks * block; }
    double values() const { return double(n) * double(area); }  // of each channel
    // Channels in the block of a tile.
    dim_t channels(int tile, int block) const {
        const dim_t left = c - tile % blocks * block;
        return left < block ? left : block;
    }
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
template <int B>
typename Vector<B>::type at(const std::vector<float> &values, dim_t block) {
    return reinterpret_cast<const typename Vector<B>::type *>(values.data())[block];
}

// Mean and squared deviations of every channel over N, H and W (Chan et al. 1983: combined image by image).
template <int B>
class Moments {
  public:
    using V = typename Vector<B>::type;
    explicit Moments(const Tiles &t) : t_(t), means_(t.count() * B), squares_(t.count() * B) {}

    void add(int job, const float *tile) {
        const V *z = reinterpret_cast<const V *>(tile);
        V sum[4] = {}, square[4] = {};
        dim_t i = 0;
        for (; i + 4 <= t_.area; i += 4)
            for (int k = 0; k < 4; ++k) sum[k] += z[i + k];
        for (; i < t_.area; ++i) sum[0] += z[i];
        const V average = (sum[0] + sum[1] + sum[2] + sum[3]) / float(t_.area);
        auto squared = [&](V v) { return (v - average) * (v - average); };
        for (i = 0; i + 4 <= t_.area; i += 4)
            for (int k = 0; k < 4; ++k) square[k] += squared(z[i + k]);
        for (; i < t_.area; ++i) square[0] += squared(z[i]);
        reinterpret_cast<V *>(means_.data())[job] = average;
        reinterpret_cast<V *>(squares_.data())[job] = square[0] + square[1] + square[2] + square[3];
    }

    // Mean and sum of squared deviations of channel c; every tile must have been added.
    std::pair<double, double> of(dim_t c) const {
        double m = 0, q = 0;
        for (dim_t n = 0; n < t_.n; ++n) {
            const double delta = means_[n * t_.padded(B) + c] - m;
            m += delta / double(n + 1);
            q += squares_[n * t_.padded(B) + c] + delta * delta * double(t_.area) * double(n) / double(n + 1);
        }
        return {m, q};
    }

  private:
    const Tiles t_;
    std::vector<float> means_, squares_;
};

// One batch normalisation's tensors, each (C).  `statistics` is (2, C): mean and 1 / deviation.
struct Normalisation {
    Norm mode;
    float epsilon, momentum;
    const float *gamma, *beta, *mean, *variance;
    float *statistics, *new_mean, *new_variance;

    // What the layer multiplies by and adds, for channels [begin, end); with batch statistics, whose tiles must
    // have been added, also writes the moving ones.
    template <int B>
    void settle(const Tiles &t, const Moments<B> &moments, dim_t begin, dim_t end, Affine &affine) const {
        for (dim_t c = begin; c < end; ++c) {
            if (mode == kNone) {
                affine.set(c, 1, 0, 0, 1);
                continue;
            }
            double m = mean[c], v = variance[c];
            if (mode == kTraining) {
                const auto [batch_mean, squares] = moments.of(c);
                const double count = t.values(), unbiased = squares / (count > 1 ? count - 1 : 1);
                new_mean[c] = float(m + momentum * (batch_mean - m));
                new_variance[c] = float(v + momentum * (unbiased - v));
                m = batch_mean;
                v = squares / count;
            }
            affine.set(c, gamma[c], beta[c], float(m), float(1 / std::sqrt(v + epsilon)));
            statistics[c] = affine.mean[c];
            statistics[t.c + c] = affine.inverse[c];
        }
    }
};

// The affine map again from `statistics`, for the gradient.
inline Affine affine_again(const Tiles &t, int block, Norm mode, const float *gamma, const float *beta,
                           const float *statistics) {
    Affine affine(t.padded(block));
    for (dim_t c = 0; c < t.c; ++c) {
        if (mode == kNone)
            affine.set(c, 1, 0, 0, 1);
        else
            affine.set(c, gamma[c], beta[c], statistics[c], statistics[t.c + c]);
    }
    return affine;
}

// The gradient through a normalisation (Ioffe & Szegedy 2015, section 3): add every tile, settle, apply.
template <int B>
class NormGradient {
  public:
    using V = typename Vector<B>::type;
    NormGradient(const Tiles &t, Norm mode, const Affine &affine)
        : t_(t), mode_(mode), affine_(affine), sums_(t.count() * B), products_(t.count() * B),
          offset_(t.padded(B), 0), slope_(t.padded(B), 0) {}

    // dv: gradient of the layer's output; z: its input.
    void add(int job, const float *dv, const float *z) {
        const V mean = at<B>(affine_.mean, job % t_.blocks);
        const V *ds = reinterpret_cast<const V *>(dv), *zs = reinterpret_cast<const V *>(z);
        V sum[4] = {}, product[4] = {};
        dim_t i = 0;
        for (; i + 4 <= t_.area; i += 4)
            for (int k = 0; k < 4; ++k) {
                sum[k] += ds[i + k];
                product[k] += ds[i + k] * (zs[i + k] - mean);
            }
        for (; i < t_.area; ++i) {
            sum[0] += ds[i];
            product[0] += ds[i] * (zs[i] - mean);
        }
        reinterpret_cast<V *>(sums_.data())[job] = sum[0] + sum[1] + sum[2] + sum[3];
        reinterpret_cast<V *>(products_.data())[job] =
            (product[0] + product[1] + product[2] + product[3]) * at<B>(affine_.inverse, job % t_.blocks);
    }

    // For channels [begin, end), whose tiles must have been added.
    void settle(dim_t begin, dim_t end, float *dgamma, float *dbeta) {
        for (dim_t c = begin; c < end; ++c) {
            double sum = 0, product = 0;
            for (dim_t n = 0; n < t_.n; ++n) {
                sum += sums_[n * t_.padded(B) + c];
                product += products_[n * t_.padded(B) + c];
            }
            dbeta[c] = float(sum);
            dgamma[c] = float(product);
            if (mode_ != kTraining) continue;
            offset_[c] = float(sum / t_.values());
            slope_[c] = float(product / t_.values()) * affine_.inverse[c];
        }
    }

    // For `count` positions of block `b`; dz may be dv.
    void apply(dim_t b, dim_t count, const float *dv, const float *z, float *dz) const {
        const V scale = at<B>(affine_.scale, b), mean = at<B>(affine_.mean, b);
        const V offset = at<B>(offset_, b), slope = at<B>(slope_, b);
        const V *ds = reinterpret_cast<const V *>(dv), *zs = reinterpret_cast<const V *>(z);
        V *out = reinterpret_cast<V *>(dz);
        for (dim_t i = 0; i < count; ++i) out[i] = scale * (ds[i] - offset - (zs[i] - mean) * slope);
    }

  private:
    const Tiles t_;
    const Norm mode_;
    const Affine &affine_;
    std::vector<float> sums_, products_, offset_, slope_;
};
}  // namespace da
